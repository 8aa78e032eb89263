//! The REST interface of an agent: a thin skin over the [`Desk`] of snapshots and the [`RestoreDesk`].
//!
//! **Invariants.** A request names a cluster, a node, a snapshot and an order, and nothing else: which store, directory, command
//! or repository that means stands in the agent's own configuration. Nothing but `health` is told to who shows no token, where
//! there is one.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use axum_server::Handle;
pub use axum_server::tls_rustls::RustlsConfig;
use hyper_util::rt::TokioTimer;
use serde::Serialize;
use tokio::sync::Semaphore;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::desk::{Desk, Standing};
use super::fleet::{self, FleetService};
use super::restore_desk::{RestoreDesk, RestoreStanding};
use super::restore_orders::{RestoreReply, RestoreTicket};
use super::wire::{ABANDON, ErrorBody, ErrorText, OrderBody, RestoreBody};
use super::{Reply, Ticket};
use crate::model::ids::SnapshotId;
use crate::model::names::{ClusterName, NodeName};

/// The longest body is an order.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// Requests under way: a coordinator has one for each node.
const REQUESTS_MAX: usize = 1024;
/// Who sends no whole request in this time is hung up on.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// What is under way when the agent is told to stop has so long to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Shared {
    desk: Arc<Desk>,
    restores: Arc<RestoreDesk>,
    /// Hashed, so that comparing takes the same time whatever is shown.
    token: Option<blake3::Hash>,
    places: Arc<Semaphore>,
}

struct Refusal(StatusCode, &'static str, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, code, message) = self;
        let hint =
            (status == StatusCode::UNAUTHORIZED).then(|| "token_file under [agent] is to be the same on both hosts".to_owned());
        (status, Json(ErrorBody { error: ErrorText { code: code.to_owned(), message, hint } })).into_response()
    }
}

/// Serves until `stop`, and gives back what was taken for snapshots under way.
pub async fn serve(
    listener: TcpListener,
    tls: Option<RustlsConfig>,
    token: Option<Zeroizing<String>>,
    (desk, restores): (Arc<Desk>, Arc<RestoreDesk>),
    fleet: Arc<dyn FleetService>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let token = token.map(|token| blake3::hash(token.as_bytes()));
    let routes = fleet::router(fleet.clone());
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    let app = router(routes, Shared { desk: desk.clone(), restores: restores.clone(), token, places });
    let handle = Handle::new();
    let stopping = handle.clone();
    let stopped = tokio::spawn(async move {
        stop.await;
        fleet.close().await;
        tokio::join!(desk.close(), restores.close());
        stopping.graceful_shutdown(Some(STOP_LIMIT));
    });
    let service = app.into_make_service();
    let served = match tls {
        Some(tls) => {
            let mut server = axum_server::from_tcp_rustls(listener, tls)?.handle(handle);
            server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
            server.serve(service).await
        }
        None => {
            let mut server = axum_server::from_tcp(listener)?.handle(handle);
            server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
            server.serve(service).await
        }
    };
    stopped.abort();
    served
}

fn router(fleet: Router<Shared>, shared: Shared) -> Router {
    Router::new()
        .route("/v1/clusters/{cluster}/nodes/{node}/snapshots/{snapshot}/{verb}", post(order))
        .route("/v1/clusters/{cluster}/nodes/{node}/restores/{restore}", post(restore_order))
        .route("/v1/clusters/{cluster}/nodes/{node}", get(standing))
        .merge(fleet)
        .route_layer(from_fn_with_state(shared.clone(), admit))
        .route("/v1/health", get(async || Json(serde_json::json!({"status": "ok"}))))
        .fallback(async || Refusal(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address".to_owned()))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(fleet::refuse_browsers))
        .with_state(shared)
}

/// Lets in who shows the token, and not too many.
async fn admit(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if let Some(token) = shared.token {
        let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        // blake3's hashes are compared in constant time.
        if shown.is_none_or(|shown| blake3::hash(shown) != token) {
            tracing::warn!(path = request.uri().path(), "a request without the right token was turned away");
            let message = if shown.is_some() { "this is not the token" } else { "a token is wanted" };
            return Refusal(StatusCode::UNAUTHORIZED, "denied", message.to_owned()).into_response();
        }
    }
    let Ok(_place) = shared.places.try_acquire() else {
        return Refusal(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many requests are under way".to_owned()).into_response();
    };
    next.run(request).await
}

async fn order(
    State(shared): State<Shared>,
    Path((cluster, node, snapshot, verb)): Path<(ClusterName, NodeName, SnapshotId, String)>,
    body: Result<Json<OrderBody>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(body) = body.map_err(|error| Refusal(error.status(), "usage", error.body_text()))?;
    let ticket = Ticket { repository: body.repository, cluster, node, snapshot, epoch: body.epoch };
    if verb == ABANDON {
        shared.desk.abandon(&ticket).await;
        return Ok(Json(serde_json::json!({})).into_response());
    }
    let order = body.order(&verb).map_err(|message| Refusal(StatusCode::BAD_REQUEST, "usage", message))?;
    let reply = shared.desk.ask(&ticket, order, body.wait()).await;
    let status = if matches!(reply, Reply::Running { .. }) { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(reply)).into_response())
}

async fn restore_order(
    State(shared): State<Shared>,
    Path((cluster, node, restore)): Path<(ClusterName, NodeName, Uuid)>,
    body: Result<Json<RestoreBody>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(body) = body.map_err(|error| Refusal(error.status(), "usage", error.body_text()))?;
    let wait = body.wait();
    let ticket = RestoreTicket { cluster, node, restore, subject: body.subject };
    let Some(order) = body.order else {
        shared.restores.give_up(&ticket).await;
        return Ok(Json(serde_json::json!({})).into_response());
    };
    let reply = shared.restores.ask(&ticket, order, wait).await;
    let status = if matches!(reply, RestoreReply::Running(_)) { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(reply)).into_response())
}

/// What was done for the node last, or is being done: its newest snapshot, and its newest restore where there was one.
async fn standing(
    State(shared): State<Shared>,
    Path((cluster, node)): Path<(ClusterName, NodeName)>,
) -> Result<Response, Refusal> {
    let restore = shared.restores.standing(&cluster, &node).await;
    match (shared.desk.standing(&cluster, &node).await, restore) {
        (None, None) => {
            Err(Refusal(StatusCode::NOT_FOUND, "not_found", format!("no snapshot of {cluster}/{node} was begun here")))
        }
        (snapshot, restore) => Ok(Json(Standings { snapshot, restore }).into_response()),
    }
}

#[derive(Serialize)]
struct Standings {
    #[serde(flatten)]
    snapshot: Option<Standing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restore: Option<RestoreStanding>,
}
