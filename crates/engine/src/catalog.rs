//! Names to files: pipelines, workloads, images and patches, found and read at the edge, all problems reported at once.

use std::path::{Path, PathBuf};

use klpfarm_image::Recipe;
use klpfarm_model::{Patch, Pipeline, Sidecar, Tiers, Workload};

use crate::home::home;
use crate::signing;
use crate::{Error, Result};

const PIPELINES: &[(&str, &str)] = &[
    ("gate", include_str!("../../../pipelines/gate.yaml")),
    ("qualify", include_str!("../../../pipelines/qualify.yaml")),
    ("soak", include_str!("../../../pipelines/soak.yaml")),
];

macro_rules! shipped_workloads {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../workloads/", $name, ".yaml")))),*]
    };
}

const WORKLOADS: &[(&str, &str)] = shipped_workloads![
    "madvise-allocator",
    "madvise-solo",
    "page-fault-storm",
    "fork-exec-churn",
    "file-io-fsync",
    "syscall-mix",
    "stress-ng-vm",
    "socket-mix",
    "bpf-programs",
    "tcp-adverse",
    "ip-tunnels",
    "qdisc-churn",
    "netfilter-churn",
    "netns-churn",
    "btrfs-files",
    "xfs-files",
    "ext4-files",
    "overlayfs-files",
    "fuse-files",
    "9p-files",
    "cifs-smb3",
    "cifs-smb1",
    "bluetooth-links",
    "hid-uhid",
    "gpio-lines",
    "device-mapper",
    "key-rings",
    "stress-ng-files",
    "stress-ng-ipc",
    "cifs-reconnect",
    "nfs-files",
    "usb-devices",
    "wireless-hwsim",
];

/// The shipped rules of tiers; the first are those of pipelines that name none.
const TIERS: &[(&str, &str)] = &[
    ("tiers.yaml", include_str!("../../../pipelines/tiers.yaml")),
    ("qualify-tiers.yaml", include_str!("../../../pipelines/qualify-tiers.yaml")),
];

/// A pipeline with everything it names.
pub struct Loaded {
    /// The pipeline itself.
    pub pipeline: Pipeline,
    /// The rules of its tiers.
    pub tiers: Tiers,
    /// The workloads that it names; none of those that `auto` stands for.
    pub workloads: Vec<Workload>,
    /// The recipe of its image; of a rotation, the first one's.
    pub recipe: Recipe,
    /// What goes round, in order; none without a rotation.
    pub turns: Vec<LoadedTurn>,
}

/// One turn of a rotation.
pub struct LoadedTurn {
    /// The recipe of its image.
    pub recipe: Recipe,
    /// The name of its load, a key of `rotation.loads`.
    pub load: String,
    /// The workloads of that load.
    pub workloads: Vec<Workload>,
}

/// Whether a name is a path to a file rather than the name of something known.
pub fn is_path(name: &str) -> bool {
    name.contains('/') || name.ends_with(".yaml") || name.ends_with(".yml")
}

/// Load the pipeline `name` (a path, or a shipped one's name) and all it names.
///
/// # Errors
/// All that is wrong with it and with what it names, with files and lines.
pub fn load(name: &str) -> Result<Loaded> {
    let (file, text) = match PIPELINES.iter().find(|(n, _)| *n == name) {
        Some((n, text)) if !Path::new(name).is_file() => {
            (PathBuf::from(format!("pipelines/{n}.yaml")), (*text).to_owned())
        }
        _ => (PathBuf::from(name), read_pipeline(name)?),
    };
    let pipeline = Pipeline::parse(&file, &text).map_err(|e| Error::inputs(&e))?;
    let base = file.parent().unwrap_or(Path::new("."));
    let mut problems = Vec::new();
    let mut all = |names: &[String], field: &str| {
        let (found, wrong) = workloads(base, names);
        problems.extend(wrong.into_iter().map(|(name, problem)| place(&file, &text, &name, field, &problem)));
        found
    };
    let workloads = all(&pipeline.named_workloads(), "workloads");
    let parts = pipeline.rotation.as_ref().map(|r| r.turns(&pipeline)).unwrap_or_default();
    let loads: Vec<Vec<Workload>> =
        parts.iter().map(|(_, load, names)| all(names, &format!("rotation.loads.{load}"))).collect();
    let mut turns = Vec::new();
    for ((image, load, _), workloads) in parts.into_iter().zip(loads) {
        match recipe(base, &image) {
            Ok(recipe) => turns.push(LoadedTurn { recipe, load, workloads }),
            Err(problem) => {
                problems.push(place(&file, &text, &image, "rotation.images", &problem.to_string()));
            }
        }
    }
    problems.dedup();
    let tiers = tiers(base, pipeline.tiers.as_deref());
    if let Err(problem) = &tiers {
        let name = pipeline.tiers.as_deref().unwrap_or_default();
        problems.push(place(&file, &text, name, "tiers", problem));
    }
    let recipe = recipe(base, &pipeline.image);
    if let Err(problem) = &recipe {
        problems.push(place(&file, &text, &pipeline.image, "image", &problem.to_string()));
    }
    match (tiers, recipe) {
        (Ok(tiers), Ok(recipe)) if problems.is_empty() => {
            Ok(Loaded { pipeline, tiers, workloads, recipe, turns })
        }
        _ => Err(Error::inputs(&problems)),
    }
}

/// The workloads of these names; and what is wrong, by name.
fn workloads(base: &Path, names: &[String]) -> (Vec<Workload>, Vec<(String, String)>) {
    let (mut found, mut wrong) = (Vec::<Workload>::new(), Vec::new());
    for name in names {
        match workload(base, name) {
            Ok(w) if found.iter().any(|other| other.name == w.name) => {
                let problem = format!("the name `{}` is used twice", w.name);
                wrong.push((w.name, problem));
            }
            Ok(w) => found.push(w),
            Err(problem) => wrong.push((name.clone(), problem)),
        }
    }
    (found, wrong)
}

/// The rules of the tiers: the shipped ones, or a file of the user's.
fn tiers(base: &Path, name: Option<&str>) -> Result<Tiers, String> {
    let shipped = TIERS.iter().find(|(n, _)| name.is_none_or(|name| name == *n));
    let file = base.join(name.unwrap_or("tiers.yaml"));
    let text = match shipped {
        Some((_, text)) if name.is_none() || !file.is_file() => (*text).to_owned(),
        _ => std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?,
    };
    let tiers = Tiers::parse(&file, &text)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let keys = tiers.signers().flat_map(|(tier, keys)| keys.into_iter().map(move |key| (tier, key)));
    let bad = keys.filter_map(|(tier, key)| {
        let problem = signing::public_key(&key).err()?;
        Some(format!("{}: {tier}.signed_by: {problem}", file.display()))
    });
    let bad: Vec<String> = bad.collect();
    if bad.is_empty() { Ok(tiers) } else { Err(bad.join("\n")) }
}

fn read_pipeline(name: &str) -> Result<String> {
    std::fs::read_to_string(name).map_err(|e| {
        let known: Vec<&str> = PIPELINES.iter().map(|(n, _)| *n).collect();
        Error::input(format!("pipeline {name}: {e}; give a YAML file, or one of: {}", known.join(", ")))
    })
}

/// A problem of something that a file names, with the line where it is named.
fn place(file: &Path, text: &str, name: &str, field: &str, problem: &str) -> String {
    if problem.contains(".yaml:") {
        return problem.to_owned();
    }
    let line = text.lines().position(|l| l.contains(name)).map(|n| format!(":{}", n + 1)).unwrap_or_default();
    format!("{}{line}: {field}: {problem}", file.display())
}

fn workload(base: &Path, name: &str) -> Result<Workload, String> {
    let parse = |file: &Path, text: &str| {
        let workload = Workload::parse(file, text).map_err(|e| e.to_string())?;
        if let Some(builtin) = &workload.run.builtin {
            klpfarm_stress::check_stressor(builtin, workload.run.args.keys().map(String::as_str)).map_err(
                |e| {
                    let line = klpfarm_model::yaml::line_of(text, &["run"])
                        .map(|n| format!(":{n}"))
                        .unwrap_or_default();
                    format!("{}{line}: run: {e}", file.display())
                },
            )?;
        }
        Ok(workload)
    };
    if is_path(name) {
        let file = base.join(name);
        let text = std::fs::read_to_string(&file).map_err(|e| format!("workload {}: {e}", file.display()))?;
        return parse(&file, &text);
    }
    for dir in beside(base, "workloads") {
        let file = dir.join(format!("{name}.yaml"));
        if let Ok(text) = std::fs::read_to_string(&file) {
            return parse(&file, &text);
        }
    }
    match WORKLOADS.iter().find(|(n, _)| *n == name) {
        Some((_, text)) => parse(Path::new(&format!("workloads/{name}.yaml")), text),
        None => {
            let known: Vec<&str> = WORKLOADS.iter().map(|(n, _)| *n).collect();
            Err(format!("no workload `{name}`; give a path to a YAML file, or one of: {}", known.join(", ")))
        }
    }
}

/// All shipped workloads.
///
/// # Errors
/// If one is not sound, which a test excludes.
pub fn shipped_workloads() -> Result<Vec<Workload>> {
    let all: Result<Vec<_>, String> =
        WORKLOADS.iter().map(|(name, _)| workload(Path::new("."), name)).collect();
    all.map_err(Error::input)
}

/// The workloads of these names, or files.
///
/// # Errors
/// All that is wrong with any of them.
pub fn named_workloads(names: &[String]) -> Result<Vec<Workload>> {
    let (found, wrong) = workloads(Path::new("."), names);
    let wrong: Vec<String> = wrong.into_iter().map(|(_, problem)| problem).collect();
    if wrong.is_empty() { Ok(found) } else { Err(Error::inputs(&wrong)) }
}

/// The image recipe `name` as a file in `base` names it.
///
/// # Errors
/// If there is none of that name, or it is not sound.
pub fn recipe(base: &Path, name: &str) -> Result<Recipe> {
    let name = if is_path(name) { base.join(name).to_string_lossy().into_owned() } else { name.to_owned() };
    klpfarm_image::find(&name, &beside(base, "images")).map_err(Error::input)
}

/// Folders of the user's own descriptors: beside the pipeline's folder, within it, and in the home.
fn beside(base: &Path, kind: &str) -> Vec<PathBuf> {
    let mut dirs = vec![base.join("..").join(kind), base.join(kind)];
    if let Ok(home) = home() {
        dirs.push(home.join("recipes").join(kind));
    }
    dirs.retain(|d| d.is_dir());
    dirs
}

/// Read a candidate and its sidecar; returns its bytes as well.
///
/// # Errors
/// If the file is not a livepatch, or its sidecar is not sound.
pub fn patch(file: &Path) -> Result<(Patch, Vec<u8>)> {
    const MOST: u64 = 64 << 20;
    let unreadable = |e: std::io::Error| Error::input(e).about(format!("patch {}", file.display()));
    let meta = std::fs::metadata(file).map_err(unreadable)?;
    if !meta.is_file() {
        return Err(Error::input(format!(
            "patch {}: not a file; give a built kernel module (X.ko)",
            file.display()
        )));
    }
    if meta.len() > MOST {
        return Err(Error::input(format!(
            "patch {}: larger than {} MiB: not a livepatch",
            file.display(),
            MOST >> 20
        )));
    }
    let data = std::fs::read(file).map_err(unreadable)?;
    let beside = file.with_extension("yaml");
    let sidecar = match std::fs::read_to_string(&beside) {
        Ok(text) => Sidecar::parse(&beside, &text).map_err(Error::input)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Sidecar::default(),
        Err(e) => return Err(Error::input(e).about(beside.display())),
    };
    let patch = Patch::parse(file, &data, sidecar).map_err(|e| Error::input(format!("patch {e}")))?;
    Ok((patch, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_shipped_is_sound() {
        for (name, _) in PIPELINES {
            assert!(load(name).is_ok(), "{name}");
        }
        for (name, text) in WORKLOADS {
            assert_eq!(Workload::parse(Path::new(name), text).unwrap().name, *name);
        }
    }
}
