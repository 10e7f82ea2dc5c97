//! The words that the probe in the guest and the farm exchange: one JSON object a line, either way, over a
//! character device (a virtio-serial port or the second UART), so that no network and no SSH is needed.
//!
//! Lines a reader does not understand are skipped and counted, never fatal: a sick guest writes half lines.

use serde::{Deserialize, Serialize};

/// Version of this protocol, sent in [`FromGuest::Hello`].
pub const VERSION: u32 = 4;

/// The virtio-serial port the probe looks for first; `/dev/ttyS1` is its fallback.
pub const PORT_NAME: &str = "klpfarm.probe";

/// Longest line either side accepts, in bytes.
pub const MAX_LINE: usize = 256 * 1024;

/// From the probe to the farm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "kebab-case")]
pub enum FromGuest {
    /// First line after the probe has opened its port, and the answer to [`Ask::Hello`].
    Hello {
        /// [`VERSION`] of the sender.
        version: u32,
        /// `uname -r`.
        release: String,
        /// CPUs online.
        cpus: u32,
        /// Milliseconds since boot (`CLOCK_BOOTTIME`).
        at_ms: u64,
        /// `/proc/sys/kernel/tainted`.
        taint: u64,
    },
    /// A workload thread exists from now on; `id` is unique for the life of the probe.
    Thread(Thread),
    /// A thread ended in order, or (packaged stressors) simply went away.
    Gone {
        /// [`Thread::id`].
        id: u32,
    },
    /// Progress of every live thread, four times a second.
    Progress {
        /// Milliseconds since boot.
        at_ms: u64,
        /// One entry a thread.
        threads: Vec<ThreadProgress>,
    },
    /// Latency distribution of one kind of operation of one workload since the last such line, once a second.
    Latency {
        /// Milliseconds since boot.
        at_ms: u64,
        /// Workload name.
        workload: String,
        /// Operation, for example `madvise-dontneed`; `yardstick` is a fixed piece of user-space arithmetic that
        /// tells how fast this CPU was meanwhile.
        op: String,
        /// Sum of all, in nanoseconds.
        sum_ns: u64,
        /// Operations by duration: pairs of bucket ([`crate::hist::bucket`]) and count.
        buckets: Vec<(u8, u64)>,
        /// Those of a millisecond or more in which the thread gave up its CPU by itself, and did not merely wait for one:
        /// pairs of octave ([`crate::hist::octave`]) and count.
        slept: Vec<(u8, u64)>,
    },
    /// Where the time of a builtin workload's threads went since the last such line, once a second. What is neither running nor
    /// waiting for a CPU is asleep, in a call.
    Usage {
        /// Milliseconds since boot.
        at_ms: u64,
        /// Workload name.
        workload: String,
        /// Time that went by, summed over the threads, in microseconds.
        wall_us: u64,
        /// Time on a CPU (first field of `/proc/PID/schedstat`), in microseconds.
        cpu_us: u64,
        /// Time ready to run but without a CPU (second field), in microseconds.
        wait_us: u64,
    },
    /// The workload saw something that no sound kernel does.
    Fault(Fault),
    /// Tasks that have been uninterruptible without running for a second or more, and workload threads that finished no
    /// operation for two seconds or more, whatever their state. Sent once a second while there are any, and once
    /// (empty) when the last one went on.
    Blocked {
        /// Milliseconds since boot.
        at_ms: u64,
        /// At most 64 tasks, longest first.
        tasks: Vec<BlockedTask>,
        /// How many there were in all.
        total: u32,
    },
    /// `/proc/sys/kernel/tainted` changed.
    Taint {
        /// Milliseconds since boot.
        at_ms: u64,
        /// The new value.
        value: u64,
    },
    /// The probe can no longer read something that it has read before, so that what it reports is no longer complete. Sent once for each
    /// such thing.
    Unable {
        /// Milliseconds since boot.
        at_ms: u64,
        /// What is no longer known, in words that stay the same: `its taint`, `its list of tasks`.
        what: String,
        /// How that shows.
        detail: String,
    },
    /// What the kernel has given out, every second; no such line where one of the figures cannot be read. Memory in KiB as in `/proc/meminfo`.
    Memory {
        /// Milliseconds since boot.
        at_ms: u64,
        /// `MemAvailable`.
        available_kib: u64,
        /// `Slab`.
        slab_kib: u64,
        /// `SUnreclaim`.
        slab_unreclaimable_kib: u64,
        /// Memory that is neither free nor in any of the counters for page cache, user memory, slab, page tables and stacks: pages
        /// that the kernel took for itself.
        unaccounted_kib: u64,
        /// Open files (`/proc/sys/fs/file-nr`, first field): all, but right within some 32 a CPU only.
        open_files: u64,
        /// File descriptors of the workloads' processes, exactly.
        descriptors: u64,
        /// Number of tasks (from `/proc/loadavg`).
        tasks: u64,
        /// Processes that ended and that nobody waited for.
        zombies: u64,
    },
    /// Answer to an [`Ask`], after it was carried out.
    Reply {
        /// [`ToGuest::id`].
        id: u64,
        /// Exit status: 0 is success; 128 + N for signal N; 124 for a command that outlived its limit.
        code: i32,
        /// Standard output and error together, cut to `MAX_LINE / 4` bytes.
        out: String,
    },
}

/// One workload thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Unique for the life of the probe.
    pub id: u32,
    /// Workload name, as started.
    pub workload: String,
    /// Number of its process within the workload, from 0.
    pub process: u32,
    /// Number within the process, from 0.
    pub thread: u32,
    /// Process id in the guest.
    pub pid: u32,
    /// Thread id in the guest.
    pub tid: u32,
    /// True if the thread counts its own operations; false if only its CPU time slices can be counted (packaged
    /// stressors).
    pub counted: bool,
}

/// Progress of one thread, a JSON array `[id, ops, latency_us, idle_ms, errors, errno]` to keep lines short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u64, u64, u64, i32)", into = "(u32, u64, u64, u64, u64, i32)")]
pub struct ThreadProgress {
    /// [`Thread::id`].
    pub id: u32,
    /// Operations finished since the thread began.
    pub ops: u64,
    /// Duration of the latest operation, in microseconds.
    pub latency_us: u64,
    /// Milliseconds since an operation was last finished.
    pub idle_ms: u64,
    /// Calls that failed with an errno, expected ones included.
    pub errors: u64,
    /// The latest errno, 0 for none.
    pub errno: i32,
}

impl From<(u32, u64, u64, u64, u64, i32)> for ThreadProgress {
    fn from((id, ops, latency_us, idle_ms, errors, errno): (u32, u64, u64, u64, u64, i32)) -> Self {
        Self { id, ops, latency_us, idle_ms, errors, errno }
    }
}

impl From<ThreadProgress> for (u32, u64, u64, u64, u64, i32) {
    fn from(p: ThreadProgress) -> Self {
        (p.id, p.ops, p.latency_us, p.idle_ms, p.errors, p.errno)
    }
}

/// What a workload found wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Milliseconds since boot.
    pub at_ms: u64,
    /// Workload name.
    pub workload: String,
    /// [`Thread::id`], if one thread saw it.
    pub thread: Option<u32>,
    /// What was wrong.
    pub kind: FaultKind,
    /// The operation, for example `madvise-dontneed`: stable, part of the finding's title.
    pub op: String,
    /// One sentence for people: expected and seen values.
    pub detail: String,
    /// How many alike (same workload, kind and op) this line stands for; after the first, they are sent summed up once a second.
    pub count: u64,
}

/// Kinds of [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// A call succeeded that should have failed, failed that should have succeeded, or failed with the wrong errno.
    WrongErrno,
    /// Memory or a file held something else than it should.
    WrongContent,
    /// A process of the workload died, or the workload ended in the middle, in whatever way: its signal or exit status is in `detail`.
    Died,
    /// The workload could not be started or run: the farm's trouble, not the kernel's.
    CannotRun,
}

/// A task that does not get on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedTask {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name, as in `/proc/PID/comm`.
    pub comm: String,
    /// State letter of `/proc/PID/stat`.
    pub state: char,
    /// Milliseconds it has not run (uninterruptible tasks) or finished no operation (workload threads).
    pub for_ms: u64,
    /// `/proc/PID/wchan`, empty if unknown.
    pub wchan: String,
    /// `/proc/PID/stack`, one function a line without addresses and offsets kept as printed; empty if unreadable.
    pub stack: String,
    /// [`Thread::id`] if it is a workload thread.
    pub thread: Option<u32>,
}

/// From the farm to the probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToGuest {
    /// Returned in [`FromGuest::Reply`].
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub ask: Ask,
}

/// What the farm asks of the probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// Say [`FromGuest::Hello`] again, and all live threads.
    Hello,
    /// Start a workload; the reply comes when its threads run.
    Start {
        /// Its name in all later lines.
        workload: String,
        /// What to run.
        run: Run,
    },
    /// Stop a workload; the reply comes when its processes are gone (killed after five seconds).
    Stop {
        /// Its name.
        workload: String,
    },
    /// Run a command to its end, without a shell.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
        /// Killed after this, in milliseconds.
        limit_ms: u64,
    },
    /// Read a file (at most `MAX_LINE / 4` bytes); never one that takes an mmap lock. Faults that were seen before are reported before the reply.
    Read {
        /// Its path.
        path: String,
    },
    /// The machine has just been forked from a checkpoint: take fresh entropy, set the wall clock, and stir the workloads' generators,
    /// so that twins do not go on alike. The reply comes when that is done. Status 0 or an errno; the generators are stirred even if
    /// the kernel takes no entropy or time. A clock that is right within 50 ms is left alone.
    Resume {
        /// Random bytes of the host in hex, 32 at least.
        entropy: String,
        /// The host's wall clock, in milliseconds since 1970.
        unix_ms: u64,
    },
    /// Write a piece of a file below the probe's own folder.
    /// Pieces are written in the order asked for. Status 0 or an errno: `EINVAL` for a name or data that is not allowed.
    Write {
        /// Its name, without a folder.
        name: String,
        /// The bytes, in base64; so many that the line stays below [`MAX_LINE`].
        data: String,
        /// Append to what is there instead of beginning anew.
        append: bool,
    },
    /// Load a kernel module that was written with [`Ask::Write`], in a process of its own. First, where the tasks of the guest are is
    /// noted: the reply begins with a line `inside FUNCTION N` for every kernel function that stood on the stacks of N
    /// tasks. Status 0, or the errno of `finit_module`, with its text in the last line.
    Load {
        /// Its name, as given to [`Ask::Write`].
        name: String,
        /// Killed (if it can be) and answered with 124 after this, in milliseconds.
        limit_ms: u64,
    },
    /// What `/sys/kernel/livepatch/NAME` says, read without starting a process: lines `listed`, `enabled N`, `transition N` (where the
    /// kernel has it), `function OBJECT/FUNCTION` as the kernel writes it (`vmlinux/do_exit,1`). Status 0 and no line at all if
    /// the kernel lists no such patch; `EINVAL` if that is no module's name.
    Livepatch {
        /// Name of the patch.
        name: String,
    },
    /// Write a line to the kernel's log (`/dev/kmsg`), where it is read by whoever reads the console. Status 0 or an errno; `ETIMEDOUT`
    /// if writing does not come back.
    Kmsg {
        /// The line, with its level in front: `<6>`.
        line: String,
    },
    /// How old and worn the machine is: the reply is a [`Vitals`] in JSON.
    Vitals,
}

/// How old and worn a machine is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Vitals {
    /// Seconds since boot (`/proc/uptime`).
    pub uptime_s: f64,
    /// Processes started since boot (`/proc/stat`, `processes`).
    pub forks: u64,
    /// Context switches since boot (`/proc/stat`, `ctxt`).
    pub context_switches: u64,
    /// Tasks now (`/proc/loadavg`).
    pub tasks: u64,
    /// `MemFree`, in KiB.
    pub free_kib: u64,
    /// `MemAvailable`, in KiB.
    pub available_kib: u64,
    /// `Cached` and `Buffers`, in KiB.
    pub page_cache_kib: u64,
    /// `Slab`, in KiB.
    pub slab_kib: u64,
    /// Free blocks of 2^n pages, by n, all zones together (`/proc/buddyinfo`).
    pub buddy: Vec<u64>,
    /// Size of the system journal's files, in KiB.
    pub journal_kib: u64,
    /// Dentries in use and free (`/proc/sys/fs/dentry-state`, first field).
    pub dentries: u64,
    /// Open files (`/proc/sys/fs/file-nr`, first field).
    pub open_files: u64,
}

/// What a workload runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    /// A stressor of this binary, by name, with its parameters as `key=value`.
    Builtin {
        /// For example `madvise-allocator`.
        name: String,
        /// Parameters; unknown ones are refused.
        args: Vec<String>,
    },
    /// A program of the guest that runs until it is ended. An exit with status 0 starts it again and counts as one
    /// operation; any other end is [`FaultKind::Died`]. A line `klpfarm: ops N` on its standard output counts N
    /// operations, a line `klpfarm: fault KIND OP DETAIL` is a [`Fault`].
    Command {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// A script for `/bin/sh` that runs until it is ended and reports as a command does. The reply comes when it has printed
    /// `klpfarm: ready`; the environment variable `KLPFARM_STRESS` is the path of this binary. An exit with status
    /// [`UNAVAILABLE`] before that is no fault: the reply has that status and the script's last line.
    Script {
        /// Its text.
        text: String,
    },
}

/// Exit status of a script that can't run on this guest, for want of a kernel module, a device or a program.
pub const UNAVAILABLE: i32 = 77;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short_and_read_back() {
        let p = FromGuest::Progress {
            at_ms: 12,
            threads: vec![ThreadProgress { id: 1, ops: 2, latency_us: 3, idle_ms: 4, errors: 5, errno: 22 }],
        };
        let line = serde_json::to_string(&p).unwrap();
        assert_eq!(line, r#"{"t":"progress","at_ms":12,"threads":[[1,2,3,4,5,22]]}"#);
        assert_eq!(serde_json::from_str::<FromGuest>(&line).unwrap(), p);
        let ask = ToGuest {
            id: u64::MAX - 7,
            ask: Ask::Start {
                workload: "w".into(),
                run: Run::Builtin { name: "fork-exec-churn".into(), args: vec!["processes=2".into()] },
            },
        };
        let line = serde_json::to_string(&ask).unwrap();
        assert_eq!(serde_json::from_str::<ToGuest>(&line).unwrap(), ask);
    }
}
