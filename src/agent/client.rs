//! The courier that speaks REST: see [`super::server`] for the other side.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use zeroize::Zeroizing;

use super::orders::Order;
use super::remote::{Courier, CourierError};
use super::restore_orders::{RestoreCourier, RestoreOrder, RestoreReply, RestoreTicket};
use super::wire::{ABANDON, ErrorBody, OrderBody, RestoreBody, path, restore_path, standing};
use super::{Reply, Ticket};
use crate::model::names::{ClusterName, NodeName};

/// A host that does not answer at all is away after this.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Nobody who looks around waits longer.
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// An answer holds one description at most: `CLUSTER NODES` of a thousand nodes has 150 kB.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Asks one agent.
pub struct HttpCourier {
    base: String,
    token: Option<Arc<Zeroizing<String>>>,
    client: Client<HttpsConnector<HttpConnector>, Full<bytes::Bytes>>,
}

impl std::fmt::Debug for HttpCourier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpCourier").field("base", &self.base).finish_non_exhaustive()
    }
}

impl HttpCourier {
    /// For the agent at `base`, `http://host:port` or `https://host:port`.
    pub fn new(base: &str, token: Option<Arc<Zeroizing<String>>>, tls: tokio_rustls::rustls::ClientConfig) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_LIMIT));
        connector.enforce_http(false);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Self { base: base.trim_end_matches('/').to_owned(), token, client }
    }

    /// Whether it is there and would obey.
    pub async fn greet(&self, cluster: &ClusterName, node: &NodeName) -> Result<(), CourierError> {
        match self.send(Method::GET, &standing(cluster, node), None::<&()>, GREETING_LIMIT).await? {
            // It has done nothing for this node yet.
            (StatusCode::NOT_FOUND, _) => Ok(()),
            (status, body) => self.judged(status, body).map(drop),
        }
    }

    async fn post(&self, path: &str, body: &impl Serialize, limit: Duration) -> Result<bytes::Bytes, CourierError> {
        let (status, body) = self.send(Method::POST, path, Some(body), limit).await?;
        self.judged(status, body)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        limit: Duration,
    ) -> Result<(StatusCode, bytes::Bytes), CourierError> {
        let unclear = |error: &dyn std::fmt::Display| CourierError::Unclear(format!("{}: {error}", self.base));
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| unclear(&error))?.unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.as_str()));
        }
        let request = request.body(Full::new(body.into())).map_err(|error| unclear(&error))?;
        let answer = async {
            let answer = self.client.request(request).await.map_err(|error| (is_distrust(&error), in_words(&error)))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| (false, error.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        let away = |(is_distrust, reason): (bool, String)| {
            let reason = format!("{}: {reason}", self.base);
            if is_distrust { CourierError::Denied(reason) } else { CourierError::Unreachable(reason) }
        };
        let late = |_| away((false, format!("no answer within {limit:?}")));
        let answer = tokio::time::timeout(limit, answer).await.map_err(late)?;
        answer.map_err(away)
    }

    /// The body, or why there is none that says something.
    fn judged(&self, status: StatusCode, body: bytes::Bytes) -> Result<bytes::Bytes, CourierError> {
        if status.is_success() {
            return Ok(body);
        }
        let told = serde_json::from_slice::<ErrorBody>(&body).map(|body| match body.error.hint {
            Some(hint) => format!("{} ({hint})", body.error.message),
            None => body.error.message,
        });
        let reason = format!("{}: {}", self.base, told.unwrap_or_else(|_| status.to_string()));
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => CourierError::Denied(reason),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => CourierError::Unreachable(reason),
            status if status.is_server_error() => CourierError::Unreachable(reason),
            _ => CourierError::Unclear(reason),
        })
    }
}

/// Certificates, and not the network.
fn is_distrust(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(now) = cause {
        let inner = now.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let is_tls = |error: &(dyn std::error::Error + 'static)| error.is::<tokio_rustls::rustls::Error>();
        if is_tls(now) || inner.is_some_and(|inner| is_tls(inner)) {
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

#[async_trait]
impl Courier for HttpCourier {
    async fn ask(&self, ticket: &Ticket, order: Order, wait: Duration, limit: Duration) -> Result<Reply, CourierError> {
        let body = self.post(&path(ticket, order.verb()), &OrderBody::new(ticket, Some(order), wait), limit).await?;
        serde_json::from_slice(&body).map_err(|error| CourierError::Unclear(format!("{}: its answer: {error}", self.base)))
    }

    async fn abandon(&self, ticket: &Ticket, limit: Duration) -> Result<(), CourierError> {
        self.post(&path(ticket, ABANDON), &OrderBody::new(ticket, None, Duration::ZERO), limit).await.map(drop)
    }
}

#[async_trait]
impl RestoreCourier for HttpCourier {
    async fn restore(
        &self,
        ticket: &RestoreTicket,
        order: &RestoreOrder,
        wait: Duration,
        limit: Duration,
    ) -> Result<RestoreReply, CourierError> {
        let answer = self.post(&restore_path(ticket), &RestoreBody::new(ticket, Some(order), wait), limit).await?;
        serde_json::from_slice(&answer).map_err(|error| CourierError::Unclear(format!("{}: {error}", self.base)))
    }

    async fn give_up(&self, ticket: &RestoreTicket, limit: Duration) -> Result<(), CourierError> {
        self.post(&restore_path(ticket), &RestoreBody::new(ticket, None, Duration::ZERO), limit).await.map(drop)
    }
}
