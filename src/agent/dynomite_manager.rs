//! A drop-in for the REST interface of Dynomite-manager: its addresses and its JSON, answered truthfully.
//!
//! How it works: one address for each name, in whatever case; all are GET, as there. The port is [`ManagerService`]; `app`
//! implements it over the same snapshots, restores and stores that everything else here uses.
//!
//! **Invariants.** Failure is failure: an action answers `["ok"]` after it was done, and never before. The interface knows no
//! token, as it never did: so it is served on the loopback interface alone, web pages are refused, and so is whoever takes this
//! host for another one.

use std::fmt::Debug;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use axum_server::Handle;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::{Value, json};

use super::fleet::{FleetError, refuse_browsers};

/// Where it is always served; the container decided in its own time.
pub const PREFIXES: [&str; 2] = ["/REST/v1/admin", "/api/v1/admin"];
/// Who sends no whole request in this time is hung up on.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// What is under way when the daemon is told to stop has so long to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Dynomite answers from memory.
const ADMIN_LIMIT: Duration = Duration::from_secs(3);
/// A ring of a thousand nodes has 200 kB.
const ADMIN_BYTES_MAX: usize = 4 << 20;

/// What its names ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ManagerCall {
    Start,
    Stop,
    StartStorageProcess,
    StopStorageProcess,
    Backup,
    Restore,
    TakeSnapshot,
    Status,
    ClusterDescribe,
    GetSeeds,
    Consistency,
    HashTag,
    Version,
}

impl ManagerCall {
    /// It does something, and does not only tell.
    fn changes(self) -> bool {
        use ManagerCall::*;
        match self {
            Start | Stop | StartStorageProcess | StopStorageProcess | Backup | Restore | TakeSnapshot => true,
            Status | ClusterDescribe | GetSeeds | Consistency | HashTag | Version => false,
        }
    }
}

/// Each name, in lower case, and what it asks for.
const CALLS: [(&str, ManagerCall); 13] = [
    ("start", ManagerCall::Start),
    ("stop", ManagerCall::Stop),
    ("startstorageprocess", ManagerCall::StartStorageProcess),
    ("stopstorageprocess", ManagerCall::StopStorageProcess),
    ("backup", ManagerCall::Backup),
    ("restore", ManagerCall::Restore),
    ("takesnapshot", ManagerCall::TakeSnapshot),
    ("status", ManagerCall::Status),
    ("cluster_describe", ManagerCall::ClusterDescribe),
    ("get_seeds", ManagerCall::GetSeeds),
    ("consistency", ManagerCall::Consistency),
    ("hashtag", ManagerCall::HashTag),
    ("version", ManagerCall::Version),
];

/// Names that answered without doing anything.
const PLACEHOLDERS: [&str; 4] = ["info", "ring", "repair", "drain"];

/// An answer in the old form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagerAnswer {
    /// `["ok"]`, or what was asked for.
    Json(Value),
    /// `get_seeds` alone.
    Text(String),
}

impl ManagerAnswer {
    /// It was done.
    pub fn ok() -> Self {
        Self::Json(json!(["ok"]))
    }
}

/// Why a call was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagerError {
    /// It was tried, and failed.
    Failed(FleetError),
    /// It cannot be answered truthfully here, for this reason.
    NotHere(String),
}

impl From<FleetError> for ManagerError {
    fn from(error: FleetError) -> Self {
        Self::Failed(error)
    }
}

/// What stands behind the names. Promise: what is answered was done.
#[async_trait]
pub trait ManagerService: Send + Sync + Debug {
    /// Carries a call out, however long that takes.
    async fn call(&self, call: ManagerCall) -> Result<ManagerAnswer, ManagerError>;
    /// Ends what is under way in order, and begins nothing any more.
    async fn close(&self);
}

impl IntoResponse for ManagerError {
    fn into_response(self) -> Response {
        match self {
            // The old one knew one number for all that goes wrong.
            Self::Failed(error) => {
                let error = json!({"code": error.code, "message": error.message, "hint": error.hint});
                let body = json!({"status": "unsuccessful", "error": error});
                (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
            }
            Self::NotHere(message) => {
                let error = json!({"code": "not_here", "message": message, "hint": null});
                (StatusCode::NOT_IMPLEMENTED, Json(json!({"status": "unsuccessful", "error": error}))).into_response()
            }
        }
    }
}

/// Serves until `stop`. `prefix` is one more place than [`PREFIXES`].
pub async fn serve(
    listener: TcpListener,
    prefix: Option<&str>,
    service: Arc<dyn ManagerService>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let handle = Handle::new();
    let stopping = handle.clone();
    let closed = service.clone();
    let stopped = tokio::spawn(async move {
        stop.await;
        // Whoever asked for what is under way is told how it ended.
        closed.close().await;
        stopping.graceful_shutdown(Some(STOP_LIMIT));
    });
    let mut server = axum_server::from_tcp(listener)?.handle(handle);
    server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    let served = server.serve(router(prefix, service).into_make_service()).await;
    stopped.abort();
    served
}

fn router(prefix: Option<&str>, service: Arc<dyn ManagerService>) -> Router {
    let further = prefix.map(|prefix| prefix.trim_end_matches('/')).filter(|prefix| !PREFIXES.contains(prefix));
    let places = PREFIXES.into_iter().chain(further);
    places
        .fold(Router::new(), |router, prefix| router.route(&format!("{prefix}/{{*name}}"), get(answer)))
        .fallback(async || nothing("there is nothing at this address"))
        .layer(from_fn(refuse_other_hosts))
        .layer(from_fn(refuse_browsers))
        .with_state(service)
}

fn nothing(message: &str) -> Response {
    let error = json!({"code": "not_found", "message": message, "hint": null});
    (StatusCode::NOT_FOUND, Json(json!({"status": "unsuccessful", "error": error}))).into_response()
}

/// A name that somebody else's name server resolved to this host is not ours.
async fn refuse_other_hosts(request: Request, next: Next) -> Response {
    let said = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let host = match said.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => said,
    };
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    if plain != "localhost" && plain.parse::<IpAddr>().is_err() {
        return nothing("this host has no such name");
    }
    next.run(request).await
}

async fn answer(method: Method, State(service): State<Arc<dyn ManagerService>>, Path(name): Path<String>) -> Response {
    let name = name.trim_end_matches('/').to_ascii_lowercase();
    if PLACEHOLDERS.contains(&name.split('/').next().unwrap_or_default()) {
        return ManagerError::NotHere(format!("{name} never did anything, and does not here")).into_response();
    }
    let Some((_, call)) = CALLS.iter().find(|(known, _)| *known == name) else {
        return nothing(&format!("{name:?} is not known"));
    };
    let call = *call;
    // The router takes HEAD for GET, and who asks for it wants nothing done.
    if method != Method::GET && call.changes() {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    // Whoever hangs up must not stop it in the middle.
    match tokio::spawn(async move { service.call(call).await }).await {
        Ok(Ok(ManagerAnswer::Json(value))) => Json(value).into_response(),
        Ok(Ok(ManagerAnswer::Text(text))) => text.into_response(),
        Ok(Err(error)) => {
            tracing::warn!(name, ?error, "a call of Dynomite-manager's was not carried out");
            error.into_response()
        }
        Err(error) => {
            tracing::error!(name, %error, "a call of Dynomite-manager's ended badly");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// What the admin port of a Dynomite answers to a path. It answers 200 to everything: whether it is an answer is to be seen in
/// the text.
pub async fn ask_dynomite(base: &str, path: &str) -> Result<String, String> {
    let base = base.trim_end_matches('/');
    let wrong = |reason: &dyn std::fmt::Display| format!("Dynomite at {base}: {reason}");
    let uri: http::Uri = format!("{base}{path}").parse().map_err(|error: http::uri::InvalidUri| wrong(&error))?;
    let client: Client<_, Empty<bytes::Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let asking = async {
        let answer = client.get(uri).await.map_err(|error| wrong(&error))?;
        if !answer.status().is_success() {
            return Err(wrong(&answer.status()));
        }
        let body = Limited::new(answer.into_body(), ADMIN_BYTES_MAX).collect().await.map_err(|error| wrong(&error))?;
        String::from_utf8(body.to_bytes().to_vec()).map_err(|_| wrong(&"its answer is no text"))
    };
    tokio::time::timeout(ADMIN_LIMIT, asking).await.map_err(|_| wrong(&format!("no answer within {ADMIN_LIMIT:?}")))?
}
