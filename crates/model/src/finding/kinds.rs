//! All kinds of finding that the farm observes itself, and the table of what holds for each kind, the kernel's included. Whoever adds a kind
//! says here all there is to say of it: nothing compiles before.

use klpfarm_kmsg::Kind as KernelKind;

use crate::Detector;
use crate::words::words;

words! {
    /// Trouble that the farm sees without the kernel's help.
    ObservedKind {
        /// A workload thread finishes no operation.
        ThreadStalled = "thread-stalled",
        /// Tasks stayed in the patch's own code without any progress, long beyond the limit for a stall, while the rest of the machine made
        /// progress: a hang that no slow host explains.
        HangConfirmed = "hang-confirmed",
        /// A task is uninterruptible and does not run.
        TaskBlocked = "task-blocked",
        /// A call failed or succeeded against its contract.
        WrongErrno = "wrong-errno",
        /// Memory or a file held something else than it should.
        WrongContent = "wrong-content",
        /// A process of the workload died.
        WorkloadDied = "workload-died",
        /// A workload does far fewer operations than the control arm.
        RateCollapsed = "rate-collapsed",
        /// An operation takes far longer than in the control arm.
        LatencyGrown = "latency-grown",
        /// A few operations take very long, which without the patch none or fewer do.
        TailGrown = "tail-grown",
        /// One thread falls far behind its siblings.
        ThreadStarved = "thread-starved",
        /// Memory, files or tasks are given out and not given back.
        ResourcesLeaked = "resources-leaked",
        /// No SSH login succeeds.
        SshDead = "ssh-dead",
        /// The probe went silent.
        ProbeSilent = "probe-silent",
        /// A CPU keeps its interrupts off.
        CpuStuck = "cpu-stuck",
        /// The console prints without end.
        ConsoleFlood = "console-flood",
        /// What is written to the kernel's log no longer comes out on the console.
        ConsoleSilent = "console-silent",
        /// The patch could not be loaded.
        LoadRefused = "load-refused",
        /// `insmod` did not return.
        LoadStuck = "load-stuck",
        /// The kernel does not list the patch as enabled after loading it.
        NotInForce = "not-in-force",
        /// Tasks do not switch to the patch.
        TransitionStalled = "transition-stalled",
        /// Tasks do not switch back.
        RevertStalled = "revert-stalled",
        /// The patch could not be disabled or unloaded.
        RevertRefused = "revert-refused",
        /// The kernel became tainted by more than a livepatch explains.
        Tainted = "tainted",
        /// The guest panicked (QMP).
        Panicked = "panicked",
        /// The machine restarted.
        Rebooted = "rebooted",
        /// The guest powered itself off.
        PoweredOff = "powered-off",
        /// The watchdog device fired.
        WatchdogFired = "watchdog-fired",
    }
}

/// What holds for all findings of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Which detector reports it.
    pub detector: Detector,
    /// How well it names a cause.
    pub rank: Rank,
    /// In which way a trial fails that shows it.
    pub failure: Failure,
    /// Whether the host's mood (load, slow disk) can cause it as well: such findings are attributed by kind and workload instead of
    /// title, because the place where a starved guest waits differs from one moment to the next.
    pub soft: bool,
    /// Whether the title tells one defect from another. It does not for soft kinds, but for what leaks: a control machine whose page cache
    /// grew must not excuse one whose slab does.
    pub told_by_title: bool,
    /// Whether lack of time alone can look like this: a host that was suspended or overloaded. It cannot look like what the kernel, the
    /// workload or QEMU says outright, nor like a hang that was confirmed.
    pub by_lack_of_time: bool,
    /// Whether no unpatched machine can have it, so that no control is needed to attribute it.
    pub only_by_a_patch: bool,
    /// Whether it is explained by memory that has run out, if the same trial shows that.
    pub explained_by_oom: bool,
    /// Whether it is about a task that makes no progress, of which is found out whether it ever does.
    pub followed_up: bool,
    /// What becomes of it while evidence is gathered.
    pub while_gathering: WhileGathering,
}

/// Which finding of a trial names the cause best: the lower, the better. A crash explains the hang that follows it, a hang
/// explains the silence. A taint only repeats what was reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    /// The patch was not loaded.
    NotLoaded,
    /// The kernel lost a task, a CPU or itself.
    Crash,
    /// A workload got a wrong answer.
    WrongResult,
    /// The kernel complains, or a CPU is stuck.
    Complaint,
    /// The patch does not come into force, or does not leave it.
    Transition,
    /// A hang that no slow machine explains.
    ConfirmedHang,
    /// The machine or a workload is gone.
    Gone,
    /// A workload makes no progress.
    Stall,
    /// A task is blocked.
    Blocked,
    /// The kernel reports what a slow machine shows as well.
    SlowKernel,
    /// What repeats other findings.
    Aftermath,
    /// Something answers no more.
    Silence,
    /// Only a comparison with the control arm shows it.
    Compared,
}

impl Rank {
    /// Whether a slow machine may be why tasks make no progress.
    pub fn may_be_slow(self) -> bool {
        matches!(self, Self::Stall | Self::Blocked | Self::SlowKernel)
    }

    /// Whether tasks make no progress.
    pub fn stands_still(self) -> bool {
        self == Self::ConfirmedHang || self.may_be_slow()
    }

    /// Whether tasks that wait explain it: a hang, or the silence that may follow one.
    pub fn is_hang(self) -> bool {
        self.stands_still() || self == Self::Silence
    }
}

/// Ways in which a trial fails, as far as they are told apart when patched and control trials are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Something makes no progress or does not answer.
    Hang,
    /// Something is slower than in the control arm.
    Slow,
    /// A resource is not given back; its name begins the title.
    Leak,
    /// Memory runs out.
    Memory,
    /// Everything else.
    Other,
}

/// What becomes of a finding that is made while evidence is gathered. Gathering it interrupts the guest and makes it stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WhileGathering {
    /// It counts: this breaks, whatever the farm does.
    Counts,
    /// It counts only with the patch's code on the stack.
    CountsInPatch,
    /// It counts unless the kernel panicked because of a non-maskable interrupt, which the farm sends.
    CountsUnlessNmi,
    /// It counts unless it only repeats that a CPU printed for long.
    CountsUnlessLockup,
    /// It may be the farm's doing.
    Ignored,
}

impl Rules {
    /// The rules of a kind of which nothing more is said.
    const fn new(detector: Detector, rank: Rank, failure: Failure) -> Self {
        Self {
            detector,
            rank,
            failure,
            soft: false,
            told_by_title: true,
            by_lack_of_time: false,
            only_by_a_patch: false,
            explained_by_oom: false,
            followed_up: false,
            while_gathering: WhileGathering::Counts,
        }
    }

    /// A host that is slow can cause it: what that entails.
    const fn soft(self) -> Self {
        Self {
            soft: true,
            told_by_title: false,
            by_lack_of_time: true,
            while_gathering: WhileGathering::Ignored,
            ..self
        }
    }

    const fn told_by_title(self) -> Self {
        Self { told_by_title: true, ..self }
    }

    const fn by_lack_of_time(self, by_lack_of_time: bool) -> Self {
        Self { by_lack_of_time, ..self }
    }

    const fn only_by_a_patch(self) -> Self {
        Self { only_by_a_patch: true, ..self }
    }

    const fn explained_by_oom(self) -> Self {
        Self { explained_by_oom: true, ..self }
    }

    const fn followed_up(self) -> Self {
        Self { followed_up: true, ..self }
    }

    const fn while_gathering(self, while_gathering: WhileGathering) -> Self {
        Self { while_gathering, ..self }
    }
}

/// What the farm observes.
pub(super) fn observed(kind: ObservedKind) -> Rules {
    use Failure::{Hang, Leak, Other, Slow};
    use ObservedKind as K;
    use WhileGathering::{CountsUnlessLockup, CountsUnlessNmi, Ignored};
    let rules = Rules::new;
    match kind {
        K::ThreadStalled => rules(Detector::Progress, Rank::Stall, Hang).soft(),
        K::HangConfirmed => {
            rules(Detector::Progress, Rank::ConfirmedHang, Hang).only_by_a_patch().while_gathering(Ignored)
        }
        K::TaskBlocked => rules(Detector::Progress, Rank::Blocked, Hang).soft(),
        K::WrongErrno | K::WrongContent => rules(Detector::Results, Rank::WrongResult, Other),
        K::WorkloadDied => rules(Detector::Results, Rank::Gone, Other).explained_by_oom(),
        K::RateCollapsed | K::LatencyGrown | K::TailGrown | K::ThreadStarved => {
            rules(Detector::Comparison, Rank::Compared, Slow).soft()
        }
        K::ResourcesLeaked => rules(Detector::ResourcesLeaked, Rank::Compared, Leak).soft().told_by_title(),
        K::SshDead => rules(Detector::Ssh, Rank::Silence, Hang).soft(),
        K::ProbeSilent => rules(Detector::Probe, Rank::Silence, Hang).soft(),
        K::CpuStuck => {
            rules(Detector::CpuStuck, Rank::Complaint, Other).by_lack_of_time(true).while_gathering(Ignored)
        }
        K::ConsoleFlood => rules(Detector::Console, Rank::Aftermath, Other).while_gathering(Ignored),
        K::ConsoleSilent => rules(Detector::Console, Rank::Silence, Hang).soft(),
        K::LoadRefused => rules(Detector::Livepatch, Rank::NotLoaded, Other).only_by_a_patch(),
        K::LoadStuck => {
            rules(Detector::Livepatch, Rank::NotLoaded, Other).only_by_a_patch().by_lack_of_time(true)
        }
        K::NotInForce | K::RevertRefused => {
            rules(Detector::Livepatch, Rank::Transition, Other).only_by_a_patch()
        }
        K::TransitionStalled | K::RevertStalled => {
            rules(Detector::Livepatch, Rank::Transition, Other).only_by_a_patch().by_lack_of_time(true)
        }
        K::Tainted => rules(Detector::Taint, Rank::Aftermath, Other).while_gathering(CountsUnlessLockup),
        K::Panicked => rules(Detector::Panicked, Rank::Gone, Other).while_gathering(CountsUnlessNmi),
        K::Rebooted => rules(Detector::Machine, Rank::Gone, Other).while_gathering(CountsUnlessNmi),
        K::PoweredOff => rules(Detector::Machine, Rank::Gone, Other),
        K::WatchdogFired => rules(Detector::Machine, Rank::Gone, Other).by_lack_of_time(true),
    }
}

/// What the kernel reports on its console.
pub(super) fn kernel(kind: KernelKind) -> Rules {
    use Failure::{Hang, Memory, Other};
    use KernelKind as K;
    use WhileGathering::{CountsInPatch, CountsUnlessNmi};
    let rules = Rules::new;
    let crash = rules(Detector::KernelReports, Rank::Crash, Other);
    let complaint = rules(Detector::KernelReports, Rank::Complaint, Other);
    match kind {
        K::HungTask => rules(Detector::HungTask, Rank::SlowKernel, Hang).soft().followed_up(),
        K::SoftLockup => rules(Detector::SoftLockup, Rank::SlowKernel, Hang).soft().followed_up(),
        K::RcuStall => rules(Detector::RcuStall, Rank::SlowKernel, Hang).soft().followed_up(),
        K::WorkqueueLockup => rules(Detector::KernelReports, Rank::SlowKernel, Hang).soft(),
        // Memory that is gone is gone however much time there is.
        K::Oom | K::PageAllocation => {
            rules(Detector::KernelReports, Rank::SlowKernel, Memory).soft().by_lack_of_time(false)
        }
        // A CPU that prints for long, or stands still.
        K::HardLockup => rules(Detector::HardLockup, Rank::Crash, Other).while_gathering(CountsInPatch),
        K::Spinlock => crash.while_gathering(CountsInPatch),
        K::Panic => crash.while_gathering(CountsUnlessNmi),
        K::NullDeref
        | K::PageFault
        | K::GeneralProtection
        | K::KernelBug
        | K::InvalidOpcode
        | K::DivideError
        | K::DoubleFault
        | K::StackSegment
        | K::Int3
        | K::StackOverflow
        | K::StackProtector
        | K::Oops
        | K::Refcount
        | K::ListCorruption
        | K::BadPage
        | K::SlabCorruption
        | K::SchedulingWhileAtomic
        | K::NetdeviceRefs
        | K::FilesystemError => crash,
        K::Kasan | K::Kfence => rules(Detector::Sanitizer, Rank::Crash, Other),
        K::Kcsan | K::Kmsan | K::Ubsan => rules(Detector::Sanitizer, Rank::Complaint, Other),
        K::Deadlock | K::LockState | K::LockMisuse | K::SuspiciousRcu => {
            rules(Detector::Lockdep, Rank::Complaint, Other)
        }
        K::Odebug => rules(Detector::Odebug, Rank::Complaint, Other),
        K::MemoryLeak => rules(Detector::Kmemleak, Rank::Complaint, Other),
        K::Warning => rules(Detector::Warning, Rank::Complaint, Other),
        K::LivepatchFailure => complaint.only_by_a_patch(),
        K::BadRssCounter
        | K::SleepInAtomic
        | K::Preemptible
        | K::UnhandledIrq
        | K::TransmitTimeout
        | K::MsrAccess
        | K::IoError
        | K::ModuleLoad
        | K::Bug => complaint,
    }
}
