//! Reading snapshots: manifest, tree page, table page, block, each verified by the one before it.
//!
//! **Invariants.** Nothing is believed before it was opened and its name compared. Sizes are bounded by the format and by
//! the record that refers to them. No read needs an index of the repository.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::repository::Repository;
use super::seal::{SealType, Sealer};
use super::{ListedSnapshot, NodeTree, PlacedEntry, RepoError, SharedTable, SnapshotSource, layout, table};
use crate::model::extent::{BLOCK_BYTES_MAX, Extent, Segment, SegmentRun};
use crate::model::manifest::{ClusterManifest, FileKind, NodeManifest, TreePage, TreePageRef};
use crate::model::names::{ClusterName, NodeName, TreePath};
use crate::object::ObjectError;

/// Longest single ranged read of neighbouring blocks: large enough for full speed, small enough to start soon.
const RANGE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Blocks below this are opened where they are: handing them over would cost more than the work.
const INLINE_BYTES: u32 = 128 * 1024;
/// Pages of a large directory that are fetched together: a distant store answers each after tens of milliseconds.
const PAGES_AT_A_TIME: usize = 8;
/// What a segment takes in memory.
const RECORD_BYTES: usize = 96;

/// Place of a tree page.
pub(super) fn tree_place(first: &TreePath) -> Vec<u8> {
    first.as_bytes().to_vec()
}

/// Place of a table page: of a file's own, or (offset `None`) the shared one of the tree page that begins with `path`.
pub(super) fn table_place(path: &TreePath, offset: Option<u64>) -> Vec<u8> {
    let mut place = path.as_bytes().to_vec();
    place.push(0);
    place.extend_from_slice(&offset.unwrap_or(u64::MAX).to_le_bytes());
    place
}

/// Opens a page or block and compares its name.
fn open_named(sealer: &Sealer, kind: SealType, place: &[u8], extent: &Extent, sealed: &[u8]) -> Result<Bytes, String> {
    let full_place = [&extent.id.0[..], place].concat();
    let plain = sealer
        .open(kind, &full_place, sealed, BLOCK_BYTES_MAX as usize, Some(extent.plain_bytes as usize))
        .map_err(|error| error.to_string())?;
    let id = if kind == SealType::Block { sealer.block_id(&plain) } else { sealer.placed_id(kind, place, &plain) };
    if id == extent.id { Ok(plain) } else { Err("its content does not have the name that refers to it".to_owned()) }
}

/// A stored range that is gone or cut short is damage of the snapshot, not a question to repeat.
fn lost(key: &str, error: ObjectError) -> RepoError {
    match error {
        ObjectError::NotFound { .. } => RepoError::corrupt(key, "the object is missing"),
        ObjectError::ShortRange { .. } => RepoError::corrupt(key, error.to_string()),
        other => other.into(),
    }
}

/// What does not verify is read once more before it counts as damaged: a bit may have flipped on the way.
pub(super) async fn twice<T, F: Future<Output = Result<T, RepoError>>>(work: impl Fn() -> F) -> Result<T, RepoError> {
    match work().await {
        Err(error @ RepoError::Corrupt { .. }) => {
            tracing::warn!(%error, "is read once more");
            work().await
        }
        result => result,
    }
}

impl Repository {
    pub(super) fn block_key(cluster: &ClusterName, extent: &Extent) -> String {
        format!("{}{}", layout::packs(cluster, &extent.pack.node), layout::pack_name(extent.pack.pack))
    }

    pub(super) fn page_key(cluster: &ClusterName, extent: &Extent) -> String {
        format!("{}{}", layout::pages(cluster, &extent.pack.node), layout::pack_name(extent.pack.pack))
    }

    async fn page(&self, cluster: &ClusterName, kind: SealType, place: &[u8], extent: &Extent) -> Result<Bytes, RepoError> {
        let key = Self::page_key(cluster, extent);
        if let Some(fault) = extent.fault() {
            return Err(RepoError::corrupt(key, fault));
        }
        twice(|| async {
            let range = u64::from(extent.offset)..extent.end();
            let sealed = self.store().get(&key, Some(range)).await.map_err(|error| lost(&key, error))?;
            open_named(&self.sealer(cluster), kind, place, extent, &sealed)
                .map_err(|reason| RepoError::corrupt(format!("{key} at {}", extent.offset), reason))
        })
        .await
    }

    pub(super) async fn tree_page(&self, cluster: &ClusterName, reference: &TreePageRef) -> Result<Arc<TreePage>, RepoError> {
        if let Some(page) = self.trees.get(&reference.page.id) {
            return Ok(page);
        }
        let plain = self.page(cluster, SealType::TreePage, &tree_place(&reference.first), &reference.page).await?;
        let wrong = |reason: String| {
            RepoError::corrupt(format!("{} at {}", Self::page_key(cluster, &reference.page), reference.page.offset), reason)
        };
        let page: TreePage = serde_json::from_slice(&plain).map_err(|error| wrong(error.to_string()))?;
        if page.entries.first().is_none_or(|entry| entry.path != reference.first) {
            return Err(wrong("it does not begin with the entry that its manifest says".to_owned()));
        }
        if let Some(pair) = page.entries.windows(2).find(|pair| pair[0].path >= pair[1].path) {
            return Err(wrong(format!("{} is named twice, or out of order", pair[1].path)));
        }
        for entry in &page.entries {
            let is_sound = match entry.kind {
                FileKind::File => entry.content.is_some() && entry.target.is_none(),
                FileKind::Directory => entry.content.is_none() && entry.target.is_none(),
                FileKind::Link => entry.content.is_none() && entry.target.is_some(),
            };
            if !is_sound || entry.mode > 0o7777 || (entry.path.is_root() && entry.kind != FileKind::Directory) {
                return Err(wrong(format!("the entry {} contradicts itself", entry.path)));
            }
        }
        let page = Arc::new(page);
        // Entries take about three times their JSON in memory.
        self.trees.put(reference.page.id, page.clone(), plain.len() * 3);
        Ok(page)
    }

    /// All records of a table page.
    pub(super) async fn table_page(
        &self,
        cluster: &ClusterName,
        place: &[u8],
        extent: &Extent,
    ) -> Result<Vec<Segment>, RepoError> {
        let plain = self.page(cluster, SealType::TablePage, place, extent).await?;
        table::decode(&plain)
            .map_err(|reason| RepoError::corrupt(format!("{} at {}", Self::page_key(cluster, extent), extent.offset), reason))
    }

    /// All records of a table page that many files share: read once for all of them.
    async fn shared_table(&self, cluster: &ClusterName, place: &[u8], extent: &Extent) -> Result<Arc<Vec<Segment>>, RepoError> {
        if let Some(records) = self.tables.get(&extent.id) {
            return Ok(records);
        }
        let load = || async {
            let records = Arc::new(self.table_page(cluster, place, extent).await?);
            self.tables.put(extent.id, records.clone(), records.len() * RECORD_BYTES + 64);
            Ok(records)
        };
        self.loading_tables.run(extent.id, load).await
    }

    pub(super) async fn node_manifest(
        &self,
        snapshot: &ClusterManifest,
        node: &NodeName,
    ) -> Result<Arc<NodeManifest>, RepoError> {
        let what = || format!("node {node} of {}/{}", snapshot.cluster, snapshot.date);
        let record = snapshot.node(node).ok_or_else(|| RepoError::NotFound { what: what() })?;
        let expected = record.manifest.ok_or_else(|| RepoError::NotFound { what: format!("{} (it was not stored)", what()) })?;
        let key = layout::node_manifest(&snapshot.cluster, node, snapshot.uuid);
        if let Some(manifest) = self.nodes.get(&key) {
            return Ok(manifest);
        }
        let read = self.get_sealed::<NodeManifest>(&key, SealType::NodeManifest, snapshot.cluster.as_str()).await;
        let (manifest, id, bytes) = read.map_err(|error| match error {
            RepoError::Object(error) => lost(&key, error),
            other => other,
        })?;
        if id != expected {
            return Err(RepoError::corrupt(key, "it is not the one that the cluster manifest names"));
        }
        if (&manifest.cluster, &manifest.node, manifest.snapshot) != (&snapshot.cluster, node, snapshot.uuid) {
            return Err(RepoError::corrupt(key, "it speaks of another node or snapshot"));
        }
        if manifest.tree.windows(2).any(|pair| pair[0].first >= pair[1].first) {
            return Err(RepoError::corrupt(key, "its pages are out of order"));
        }
        if manifest.tree.first().is_none_or(|page| !page.first.is_root()) {
            return Err(RepoError::corrupt(key, "its tree has no root"));
        }
        let manifest = Arc::new(manifest);
        self.nodes.put(key, manifest.clone(), bytes * 2);
        Ok(manifest)
    }
}

fn placed(page: &TreePage, reference: &TreePageRef, shared: &mut Option<Arc<SharedTable>>, index: usize) -> PlacedEntry {
    if shared.is_none() {
        *shared = page.table.as_ref().map(|table| Arc::new(SharedTable { page: table.clone(), first: reference.first.clone() }));
    }
    PlacedEntry { entry: page.entries[index].clone(), shared_table: shared.clone() }
}

#[async_trait]
impl SnapshotSource for Repository {
    async fn clusters(&self) -> Result<Vec<ClusterName>, RepoError> {
        self.list_clusters().await
    }

    async fn snapshots(&self, cluster: &ClusterName) -> Result<Vec<ListedSnapshot>, RepoError> {
        self.list_snapshots(cluster).await
    }

    async fn newest(&self, cluster: &ClusterName, limit: usize) -> Result<Vec<ListedSnapshot>, RepoError> {
        self.list_newest(cluster, limit).await
    }

    async fn manifest(&self, snapshot: &ListedSnapshot) -> Result<Arc<ClusterManifest>, RepoError> {
        self.read_manifest(snapshot).await
    }

    async fn open_node(&self, snapshot: &Arc<ClusterManifest>, node: &NodeName) -> Result<NodeTree, RepoError> {
        Ok(NodeTree { snapshot: snapshot.clone(), manifest: self.node_manifest(snapshot, node).await? })
    }

    async fn entry(&self, tree: &NodeTree, path: &TreePath) -> Result<Option<PlacedEntry>, RepoError> {
        let pages = &tree.manifest.tree;
        let after = pages.partition_point(|page| page.first <= *path);
        let Some(reference) = after.checked_sub(1).and_then(|index| pages.get(index)) else { return Ok(None) };
        let page = self.tree_page(&tree.manifest.cluster, reference).await?;
        let found = page.entries.binary_search_by(|entry| entry.path.cmp(path)).ok();
        Ok(found.map(|index| placed(&page, reference, &mut None, index)))
    }

    async fn directory(&self, tree: &NodeTree, path: &TreePath) -> Result<Vec<PlacedEntry>, RepoError> {
        let pages = &tree.manifest.tree;
        // The first possible entry: one with this parent and the smallest name. All with this parent stand together.
        let is_before = |candidate: &TreePath| candidate.parent_bytes() < path.as_bytes() || candidate.is_root();
        let is_inside = |candidate: &TreePath| candidate.parent_bytes() == path.as_bytes() && !candidate.is_root();
        let start = pages.partition_point(|page| is_before(&page.first)).saturating_sub(1);
        let candidates = pages[start..].iter().take_while(|page| is_before(&page.first) || is_inside(&page.first));
        // Each reference is its own future's, so that they need not outlive this call.
        let reading: Vec<_> =
            candidates
                .map(|reference| async move {
                    Ok::<_, RepoError>((reference, self.tree_page(&tree.manifest.cluster, reference).await?))
                })
                .collect();
        let mut read = futures::stream::iter(reading).buffered(PAGES_AT_A_TIME);
        let mut entries = Vec::new();
        while let Some((reference, page)) = read.try_next().await? {
            let from = page.entries.partition_point(|entry| is_before(&entry.path));
            let count = page.entries[from..].partition_point(|entry| is_inside(&entry.path));
            let mut shared = None;
            entries.extend((from..from + count).map(|index| placed(&page, reference, &mut shared, index)));
        }
        Ok(entries)
    }

    async fn segments(&self, tree: &NodeTree, file: &PlacedEntry, offset: u64) -> Result<Option<Arc<SegmentRun>>, RepoError> {
        let cluster = &tree.manifest.cluster;
        let path = &file.entry.path;
        let Some(content) = file.entry.content.as_ref().filter(|content| offset < content.size_bytes) else { return Ok(None) };
        let wrong =
            |reason: &str| RepoError::corrupt(format!("{cluster}/{}/{}/{path}", tree.snapshot.date, tree.manifest.node), reason);
        let after = content.tables.partition_point(|slice| slice.start <= offset);
        let index = after.checked_sub(1).ok_or_else(|| wrong("its table does not begin at 0"))?;
        let slice = &content.tables[index];
        let end = content.tables.get(after).map_or(content.size_bytes, |next| next.start);
        let (extent, place) = match (&slice.page, &file.shared_table) {
            (Some(own), _) => (own, table_place(path, Some(slice.start))),
            (None, Some(shared)) => (&shared.page, table_place(&shared.first, None)),
            (None, None) => return Err(wrong("its tree page shares no table")),
        };
        let cache_key = (extent.id, slice.first);
        if let Some(run) = self.runs.get(&cache_key)
            && (run.start(), run.end()) == (slice.start, end)
        {
            return Ok(Some(run));
        }
        let records = match slice.page {
            Some(_) => Arc::new(self.table_page(cluster, &place, extent).await?),
            None => self.shared_table(cluster, &place, extent).await?,
        };
        let first = slice.first as usize;
        let last = first
            .checked_add(slice.count as usize)
            .filter(|last| *last <= records.len())
            .ok_or_else(|| wrong("its table is shorter than it says"))?;
        let run = Arc::new(SegmentRun::new(slice.start, records[first..last].to_vec()));
        if run.end() != end {
            return Err(wrong("its segments do not add up to its size"));
        }
        self.runs.put(cache_key, run.clone(), run.segments().len() * RECORD_BYTES + 64);
        Ok(Some(run))
    }

    async fn read_blocks(&self, tree: &NodeTree, extents: &[Extent]) -> Result<Vec<Bytes>, RepoError> {
        let cluster = &tree.manifest.cluster;
        let mut groups: Vec<&[Extent]> = Vec::new();
        let mut rest = extents;
        while let Some(first) = rest.first() {
            let longest = rest
                .windows(2)
                .take_while(|pair| pair[0].is_followed_by(&pair[1]) && pair[1].end() - u64::from(first.offset) <= RANGE_BYTES_MAX)
                .count()
                + 1;
            let (group, tail) = rest.split_at(longest);
            groups.push(group);
            rest = tail;
        }
        let fetched =
            futures::future::try_join_all(groups.into_iter().map(|group| twice(|| self.read_group(cluster, group)))).await?;
        Ok(fetched.into_iter().flatten().collect())
    }

    fn is_block(&self, tree: &NodeTree, extent: &Extent, plain: &[u8]) -> bool {
        plain.len() == extent.plain_bytes as usize && self.sealer(&tree.manifest.cluster).block_id(plain) == extent.id
    }
}

impl Repository {
    /// Neighbouring blocks of one pack: one ranged read, then each is opened and verified on its own.
    async fn read_group(&self, cluster: &ClusterName, group: &[Extent]) -> Result<Vec<Bytes>, RepoError> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(Vec::new()) };
        let key = Self::block_key(cluster, first);
        if let Some(fault) = group.iter().find_map(Extent::fault) {
            return Err(RepoError::corrupt(key, fault));
        }
        let base = u64::from(first.offset);
        let sealed = self.store().get(&key, Some(base..last.end())).await.map_err(|error| lost(&key, error))?;
        if sealed.len() as u64 != last.end() - base {
            let reason = format!("{} bytes delivered of {base}..{}", sealed.len(), last.end());
            return Err(RepoError::corrupt(key, reason));
        }
        let sealer = self.sealer(cluster);
        let mut opening = Vec::with_capacity(group.len());
        for extent in group {
            let start = (u64::from(extent.offset) - base) as usize;
            let sealed = sealed.slice(start..start + extent.stored_bytes as usize);
            let (sealer, extent, key) = (sealer.clone(), extent.clone(), key.clone());
            let open = move || {
                open_named(&sealer, SealType::Block, &[], &extent, &sealed)
                    .map_err(|reason| RepoError::corrupt(format!("{key} at {}", extent.offset), reason))
            };
            opening.push(if group.len() == 1 && last.plain_bytes < INLINE_BYTES {
                Opening::Done(open())
            } else {
                Opening::Running(tokio::task::spawn_blocking(open))
            });
        }
        let mut plain = Vec::with_capacity(opening.len());
        for open in opening {
            plain.push(match open {
                Opening::Done(result) => result?,
                Opening::Running(task) => {
                    task.await.map_err(|error| RepoError::Source { what: key.clone(), reason: error.to_string() })??
                }
            });
        }
        Ok(plain)
    }
}

enum Opening {
    Done(Result<Bytes, RepoError>),
    Running(tokio::task::JoinHandle<Result<Bytes, RepoError>>),
}
