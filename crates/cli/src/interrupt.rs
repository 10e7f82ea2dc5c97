//! Ctrl-C and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

/// Wait for the next SIGINT or SIGTERM.
pub(crate) async fn first() {
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
}
