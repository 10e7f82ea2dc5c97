//! Tiers: what a patch must show before it may go to more machines, as written in `pipelines/tiers.yaml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sequential::trials_needed;
use crate::yaml::{self, YamlError};
use crate::{Arm, ImageFacts, Outcome, Patch, Severity, Tier, Verdict};

/// The rules of all tiers that a file defines.
#[derive(Debug, Clone, PartialEq)]
pub struct Tiers {
    file: PathBuf,
    rules: BTreeMap<Tier, TierRule>,
}

/// What one tier asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TierRule {
    /// How often applying the patch may cause failures.
    pub applications: Applications,
    /// How often running with the patch may cause failures.
    pub exposure: Exposure,
    /// Arms that must have run cleanly.
    pub arms: Vec<Arm>,
    /// Severities of patches that may enter; all, stated or not, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severities: Option<Vec<Severity>>,
    /// Tier that must have qualified the same patch on the same image first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Tier>,
    /// Public keys, as paths relative to the tiers' file: one of them must have signed the verdict of `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<Vec<PathBuf>>,
}

/// How often applying a patch under load may cause failures: shown by many applications, each observed until everything is seen to make
/// progress.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Applications {
    /// Share of loaded applications (of 1) that may fail at most.
    pub max_failure_rate: f64,
    /// Confidence (of 1) with which that must be known.
    pub confidence: f64,
}

/// How often running with a patch may cause failures: shown by few machines that run with it for long, because what goes wrong late is seen by
/// one long soak and not by many short ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exposure {
    /// Failures an hour of one machine with the patch in force that there may be at most. Without it the tier bounds no such rate: there is no
    /// arm `soak`, and each loaded trial soaks instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures_per_hour: Option<f64>,
    /// Confidence (of 1) with which that must be known; that of the applications if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// Least length of a single soak.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub soak: Duration,
}

/// Probability (of 1) that something happens within `time` if it happens so many times an hour, at any moment alike (Poisson).
pub(crate) fn probability(per_hour: f64, time: Duration) -> f64 {
    -(-per_hour * time.as_secs_f64() / 3600.0).exp_m1()
}

/// How many times an hour something happens that happens within `time` with this probability: the inverse of [`probability`].
pub(crate) fn per_hour(probability: f64, time: Duration) -> f64 {
    -(-probability).ln_1p() * 3600.0 / time.as_secs_f64()
}

/// Trials of an arm that a pipeline can have at most.
const MOST_TRIALS: u32 = 10_000;

/// The file's shape. Fields and not a map, because a map would take a tier that stands there twice.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    proposed: Option<TierRule>,
    updates: Option<TierRule>,
    stable: Option<TierRule>,
}

impl Tiers {
    /// Read the tiers from `text`, the content of `file`.
    ///
    /// # Errors
    /// The first syntax or type error, or else every wrong value, each with its place.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<YamlError>> {
        let shape: Shape = yaml::parse(file, text).map_err(|e| vec![e])?;
        let rules =
            [(Tier::Proposed, shape.proposed), (Tier::Updates, shape.updates), (Tier::Stable, shape.stable)];
        let rules = rules.into_iter().filter_map(|(tier, rule)| Some((tier, rule?))).collect();
        let tiers = Self { file: file.to_owned(), rules };
        let problems = yaml::place(file, text, tiers.problems());
        if problems.is_empty() { Ok(tiers) } else { Err(problems) }
    }

    /// The rule of `tier`.
    ///
    /// # Errors
    /// If the file does not define it; names those that it does.
    pub fn rule(&self, tier: Tier) -> Result<&TierRule, String> {
        self.rules.get(&tier).ok_or_else(|| {
            format!(
                "{}: tier `{tier}` is not defined, only {}; define it or choose another",
                self.file.display(),
                list(self.rules.keys())
            )
        })
    }

    /// Whose signature each tier asks for: files of public keys, of which one is enough.
    pub fn signers(&self) -> impl Iterator<Item = (Tier, Vec<PathBuf>)> + '_ {
        let dir = self.file.parent().unwrap_or(Path::new(""));
        let of_rule =
            move |rule: &TierRule| Some(rule.signed_by.as_ref()?.iter().map(|key| dir.join(key)).collect());
        self.rules.iter().filter_map(move |(&tier, rule)| Some((tier, of_rule(rule)?)))
    }

    /// As many soaks as the file asks for, each of this length.
    pub fn soaks_of(&mut self, soak: Duration) {
        for exposure in self.rules.values_mut().map(|rule| &mut rule.exposure).filter(|_| !soak.is_zero()) {
            let times = exposure.soak.as_secs_f64() / soak.as_secs_f64();
            exposure.max_failures_per_hour = exposure.max_failures_per_hour.map(|rate| rate * times);
            exposure.soak = soak;
        }
    }

    /// The file that defines them.
    pub fn file(&self) -> &Path {
        &self.file
    }

    fn problems(&self) -> Vec<(String, String)> {
        if self.rules.is_empty() {
            return vec![(
                String::new(),
                format!("defines no tier; define at least one of {}", list(Tier::ALL)),
            )];
        }
        let mut found = Vec::new();
        for (&tier, rule) in &self.rules {
            let of_rule = rule.problems().into_iter().chain(self.wrong_after(tier, rule));
            found.extend(of_rule.map(|(field, message)| (format!("{tier}.{field}"), message)));
        }
        found
    }

    /// As a tier only ever names a lower one, there is no cycle to look for.
    fn wrong_after(&self, tier: Tier, rule: &TierRule) -> Option<(&'static str, String)> {
        let after = rule.after?;
        if after >= tier {
            return Some((
                "after",
                format!("is {after}, which is not below {tier}; the order is {}", list(Tier::ALL)),
            ));
        }
        (!self.rules.contains_key(&after)).then(|| {
            (
                "after",
                format!("is {after}, a tier that this file does not define; define it or remove `after`"),
            )
        })
    }
}

impl TierRule {
    /// A rule for patches of any severity that no other tier has to have qualified: at most this share of loaded applications may fail,
    /// known with this confidence.
    pub fn new(max_failure_rate: f64, confidence: f64, soak: Duration, arms: Vec<Arm>) -> Self {
        Self {
            applications: Applications { max_failure_rate, confidence },
            exposure: Exposure { max_failures_per_hour: None, confidence: None, soak },
            arms,
            severities: None,
            after: None,
            signed_by: None,
        }
    }

    /// Share of the trials of this arm (of 1) that may fail at most, where a soak takes so long. The rate of the tier is one of applications under
    /// load, or of soaks; the other arms have few trials, so that only more is asked of them once one has failed.
    pub fn rate_of(&self, arm: Arm, soak: Duration) -> f64 {
        const OTHER_ARMS: f64 = 0.20;
        let applications = self.applications.max_failure_rate;
        match arm {
            Arm::Loaded | Arm::Stack => applications,
            Arm::Soak => self.exposure.max_failures_per_hour.map_or(1.0, |rate| probability(rate, soak)),
            Arm::Quiescent | Arm::Control | Arm::Reapply => applications.max(OTHER_ARMS),
        }
    }

    /// Confidence (of 1) with which the rate of this arm must be known.
    pub fn confidence_of(&self, arm: Arm) -> f64 {
        let applications = self.applications.confidence;
        if arm == Arm::Soak { self.exposure.confidence.unwrap_or(applications) } else { applications }
    }

    /// Clean loaded trials that the tier takes.
    pub fn trials(&self) -> u32 {
        trials_needed(self.applications.max_failure_rate, self.applications.confidence)
    }

    /// Clean soaks of this length that the tier takes; none where it bounds no rate of failures with the patch in force.
    pub fn soaks(&self, soak: Duration) -> u32 {
        match self.exposure.max_failures_per_hour {
            Some(_) => trials_needed(self.rate_of(Arm::Soak, soak), self.confidence_of(Arm::Soak)),
            None => 0,
        }
    }

    pub(crate) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut check = |ok: bool, field: &'static str, message: String| {
            if !ok {
                found.push((field, message));
            }
        };
        let Applications { max_failure_rate: rate, confidence } = self.applications;
        let possible_rate = rate > 0.0 && rate < 1.0;
        let is_possible = |confidence: f64| (0.5..1.0).contains(&confidence);
        let wrong_confidence =
            |c: f64| format!("is {c}; must be at least 0.5 and below 1, for example 0.95 for 95 %");
        check(
            possible_rate,
            "applications.max_failure_rate",
            format!("is {rate}; must be between 0 and 1, for example 0.05 for 5 %"),
        );
        check(is_possible(confidence), "applications.confidence", wrong_confidence(confidence));
        if possible_rate && is_possible(confidence) {
            let trials = self.trials();
            check(
                trials <= MOST_TRIALS,
                "applications.max_failure_rate",
                format!(
                    "requires {trials} clean trials at confidence {confidence}, more than the maximum of {MOST_TRIALS}"
                ),
            );
        }
        let Exposure { max_failures_per_hour: per_hour, soak, confidence: own } = self.exposure;
        check(
            !soak.is_zero(),
            "exposure.soak",
            "is zero; 30s or more show what a patch does under load".into(),
        );
        if let Some(confidence) = own {
            check(is_possible(confidence), "exposure.confidence", wrong_confidence(confidence));
        }
        if let Some(per_hour) = per_hour {
            let possible = per_hour > 0.0 && per_hour.is_finite();
            check(
                possible,
                "exposure.max_failures_per_hour",
                format!(
                    "is {per_hour}; must be above 0, for example 5 for one failure in 12 minutes of one machine"
                ),
            );
            if possible && !soak.is_zero() && is_possible(self.confidence_of(Arm::Soak)) {
                let soaks = self.soaks(soak);
                check(
                    soaks <= MOST_TRIALS,
                    "exposure.max_failures_per_hour",
                    format!(
                        "requires {soaks} clean soaks of {} s, more than the maximum of {MOST_TRIALS}; raise `soak`",
                        soak.as_secs()
                    ),
                );
            }
        }
        let soaks = self.arms.contains(&Arm::Soak);
        check(
            soaks == per_hour.is_some(),
            "arms",
            if soaks {
                "has soak, but `exposure` has no `max_failures_per_hour` that says how many are needed; add it".into()
            } else {
                "lacks soak; needed to bound the failures per hour that `exposure` limits".into()
            },
        );
        for (arm, why) in
            [(Arm::Loaded, "needed to judge the patch"), (Arm::Control, "needed to attribute findings")]
        {
            check(self.arms.contains(&arm), "arms", format!("lacks {arm}; {why}"));
        }
        if let Some(arm) = twice(&self.arms) {
            check(false, "arms", format!("names {arm} twice"));
        }
        if let Some(keys) = &self.signed_by {
            check(
                self.after.is_some(),
                "signed_by",
                "requires a signature but no earlier tier: set `after` to the tier whose verdict must be signed".into(),
            );
            check(
                !keys.is_empty(),
                "signed_by",
                "is empty, so no verdict could ever count; remove it to require no signature".into(),
            );
        }
        if let Some(severities) = &self.severities {
            check(
                !severities.is_empty(),
                "severities",
                "is empty, so no patch could ever enter; remove it to allow all".into(),
            );
            if let Some(severity) = twice(severities) {
                check(false, "severities", format!("names {} twice", word(*severity)));
            }
        }
        found
    }
}

/// Whether the tier below has said yes: `prior` must be its verdict, on the same patches in the same order and on the same image, and
/// must show at least what that tier asks for now, whatever it asked for then. A tier without `after` asks for no prior verdict and looks
/// at none.
///
/// # Errors
/// Everything that does not fit, each with both values.
pub fn check_prior(
    tiers: &Tiers,
    tier: Tier,
    prior: Option<&Verdict>,
    patches: &[Patch],
    image: &ImageFacts,
) -> Result<(), String> {
    let Some(after) = tiers.rule(tier)?.after else { return Ok(()) };
    let Some(prior) = prior else {
        return Err(format!(
            "tier {tier} requires a verdict that qualifies the patch for {after}: run with --tier {after} first and pass its verdict with --prior verdict.json"
        ));
    };
    let mut wrong = Vec::new();
    if prior.tier != after {
        wrong.push(format!("it is for tier {}, but {tier} requires {after}", prior.tier));
    }
    if prior.verdict != Outcome::Qualified {
        wrong.push(format!("its outcome is {}, but {tier} requires {}", prior.verdict, Outcome::Qualified));
    }
    let (before, now) = (hashes(tested(prior)), hashes(patches));
    if before != now {
        wrong.push(format!("it is about patch {before}, but this run is about {now}"));
    }
    if prior.image.hash != image.hash {
        let name = |image: &ImageFacts| format!("{} (hash {})", image.name, image.hash);
        wrong.push(format!("it is for image {}, but this run uses {}", name(&prior.image), name(image)));
    }
    let schema = crate::plan::SCHEMA;
    if prior.schema != schema {
        wrong.push(format!("it has schema {}, but this klpfarm reads {schema}", prior.schema));
    }
    // Of another tier or outcome it was said what is wrong: whether its numbers would do is then of no interest.
    if wrong.is_empty() {
        wrong = too_little(prior, after, tiers.rule(after)?);
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("the verdict given by --prior does not count: {}", wrong.join("; ")))
    }
}

/// What a tier asks for by its present rule, and a verdict does not show.
fn too_little(prior: &Verdict, tier: Tier, rule: &TierRule) -> Vec<String> {
    let Applications { max_failure_rate, confidence } = rule.applications;
    let asked = format!("at most {} at {} confidence", percent(max_failure_rate), percent(confidence));
    let mut wrong = Vec::new();
    for bound in prior.bounds.iter().filter(|b| b.arm != Arm::Soak) {
        // Written so that what is no number is refused.
        if !(bound.failure_rate <= max_failure_rate && bound.confidence >= confidence) {
            let turn = bound.turn.as_ref().map(|turn| format!(" on {turn}")).unwrap_or_default();
            wrong.push(format!(
                "its {} trials of {}{turn} show a failure rate of at most {} at {} confidence, but {tier} now requires {asked}",
                bound.arm,
                bound.patches.join(" + "),
                percent(bound.failure_rate),
                percent(bound.confidence)
            ));
        }
    }
    wrong.extend(too_little_exposure(prior, tier, rule));
    let bounded = |arm: Arm, names: &[&str]| prior.bounds.iter().any(|b| b.arm == arm && b.patches == names);
    let names: Vec<&str> = prior.patches.iter().map(|p| p.name.as_str()).collect();
    let mut unbounded: Vec<String> =
        names.iter().filter(|name| !bounded(Arm::Loaded, &[**name])).map(ToString::to_string).collect();
    if names.len() > 1 && !bounded(Arm::Stack, &names) {
        unbounded.push(names.join(" + "));
    }
    let unbounded = unbounded.into_iter();
    wrong
        .extend(unbounded.map(|what| format!("it has no bound for {what}, but {tier} now requires {asked}")));
    for arm in rule.arms.iter().filter(|arm| **arm != Arm::Stack || names.len() > 1) {
        let clean = prior.arms.get(arm).map_or(0, |n| n.clean);
        if clean == 0 {
            wrong.push(format!("it has {clean} clean {arm} trials, but {tier} now requires at least 1"));
        }
    }
    wrong
}

/// What a tier asks for of machines that run with the patch, and a verdict does not show.
fn too_little_exposure(prior: &Verdict, tier: Tier, rule: &TierRule) -> Vec<String> {
    let Some(most) = rule.exposure.max_failures_per_hour else { return Vec::new() };
    let (confidence, soak) = (rule.confidence_of(Arm::Soak), rule.exposure.soak.as_secs());
    let asked = format!(
        "at most {most} failures per machine-hour at {} confidence, in soaks of at least {soak} s",
        percent(confidence)
    );
    let enough = |bound: &crate::Bound| {
        let exposure = bound.exposure.is_some_and(|e| e.failures_per_hour <= most && e.soak_s >= soak);
        exposure && bound.confidence >= confidence
    };
    let soaks = || prior.bounds.iter().filter(|b| b.arm == Arm::Soak);
    let little = soaks().filter(|b| !enough(b)).map(|bound| {
        let shown = bound.exposure.map_or_else(String::new, |e| {
            format!(
                " show at most {:.3} failures per machine-hour at {} confidence, in soaks of {} s",
                e.failures_per_hour,
                percent(bound.confidence),
                e.soak_s
            )
        });
        format!("its soaks of {}{shown}, but {tier} now requires {asked}", bound.patches.join(" + "))
    });
    let names = prior.patches.iter().map(|p| p.name.as_str());
    let missing = names.filter(|name| !soaks().any(|b| b.patches == [*name]));
    little
        .chain(missing.map(|name| format!("it has no soaks of {name}, but {tier} now requires {asked}")))
        .collect()
}

fn percent(share: f64) -> String {
    format!("{} %", (share * 1e6).round() / 1e4)
}

/// The patches that a verdict is about.
fn tested(verdict: &Verdict) -> &[Patch] {
    &verdict.patches
}

/// Content in the order of applying; the file's name is for people and may differ.
fn hashes(patches: &[Patch]) -> String {
    list(patches.iter().map(|p| format!("sha256 {}", p.sha256)))
}

/// Whether patches of these severities may enter.
///
/// # Errors
/// Every patch that may not, with its severity and those that may.
pub fn check_severity(rule: &TierRule, tier: Tier, patches: &[Patch]) -> Result<(), String> {
    let Some(allowed) = &rule.severities else { return Ok(()) };
    let may = list(allowed.iter().map(|s| word(*s)));
    let refused = patches.iter().filter_map(|patch| match patch.sidecar.severity {
        Some(severity) if allowed.contains(&severity) => None,
        Some(severity) => Some(format!(
            "{} has severity {}, but tier {tier} only accepts {may}",
            patch.file.display(),
            word(severity)
        )),
        None => Some(format!(
            "{} has no severity, but tier {tier} only accepts {may}; add `severity:` to {}",
            patch.file.display(),
            patch.file.with_extension("yaml").display()
        )),
    });
    let refused: Vec<String> = refused.collect();
    if refused.is_empty() { Ok(()) } else { Err(refused.join("\n")) }
}

/// As written in files.
fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Low => "low",
        Severity::Medium => "medium",
        Severity::High => "high",
        Severity::Critical => "critical",
    }
}

fn list(words: impl IntoIterator<Item = impl ToString>) -> String {
    words.into_iter().map(|w| w.to_string()).collect::<Vec<_>>().join(", ")
}

fn twice<T: PartialEq>(items: &[T]) -> Option<&T> {
    items.iter().enumerate().find_map(|(i, item)| items[..i].contains(item).then_some(item))
}

#[cfg(test)]
mod tests;
