//! Prints the table of error rates in `docs/verdict.md`: how often a verdict is wrong, by the noise of the host and the tier.
//!
//!     cargo run --release -p klpfarm-model --example error_rates -- [RUNS]
//!
//! Runs are made up by `klpfarm_model::simulation`, by the rules of the judge. `stable` takes a twentieth of the runs.

use std::path::Path;

use klpfarm_model::simulation::{Fate, Layout, Noise, World};
use klpfarm_model::{Arm, ImageFacts, Outcome, Patch, Pipeline, Plan, Resolved, Tier, TierRule, Tiers};

fn plan(tier: Tier, rule: TierRule) -> Plan {
    let text = "name: g\nimage: i\nworkloads: [w]\n";
    let pipeline = Pipeline::parse(Path::new("g.yaml"), text).expect("a pipeline");
    let patch = Patch { name: "x".into(), vermagic: "6.1 SMP".into(), ..Patch::default() };
    let facts = ImageFacts { name: "i".into(), hash: String::new(), release: None };
    let with = Resolved { patches: vec![patch], tier, ..Resolved::new(facts, rule) };
    Plan::new(&pipeline, with).expect("a plan")
}

fn main() {
    let runs: u32 = std::env::args().nth(1).map_or(2000, |n| n.parse().expect("a number of runs"));
    let text = include_str!("../../../pipelines/tiers.yaml");
    let tiers = Tiers::parse(Path::new("tiers.yaml"), text).expect("tiers");
    println!(
        "| tier | noise | patch | runs | qualified | rejected | trials, median |\n|---|---|---|---|---|---|---|"
    );
    for tier in [Tier::Proposed, Tier::Updates, Tier::Stable] {
        let rule = tiers.rule(tier).expect("a rule").clone();
        let limit = rule.applications.max_failure_rate;
        let plan = plan(tier, rule);
        let layout = Layout::new(&plan);
        let runs = if tier == Tier::Stable { runs.div_ceil(20) } else { runs };
        for shape in Noise::ALL {
            for (noise, fault) in [
                (0.0, 0.0),
                (0.005, 0.0),
                (0.01, 0.0),
                (0.05, 0.0),
                (0.10, 0.0),
                (0.0, limit),
                (0.01, limit),
                (0.05, limit),
                (0.10, limit),
            ] {
                if noise == 0.0 && shape != Noise::Independent {
                    continue;
                }
                let world = World { noise, shape, fault, only: None };
                row(&layout, world, (tier, runs));
            }
        }
        row(
            &layout,
            World { noise: 0.01, shape: Noise::Independent, fault: 0.5, only: Some(Arm::Reapply) },
            (tier, runs),
        );
    }
}

fn row(layout: &Layout<'_>, world: World, (tier, runs): (Tier, u32)) {
    let mut ends: Vec<_> = (0..runs).map(|seed| layout.run(&mut Fate::new(world, seed.into()))).collect();
    ends.sort_by_key(|e| e.trials);
    let percent = |outcome: Outcome| {
        100.0 * ends.iter().filter(|e| e.outcome == outcome).count() as f64 / f64::from(runs)
    };
    let patch = match (world.fault, world.only) {
        (0.0, _) => "good".to_owned(),
        (fault, None) => format!("fails {:.0} %", fault * 100.0),
        (fault, Some(arm)) => format!("fails {:.0} % of `{arm}`", fault * 100.0),
    };
    println!(
        "| {tier} | {:.1} %, {} | {patch} | {runs} | {:.1} % | {:.2} % | {} |",
        world.noise * 100.0,
        world.shape.name(),
        percent(Outcome::Qualified),
        percent(Outcome::Rejected),
        ends[ends.len() / 2].trials
    );
}
