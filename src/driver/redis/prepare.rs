//! Everything that is refused or waited for before the freeze.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::driver::DriverError;
use crate::model::names::TreePath;

use super::checks::{OLDEST_VERSION, TransferPlan, TransferSettings, fork_estimate, pause_in_force, plan_transfer};
use super::control::text;
use super::replica::Replica;
use super::reply::{Fields, clients_named, cluster_nodes};
use super::{CaptureMode, NAME_IDLE, NAME_PREFIX, RedisDriver};

/// How often a state that must pass is looked at.
const POLL: Duration = Duration::from_millis(50);

/// How long a connection that was closed a moment ago, such as that of our last cut, may still be listed.
const CLOSING_LIMIT: Duration = Duration::from_secs(2);

/// What was found out before the freeze.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) version: (u32, u32),
    pub(super) cluster: bool,
    pub(super) slots: Vec<(u16, u16)>,
    /// Whether there are save points.
    pub(super) saves: bool,
    pub(super) appends: bool,
    /// Plain file names, whatever the node has configured.
    pub(super) dump_name: String,
    pub(super) append_name: String,
    pub(super) append_directory: String,
    /// For captures by replication.
    pub(super) transfer: Option<TransferPlan>,
    /// `CLIENT LIST` is permitted.
    pub(super) lists_clients: bool,
}

impl RedisDriver {
    pub(super) async fn prepare_node(&mut self, max_pause: Duration, patience: Duration) -> Result<(), DriverError> {
        let until = Instant::now() + patience;
        self.wait_until_loaded(until, patience).await?;
        let fields = self.control().await?.info(&["server", "clients", "memory", "replication", "cluster"]).await?;
        let version = self.version(&fields)?;
        self.check_role(&fields)?;
        self.wait_until_unpaused(until, patience).await?;
        let cluster = fields.flag("cluster_enabled");
        let slots = if cluster { self.check_cluster().await? } else { Vec::new() };
        let lists_clients = self.check_other_coordinators(until).await?;
        self.check_pause_permitted().await?;
        self.check_unpause_permitted().await?;
        self.wait_until_quiet(until, patience).await?;
        if matches!(self.options.capture, CaptureMode::Replication | CaptureMode::Save) {
            let fields = self.control().await?.info(&["memory", "stats"]).await?;
            self.check_fork(&fields, max_pause)?;
        }
        let mut prepared = self.read_settings(version, cluster, slots, lists_clients).await?;
        match self.options.capture {
            CaptureMode::Replication => {
                let plan = self.plan_transfer(&prepared).await?;
                self.replica = Some(Replica::open(&self.options, plan.diskless).await?);
                prepared.transfer = Some(plan);
            }
            CaptureMode::FromReplica => {
                self.source = Some(Box::new(self.prepare_source(max_pause, until, patience).await?));
            }
            CaptureMode::Save => {
                self.data_directory()?;
                self.check_permitted(&["BGSAVE", "PERMITTED?"]).await?;
            }
            CaptureMode::Aof => {
                self.data_directory()?;
                if !prepared.appends {
                    return Err(self.refused("capture = \"aof\" needs appendonly yes on the node; use capture = \"replication\""));
                }
            }
        }
        self.control().await?.ask(&["CLIENT", "SETNAME", NAME_IDLE]).await?;
        self.prepared = Some(prepared);
        Ok(())
    }

    /// Its version, where that is new enough.
    pub(super) fn version(&self, fields: &Fields) -> Result<(u32, u32), DriverError> {
        let version = fields.compatible_version();
        if version < OLDEST_VERSION {
            let found = fields.get("redis_version").unwrap_or("unknown");
            return Err(self.refused(format!("its version is {found}, and 6.2 is the oldest that can pause writes; upgrade it")));
        }
        Ok(version)
    }

    /// Its next fork must fit into the pause.
    pub(super) fn check_fork(&self, fields: &Fields, max_pause: Duration) -> Result<(), DriverError> {
        let estimate = fork_estimate(fields);
        if estimate > max_pause {
            return Err(self.refused(format!(
                "its next fork takes about {estimate:?}, longer than max_pause ({max_pause:?}); raise max_pause if writers may wait as long"
            )));
        }
        Ok(())
    }

    /// The data directory, which must be here.
    pub(super) fn data_directory(&self) -> Result<PathBuf, DriverError> {
        let Some(directory) = &self.options.data_directory else {
            return Err(self.refused(
                "this capture mode reads the node's files: set data_directory, or use capture = \"replication\" for a node on another host",
            ));
        };
        match std::fs::metadata(directory) {
            Ok(metadata) if metadata.is_dir() => Ok(directory.clone()),
            Ok(_) => Err(self.refused(format!("data_directory {} is not a directory", directory.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(DriverError::Denied {
                node: self.node(),
                reason: format!("data_directory {}: {error}; run as a user who may read it", directory.display()),
            }),
            Err(error) => Err(self.refused(format!("data_directory {}: {error}", directory.display()))),
        }
    }

    pub(super) async fn wait_until_loaded(&mut self, until: Instant, patience: Duration) -> Result<(), DriverError> {
        while self.control().await?.info(&["persistence"]).await?.flag("loading") {
            if Instant::now() >= until {
                return Err(self.refused(format!("it is still loading its data after {patience:?}; try again later")));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits for a pause that somebody else began to end: that of a snapshot that died does so by itself.
    async fn wait_until_unpaused(&mut self, until: Instant, patience: Duration) -> Result<(), DriverError> {
        loop {
            if !pause_in_force(&self.control().await?.info(&["clients"]).await?) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(
                    self.refused(format!("somebody has paused its clients for longer than {patience:?}; try again later"))
                );
            }
            sleep(POLL).await;
        }
    }

    fn check_role(&self, fields: &Fields) -> Result<(), DriverError> {
        if fields.get("role") == Some("master") {
            return Ok(());
        }
        let master = match (fields.get("master_host"), fields.get("master_port")) {
            (Some(host), Some(port)) => format!("; its master is {host}:{port}: name that one instead"),
            _ => String::new(),
        };
        Err(self.refused(format!("it is not a master{master}")))
    }

    /// Its slots.
    async fn check_cluster(&mut self) -> Result<Vec<(u16, u16)>, DriverError> {
        let control = self.control().await?;
        let state = Fields::parse(&control.text(&["CLUSTER", "INFO"]).await?);
        let nodes = cluster_nodes(&control.text(&["CLUSTER", "NODES"]).await?);
        if state.get("cluster_state") != Some("ok") {
            let found = state.get("cluster_state").unwrap_or("unknown");
            return Err(self.refused(format!("cluster_state is {found}; see CLUSTER INFO and CLUSTER NODES")));
        }
        let Some(myself) = nodes.into_iter().find(|node| node.is("myself")) else {
            return Err(self.refused("CLUSTER NODES does not show the node itself"));
        };
        if !myself.moving.is_empty() {
            return Err(self.refused(format!(
                "slots are migrating or being imported ({}); let the resharding end, or mend it with `redis-cli --cluster fix`",
                myself.moving.join(" ")
            )));
        }
        Ok(myself.slots)
    }

    /// Whether `CLIENT LIST` is permitted, and nobody else of our kind is there.
    pub(super) async fn check_other_coordinators(&mut self, until: Instant) -> Result<bool, DriverError> {
        let limit = self.options.answer_limit;
        let until = until.min(Instant::now() + CLOSING_LIMIT);
        loop {
            let answer = self.control().await?.ask_all(&[&["CLIENT", "LIST"]], limit).await?.remove(0);
            let Ok(list) = answer else { return Ok(false) };
            let others = clients_named(&text(&list), NAME_PREFIX);
            if others.is_empty() {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Err(
                    self.refused(format!("another snapshot of it is under way ({}); wait for it, or end it", others.join(", ")))
                );
            }
            sleep(POLL).await;
        }
    }

    /// `CLIENT PAUSE` with a time that is none: the ACL is asked before the time is read, so that nothing is paused.
    async fn check_pause_permitted(&mut self) -> Result<(), DriverError> {
        self.check_permitted(&["CLIENT", "PAUSE", "permitted?", "WRITE"]).await
    }

    /// `CLIENT UNPAUSE` cannot be tried, for it would end somebody's pause: it is queued in a transaction, where the ACL is
    /// asked, and discarded. Without the right to `MULTI` it stays unknown, and a pause would end by itself.
    async fn check_unpause_permitted(&mut self) -> Result<(), DriverError> {
        if self.control().await?.ask(&["MULTI"]).await.is_err() {
            return Ok(());
        }
        let outcome = self.control().await?.ask(&["CLIENT", "UNPAUSE"]).await;
        let discarded = self.control().await?.ask(&["DISCARD"]).await;
        if discarded.is_err() {
            // Closing the connection discards as well.
            self.control = None;
        }
        outcome.map(|_| ())
    }

    /// A command that cannot succeed: an error other than the ACL's shows that it is permitted.
    async fn check_permitted(&mut self, command: &[&str]) -> Result<(), DriverError> {
        match self.control().await?.ask(command).await {
            Err(error @ DriverError::Refused { .. }) => {
                tracing::debug!(%error, "permitted");
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits for saves, rewrites and full synchronisations of others: our fork would come after them, outside the freeze.
    pub(super) async fn wait_until_quiet(&mut self, until: Instant, patience: Duration) -> Result<(), DriverError> {
        loop {
            let fields = self.control().await?.info(&["persistence", "replication"]).await?;
            let mut busy: Vec<&str> = [
                ("rdb_bgsave_in_progress", "a save"),
                ("aof_rewrite_in_progress", "an AOF rewrite"),
                ("aof_rewrite_scheduled", "a scheduled AOF rewrite"),
            ]
            .into_iter()
            .filter(|(field, _)| fields.flag(field))
            .map(|(_, name)| name)
            .collect();
            if fields.replicas_synchronising() > 0 {
                busy.push("a full synchronisation of a replica");
            }
            if busy.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(
                    self.refused(format!("{} is still under way after {patience:?}; try again later", busy.join(" and ")))
                );
            }
            sleep(POLL).await;
        }
    }

    pub(super) async fn read_settings(
        &mut self,
        version: (u32, u32),
        cluster: bool,
        slots: Vec<(u16, u16)>,
        lists_clients: bool,
    ) -> Result<Prepared, DriverError> {
        let control = self.control().await?;
        let saves = control.setting("save").await?.is_some_and(|points| !points.is_empty());
        let appends = control.setting("appendonly").await?.as_deref() == Some("yes");
        let dump_name = plain_name(control.setting("dbfilename").await?, "dump.rdb");
        let append_name = plain_name(control.setting("appendfilename").await?, "appendonly.aof");
        let append_directory = plain_name(control.setting("appenddirname").await?, "appendonlydir");
        Ok(Prepared {
            version,
            cluster,
            slots,
            saves,
            appends,
            dump_name,
            append_name,
            append_directory,
            transfer: None,
            lists_clients,
        })
    }

    pub(super) async fn plan_transfer(&mut self, prepared: &Prepared) -> Result<TransferPlan, DriverError> {
        let limit = self.options.answer_limit;
        let control = self.control().await?;
        let diskless = control.setting("repl-diskless-sync").await?.as_deref() == Some("yes");
        let delay = control.setting("repl-diskless-sync-delay").await?.unwrap_or_else(|| "0".to_owned());
        let deletes_sync_files = control.setting("rdb-del-sync-files").await?.as_deref() == Some("yes");
        // Set to what they are: nothing changes, and the answers say whether we may.
        let trials: &[&[&str]] = &[&["CONFIG", "SET", "repl-diskless-sync-delay", &delay], &["CLIENT", "REPLY", "ON"]];
        let trials = control.ask_all(trials, limit).await?;
        let settings = TransferSettings {
            version: prepared.version,
            diskless,
            delay_s: delay.parse().unwrap_or(0),
            may_configure: trials[0].is_ok(),
            may_silence: trials[1].is_ok(),
            saves: prepared.saves,
            appends: prepared.appends,
            deletes_sync_files,
        };
        plan_transfer(&settings).map_err(|reason| self.refused(reason))
    }
}

/// A file name from the node's configuration, or the usual one where it would not be a name in our tree.
fn plain_name(configured: Option<String>, usual: &str) -> String {
    configured.filter(|name| TreePath::root().join(name.as_bytes()).is_ok()).unwrap_or_else(|| usual.to_owned())
}
