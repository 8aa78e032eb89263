//! A dump that a replica forks, at the offset where its master stands still.
//!
//! How it works: the master is frozen and read as ever, and forks nothing. What it had written until then is waited for on
//! the replica, which sends us a dump as it would to a replica of its own: its answer names its master's stream and the
//! offset of its fork, and that must be the master's, which nobody has written to since. A replica that lags makes the cut void.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::driver::DriverError;
use crate::model::names::NodeName;

use super::checks::Mark;
use super::options::Endpoint;
use super::replica::{Replica, Resynchronisation};
use super::reply::Fields;
use super::{Captured, NAME_IDLE, RedisDriver, RedisOptions};

/// How often the replica is asked how far it is, while its master's writers wait.
const POLL: Duration = Duration::from_millis(2);

/// A replica as its master sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    host: String,
    port: u16,
    offset: u64,
}

/// Of the replicas that are online, the one that is furthest; of several the first.
fn nearest_replica(fields: &Fields) -> Option<Seen> {
    let seen = |line: &str| {
        let part = |name: &str| line.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        let is_online = part("state") == Some("online");
        let port: u16 = part("port")?.parse().ok()?;
        // A replica without a port is a backup tool that reads the stream.
        is_online.then_some(())?;
        (port > 0).then_some(Seen { host: part("ip")?.to_owned(), port, offset: part("offset")?.parse().ok()? })
    };
    let all = (0..).map_while(|number| fields.get(&format!("slave{number}"))).filter_map(seen);
    all.reduce(|best, next| if next.offset > best.offset { next } else { best })
}

impl RedisDriver {
    /// Everything slow or refusable on the replica that is to fork.
    pub(super) async fn prepare_source(
        &mut self,
        max_pause: Duration,
        until: Instant,
        patience: Duration,
    ) -> Result<Self, DriverError> {
        let tls = self.options.endpoint()?.tls;
        let master = self.control().await?.info(&["replication"]).await?;
        let Some(seen) = nearest_replica(&master) else {
            return Err(self.refused(
                "no replica of it is online, and with from = \"replica\" one of them forks; see INFO replication, or set from = \"master\"",
            ));
        };
        let place = Endpoint { tls, host: seen.host, port: seen.port };
        let name = format!("{}_{}", place.host.replace(':', "-"), place.port);
        let node = NodeName::new(name).unwrap_or_else(|_| self.options.node.clone());
        let mut source = Self::new(RedisOptions { node, url: place.url(), ..self.options.clone() })?;
        source.wait_until_loaded(until, patience).await?;
        let fields = source.control().await?.info(&["server", "memory", "stats", "replication"]).await?;
        let version = source.version(&fields)?;
        source.follows(&fields, master.get("master_replid").unwrap_or_default()).map_err(|reason| source.refused(reason))?;
        let lists_clients = source.check_other_coordinators(until).await?;
        source.wait_until_quiet(until, patience).await?;
        source.check_fork(&fields, max_pause)?;
        let mut prepared = source.read_settings(version, false, Vec::new(), lists_clients).await?;
        let plan = source.plan_transfer(&prepared).await?;
        if !plan.settings.is_empty() && !plan.in_one_write {
            return Err(source.refused(
                "before Redis 7 a replica only forks at once where its repl-diskless-sync is yes and repl-diskless-sync-delay 0: set both, or set from = \"master\"",
            ));
        }
        source.replica = Some(Replica::open(&source.options, plan.diskless).await?);
        source.control().await?.ask(&["CLIENT", "SETNAME", NAME_IDLE]).await?;
        prepared.transfer = Some(plan);
        source.prepared = Some(prepared);
        Ok(source)
    }

    /// Whether it is a replica in good standing of the master with this stream; why not.
    fn follows(&self, fields: &Fields, stream: &str) -> Result<(), String> {
        if fields.get("role") == Some("master") {
            return Err("it is no replica any more; try again".to_owned());
        }
        if fields.get("master_link_status") != Some("up") {
            return Err("its link to its master is down; see INFO replication, or set from = \"master\"".to_owned());
        }
        if fields.get("master_replid") != Some(stream) {
            return Err("it follows another master; try again".to_owned());
        }
        Ok(())
    }

    /// Waits until the replica is where its frozen master stands, and has it fork there.
    pub(super) async fn fork_source(&mut self, stream: &str, offset: u64, limit: Duration) -> Result<Mark, DriverError> {
        let until = Instant::now() + limit;
        let Some(source) = self.source.as_mut() else { return Err(self.refused("it was not prepared")) };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let asked = tokio::time::timeout(left, source.control().await?.info(&["replication"])).await;
            let Ok(fields) = asked else { return Err(source.void("it did not answer while its master was frozen")) };
            let fields = fields?;
            source.follows(&fields, stream).map_err(|reason| source.void(reason))?;
            let reached = fields.number("master_repl_offset").unwrap_or(0);
            if reached >= offset {
                break;
            }
            if Instant::now() + POLL >= until {
                return Err(source.void(format!(
                    "it was still at offset {reached} when the pause was over, and its master at {offset}; raise max_pause, or set from = \"master\""
                )));
            }
            sleep(POLL).await;
        }
        let plan = source.prepared.as_ref().and_then(|prepared| prepared.transfer.clone());
        let (Some(mut replica), Some(plan)) = (source.replica.take(), plan) else {
            return Err(source.refused("it was not prepared"));
        };
        source.changed.extend(plan.settings.iter().map(|(name, _, before)| (*name, before.clone())));
        let left = until.saturating_duration_since(Instant::now());
        let Resynchronisation { replication_id, offset } = replica.synchronise(&plan.settings, left).await?;
        let by = source.options.endpoint()?.to_string();
        self.captured = Some(Captured::Stream(Box::new(replica)));
        Ok(Mark::OfReplica { by, replication_id, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replica_that_is_furthest_forks() {
        let text = "role:master\r\nconnected_slaves:4\r\n\
            slave0:ip=10.0.0.1,port=1,state=online,offset=90,lag=1\r\nslave1:ip=10.0.0.2,port=2,state=online,offset=100,lag=0\r\n\
            slave2:ip=10.0.0.3,port=3,state=wait_bgsave,offset=0,lag=0\r\nslave3:ip=10.0.0.4,port=0,state=online,offset=200,lag=0\r\n\
            slave_expires_tracked_keys:0\r\n";
        let found = nearest_replica(&Fields::parse(text)).expect("one is online");
        assert_eq!(found, Seen { host: "10.0.0.2".to_owned(), port: 2, offset: 100 });
        assert_eq!(nearest_replica(&Fields::parse("role:master\r\nconnected_slaves:0\r\n")), None);
    }
}
