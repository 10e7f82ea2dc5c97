//! The stressors, and how one runs: `work NAME` is a supervisor that forks worker processes, each with threads that
//! run the stressor's loop. It never restarts what died: a death is a finding, and its reader wants to see it.

mod aging;
mod bpf_programs;
pub(crate) mod child;
mod context;
mod file_io;
mod fork_exec;
mod madvise;
mod page_fault;
mod process;
mod region;
mod socket_mix;
mod syscall_files;
mod syscall_ipc;
mod syscall_mix;
mod syscall_units;
mod units;

pub(crate) use context::{Context, Rng, mix};
pub(crate) use process::how_it_ended;

use crate::params::{Form, Params, Spec};
use std::process::ExitCode;

/// A builtin stressor.
pub(crate) struct Stressor {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// What it can be told besides [`COMMON`].
    params: &'static [Spec],
    /// Default numbers of processes and of threads in each.
    processes: &'static str,
    threads: &'static str,
    /// Default priority.
    nice: &'static str,
    /// Processes besides, of one thread each; their numbers follow those of the others.
    singles: fn(&Params) -> u64,
    /// Names of the kinds of operation; a kind is an index into this.
    pub(crate) kinds: &'static [&'static str],
    /// What one thread does until [`Context::go_on`] says stop.
    run: fn(&mut Context<'_>),
    /// Before the first process and after the last one.
    prepare: fn(&Params) -> Result<(), String>,
    clean: fn(&Params),
}

/// All of them.
pub(crate) static STRESSORS: [&Stressor; 8] = [
    &madvise::STRESSOR,
    &page_fault::STRESSOR,
    &fork_exec::STRESSOR,
    &file_io::STRESSOR,
    &syscall_mix::STRESSOR,
    &socket_mix::STRESSOR,
    &bpf_programs::STRESSOR,
    &aging::STRESSOR,
];

/// Environment variable of a worker: descriptor of the slots, the first slot (the supervisor's), and how many follow.
pub(crate) const SLOTS_VARIABLE: &str = "KLPFARM_SLOTS";

fn no_singles(_: &Params) -> u64 {
    0
}

fn nothing_to_prepare(_: &Params) -> Result<(), String> {
    Ok(())
}

fn nothing_to_clean(_: &Params) {}

/// A stressor with checked parameters.
pub(crate) struct Job {
    pub(crate) stressor: &'static Stressor,
    pub(crate) params: Params,
}

impl Job {
    /// Looks the stressor up and checks its parameters; the error says what would be right.
    pub(crate) fn parse(name: &str, args: &[String]) -> Result<Self, String> {
        let stressor = STRESSORS.iter().copied().find(|s| s.name == name).ok_or_else(|| {
            let names: Vec<_> = STRESSORS.iter().map(|s| s.name).collect();
            format!("no stressor `{name}`; there are {}", names.join(", "))
        })?;
        let params = Params::parse(&stressor.specs(), args).map_err(|e| format!("{name}: {e}"))?;
        let job = Self { stressor, params };
        if job.threads() >= crate::slots::SLOTS as u64 {
            return Err(format!("{name}: {} threads are too many, at most 255", job.threads()));
        }
        Ok(job)
    }

    /// Threads of all processes together.
    pub(crate) fn threads(&self) -> u64 {
        self.params.number("processes") * self.params.number("threads")
            + (self.stressor.singles)(&self.params)
    }
}

impl Stressor {
    fn specs(&self) -> Vec<Spec> {
        let mut specs = vec![
            Spec {
                name: "processes",
                form: Form::Count(1, 64),
                default: self.processes,
                help: "processes to run",
            },
            Spec {
                name: "threads",
                form: Form::Count(1, 64),
                default: self.threads,
                help: "threads in each process",
            },
            Spec {
                name: "seed",
                form: Form::Count(0, u64::MAX),
                default: "1",
                help: "of the random numbers; 0 takes a new one each time",
            },
            Spec {
                name: "nice",
                form: Form::Count(0, 19),
                default: self.nice,
                help: "gives way to other workloads: 5 takes a third of the time it would otherwise get",
            },
        ];
        specs.extend_from_slice(self.params);
        specs
    }
}

/// `list`.
pub(crate) fn list() -> ExitCode {
    for s in STRESSORS {
        println!("{}: {}", s.name, s.about);
        for p in s.specs() {
            println!("  {}={:<20} {}", p.name, p.default, p.help);
        }
    }
    ExitCode::SUCCESS
}

/// `work NAME [key=value]... [--seconds N]`.
pub(crate) fn main(args: &[String]) -> ExitCode {
    let parsed = parse_command_line(args);
    let (job, seconds) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("klpfarm-stress work: {error}");
            return ExitCode::from(2);
        }
    };
    match process::supervise(&job, seconds) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("klpfarm-stress work {}: {error}", job.stressor.name);
            ExitCode::from(3)
        }
    }
}

fn parse_command_line(args: &[String]) -> Result<(Job, Option<u64>), String> {
    let (mut name, mut pairs, mut seconds) = (None, Vec::new(), None);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--seconds" {
            let n = rest.next().and_then(|n| n.parse().ok()).ok_or("--seconds wants a number")?;
            seconds = Some(n);
        } else if name.is_none() {
            name = Some(arg.as_str());
        } else {
            pairs.push(arg.clone());
        }
    }
    let job = Job::parse(name.ok_or("which stressor? see `klpfarm-stress list`")?, &pairs)?;
    Ok((job, seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_farms_list_of_stressors_is_true() {
        let told: Vec<(&str, Vec<&str>)> = klpfarm_stress::STRESSORS
            .iter()
            .map(|(name, own)| {
                (*name, klpfarm_stress::COMMON_PARAMETERS.iter().chain(*own).copied().collect())
            })
            .collect();
        let real: Vec<(&str, Vec<&str>)> =
            STRESSORS.iter().map(|s| (s.name, s.specs().iter().map(|p| p.name).collect())).collect();
        assert_eq!(told, real);
    }

    #[test]
    fn defaults_of_every_stressor_are_valid_and_its_kinds_fit() {
        for s in STRESSORS {
            assert!(Job::parse(s.name, &[]).is_ok(), "{}", s.name);
            assert!(s.kinds.len() <= crate::slots::KINDS && s.kinds.contains(&"yardstick"), "{}", s.name);
        }
    }

    #[test]
    fn mistakes_are_told_before_anything_starts() {
        let error = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|&a| a.to_owned()).collect();
            parse_command_line(&args).err().unwrap()
        };
        assert!(error(&["nonsense"]).contains("there are madvise-allocator"));
        assert!(error(&["madvise-allocator", "foo=1"]).contains("unknown parameter `foo`"));
        assert!(error(&["madvise-allocator", "processes=64", "threads=64"]).contains("at most 255"));
        assert!(error(&[]).contains("which stressor"));
    }
}
