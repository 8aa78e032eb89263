//! The end of a node: its table pages, tree pages and manifest.
//!
//! **Invariants.** All data is stored, and all reused packs were seen, before the manifest is written.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{EntryMeta, NodeReceipt, NodeWriter};
use crate::model::extent::{BLOCK_BYTES_MAX, Extent, PackRef, Segment};
use crate::model::manifest::{FORMAT_VERSION, FileKind, NodeManifest, Ownership, TableSlice, TreeEntry, TreePage, TreePageRef};
use crate::model::names::TreePath;
use crate::object::PutMode;
use crate::repo::reader::{table_place, tree_place};
use crate::repo::seal::SealType;
use crate::repo::tree_pages::{self, SHARED_SEGMENTS_MAX};
use crate::repo::{RepoError, layout, table};

/// Records of one table page of a file's own: 4 GiB of file in 1 MiB blocks, 200 KiB of table.
const OWN_PAGE_RECORDS: usize = 4096;
/// Metadata is written once and read often, and small: the level is worth it.
const PAGE_LEVEL: i32 = 3;

impl NodeWriter {
    async fn store_page(&mut self, kind: SealType, place: &[u8], plain: &[u8]) -> Result<Extent, RepoError> {
        if plain.len() > BLOCK_BYTES_MAX as usize {
            return Err(RepoError::Refused {
                what: format!("a page of {}", self.node),
                reason: "it is larger than 8 MiB".to_owned(),
            });
        }
        let id = self.sealer.placed_id(kind, place, plain);
        if let Some(extent) = self.known.page(&id) {
            return Ok(extent);
        }
        let sealed = self.sealer.seal(kind, &[&id.0[..], place].concat(), plain, Some(PAGE_LEVEL))?;
        let plain_bytes = u32::try_from(plain.len()).expect("at most 8 MiB, as checked above");
        let extent = self.pages.add(kind, id, plain_bytes, &sealed).await?;
        self.known.add_page(extent.clone());
        Ok(extent)
    }

    /// Stores the pages and the manifest. All data is stored, and all reused packs were seen, before the manifest is.
    pub async fn finish(mut self) -> Result<NodeReceipt, RepoError> {
        self.data.finish().await?;
        self.add_root()?;
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_by(|a, b| a.0.path.cmp(&b.0.path));
        self.check_tree(&entries)?;
        let mut packs: HashSet<_> = HashSet::new();
        for segment in entries.iter().flat_map(|(_, segments)| segments) {
            if let Segment::Block(extent) = segment {
                packs.insert((extent.pack.clone(), false));
            }
        }
        for (entry, segments) in &mut entries {
            self.store_own_tables(entry, segments).await?;
        }
        let (mut tree_entries, mut segments): (Vec<_>, VecDeque<_>) = entries.into_iter().unzip();
        let mut tree = Vec::new();
        let counts: Vec<usize> = segments.iter().map(Vec::len).collect();
        for length in tree_pages::page_lengths(&tree_entries, &counts) {
            let rest = tree_entries.split_off(length);
            let page_entries = std::mem::replace(&mut tree_entries, rest);
            let page_segments: Vec<_> = segments.drain(..length).collect();
            let first = page_entries[0].path.clone();
            let page = self.store_tree_page(&first, page_entries, page_segments, &mut packs).await?;
            tree.push(TreePageRef { first, page });
        }
        self.pages.finish().await?;
        self.repository.check_packs(&self.cluster, &packs).await?;

        let key = layout::node_manifest(&self.cluster, &self.node, self.snapshot);
        let before = self
            .parent
            .as_ref()
            .filter(|parent| parent.tree.manifest.node == self.node)
            .and_then(|parent| parent.tree.manifest.newest_pack);
        self.totals.stored_bytes = self.stored_bytes.load(Ordering::Relaxed);
        let manifest = NodeManifest {
            format: FORMAT_VERSION,
            snapshot: self.snapshot,
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            tree,
            totals: self.totals,
            newest_pack: self.data.newest().max(self.pages.newest()).max(before),
        };
        let (id, stored) =
            self.repository.put_sealed(&key, SealType::NodeManifest, self.cluster.as_str(), &manifest, PutMode::Create).await?;
        self.totals.stored_bytes += stored;
        Ok(NodeReceipt { manifest: id, totals: self.totals })
    }

    /// A node whose driver hands over files only (a dump that came as a stream) gets a directory of its own: the owner of
    /// its first entry, the newest time of all, and open to nobody but owner and group.
    fn add_root(&mut self) -> Result<(), RepoError> {
        if self.places.contains_key(&TreePath::root()) {
            return Ok(());
        }
        let owner = self.entries.first().map_or_else(Ownership::default, |(entry, _)| entry.owner.clone());
        let modified_ns = self.entries.iter().map(|(entry, _)| entry.modified_ns).max().unwrap_or(0);
        self.add_directory(EntryMeta { path: TreePath::root(), mode: 0o750, owner, modified_ns })
    }

    /// Every entry but the root stands in a directory.
    fn check_tree(&self, entries: &[(TreeEntry, Vec<Segment>)]) -> Result<(), RepoError> {
        let directories: HashSet<&TreePath> =
            entries.iter().filter(|(entry, _)| entry.kind == FileKind::Directory).map(|(entry, _)| &entry.path).collect();
        let is_lost =
            |entry: &TreeEntry| entry.path.parent().is_none_or(|parent| !directories.contains(&parent)) && !entry.path.is_root();
        match entries.iter().find(|(entry, _)| is_lost(entry)) {
            Some((entry, _)) => Err(RepoError::Refused {
                what: format!("{}/{}", self.node, entry.path),
                reason: "its directory was not handed over".to_owned(),
            }),
            None => Ok(()),
        }
    }

    async fn store_own_tables(&mut self, entry: &mut TreeEntry, segments: &[Segment]) -> Result<(), RepoError> {
        let Some(content) = entry.content.as_mut().filter(|_| segments.len() > SHARED_SEGMENTS_MAX) else { return Ok(()) };
        content.tables.clear();
        let mut start = 0;
        for records in segments.chunks(OWN_PAGE_RECORDS) {
            let place = table_place(&entry.path, Some(start));
            let page = self.store_page(SealType::TablePage, &place, &table::encode(records)).await?;
            let count = u32::try_from(records.len()).expect("at most 4096");
            content.tables.push(TableSlice { start, first: 0, count, page: Some(page) });
            start += records.iter().map(Segment::plain_bytes).sum::<u64>();
        }
        Ok(())
    }

    async fn store_tree_page(
        &mut self,
        first: &TreePath,
        mut entries: Vec<TreeEntry>,
        segments: Vec<Vec<Segment>>,
        packs: &mut HashSet<(Arc<PackRef>, bool)>,
    ) -> Result<Extent, RepoError> {
        let mut shared: Vec<Segment> = Vec::new();
        for (entry, segments) in entries.iter_mut().zip(segments) {
            let Some(content) = &mut entry.content else { continue };
            if segments.len() > SHARED_SEGMENTS_MAX {
                packs.extend(content.tables.iter().filter_map(|slice| slice.page.as_ref()).map(|page| (page.pack.clone(), true)));
                continue;
            }
            let number = |value: usize| u32::try_from(value).expect("at most 2048 files of 256 segments");
            content.tables = match segments.len() {
                0 => Vec::new(),
                count => vec![TableSlice { start: 0, first: number(shared.len()), count: number(count), page: None }],
            };
            shared.extend(segments);
        }
        let table = match shared.is_empty() {
            true => None,
            false => Some(self.store_page(SealType::TablePage, &table_place(first, None), &table::encode(&shared)).await?),
        };
        let page = TreePage { table, entries };
        let plain = serde_json::to_vec(&page)
            .map_err(|error| RepoError::Refused { what: first.to_string(), reason: error.to_string() })?;
        let stored = self.store_page(SealType::TreePage, &tree_place(first), &plain).await?;
        packs.extend(page.table.iter().chain([&stored]).map(|extent| (extent.pack.clone(), true)));
        Ok(stored)
    }
}
