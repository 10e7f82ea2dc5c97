//! What comes out of the machine, and what time alone brings.

use std::time::Duration;

use klpfarm_model::{Body, ObservedKind, TrialEnd};
use klpfarm_stress::wire::{FromGuest, UNAVAILABLE};
use klpfarm_vm::{Output, QmpEvent};

use super::{
    Action, Collect, Collected, Dispatcher, ENDING, LOGIN_EVERY, Loss, QUIET, RATES_EVERY, SSH_PORT, Step,
};
use crate::detect::blame;
use crate::detect::cpus::Circle;
use crate::guest::PatchState;

/// Operations that each thread must have finished with the patch in force before a short trial ends: the first may have begun before.
const OPERATIONS: u64 = 3;

impl Dispatcher {
    pub(super) fn output(&mut self, now: Duration, output: Output) {
        match output {
            Output::Console(bytes) => {
                self.console_at = Some(now);
                self.console.push(now, &bytes);
                self.count_lines(&bytes);
                let signals = self.classifier.push(&bytes);
                self.signals(now, signals);
                self.look_on(now);
            }
            Output::Probe(message) => self.probe(now, message),
            Output::Qmp(QmpEvent::IoError { reason }) => {
                self.lost_machine(format!(
                    "the machine's disk failed on the host ({reason}): is the host's disk full?"
                ));
            }
            Output::Qmp(event) => {
                // While evidence is gathered it is the farm that stops the machine, and lets it run again.
                let bodies = self.health.qmp(now, &event);
                self.report(now, bodies);
                match event {
                    QmpEvent::Stopped => self.stopped(now),
                    QmpEvent::Resumed => self.resumed(now),
                    _ => {}
                }
            }
            Output::Closed(channel) => self.lost(now, channel),
            Output::Exited { status, stderr } => {
                let signals = self.classifier.finish();
                self.signals(now, signals);
                // After a finding the guest's end is no news; before one, nobody but the host can have ended QEMU.
                if matches!(self.step, Step::Listen(_) | Step::Collecting) {
                    self.end(TrialEnd::Stopped);
                } else {
                    let phase = self.phase;
                    let said =
                        if stderr.is_empty() { stderr } else { format!(" {stderr} [the trial's qemu.log]") };
                    self.farm_error(format!("QEMU ended by itself in phase {phase} ({status}){said}"));
                }
            }
        }
    }

    pub(super) fn signals(&mut self, now: Duration, signals: Vec<klpfarm_kmsg::Signal>) {
        for signal in signals {
            // A report is complete only some time after its first line.
            let before = self.before.is_some_and(|b| signal.line() <= b.line);
            let circle = match &signal {
                klpfarm_kmsg::Signal::Report(report) if !before => self.circle(report),
                _ => None,
            };
            let bodies = self.health.console(now, signal, circle.as_ref());
            self.report_of(now, bodies, before);
        }
    }

    /// Where the CPU is that stalls RCU, by its registers: of a CPU that does not tell its own stack, a 4.4 kernel shows nothing but frames that the
    /// unwinder doubts.
    fn circle(&self, report: &klpfarm_kmsg::Report) -> Option<Circle> {
        let patches: Vec<String> = self.plan.names(&self.trial).map(str::to_owned).collect();
        let stall = report.kind == klpfarm_kmsg::Kind::RcuStall;
        if !stall || blame::in_report(&report.text, &patches) {
            return None;
        }
        let cpus = blame::stalling_cpus(&report.text);
        cpus.into_iter().find_map(|cpu| self.cpus.goes_round_in(cpu, &patches))
    }

    pub(super) fn probe(&mut self, now: Duration, message: FromGuest) {
        self.measure.take(&message);
        self.snapshot.take(now, &message);
        let bodies = self.health.probe(now, &message, &self.measure);
        self.report(now, bodies);
        match message {
            FromGuest::Hello { release, taint, .. } if self.step == Step::Hello => {
                let forked = !self.purpose.boots();
                let (fork_ms, ssh_ms) =
                    (forked.then_some(self.started_ms), (!forked).then_some(self.started_ms));
                self.emit(Body::MachineReady { release: release.clone(), ssh_ms, fork_ms, taint });
                self.ready(now, &release);
            }
            FromGuest::Reply { id, code, out } => self.reply(now, id, code, &out),
            _ => {}
        }
    }

    pub(super) fn ready(&mut self, now: Duration, release: &str) {
        release.clone_into(&mut self.release);
        for patch in &self.trial.patches {
            if let Err(error) = self.plan.patches[*patch].check_release(&self.plan.image.name, release) {
                self.farm_error(error.to_string());
                return;
            }
        }
        if self.purpose.boots() { self.next_op(now) } else { self.refresh(now) }
    }

    pub(super) fn reply(&mut self, now: Duration, id: u64, code: i32, out: &str) {
        if self.reply_beside(id, code, out) {
            return;
        }
        let of_load = self.load_ids.remove(&id);
        match self.step {
            Step::StartLoad(_) | Step::StopLoad(_) if of_load.is_none() => {}
            // A script says so before it has done anything; on a machine with the patch the same script has run before.
            Step::StartLoad(n) if code == UNAVAILABLE && self.applied.is_none() => {
                let (workload, reason) = (of_load.unwrap_or_default(), out.trim().to_owned());
                self.emit(Body::WorkloadUnavailable { workload, reason });
                if n == 1 { self.next_op(now) } else { self.step = Step::StartLoad(n - 1) }
            }
            Step::StartLoad(_) if code != 0 => {
                let message = format!("a workload could not be started: {}", out.trim());
                // With the patch in force that is the patch's doing: the same load started before.
                if self.applied.is_some() {
                    self.find(
                        now,
                        ObservedKind::WorkloadDied,
                        "workloads can't be started with the patch in force",
                        message,
                    );
                } else {
                    self.farm_error(message);
                }
            }
            Step::StopLoad(_) if code != 0 => {
                self.farm_error(format!("a workload could not be stopped: {}", out.trim()));
            }
            Step::StartLoad(1) | Step::StopLoad(1) => self.next_op(now),
            Step::StartLoad(n) => self.step = Step::StartLoad(n - 1),
            Step::StopLoad(n) => self.step = Step::StopLoad(n - 1),
            _ if id != self.awaited => {}
            Step::Refresh | Step::Upload(..) if code != 0 => {
                self.farm_error(format!("the probe could not prepare the machine: {}", out.trim()));
            }
            Step::Refresh => self.next_op(now),
            Step::Modules => self.modules_loaded(now, code, out),
            Step::Upload(patch, chunk) => self.upload(now, patch, chunk + 1),
            Step::Vitals => self.vitals(now, out),
            Step::Load => self.loaded(now, code, out),
            Step::Transition => self.in_transition(now, PatchState::read(code, out)),
            Step::InForce(replaced) => self.still_in_force(now, replaced, PatchState::read(code, out)),
            Step::Disable => self.disabled(now, code, out),
            Step::Untransition => self.in_untransition(now, PatchState::read(code, out)),
            Step::Unload => self.unloaded(now, code, out),
            Step::Count => self.counted(now, out),
            Step::Closing { .. } | Step::Look { .. } => self.last_taint(now, code, out),
            _ => {}
        }
    }

    pub(super) fn collected(&mut self, collected: Collected) {
        for waits in collected.waits {
            self.emit(Body::Waits(Box::new(waits)));
        }
        for (file, what) in collected.files {
            self.emit(Body::Evidence { file, what });
        }
        if self.step == Step::Collecting {
            self.end(TrialEnd::Stopped);
        }
    }

    pub(super) fn tick(&mut self, now: Duration) {
        let late = self.late.tick(now);
        self.forgive(late);
        if let Some(text) = self.late.note() {
            self.emit(Body::Note { text });
        }
        if self.console_at.is_some_and(|at| now.saturating_sub(at) >= QUIET) {
            self.console_at = None;
            self.flush(now);
        }
        let bodies = self.health.tick(now, &self.measure);
        self.report(now, bodies);
        self.watch_channels(now);
        if self.stands_still(now) {
            return;
        }
        self.routine(now);
        self.watch_beside(now);
        self.step_tick(now);
    }

    /// The machine stood still for so long, or the farm did not look at it: nothing that seems late is the guest's fault.
    pub(super) fn forgive(&mut self, lost: Duration) {
        if !lost.is_zero() {
            self.health.forgive(lost);
            self.console.forgive(lost);
            self.cpus.forgive(lost);
            self.deadline += lost;
        }
    }

    /// A channel that closed never comes back; a connection that the host refused may.
    pub(super) fn lost(&mut self, now: Duration, channel: &'static str) {
        self.lost.entry(channel).or_insert(Loss { since: now, again: now }).again = now;
    }

    /// QEMU closes its channels when it ends, and its end is told as well. A QEMU that lives on without one can't be watched any more.
    fn watch_channels(&mut self, now: Duration) {
        let lasts = |(channel, loss): &(&&'static str, &Loss)| {
            // Between two attempts it is not known.
            let until = if **channel == SSH_PORT { loss.again } else { now };
            until.saturating_sub(loss.since) >= ENDING
        };
        let deaf = self.lost.iter().find(lasts).map(|(channel, _)| *channel);
        if let Some(channel) = deaf
            && !matches!(self.step, Step::Listen(_) | Step::Collecting | Step::Over)
        {
            self.farm_error(format!(
                "the connection to {channel} was lost in phase {}, and QEMU lives on",
                self.phase
            ));
        }
    }

    /// Fresh logins and rates, on schedule.
    pub(super) fn routine(&mut self, now: Duration) {
        let soon = self.step == Step::Login || self.lost.contains_key(SSH_PORT);
        let every = if soon { Duration::from_secs(1) } else { LOGIN_EVERY };
        let due = self.login_at.is_some_and(|at| now.saturating_sub(at) >= every);
        // While keys change, a login fails for no fault of the guest's.
        if due && !matches!(self.step, Step::PowerOn | Step::Rekey | Step::Over) {
            self.try_login(now);
        }
        if self.load_runs && now.saturating_sub(self.rates_at) >= RATES_EVERY {
            self.rates_at = now;
            let rates = self.measure.rates(now);
            self.emit(Body::Progress { rates, ssh_ms: self.ssh_ms });
        }
    }

    pub(super) fn step_tick(&mut self, now: Duration) {
        let late = now >= self.deadline;
        match self.step {
            Step::Run(until) if now >= until => self.run_over(now, until),
            Step::Live { since, until } => self.look_alive(now, since, until),
            Step::Closing { since, taint } => self.closing(now, since, taint),
            Step::Look { .. } => self.look_on(now),
            // A stall in the patch's code may yet turn out to be a hang.
            Step::Listen(until) if now >= until && !self.health.undecided(now) => self.collect(now),
            Step::Collecting if late => self.end(TrialEnd::Stopped),
            Step::Hello if late => self.farm_error(
                "the probe did not answer: neither on the virtio port nor on the second UART".into(),
            ),
            Step::Hello if now >= self.poll_at => self.hello(now),
            Step::Sysrq => self.await_sysrq(now, late),
            Step::Refresh | Step::Modules | Step::Upload(..) | Step::Vitals if late => {
                self.farm_error(format!("the probe did not answer in phase {}", self.phase));
            }
            Step::Login if late => {
                let seconds = now.as_secs();
                self.farm_error(format!("no SSH login within {seconds} s of power-on; see console.log"));
            }
            Step::Rekey if late => {
                self.farm_error("giving the machine SSH keys of its own did not end".into());
            }
            Step::Prepare(_) if late => self.farm_error("preparing the guest did not end".into()),
            Step::StartLoad(_) | Step::StopLoad(_) if late => self.load_late(now),
            Step::Load if late => {
                self.find(
                    now,
                    ObservedKind::LoadStuck,
                    "loading the patch does not end",
                    "no answer of the probe".into(),
                );
            }
            Step::Transition if late => self.transition_late(now),
            Step::Untransition if late => {
                self.stragglers = Some(0);
                self.find(
                    now,
                    ObservedKind::RevertStalled,
                    "the transition back does not end",
                    "some tasks still run the new code".into(),
                );
            }
            Step::InForce(_) if late => {
                let evidence = "asked for again and again, it did not come in time".to_owned();
                let bodies = self.health.unable(now, "the state of the patch", evidence);
                self.report(now, bodies);
            }
            Step::Transition | Step::Untransition | Step::InForce(_) if now >= self.poll_at => {
                self.ask_state(now);
            }
            Step::Unload if late => {
                let evidence = "rmmod has not succeeded, and does not end now".to_owned();
                self.find(now, ObservedKind::RevertRefused, "the disabled patch can't be unloaded", evidence);
            }
            Step::Unload if now >= self.poll_at => self.exec_unload(now),
            Step::Disable if late => {
                self.find(
                    now,
                    ObservedKind::RevertStalled,
                    "disabling the patch does not end",
                    "no answer of the probe".into(),
                );
            }
            Step::Count if late => self.count_late(now),
            _ => {}
        }
    }

    /// The time of a phase under load is over.
    fn run_over(&mut self, now: Duration, until: Duration) {
        if !self.somebody_hangs(now, until, Duration::ZERO) && matches!(self.step, Step::Run(_)) {
            self.phase_done(now);
        }
    }

    /// Whether everything has been seen to make progress: every thread finishes something after the time in which the patch was to be observed, and
    /// has finished several operations since it came into force; a login that began since then succeeded; and what [`Self::somebody_hangs`]
    /// asks for.
    fn look_alive(&mut self, now: Duration, since: Duration, until: Duration) {
        let logged_in = self.health.logged_in_since(since);
        let again = self.login_at.is_none_or(|at| now.saturating_sub(at) >= Duration::from_secs(1));
        if !logged_in && again {
            self.try_login(now);
        }
        if now < until || self.somebody_hangs(now, until, Duration::ZERO) {
            return;
        }
        // Whoever is slow, but does not hang, is not waited for longer than one who does.
        let waits = !logged_in || self.health.owes_operations(OPERATIONS, &self.measure);
        let patient = now < until + self.health.patience();
        if matches!(self.step, Step::Live { .. }) && !(waits && patient) {
            self.phase_done(now);
        }
    }

    pub(super) fn load_late(&mut self, now: Duration) {
        if self.applied.is_some() {
            self.find(
                now,
                ObservedKind::WorkloadDied,
                "workloads can't be started with the patch in force",
                "no answer of the probe".into(),
            );
        } else {
            self.farm_error("the workloads did not start or stop in time".into());
        }
    }

    pub(super) fn collect(&mut self, now: Duration) {
        self.flush(now);
        let measured = self.measure.summary(now);
        if self.load_runs {
            self.emit(Body::Measured(measured));
        }
        self.step = Step::Collecting;
        // Half of what counts as a stall is no proof, but it tells where a task is that others wait for.
        let least = self.plan.scaled(self.plan.pipeline.limits.stall) / 2;
        if let Some(waits) = self.snapshot.waits(least, self.applied) {
            self.emit(Body::Waits(Box::new(waits)));
        }
        let limit = self.scaled(self.plan.pipeline.evidence.seconds.into());
        self.deadline = now + limit + Duration::from_secs(10);
        self.out.push_back(Action::Collect(Collect {
            blocked: self.health.last_blocked().to_owned(),
            counters: self.snapshot.counters(now),
            concerned: self.snapshot.concerned(),
            unreadable: self.snapshot.unreadable(),
            findings: self.findings.clone(),
            release: self.release.clone(),
            probe: self.health.probe_alive(now),
            stragglers: self.stragglers,
            limit,
        }));
    }
}
