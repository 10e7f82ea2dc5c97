//! Whether a trial's memory is dumped, and dumping it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use klpfarm_model::{Dump, Gathering, Plan};
use klpfarm_vm::Machine;
use tokio::time::Instant;

use super::{About, DUMP, Policy};

/// In a run's folder: which trial's memory was dumped.
const FIRST: &str = "first-dump";

/// Dump, if the policy wants it. Returns the file's size in bytes, or why there is none.
pub(super) async fn dump(
    machine: &Machine,
    to: &Path,
    about: &About,
    policy: &Policy,
    until: Instant,
) -> Result<u64, String> {
    let Gathering { dump_mib, .. } = policy.gathering;
    let claim = claim(about, policy)?;
    let dumped =
        machine.dump(to, u64::from(dump_mib) << 20, until.saturating_duration_since(Instant::now())).await;
    if let (Err(_), Some(claim)) = (&dumped, claim) {
        // Another trial may have better luck.
        let _ = std::fs::remove_file(claim);
    }
    dumped.map_err(|e| e.to_string())
}

/// Whether this trial's memory is to be dumped; where only the first one's is, the file that says so now.
fn claim(about: &About, policy: &Policy) -> Result<Option<PathBuf>, String> {
    let Gathering { dump, dump_mib, .. } = policy.gathering;
    let wanted = match dump {
        Dump::Never => return Err("the pipeline says `evidence: {dump: never}`".to_owned()),
        Dump::First if about.modules.is_empty() => {
            return Err(
                "no patch was applied here, and the pipeline says `evidence: {dump: first}`".to_owned()
            );
        }
        Dump::First | Dump::Always => dump,
    };
    if !policy.gathering.dump_fits(policy.memory_mib) {
        return Err(format!(
            "a dump of {} MiB of memory may not stay within `evidence.dump_mib` ({dump_mib}): raise it in the pipeline",
            policy.memory_mib
        ));
    }
    if wanted == Dump::Always {
        return Ok(None);
    }
    let path = policy.run_dir.join(FIRST);
    // Whoever makes the file is first; trials run side by side.
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(mut file) => {
            let dir = Plan::trial_dir(about.trial);
            let _ = writeln!(file, "{}", dir.join("evidence").join(DUMP).display());
            Ok(Some(path))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let first = std::fs::read_to_string(&path).unwrap_or_default();
            Err(format!("the first trial with a finding was dumped: {}", first.trim()))
        }
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_patched_trial_is_dumped_and_small_enough_it_must_be() {
        let run_dir = std::env::temp_dir().join(format!("klpfarm-claim-{}", std::process::id()));
        std::fs::create_dir_all(&run_dir).unwrap();
        let policy = |dump, dump_mib, memory_mib| Policy {
            gathering: Gathering { dump, dump_mib, seconds: 30 },
            memory_mib,
            scale: 1.0,
            run_dir: run_dir.clone(),
        };
        let first = policy(Dump::First, 512, 1024);
        let trial = |trial, patched: bool| About {
            trial,
            modules: patched.then(|| "x".to_owned()).into_iter().collect(),
            ..About::default()
        };
        assert!(claim(&trial(1, false), &first).unwrap_err().contains("no patch"));
        let file = claim(&trial(2, true), &first).unwrap().unwrap();
        assert!(claim(&trial(3, true), &first).unwrap_err().contains("trials/2/evidence/dump.kdump"));
        std::fs::remove_file(file).unwrap();
        assert!(claim(&trial(3, true), &first).is_ok(), "a dump that failed leaves the place to another");
        assert_eq!(claim(&trial(4, false), &policy(Dump::Always, 512, 1024)), Ok(None));
        assert!(claim(&trial(4, true), &policy(Dump::Always, 512, 8192)).unwrap_err().contains("dump_mib"));
        assert!(claim(&trial(4, true), &policy(Dump::Never, 512, 1024)).unwrap_err().contains("never"));
        std::fs::remove_dir_all(&run_dir).unwrap();
    }
}
