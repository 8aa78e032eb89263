//! From a captured node to a stored one: the driver's entries go through the repository's writer, in the driver's order.
//!
//! **Invariants.** A stream is stored only after its own check passed. A file that changed while it was read fails the
//! node: no torn file is ever stored as if it were whole.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use super::spool::{SpoolOptions, Spooled};
use crate::driver::files::is_still;
use crate::driver::{CapturedContent, CapturedEntry, DriverError, StoreDriver, StoredFile};
use crate::model::ids::SnapshotId;
use crate::model::manifest::{FileClass, Fingerprint, KeyCounts};
use crate::model::names::{ClusterName, NodeName};
use crate::repo::{
    EntryMeta, NodeReceipt, NodeTree, NodeWriter, PlacedEntry, RepoError, Repository, SnapshotSource, WriterOptions,
};

/// Where a node is stored.
#[derive(Debug, Clone)]
pub struct NodeCapture {
    /// The repository.
    pub repository: Arc<Repository>,
    /// The cluster.
    pub cluster: ClusterName,
    /// The node.
    pub node: NodeName,
    /// The snapshot being made.
    pub snapshot: SnapshotId,
    /// The tree whose blocks may be reused.
    pub parent: Option<NodeTree>,
    /// How to store.
    pub options: WriterOptions,
    /// Where a dump waits that comes faster than it is stored; absent: it is read no faster.
    pub spool: Option<SpoolOptions>,
}

/// Why a node was not stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UploadError {
    /// The node or what it delivered.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepoError),
}

/// What was stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredNode {
    /// Manifest and sizes.
    pub receipt: NodeReceipt,
    /// Keys of the dump, where they were counted.
    pub keys: Option<KeyCounts>,
    /// What was checked while the bytes passed.
    pub checked: Vec<String>,
}

/// Nodes of other snapshots that links lead to.
type Trees = HashMap<(SnapshotId, NodeName), NodeTree>;

impl NodeCapture {
    /// Collects from the driver and stores everything. The node is not frozen any more.
    pub async fn upload(&self, driver: &mut dyn StoreDriver) -> Result<StoredNode, UploadError> {
        let mut writer = NodeWriter::begin(
            self.repository.clone(),
            self.cluster.clone(),
            self.node.clone(),
            self.snapshot,
            self.parent.clone(),
            self.options.clone(),
        )
        .await?;
        let (mut keys, mut checked, mut trees) = (None, Vec::new(), Trees::new());
        for entry in driver.collect().await? {
            if let Some(facts) = self.store(&mut writer, &mut trees, entry).await? {
                keys = keys.or(facts.keys);
                checked.extend(facts.checked);
            }
        }
        checked.dedup();
        Ok(StoredNode { receipt: writer.finish().await?, keys, checked })
    }

    async fn store(
        &self,
        writer: &mut NodeWriter,
        trees: &mut Trees,
        entry: CapturedEntry,
    ) -> Result<Option<crate::driver::StreamFacts>, UploadError> {
        let CapturedEntry { path, class, mode, owner, modified_ns, block_bytes, content, .. } = entry;
        let meta = EntryMeta { path: path.clone(), mode, owner, modified_ns };
        match content {
            CapturedContent::Nothing => writer.add_directory(meta)?,
            CapturedContent::LinkTarget(target) => writer.add_link(meta, target)?,
            CapturedContent::SameAs(other) => writer.add_same(meta, class, &other)?,
            CapturedContent::Stored(stored) => {
                let placed = self.stored(trees, &stored).await?;
                writer.add_stored(meta, &placed).await?;
            }
            CapturedContent::Literal(bytes) => {
                writer.add_stream(meta, class, block_bytes, &mut &bytes[..]).await?;
            }
            CapturedContent::Stream(stream) => {
                let mut stream = match &self.spool {
                    Some(spool) => Box::new(Spooled::new(self.node.as_str(), stream, spool)),
                    None => stream,
                };
                writer.add_stream(meta, class, block_bytes, &mut stream).await.map_err(|error| self.source(error))?;
                return Ok(Some(stream.finish().await?));
            }
            CapturedContent::File { file, length_bytes, fingerprint } => {
                if let Some(now) = &fingerprint
                    && writer.add_unchanged(&meta, length_bytes, now).await?
                {
                    return Ok(None);
                }
                let again = file.try_clone().map_err(|error| self.broken(&path.to_string(), &error.to_string()))?;
                writer
                    .add_file(meta, class, block_bytes, file, length_bytes, fingerprint)
                    .await
                    .map_err(|error| self.source(error))?;
                if !holds_still(&again, class, length_bytes, fingerprint.as_ref()) {
                    return Err(self
                        .broken(
                            &path.to_string(),
                            "it changed while it was read; stop its writer, or take it from a file system snapshot",
                        )
                        .into());
                }
            }
        }
        Ok(None)
    }

    /// What another snapshot of the cluster has.
    async fn stored(&self, trees: &mut Trees, stored: &StoredFile) -> Result<PlacedEntry, UploadError> {
        let absent =
            || RepoError::NotFound { what: format!("{} of {} in snapshot {}", stored.path, stored.node, stored.snapshot) };
        let key = (stored.snapshot, stored.node.clone());
        let tree = match trees.get(&key) {
            Some(tree) => tree.clone(),
            None => {
                let listed = self.repository.snapshots(&self.cluster).await?;
                let listed = listed.into_iter().find(|listed| listed.uuid == stored.snapshot).ok_or_else(absent)?;
                let manifest = SnapshotSource::manifest(self.repository.as_ref(), &listed).await?;
                let tree = self.repository.open_node(&manifest, &stored.node).await?;
                trees.insert(key, tree.clone());
                tree
            }
        };
        Ok(self.repository.entry(&tree, &stored.path).await?.ok_or_else(absent)?)
    }

    /// Reading a captured file or stream broke: the node is to blame, not the repository.
    fn source(&self, error: RepoError) -> UploadError {
        match error {
            RepoError::Source { what, reason } => self.broken(&what, &reason).into(),
            other => other.into(),
        }
    }

    fn broken(&self, what: &str, reason: &str) -> DriverError {
        DriverError::Broken { node: self.node.to_string(), reason: format!("{what}: {reason}") }
    }
}

/// The captured bytes are still those of the capture: immutable and append-only files may not shrink, others may not
/// change at all.
fn holds_still(file: &File, class: FileClass, length_bytes: u64, then: Option<&Fingerprint>) -> bool {
    let holds = match (class, then) {
        (FileClass::Rewritten, Some(then)) => is_still(then, length_bytes, file),
        _ => file.metadata().map(|now| now.len() >= length_bytes),
    };
    holds.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_rewritten_file_may_not_change_and_an_append_only_one_may_grow() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"12345").expect("writes");
        let meta = file.metadata().expect("stat");
        let modified_ns = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
        // Captured long after it was written: within a tick of it nothing is believed.
        let then = Fingerprint { device: meta.dev(), inode: meta.ino(), modified_ns, captured_ns: modified_ns + 60_000_000_000 };
        assert!(holds_still(&file, FileClass::Rewritten, 5, Some(&then)));
        assert!(holds_still(&file, FileClass::AppendOnly, 4, Some(&then)));
        assert!(!holds_still(&file, FileClass::AppendOnly, 6, Some(&then)));
        assert!(!holds_still(&file, FileClass::Rewritten, 4, Some(&then)));
        assert!(!holds_still(&file, FileClass::Rewritten, 5, Some(&Fingerprint { modified_ns: 1, ..then })));
    }
}
