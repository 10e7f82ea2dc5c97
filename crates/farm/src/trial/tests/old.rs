//! What a real 4.4.220 guest said (frame pointers, no consistency model), recorded, and the same with the names that kernels from 4.5 on, and
//! distributions' 4.4, give: `function,sympos`.

use klpfarm_kmsg::{Classifier, Kind, Report, Signal};

use super::*;
use crate::detect::{blame, tasks};
use crate::guest::PatchState;

const LOCKUP: &str = include_str!("../../../recorded/4.4/lockup-other-cpu.txt");
const SELF: &str = include_str!("../../../recorded/4.4/rcu-self.txt");
const HUNG: &str = include_str!("../../../recorded/4.4/hung-tasks.txt");
const STACKS: &str = include_str!("../../../recorded/4.4/stacks.txt");

fn reports(text: &str) -> Vec<Report> {
    let mut classifier = Classifier::new();
    let mut signals = classifier.push(text.as_bytes());
    signals.extend(classifier.finish());
    let report = |s| if let Signal::Report(r) = s { Some(r) } else { None };
    signals.into_iter().filter_map(report).collect()
}

#[test]
fn lockups_and_hangs_are_named_after_functions() {
    let seen: Vec<(Kind, Option<String>)> =
        [LOCKUP, SELF, HUNG].iter().flat_map(|text| reports(text)).map(|r| (r.kind, r.function)).collect();
    let count = |kind: Kind| seen.iter().filter(|(k, _)| *k == kind).count();
    assert_eq!((count(Kind::RcuStall), count(Kind::SoftLockup)), (2, 1), "{seen:?}");
    let hung: Vec<&str> =
        seen.iter().filter(|(k, _)| *k == Kind::HungTask).filter_map(|(_, f)| f.as_deref()).collect();
    assert_eq!(hung, ["khugepaged", "copy_process"]);
    let lockup = seen.iter().find(|(k, _)| *k == Kind::SoftLockup).and_then(|(_, f)| f.as_deref());
    assert_eq!(lockup, Some("klp_new_madvise"));
    assert!(seen.iter().all(|(_, f)| f.as_ref().is_none_or(|f| !f.starts_with("0x"))), "{seen:?}");
}

/// A soft lockup tells the instruction pointer. Of another CPU's stack every frame is doubted, the patch's as well.
#[test]
fn only_sure_frames_blame_the_patch() {
    let patches = ["soft_lockup".to_owned()];
    let blamed: Vec<(Kind, bool)> =
        reports(LOCKUP).iter().map(|r| (r.kind, blame::in_report(&r.text, &patches))).collect();
    assert_eq!(blamed, [(Kind::RcuStall, false), (Kind::SoftLockup, true)]);
}

/// So the registers must say it.
#[test]
fn a_stall_whose_frames_are_all_doubted_is_told_by_the_registers() {
    let plan = plan();
    let mut trial = plan.trials.iter().find(|t| t.arm == Arm::Loaded).unwrap().clone();
    trial.patches = vec![0];
    let stall = |looks: u64| {
        let mut dispatcher = Dispatcher::new(
            Arc::clone(&plan),
            trial.clone(),
            Purpose::Trial(Start::Fork),
            Secret::new([9; 16]),
        );
        dispatcher.know(0, Code::of(&[("klp_new_madvise", 0x20, 0x80)]), Vec::new());
        dispatcher.cpus.modules("x 16384 1 - Live 0xffffffffa0000000 (OEK)\n");
        dispatcher.phase = Phase::Soak;
        let at = |cpu| klpfarm_vm::CpuLook {
            cpu,
            rip: 0xffff_ffff_a000_0057,
            interrupts: true,
            ring: 3 - 3 * u8::try_from(cpu).unwrap(),
            halted: false,
        };
        (0..looks).for_each(|now| drop(dispatcher.cpus.look(Duration::from_secs(now), &[at(0), at(1)])));
        let mut classifier = Classifier::new();
        let mut signals = classifier.push(LOCKUP.as_bytes());
        signals.truncate(1);
        dispatcher.signals(Duration::from_secs(30), signals);
        dispatcher.out.drain(..).find_map(|action| match action {
            Action::Emit(_, Body::Finding(finding)) => Some(*finding),
            _ => None,
        })
    };
    let doubted = stall(0).unwrap();
    assert_eq!((doubted.kind, doubted.in_patch), (FindingKind::Kernel(Kind::RcuStall), false));
    let told = stall(8).unwrap();
    assert!(told.in_patch && told.title == "INFO: rcu detected stall in klp_new_madvise", "{told:?}");
    assert!(told.evidence.ends_with("at 8 of 8 looks at its registers]"), "{}", told.evidence);
}

#[test]
fn a_stack_has_no_function_of_its_end_marker() {
    let stacks: Vec<&str> = STACKS.lines().filter_map(|l| l.split_once("/stack:").map(|(_, s)| s)).collect();
    assert_eq!(stacks.last(), Some(&"[<ffffffffffffffff>] 0xffffffffffffffff"));
    assert_eq!(tasks::waits_in(&stacks[..4].join("\n"), "ep_poll", &[]).as_deref(), Some("ep_poll"));
    assert_eq!(tasks::waits_in(&stacks[4..].join("\n"), "0", &[]).as_deref(), Some("kthreadd"));
    let fault = "[<ffffffff812b4ed4>] call_rwsem_down_read_failed+0x14/0x30\n[<ffffffff8104a2ff>] __do_page_fault+0x33f/0x3c0\n\
                 [<ffffffff8104a3a2>] do_page_fault+0x22/0x30\n[<ffffffff8148a658>] page_fault+0x28/0x30\n[<ffffffffffffffff>] 0xffffffffffffffff\n";
    let wchan = "call_rwsem_down_read_failed";
    assert_eq!(tasks::waits_in(fault, wchan, &[]).as_deref(), Some("__do_page_fault"));
    // A task that can't be looked into has nothing but the marker.
    assert_eq!(tasks::waits_in(stacks[3], "do_wait", &[]).as_deref(), Some("do_wait"));
    assert_eq!(tasks::waits_in(stacks[3], "", &[]), None);
}

/// The probe's answers on a patch that is in force, and on one that was taken back: its folder stays.
#[test]
fn a_patch_has_no_transition_whatever_its_functions_are_called() {
    for name in ["vmlinux/sys_madvise", "vmlinux/sys_madvise,1"] {
        let state =
            |enabled| PatchState::read(0, &format!("listed\nenabled {enabled}\nfunction {name}\n")).unwrap();
        assert!(state(1).enabled && state(1).settled() && state(1).transition.is_none());
        assert!(state(0).listed && !state(0).enabled);
        assert_eq!(state(1).functions, [name]);
        let functions = vec![name.to_owned()];
        let told = tell(Arm::Reapply, Faults { no_transition_file: true, functions, ..Faults::default() });
        told.assert_clean();
        let counted = told.bodies.iter().find_map(|(_, b)| match b {
            Body::Reach { function, calls, .. } => Some((function.as_str(), *calls)),
            _ => None,
        });
        assert_eq!(counted, Some((name, 90)));
        assert!(!told.commands.iter().any(|c| c.starts_with("rmmod")), "it can never be unloaded");
    }
}
