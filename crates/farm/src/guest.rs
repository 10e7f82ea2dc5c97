//! What is run in the guest, besides workloads: fixed shell lines whose only variable parts are a module's and functions' names,
//! which have been checked to be plain words. Pure.

use std::collections::BTreeMap;

use klpfarm_model::{Plan, Workload};
use klpfarm_stress::wire::Run;
use sha2::{Digest, Sha256};

use crate::detect::unavailable;

/// Where the guest binary and the patch lie in the guest. A tmpfs of its own: nothing is left on a golden disk, and `/run` itself is
/// often mounted `noexec`.
pub(crate) const DIR: &str = "/run/klpfarm";

/// SHA-256, in hex, of all that the farm itself puts into a guest of this plan: the guest binary and how the kernel is set up.
pub fn digest(plan: &Plan) -> String {
    let mut hash = Sha256::new();
    hash.update(klpfarm_vm::GUEST_BINARY);
    hash.update(prepare(hung_task_secs(plan)));
    klpfarm_model::hex(&hash.finalize())
}

/// The kernel's own hung-task timeout, in seconds.
pub(crate) fn hung_task_secs(plan: &Plan) -> u64 {
    plan.scaled(plan.pipeline.limits.hung_task).as_secs().max(1)
}

/// Make [`DIR`].
pub(crate) const MAKE_DIR: &str =
    "mkdir -p /run/klpfarm && mount -t tmpfs -o mode=0700,nosuid,nodev klpfarm /run/klpfarm";

/// Take the guest binary from standard input.
pub(crate) const TAKE_BINARY: &str =
    "cat > /run/klpfarm/klpfarm-stress && chmod 0755 /run/klpfarm/klpfarm-stress";

/// Set the kernel up for being watched, say what can't be watched ([`unavailable::shell`]), and start the probe.
///
/// sshd gets a better priority than the load, so that a slow login tells of a sick kernel and not of a busy one.
/// `hung_task_warnings` counts down to silence unless it is -1. `printk` 8: stack lines must reach the console also when the
/// command line did not say `ignore_loglevel`. `printk_devkmsg`: heartbeats are written to the log through it.
pub(crate) fn prepare(hung_task_secs: u64) -> String {
    let blind = unavailable::shell();
    format!(
        r#"cd /proc/sys/kernel || exit 1
echo 8 > printk 2>/dev/null
echo on > printk_devkmsg 2>/dev/null
dmesg -E 2>/dev/null
if [ -w hung_task_timeout_secs ]; then
  echo {hung_task_secs} > hung_task_timeout_secs; echo -1 > hung_task_warnings 2>/dev/null
  echo {hung_task_secs} > hung_task_check_interval_secs 2>/dev/null
fi
echo 0 > /sys/module/rcupdate/parameters/rcu_cpu_stall_suppress 2>/dev/null
[ "$(cat sysrq 2>/dev/null)" = 1 ] || echo 1 > sysrq 2>/dev/null
[ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
{blind}for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = sshd ] && renice -n -10 -p ${{p#/proc/}}; done >/dev/null 2>&1
{DIR}/klpfarm-stress serve --daemon </dev/null >/dev/null 2>&1 || echo "failed to start the probe"
"#
    )
}

/// A shell line as the probe runs it.
pub(crate) fn shell(line: &str) -> Vec<String> {
    ["/bin/sh", "-c", line].map(str::to_owned).into()
}

/// What the probe is to run for a workload; `seed` unless it has one of its own.
pub(crate) fn run_of(workload: &Workload, seed: u64) -> Run {
    match (&workload.run.builtin, &workload.run.script) {
        (None, Some(text)) => Run::Script { text: text.clone() },
        (Some(name), _) => {
            let mut args: Vec<String> = workload.run.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
            if !workload.run.args.contains_key("seed") {
                args.push(format!("seed={seed}"));
            }
            Run::Builtin { name: name.clone(), args }
        }
        (None, None) => Run::Command { argv: workload.run.command.clone().unwrap_or_default() },
    }
}

/// Seconds that starting these workloads may take on a fast host. A script may make a file system or start a server first, for which the
/// probe gives it three minutes.
pub(crate) fn start_secs<'a>(mut workloads: impl Iterator<Item = &'a Workload>) -> u64 {
    if workloads.any(|w| w.run.script.is_some()) { 200 } else { 30 }
}

/// Load modules by name, and what they need; says `missing NAME WHY` of each that can't be. What is loaded or built in stays as it is.
pub(crate) fn load_modules<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names = names.collect::<Vec<_>>().join(" ");
    format!(
        r#"for m in {names}; do [ -d /sys/module/$m ] || why=$(modprobe $m 2>&1) || echo "missing $m" $why; done"#
    )
}

/// Enable a patch that is loaded and disabled (before 4.12, where it can't be unloaded).
pub(crate) fn enable(name: &str) -> String {
    format!("echo 1 > /sys/kernel/livepatch/{name}/enabled")
}

/// Disable the patch, if no later one has replaced it already.
pub(crate) fn disable(name: &str) -> String {
    format!("[ ! -e /sys/kernel/livepatch/{name} ] || echo 0 > /sys/kernel/livepatch/{name}/enabled")
}

/// The lines `inside FUNCTION N` of the probe's answer to loading.
pub(crate) fn inside(text: &str) -> BTreeMap<String, u32> {
    let line = |l: &str| {
        let (name, n) = l.strip_prefix("inside ")?.split_once(' ')?;
        Some((name.to_owned(), n.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Unload the patch.
pub(crate) fn unload(name: &str) -> String {
    format!("rmmod {name} 2>&1")
}

/// What the probe says of a livepatch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PatchState {
    pub(crate) listed: bool,
    pub(crate) enabled: bool,
    /// `None` before 4.12: the kernel switches at once and has no such file.
    pub(crate) transition: Option<bool>,
    /// `object/function,sympos`; without sympos on vanilla 4.4.
    pub(crate) functions: Vec<String>,
}

impl PatchState {
    /// Read the probe's answer; none if it failed, or if half of the answer is missing: a patch that is not listed is reported with
    /// status 0 and no word at all.
    pub(crate) fn read(code: i32, text: &str) -> Option<Self> {
        let mut state = Self::default();
        let mut enabled = None;
        for line in text.lines() {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("listed", _) => state.listed = true,
                ("enabled", value @ ("0" | "1")) => enabled = Some(value == "1"),
                ("transition", value) => state.transition = Some(value == "1"),
                // `vmlinux/F,1/` since 4.5, `vmlinux/F/` on vanilla 4.4.
                ("function", path) => state.functions.push(path.trim_end_matches('/').to_owned()),
                _ => {}
            }
        }
        state.enabled = enabled.unwrap_or(false);
        let whole = state.listed == enabled.is_some() && (state.listed || text.trim().is_empty());
        (code == 0 && whole).then_some(state)
    }

    /// Whether all tasks have switched.
    pub(crate) fn settled(&self) -> bool {
        self.transition != Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn livepatch_states_of_all_kernels() {
        let read = |text: &str| PatchState::read(0, text).unwrap();
        let new = read("listed\nenabled 1\ntransition 1\nfunction vmlinux/__x64_sys_madvise,1/\n");
        assert!(new.listed && new.enabled && !new.settled());
        assert_eq!(new.functions, ["vmlinux/__x64_sys_madvise,1"]);
        let old = read("listed\nenabled 1\nfunction vmlinux/sys_madvise/\n");
        assert!(old.settled() && old.transition.is_none());
        assert_eq!(old.functions, ["vmlinux/sys_madvise"]);
        assert!(!read("").listed);
    }

    /// What could not be read must not pass for a patch that is gone.
    #[test]
    fn a_state_that_cannot_be_told_is_none() {
        for (code, text) in [
            (124, ""),
            (5, "cannot read: Input/output error"),
            (0, "listed\n"),
            (0, "enabled 1\n"),
            (0, "listed\nenabled \n"),
            (0, "%!garbage"),
            (1, "listed\nenabled 1\n"),
        ] {
            assert_eq!(PatchState::read(code, text), None, "{code} {text:?}");
        }
    }

    #[test]
    fn modules_that_cannot_be_loaded_are_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let modprobe = dir.path().join("modprobe");
        let script =
            "#!/bin/sh\n[ $1 != gone_x ] || { echo 'FATAL: Module gone_x'; echo not found; exit 1; } >&2\n";
        std::fs::write(&modprobe, script).unwrap();
        std::fs::set_permissions(&modprobe, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let argv = shell(&load_modules(["there_x", "gone_x", "there_y"].into_iter()));
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let output =
            std::process::Command::new(&argv[0]).args(&argv[1..]).env("PATH", path).output().unwrap();
        assert!(output.status.success());
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "missing gone_x FATAL: Module gone_x not found\n"
        );
    }
}
