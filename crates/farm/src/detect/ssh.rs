//! `ssh-dead`: no fresh login for the limit `ssh`.

use std::time::Duration;

use klpfarm_model::{Body, ObservedKind, Source};

use super::health::{Health, is_silent};

impl Health {
    /// A fresh login has been begun.
    pub(crate) fn login_begins(&mut self, now: Duration) {
        self.login_since = Some(now);
    }

    /// A fresh login succeeded or failed.
    pub(crate) fn login(&mut self, now: Duration, result: &Result<u64, String>) {
        let since = self.login_since.take();
        match result {
            Ok(_) => {
                self.login_good = since;
                self.ssh_at = Some(now);
                self.ssh_error.clear();
                self.stalls.login(now);
            }
            Err(error) => self.ssh_error.clone_from(error),
        }
    }

    /// Whether a login that began since then has succeeded.
    pub(crate) fn logged_in_since(&self, then: Duration) -> bool {
        self.login_good.is_some_and(|since| since >= then)
    }

    /// What the lack of logins tells.
    pub(super) fn ssh_silence(&mut self, now: Duration) -> Vec<Body> {
        if !is_silent(now, self.ssh_at, self.ssh) {
            return Vec::new();
        }
        let evidence =
            format!("no login for {:.0} s; the last attempt: {}", self.ssh.as_secs_f64(), self.ssh_error);
        self.find(now, ObservedKind::SshDead, Source::Ssh, "no SSH login succeeds".into(), evidence)
    }
}
