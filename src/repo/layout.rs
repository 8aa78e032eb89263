//! Keys of objects (FORMAT.md section 2), in one place.

use crate::model::ids::{PackId, SnapshotId};
use crate::model::names::{ClusterName, NodeName};
use crate::model::time::SnapshotDate;

use super::ListedSnapshot;

/// The descriptor.
pub const DESCRIPTOR: &str = "tintype.json";
/// Folder of the key boxes.
pub const KEY_BOXES: &str = "keys/";
/// Folder of the clusters.
pub const CLUSTERS: &str = "clusters/";

/// Key of a key box.
pub fn key_box(id: uuid::Uuid) -> String {
    format!("{KEY_BOXES}{id}.json")
}

/// Folder of a node's packs of blocks.
pub fn packs(cluster: &ClusterName, node: &NodeName) -> String {
    format!("{CLUSTERS}{cluster}/{node}/packs/")
}

/// Folder of a node's packs of pages.
pub fn pages(cluster: &ClusterName, node: &NodeName) -> String {
    format!("{CLUSTERS}{cluster}/{node}/pages/")
}

/// Name of a pack within [`packs`] or [`pages`].
pub fn pack_name(pack: PackId) -> String {
    pack.to_string()
}

/// Key of a node manifest.
pub fn node_manifest(cluster: &ClusterName, node: &NodeName, snapshot: SnapshotId) -> String {
    format!("{CLUSTERS}{cluster}/{node}/manifests/{snapshot}")
}

/// Folder of a cluster's manifests.
pub fn snapshots(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/_snapshots/")
}

/// Folder of the manifests of one month.
pub fn month(cluster: &ClusterName, date: SnapshotDate) -> String {
    let (year, month, ..) = date.civil();
    let number = u32::from(year.unsigned_abs()) * 100 + u32::from(month.unsigned_abs());
    format!("{}{:06}.{year:04}-{month:02}/", snapshots(cluster), 999_999 - number)
}

/// Key of a cluster manifest.
pub fn cluster_manifest(cluster: &ClusterName, date: SnapshotDate, uuid: SnapshotId, is_complete: bool) -> String {
    let (_, _, day, hour, minute, second) = date.civil();
    let number = [day, hour, minute, second].iter().fold(0u32, |sum, part| sum * 100 + u32::from(part.unsigned_abs()));
    let status = if is_complete { "full" } else { "part" };
    format!("{}{:08}.{date}.{uuid}.{status}", month(cluster, date), 99_999_999 - number)
}

/// What a key of a cluster manifest says; `None` for keys of any other form.
pub fn parse_cluster_manifest(cluster: &ClusterName, key: &str) -> Option<ListedSnapshot> {
    let name = key.strip_prefix(&snapshots(cluster))?.split_once('/')?.1;
    let mut parts = name.split('.');
    let (_, date, uuid, status) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let (date, uuid) = (date.parse().ok()?, SnapshotId::try_parse(uuid).ok()?);
    let is_complete = status == "full";
    // Only the one form that we write: no second key can stand for the same snapshot.
    (cluster_manifest(cluster, date, uuid, is_complete) == key).then(|| ListedSnapshot {
        cluster: cluster.clone(),
        date,
        uuid,
        is_complete,
        key: key.to_owned(),
    })
}

/// Folder of a cluster's intents.
pub fn intents(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/_intents/")
}

/// Key of an intent.
pub fn intent(cluster: &ClusterName, snapshot: SnapshotId) -> String {
    format!("{}{snapshot}", intents(cluster))
}

/// Key of a cluster's lease.
pub fn lease(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}{cluster}/_lease")
}

/// Folder of the marks of a snapshot.
pub fn marks(cluster: &ClusterName, snapshot: SnapshotId) -> String {
    format!("{CLUSTERS}{cluster}/_marks/{snapshot}/")
}

/// Key of the record of a run.
pub fn run(snapshot: SnapshotId) -> String {
    format!("runs/{snapshot}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ClusterName {
        ClusterName::new("prod").expect("legal")
    }

    #[test]
    fn manifest_keys_read_back_and_sort_newest_first() {
        let dates = [
            "2026-11-20T10-15-31Z",
            "2026-11-20T10-15-30Z",
            "2026-10-31T23-59-59Z",
            "2025-12-01T00-00-00Z",
            "1970-01-01T00-00-00Z",
        ];
        let keys: Vec<_> =
            dates.iter().map(|date| cluster_manifest(&name(), date.parse().expect("legal"), SnapshotId::nil(), true)).collect();
        assert!(keys.is_sorted(), "{keys:#?}");
        for (key, date) in keys.iter().zip(dates) {
            let listed = parse_cluster_manifest(&name(), key).expect("our own form");
            assert_eq!((listed.date.to_string().as_str(), listed.is_complete), (date, true));
        }
    }

    #[test]
    fn only_the_one_form_of_a_manifest_key_is_taken() {
        let good = cluster_manifest(&name(), "2026-11-20T10-15-30Z".parse().expect("legal"), SnapshotId::nil(), false);
        assert!(parse_cluster_manifest(&name(), &good).is_some());
        for bad in [
            good.replace("797388", "797389"),
            good.replace("part", "half"),
            format!("{good}.x"),
            good.replace("79898469", "79898468"),
        ] {
            assert_eq!(parse_cluster_manifest(&name(), &bad), None, "{bad}");
        }
    }
}
