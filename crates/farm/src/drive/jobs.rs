//! What a trial has done for it while it goes on: logins, commands, uploads, evidence. Each is a job that comes back as an input.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use klpfarm_stress::wire::{Ask, ToGuest};
use klpfarm_vm::{GUEST_BINARY, Ssh, VmError};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::forward::Forward;
use super::{ANSWER, Done, Driver};
use crate::evidence::{self, About, Policy};
use crate::measure::millis;
use crate::trial::{CHUNK, Collect, Input, NoLogin, Upload};

impl Driver<'_> {
    pub(super) fn login(&mut self, limit: Duration) {
        let Some(machine) = self.machine.clone() else { return };
        let login = self.own_login.as_ref().unwrap_or(&self.bench.login).clone();
        self.jobs.spawn(async move {
            let started = Instant::now();
            let result = async {
                let ssh = machine.ssh(&login, limit).await?;
                ssh.run("true", b"", limit).await?;
                Ok::<_, VmError>(ssh)
            };
            let result = result.await.map_err(|e| match e {
                VmError::Port { .. } => NoLogin::Host,
                e => NoLogin::Guest(e.to_string()),
            });
            let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            Done::Login(result.map(|ssh| (ms, ssh)))
        });
    }

    pub(super) fn rekey(&mut self, limit: Duration) {
        let Some(machine) = self.machine.clone() else { return };
        let login = self.bench.login.clone();
        let rekey = self.bench.rekey;
        self.jobs.spawn(async move {
            if rekey {
                Done::Rekeyed(machine.rekey(&login, limit).await.map_err(|e| e.to_string()))
            } else {
                Done::Input(Input::Rekeyed(Ok(())))
            }
        });
    }

    pub(super) fn sysrq(&mut self, key: &'static str) {
        let Some(machine) = self.machine.clone() else { return };
        self.jobs.spawn(async move {
            machine.sysrq(key).await;
            Done::Input(Input::Tick)
        });
    }

    pub(super) fn cpus(&mut self) {
        let Some(machine) = self.machine.clone() else { return };
        self.jobs.spawn(async move {
            let looks = machine.qmp().cpus(ANSWER).await.map_err(|e| e.to_string());
            Done::Input(Input::Cpus(looks))
        });
    }

    pub(super) fn status(&mut self) {
        let Some(machine) = self.machine.clone() else { return };
        self.jobs.spawn(async move {
            let status = machine.status().await.map(|(word, _)| word).map_err(|e| e.to_string());
            Done::Input(Input::Status(status))
        });
    }

    /// The first connection is kept for commands; later ones only prove that a login works.
    pub(super) fn logged_in(&mut self, result: Result<(u64, Ssh), NoLogin>) -> Input {
        Input::Login(result.map(|(ms, ssh)| {
            if self.ssh.is_none() {
                self.ssh = Some(Arc::new(ssh));
            } else {
                self.jobs.spawn(async move {
                    ssh.close().await;
                    Done::Input(Input::Tick)
                });
            }
            ms
        }))
    }

    pub(super) fn over_ssh(&mut self, command: String, upload: Upload, limit: Duration) {
        let Some(ssh) = self.ssh.clone() else { return };
        self.jobs.spawn(async move {
            let input: &[u8] = match upload {
                Upload::Nothing => b"",
                Upload::GuestBinary => GUEST_BINARY,
            };
            Done::Input(Input::Ssh(ssh.run(&command, input, limit).await.map_err(|e| e.to_string())))
        });
    }

    fn tell(&self, id: u64, ask: Ask) {
        if let Some(machine) = &self.machine {
            machine.tell_probe(&ToGuest { id, ask });
        }
    }

    pub(super) async fn refresh(&self, id: u64) {
        let mut entropy = [0_u8; 64];
        // The host's own pool; it never blocks once the host is up.
        let read = async {
            let mut file = tokio::fs::File::open("/dev/urandom").await?;
            file.read_exact(&mut entropy).await
        };
        if let Err(error) = read.await {
            tracing::warn!(%error, "no fresh entropy for a fork");
        }
        let entropy = klpfarm_model::hex(&entropy);
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.tell(id, Ask::Resume { entropy, unix_ms: millis(clock) });
    }

    pub(super) fn upload(&self, id: u64, patch: usize, chunk: u64) {
        let data = &self.bench.patches[patch];
        let from = usize::try_from(chunk * CHUNK).unwrap_or(usize::MAX).min(data.len());
        let to = from.saturating_add(CHUNK as usize).min(data.len());
        let data = base64::engine::general_purpose::STANDARD.encode(&data[from..to]);
        let name = format!("{}.ko", self.bench.plan.patches[patch].name);
        self.tell(id, Ask::Write { name, data, append: chunk > 0 });
    }

    pub(super) fn collect(&mut self, what: Collect) {
        let Some(machine) = self.machine.clone() else { return };
        let (tx, rx) = mpsc::unbounded_channel();
        self.heard = Some(Forward::new(tx));
        let dir = self.dir();
        let about = self.about(&what);
        let plan = &self.bench.plan;
        let policy = Policy {
            gathering: plan.pipeline.evidence,
            memory_mib: self.bench.spec.memory_mib,
            scale: plan.scale,
            run_dir: self.bench.run_dir.clone(),
        };
        self.jobs.spawn(async move {
            Done::Input(Input::Collected(evidence::collect(&machine, &dir, &about, &policy, &what, rx).await))
        });
    }

    /// What the trial's evidence is of.
    fn about(&self, what: &Collect) -> About {
        let (plan, spec) = (&self.bench.plan, &self.bench.spec);
        let patches = self.trial.patches.iter().map(|i| &plan.patches[*i]);
        About {
            trial: self.trial.number,
            arm: self.trial.arm,
            farm: plan.farm.clone(),
            patches: patches
                .map(|p| format!("{} ({}, sha256 {})", p.name, p.file.display(), p.sha256))
                .collect(),
            modules: plan.names(&self.trial).map(str::to_owned).collect(),
            image: plan.checkpoint.clone().unwrap_or_else(|| plan.image.name.clone()),
            release: what.release.clone(),
            symbols: self.bench.symbols.clone(),
            machine: format!("{} CPUs, {} MiB, {}", spec.cpus, spec.memory_mib, plan.accel),
            findings: what.findings.clone(),
        }
    }
}
