//! Whether a cluster is the one that its name was bound to: a pure decision over ids.

use std::collections::HashSet;

use crate::model::manifest::{ClusterManifest, NodeDescription};

/// What speaks against storing `now` under the name of `before`; `None` when it is the same cluster.
///
/// The name is bound by what the store calls itself by (cluster node ids, replication ids) and by where it is. One
/// identity in common is enough: ids change one at a time (a failover, a restart, a move), never all at once. Nodes of
/// a Redis Cluster keep their ids for life, so for them an address alone proves nothing.
pub(super) fn stranger(before: &ClusterManifest, now: &[NodeDescription]) -> Option<String> {
    let store = now.first().map(|node| node.store.as_str()).unwrap_or_default();
    let shards = |nodes: &mut dyn Iterator<Item = &NodeDescription>| nodes.filter_map(|node| node.shard.clone()).collect::<HashSet<_>>();
    let (old_shards, new_shards) = (shards(&mut before.nodes.iter().map(|node| &node.description)), shards(&mut now.iter()));
    if !old_shards.is_empty() && !new_shards.is_empty() {
        let shares = now.iter().flat_map(|node| &node.identity).any(|id| before.nodes.iter().any(|node| node.description.identity.contains(id)));
        return (!shares).then(|| "none of its node ids is one of the cluster that was stored under this name".to_owned());
    }
    let old: HashSet<&str> = before.nodes.iter().flat_map(|node| identities(&node.description)).collect();
    if old.is_empty() || now.iter().flat_map(identities).any(|id| old.contains(id)) {
        return None;
    }
    Some(format!("this {store} shares neither an id nor an address with what was stored under this name"))
}

fn identities(node: &NodeDescription) -> impl Iterator<Item = &str> {
    node.identity.iter().map(String::as_str).chain([node.address.as_str()]).filter(|id| !id.is_empty())
}
