//! Everything this crate prints for people, compared with files in `golden/`. After an intended change, `make bless` writes them anew:
//! then the diff shows what people will read.

mod run;

use std::path::Path;

use klpfarm_model::{Arm, ObservedKind, TrialEnd, judge};
use snapbox::{assert_data_eq, file};

use crate::terminal::{printed, redrawn};
use crate::{View, junit, summary};
use run::{Run, finding, hang};

/// The defect of 2021: it hangs in the loaded trial and when applied again, not when applied idle.
fn rejected() -> Run {
    let mut run = Run::new(&["held_lock"], false);
    run.clean(Arm::Control, 0).clean(Arm::Quiescent, 0);
    run.begin(Arm::Loaded, 0);
    let stall = finding(
        ObservedKind::ThreadStalled,
        "madvise-allocator: threads hang in klp_new_madvise",
        "klp_new_madvise",
    );
    run.finds(Arm::Loaded, 0, stall).finds(Arm::Loaded, 0, hang()).hangs(Arm::Loaded, 0);
    run.begin(Arm::Reapply, 0).finds(Arm::Reapply, 0, hang());
    run.ends(Arm::Loaded, 0, TrialEnd::Stopped).ends(Arm::Reapply, 0, TrialEnd::Unneeded);
    run.over();
    run
}

fn qualified() -> Run {
    let mut run = Run::new(&["fixed"], false);
    run.clean(Arm::Control, 0).clean(Arm::Quiescent, 0).clean(Arm::Reapply, 0);
    for nth in 0..run.plan.needed as usize {
        run.clean(Arm::Loaded, nth);
    }
    run.over();
    run
}

/// A stall that is seen once and proves nothing, a lost machine, a trial that the host spoilt, and too few clean trials.
fn inconclusive() -> Run {
    let mut run = Run::new(&["fixed"], false);
    run.clean(Arm::Control, 0).clean(Arm::Quiescent, 0).begin(Arm::Loaded, 0);
    let stall =
        finding(ObservedKind::ThreadStalled, "madvise-allocator: threads hang in vfs_write", "vfs_write");
    run.finds(Arm::Loaded, 0, stall).ends(Arm::Loaded, 0, TrialEnd::Stopped);
    run.begin(Arm::Loaded, 1);
    run.ends(
        Arm::Loaded,
        1,
        TrialEnd::FarmError { message: "QEMU died: signal 9; its log is trials/5/qemu.log".into() },
    );
    run.begin(Arm::Loaded, 2);
    run.ends(Arm::Loaded, 2, TrialEnd::Void { reason: "the host slept for 61 s".into() });
    run.over();
    run
}

/// A soak that goes round two images.
fn night() -> Run {
    let mut run = Run::new(&["fixed"], true);
    run.clean(Arm::Control, 0).clean(Arm::Loaded, 0).clean(Arm::Loaded, 1).clean(Arm::Control, 1);
    run.over();
    run
}

fn summary_of(run: &Run) -> String {
    summary(&judge(&run.plan, &run.events), Path::new("out/run"), false)
}

fn junit_of(run: &Run) -> String {
    let xml = junit(&run.plan, &run.events, &judge(&run.plan, &run.events));
    // The writer puts all on one line, in which no diff can be read.
    String::from_utf8(xml).unwrap().replace("><", ">\n<")
}

#[test]
fn a_rejected_run() {
    assert_data_eq!(summary_of(&rejected()), file!["../golden/rejected.txt"].raw());
    assert_data_eq!(junit_of(&rejected()), file!["../golden/rejected.xml"].raw());
}

#[test]
fn a_qualified_run() {
    assert_data_eq!(summary_of(&qualified()), file!["../golden/qualified.txt"].raw());
    assert_data_eq!(junit_of(&qualified()), file!["../golden/qualified.xml"].raw());
}

#[test]
fn an_inconclusive_run() {
    assert_data_eq!(summary_of(&inconclusive()), file!["../golden/inconclusive.txt"].raw());
    assert_data_eq!(junit_of(&inconclusive()), file!["../golden/inconclusive.xml"].raw());
}

#[test]
fn progress_in_a_log() {
    let of = |run: &Run| printed(View::Plain, &run.plan, &run.events);
    assert_data_eq!(of(&rejected()), file!["../golden/rejected.log"].raw());
    assert_data_eq!(of(&inconclusive()), file!["../golden/inconclusive.log"].raw());
    assert_data_eq!(of(&night()), file!["../golden/night.log"].raw());
}

#[test]
fn progress_on_a_terminal() {
    let of =
        |run: &Run| printed(View::Live, &run.plan, &run.events) + "\n" + &redrawn(&run.plan, &run.events);
    assert_data_eq!(of(&rejected()), file!["../golden/rejected.live"].raw());
    assert_data_eq!(of(&inconclusive()), file!["../golden/inconclusive.live"].raw());
}
