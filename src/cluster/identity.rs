//! Whether a cluster is the one that its name was bound to: a pure decision over ids.

use std::collections::HashSet;

use crate::model::manifest::{ClusterManifest, NodeDescription};

/// What speaks against storing `now` under the name of `before`; `None` when it is the same cluster.
///
/// The name is bound by what the store calls itself by (cluster node ids, replication ids) and by where it is. One
/// identity in common is enough: ids change one at a time (a failover, a restart, a move), never all at once. Nodes of
/// a Redis Cluster keep their ids for life, so for them an address alone proves nothing.
pub(super) fn stranger(before: &ClusterManifest, now: &[NodeDescription]) -> Option<String> {
    let (old_ids, new_ids) = (cluster_ids(before.nodes.iter().map(|node| &node.description)), cluster_ids(now.iter()));
    if !old_ids.is_empty() && !new_ids.is_empty() {
        return old_ids
            .is_disjoint(&new_ids)
            .then(|| "none of its node ids is one of the cluster that was stored under this name".to_owned());
    }
    let old: HashSet<&str> = before.nodes.iter().flat_map(|node| identities(&node.description)).collect();
    if old.is_empty() || now.iter().flat_map(identities).any(|id| old.contains(id)) {
        return None;
    }
    let store = now.first().map_or("store", |node| node.store.as_str());
    Some(format!("what is there now ({store}) shares neither an id nor an address with what was stored under this name"))
}

/// Ids of all nodes, replicas included, that `CLUSTER NODES` named: the first word of each line.
fn cluster_ids<'a>(nodes: impl Iterator<Item = &'a NodeDescription>) -> HashSet<&'a str> {
    nodes
        .filter_map(|node| node.notes.get("cluster_nodes"))
        .flat_map(|text| text.lines())
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

fn identities(node: &NodeDescription) -> impl Iterator<Item = &str> {
    node.identity.iter().map(String::as_str).chain([node.address.as_str()]).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::SnapshotId;
    use crate::model::manifest::{
        CaptureProof, Consistency, CutKind, CutRecord, NodeRecord, NodeStatus, NodeTotals, SnapshotStatus,
    };
    use crate::model::names::{ClusterName, NodeName};
    use crate::model::time::{SnapshotDate, Timestamp};

    fn node(address: &str, identity: &[&str], cluster_nodes: Option<&str>) -> NodeDescription {
        NodeDescription {
            address: address.to_owned(),
            identity: identity.iter().map(ToString::to_string).collect(),
            notes: cluster_nodes.map(|text| ("cluster_nodes".to_owned(), text.to_owned())).into_iter().collect(),
            ..NodeDescription::default()
        }
    }

    fn before(description: NodeDescription) -> ClusterManifest {
        ClusterManifest {
            format: 1,
            uuid: SnapshotId::nil(),
            cluster: ClusterName::new("prod").expect("legal"),
            date: SnapshotDate::from_seconds(0).expect("legal"),
            cut_at: Timestamp(0),
            published_at: Timestamp(0),
            predecessor: None,
            status: SnapshotStatus::Completed,
            store: "redis".to_owned(),
            cut: CutRecord {
                kind: CutKind::Frozen,
                consistent: Consistency::No,
                scope: "node".to_owned(),
                pause_us: 0,
                capture_us: 0,
                skew_us: 0,
            },
            nodes: vec![NodeRecord {
                name: NodeName::new("n").expect("legal"),
                status: NodeStatus::Completed,
                reason: None,
                manifest: None,
                description,
                proof: CaptureProof::none(),
                keys: None,
                totals: NodeTotals::default(),
            }],
            tags: Default::default(),
            writer: String::new(),
        }
    }

    #[test]
    fn a_restart_or_a_move_keeps_the_name_and_a_stranger_does_not_get_it() {
        let old = before(node("a:1", &["replication:x"], None));
        assert_eq!(stranger(&old, &[node("a:1", &["replication:y"], None)]), None, "restarted");
        assert_eq!(stranger(&old, &[node("b:1", &["replication:x"], None)]), None, "moved");
        assert!(stranger(&old, &[node("b:1", &["replication:y"], None)]).is_some());
    }

    #[test]
    fn another_redis_cluster_at_the_same_address_is_a_stranger() {
        let old = before(node("a:1", &[], Some("id1 a:1 master\nid2 a:2 slave")));
        assert_eq!(stranger(&old, &[node("a:2", &[], Some("id2 a:2 master"))]), None, "failed over");
        assert!(stranger(&old, &[node("a:1", &[], Some("id9 a:1 master"))]).is_some());
    }
}
