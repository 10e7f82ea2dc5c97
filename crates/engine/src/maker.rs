//! Making a checkpoint: a machine is aged and what it leaves is published.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use klpfarm_farm::{AgeError, Aged, Bench};
use klpfarm_image::{Begun, CHECKPOINT_KEY, Checkpoint, CheckpointStore, Draft, Image, Key, Made};
use klpfarm_model::{Event, Plan};
use klpfarm_vm::{Files, Origin, RunGroup};

use crate::checkpoint::verified;
use crate::machine::{bench, scratch};
use crate::{Error, Interrupts, Note, Remedy, Result, Watcher, disk};

/// What a checkpoint is made with.
pub(crate) struct Maker {
    pub(crate) plan: Arc<Plan>,
    pub(crate) image: Image,
    pub(crate) home: PathBuf,
    /// To go on from this checkpoint for so long, instead of booting.
    pub(crate) parent: Option<(Checkpoint, Duration)>,
    /// The disk it may not use up.
    pub(crate) limits: disk::Limits,
}

impl Maker {
    /// The checkpoint with this key, and how many milliseconds it took if it had to be made.
    pub(crate) async fn ensure(
        &self,
        store: &CheckpointStore,
        key: &Key,
        interrupts: &Interrupts,
        watcher: &mut dyn Watcher,
    ) -> Result<(Checkpoint, Option<u64>)> {
        let mut waiting = |_: klpfarm_image::Progress| {
            let id = key.id();
            watcher.note(Note::new(format!("waiting for another klpfarm that is making checkpoint {id}")));
        };
        let begun = interrupts
            .until_first(store.begin(key, &mut waiting))
            .await
            .ok_or_else(|| Error::interrupted("interrupted"))?;
        match begun.map_err(Error::farm)? {
            Begun::There(checkpoint) => Ok((*checkpoint, None)),
            Begun::Draft(draft) => {
                let started = Instant::now();
                let checkpoint = self.make(*draft, key, interrupts, watcher).await?;
                Ok((checkpoint, Some(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))))
            }
        }
    }

    async fn make(
        &self,
        draft: Draft,
        key: &Key,
        interrupts: &Interrupts,
        watcher: &mut dyn Watcher,
    ) -> Result<Checkpoint> {
        let started = Instant::now();
        let files = Files::in_dir(draft.dir());
        let (origin, more) = match &self.parent {
            Some((parent, more)) => {
                // Nobody may remove it while it is copied.
                let _held = parent.hold().map_err(Error::farm)?;
                verified(parent).await?;
                parent.copy_into(&draft).map_err(Error::farm)?;
                let text = format!("aging checkpoint {} for another {} s", parent.id(), more.as_secs());
                watcher.note(Note::new(text));
                (Origin::Continue(files), Some(*more))
            }
            None => {
                let uptime = self.plan.pipeline.aging.uptime.as_secs();
                watcher.note(Note::new(format!(
                    "no checkpoint of this machine yet: aging one to an uptime of {uptime} s ({})",
                    key.id()
                )));
                (Origin::Template(files), None)
            }
        };
        let _held = self.image.hold().map_err(Error::farm)?;
        let scratch = scratch(&self.home)?;
        let parent = self.parent.as_ref().map(|(parent, _)| parent);
        let mut bench = bench(&self.plan, &self.image, parent, &[], origin, scratch.path(), scratch.path())?;
        bench.rekey = self.image.has_own_keys();
        // Alone, but bounded like the machines of a run.
        let spec = &mut bench.spec;
        let group = RunGroup::create(spec.memory_mib, spec.cpus, spec.accel, 1).await;
        spec.group = group.group();
        let aged = self.age(&bench, more, interrupts, watcher).await?;
        let console = console_of(&bench);
        std::fs::copy(&console, draft.dir().join("console.log"))
            .map_err(|e| Error::farm(e).about(console.display()))?;
        if let Some(login) = &aged.login {
            login.save(&draft.dir().join(CHECKPOINT_KEY)).map_err(Error::farm)?;
        }
        let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        draft.publish(self.made(aged, took)).map_err(Error::farm)
    }

    /// Age the machine, as long as nobody ends it and there is disk.
    async fn age(
        &self,
        bench: &Bench,
        more: Option<Duration>,
        interrupts: &Interrupts,
        watcher: &mut dyn Watcher,
    ) -> Result<Aged> {
        watcher.begins(&self.plan, &[]);
        let mut sink = |event: &Event| {
            watcher.event(event);
            Ok(())
        };
        let stop = interrupts.first.child_token();
        let full = OnceLock::new();
        let watching = async {
            let _ = full.set(self.limits.low(&self.home).await);
            stop.cancel();
            std::future::pending().await
        };
        let aging = klpfarm_farm::age(bench, more, &mut sink, stop.clone());
        let aged = tokio::select! {
            aged = interrupts.until_second(aging) => aged,
            never = watching => never,
        };
        watcher.ends();
        let aged = aged.ok_or_else(|| Error::interrupted("interrupted"))?;
        aged.map_err(|error| match full.get() {
            Some(why) => Error::farm(format!("aging was stopped before the disk is full: {why}"))
                .with(Remedy::FreeDisk),
            None => self.failed(error, &console_of(bench)),
        })
    }

    fn made(&self, aged: Aged, took_ms: u64) -> Made {
        let json = |vitals| serde_json::to_value(vitals).unwrap_or_default();
        // A descendant's fresh machine is its first ancestor's.
        let fresh = match (&self.parent, aged.fresh) {
            (Some((parent, _)), _) => parent.manifest.made.fresh.clone(),
            (None, fresh) => json(fresh.unwrap_or_default()),
        };
        let blind = match &self.parent {
            Some((parent, _)) => parent.manifest.made.blind.clone(),
            None => aged.blind,
        };
        let unavailable = match &self.parent {
            Some((parent, _)) => parent.manifest.made.unavailable.clone(),
            None => aged.unavailable,
        };
        Made {
            blind,
            unavailable,
            host_key: aged.login.and_then(|login| login.host_key()),
            release: aged.release,
            took_ms,
            fresh,
            uptime_s: aged.reached.uptime_s,
            reached: serde_json::to_value(aged.reached).unwrap_or_default(),
        }
    }

    /// The console is kept: nobody can see otherwise what went wrong.
    fn failed(&self, error: AgeError, console: &Path) -> Error {
        if matches!(error, AgeError::Interrupted) {
            return Error::interrupted("interrupted while aging");
        }
        let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ-aging.log").to_string();
        let kept = self.home.join("runs").join(stamp);
        let copy =
            std::fs::create_dir_all(self.home.join("runs")).and_then(|()| std::fs::copy(console, &kept));
        match copy {
            Ok(_) => Error::farm(format!("{error}; its console: {}", kept.display())),
            Err(_) => Error::farm(error),
        }
    }
}

/// The console of the machine that is aged.
fn console_of(bench: &Bench) -> PathBuf {
    bench.run_dir.join(Plan::trial_dir(0)).join("console.log")
}
