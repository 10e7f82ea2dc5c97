//! How work is ended early by whoever asked for it.

use tokio_util::sync::CancellationToken;

/// Ends work: the first token in order, the second one at once. Whoever asks cancels them (the command line at signals).
#[derive(Debug, Clone, Default)]
pub struct Interrupts {
    /// All machines are to be ended in order, and what there is so far is kept.
    pub first: CancellationToken,
    /// Nothing is waited for any more: machines are killed.
    pub second: CancellationToken,
}

impl Interrupts {
    /// Do `work`, which watches for the first token itself; `None` after the second one, which drops it and so kills its machines.
    pub async fn until_second<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            result = work => Some(result),
            () = self.second.cancelled() => None,
        }
    }

    /// Do `work`, which can be dropped at any time; `None` after the first token.
    pub async fn until_first<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            result = work => Some(result),
            () = self.first.cancelled() => None,
        }
    }
}
