//! Ctrl-C, SIGTERM, and a terminal that goes away.

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
