//! Ctrl-C, SIGTERM, and a terminal that goes away.

use klpfarm_engine::Interrupts;
use tokio::signal::unix::{SignalKind, signal};

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

/// Listen as long as the command runs: once a signal has been caught, it no longer ends the process by itself.
pub(crate) fn listen() -> Interrupts {
    let interrupts = Interrupts::default();
    let Interrupts { first: one, second: two } = interrupts.clone();
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
