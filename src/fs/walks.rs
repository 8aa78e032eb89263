//! Reading ahead over files: a program that opens the small files of a directory one after the other finds the next ones
//! fetched already.
//!
//! What was stored together lies together, so that many small files come with one request; over a distant store this is
//! the difference between minutes and a second. How far ahead is decided by the same policy as inside a file
//! ([`Window`]), with places in the directory's order instead of offsets: a program that opens files at random gets none.

use std::sync::{Arc, Mutex, PoisonError};

use crate::fs::inode::NodeKey;
use crate::fs::recent::Recent;
use crate::fs::tree::SnapshotFs;
use crate::model::extent::SEQUENTIAL_BLOCK_BYTES;
use crate::model::ids::SnapshotId;
use crate::model::names::{NodeName, TreePath};
use crate::read::{Window, small_file_extents};
use crate::repo::PlacedEntry;

/// Directories whose walks are remembered; each costs some hundred bytes.
const WALKS_KEPT: usize = 64;
/// Files that are fetched ahead as a whole: what fits into a block. Longer ones have read-ahead of their own.
const SMALL_BYTES: u64 = SEQUENTIAL_BLOCK_BYTES as u64;
/// Files ahead at most, however small they are.
const FILES_MAX: u64 = 1024;

type WalkId = (SnapshotId, NodeName, TreePath);

/// Who walks which directory.
#[derive(Debug)]
pub(super) struct Walks {
    kept: Recent<WalkId, Arc<Mutex<Window>>>,
}

impl Default for Walks {
    fn default() -> Self {
        Self { kept: Recent::new(WALKS_KEPT) }
    }
}

impl Walks {
    fn of(&self, id: WalkId, limit: u64) -> Arc<Mutex<Window>> {
        if let Some(walk) = self.kept.get(&id) {
            return walk;
        }
        let walk = Arc::new(Mutex::new(Window::new(1, limit)));
        self.kept.put(id, walk.clone(), 1);
        walk
    }
}

fn is_small(placed: &PlacedEntry) -> bool {
    (1..=SMALL_BYTES).contains(&placed.entry.size_bytes())
}

impl SnapshotFs {
    /// Takes note that a file was opened, and begins to fetch the ones behind it if that is what the walk suggests. Never
    /// waits.
    pub(super) fn walked(&self, node: &Arc<NodeKey>, path: &TreePath) {
        let Some(parent) = path.parent() else { return };
        let Some(directory) = self.catalogue.known_directory(node, &parent) else { return };
        let Some(at) = directory.position(path.file_name()).filter(|at| is_small(&directory.entries()[*at])) else { return };
        // As many as fill the read-ahead of one reader, at the size of this one.
        let size = directory.entries()[at].entry.size_bytes();
        let limit = (self.blocks.ahead_bytes() / size.max(1)).min(FILES_MAX);
        let walk = self.walks.of((node.shown.listed.uuid, node.name.clone(), parent), limit);
        let wanted = walk.lock().unwrap_or_else(PoisonError::into_inner).observe(at as u64, 1);
        let Some(wanted) = wanted else { return };
        let end = usize::try_from(wanted.end).unwrap_or(usize::MAX).min(directory.entries().len());
        let start = usize::try_from(wanted.start).unwrap_or(usize::MAX).min(end);
        let mut room = self.blocks.ahead_bytes();
        let files: Vec<PlacedEntry> = directory.entries()[start..end]
            .iter()
            .filter(|placed| is_small(placed))
            .take_while(|placed| {
                let fits = placed.entry.size_bytes() <= room;
                room = room.saturating_sub(placed.entry.size_bytes());
                fits
            })
            .cloned()
            .collect();
        let Some(opened) = self.catalogue.known_node(node).filter(|_| !files.is_empty()) else { return };
        let blocks = self.blocks.clone();
        self.blocks.runtime().spawn(async move {
            // A failure is for whoever opens the file, if anybody ever does.
            let found = tokio::time::timeout(blocks.deadline(), small_file_extents(&blocks, &opened.tree, &files)).await;
            if let Ok(Ok(extents)) = found {
                blocks.ahead(&opened.tree, &extents);
            }
        });
    }
}
