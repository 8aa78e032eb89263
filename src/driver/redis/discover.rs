//! Finding the masters of a Redis Cluster from any one node, and those that a Sentinel watches.

use std::collections::HashMap;

use crate::driver::DriverError;
use crate::model::names::NodeName;

use super::control::Control;
use super::options::{Endpoint, RedisOptions};
use super::reply::cluster_nodes;

/// A master that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    /// Named after its address, `127.0.0.1_6379`, or as Sentinel calls it, whichever server that is now: the same at every
    /// snapshot, whoever was asked.
    pub node: NodeName,
    /// `redis://host:port` or `rediss://host:port`, as the seed was reached.
    pub url: String,
    /// Cluster node id; `None` outside of a cluster.
    pub id: Option<String>,
}

/// The masters that hold slots, in the order of their addresses, asked of the node that `seed` points to; outside of a
/// cluster the node itself, when it is a master; of a Sentinel those that it watches, or the named ones of them (`watched`,
/// empty: all). `seed.node` names the seed in errors.
pub async fn discover(seed: &RedisOptions, watched: &[String]) -> Result<Vec<Discovered>, DriverError> {
    let endpoint = seed.endpoint()?;
    let refused = |reason: String| DriverError::Refused { node: seed.node.to_string(), reason };
    let mut control = match Control::open(seed).await {
        // A Sentinel has logins of its own, and mostly none.
        Err(denied @ DriverError::Denied { .. }) => sentinel_without_login(seed).await.ok_or(denied)?,
        control => control?,
    };
    let fields = control.info(&["server", "cluster", "replication"]).await?;
    if fields.get("redis_mode") == Some("sentinel") {
        let masters = control.ask(&["SENTINEL", "MASTERS"]).await?;
        let masters = redis::from_redis_value::<Vec<HashMap<String, String>>>(masters);
        let masters = masters.map_err(|error| refused(format!("SENTINEL MASTERS: {error}")))?;
        return watched_masters(&endpoint, &masters, watched).map_err(refused);
    }
    if !watched.is_empty() {
        return Err(refused(format!("it is no Sentinel, and `masters` names {}", watched.join(", "))));
    }
    if !fields.flag("cluster_enabled") {
        if fields.get("role") != Some("master") {
            let master = fields.get("master_host").zip(fields.get("master_port"));
            let master = master.map_or("its master".to_owned(), |(host, port)| format!("its master {host}:{port}"));
            return Err(refused(format!("it is a replica; name {master} instead")));
        }
        return Ok(vec![discovered(&endpoint, None).map_err(refused)?]);
    }
    let nodes = cluster_nodes(&control.text(&["CLUSTER", "NODES"]).await?);
    let mut masters = Vec::new();
    for node in nodes.into_iter().filter(|node| node.is("master") && !node.slots.is_empty()) {
        if node.is("fail") || node.is("noaddr") {
            return Err(refused(format!("master {} of its cluster has failed; see CLUSTER NODES", node.id)));
        }
        // A node that was never met does not know its own address: it is the one that we reached.
        let host = if node.host.is_empty() { endpoint.host.clone() } else { node.host.clone() };
        let place = Endpoint { tls: endpoint.tls, host, port: node.port };
        masters.push(discovered(&place, Some(node.id)).map_err(refused)?);
    }
    if masters.is_empty() {
        return Err(refused("no master of its cluster holds a slot".to_owned()));
    }
    masters.sort_by(|a, b| a.url.cmp(&b.url));
    Ok(masters)
}

async fn sentinel_without_login(seed: &RedisOptions) -> Option<Control> {
    let bare = RedisOptions { user: None, password: None, ..seed.clone() };
    let mut control = Control::open(&bare).await.ok()?;
    let fields = control.info(&["server"]).await.ok()?;
    (fields.get("redis_mode") == Some("sentinel")).then_some(control)
}

/// What `SENTINEL MASTERS` said, as masters in the order of their names. One that is down, or about to be another server, is
/// refused: its data is not to be had now.
fn watched_masters(
    sentinel: &Endpoint,
    masters: &[HashMap<String, String>],
    watched: &[String],
) -> Result<Vec<Discovered>, String> {
    let field = |master: &HashMap<String, String>, name: &str| master.get(name).cloned().unwrap_or_default();
    let names = || masters.iter().map(|master| field(master, "name")).collect::<Vec<_>>().join(", ");
    if masters.is_empty() {
        return Err("it is a Sentinel, and watches no master".to_owned());
    }
    if let Some(unknown) = watched.iter().find(|name| masters.iter().all(|master| field(master, "name") != **name)) {
        return Err(format!("Sentinel watches no master {unknown}; it watches {}", names()));
    }
    let mut found = Vec::new();
    for master in masters {
        let (name, flags) = (field(master, "name"), field(master, "flags"));
        if !watched.is_empty() && !watched.contains(&name) {
            continue;
        }
        let port = field(master, "port").parse().map_err(|_| format!("Sentinel does not say where master {name} is"))?;
        let place = Endpoint { tls: sentinel.tls, host: field(master, "ip"), port };
        let has = |flag: &str| flags.split(',').any(|one| one == flag);
        if has("failover_in_progress") {
            return Err(format!(
                "Sentinel is failing {name} over; try again when SENTINEL MASTERS shows no failover_in_progress"
            ));
        }
        if has("s_down") || has("o_down") || has("disconnected") {
            return Err(format!("Sentinel takes master {name} ({place}) to be down; try again when it has failed over"));
        }
        let node = NodeName::new(&name).map_err(|error| format!("{name} cannot be a node's name: {error}"))?;
        found.push(Discovered { node, url: place.url(), id: None });
    }
    found.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(found)
}

fn discovered(endpoint: &Endpoint, id: Option<String>) -> Result<Discovered, String> {
    // A colon is for IPv6 addresses only, and does not belong into a directory's name.
    let name = format!("{}_{}", endpoint.host.replace(':', "-"), endpoint.port);
    let node = NodeName::new(&name).map_err(|error| format!("{name} cannot be a node's name: {error}"))?;
    Ok(Discovered { node, url: endpoint.url(), id })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(name: &str, port: &str, flags: &str) -> HashMap<String, String> {
        let fields = [("name", name), ("ip", "10.0.0.1"), ("port", port), ("flags", flags)];
        fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn masters_are_called_as_sentinel_calls_them_and_refused_while_they_are_not_there() {
        let sentinel = Endpoint { tls: false, host: "10.0.0.9".to_owned(), port: 26379 };
        let masters =
            [master("users", "6380", "master"), master("cache", "6379", "master"), master("dead", "1", "master,s_down")];
        let found = |masters: &[HashMap<_, _>], watched: &[&str]| {
            let watched: Vec<String> = watched.iter().map(ToString::to_string).collect();
            watched_masters(&sentinel, masters, &watched)
                .map(|found| found.iter().map(|master| format!("{} {}", master.node, master.url)).collect::<Vec<_>>())
        };
        let good = ["cache redis://10.0.0.1:6379".to_owned(), "users redis://10.0.0.1:6380".to_owned()];
        assert_eq!(found(&masters[..2], &[]).expect("two"), good);
        assert_eq!(found(&masters, &["users"]).expect("one"), good[1..]);
        for (masters, watched, reason) in [
            (&masters[..], &[][..], "master dead (10.0.0.1:1) to be down"),
            (&masters, &["dead"], "to be down"),
            (&masters, &["none"], "no master none; it watches users, cache, dead"),
            (&[], &[], "watches no master"),
            (&[master("a", "6379", "master,failover_in_progress")], &[], "is failing a over"),
            (&[master("a", "", "master")], &[], "does not say where"),
        ] {
            let refused = found(masters, watched).expect_err("is refused");
            assert!(refused.contains(reason), "{refused}");
        }
    }
}
