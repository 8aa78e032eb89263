//! What stands behind the interface of Dynomite-manager on this host: the snapshots and restores that `tintype` takes, for one
//! configured node, and the Dynomite in front of it.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::config::DynomiteManagerConfig;
use super::super::control::restore::{self, RestoreTarget};
use super::super::control::restoring::in_words;
use super::super::control_args::CommonArgs;
use super::super::failure::Failure;
use super::super::wiring::{ClusterNode, Session};
use super::dynomite::{Dynomite, described};
use super::fleet::HostFleet;
use super::opened::OpenedRepository;
use crate::agent::dynomite_manager::{self, ManagerAnswer, ManagerCall, ManagerError, ManagerService};
use crate::agent::fleet::{FleetError, FleetErrorKind};
use crate::cluster::restore::RestoreOutcome;
use crate::driver::NodeSite;
use crate::driver::control::StoreControl;
use crate::driver::redis::RedisControl;
use crate::model::restore_plan::{Method, RestoreRequest};
use crate::model::snapshot_name::SnapshotName;
use crate::node::{Recovered, RestoreRecord, StateDirectory, run_command};

const LISTEN: &str = "127.0.0.1:8080";
/// A command of a supervisor's ends in this time, and what it started or stopped has answered or gone.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How often something is looked at that takes minutes.
pub(super) const POLL: Duration = Duration::from_millis(200);
/// What is under way when the daemon is told to stop has so long to end: a restore's store may be loading.
const CLOSE_LIMIT: Duration = Duration::from_secs(60);

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
        let is_plain = |character: char| character.is_ascii_alphanumeric() || "/-._~".contains(character);
        if let Some(prefix) = config.prefix.as_ref().filter(|prefix| !prefix.starts_with('/') || !prefix.chars().all(is_plain)) {
            let message = format!("[agent.dynomite_manager] prefix = {prefix:?} is no path of letters, digits and -._~");
            return Err(Failure::usage(message).hint("for example \"/REST/v1/admin\""));
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
        let service = Arc::new(HostManager {
            common,
            config: self.config,
            fleet,
            repository,
            last: Mutex::default(),
            changing: watch::Sender::default(),
            is_stopping: AtomicBool::default(),
        });
        service.recover().await;
        if let Err(error) = dynomite_manager::serve(self.listener, prefix.as_deref(), service, stop).await {
            tracing::error!(%error, "the interface of Dynomite-manager is not served any more");
        }
    }
}

/// How the last of its kind went, in this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Last {
    pub word: &'static str,
    pub at_ms: i64,
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
pub(super) struct LastOnes {
    pub backup: Last,
    restore: Last,
}

#[derive(Debug)]
pub(super) struct HostManager {
    common: CommonArgs,
    pub(super) config: DynomiteManagerConfig,
    pub(super) fleet: Arc<HostFleet>,
    pub(super) repository: Arc<OpenedRepository>,
    last: Mutex<LastOnes>,
    /// What is being done to the store or to Dynomite: one thing at a time.
    changing: watch::Sender<Option<&'static str>>,
    pub(super) is_stopping: AtomicBool,
}

/// Until it is dropped nothing else changes the store or Dynomite.
struct Changing<'a>(&'a watch::Sender<Option<&'static str>>);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

pub(super) fn failed(failure: Failure) -> ManagerError {
    ManagerError::Failed(failure.into())
}

pub(super) fn broken(message: impl Into<String>) -> ManagerError {
    failed(Failure::new("broken", message))
}

impl HostManager {
    pub(super) fn session(&self) -> Result<Session, ManagerError> {
        Session::begin(self.common.clone()).map_err(failed)
    }

    pub(super) fn now_ms(session: &Session) -> i64 {
        session.now().0.div_euclid(1000)
    }

    pub(super) fn remember(&self, change: impl FnOnce(&mut LastOnes)) {
        change(&mut self.last.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// This host's node as the configuration has it.
    pub(super) fn nodes(&self, session: &Session) -> Result<(ClusterNode, Vec<ClusterNode>), ManagerError> {
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

    /// Announces what is about to be done, or says what is under way instead.
    fn change(&self, what: &'static str) -> Result<Changing<'_>, ManagerError> {
        let refused = |code, message: String| {
            let hint = Some("ask again when it has ended".to_owned());
            Err(FleetError { kind: FleetErrorKind::Conflict, code: String::from(code), message, hint, uuid: None }.into())
        };
        let mut other = None;
        let is_taken = !self.changing.send_if_modified(|now| {
            other = *now;
            now.get_or_insert(what);
            other.is_none()
        });
        if is_taken {
            return refused("conflict", format!("{} is under way", other.unwrap_or(what)));
        }
        let changing = Changing(&self.changing);
        if self.is_stopping.load(Ordering::SeqCst) {
            return refused("stopping", "this daemon is being stopped".to_owned());
        }
        Ok(changing)
    }

    /// A daemon that died in the middle of a restore has left it half-way, with Redis and Dynomite down.
    async fn recover(&self) {
        let recovered = async {
            let session = Session::begin(self.common.clone())?;
            let state =
                StateDirectory::open(&session.state_directory()).map_err(|error| Failure::new("state", error.to_string()))?;
            let recovered = restore::recover_interrupted(&state).await;
            recovered.map_err(|error| Failure::new("restore", format!("{error:#}")))
        };
        match recovered.await {
            Ok(recovered) => {
                for Recovered { record, outcome } in recovered {
                    let RestoreRecord { cluster, node, .. } = record;
                    tracing::warn!(
                        cluster,
                        node,
                        "an interrupted restore was found: {}; start its Dynomite after it",
                        in_words(outcome)
                    );
                }
            }
            Err(failure) => tracing::error!(%failure, "what an interrupted restore has left could not be looked at"),
        }
    }

    fn control(node: &ClusterNode) -> Result<RedisControl, ManagerError> {
        let options = node.redis.clone();
        let options =
            options.ok_or_else(|| ManagerError::NotHere(format!("{} has no address in the configuration", node.name)))?;
        RedisControl::new(options).map_err(|error| failed(error.into()))
    }

    /// The configured node, from `restore_date`, by the commands of the configuration.
    async fn restore(&self) -> Result<ManagerAnswer, ManagerError> {
        if !self.config.allow_restore {
            let message = "a GET that replaces data is not carried out unless allow_restore = true stands under [agent.dynomite_manager]; use `tintype restore`";
            return Err(ManagerError::NotHere(message.to_owned()));
        }
        let session = self.session()?;
        let _changing = self.change("a restore")?;
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
        let report = Box::pin(prepared.run(&on_step, &|| self.is_stopping.load(Ordering::SeqCst))).await.map_err(wrong)?;
        if report.outcome == RestoreOutcome::Restored {
            return Ok(());
        }
        let reasons: Vec<_> = report.failures.iter().map(ToString::to_string).collect();
        let reason = if reasons.is_empty() {
            "the daemon was told to stop before the data was replaced".to_owned()
        } else {
            reasons.join("; ")
        };
        Err(broken(reason))
    }

    /// The Dynomite of this host.
    fn dynomite(&self, own: &ClusterNode) -> Result<Dynomite, ManagerError> {
        let of_ring = own.proxy.as_ref().map(|proxy| proxy.admin.as_str()).filter(|admin| !admin.is_empty());
        let base = self.config.admin.as_deref().or(of_ring).or(own.config.admin.as_deref());
        Dynomite::new(own.name.as_str(), base).map_err(|error| failed(error.into()))
    }

    async fn status(&self) -> Result<ManagerAnswer, ManagerError> {
        let session = self.session()?;
        let (own, _) = self.nodes(&session)?;
        let dynomite = self.dynomite(&own)?;
        let (is_alive, seen) = tokio::join!(dynomite.is_up(true), async { Self::control(&own).ok()?.look().await.ok()? });
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
        if let Ok((read, write)) = dynomite.consistency().await {
            status["consistency"] = json!({"read": read, "write": write});
        }
        if let Some(hashtag) = &self.config.hashtag {
            status["hashtag"] = json!(hashtag);
        }
        Ok(ManagerAnswer::Json(status))
    }

    async fn describe(&self) -> Result<ManagerAnswer, ManagerError> {
        let (own, _) = self.nodes(&self.session()?)?;
        let ring = self.dynomite(&own)?.ring().await.map_err(|error| failed(error.into()))?;
        Ok(ManagerAnswer::Json(described(&ring, self.config.client_port, self.config.hashtag.as_deref())))
    }

    fn seeds(&self) -> Result<ManagerAnswer, ManagerError> {
        if self.config.seeds.is_empty() {
            let message = "Dynomite asks this to learn of the others, so it cannot be asked itself: name them as `seeds` under [agent.dynomite_manager]";
            return Err(ManagerError::NotHere(message.to_owned()));
        }
        Ok(ManagerAnswer::Text(self.config.seeds.join("|")))
    }

    /// A Dynomite before a store that is loading would tell its clients of keys that are not there.
    async fn check_store(&self, own: &ClusterNode) -> Result<(), ManagerError> {
        if own.redis.is_none() {
            return Ok(());
        }
        let reason = match Self::control(own)?.look().await {
            Ok(Some(seen)) if !seen.is_loading => return Ok(()),
            Ok(Some(_)) => "its store is loading".to_owned(),
            Ok(None) => "its store does not run".to_owned(),
            Err(error) => error.to_string(),
        };
        let failure = Failure::new("refused", format!("Dynomite is not started: {}: {reason}", own.name));
        Err(failed(failure.hint("start the store first: startstorageprocess returns when it is loaded")))
    }

    /// The store is loaded, or gone.
    async fn store_is(&self, control: &RedisControl, is_up: bool) -> bool {
        match control.look().await {
            Ok(Some(seen)) => is_up && !seen.is_loading,
            Ok(None) => !is_up,
            Err(_) => false,
        }
    }

    /// Runs a command, and waits until what it is about is so: it is up, or gone.
    async fn carry_out(
        &self,
        what: &str,
        command: Option<&Vec<String>>,
        subject: Subject<'_>,
        is_up: bool,
    ) -> Result<ManagerAnswer, ManagerError> {
        let Some(command) = command.filter(|command| !command.is_empty()) else {
            return Err(ManagerError::NotHere(format!("no command is configured to {what}")));
        };
        run_command(self.config.node.as_str(), what, command, COMMAND_LIMIT).await.map_err(|error| broken(error.to_string()))?;
        let until = Instant::now() + COMMAND_LIMIT;
        loop {
            let is_so = match subject {
                Subject::Store(control) => self.store_is(control, is_up).await,
                Subject::Dynomite(dynomite) => dynomite.is_up(is_up).await,
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

/// What a command starts or stops.
enum Subject<'a> {
    Store(&'a RedisControl),
    Dynomite(&'a Dynomite),
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
                let (own, _) = self.nodes(&self.session()?)?;
                let (read, write) = self.dynomite(&own)?.consistency().await.map_err(broken)?;
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
                let _changing = self.change("a start of Dynomite")?;
                let (own, _) = self.nodes(&self.session()?)?;
                let command = self.config.start.as_ref().or(own.config.start_proxy.as_ref());
                self.check_store(&own).await?;
                self.carry_out("start Dynomite", command, Subject::Dynomite(&self.dynomite(&own)?), true).await
            }
            ManagerCall::Stop => {
                let _changing = self.change("a stop of Dynomite")?;
                let (own, _) = self.nodes(&self.session()?)?;
                let command = self.config.stop.as_ref().or(own.config.stop_proxy.as_ref());
                self.carry_out("stop Dynomite", command, Subject::Dynomite(&self.dynomite(&own)?), false).await
            }
            ManagerCall::StartStorageProcess => {
                let _changing = self.change("a start of the store")?;
                let (own, _) = self.nodes(&self.session()?)?;
                let control = Self::control(&own)?;
                self.carry_out("start the store", own.config.start.as_ref(), Subject::Store(&control), true).await
            }
            ManagerCall::StopStorageProcess => {
                let _changing = self.change("a stop of the store")?;
                let (own, _) = self.nodes(&self.session()?)?;
                let control = Self::control(&own)?;
                self.carry_out("stop the store", own.config.stop.as_ref(), Subject::Store(&control), false).await
            }
        }
    }

    async fn close(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        let mut changing = self.changing.subscribe();
        let what = *changing.borrow();
        let Some(what) = what else { return };
        tracing::info!("{what} is under way: it is waited for");
        if tokio::time::timeout(CLOSE_LIMIT, changing.wait_for(Option::is_none)).await.is_err() {
            tracing::error!(
                "{what} did not end within {CLOSE_LIMIT:?}: see which of Redis and Dynomite run; the next start of this daemon tells what became of a restore"
            );
        }
    }
}
