//! A run: trials, so many at once, their events numbered and handed to one sink.

use std::time::Instant;

use klpfarm_model::{Body, Event, Scope};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::drive::{Bench, drive};

/// Takes each event, in order, before it is acted on.
pub trait Sink {
    /// Take an event.
    ///
    /// # Errors
    /// If it can't be kept (disk full): the run ends then.
    fn event(&mut self, event: &Event) -> std::io::Result<()>;
}

impl<F: FnMut(&Event) -> std::io::Result<()>> Sink for F {
    fn event(&mut self, event: &Event) -> std::io::Result<()> {
        self(event)
    }
}

/// Run all trials of the plan, `plan.jobs` at once, until done or until `cancel`. All machines are gone when it returns.
///
/// # Errors
/// If the sink can't keep an event; the machines are ended first.
pub async fn run(
    bench: &Bench,
    time: String,
    qemu: String,
    sink: &mut dyn Sink,
    cancel: CancellationToken,
) -> std::io::Result<Vec<Event>> {
    let mut log = Log { started: Instant::now(), events: Vec::new(), sink };
    let plan = &bench.plan;
    log.add(None, Body::RunStarted { time, plan: plan.hash(), accel: plan.accel, qemu })?;
    let (tx, mut rx) = mpsc::channel::<(Scope, Body)>(256);
    let mut waiting = plan.trials.iter().copied();
    let mut running = JoinSet::new();
    let children = cancel.child_token();
    let mut failed = None;
    loop {
        while failed.is_none() && !children.is_cancelled() && running.len() < plan.jobs.max(1) as usize {
            let Some(trial) = waiting.next() else { break };
            let (bench, report, cancel) = (bench.clone(), tx.clone(), children.clone());
            running.spawn(async move { drive(&bench, trial, report, cancel).await });
        }
        tokio::select! {
            biased;
            Some((scope, body)) = rx.recv() => {
                if failed.is_none() && let Err(error) = log.add(Some(scope), body) {
                    failed = Some(error);
                    children.cancel();
                }
            }
            ended = running.join_next() => match ended {
                Some(_) => {}
                None => break,
            },
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    log.add(None, Body::RunEnded { interrupted: cancel.is_cancelled() })?;
    Ok(log.events)
}

struct Log<'a> {
    started: Instant,
    events: Vec<Event>,
    sink: &'a mut dyn Sink,
}

impl Log<'_> {
    fn add(&mut self, scope: Option<Scope>, body: Body) -> std::io::Result<()> {
        let event = Event {
            seq: self.events.len() as u64 + 1,
            at_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            scope,
            body,
        };
        self.sink.event(&event)?;
        self.events.push(event);
        Ok(())
    }
}
