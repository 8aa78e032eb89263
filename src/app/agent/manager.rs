//! What stands behind the interface of Dynomite-manager on this host: the snapshots and restores that `tintype` takes, for one
//! configured node, and the Dynomite in front of it.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::super::config::DynomiteManagerConfig;
use super::super::control::restore::{self, RestoreTarget};
use super::super::control_args::CommonArgs;
use super::super::failure::Failure;
use super::super::wiring::{ClusterNode, Session};
use super::fleet::HostFleet;
use super::opened::OpenedRepository;
use crate::agent::dynomite_manager::{self, ManagerAnswer, ManagerCall, ManagerError, ManagerService, ask_dynomite};
use crate::agent::fleet::{FleetService, SnapshotWish};
use crate::cluster::restore::RestoreOutcome;
use crate::driver::NodeSite;
use crate::driver::control::StoreControl;
use crate::driver::redis::RedisControl;
use crate::model::ids::SnapshotId;
use crate::model::manifest::NodeStatus;
use crate::model::restore_plan::{Method, RestoreRequest};
use crate::model::snapshot_name::SnapshotName;
use crate::node::{StateDirectory, run_command};
use crate::repo::SnapshotSource;

const LISTEN: &str = "127.0.0.1:8080";
const ADMIN: &str = "http://127.0.0.1:22222";
const CLIENT_PORT: u16 = 8102;
/// A command of a supervisor's ends in this time, and what it started or stopped has answered or gone.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How often something is looked at that takes minutes.
const POLL: Duration = Duration::from_millis(200);

/// The interface, with its port.
#[derive(Debug)]
pub(super) struct Manager {
    listener: TcpListener,
    address: SocketAddr,
    config: DynomiteManagerConfig,
}

impl Manager {
    /// Takes the port of `[agent.dynomite_manager]`. Off the loopback interface there is none: it asks nobody for a token.
    pub fn bind(config: &DynomiteManagerConfig) -> Result<Self, Failure> {
        let listen = config.listen.as_deref().unwrap_or(LISTEN);
        let wrong = |reason: String| Failure::usage(format!("[agent.dynomite_manager] listen = {listen:?}: {reason}"));
        let mut found = listen.to_socket_addrs().map_err(|error| wrong(error.to_string()).hint("say 127.0.0.1:8080"))?;
        let address = found.next().ok_or_else(|| wrong("names no address".to_owned()))?;
        if !address.ip().is_loopback() {
            return Err(wrong(
                "anybody on the network could stop and restore the store: this interface knows no token".to_owned(),
            )
            .hint("listen on 127.0.0.1; other hosts ask the agent"));
        }
        let config = config.clone();
        if config.prefix.as_ref().is_some_and(|prefix| !prefix.starts_with('/') || prefix.contains(['{', '}'])) {
            return Err(Failure::usage("[agent.dynomite_manager] prefix is no path").hint("for example \"/REST/v1/admin\""));
        }
        let listener = TcpListener::bind(address).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let listener = listener.map_err(|error| {
            Failure::new("system", format!("[agent.dynomite_manager] listen = {listen:?}: {error}"))
                .hint("does Dynomite-manager still run here?")
        })?;
        Ok(Self { listener, address, config })
    }

    /// Serves until `stop`.
    pub async fn serve(
        self,
        common: CommonArgs,
        fleet: Arc<HostFleet>,
        repository: Arc<OpenedRepository>,
        stop: impl Future<Output = ()> + Send + 'static,
    ) {
        tracing::info!(address = %self.address, "the interface of Dynomite-manager is served");
        let prefix = self.config.prefix.clone();
        let service = Arc::new(HostManager { common, config: self.config, fleet, repository, last: Mutex::default() });
        if let Err(error) = dynomite_manager::serve(self.listener, prefix.as_deref(), service, stop).await {
            tracing::error!(%error, "the interface of Dynomite-manager is not served any more");
        }
    }
}

/// How the last of its kind went, in this process.
#[derive(Debug, Clone, Copy)]
struct Last {
    word: &'static str,
    at_ms: i64,
}

impl Default for Last {
    fn default() -> Self {
        Self { word: "not started", at_ms: 0 }
    }
}

impl Last {
    fn value(self) -> Value {
        json!({"status": self.word, "time": self.at_ms})
    }
}

#[derive(Debug, Default)]
struct LastOnes {
    backup: Last,
    restore: Last,
}

#[derive(Debug)]
struct HostManager {
    common: CommonArgs,
    config: DynomiteManagerConfig,
    fleet: Arc<HostFleet>,
    repository: Arc<OpenedRepository>,
    last: Mutex<LastOnes>,
}

fn failed(failure: Failure) -> ManagerError {
    ManagerError::Failed(failure.into())
}

fn broken(message: impl Into<String>) -> ManagerError {
    failed(Failure::new("broken", message))
}

impl HostManager {
    fn session(&self) -> Result<Session, ManagerError> {
        Session::begin(self.common.clone()).map_err(failed)
    }

    fn now_ms(session: &Session) -> i64 {
        session.now().0.div_euclid(1000)
    }

    fn remember(&self, change: impl FnOnce(&mut LastOnes)) {
        change(&mut self.last.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// This host's node as the configuration has it.
    fn nodes(&self, session: &Session) -> Result<(ClusterNode, Vec<ClusterNode>), ManagerError> {
        let nodes = session.configured_nodes(&self.config.cluster).map_err(failed)?;
        let (own, others): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.name == self.config.node);
        let own = own.into_iter().next().ok_or_else(|| {
            let DynomiteManagerConfig { cluster, node, .. } = &self.config;
            failed(Failure::usage(format!(
                "[agent.dynomite_manager] node = {:?}: cluster {cluster} has no such node",
                node.as_str()
            )))
        })?;
        Ok((own, others))
    }

    fn control(node: &ClusterNode) -> Result<RedisControl, ManagerError> {
        let options = node.redis.clone();
        let options =
            options.ok_or_else(|| ManagerError::NotHere(format!("{} has no address in the configuration", node.name)))?;
        RedisControl::new(options).map_err(|error| failed(error.into()))
    }

    /// A snapshot of the whole cluster, whose outcome is the answer. One that is under way is waited for.
    async fn back_up(&self) -> Result<ManagerAnswer, ManagerError> {
        let session = self.session()?;
        self.remember(|last| last.backup = Last { word: "pending", at_ms: Self::now_ms(&session) });
        let stored = self.store().await;
        let word = if stored.is_ok() { "completed" } else { "unsuccessful" };
        self.remember(|last| last.backup = Last { word, at_ms: Self::now_ms(&session) });
        stored.map(|()| ManagerAnswer::ok())
    }

    async fn store(&self) -> Result<(), ManagerError> {
        let uuid: SnapshotId = match self.fleet.begin(&self.config.cluster, SnapshotWish::default()).await {
            Ok(uuid) => uuid,
            // Each node was asked at the same hour: one snapshot is of all of them.
            Err(error) => error.uuid.ok_or(ManagerError::Failed(error))?,
        };
        let outcome = loop {
            let outcome = self.fleet.snapshot(uuid).await?;
            if outcome["status"] != "processing" {
                break outcome;
            }
            tokio::time::sleep(POLL).await;
        };
        let (own, _) = self.nodes(&self.session()?)?;
        let node = &outcome["nodes"][own.stored_name().map_err(failed)?.as_str()];
        if outcome["status"] == "completed" && node["status"] == "completed" {
            return Ok(());
        }
        let reason = node["reason"].as_str().or(outcome["reason"].as_str()).unwrap_or("the node is no part of it");
        Err(broken(format!("snapshot {uuid} of {}: {}: {reason}", self.config.cluster, outcome["status"])))
    }

    /// The configured node, from `restore_date`, by the commands of the configuration.
    async fn restore(&self) -> Result<ManagerAnswer, ManagerError> {
        if !self.config.allow_restore {
            let message = "a GET that replaces data is not carried out unless allow_restore = true stands under [agent.dynomite_manager]; use `tintype restore`";
            return Err(ManagerError::NotHere(message.to_owned()));
        }
        let session = self.session()?;
        self.remember(|last| last.restore = Last { word: "pending", at_ms: Self::now_ms(&session) });
        let restored = Box::pin(self.bring_back(&session)).await;
        let word = if restored.is_ok() { "completed" } else { "unsuccessful" };
        self.remember(|last| last.restore = Last { word, at_ms: Self::now_ms(&session) });
        restored.map(|()| ManagerAnswer::ok())
    }

    async fn bring_back(&self, session: &Session) -> Result<(), ManagerError> {
        let wrong = |error: anyhow::Error| broken(format!("{error:#}"));
        let cluster = &self.config.cluster;
        let (own, others) = self.nodes(session)?;
        let date = session.config.clusters.get(cluster).and_then(|config| config.restore_date.clone());
        let date = own.config.restore_date.clone().or(date).unwrap_or_else(|| "latest".to_owned());
        let (name, stored) = (own.name.clone(), own.stored_name().map_err(failed)?);
        let followers = others.into_iter().filter(|node| node.config.replica_of.as_ref() == Some(&name));
        let targets: Vec<_> = std::iter::once(own).chain(followers).map(target).collect();
        let state = StateDirectory::open(&session.state_directory()).map_err(|error| broken(error.to_string()))?;
        restore::recover_interrupted(&state).await.map_err(wrong)?;
        let repository = self.repository.get(session, None).await.map_err(failed)?;
        let query = SnapshotName::parse(&format!("{cluster}/{date}"), session.now()).map_err(|error| failed(error.into()))?;
        let listed = session.choose(repository.as_ref(), &query).await.map_err(failed)?;
        let request = RestoreRequest {
            target_cluster: cluster.to_string(),
            nodes: vec![stored],
            map: Vec::new(),
            method: Method::Copy,
            speeds: Default::default(),
            discard_current: false,
            // Said once and for all by `allow_restore`; what is replaced is set aside.
            confirm: Some(cluster.to_string()),
        };
        let clock = session.clock.clone();
        let prepared = restore::prepare(repository, &listed, &targets, &request, &state, clock).await.map_err(wrong)?;
        if !prepared.plan.is_allowed() {
            let reasons: Vec<_> = prepared.plan.refusals.iter().map(ToString::to_string).collect();
            return Err(failed(Failure::new("refused", reasons.join("; "))));
        }
        let on_step = |step| tracing::info!(%cluster, node = %name, ?step, "a restore goes on");
        let report = Box::pin(prepared.run(&on_step, &|| false)).await.map_err(wrong)?;
        if report.outcome == RestoreOutcome::Restored {
            return Ok(());
        }
        let reasons: Vec<_> = report.failures.iter().map(ToString::to_string).collect();
        Err(broken(reasons.join("; ")))
    }

    async fn ask(&self, path: &str) -> Result<String, String> {
        let own = self.session().and_then(|session| self.nodes(&session)).ok().and_then(|(own, _)| own.config.admin);
        ask_dynomite(self.config.admin.as_deref().or(own.as_deref()).unwrap_or(ADMIN), path).await
    }

    /// It answers 200 to everything: only a state is a sign of life.
    async fn dynomite_is_alive(&self) -> bool {
        self.ask("/state/get_state").await.is_ok_and(|text| text.contains("State:"))
    }

    /// Read and write.
    async fn consistency(&self) -> Result<(String, String), ManagerError> {
        let text = self.ask("/get_consistency").await.map_err(broken)?;
        consistency(&text).ok_or_else(|| broken(format!("Dynomite's answer is not understood: {text:?}")))
    }

    async fn status(&self) -> Result<ManagerAnswer, ManagerError> {
        let session = self.session()?;
        let (own, _) = self.nodes(&session)?;
        let (is_alive, seen) = tokio::join!(self.dynomite_is_alive(), async { Self::control(&own).ok()?.look().await.ok()? });
        let is_stored = seen.as_ref().is_some_and(|seen| !seen.is_loading);
        let (backup, restore) = {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            (last.backup, last.restore)
        };
        let mut status = json!({
            "warmup": Last::default().value(),
            // Where the repository is away, what this process knows.
            "backup": self.last_backup(&session, &own, backup).await.unwrap_or(backup).value(),
            "restore": restore.value(),
            "health": {"dynomiteAlive": is_alive, "storageAlive": is_stored, "Overall": is_alive && is_stored},
            "storage engine": seen.map_or("redis".to_owned(), |seen| seen.store),
        });
        if let Ok((read, write)) = self.consistency().await {
            status["consistency"] = json!({"read": read, "write": write});
        }
        if let Some(hashtag) = &self.config.hashtag {
            status["hashtag"] = json!(hashtag);
        }
        Ok(ManagerAnswer::Json(status))
    }

    /// What the repository has counts, whoever stored it, but for what failed or began after it.
    async fn last_backup(&self, session: &Session, own: &ClusterNode, known: Last) -> Result<Last, ManagerError> {
        if known.word == "pending" {
            return Ok(known);
        }
        let repository = self.repository.get(session, None).await.map_err(failed)?;
        let listed = repository.snapshots(&self.config.cluster).await.map_err(|error| failed(error.into()))?;
        let Some(newest) = listed.first() else { return Ok(known) };
        let manifest = repository.manifest(newest).await.map_err(|error| failed(error.into()))?;
        let is_stored =
            manifest.node(&own.stored_name().map_err(failed)?).is_some_and(|node| node.status == NodeStatus::Completed);
        let at_ms = manifest.cut_at.0.div_euclid(1000);
        Ok(if at_ms < known.at_ms && known.word != "completed" {
            known
        } else {
            Last { word: if is_stored { "completed" } else { "unsuccessful" }, at_ms }
        })
    }

    async fn describe(&self) -> Result<ManagerAnswer, ManagerError> {
        let text = self.ask("/cluster_describe").await.map_err(broken)?;
        let ring =
            serde_json::from_str(&text).map_err(|error| broken(format!("Dynomite's answer is not understood: {error}")))?;
        described(&ring, self.config.client_port.unwrap_or(CLIENT_PORT), self.config.hashtag.as_deref())
            .map(ManagerAnswer::Json)
            .ok_or_else(|| broken("Dynomite's answer names no servers"))
    }

    fn seeds(&self) -> Result<ManagerAnswer, ManagerError> {
        if self.config.seeds.is_empty() {
            let message = "Dynomite asks this to learn of the others, so it cannot be asked itself: name them as `seeds` under [agent.dynomite_manager]";
            return Err(ManagerError::NotHere(message.to_owned()));
        }
        Ok(ManagerAnswer::Text(self.config.seeds.join("|")))
    }

    /// The store is loaded, or gone.
    async fn store_is(&self, control: &RedisControl, is_up: bool) -> bool {
        match control.look().await {
            Ok(Some(seen)) => is_up && !seen.is_loading,
            Ok(None) => !is_up,
            Err(_) => false,
        }
    }

    /// Runs a command, and waits until what it is about is so: the store, or else Dynomite, is up or gone.
    async fn carry_out(
        &self,
        what: &str,
        command: Option<&Vec<String>>,
        store: Option<&RedisControl>,
        is_up: bool,
    ) -> Result<ManagerAnswer, ManagerError> {
        let Some(command) = command.filter(|command| !command.is_empty()) else {
            return Err(ManagerError::NotHere(format!("no command is configured to {what}")));
        };
        run_command(self.config.node.as_str(), what, command, COMMAND_LIMIT).await.map_err(|error| broken(error.to_string()))?;
        let until = Instant::now() + COMMAND_LIMIT;
        loop {
            let is_so = match store {
                Some(control) => self.store_is(control, is_up).await,
                None => self.dynomite_is_alive().await == is_up,
            };
            if is_so {
                return Ok(ManagerAnswer::ok());
            }
            if Instant::now() >= until {
                return Err(broken(format!("the command to {what} ended well, and after {COMMAND_LIMIT:?} it is not so")));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn target(node: ClusterNode) -> RestoreTarget {
    RestoreTarget {
        site: NodeSite {
            data_directory: node.directory,
            stop: node.config.stop.unwrap_or_default(),
            start: node.config.start.unwrap_or_default(),
            proxy: node.proxy,
        },
        replica_of: node.config.replica_of,
        host: None,
        node: node.name,
        server: node.redis,
        agent: None,
    }
}

/// Of `Read Consistency: DC_ONE` and the like.
fn consistency(text: &str) -> Option<(String, String)> {
    let value = |word: &str| {
        let lower = text.to_ascii_lowercase();
        let rest = &text[lower.find(word)? + word.len()..];
        let rest = &rest[rest.find(':')? + 1..];
        let level: String =
            rest.trim_start().chars().take_while(|character| character.is_ascii_alphanumeric() || *character == '_').collect();
        (!level.is_empty()).then_some(level)
    };
    Some((value("read")?, value("write")?))
}

/// The ring as Dynomite describes it, in the form of Dynomite-manager. What Dynomite does not tell (ports with TLS) is left out.
fn described(ring: &Value, client_port: u16, hashtag: Option<&str>) -> Option<Value> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut nodes = Vec::new();
    for datacenter in ring["dcs"].as_array()? {
        for rack in datacenter["racks"].as_array()? {
            for server in rack["servers"].as_array()? {
                let host = text(&server["host"]);
                let mut node = json!({
                    "token": text(&server["token"]),
                    "hostname": host,
                    "port": client_port.to_string(),
                    "peer_port": text(&server["port"]),
                    "rack": text(&rack["name"]),
                    "zone": text(&rack["name"]),
                    "dc": text(&datacenter["name"]),
                });
                if host.parse::<std::net::IpAddr>().is_ok() {
                    node["ip"] = json!(host);
                }
                if let Some(hashtag) = hashtag {
                    node["hashtag"] = json!(hashtag);
                }
                nodes.push(node);
            }
        }
    }
    Some(Value::Array(nodes))
}

#[async_trait]
impl ManagerService for HostManager {
    async fn call(&self, call: ManagerCall) -> Result<ManagerAnswer, ManagerError> {
        match call {
            ManagerCall::Backup => self.back_up().await,
            ManagerCall::Restore => self.restore().await,
            ManagerCall::Status => self.status().await,
            ManagerCall::ClusterDescribe => self.describe().await,
            ManagerCall::GetSeeds => self.seeds(),
            ManagerCall::Version => Ok(ManagerAnswer::Json(json!([env!("CARGO_PKG_VERSION")]))),
            ManagerCall::Consistency => {
                let (read, write) = self.consistency().await?;
                Ok(ManagerAnswer::Json(json!({"read_consistency": read, "write_consistency": write})))
            }
            ManagerCall::HashTag => match &self.config.hashtag {
                Some(hashtag) => Ok(ManagerAnswer::Json(json!({"hashtag": hashtag}))),
                None => Err(ManagerError::NotHere("no hashtag stands under [agent.dynomite_manager]".to_owned())),
            },
            ManagerCall::TakeSnapshot => {
                let (own, _) = self.nodes(&self.session()?)?;
                Self::control(&own)?.persist().await.map_err(|error| failed(error.into()))?;
                Ok(ManagerAnswer::ok())
            }
            ManagerCall::Start => {
                let (own, _) = self.nodes(&self.session()?)?;
                let command = self.config.start.as_ref().or(own.config.start_proxy.as_ref());
                self.carry_out("start Dynomite", command, None, true).await
            }
            ManagerCall::Stop => {
                let (own, _) = self.nodes(&self.session()?)?;
                let command = self.config.stop.as_ref().or(own.config.stop_proxy.as_ref());
                self.carry_out("stop Dynomite", command, None, false).await
            }
            ManagerCall::StartStorageProcess => {
                let (own, _) = self.nodes(&self.session()?)?;
                let control = Self::control(&own)?;
                self.carry_out("start the store", own.config.start.as_ref(), Some(&control), true).await
            }
            ManagerCall::StopStorageProcess => {
                let (own, _) = self.nodes(&self.session()?)?;
                let control = Self::control(&own)?;
                self.carry_out("stop the store", own.config.stop.as_ref(), Some(&control), false).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dynomite_tells_is_told_in_the_old_form() {
        let ring = json!({"dcs": [{"name": "us-east-1", "racks": [{"name": "us-east-1c", "servers": [
            {"name": "ec2-1", "host": "10.0.0.1", "port": 8101, "token": 1_383_429_731_u64},
            {"name": "ec2-2", "host": "ec2-2.example", "port": 8101, "token": "0"},
        ]}]}]});
        let nodes = described(&ring, 8102, Some("{}")).expect("a ring");
        let expected = json!({"token": "1383429731", "hostname": "10.0.0.1", "port": "8102", "peer_port": "8101", "rack": "us-east-1c", "ip": "10.0.0.1", "zone": "us-east-1c", "dc": "us-east-1", "hashtag": "{}"});
        assert_eq!(nodes[0], expected);
        assert_eq!((&nodes[1]["hostname"], nodes[1].get("ip")), (&json!("ec2-2.example"), None));
        assert!(described(&json!({"status": "OK"}), 8102, None).is_none());
        let levels = |text| consistency(text).map(|(read, write)| format!("{read} {write}"));
        assert_eq!(levels("Read Consistency: DC_ONE\r\nWrite Consistency: DC_QUORUM\r\n").as_deref(), Some("DC_ONE DC_QUORUM"));
        assert_eq!(levels("OK"), None);
    }
}
