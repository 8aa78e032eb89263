//! The node agent of this host ([`host`]), and how those of other hosts are reached.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

use http::Uri;
use zeroize::Zeroizing;

use super::config::{AgentTlsConfig, ClusterConfig, read_secret};
use super::failure::Failure;
use super::wiring::{ClusterNode, Session};
use crate::agent::client::HttpCourier;
use crate::agent::tls::{self, TlsFiles};

mod dynomite;
pub mod fleet;
pub mod host;
mod manager;
mod manager_backup;
mod opened;
mod restores;

impl From<&AgentTlsConfig> for TlsFiles {
    fn from(config: &AgentTlsConfig) -> Self {
        Self { cert: config.cert.clone(), key: config.key.clone(), ca: config.ca.clone() }
    }
}

/// Where the token is that an agent on the loopback interface makes for itself, where the configuration names none.
fn own_token(session: &Session) -> PathBuf {
    session.state_directory().join("agent.token")
}

/// The agent that acts for a node, where the configuration names one: its own, or the cluster's with the node's host for
/// `{host}`.
pub fn address(config: &ClusterConfig, node: &ClusterNode) -> Option<String> {
    if let Some(own) = &node.config.agent {
        return Some(own.clone());
    }
    let template = config.agent.as_ref()?;
    let url = node.redis.as_ref().map(|redis| redis.url.clone()).unwrap_or_default();
    let uri: Option<Uri> = url.parse().ok();
    Some(template.replace("{host}", uri.as_ref().and_then(Uri::host).unwrap_or_default()))
}

/// Couriers of one run, one for each agent.
#[derive(Debug)]
pub struct Couriers<'a> {
    session: &'a Session,
    known: HashMap<String, Arc<HttpCourier>>,
}

impl<'a> Couriers<'a> {
    /// With the certificates and the token of the configuration.
    pub fn new(session: &'a Session) -> Self {
        Self { session, known: HashMap::new() }
    }

    /// To the agent at a URL.
    pub fn to(&mut self, url: &str) -> Result<Arc<HttpCourier>, Failure> {
        if let Some(courier) = self.known.get(url) {
            return Ok(courier.clone());
        }
        let wrong = |reason: &str| Failure::usage(format!("agent {url:?}: {reason}"));
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
        let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return Err(wrong("is no URL").hint("for example https://10.0.0.1:7070, or http://127.0.0.1:7070 on this host"));
        };
        match scheme {
            "https" => {}
            "http" if is_loopback(host) => {}
            "http" => {
                return Err(
                    wrong("would show the token to the network").hint("say https://, with tls under [agent] on both hosts")
                );
            }
            other => return Err(wrong(&format!("{other} is not known")).hint("http and https are")),
        }
        let config = &self.session.config.agent;
        let files = config.tls.as_ref().map(TlsFiles::from);
        let tls = tls::client(files.as_ref())
            .map_err(|reason| Failure::usage(format!("[agent] tls: {reason}")).hint("cert, key and ca are files in PEM"))?;
        let token = match &config.token_file {
            Some(path) => Some(read_secret(path)?),
            // Only to agents of this host: it is their own secret.
            None if is_loopback(host) && own_token(self.session).exists() => Some(read_secret(&own_token(self.session))?),
            None => None,
        };
        let courier = Arc::new(HttpCourier::new(url, token.map(Arc::new), tls));
        self.known.insert(url.to_owned(), courier.clone());
        Ok(courier)
    }
}

fn is_loopback(host: &str) -> bool {
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    plain == "localhost" || plain.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What an agent listens with.
#[derive(Debug)]
struct Door {
    address: SocketAddr,
    tls: Option<TlsFiles>,
    token: Option<Zeroizing<String>>,
}

impl Door {
    /// As configured. Off the loopback interface there is no door without TLS, and none that anybody may enter.
    fn open(session: &Session, listen: &str) -> Result<Self, Failure> {
        let config = &session.config.agent;
        let wrong = |reason: String| Failure::usage(format!("[agent] listen = {listen:?}: {reason}"));
        let mut found = listen
            .to_socket_addrs()
            .map_err(|error| wrong(error.to_string()).hint("say ADDRESS:PORT, for example 127.0.0.1:7070"))?;
        let address = found.next().ok_or_else(|| wrong("names no address".to_owned()))?;
        let tls = config.tls.as_ref().map(TlsFiles::from);
        let is_local = address.ip().is_loopback();
        if !is_local && tls.is_none() {
            return Err(wrong("others on the network could read and give orders".to_owned())
                .hint("write tls = { cert = FILE, key = FILE, ca = FILE } under [agent], or listen on 127.0.0.1:7070"));
        }
        let shows_certificates = tls.as_ref().is_some_and(|files| files.ca.is_some());
        let token = match &config.token_file {
            Some(path) => Some(read_secret(path)?),
            None if shows_certificates => None,
            None if is_local => Some(make_token(session)?),
            None => {
                return Err(wrong("anybody on the network could give orders".to_owned()).hint(
                    "name a ca in tls, whose certificates both sides then show, or a token_file under [agent], the same on all hosts",
                ));
            }
        };
        Ok(Self { address, tls, token })
    }
}

/// The token of an agent that serves this host alone; made at its first start.
fn make_token(session: &Session) -> Result<Zeroizing<String>, Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let path = own_token(session);
    let failed = |error: std::io::Error| {
        Failure::new("state", format!("{}: {error}", path.display()))
            .hint("state_directory in the configuration is to be a directory that this user may write to")
    };
    let directory = session.state_directory();
    std::fs::create_dir_all(&directory).map_err(failed)?;
    let mut random = Zeroizing::new([0u8; 32]);
    getrandom::fill(random.as_mut_slice()).map_err(|error| Failure::new("system", error.to_string()))?;
    let text = Zeroizing::new(random.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n");
    // Under another name first: whoever finds it finds it whole, and of two agents one's is kept.
    let new = directory.join(format!("agent.token.{}", std::process::id()));
    let _left_by_another = std::fs::remove_file(&new);
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&new).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    let made = std::fs::hard_link(&new, &path);
    std::fs::remove_file(&new).map_err(failed)?;
    match made {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed(error)),
        _ => read_secret(&path),
    }
}
