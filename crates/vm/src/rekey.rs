//! SSH keys of a machine's own: what opens it and what it shows are then known to nobody who has the image or another machine.

use std::time::Duration;

use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};

use crate::{Login, Machine, VmError};

/// Takes from standard input: the line for `authorized_keys`, the public host key's line, the private host key. Each file is replaced
/// in one step. A server that reads its keys for each connection (`sshd -i`) has no pid file and needs no signal.
const TAKE_KEYS: &str = "set -e; umask 077; read -r user; read -r host; cd /etc/ssh; \
    cat > ssh_host_ed25519_key.new; printf '%s\\n' \"$host\" > ssh_host_ed25519_key.pub.new; chmod 644 ssh_host_ed25519_key.pub.new; \
    mkdir -p ~/.ssh; printf '%s\\n' \"$user\" > ~/.ssh/authorized_keys.new; \
    mv ssh_host_ed25519_key.new ssh_host_ed25519_key; mv ssh_host_ed25519_key.pub.new ssh_host_ed25519_key.pub; \
    mv ~/.ssh/authorized_keys.new ~/.ssh/authorized_keys; \
    [ ! -s /run/sshd.pid ] || kill -HUP \"$(cat /run/sshd.pid)\"";

/// Between two logins while the guest's SSH server takes its new keys.
const AGAIN: Duration = Duration::from_millis(100);

impl Machine {
    /// Give the guest a new user key and a new host key, in place of those it has, and log in with them. `login` must be root's; open
    /// connections stay. All of it takes at most `limit`.
    ///
    /// # Errors
    /// A login that fails, a guest that does not take the keys, or whose SSH server goes on with the old ones.
    pub async fn rekey(&self, login: &Login, limit: Duration) -> Result<Login, VmError> {
        let [user, host] = [new_key()?, new_key()?];
        let lines = format!(
            "{}\n{}\n{}",
            words(user.public_key().to_openssh())?,
            words(host.public_key().to_openssh())?,
            words(host.to_openssh(LineEnding::LF))?.as_str()
        );
        let new = login.with(user, host.public_key().clone());
        let taken = async {
            let ssh = self.ssh(login, limit).await?;
            let output = ssh.run(TAKE_KEYS, lines.as_bytes(), limit).await?;
            ssh.close().await;
            if output.code != 0 {
                return Err(VmError::Ssh(format!("the guest takes no new keys: {}", output.text.trim())));
            }
            let ssh = loop {
                match self.ssh(&new, limit).await {
                    Ok(ssh) => break ssh,
                    // Nothing tells when it has read them.
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
            };
            ssh.close().await;
            Ok(())
        };
        match tokio::time::timeout(limit, taken).await {
            Ok(Ok(())) => Ok(new),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                Err(VmError::Ssh(format!("no login with new keys within {:.0} s", limit.as_secs_f64())))
            }
        }
    }
}

fn new_key() -> Result<PrivateKey, VmError> {
    words(PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519))
}

fn words<T>(result: Result<T, russh::keys::ssh_key::Error>) -> Result<T, VmError> {
    result.map_err(|e| VmError::Ssh(format!("a new key: {e}")))
}
