//! What is stored already, for one node: its parent's tree, the blocks that the parent refers to, and what interrupted
//! attempts left behind.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use futures::{StreamExt, TryStreamExt};

use super::pack::{self, TRAILER_BYTES};
use super::reader::table_place;
use super::repository::Repository;
use super::seal::SealType;
use super::{NodeTree, PlacedEntry, RepoError, SharedTable, layout};
use crate::model::extent::{Extent, PACK_BYTES_MAX, PackRef, Segment};
use crate::model::ids::{BlockId, PackId};
use crate::model::names::{ClusterName, NodeName, TreePath};
use crate::object::{ObjectEntry, list_after, list_all};

/// Reads under way at once while the index is built: enough to hide a distant store's latency.
const READS: usize = 16;

/// Blocks and pages that need not be stored again.
#[derive(Debug, Default)]
pub(super) struct Known {
    blocks: Mutex<HashMap<BlockId, Extent>>,
    pages: Mutex<HashMap<BlockId, Extent>>,
}

impl Known {
    pub fn block(&self, id: &BlockId) -> Option<Extent> {
        lock(&self.blocks).get(id).cloned()
    }

    pub fn add_block(&self, extent: Extent) {
        lock(&self.blocks).entry(extent.id).or_insert(extent);
    }

    pub fn page(&self, id: &BlockId) -> Option<Extent> {
        lock(&self.pages).get(id).cloned()
    }

    pub fn add_page(&self, extent: Extent) {
        lock(&self.pages).entry(extent.id).or_insert(extent);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The whole tree of the parent snapshot of a node.
#[derive(Debug)]
pub(super) struct Parent {
    pub tree: NodeTree,
    pub entries: HashMap<TreePath, PlacedEntry>,
}

impl Repository {
    /// Reads all tree pages of a node, remembering its pages as known.
    pub(super) async fn load_parent(&self, tree: NodeTree, known: &Known) -> Result<Parent, RepoError> {
        let cluster = &tree.manifest.cluster;
        let pages: Vec<_> = futures::stream::iter(
            tree.manifest
                .tree
                .clone()
                .into_iter()
                .map(|reference| async move { self.tree_page(cluster, &reference).await.map(|page| (reference, page)) }),
        )
        .buffered(READS)
        .try_collect()
        .await?;
        let mut entries = HashMap::new();
        for (reference, page) in pages {
            known.add_page(reference.page.clone());
            let shared = page.table.as_ref().map(|table| {
                known.add_page(table.clone());
                Arc::new(SharedTable { page: table.clone(), first: reference.first.clone() })
            });
            for entry in &page.entries {
                for own in entry.content.iter().flat_map(|content| &content.tables).filter_map(|slice| slice.page.clone()) {
                    known.add_page(own);
                }
                entries.insert(entry.path.clone(), PlacedEntry { entry: entry.clone(), shared_table: shared.clone() });
            }
        }
        Ok(Parent { tree, entries })
    }

    /// All segments of one file of the parent, in order.
    pub(super) async fn all_segments(&self, cluster: &ClusterName, file: &PlacedEntry) -> Result<Vec<Segment>, RepoError> {
        let Some(content) = &file.entry.content else { return Ok(Vec::new()) };
        let mut segments = Vec::new();
        for slice in &content.tables {
            let (extent, place) = match (&slice.page, &file.shared_table) {
                (Some(own), _) => (own, table_place(&file.entry.path, Some(slice.start))),
                (None, Some(shared)) => (&shared.page, table_place(&shared.first, None)),
                (None, None) => return Err(RepoError::corrupt(file.entry.path.to_string(), "its tree page shares no table")),
            };
            let mut records = self.table_page(cluster, &place, extent).await?;
            let last = (slice.first as usize).saturating_add(slice.count as usize);
            if last > records.len() {
                return Err(RepoError::corrupt(file.entry.path.to_string(), "its table is shorter than it says"));
            }
            records.truncate(last);
            segments.extend(records.split_off(slice.first as usize));
        }
        if segments.iter().map(Segment::plain_bytes).sum::<u64>() != content.size_bytes {
            return Err(RepoError::corrupt(file.entry.path.to_string(), "its segments do not add up to its size"));
        }
        Ok(segments)
    }

    /// Remembers every block of the parent: about 100 bytes of memory each, needed once a file is stored anew.
    pub(super) async fn load_parent_blocks(&self, parent: &Parent, known: &Known) -> Result<(), RepoError> {
        let cluster = &parent.tree.manifest.cluster;
        let mut tables: HashMap<BlockId, (Extent, Vec<u8>)> = HashMap::new();
        for placed in parent.entries.values() {
            for slice in placed.entry.content.iter().flat_map(|content| &content.tables) {
                if let Some(own) = &slice.page {
                    tables.insert(own.id, (own.clone(), table_place(&placed.entry.path, Some(slice.start))));
                } else if let Some(shared) = &placed.shared_table {
                    tables.entry(shared.page.id).or_insert_with(|| (shared.page.clone(), table_place(&shared.first, None)));
                }
            }
        }
        let mut reads = futures::stream::iter(
            tables.into_values().map(|(extent, place)| async move { self.table_page(cluster, &place, &extent).await }),
        )
        .buffer_unordered(READS);
        while let Some(segments) = reads.try_next().await? {
            for segment in segments {
                if let Segment::Block(extent) = segment {
                    known.add_block(extent);
                }
            }
        }
        Ok(())
    }

    /// Remembers what packs hold that no snapshot refers to yet: the leavings of attempts since `newest_pack`.
    /// A damaged leftover is passed over: it costs storing its blocks again, nothing else.
    pub(super) async fn load_leftovers(
        &self,
        cluster: &ClusterName,
        node: &NodeName,
        newest_pack: Option<PackId>,
        known: &Known,
    ) -> Result<(), RepoError> {
        for folder in [layout::packs(cluster, node), layout::pages(cluster, node)] {
            let after = newest_pack.map(|pack| format!("{folder}{}", layout::pack_name(pack)));
            let listed = list_after(self.store().as_ref(), &folder, after.as_deref()).await?;
            let mut reads = futures::stream::iter(listed.into_iter().map(|object| {
                let folder = &folder;
                async move {
                    let items = self.pack_items(cluster, node, folder, &object).await;
                    (object.key, items)
                }
            }))
            .buffer_unordered(READS);
            while let Some((key, items)) = reads.next().await {
                match items {
                    Ok(items) => {
                        for item in items {
                            if item.kind == SealType::Block as u8 {
                                known.add_block(item.extent)
                            } else {
                                known.add_page(item.extent)
                            }
                        }
                    }
                    Err(error) => tracing::warn!(%key, %error, "the leavings of an interrupted upload cannot be used"),
                }
            }
        }
        Ok(())
    }

    /// What a pack below `folder` says of itself: its directory, opened and checked.
    pub(super) async fn pack_items(
        &self,
        cluster: &ClusterName,
        node: &NodeName,
        folder: &str,
        object: &ObjectEntry,
    ) -> Result<Vec<pack::PackItem>, RepoError> {
        let wrong = |reason: &str| RepoError::corrupt(&object.key, reason);
        let name = object
            .key
            .strip_prefix(folder)
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| wrong("its name is not one of a pack"))?;
        let size = object.size_bytes;
        if size > u64::from(PACK_BYTES_MAX) || size < TRAILER_BYTES {
            return Err(wrong("its size is not one of a pack"));
        }
        let trailer = self.store().get(&object.key, Some(size - TRAILER_BYTES..size)).await?;
        let length = u64::from(pack::directory_length(&trailer, size).map_err(wrong)?);
        let sealed = self.store().get(&object.key, Some(size - TRAILER_BYTES - length..size - TRAILER_BYTES)).await?;
        let plain = self
            .sealer(cluster)
            .open(SealType::PackDirectory, object.key.as_bytes(), &sealed, PACK_BYTES_MAX as usize, None)
            .map_err(|error| wrong(&error.to_string()))?;
        pack::parse_directory(&plain, &Arc::new(PackRef { node: node.clone(), pack: name })).map_err(wrong)
    }

    /// Fails when any of `packs` is gone: reused blocks must still be there when they are published again.
    pub(super) async fn check_packs(
        &self,
        cluster: &ClusterName,
        packs: &HashSet<(Arc<PackRef>, bool)>,
    ) -> Result<(), RepoError> {
        let mut folders: HashMap<String, Vec<String>> = HashMap::new();
        for (pack, is_pages) in packs {
            let folder = if *is_pages { layout::pages(cluster, &pack.node) } else { layout::packs(cluster, &pack.node) };
            folders.entry(folder).or_default().push(layout::pack_name(pack.pack));
        }
        for (folder, names) in folders {
            let present: HashSet<String> =
                list_all(self.store().as_ref(), &folder).await?.into_iter().map(|object| object.key).collect();
            if let Some(gone) = names.iter().map(|name| format!("{folder}{name}")).find(|key| !present.contains(key)) {
                return Err(RepoError::corrupt(
                    gone,
                    "the pack is missing, though an earlier snapshot refers to it; run `tintype verify`",
                ));
            }
        }
        Ok(())
    }
}
