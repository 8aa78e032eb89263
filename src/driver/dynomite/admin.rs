//! The admin port of a Dynomite: what it says of its ring, its state and its queues.
//!
//! It answers one connection after the other, and an open connection without a request keeps all others waiting: each request
//! has a connection of its own and is sent at once. An unknown path answers 200 as well, so that only the text proves
//! anything. Redirects are not followed: the client knows none.

use std::time::Duration;

use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Map, Value};

use super::ring::Ring;
use crate::driver::DriverError;

/// Where Dynomite listens for its operators unless told otherwise.
pub const ADMIN_PORT: u16 = 22222;
/// Limit for an answer outside of a freeze.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// A node of a ring takes 100 bytes in `/cluster_describe`: enough for ten thousand.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// The state of a node that takes reads and writes, and has everything that its peers sent.
pub const NORMAL: &str = "NORMAL";

/// One admin port.
#[derive(Clone)]
pub struct Admin {
    base: String,
    host: String,
    port: u16,
    /// For messages.
    node: String,
    client: Client<HttpConnector, Empty<bytes::Bytes>>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Admin {
    /// Does not connect yet. `url` is `http://host:port`, without a port 22222; `node` names it in errors.
    pub fn new(node: &str, url: &str) -> Result<Self, DriverError> {
        let refused =
            |reason: &str| DriverError::Refused { node: node.to_owned(), reason: format!("admin address {url:?}: {reason}") };
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| refused(&error.to_string()))?;
        if uri.scheme_str() != Some("http") {
            return Err(refused("is not like http://host:22222"));
        }
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else { return Err(refused("names no host")) };
        if authority.as_str().contains('@') || !matches!(uri.path_and_query().map_or("/", |path| path.as_str()), "/") {
            return Err(refused("must be just http://host:port"));
        }
        let port = uri.port_u16().unwrap_or(ADMIN_PORT);
        let base = format!("http://{host}:{port}");
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(ANSWER_LIMIT));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { base, host: host.to_owned(), port, node: node.to_owned(), client })
    }

    /// `http://host:port`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Its host, as in a URL.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The ring as this node sees it.
    pub async fn ring(&self) -> Result<Ring, DriverError> {
        let text = self.get("/cluster_describe", ANSWER_LIMIT).await?.ok_or_else(|| self.away("connection refused"))?;
        Ring::parse(&text, &self.host).map_err(|reason| self.nonsense("/cluster_describe", &text, &reason))
    }

    /// `NORMAL`, `STANDBY`, …; `None` when nobody listens.
    pub async fn state(&self) -> Result<Option<String>, DriverError> {
        let Some(text) = self.get("/state/get_state", ANSWER_LIMIT).await? else { return Ok(None) };
        match text.trim().strip_prefix("State:") {
            Some(state) => Ok(Some(state.trim().to_owned())),
            None => Err(self.nonsense("/state/get_state", &text, "is no state")),
        }
    }

    /// Its statistics.
    pub async fn statistics(&self, limit: Duration) -> Result<Map<String, Value>, DriverError> {
        let text = self.get("/info", limit).await?.ok_or_else(|| self.away("connection refused"))?;
        serde_json::from_str(&text).map_err(|error| self.nonsense("/info", &text, &error.to_string()))
    }

    /// The text at a path; `None` when nobody listens.
    async fn get(&self, path: &str, limit: Duration) -> Result<Option<String>, DriverError> {
        let request = Request::get(format!("{}{path}", self.base)).header(header::CONNECTION, "close");
        let request = request.body(Empty::new()).map_err(|error| self.away(&error.to_string()))?;
        let answer = async {
            let answer = match self.client.request(request).await {
                Err(error) if is_refusal(&error) => return Ok(None),
                answer => answer.map_err(|error| self.away(&in_words(&error)))?,
            };
            if answer.status() != StatusCode::OK {
                return Err(self.away(&format!("{path}: {}", answer.status())));
            }
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| self.away(&format!("{path}: {error}")))?.to_bytes();
            Ok(Some(String::from_utf8_lossy(&body).into_owned()))
        };
        let what = || format!("{}{path}", self.base);
        tokio::time::timeout(limit, answer).await.map_err(|_| DriverError::DeadlineExceeded {
            node: self.node.clone(),
            what: what(),
            limit,
        })?
    }

    fn away(&self, reason: &str) -> DriverError {
        DriverError::Unreachable { node: self.node.clone(), reason: format!("its Dynomite, {}: {reason}", self.base) }
    }

    fn nonsense(&self, path: &str, text: &str, reason: &str) -> DriverError {
        let said: String = text.trim().chars().take(60).collect();
        let reason = format!(
            "{} is not the admin port of a Dynomite: {path} answers {said:?} ({reason}); stats_listen in its dynomite.yml says which is",
            self.base
        );
        DriverError::Refused { node: self.node.clone(), reason }
    }
}

/// Nobody listens.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(now) = cause {
        if now.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = now.source();
    }
    false
}

/// The innermost cause says what happened.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (url, base, host) in [
            ("http://a", "http://a:22222", "a"),
            ("http://10.0.0.1:2222/", "http://10.0.0.1:2222", "10.0.0.1"),
            ("http://[::1]:7", "http://[::1]:7", "[::1]"),
        ] {
            let admin = Admin::new("n", url).expect(url);
            assert_eq!((admin.base(), admin.host()), (base, host));
        }
        for url in ["a:22222", "https://a", "http://user@a", "http://a/info", "http://a?b", "redis://a:1"] {
            let refused = Admin::new("n", url).expect_err(url).to_string();
            assert!(refused.contains("admin address"), "{refused}");
        }
    }
}
