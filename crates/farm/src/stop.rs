//! What ends a run before it is over.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Ends a run early: its user does, or the host, which has run short of something. Clones are one and the same.
#[derive(Debug, Clone)]
pub struct Stop {
    user: CancellationToken,
    host: CancellationToken,
    why: Arc<OnceLock<String>>,
}

impl From<CancellationToken> for Stop {
    /// The user's part is this token.
    fn from(user: CancellationToken) -> Self {
        Self { user, host: CancellationToken::new(), why: Arc::default() }
    }
}

impl Stop {
    /// The host has run short: the run ends in order, as with a budget that is used up, and the journal says `why`. Only the first
    /// reason counts.
    pub fn end(&self, why: String) {
        let _ = self.why.set(why);
        self.host.cancel();
    }

    /// Whether the user ended it.
    pub(crate) fn by_user(&self) -> bool {
        self.user.is_cancelled()
    }

    /// Wait for the user.
    pub(crate) async fn user(&self) {
        self.user.cancelled().await;
    }

    /// Wait for the host's shortage; what it is.
    pub(crate) async fn host(&self) -> String {
        self.host.cancelled().await;
        self.why.get().cloned().unwrap_or_default()
    }
}
