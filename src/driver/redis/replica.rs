//! The replication connection: we are a replica that only wants a dump.
//!
//! Opened and authenticated before the freeze, up to just before `PSYNC`, so that inside it one round trip is left.
//! With `rdb-only` the node collects no output for us while we read, and a slow reader only slows the child that
//! writes the dump; where the server does not know it, the connection is closed by us right after the dump, and a
//! transfer slower than `client-output-buffer-limit replica` allows is cut by the node and reported as broken.
//! `REPLCONF ACK` is only wanted of replicas that stay, and never sent.

use std::os::fd::AsRawFd;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

use crate::driver::DriverError;

use super::checks::Setting;
use super::control::{login_refused, permission};
use super::options::RedisOptions;
use super::tls;
use super::transfer::Transfer;

/// A socket, encrypted or not.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Socket for S {}

/// The longest line that is read as an answer.
const LINE_BYTES_MAX: usize = 4096;

/// Of a segment: what fits into a frame of Ethernet.
const SEGMENT_BYTES: libc::c_int = 1460;

/// A replication connection before its dump.
pub(super) struct Replica {
    socket: Box<dyn Socket>,
    buffer: Vec<u8>,
    node: String,
    user: String,
    /// Whether the node closes the connection by itself after the dump.
    pub(super) rdb_only: bool,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("node", &self.node).field("rdb_only", &self.rdb_only).finish_non_exhaustive()
    }
}

/// The answer to `PSYNC ? -1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resynchronisation {
    pub(super) replication_id: String,
    pub(super) offset: u64,
}

impl Replica {
    /// Connects, authenticates, announces what we understand, and tries whether `PSYNC` is permitted without beginning
    /// one.
    pub(super) async fn open(options: &RedisOptions, diskless: bool) -> Result<Self, DriverError> {
        let limit = options.connect_limit * 2;
        match timeout(limit, Self::open_unbounded(options, diskless)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(DriverError::DeadlineExceeded {
                node: options.node.to_string(),
                what: "the replication connection".to_owned(),
                limit,
            }),
        }
    }

    async fn open_unbounded(options: &RedisOptions, diskless: bool) -> Result<Self, DriverError> {
        let endpoint = options.endpoint()?;
        let node = options.node.to_string();
        let unreachable =
            |reason: String| DriverError::Unreachable { node: node.clone(), reason: format!("{endpoint}: {reason}") };
        let socket = connect(&endpoint.host, endpoint.port).await.map_err(|error| unreachable(error.to_string()))?;
        socket.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
        let socket: Box<dyn Socket> = if endpoint.tls {
            Box::new(tls::connect(socket, &endpoint.host, options.ca_file.as_deref()).await.map_err(unreachable)?)
        } else {
            Box::new(socket)
        };
        let user = options.user.clone().unwrap_or_else(|| "default".to_owned());
        let mut replica = Self { socket, buffer: Vec::new(), node, user, rdb_only: false };
        if let Some(password) = &options.password {
            let answer = match &options.user {
                Some(user) => replica.ask(&["AUTH", user, password.reveal()]).await?,
                None => replica.ask(&["AUTH", password.reveal()]).await?,
            };
            if let Some(error) = answer.strip_prefix('-') {
                let reason = error.split(' ').next().unwrap_or("refused");
                return Err(DriverError::Denied { node: replica.node, reason: login_refused(&replica.user, reason) });
            }
        }
        // A name is only for people who look at `CLIENT LIST`.
        replica.ask(&["CLIENT", "SETNAME", super::NAME_IDLE]).await?;
        let capabilities: &[&str] =
            if diskless { &["REPLCONF", "capa", "eof", "capa", "psync2"] } else { &["REPLCONF", "capa", "psync2"] };
        let answer = replica.ask(capabilities).await?;
        replica.expect_permitted("REPLCONF", &answer)?;
        replica.rdb_only = replica.ask(&["REPLCONF", "rdb-only", "1"]).await? == "+OK";
        // A failover request that names no stream of any server is refused and begins nothing, unless the ACL refuses first.
        let answer = replica.ask(&["PSYNC", "?", "-1", "FAILOVER"]).await?;
        replica.expect_permitted("PSYNC", &answer)?;
        Ok(replica)
    }

    fn expect_permitted(&self, what: &str, answer: &str) -> Result<(), DriverError> {
        if answer.starts_with("-NOPERM") {
            return Err(DriverError::Denied { node: self.node.clone(), reason: permission(&self.user, what) });
        }
        if answer.starts_with("-NOAUTH") {
            return Err(DriverError::Denied { node: self.node.clone(), reason: login_refused(&self.user, "NOAUTH") });
        }
        Ok(())
    }

    /// Begins the full synchronisation and returns once the fork is done: `+FULLRESYNC` is its answer.
    ///
    /// `settings` are changed for the fork alone. All of it is one write of a few hundred bytes: the node gets the
    /// commands that put them back together with those that change them, or neither. None of them is answered, because
    /// a connection that has an answer pending may not become a replica.
    pub(super) async fn synchronise(&mut self, settings: &[Setting], limit: Duration) -> Result<Resynchronisation, DriverError> {
        let set = |name: &str, value: &str| [pack(&["CLIENT", "REPLY", "SKIP"]), pack(&["CONFIG", "SET", name, value])].concat();
        let mut commands: Vec<u8> = settings.iter().flat_map(|(name, meanwhile, _)| set(name, meanwhile)).collect();
        commands.extend(pack(&["PSYNC", "?", "-1"]));
        commands.extend(settings.iter().flat_map(|(name, _, before)| set(name, before)));
        let answer = match timeout(limit, self.exchange(&commands)).await {
            Ok(answer) => answer?,
            Err(_) => {
                return Err(DriverError::DeadlineExceeded {
                    node: self.node.clone(),
                    what: "PSYNC to be answered".to_owned(),
                    limit,
                });
            }
        };
        self.expect_permitted("PSYNC", &answer)?;
        let words: Vec<&str> = answer.split(' ').collect();
        match words.as_slice() {
            ["+FULLRESYNC", id, offset] if id.len() == 40 => {
                let offset = offset.parse().map_err(|_| self.broken(format!("it answered PSYNC with '{answer}'")))?;
                Ok(Resynchronisation { replication_id: (*id).to_owned(), offset })
            }
            _ => Err(self.broken(format!("it answered PSYNC with '{}'", answer.escape_default()))),
        }
    }

    /// The dump that follows.
    pub(super) fn into_dump(self, stall_limit: Duration) -> Transfer<Box<dyn Socket>> {
        Transfer::new(self.socket, self.buffer, stall_limit)
    }

    fn broken(&self, reason: String) -> DriverError {
        DriverError::Broken { node: self.node.clone(), reason }
    }

    /// One command and the line that answers it, without its line end.
    async fn ask(&mut self, command: &[&str]) -> Result<String, DriverError> {
        self.exchange(&pack(command)).await
    }

    /// Packed commands, all but one of which are not answered, and the answer of that one.
    async fn exchange(&mut self, packed: &[u8]) -> Result<String, DriverError> {
        self.socket.write_all(packed).await.map_err(|error| self.gone(&error))?;
        self.socket.flush().await.map_err(|error| self.gone(&error))?;
        loop {
            // Empty lines keep a waiting replica alive.
            let empty = self.buffer.iter().take_while(|byte| **byte == b'\n').count();
            self.buffer.drain(..empty);
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(self.broken("it answered with a line without an end".to_owned()));
            }
            let read = self.socket.read_buf(&mut self.buffer).await.map_err(|error| self.gone(&error))?;
            if read == 0 {
                return Err(DriverError::Unreachable {
                    node: self.node.clone(),
                    reason: "it closed the replication connection".to_owned(),
                });
            }
        }
    }

    fn gone(&self, error: &std::io::Error) -> DriverError {
        DriverError::Unreachable { node: self.node.clone(), reason: format!("replication connection: {error}") }
    }
}

/// Connects, with segments as they are between hosts.
///
/// A server's socket takes so many segments off its child before anybody reads one. Over loopback those have 64 KiB, and
/// altogether 4 MB of the dump go into it instead of 0.8 MB: 40 ms of a core right after the fork, for every server of the
/// host, while the others wait for their thaw.
async fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut last = None;
    for address in lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        let (value, length) = (SEGMENT_BYTES, size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the descriptor is open, and the value outlives the call. Where it is refused, segments are longer.
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_MAXSEG, (&raw const value).cast(), length) };
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, format!("{host} has no address"))))
}

/// A command as it is sent.
fn pack(command: &[&str]) -> Vec<u8> {
    let mut packed = format!("*{}\r\n", command.len()).into_bytes();
    for argument in command {
        packed.extend_from_slice(format!("${}\r\n{argument}\r\n", argument.len()).as_bytes());
    }
    packed
}
