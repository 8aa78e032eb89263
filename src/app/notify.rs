//! What systemd is told of a daemon, as a unit with `Type=notify` wants it: one datagram for each thing that happens.
//!
//! Nothing depends on its being heard: without `$NOTIFY_SOCKET`, or when nobody listens there, nothing is said.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Whoever started this program and wants to hear of it.
#[derive(Debug, Clone, Default)]
pub struct Supervisor {
    address: Option<SocketAddr>,
}

impl Supervisor {
    /// The one that `$NOTIFY_SOCKET` names.
    pub fn from_environment() -> Self {
        let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let address = name.and_then(|name| address(&name).map_err(|error| tracing::debug!(%error, "NOTIFY_SOCKET")).ok());
        Self { address }
    }

    /// It serves. This process is named too, because a shell may stand between it and the unit.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nMAINPID={}\nSTATUS={status}", std::process::id()));
    }

    /// It starts, and needs more time for that.
    pub fn extend(&self, by: Duration, status: &str) {
        self.say(&format!("EXTEND_TIMEOUT_USEC={}\nSTATUS={status}", by.as_micros()));
    }

    /// It reads its configuration again; [`Self::ready`] follows.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000));
    }

    /// It is about to end.
    pub fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=ending");
    }

    fn say(&self, what: &str) {
        let Some(address) = &self.address else { return };
        let send = || {
            let socket = UnixDatagram::unbound()?;
            // A supervisor that does not read must not hold up what it supervises.
            socket.set_nonblocking(true)?;
            socket.send_to_addr(what.as_bytes(), address)
        };
        if let Err(error) = send() {
            tracing::debug!(%error, what, "the supervisor was not told");
        }
    }
}

/// A path, or behind an `@` a name without one.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(Path::new(name)),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_names_are_told_apart() {
        assert!(address("/run/x".as_ref()).expect("a path").as_pathname().is_some());
        assert_eq!(address("@x".as_ref()).expect("a name").as_abstract_name(), Some(&b"x"[..]));
        assert!(address("vsock:2:1".as_ref()).is_err());
    }

    #[test]
    fn nobody_needs_to_listen() {
        Supervisor::default().ready("x");
        Supervisor { address: address("/nonexistent".as_ref()).ok() }.stopping();
    }
}
