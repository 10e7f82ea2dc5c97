//! SSH: the way in for people, a watched channel, and how a patch is applied.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, Handle};
use russh::keys::ssh_key::LineEnding;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{ChannelMsg, Disconnect};
use tokio::net::TcpStream;

use crate::VmError;

/// How to log in. Keys are ed25519: OpenSSH 7.2 (Ubuntu 16.04) and all later ones take them, and RSA is left out of this build.
#[derive(Debug, Clone)]
pub struct Login {
    /// User name; must be able to load modules.
    pub user: String,
    /// Private key.
    key: Arc<PrivateKey>,
    /// The guest's host key, pinned; without one any is taken (the connection never leaves this host, but another local
    /// process could answer on the port).
    host_key: Option<PublicKey>,
}

impl Login {
    /// Read the private key from `key`; `host_key` is a line as in `ssh_host_ed25519_key.pub`.
    ///
    /// # Errors
    /// If either is no key.
    pub fn new(user: &str, key: &Path, host_key: Option<&str>) -> Result<Self, VmError> {
        let key = russh::keys::load_secret_key(key, None)
            .map_err(|e| VmError::Ssh(format!("{}: {e}", key.display())))?;
        let host_key = host_key
            .map(|line| {
                PublicKey::from_openssh(line).map_err(|e| VmError::Ssh(format!("host key `{line}`: {e}")))
            })
            .transpose()?;
        Ok(Self { user: user.to_owned(), key: Arc::new(key), host_key })
    }

    /// The same user's, with other keys.
    pub(crate) fn with(&self, key: PrivateKey, host_key: PublicKey) -> Self {
        Self { user: self.user.clone(), key: Arc::new(key), host_key: Some(host_key) }
    }

    /// Write the private key to a new file for the owner alone, for [`Login::new`] to read.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn save(&self, key: &Path) -> Result<(), VmError> {
        self.key
            .write_openssh_file(key, LineEnding::LF)
            .map_err(|e| VmError::Ssh(format!("{}: {e}", key.display())))
    }

    /// The pinned host key, as a line of `ssh_host_ed25519_key.pub`.
    pub fn host_key(&self) -> Option<String> {
        self.host_key.as_ref()?.to_openssh().ok()
    }
}

/// Output of a command that is kept at most, in bytes: a guest that writes without end must not fill the farm's memory.
const MOST_OUTPUT: usize = 32 << 20;

/// How long the host may take to connect us to QEMU, which is at once: the guest has no part in it.
const CONNECT: Duration = Duration::from_secs(10);

/// A logged-in connection.
pub struct Ssh {
    handle: Handle<Pinned>,
}

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshOutput {
    /// Exit status; 128 + N for signal N.
    pub code: u32,
    /// Standard output and error together, in order of arrival.
    pub text: String,
}

struct Pinned(Option<PublicKey>);

impl client::Handler for Pinned {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(match (&self.0, key) {
            (None, _) => true,
            (Some(pinned), PublicKeyOrCertificate::PublicKey { key, .. }) => {
                key.key_data() == pinned.key_data()
            }
            (Some(_), _) => false,
        })
    }
}

impl Ssh {
    /// Connect to the loopback `port` and log in, at most `limit`.
    ///
    /// # Errors
    /// [`VmError::Port`] if the host does not connect; no answer, a wrong host key, a refused login.
    pub async fn connect(port: u16, login: &Login, limit: Duration) -> Result<Self, VmError> {
        let reach = TcpStream::connect(("127.0.0.1", port));
        let stream = tokio::time::timeout(CONNECT.min(limit), reach)
            .await
            .unwrap_or_else(|late| Err(late.into()))
            .map_err(|e| VmError::Port { port, reason: e.to_string() })?;
        // russh itself waits for ever for a peer that accepts and stays silent.
        tokio::time::timeout(limit, Self::login(stream, login))
            .await
            .map_err(|_| VmError::Ssh(format!("no login within {:.0} s", limit.as_secs_f64())))?
            .map_err(|e| VmError::Ssh(e.to_string()))
    }

    async fn login(stream: TcpStream, login: &Login) -> Result<Self, russh::Error> {
        stream.set_nodelay(true)?;
        let config = client::Config { inactivity_timeout: None, ..Default::default() };
        let pinned = Pinned(login.host_key.clone());
        let mut handle = client::connect_stream(Arc::new(config), stream, pinned).await?;
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&login.key), None);
        if handle.authenticate_publickey(&login.user, key).await?.success() {
            Ok(Self { handle })
        } else {
            Err(russh::Error::NotAuthenticated)
        }
    }

    /// Run a command line with `input` on its standard input, at most `limit`.
    ///
    /// # Errors
    /// A lost connection, no end within `limit`, or more than 32 MiB of output. An exit status other than 0 is no error.
    pub async fn run(&self, command: &str, input: &[u8], limit: Duration) -> Result<SshOutput, VmError> {
        tokio::time::timeout(limit, self.exec(command, input))
            .await
            .map_err(|_| {
                VmError::Ssh(format!("`{command}` did not end within {:.0} s", limit.as_secs_f64()))
            })?
            .map_err(|e| VmError::Ssh(format!("`{command}`: {e}")))
    }

    async fn exec(&self, command: &str, input: &[u8]) -> Result<SshOutput, russh::Error> {
        let mut channel = self.handle.channel_open_session().await?;
        channel.exec(true, command).await?;
        if !input.is_empty() {
            channel.data(input).await?;
        }
        channel.eof().await?;
        let mut text = Vec::new();
        let mut code = None;
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => {
                    text.extend_from_slice(&data);
                    if text.len() > MOST_OUTPUT {
                        let reason = format!("it wrote more than {} MiB", MOST_OUTPUT >> 20);
                        return Err(russh::Error::IO(std::io::Error::other(reason)));
                    }
                }
                ChannelMsg::ExitStatus { exit_status } => code = Some(exit_status),
                ChannelMsg::ExitSignal { .. } => code = Some(128),
                _ => {}
            }
        }
        // No status means that the connection was lost, never success.
        let code = code.ok_or(russh::Error::Disconnect)?;
        Ok(SshOutput { code, text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// Close the connection in order, without waiting for a guest that no longer answers.
    pub async fn close(self) {
        let bye = self.handle.disconnect(Disconnect::ByApplication, "", "");
        let _ = tokio::time::timeout(Duration::from_secs(1), bye).await;
    }
}
