//! What a node says it is.

use std::collections::BTreeMap;

use crate::driver::DriverError;
use crate::model::manifest::{NodeDescription, Replication};

use super::RedisDriver;
use super::reply::cluster_nodes;

/// What a restore, or a person who plans one, must know. Not the directory: it is another one there.
const SETTINGS: [&str; 11] = [
    "appendonly",
    "appenddirname",
    "appendfilename",
    "aof-use-rdb-preamble",
    "databases",
    "dbfilename",
    "maxmemory",
    "maxmemory-policy",
    "rdbchecksum",
    "rdbcompression",
    "save",
];
/// Measures of `INFO memory` and `INFO stats` that let a coordinator add up what the forks of one host may need.
const MEASURES: [&str; 5] = ["used_memory", "used_memory_rss", "total_system_memory", "latest_fork_usec", "maxmemory"];

impl RedisDriver {
    pub(super) async fn describe_node(&mut self) -> Result<NodeDescription, DriverError> {
        let endpoint = self.options.endpoint()?;
        let data_directory = self.options.data_directory.clone();
        let control = self.control().await?;
        let fields = control.info(&["server", "memory", "stats", "replication", "cluster", "keyspace"]).await?;
        let mut settings = BTreeMap::new();
        for name in SETTINGS {
            if let Some(value) = control.setting(name).await? {
                settings.insert(name.to_owned(), value);
            }
        }
        let (store, version) = fields.store();
        let address = endpoint.to_string();
        let mut description = NodeDescription {
            store: store.to_owned(),
            version,
            role: fields.get("role").unwrap_or_default().to_owned(),
            settings,
            ..NodeDescription::default()
        };
        if fields.flag("cluster_enabled") {
            let text = control.text(&["CLUSTER", "NODES"]).await?;
            if let Some(myself) = cluster_nodes(&text).into_iter().find(|node| node.is("myself")) {
                description.identity.push(format!("node:{}", myself.id));
                description.epoch = Some(myself.epoch);
                description.slots = myself.slots;
                description.shard = Some(myself.id);
            }
            description.notes.insert("cluster_nodes".to_owned(), text);
        }
        // A stream without a backlog takes another id at the first synchronisation; the address is what then stays.
        for field in ["master_replid", "master_replid2"] {
            if let Some(id) = fields.get(field).filter(|id| id.bytes().any(|byte| byte != b'0')) {
                description.identity.push(format!("replication:{id}"));
            }
        }
        description.identity.push(format!("address:{address}"));
        description.address = address;
        description.replication = fields
            .get("master_replid")
            .zip(fields.number("master_repl_offset"))
            .map(|(id, offset)| Replication { id: id.to_owned(), offset });
        for name in MEASURES {
            if let Some(value) = fields.get(name) {
                description.notes.insert(name.to_owned(), value.to_owned());
            }
        }
        if let Some(directory) = data_directory {
            description.notes.insert("data_directory".to_owned(), directory.display().to_string());
        }
        Ok(description)
    }
}
