//! The REST interface for people and scripts: clusters, their snapshots, and how each fares, beside the orders of coordinators.
//!
//! The port is [`FleetService`]; `app` implements it over the daemon's own configuration and repository. The routes and their
//! description, `/openapi.json`, come from one table.
//!
//! **Invariants.** A request names a cluster, its nodes, a snapshot and words of the user, and nothing else: no path, command or
//! endpoint. What changes something is never a GET. A web page is refused, whoever looks at it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::model::ids::SnapshotId;
use crate::model::names::{ClusterName, NodeName};

/// What a snapshot may be told; the rest stands in the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotWish {
    /// Only these nodes; empty: all.
    pub nodes: Vec<NodeName>,
    /// The user's own words.
    pub tags: BTreeMap<String, String>,
    /// Publish without nodes that cannot be reached or break.
    pub partial: bool,
}

/// Why a request was not carried out, by what whoever asked can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FleetErrorKind {
    /// There is no such thing.
    NotFound,
    /// Something else is under way.
    Conflict,
    /// It cannot be done as it is.
    Refused,
    /// Not now: ask again later.
    Unavailable,
    /// This host, its configuration or the repository is broken.
    Broken,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetError {
    /// What it means for whoever asked.
    pub kind: FleetErrorKind,
    /// For scripts: a word that does not change between versions.
    pub code: String,
    /// For people: what, and which thing.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The snapshot that is under way instead.
    pub uuid: Option<SnapshotId>,
}

/// A tar, piece by piece; an error breaks the connection off, so that nobody takes it for whole.
pub type TarStream = BoxStream<'static, std::io::Result<Bytes>>;

/// What a daemon tells of its clusters, and does for them.
///
/// Promises: `begin` returns before the snapshot is made, and never makes two of one cluster at once; how it fares is told by
/// `snapshot` from then on, whatever becomes of it. `close` ends what is under way in order: writes are let go, and everything
/// is given back.
#[async_trait]
pub trait FleetService: Send + Sync + Debug {
    /// All clusters, stored or configured, as `tintype status --json` has them.
    async fn clusters(&self) -> Result<Value, FleetError>;
    /// The snapshots of a cluster, the newest first.
    async fn snapshots(&self, cluster: &ClusterName) -> Result<Value, FleetError>;
    /// Begins one.
    async fn begin(&self, cluster: &ClusterName, wish: SnapshotWish) -> Result<SnapshotId, FleetError>;
    /// How one fares, whichever host makes it, as `tintype status UUID --json` has it.
    async fn snapshot(&self, uuid: SnapshotId) -> Result<Value, FleetError>;
    /// What `tintype export` writes.
    async fn export(&self, uuid: SnapshotId, node: &NodeName) -> Result<TarStream, FleetError>;
    /// Ends what is under way.
    async fn close(&self);
}

type Fleet = Arc<dyn FleetService>;

impl FleetError {
    fn status(&self) -> StatusCode {
        match self.kind {
            FleetErrorKind::NotFound => StatusCode::NOT_FOUND,
            FleetErrorKind::Conflict => StatusCode::CONFLICT,
            FleetErrorKind::Refused => StatusCode::UNPROCESSABLE_ENTITY,
            FleetErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            FleetErrorKind::Broken => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for FleetError {
    fn into_response(self) -> Response {
        let mut error = json!({"code": self.code, "message": self.message, "hint": self.hint});
        if let Some(uuid) = self.uuid {
            error["uuid"] = json!(uuid);
        }
        (self.status(), Json(json!({"error": error}))).into_response()
    }
}

/// A request that makes no sense.
struct Misuse(StatusCode, &'static str, String);

impl IntoResponse for Misuse {
    fn into_response(self) -> Response {
        let Self(status, code, message) = self;
        (status, Json(json!({"error": {"code": code, "message": message, "hint": "see /openapi.json"}}))).into_response()
    }
}

impl From<PathRejection> for Misuse {
    fn from(error: PathRejection) -> Self {
        Self(StatusCode::BAD_REQUEST, "usage", error.body_text())
    }
}

impl From<BytesRejection> for Misuse {
    fn from(error: BytesRejection) -> Self {
        Self(error.status(), "usage", error.body_text())
    }
}

/// One address: who answers, and what the description says of it.
struct Route {
    path: &'static str,
    answers: MethodRouter<Fleet>,
    description: Value,
}

fn routes() -> Vec<Route> {
    let parameter = |name: &str, what: &str| json!({"name": name, "in": "path", "required": true, "description": what, "schema": {"type": "string"}});
    let cluster = || parameter("cluster", "name of the cluster");
    let uuid = || parameter("uuid", "identity of the snapshot");
    vec![
        Route {
            path: "/openapi.json",
            answers: get(async || Json(document())),
            description: json!({"get": operation("This description", 200, &[])}),
        },
        Route {
            path: "/v1/clusters",
            answers: get(clusters),
            description: json!({"get": operation("All clusters: the newest good snapshot of each, and what is under way", 200, &[500, 503])}),
        },
        Route {
            path: "/v1/clusters/{cluster}/snapshots",
            answers: get(snapshots).post(begin),
            description: json!({
                "parameters": [cluster()],
                "get": operation("The snapshots of a cluster, the newest first", 200, &[400, 404, 500, 503]),
                "post": begin_operation(),
            }),
        },
        Route {
            path: "/v1/snapshots/{uuid}",
            answers: get(snapshot),
            description: json!({
                "parameters": [uuid()],
                "get": operation("How a snapshot fares, whichever host makes it: status is processing, completed, partial or failed; that of each node processing, completed, missing or failed", 200, &[400, 404, 500, 503]),
            }),
        },
        Route {
            path: "/v1/snapshots/{uuid}/nodes/{file}",
            answers: get(export),
            description: json!({
                "parameters": [uuid(), parameter("file", "name of the node, and .tar")],
                "get": export_operation(),
            }),
        },
    ]
}

/// What a method does, and how it may answer.
fn operation(summary: &str, good: u16, bad: &[u16]) -> Value {
    let error =
        json!({"description": "why not", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}});
    let mut responses = serde_json::Map::new();
    responses.insert(
        good.to_string(),
        json!({"description": "done", "content": {"application/json": {"schema": {"type": "object"}}}}),
    );
    for status in [401, 403].iter().chain(bad) {
        responses.insert(status.to_string(), error.clone());
    }
    json!({"summary": summary, "responses": responses})
}

fn begin_operation() -> Value {
    let mut described =
        operation("Begin a snapshot of a cluster: this host coordinates it", 202, &[400, 404, 409, 413, 422, 500, 503]);
    described["requestBody"] = json!({"required": false, "content": {"application/json": {"schema": {
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "nodes": {"type": "array", "items": {"type": "string"}, "description": "only these; none: all"},
            "tags": {"type": "object", "additionalProperties": {"type": "string"}},
            "partial": {"type": "boolean", "default": false, "description": "publish without nodes that cannot be reached or break"},
        },
    }}}});
    described
}

fn export_operation() -> Value {
    let mut described = operation("A node of a snapshot as a tar", 200, &[400, 404, 500, 503]);
    described["responses"]["200"] = json!({"description": "what `tintype export` writes", "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}});
    described
}

/// What is served, in the words of OpenAPI. The orders that coordinators give to agents are no part of it: they are what two
/// daemons of one version say to one another.
fn document() -> Value {
    let mut paths: serde_json::Map<String, Value> =
        routes().into_iter().map(|route| (route.path.to_owned(), route.description)).collect();
    paths.insert(
        "/v1/health".to_owned(),
        json!({"get": {"summary": "Whether it answers", "security": [], "responses": {"200": {"description": "it does"}}}}),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tintyped",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Snapshots of the clusters that this host's configuration names. Requests of web pages are refused.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "the first line of token_file; where there is none, a certificate of the common authority is enough"}},
            "schemas": {"Error": {"type": "object", "required": ["error"], "properties": {"error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                    "hint": {"type": ["string", "null"]},
                    "uuid": {"type": "string", "description": "with status 409: the snapshot that is under way"},
                },
            }}}},
        },
    })
}

/// All of it. Who may come in is the server's business.
pub(super) fn router<S: Clone + Send + Sync + 'static>(fleet: Fleet) -> Router<S> {
    let router = routes().into_iter().fold(Router::new(), |router, route| router.route(route.path, route.answers));
    let misused = async || Misuse(StatusCode::METHOD_NOT_ALLOWED, "usage", "this address takes no such request".to_owned());
    router.method_not_allowed_fallback(misused).with_state(fleet)
}

/// Browsers say for whom they ask; nothing else does. A page must not use the rights of whoever looks at it.
pub(super) async fn refuse_browsers(request: Request, next: Next) -> Response {
    const OF_A_PAGE: [HeaderName; 2] = [header::ORIGIN, HeaderName::from_static("sec-fetch-site")];
    if OF_A_PAGE.iter().any(|name| request.headers().contains_key(name)) {
        tracing::warn!(path = request.uri().path(), "a request of a web page was turned away");
        return Misuse(StatusCode::FORBIDDEN, "denied", "requests of web pages are refused".to_owned()).into_response();
    }
    next.run(request).await
}

async fn clusters(State(fleet): State<Fleet>) -> Result<Json<Value>, FleetError> {
    fleet.clusters().await.map(Json)
}

async fn snapshots(State(fleet): State<Fleet>, path: Result<Path<ClusterName>, PathRejection>) -> Result<Json<Value>, Response> {
    let Path(cluster) = path.map_err(|error| Misuse::from(error).into_response())?;
    fleet.snapshots(&cluster).await.map(Json).map_err(IntoResponse::into_response)
}

async fn begin(
    State(fleet): State<Fleet>,
    path: Result<Path<ClusterName>, PathRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Response> {
    let Path(cluster) = path.map_err(|error| Misuse::from(error).into_response())?;
    let body = body.map_err(|error| Misuse::from(error).into_response())?;
    let wish = match body.is_empty() {
        true => SnapshotWish::default(),
        false => serde_json::from_slice(&body).map_err(|error| {
            Misuse(StatusCode::BAD_REQUEST, "usage", format!("the body is no wish for a snapshot: {error}")).into_response()
        })?,
    };
    let uuid = fleet.begin(&cluster, wish).await.map_err(IntoResponse::into_response)?;
    let place = [(header::LOCATION, format!("/v1/snapshots/{uuid}"))];
    Ok((StatusCode::ACCEPTED, place, Json(json!({"uuid": uuid, "status": "processing"}))).into_response())
}

async fn snapshot(State(fleet): State<Fleet>, path: Result<Path<SnapshotId>, PathRejection>) -> Result<Json<Value>, Response> {
    let Path(uuid) = path.map_err(|error| Misuse::from(error).into_response())?;
    fleet.snapshot(uuid).await.map(Json).map_err(IntoResponse::into_response)
}

async fn export(
    State(fleet): State<Fleet>,
    path: Result<Path<(SnapshotId, String)>, PathRejection>,
) -> Result<Response, Response> {
    let Path((uuid, file)) = path.map_err(|error| Misuse::from(error).into_response())?;
    let wrong = |message: String| Misuse(StatusCode::BAD_REQUEST, "usage", message).into_response();
    let node = file.strip_suffix(".tar").ok_or_else(|| wrong(format!("{file:?} does not end with .tar")))?;
    let node = NodeName::new(node).map_err(|error| wrong(error.to_string()))?;
    let tar = fleet.export(uuid, &node).await.map_err(IntoResponse::into_response)?;
    // A node's name has no sign that would have to be quoted.
    let head = [
        (header::CONTENT_TYPE, "application/x-tar".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{node}.tar\"")),
    ];
    Ok((head, Body::from_stream(tar)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_says_nothing_but_nodes_tags_and_whether_gaps_are_fine() {
        let wish: SnapshotWish =
            serde_json::from_str(r#"{"nodes": ["a"], "tags": {"reason": "test"}, "partial": true}"#).expect("reads");
        assert_eq!((wish.nodes.len(), wish.tags.len(), wish.partial), (1, 1, true));
        assert_eq!(serde_json::from_str::<SnapshotWish>("{}").expect("reads"), SnapshotWish::default());
        for bad in
            [r#"{"redis": "10.0.0.1:6379"}"#, r#"{"nodes": ["../a"]}"#, r#"{"capture": "save"}"#, "\"all\"", r#"{"partial": 1}"#]
        {
            assert!(serde_json::from_str::<SnapshotWish>(bad).is_err(), "{bad}");
        }
    }
}
