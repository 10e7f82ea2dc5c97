//! Ctrl-C, SIGTERM, and a terminal that goes away.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Wait for the next SIGINT, SIGTERM or SIGHUP.
pub(crate) async fn first() {
    let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [Ok(mut int), Ok(mut term), Ok(mut hup)] = signals else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
        _ = hup.recv() => {}
    }
}

/// Listens as long as a command runs: once a signal has been caught, it no longer ends the process by itself.
pub(crate) struct Interrupts {
    /// Cancelled by the first signal: all machines are to be ended in order.
    pub(crate) first: CancellationToken,
    second: CancellationToken,
}

impl Interrupts {
    pub(crate) fn listen() -> Self {
        let interrupts = Self { first: CancellationToken::new(), second: CancellationToken::new() };
        let (one, two) = (interrupts.first.clone(), interrupts.second.clone());
        // Ends with the process: it owns nothing.
        tokio::spawn(async move {
            first().await;
            one.cancel();
            tell!("klpfarm: interrupted: shutting down all machines; interrupt again to kill them");
            first().await;
            two.cancel();
        });
        interrupts
    }

    /// Do `work`, which watches for the first signal itself; `None` after the second one, which drops it and so kills its machines.
    pub(crate) async fn until_second<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            result = work => Some(result),
            () = self.second.cancelled() => None,
        }
    }

    /// Do `work`, which can be dropped at any time; `None` after the first signal.
    pub(crate) async fn until_first<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            result = work => Some(result),
            () = self.first.cancelled() => None,
        }
    }
}
