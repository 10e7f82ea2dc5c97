//! `klpfarm doctor`: what this host can do, and what to do about the rest.

use klpfarm_engine::{gc, home, host};
use klpfarm_model::{Accel, counted};
use klpfarm_vm::{KvmProbe, RunGroup};
use serde::Serialize;

use crate::failure::{Failure, code, print, print_json};

/// Check whether this host can run klpfarm.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    status: Status,
    detail: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    hint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Degraded,
    Missing,
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let home = home()?;
    let mut lines = qemu().await;
    lines.push(image_tools().await);
    lines.push(memory());
    lines.push(disk(&home));
    lines.push(machines().await);
    lines.push(left_over(&home));
    if args.json {
        print_json(&lines);
    } else {
        for line in &lines {
            let status = match line.status {
                Status::Ok => "ok      ",
                Status::Degraded => "degraded",
                Status::Missing => "missing ",
            };
            print(&format!("{status}  {:<12} {}\n", line.name, line.detail));
            if !line.hint.is_empty() {
                print(&format!("          {:<12} -> {}\n", "", line.hint));
            }
        }
    }
    Ok(if lines.iter().any(|l| l.status == Status::Missing) { code::FARM } else { 0 })
}

async fn qemu() -> Vec<Line> {
    let least = format!("{}.{}", klpfarm_vm::QEMU_LEAST.0, klpfarm_vm::QEMU_LEAST.1);
    let line =
        |status, detail: String, hint: &str| Line { name: "qemu", status, detail, hint: hint.to_owned() };
    let (text, version) = match klpfarm_vm::qemu_version().await {
        Ok(found) => found,
        Err(error) => {
            let kvm = Line {
                name: "kvm",
                status: Status::Missing,
                detail: "cannot be tested without QEMU".into(),
                hint: String::new(),
            };
            return vec![
                line(Status::Missing, error.to_string(), "apt-get install qemu-system-x86 qemu-utils"),
                kvm,
            ];
        }
    };
    let qemu = match version {
        Some(v) if klpfarm_vm::supported(v) => line(Status::Ok, text, ""),
        Some(_) => line(
            Status::Degraded,
            text,
            &format!("klpfarm is tested with QEMU {least} and newer; install a newer one"),
        ),
        None => line(Status::Degraded, text, "its version is unknown"),
    };
    let forks = match klpfarm_vm::can_fork(version) {
        Ok(()) => Line {
            name: "forks",
            status: Status::Ok,
            detail: "trials can be forked from a checkpoint".into(),
            hint: String::new(),
        },
        Err(why) => Line {
            name: "forks",
            status: Status::Degraded,
            detail: format!("{why}; each trial boots and ages its own machine"),
            hint: "runs take many times longer: install a newer QEMU".into(),
        },
    };
    let kvm = match klpfarm_vm::probe_kvm().await {
        Ok(KvmProbe::Works(ms)) => Line {
            name: "kvm",
            status: Status::Ok,
            detail: format!("a test guest ran in {ms} ms"),
            hint: String::new(),
        },
        Ok(KvmProbe::Fails(why)) => Line {
            name: "kvm",
            status: Status::Degraded,
            detail: format!("{why}; guests are emulated (tcg)"),
            hint: "runs take longer: use a host with KVM".into(),
        },
        Err(error) => {
            Line { name: "kvm", status: Status::Degraded, detail: error.to_string(), hint: String::new() }
        }
    };
    vec![qemu, forks, kvm]
}

async fn image_tools() -> Line {
    let missing = klpfarm_image::missing_tools();
    let names: Vec<&str> = missing.iter().map(|t| t.program).collect();
    let packages: Vec<&str> = missing.iter().map(|t| t.package).collect();
    let (status, detail, hint) = if !missing.is_empty() {
        let detail = format!("{} not found: images can't be built", names.join(", "));
        (Status::Missing, detail, format!("apt-get install {}", packages.join(" ")))
    } else if let Err(error) = klpfarm_image::may_build().await {
        (
            Status::Missing,
            "installed, but you are not permitted to build images".to_owned(),
            error.to_string(),
        )
    } else {
        (Status::Ok, "installed".to_owned(), String::new())
    };
    Line { name: "image-tools", status, detail, hint }
}

fn memory() -> Line {
    let available = host::available_memory_mib().unwrap_or(0);
    let three = 3 * (1024 + host::QEMU_OVERHEAD_MIB);
    let (status, hint) = match available {
        m if m >= three => (Status::Ok, String::new()),
        m if m >= three / 3 => {
            (Status::Degraded, format!("three machines at once need {three} MiB: fewer will run at once"))
        }
        _ => {
            (Status::Missing, "a machine of the gate pipeline needs 1224 MiB: stop other programs".to_owned())
        }
    };
    Line { name: "memory", status, detail: format!("{available} MiB available"), hint }
}

fn disk(home: &std::path::Path) -> Line {
    let free = host::free_disk(home).unwrap_or(0) >> 20;
    let (status, hint) = match free {
        f if f >= 8192 => (Status::Ok, ""),
        f if f >= 2048 => (
            Status::Degraded,
            "an image takes about 1.5 GiB, building one three times that: set KLPFARM_HOME to a larger disk",
        ),
        _ => (Status::Missing, "set KLPFARM_HOME to a folder with 8 GiB free"),
    };
    Line {
        name: "disk",
        status,
        detail: format!("{free} MiB free at {}", home.display()),
        hint: hint.to_owned(),
    }
}

/// What bounds the machines of a run and ends them with it.
async fn machines() -> Line {
    // Any machine will do: what counts is whether a group can be made.
    let group = RunGroup::create(1024, 2, Accel::Kvm, 1).await;
    let (status, hint) = if group.is_bounded() {
        (Status::Ok, "")
    } else {
        (
            Status::Degraded,
            "to limit memory and CPU of machines, run under systemd or with a delegated cgroup v2",
        )
    };
    Line { name: "machines", status, detail: format!("they {}", group.words), hint: hint.to_owned() }
}

fn left_over(home: &std::path::Path) -> Line {
    let (count, bytes) = gc::left_over(home);
    let (status, detail, hint) = match count {
        0 => (Status::Ok, "nothing left behind by crashed runs".to_owned(), ""),
        n => (
            Status::Degraded,
            format!("{} left behind by crashed runs, {} MiB", counted(n, "item"), bytes >> 20),
            "the next run removes them, as does `klpfarm gc`",
        ),
    };
    Line { name: "leftovers", status, detail, hint: hint.to_owned() }
}
