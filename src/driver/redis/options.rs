//! What a Redis driver is made from: where the node is, who we are there, and how it is to be captured.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroize;

use crate::driver::DriverError;
use crate::driver::served::ServedNode;
use crate::model::names::NodeName;

/// A password. It is wiped when dropped and never shown.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    /// Takes the password over.
    pub fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Drop for Password {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// How the data leaves a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CaptureMode {
    /// As a replica, over the network. Nothing is written on the node.
    #[default]
    Replication,
    /// The same of one of its replicas, at the offset where the node stands still: the node itself does not fork.
    FromReplica,
    /// `BGSAVE` on the node, whose data directory is on this host.
    Save,
    /// The append-only files of a node whose data directory is on this host.
    Aof,
}

/// One node and how to reach it.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// The name users gave it.
    pub node: NodeName,
    /// `redis://host:port` or `rediss://host:port` (TLS); without a port 6379. No password in it.
    pub url: String,
    /// ACL user; without one the default user.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Password>,
    /// Certificate authorities for `rediss`, PEM; without one those of this host.
    pub ca_file: Option<PathBuf>,
    /// How the data leaves the node.
    pub capture: CaptureMode,
    /// The node's data directory, where it is on this host.
    pub data_directory: Option<PathBuf>,
    /// What links of a restore in that directory may lead to.
    pub served: Vec<ServedNode>,
    /// Limit for a connection to be made and authenticated.
    pub connect_limit: Duration,
    /// Limit for the answer to one command outside of a freeze.
    pub answer_limit: Duration,
    /// Limit for a transfer without one byte of progress. A server gives up after `repl-timeout`, 60 s.
    pub stall_limit: Duration,
}

impl RedisOptions {
    /// A node captured by replication, with limits that suit a data centre.
    pub fn new(node: NodeName, url: impl Into<String>) -> Self {
        Self {
            node,
            url: url.into(),
            user: None,
            password: None,
            ca_file: None,
            capture: CaptureMode::default(),
            data_directory: None,
            served: Vec::new(),
            connect_limit: Duration::from_secs(5),
            answer_limit: Duration::from_secs(10),
            stall_limit: Duration::from_secs(60),
        }
    }

    /// `host:port`, as a manifest records it.
    pub fn place(&self) -> Result<String, DriverError> {
        Ok(self.endpoint()?.to_string())
    }

    /// Where the url points; a url that is not understood is refused without repeating it, for it may hold a password.
    pub(super) fn endpoint(&self) -> Result<Endpoint, DriverError> {
        let refused = |reason: &str| DriverError::Refused { node: self.node.to_string(), reason: reason.to_owned() };
        let (tls, rest) = match self.url.split_once("://") {
            Some(("redis", rest)) => (false, rest),
            Some(("rediss", rest)) => (true, rest),
            _ => return Err(refused("the url must begin with redis:// or rediss://")),
        };
        let rest = rest.trim_end_matches('/');
        if rest.contains(['@', '/', '?']) {
            return Err(refused("the url must be just redis://host:port; user and password have settings of their own"));
        }
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(|| refused("the url's port is no number"))?)),
            None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        if host.is_empty() {
            return Err(refused("the url names no host"));
        }
        let port = match port {
            Some(port) => port.parse().map_err(|_| refused("the url's port is no number from 1 to 65535"))?,
            None => 6379,
        };
        Ok(Endpoint { tls, host: host.to_owned(), port })
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub tls: bool,
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Endpoint {
    pub(super) fn url(&self) -> String {
        format!("{}://{self}", if self.tls { "rediss" } else { "redis" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> Result<Endpoint, DriverError> {
        RedisOptions::new(NodeName::new("n").expect("a name"), url).endpoint()
    }

    #[test]
    fn urls_are_taken_apart() {
        for (url, tls, host, port) in [
            ("redis://a:1", false, "a", 1),
            ("rediss://a.b/", true, "a.b", 6379),
            ("redis://[::1]:7", false, "::1", 7),
            ("redis://[::1]", false, "::1", 6379),
        ] {
            assert_eq!(endpoint(url).expect(url), Endpoint { tls, host: host.to_owned(), port });
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        let error = endpoint("redis://:secret@a:1").expect_err("refused").to_string();
        assert!(!error.contains("secret"));
        for url in ["a:1", "http://a", "redis://", "redis://a:x", "redis://a:70000"] {
            assert!(endpoint(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        assert!(!format!("{:?}", Password::new("secret")).contains("secret"));
    }
}
