//! Finding the masters of a Redis Cluster from any one node.

use crate::driver::DriverError;
use crate::model::names::NodeName;

use super::control::Control;
use super::options::{Endpoint, RedisOptions};
use super::reply::cluster_nodes;

/// A master that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    /// Named after its address, `127.0.0.1_6379`: the same at every snapshot, whichever node was asked.
    pub node: NodeName,
    /// `redis://host:port` or `rediss://host:port`, as the seed was reached.
    pub url: String,
    /// Cluster node id; `None` outside of a cluster.
    pub id: Option<String>,
}

/// The masters that hold slots, in the order of their addresses, asked of the node that `seed` points to; outside of a
/// cluster the node itself, when it is a master. `seed.node` names the seed in errors.
pub async fn discover(seed: &RedisOptions) -> Result<Vec<Discovered>, DriverError> {
    let endpoint = seed.endpoint()?;
    let refused = |reason: String| DriverError::Refused { node: seed.node.to_string(), reason };
    let mut control = Control::open(seed).await?;
    let fields = control.info(&["cluster", "replication"]).await?;
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

fn discovered(endpoint: &Endpoint, id: Option<String>) -> Result<Discovered, String> {
    // A colon is for IPv6 addresses only, and does not belong into a directory's name.
    let name = format!("{}_{}", endpoint.host.replace(':', "-"), endpoint.port);
    let node = NodeName::new(&name).map_err(|error| format!("{name} cannot be a node's name: {error}"))?;
    Ok(Discovered { node, url: endpoint.url(), id })
}
