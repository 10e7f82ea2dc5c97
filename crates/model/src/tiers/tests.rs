use super::*;
use crate::verdict::{ArmCount, Bound};
use crate::{Accel, Sidecar};

const BASE: &str = "applications:\n    max_failure_rate: 0.2\n    confidence: 0.95\n  exposure:\n    soak: 30s\n  arms: [loaded, control]\n";

fn parse(text: &str) -> Result<Tiers, String> {
    Tiers::parse(Path::new("tiers.yaml"), text)
        .map_err(|es| es.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// The problems of a `proposed` with one line of `BASE` exchanged.
fn problem(from: &str, to: &str) -> String {
    let text = BASE.replace(from, to);
    assert_ne!(text, BASE);
    parse(&format!("proposed:\n  {text}")).unwrap_err()
}

#[test]
fn the_tiers_that_come_along() {
    let text = include_str!("../../../../pipelines/tiers.yaml");
    let tiers = parse(text).unwrap();
    let rules = [Tier::Proposed, Tier::Updates, Tier::Stable].map(|tier| tiers.rule(tier).unwrap());
    assert_eq!(rules.map(TierRule::trials), [14, 61, 310]);
    assert_eq!(rules.map(|r| r.after), [None, Some(Tier::Proposed), Some(Tier::Updates)]);
    let soak = |r: &TierRule| r.exposure.soak;
    assert_eq!(rules.map(|r| soak(r).as_secs()), [30, 120, 300]);
    assert_eq!(rules.map(|r| r.soaks(soak(r))), [4, 8, 8]);
    // The comments say how many trials it takes; they must stay true.
    for rule in rules {
        assert!(text.contains(&format!("{} clean trials", rule.trials())), "{}", rule.trials());
        assert!(text.contains(&format!("{} clean soaks", rule.soaks(soak(rule)))), "{text}");
    }
}

#[test]
fn a_file_may_define_some_tiers_only() {
    let tiers = parse(&format!("updates:\n  {BASE}")).unwrap();
    assert_eq!(tiers.rule(Tier::Updates).unwrap().severities, None);
    assert_eq!(
        tiers.rule(Tier::Stable).unwrap_err(),
        "tiers.yaml: tier `stable` is not defined, only updates; define it or choose another"
    );
    for empty in ["{}\n", "", "# nothing\n"] {
        let error = parse(empty).unwrap_err();
        assert!(
            error.contains("tiers.yaml: defines no tier; define at least one of proposed, updates, stable"),
            "{error}"
        );
    }
}

#[test]
fn a_rule_reads_again_as_it_was_written() {
    let tiers = parse(include_str!("../../../../pipelines/tiers.yaml")).unwrap();
    for rule in tiers.rules.values() {
        let json = serde_json::to_string(rule).unwrap();
        assert_eq!(&serde_json::from_str::<TierRule>(&json).unwrap(), rule);
    }
}

#[test]
fn numbers_out_of_range() {
    for rate in ["0", "1", "-0.1", "20", ".nan"] {
        let error = problem("0.2", rate);
        assert!(error.starts_with("tiers.yaml:3:1: proposed.applications.max_failure_rate: is "), "{error}");
        assert!(error.ends_with("must be between 0 and 1, for example 0.05 for 5 %"), "{error}");
    }
    for confidence in ["0.4", "1", "95", ".nan"] {
        let error = problem("0.95", confidence);
        assert!(error.starts_with("tiers.yaml:4:1: proposed.applications.confidence: is "), "{error}");
    }
    let error = problem("30s", "0s");
    assert!(error.starts_with("tiers.yaml:6:1: proposed.exposure.soak: is zero"), "{error}");
    assert_eq!(
        problem("0.2", "0.0001"),
        "tiers.yaml:3:1: proposed.applications.max_failure_rate: requires 31086 clean trials at confidence 0.95, more than the maximum of 10000"
    );
}

#[test]
fn arms_and_severities() {
    let error = problem("[loaded, control]", "[reapply, quiescent, reapply]");
    for expected in [
        "tiers.yaml:7:1: proposed.arms: lacks loaded; needed to judge the patch",
        "tiers.yaml:7:1: proposed.arms: lacks control; needed to attribute findings",
        "tiers.yaml:7:1: proposed.arms: names reapply twice",
    ] {
        assert!(error.contains(expected), "{error}\nlacks {expected}");
    }
    let empty = problem("30s", "30s\n  severities: []");
    assert!(empty.starts_with("tiers.yaml:7:1: proposed.severities: is empty"), "{empty}");
    let twice = problem("30s", "30s\n  severities: [low, high, low]");
    assert_eq!(twice, "tiers.yaml:7:1: proposed.severities: names low twice");
}

#[test]
fn a_tier_follows_a_lower_one_that_is_there() {
    let not_lower = problem("30s", "30s\n  after: stable");
    assert_eq!(
        not_lower,
        "tiers.yaml:7:1: proposed.after: is stable, which is not below proposed; the order is proposed, updates, stable"
    );
    let itself = problem("30s", "30s\n  after: proposed");
    assert!(itself.contains("is proposed, which is not below proposed"), "{itself}");
    let missing = parse(&format!("stable:\n  {BASE}  after: updates\n")).unwrap_err();
    assert_eq!(
        missing,
        "tiers.yaml:8:1: stable.after: is updates, a tier that this file does not define; define it or remove `after`"
    );
    assert!(parse(&format!("proposed:\n  {BASE}stable:\n  {BASE}  after: proposed\n")).is_ok());
}

#[test]
fn keys_are_found_beside_the_tiers() {
    let text =
        format!("proposed:\n  {BASE}updates:\n  {BASE}  after: proposed\n  signed_by: [a.pub, /k/b.pub]\n");
    let tiers = Tiers::parse(Path::new("conf/tiers.yaml"), &text).unwrap();
    let keys = ["conf/a.pub", "/k/b.pub"].map(PathBuf::from).to_vec();
    assert_eq!(tiers.signers().collect::<Vec<_>>(), [(Tier::Updates, keys)]);
    let without = problem("30s", "30s\n  signed_by: [a.pub]");
    assert!(
        without.starts_with("tiers.yaml:7:1: proposed.signed_by: requires a signature but no earlier tier"),
        "{without}"
    );
    let empty = parse(&text.replace("a.pub, /k/b.pub", "")).unwrap_err();
    assert!(empty.starts_with("tiers.yaml:16:1: updates.signed_by: is empty"), "{empty}");
}

#[test]
fn every_problem_of_every_tier_at_once() {
    let text = format!("proposed:\n  {BASE}updates:\n  {BASE}").replace("0.2", "2").replace("30s", "0s");
    let error = parse(&text).unwrap_err();
    let places: Vec<&str> = error.lines().map(|l| l.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["tiers.yaml:3:1", "tiers.yaml:6:1", "tiers.yaml:10:1", "tiers.yaml:13:1"], "{error}");
}

#[test]
fn wrong_types_unknown_and_missing_fields() {
    let error = problem("30s", "30s\n    sok: 3s");
    assert!(error.starts_with("tiers.yaml:7:5: proposed.exposure.sok: unknown field `sok`"), "{error}");
    let error = problem("0.2", "few");
    assert!(
        error.starts_with("tiers.yaml:3:23: proposed.applications.max_failure_rate: invalid type"),
        "{error}"
    );
    let error = problem("[loaded, control]", "[loaded, idle]");
    assert!(error.contains("proposed.arms[1]: unknown variant `idle`"), "{error}");
    let error = problem("    soak: 30s\n", "    confidence: 0.9\n");
    assert!(error.contains("missing field `soak`"), "{error}");
    let error = parse(&format!("gold:\n  {BASE}")).unwrap_err();
    assert!(error.contains("gold: unknown field `gold`, expected one of `proposed`"), "{error}");
    let error = parse(&format!("proposed:\n  {BASE}proposed:\n  {BASE}")).unwrap_err();
    assert!(error.contains("duplicate field `proposed`"), "{error}");
}

fn rule(more: &str) -> TierRule {
    let tiers = parse(&format!("proposed:\n  {BASE}updates:\n  {BASE}{more}")).unwrap();
    tiers.rule(Tier::Updates).unwrap().clone()
}

fn patch(sha256: &str, severity: Option<Severity>) -> Patch {
    let sidecar = Sidecar { severity, ..Sidecar::default() };
    let name = "x".to_owned();
    Patch {
        file: format!("built/{sha256}.ko").into(),
        name,
        sha256: sha256.into(),
        sidecar,
        ..Patch::default()
    }
}

fn image(hash: &str) -> ImageFacts {
    ImageFacts { name: "debian-12".into(), hash: hash.into(), release: None }
}

fn verdict() -> Verdict {
    let clean = ArmCount { planned: 24, clean: 14, ..ArmCount::default() };
    let bound = Bound {
        turn: None,
        arm: Arm::Loaded,
        patches: vec!["x".into()],
        failed: 0,
        clean: 14,
        failure_rate: crate::upper_bound(0, 14, 0.95),
        confidence: 0.95,
        exposure: None,
    };
    Verdict {
        schema: crate::plan::SCHEMA,
        turns: BTreeMap::new(),
        verdict: Outcome::Qualified,
        tier: Tier::Proposed,
        causes: Vec::new(),
        patches: vec![patch("aa", None)],
        checkpoint: None,
        wear: None,
        bounds: vec![bound],
        image: image("11"),
        accel: Accel::Tcg,
        arms: [Arm::Loaded, Arm::Control].map(|arm| (arm, clean)).into(),
        evidence: Vec::new(),
        reach: Vec::new(),
        blind: Vec::new(),
        unavailable: BTreeMap::new(),
        farm_errors: Vec::new(),
        remarks: Vec::new(),
        plan: String::new(),
        took_ms: 0,
        farm: String::new(),
    }
}

/// What is said of `prior` when patch `aa` on image `11` shall enter updates.
fn said(prior: Option<Verdict>) -> Result<(), String> {
    said_by("", prior)
}

/// The same, where `proposed` asks for more than it did when the verdict was reached.
fn said_by(more: &str, prior: Option<Verdict>) -> Result<(), String> {
    let proposed = BASE.replace("arms: [loaded, control]", &format!("arms: [loaded, control{more}]"));
    let tiers = parse(&format!("proposed:\n  {proposed}updates:\n  {BASE}  after: proposed\n")).unwrap();
    check_prior(&tiers, Tier::Updates, prior.as_ref(), &[patch("aa", None)], &image("11"))
}

#[test]
fn a_fitting_prior_verdict_counts() {
    assert_eq!(said(Some(verdict())), Ok(()));
    // Content decides: names and what was learned by booting may differ.
    let image = ImageFacts { name: "bookworm".into(), release: Some("6.1.0".into()), ..image("11") };
    let patch = Patch { file: "elsewhere/fix.ko".into(), ..patch("aa", Some(Severity::High)) };
    assert_eq!(said(Some(Verdict { image, patches: vec![patch], ..verdict() })), Ok(()));
}

#[test]
fn without_after_no_prior_verdict_is_asked_for() {
    let tiers = parse(&format!("updates:\n  {BASE}")).unwrap();
    let ask = |prior| check_prior(&tiers, Tier::Updates, prior, &[patch("bb", None)], &image("22"));
    assert_eq!((ask(None), ask(Some(&verdict()))), (Ok(()), Ok(())));
}

#[test]
fn each_misfit_of_a_prior_verdict_has_its_words() {
    assert_eq!(
        said(None).unwrap_err(),
        "tier updates requires a verdict that qualifies the patch for proposed: run with --tier proposed first and pass its verdict with --prior verdict.json"
    );
    for (prior, words) in [
        (Verdict { tier: Tier::Stable, ..verdict() }, "it is for tier stable, but updates requires proposed"),
        (
            Verdict { verdict: Outcome::Inconclusive, ..verdict() },
            "its outcome is inconclusive, but updates requires qualified",
        ),
        (
            Verdict { patches: vec![patch("bb", None)], ..verdict() },
            "it is about patch sha256 bb, but this run is about sha256 aa",
        ),
        (
            Verdict { image: image("22"), ..verdict() },
            "it is for image debian-12 (hash 22), but this run uses debian-12 (hash 11)",
        ),
    ] {
        assert_eq!(
            said(Some(prior)).unwrap_err(),
            format!("the verdict given by --prior does not count: {words}")
        );
    }
    let older = said(Some(Verdict { schema: 1, ..verdict() })).unwrap_err();
    let words = format!("it has schema 1, but this klpfarm reads {}", crate::plan::SCHEMA);
    assert_eq!(older, format!("the verdict given by --prior does not count: {words}"));
}

/// A verdict counts only if it shows what its tier asks for now: one loaded trial by a rule that asked for next to nothing does not.
#[test]
fn a_prior_verdict_shows_what_its_tier_asks_for_now() {
    let with = |change: fn(&mut Verdict)| {
        let mut prior = verdict();
        change(&mut prior);
        said(Some(prior)).map_err(|e| e.replace("the verdict given by --prior does not count: ", ""))
    };
    let weaker = with(|v| {
        v.bounds[0] = Bound { clean: 1, failure_rate: 0.95, confidence: 0.5, ..v.bounds[0].clone() };
        v.arms.get_mut(&Arm::Control).unwrap().clean = 1;
    });
    assert_eq!(
        weaker.unwrap_err(),
        "its loaded trials of x show a failure rate of at most 95 % at 50 % confidence, but proposed now requires at most 20 % at 95 % confidence"
    );
    let rate = with(|v| v.bounds[0].failure_rate = 0.200_1).unwrap_err();
    assert!(rate.contains("at most 20.01 % at 95 % confidence, but proposed"), "{rate}");
    let confidence = with(|v| v.bounds[0].confidence = 0.9).unwrap_err();
    assert!(confidence.contains("at 90 % confidence, but proposed"), "{confidence}");
    assert!(with(|v| v.bounds[0].failure_rate = f64::NAN).is_err());
    assert_eq!(with(|v| v.bounds[0].confidence = 0.99), Ok(()), "more than is asked for");
    assert_eq!(with(|v| v.bounds[0].failure_rate = 0.05), Ok(()), "more than is asked for");
    let none = "it has no bound for x, but proposed now requires at most 20 % at 95 % confidence";
    assert_eq!(with(|v| v.bounds.clear()).unwrap_err(), none);
    assert_eq!(with(|v| v.bounds[0].arm = Arm::Stack).unwrap_err(), none);
    assert_eq!(with(|v| v.bounds[0].patches.push("y".into())).unwrap_err(), none);
    let turn = with(|v| {
        let other = Bound { turn: Some("b/all".into()), failure_rate: 0.5, ..v.bounds[0].clone() };
        v.bounds.push(other);
    });
    assert!(
        turn.unwrap_err().starts_with("its loaded trials of x on b/all show a failure rate of at most 50 %")
    );
    let control = with(|v| v.arms.retain(|arm, _| *arm != Arm::Control)).unwrap_err();
    assert_eq!(control, "it has 0 clean control trials, but proposed now requires at least 1");
    let reapply = said_by(", reapply", Some(verdict())).unwrap_err();
    assert!(
        reapply.ends_with("it has 0 clean reapply trials, but proposed now requires at least 1"),
        "{reapply}"
    );
    assert_eq!(said_by(", stack", Some(verdict())), Ok(()), "one patch makes no stack");
}

#[test]
fn a_prior_verdict_on_a_stack_bounds_the_stack() {
    let stack = [patch("aa", None), Patch { name: "y".into(), ..patch("bb", None) }];
    let tiers = parse(&format!("proposed:\n  {BASE}updates:\n  {BASE}  after: proposed\n")).unwrap();
    let mut prior = Verdict { patches: stack.to_vec(), ..verdict() };
    let check = |prior: &Verdict| check_prior(&tiers, Tier::Updates, Some(prior), &stack, &image("11"));
    assert_eq!(
        check(&prior).unwrap_err(),
        "the verdict given by --prior does not count: it has no bound for y, but proposed now requires at most 20 % at 95 % confidence; it has no bound for x + y, but proposed now requires at most 20 % at 95 % confidence"
    );
    let x = prior.bounds[0].clone();
    prior.bounds.push(Bound { patches: vec!["y".into()], ..x.clone() });
    prior.bounds.push(Bound { patches: vec!["x".into(), "y".into()], arm: Arm::Stack, ..x });
    assert_eq!(check(&prior), Ok(()));
}

#[test]
fn all_misfits_are_said_at_once() {
    let prior = Verdict { tier: Tier::Stable, verdict: Outcome::Rejected, image: image("22"), ..verdict() };
    let error = said(Some(prior)).unwrap_err();
    assert_eq!(error.matches("; ").count(), 2, "{error}");
}

#[test]
fn a_prior_verdict_on_one_patch_says_nothing_of_a_stack() {
    let stack = [patch("aa", None), patch("bb", None)];
    let tiers = parse(&format!("proposed:\n  {BASE}updates:\n  {BASE}  after: proposed\n")).unwrap();
    let error = check_prior(&tiers, Tier::Updates, Some(&verdict()), &stack, &image("11")).unwrap_err();
    assert!(
        error.ends_with("it is about patch sha256 aa, but this run is about sha256 aa, sha256 bb"),
        "{error}"
    );
}

#[test]
fn severities_that_may_enter() {
    let high = rule("  severities: [high, critical]\n");
    let check = |rule: &TierRule, severities: &[Option<Severity>]| {
        let patches: Vec<Patch> = severities.iter().map(|s| patch("aa", *s)).collect();
        check_severity(rule, Tier::Updates, &patches)
    };
    let (low, critical) = (Some(Severity::Low), Some(Severity::Critical));
    assert_eq!(check(&rule(""), &[None, low]), Ok(()));
    assert_eq!(check(&high, &[critical, Some(Severity::High)]), Ok(()));
    assert_eq!(
        check(&high, &[critical, low, None]).unwrap_err(),
        "built/aa.ko has severity low, but tier updates only accepts high, critical\n\
         built/aa.ko has no severity, but tier updates only accepts high, critical; add `severity:` to built/aa.yaml"
    );
}

/// With an exposure that is bounded there are soaks, and without there are none.
#[test]
fn soaks_and_failures_per_hour_come_together() {
    let bounded = |arms: &str, per_hour: &str| {
        let text = BASE.replace("soak: 30s", &format!("soak: 30s\n    max_failures_per_hour: {per_hour}"));
        parse(&format!("proposed:\n  {}", text.replace("[loaded, control]", arms)))
    };
    let tiers = bounded("[loaded, soak, control]", "100").unwrap();
    let rule = tiers.rule(Tier::Proposed).unwrap();
    let soak = Duration::from_secs(30);
    assert_eq!((rule.soaks(soak), rule.soaks(soak * 2)), (4, 2));
    assert!((rule.rate_of(Arm::Soak, soak) - 0.565).abs() < 0.001);
    let missing = bounded("[loaded, control]", "100").unwrap_err();
    assert!(
        missing.contains("proposed.arms: lacks soak; needed to bound the failures per hour"),
        "{missing}"
    );
    let alone = problem("[loaded, control]", "[loaded, soak, control]");
    assert!(
        alone.contains("proposed.arms: has soak, but `exposure` has no `max_failures_per_hour`"),
        "{alone}"
    );
    for (per_hour, words) in [
        ("0", "is 0; must be above 0"),
        (".inf", "is inf; must be above 0"),
        ("0.001", "clean soaks of 30 s, more than"),
    ] {
        let error = bounded("[loaded, soak, control]", per_hour).unwrap_err();
        assert!(
            error.contains("proposed.exposure.max_failures_per_hour: ") && error.contains(words),
            "{error}"
        );
    }
}

#[test]
fn shorter_soaks_are_as_many() {
    let mut tiers = parse(include_str!("../../../../pipelines/qualify-tiers.yaml")).unwrap();
    for seconds in [60, 30, 20, 300] {
        let soak = Duration::from_secs(seconds);
        tiers.soaks_of(soak);
        let rule = tiers.rule(Tier::Proposed).unwrap();
        assert_eq!((rule.exposure.soak, rule.soaks(soak)), (soak, 4));
    }
}

/// So many clean soaks as are needed bound the rate by what the tier allows, by Poisson's exact bound as well.
#[test]
fn clean_soaks_bound_the_failures_per_hour() {
    let tiers = parse(include_str!("../../../../pipelines/tiers.yaml")).unwrap();
    for rule in tiers.rules.values() {
        let most = rule.exposure.max_failures_per_hour.unwrap();
        let (soak, confidence) = (rule.exposure.soak, rule.confidence_of(Arm::Soak));
        let hours = |soaks: u32| soak.as_secs_f64() / 3600.0 * f64::from(soaks);
        let poisson = |soaks: u32| -(1.0 - confidence).ln() / hours(soaks);
        let soaks = rule.soaks(soak);
        assert!(poisson(soaks) <= most, "{} > {most}", poisson(soaks));
        let mut tally = crate::sequential::Tally::default();
        tally.alone[0] = soaks;
        let bound = per_hour(crate::sequential::bound(&tally, confidence), soak);
        assert!(bound <= most && bound >= poisson(soaks), "{bound} {}", poisson(soaks));
        // What the looks after each trial cost is little.
        assert!(bound < poisson(soaks) * 1.1, "{bound} {}", poisson(soaks));
    }
}

#[test]
fn a_prior_verdict_shows_the_exposure_that_its_tier_asks_for_now() {
    let bounded = BASE
        .replace("soak: 30s", "soak: 30s\n    max_failures_per_hour: 100")
        .replace("[loaded, control]", "[loaded, soak, control]");
    let tiers = parse(&format!("proposed:\n  {bounded}updates:\n  {BASE}  after: proposed\n")).unwrap();
    let with = |soak: Option<(f64, u64)>| {
        let mut prior = verdict();
        prior.arms.insert(Arm::Soak, ArmCount { planned: 4, clean: 4, ..ArmCount::default() });
        if let Some((failures_per_hour, soak_s)) = soak {
            let exposure =
                Some(crate::verdict::ExposureBound { failures_per_hour, soak_s, clean_s: 4 * soak_s });
            let clean = 4;
            prior.bounds.push(Bound { arm: Arm::Soak, clean, exposure, ..prior.bounds[0].clone() });
        }
        check_prior(&tiers, Tier::Updates, Some(&prior), &[patch("aa", None)], &image("11"))
    };
    let asked = "but proposed now requires at most 100 failures per machine-hour at 95 % confidence, in soaks of at least 30 s";
    assert_eq!(with(Some((99.0, 30))), Ok(()));
    assert!(with(None).unwrap_err().ends_with(&format!("it has no soaks of x, {asked}")));
    let shown = "its soaks of x show at most 101.000 failures per machine-hour at 95 % confidence, in soaks of 30 s, ";
    assert!(with(Some((101.0, 30))).unwrap_err().ends_with(&format!("{shown}{asked}")));
    assert!(with(Some((50.0, 29))).is_err());
    assert!(with(Some((f64::NAN, 30))).is_err());
}
