//! Redis and Valkey servers as a restore sees them: facts before and after, save, `SHUTDOWN`.
//!
//! Every call makes a connection of its own: the server comes and goes between them.

use std::time::Duration;

use async_trait::async_trait;
use redis::Value;

use super::control::{Control, text};
use super::options::RedisOptions;
use super::reply::{Fields, cluster_nodes};
use crate::driver::DriverError;
use crate::driver::control::StoreControl;
use crate::model::restore_plan::ServerFacts;

/// Settings that decide where a server looks for its data.
const SETTINGS: [&str; 6] = ["appendonly", "appenddirname", "appendfilename", "dbfilename", "save", "cluster-config-file"];
/// The same, of nodes of a cluster.
const CLUSTER_SETTINGS: [&str; 1] = ["cluster-node-timeout"];
/// Limit for one whole save: 100 GB at 50 MB/s take half an hour.
const SAVE_LIMIT: Duration = Duration::from_secs(3600);
/// How often an append-only file is looked at until all of it is in the file.
const POLL: Duration = Duration::from_millis(50);

/// One server at its address.
#[derive(Debug, Clone)]
pub struct RedisControl {
    options: RedisOptions,
}

impl RedisControl {
    /// Does not connect yet; a url that is not understood is refused.
    pub fn new(options: RedisOptions) -> Result<Self, DriverError> {
        options.endpoint()?;
        Ok(Self { options })
    }

    /// Has it write its own files anew, the append-only ones where it has those, else the dump, and waits until that is done. Nothing
    /// is held back. One that is being written already is not the answer: it began earlier.
    pub async fn persist(&self) -> Result<(), DriverError> {
        let mut control = Control::open(&self.options).await?;
        let is_append_only = control.info(&["persistence"]).await?.flag("aof_enabled");
        let (command, running, outcome) = match is_append_only {
            true => ("BGREWRITEAOF", ["aof_rewrite_in_progress", "aof_rewrite_scheduled"], "aof_last_bgrewrite_status"),
            false => ("BGSAVE", ["rdb_bgsave_in_progress", "async_loading"], "rdb_last_bgsave_status"),
        };
        let until = tokio::time::Instant::now() + SAVE_LIMIT;
        for is_begun in [false, true] {
            if is_begun {
                control.ask(&[command]).await?;
            }
            loop {
                let fields = control.info(&["persistence"]).await?;
                // A save of either kind keeps the other one waiting.
                let others = ["rdb_bgsave_in_progress", "aof_rewrite_in_progress"];
                let names = if is_begun { running } else { others };
                if !names.iter().any(|name| fields.flag(name)) {
                    if is_begun && fields.get(outcome) != Some("ok") {
                        let reason = format!("{command} failed: its own log says why");
                        return Err(DriverError::Broken { node: self.options.node.to_string(), reason });
                    }
                    break;
                }
                if tokio::time::Instant::now() >= until {
                    let reason = format!("{command} was not done within {SAVE_LIMIT:?}");
                    return Err(DriverError::Broken { node: self.options.node.to_string(), reason });
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Whether somebody listens; a host that does not answer at all is an error.
    async fn is_listening(&self) -> Result<bool, DriverError> {
        let endpoint = self.options.endpoint()?;
        let node = self.options.node.to_string();
        let unreachable = |reason: String| DriverError::Unreachable { node: node.clone(), reason };
        let connecting = tokio::net::TcpStream::connect((endpoint.host.as_str(), endpoint.port));
        match tokio::time::timeout(self.options.connect_limit, connecting).await {
            Err(_) => Err(unreachable(format!("{endpoint}: no connection within {:?}", self.options.connect_limit))),
            Ok(Ok(_)) => Ok(true),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(false),
            Ok(Err(error)) => Err(unreachable(format!("{endpoint}: {error}"))),
        }
    }

    async fn facts(&self) -> Result<ServerFacts, DriverError> {
        let mut control = Control::open(&self.options).await?;
        let fields = control.info(&["server", "replication", "persistence", "cluster", "keyspace"]).await?;
        let (store, version) = fields.store();
        let mut facts = ServerFacts {
            store: store.to_owned(),
            version,
            role: fields.get("role").unwrap_or_default().to_owned(),
            pid: fields.number("process_id").and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            is_loading: fields.flag("loading") || fields.flag("async_loading"),
            in_cluster: fields.flag("cluster_enabled"),
            link_is_up: fields.get("master_link_status") == Some("up") && !fields.flag("master_sync_in_progress"),
            replication_id: fields.get("master_replid").unwrap_or_default().to_owned(),
            replicas: fields.number("connected_slaves").unwrap_or(0),
            keys: keys(&fields),
            changes: fields.number("rdb_changes_since_last_save").unwrap_or(0),
            saved_at: fields.get("rdb_last_save_time").and_then(|time| time.parse().ok()).unwrap_or(0),
            loaded_keys: fields.number("rdb_last_load_keys_loaded"),
            loaded_expired: fields.number("rdb_last_load_keys_expired"),
            loaded_bytes: fields.number("loading_loaded_bytes").unwrap_or(0),
            ..ServerFacts::default()
        };
        if facts.is_loading {
            // Nearly every other command is refused until it has loaded.
            return Ok(facts);
        }
        let of_cluster = CLUSTER_SETTINGS.iter().filter(|_| facts.in_cluster);
        for name in SETTINGS.iter().chain(of_cluster).copied() {
            if let Some(value) = control.setting(name).await? {
                facts.settings.insert(name.to_owned(), value);
            }
        }
        facts.directory = control.setting("dir").await?.map(Into::into);
        if !facts.in_cluster {
            facts.is_watched = is_watched(&mut control).await?;
        }
        if facts.in_cluster {
            let nodes = control.text(&["CLUSTER", "NODES"]).await?;
            if let Some(myself) = cluster_nodes(&nodes).into_iter().find(|node| node.is("myself")) {
                // Replicas that are down now count too: they may come back in the middle.
                let followers = nodes.lines().filter(|line| line.split_whitespace().nth(3) == Some(&myself.id)).count() as u64;
                facts.replicas = facts.replicas.max(followers);
                let line = nodes.lines().find(|line| line.split_whitespace().next() == Some(&myself.id));
                facts.follows = line.and_then(|line| line.split_whitespace().nth(3)).filter(|id| *id != "-").map(str::to_owned);
                facts.slots = myself.slots;
                facts.cluster_id = myself.id;
            }
            facts.cluster_ok = Fields::parse(&control.text(&["CLUSTER", "INFO"]).await?).get("cluster_state") == Some("ok");
        }
        Ok(facts)
    }
}

/// Every Sentinel listens on this channel of the servers that it watches. `None` where it may not be asked.
async fn is_watched(control: &mut Control) -> Result<Option<bool>, DriverError> {
    let answer = match control.ask(&["PUBSUB", "NUMSUB", "__sentinel__:hello"]).await {
        Err(DriverError::Denied { .. } | DriverError::Refused { .. }) => return Ok(None),
        answer => answer?,
    };
    let count = |value: &Value| text(value).parse::<u64>().is_ok_and(|listeners| listeners > 0);
    Ok(match answer {
        Value::Array(pair) => pair.get(1).map(count),
        Value::Map(pairs) => pairs.first().map(|(_, value)| count(value)),
        _ => None,
    })
}

/// Keys of all databases: `db0:keys=15,expires=1,avg_ttl=0`.
fn keys(fields: &Fields) -> u64 {
    let database = |number: usize| {
        let text = fields.get(&format!("db{number}"))?;
        text.split(',').find_map(|part| part.strip_prefix("keys="))?.parse::<u64>().ok()
    };
    // More databases than this are legal, and nobody has them.
    (0..1024).filter_map(database).sum()
}

#[async_trait]
impl StoreControl for RedisControl {
    async fn look(&self) -> Result<Option<ServerFacts>, DriverError> {
        if !self.is_listening().await? {
            return Ok(None);
        }
        match self.facts().await {
            Ok(facts) => Ok(Some(facts)),
            // It may have ended between the two, or be on its way up or down.
            Err(DriverError::Unreachable { .. }) if !self.is_listening().await? => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn save(&self, pause: Duration) -> Result<(), DriverError> {
        let mut control = Control::open(&self.options).await?;
        let pause = pause.as_millis().to_string();
        let hold = ["CLIENT", "PAUSE", &pause, "WRITE"];
        control.ask(&hold).await?;
        let broken = |reason: &str| DriverError::Broken { node: self.options.node.to_string(), reason: reason.to_owned() };
        let until = tokio::time::Instant::now() + SAVE_LIMIT / 2;
        let mut fields = control.info(&["persistence"]).await?;
        // SAVE is refused while a child saves.
        while fields.flag("rdb_bgsave_in_progress") && tokio::time::Instant::now() < until {
            tokio::time::sleep(POLL).await;
            fields = control.info(&["persistence"]).await?;
        }
        if fields.flag("aof_enabled") {
            while fields.flag("aof_buffer_length") || fields.flag("aof_pending_bio_fsync") {
                if tokio::time::Instant::now() >= until {
                    return Err(broken("its append-only file was not written in time"));
                }
                tokio::time::sleep(POLL).await;
                fields = control.info(&["persistence"]).await?;
            }
            return match fields.get("aof_last_write_status") {
                Some("ok") | None => Ok(()),
                Some(_) => Err(broken("it could not write its append-only file")),
            };
        }
        // The pause may pass while it saves: sent together, nobody's write comes between the two.
        let mut answers = control.ask_all(&[&["SAVE"], &hold], SAVE_LIMIT).await?.into_iter();
        for (what, answer) in ["SAVE", "CLIENT PAUSE"].into_iter().zip(&mut answers) {
            answer.map_err(|error| control.fault(what, &error))?;
        }
        Ok(())
    }

    async fn hold(&self, pause: Duration) -> Result<(), DriverError> {
        let pause = pause.as_millis().to_string();
        Control::open(&self.options).await?.ask(&["CLIENT", "PAUSE", &pause, "WRITE"]).await.map(|_| ())
    }

    async fn resume(&self) -> Result<(), DriverError> {
        Control::open(&self.options).await?.ask(&["CLIENT", "UNPAUSE"]).await.map(|_| ())
    }

    async fn shut_down(&self, save: bool) -> Result<(), DriverError> {
        let mut control = Control::open(&self.options).await?;
        let how = if save { "SAVE" } else { "NOSAVE" };
        // It answers only when it stays: with an error.
        match control.ask_all(&[&["SHUTDOWN", how]], SAVE_LIMIT).await {
            Err(DriverError::Unreachable { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(mut answers) => match answers.remove(0) {
                Ok(value) => Err(DriverError::Refused {
                    node: self.options.node.to_string(),
                    reason: format!("SHUTDOWN: {}", text(&value)),
                }),
                Err(error) if error.is_connection_dropped() || error.is_io_error() => Ok(()),
                Err(error) => Err(control.fault("SHUTDOWN", &error)),
            },
        }
    }
}
