//! The index against made-up run folders.

use std::fs;
use std::path::Path;

use klpfarm_history::{History, HistoryError, Hit, RunFilter, RunSeen, TrendFilter};
use klpfarm_model::{Arm, Body, ObservedKind};

mod story;
use story::{C0, C1, L0, L1, Story, faulty, quiet, temporary};

const ALL: TrendFilter = TrendFilter { patch: None, image: None, nights: 14 };

fn open(home: &Path) -> History {
    History::open(home).unwrap()
}

fn refreshed(home: &Path) -> History {
    let mut history = open(home);
    let done = history.refresh().unwrap();
    assert_eq!(done.problems, []);
    history
}

fn names(runs: &[RunSeen]) -> Vec<&str> {
    runs.iter().map(|r| r.patches[0].name.as_str()).collect()
}

#[test]
fn runs_are_filtered_and_the_newest_is_first() {
    let home = temporary();
    let runs = home.path().join("runs");
    faulty("fix_a", "2026-11-20T20:00:00Z", "bad data").write(&runs.join("1"));
    quiet("fix_b", "2026-11-21T20:00:00Z").write(&runs.join("2"));
    Story::new("other", "debian-13", "2026-11-22T20:00:00Z").clean(L0).begin(C0).write(&runs.join("3"));
    let history = refreshed(home.path());
    let found = |filter: RunFilter| history.runs(&filter).unwrap();
    let all = found(RunFilter::default());
    assert_eq!(names(&all), ["other", "fix_b", "fix_a"]);
    let unfinished = &all[0];
    assert!(unfinished.unfinished && unfinished.patches[0].outcome.is_none());
    let (quiet, faulty) = (&all[1], &all[2]);
    assert_eq!(quiet.patches[0].outcome.as_deref(), Some("inconclusive"));
    assert_eq!(faulty.patches[0].outcome.as_deref(), Some("rejected"));
    assert_eq!((faulty.clean, faulty.failed), (3, 1));
    assert_eq!((faulty.findings.len(), faulty.findings[0].title.as_str()), (1, "bad data"));
    assert!(!faulty.findings[0].of_image);
    assert_eq!(faulty.took_ms, 11_000);
    let some = |text: &str| Some(text.to_owned());
    let with = RunFilter::default;
    assert_eq!(names(&found(RunFilter { patch: some("FIX"), ..with() })), ["fix_b", "fix_a"]);
    assert_eq!(names(&found(RunFilter { outcome: some("rejected"), ..with() })), ["fix_a"]);
    assert_eq!(names(&found(RunFilter { outcome: some("unfinished"), ..with() })), ["other"]);
    assert_eq!(
        names(&found(RunFilter { patch: some("fix"), outcome: some("unfinished"), ..with() })),
        [""; 0]
    );
    assert_eq!(names(&found(RunFilter { image: some("debian-13"), ..with() })), ["other"]);
    assert_eq!(names(&found(RunFilter { tier: some("stable"), ..with() })), [""; 0]);
    assert_eq!(names(&found(RunFilter { since_ms: Some(quiet.started_ms), ..with() })), ["other", "fix_b"]);
    assert_eq!(names(&found(RunFilter { limit: Some(1), ..with() })), ["other"]);
}

#[test]
fn only_what_has_changed_is_read_again() {
    let home = temporary();
    let dir = home.path().join("runs/1");
    let begun = Story::new("p", "debian-12", "2026-11-20T20:00:00Z").clean(C0).begin(L0);
    begun.write(&dir);
    quiet("q", "2026-11-21T20:00:00Z").write(&home.path().join("runs/2"));
    let mut history = open(home.path());
    assert_eq!(history.refresh().unwrap().read, 2);
    let again = history.refresh().unwrap();
    assert_eq!((again.read, again.unchanged), (0, 2));
    // The farm dies in the middle of a line, and the run is resumed: the trial in flight is done again.
    let torn = begun.clone().finds(L0, ObservedKind::WrongContent, "bad data");
    let text = torn.journal();
    fs::write(dir.join("journal.jsonl"), &text[..text.len() - 5]).unwrap();
    let again = history.refresh().unwrap();
    assert_eq!((again.read, again.unchanged), (1, 1));
    let resumed = begun.resumed("2026-11-24T20:00:00Z");
    resumed.write(&dir);
    assert_eq!(history.refresh().unwrap().read, 1);
    assert_eq!(history.trends(&ALL).unwrap().findings, []);
    resumed.clean(L0).ended().write(&dir);
    assert_eq!(history.refresh().unwrap().read, 1);
    let runs = history.runs(&RunFilter::default()).unwrap();
    assert!(!runs[1].unfinished);
    assert_eq!(runs[1].findings, [], "what a trial left that is done again counts no more");
    let trend = history.trends(&ALL).unwrap();
    assert_eq!(trend.findings, []);
    assert_eq!(
        trend.nights,
        ["2026-11-20", "2026-11-21", "2026-11-24"],
        "by the clock, not by the run's milliseconds"
    );
}

#[test]
fn a_damaged_journal_is_named_by_its_line_and_what_was_known_stays() {
    let home = temporary();
    let dir = home.path().join("runs/1");
    let text = faulty("p", "2026-11-20T20:00:00Z", "bad data");
    text.write(&dir);
    let mut history = refreshed(home.path());
    fs::write(dir.join("journal.jsonl"), text.journal().replacen("trial-started", "trial-stared", 1))
        .unwrap();
    for _ in 0..2 {
        let done = history.refresh().unwrap();
        assert_eq!((done.read, done.unchanged, done.problems.len()), (0, 0, 1));
        assert!(done.problems[0].1.contains("journal.jsonl:2: "), "{}", done.problems[0].1);
    }
    assert_eq!(names(&history.runs(&RunFilter::default()).unwrap()), ["p"]);
    text.write(&dir);
    assert_eq!(history.refresh().unwrap().problems, []);
}

/// A run whose papers do not fit together is left out with the reason; what was known of it stays.
#[test]
fn a_journal_that_contradicts_its_plan_is_named_and_left_out() {
    let home = temporary();
    let dir = home.path().join("runs/1");
    let text = faulty("p", "2026-11-20T20:00:00Z", "bad data");
    text.write(&dir);
    let mut history = refreshed(home.path());
    // The finding is put down to a control trial.
    let mut changed = text;
    let finding = changed.events.iter_mut().find(|e| matches!(e.body, Body::Finding(_))).unwrap();
    finding.scope.as_mut().unwrap().arm = Arm::Control;
    changed.write(&dir);
    let done = history.refresh().unwrap();
    let says = "its plan and journal do not agree: journal event 7: says that trial 1 is control, and in the plan it is loaded";
    assert_eq!(done.problems, [(dir.canonicalize().unwrap(), says.to_owned())]);
    let runs = history.runs(&RunFilter::default()).unwrap();
    assert_eq!(runs[0].patches[0].outcome.as_deref(), Some("rejected"));
}

/// What the index says, but for the numbers of its rows.
fn told(history: &History) -> String {
    let runs = history.runs(&RunFilter::default()).unwrap();
    let rate = history.rate_trend(&ALL, "w").unwrap();
    format!("{runs:#?}\n{:#?}\n{rate:#?}", history.trends(&ALL).unwrap())
}

#[test]
fn a_rebuilt_index_says_the_same_also_of_folders_elsewhere() {
    let (home, elsewhere) = (temporary(), temporary());
    faulty("a", "2026-11-20T20:00:00Z", "bad data").write(&home.path().join("runs/1"));
    let out = quiet("b", "2026-11-21T20:00:00Z").write(&elsewhere.path().join("out"));
    let mut history = open(home.path());
    assert_eq!(history.index(&out).unwrap(), None);
    drop(history);
    let before = told(&refreshed(home.path()));
    assert!(before.contains("\"a\"") && before.contains("\"b\""));
    let rebuilt = History::rebuild(home.path(), &[]).unwrap();
    assert_eq!((rebuilt.refreshed.read, rebuilt.dropped.len(), rebuilt.forgot), (2, 0, false));
    assert_eq!(told(&open(home.path())), before);
    // A damaged index knows no folders any more: those that are named are found again.
    for garbage in
        [&b"no database at all, but text that goes on for longer than a header has bytes: "[..], &[0; 4096]]
    {
        fs::write(home.path().join("history.sqlite"), garbage.repeat(3)).unwrap();
        let error = History::open(home.path()).and_then(|mut h| h.refresh().map(|_| ())).unwrap_err();
        assert!(error.to_string().contains("`klpfarm db rebuild`"), "{error}");
        let rebuilt = History::rebuild(home.path(), &[elsewhere.path().to_owned()]).unwrap();
        assert_eq!((rebuilt.refreshed.read, rebuilt.forgot), (2, true));
        assert_eq!(told(&open(home.path())), before);
    }
    let nothing = History::rebuild(home.path(), &[home.path().to_owned()]).unwrap_err();
    assert!(nothing.to_string().contains("holds no run folder"), "{nothing}");
}

#[test]
fn a_file_of_another_version_is_refused_with_what_to_do() {
    let home = temporary();
    drop(open(home.path()));
    let db = rusqlite::Connection::open(home.path().join("history.sqlite")).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let error = History::open(home.path()).unwrap_err();
    assert!(matches!(error, HistoryError::Version { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("`klpfarm db rebuild`"), "{error}");
    History::rebuild(home.path(), &[]).unwrap();
    open(home.path());
}

#[test]
fn runs_whose_folders_are_gone_stay_until_the_index_is_made_anew() {
    let home = temporary();
    let dir = home.path().join("runs/1");
    faulty("a", "2026-11-20T20:00:00Z", "bad data").write(&dir);
    drop(refreshed(home.path()));
    fs::remove_dir_all(&dir).unwrap();
    let mut history = open(home.path());
    for _ in 0..2 {
        assert_eq!(history.refresh().unwrap().gone, 1);
    }
    let runs = history.runs(&RunFilter::default()).unwrap();
    assert!(runs[0].gone);
    assert_eq!(history.trends(&ALL).unwrap().findings.len(), 1);
    drop(history);
    let rebuilt = History::rebuild(home.path(), &[]).unwrap();
    assert_eq!(rebuilt.dropped, [runs[0].dir.clone()]);
    assert_eq!(open(home.path()).runs(&RunFilter::default()).unwrap(), []);
}

#[test]
fn a_run_counts_once_wherever_its_folder_goes() {
    let home = temporary();
    let (first, second) = (home.path().join("runs/1"), home.path().join("runs/2"));
    let text = faulty("a", "2026-11-20T20:00:00Z", "bad data");
    text.write(&first);
    let mut history = refreshed(home.path());
    // Moved.
    fs::rename(&first, &second).unwrap();
    assert_eq!(history.refresh().unwrap().problems, []);
    let runs = history.runs(&RunFilter::default()).unwrap();
    assert_eq!((runs.len(), runs[0].gone), (1, false));
    assert!(runs[0].dir.ends_with("runs/2"));
    // Copied: said, and not counted; it takes the place of the other one when that is gone.
    text.write(&first);
    let problems = history.refresh().unwrap().problems;
    assert!(problems.len() == 1 && problems[0].1.contains("is a copy of"), "{problems:?}");
    assert_eq!(history.runs(&RunFilter::default()).unwrap().len(), 1);
    fs::remove_dir_all(&second).unwrap();
    assert_eq!(history.refresh().unwrap().problems, []);
    let runs = history.runs(&RunFilter::default()).unwrap();
    assert_eq!((runs.len(), runs[0].gone), (1, false));
    assert!(runs[0].dir.ends_with("runs/1"));
}

#[test]
fn findings_are_compared_by_nights() {
    let home = temporary();
    let runs = home.path().join("runs");
    // The first two are one night.
    quiet("a", "2026-11-19T23:00:00Z").write(&runs.join("1"));
    faulty("a", "2026-11-20T09:00:00Z", "bad data").write(&runs.join("2"));
    faulty("a", "2026-11-20T13:00:00Z", "bad data").write(&runs.join("3"));
    let both = |time, title: &str| {
        Story::new("b", "debian-12", time).failed(C0, title).clean(C1).failed(L0, title).clean(L1).ended()
    };
    both("2026-11-21T13:00:00Z", "disk is slow").write(&runs.join("4"));
    let history = refreshed(home.path());
    let trends = history.trends(&ALL).unwrap();
    assert_eq!(trends.nights, ["2026-11-19", "2026-11-20", "2026-11-21"]);
    let brief: Vec<_> =
        trends.findings.iter().map(|f| (f.title.as_str(), f.first.as_str(), f.new, f.of_image)).collect();
    assert_eq!(brief, [("disk is slow", "2026-11-21", true, true), ("bad data", "2026-11-19", false, false)]);
    assert_eq!(trends.findings[1].arms["loaded"], Hit { hit: 2, of: 7 });
    assert_eq!(trends.findings[1].arms["control"], Hit { hit: 0, of: 8 });

    let trend = history.finding_trend(&ALL, "BAD").unwrap();
    let hits: Vec<_> = trend.nights.iter().map(|n| (n.night.as_str(), n.arms["loaded"])).collect();
    let hit = |hit, of| Hit { hit, of };
    assert_eq!(hits, [("2026-11-19", hit(1, 3)), ("2026-11-20", hit(1, 2)), ("2026-11-21", hit(0, 2))]);
    assert_eq!((trend.titles[0].first.as_str(), trend.titles[0].last.as_str()), ("2026-11-19", "2026-11-20"));
    let last = history.finding_trend(&TrendFilter { nights: 1, ..ALL }, "bad").unwrap();
    assert_eq!((last.nights.len(), last.titles[0].first.as_str()), (1, "2026-11-19"));

    let of = |patch: &str| TrendFilter { patch: Some(patch.into()), ..ALL };
    assert_eq!(history.trends(&of("b")).unwrap().nights, ["2026-11-21"]);
    assert!(!history.trends(&of("b")).unwrap().findings[0].new, "there is no night to compare with");
    assert_eq!(history.trends(&of("nothing")).unwrap().nights, [""; 0]);
    let elsewhere = TrendFilter { image: Some("debian-13".into()), ..ALL };
    assert_eq!(history.trends(&elsewhere).unwrap().nights, [""; 0]);
}

#[test]
fn each_trial_of_a_soak_has_its_own_image() {
    let home = temporary();
    let soak = Story::soak("a", &["debian-12", "debian-13"], "2026-11-20T20:00:00Z");
    let of_round =
        |image: usize| soak.plan.trials.iter().filter(|t| t.arm == Arm::Control && t.turn == image).count();
    let (first, round) = (of_round(0), of_round(0) + of_round(1));
    // Once on each image, and on the first one again in the second round.
    let control = |nth| (Arm::Control, nth);
    soak.failed(control(0), "old")
        .failed(control(first), "both")
        .failed(control(round), "both")
        .ended()
        .write(&home.path().join("runs/1"));
    let history = refreshed(home.path());
    let runs = history.runs(&RunFilter { image: Some("debian-13".into()), ..RunFilter::default() }).unwrap();
    assert_eq!((runs[0].images.join(" "), runs[0].findings.len()), ("debian-12 debian-13".into(), 3));
    let on = |image: &str| {
        let trends = history.trends(&TrendFilter { image: Some(image.into()), ..ALL }).unwrap();
        trends.findings.into_iter().map(|f| (f.title, f.arms["control"], f.of_image)).collect::<Vec<_>>()
    };
    assert_eq!(
        on("debian-12"),
        [("both".into(), Hit { hit: 1, of: 2 }, true), ("old".into(), Hit { hit: 1, of: 2 }, true)]
    );
    assert_eq!(on("debian-13"), [("both".into(), Hit { hit: 1, of: 1 }, true)]);
}

#[test]
fn bounds_are_exact() {
    // Clopper and Pearson's limits of 1 in 10, and the closed forms at the ends: 1 - 0.025^(1/n).
    let close = |(low, high): (f64, f64), expected: (f64, f64)| {
        assert!((low - expected.0).abs() < 5e-4 && (high - expected.1).abs() < 5e-4, "{low} {high}");
    };
    close(Hit { hit: 1, of: 10 }.bounds(), (0.0025, 0.4450));
    close(Hit { hit: 0, of: 10 }.bounds(), (0.0, 0.3085));
    close(Hit { hit: 10, of: 10 }.bounds(), (0.6915, 1.0));
    close(Hit::default().bounds(), (0.0, 1.0));
}

#[test]
fn rates_are_of_control_trials() {
    let home = temporary();
    quiet("a", "2026-11-20T20:00:00Z").write(&home.path().join("runs/1"));
    let trend = refreshed(home.path()).rate_trend(&ALL, "w").unwrap();
    let night = &trend.nights[0];
    assert_eq!((night.trials, night.lowest, night.median, night.highest), (2, 100.0, 200.0, 300.0));
    let none = refreshed(home.path()).rate_trend(&ALL, "v").unwrap();
    assert!(none.nights.is_empty() && none.workloads.contains("w"));
}

#[test]
fn many_may_index_and_rebuild_at_once() {
    let home = temporary();
    for n in 0..12 {
        let time = format!("2026-11-{:02}T20:00:00Z", n + 1);
        faulty(&format!("p{n}"), &time, "bad data").write(&home.path().join(format!("runs/{n}")));
    }
    let out = quiet("out", "2026-11-20T20:00:00Z").write(&home.path().join("elsewhere"));
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (home, out) = (home.path(), &out);
            scope.spawn(move || {
                for _ in 0..4 {
                    if n == 0 {
                        assert!(!History::rebuild(home, std::slice::from_ref(out)).unwrap().forgot);
                    } else {
                        let mut history = open(home);
                        assert_eq!(history.index(out).unwrap(), None);
                        assert_eq!(history.refresh().unwrap().problems, []);
                        assert_eq!(history.runs(&RunFilter::default()).unwrap().len(), 13);
                    }
                }
            });
        }
    });
    let history = refreshed(home.path());
    assert_eq!(history.runs(&RunFilter::default()).unwrap().len(), 13);
    drop(history);
    let db = rusqlite::Connection::open(home.path().join("history.sqlite")).unwrap();
    let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
}
