//! Proving what is stored: that every object a snapshot leads to is there (`Listed`), and that every byte of it is what
//! it was (`Hashed`). What was proved is remembered as a mark beside the snapshot.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::reader::table_place;
use super::repository::Repository;
use super::seal::SealType;
use super::{ListedSnapshot, NodeTree, RepoError, SharedTable, SnapshotSource, layout};
use crate::model::extent::{Extent, PackRef, Segment};
use crate::model::ids::{BlockId, SnapshotId};
use crate::model::manifest::{ClusterManifest, NodeStatus};
use crate::model::names::{ClusterName, NodeName};
use crate::model::time::Timestamp;
use crate::object::{ObjectEntry, ObjectError, PutMode, list_all};

/// Blocks of one ranged read; the reader splits what is not adjacent.
const BATCH: usize = 8;
/// Batches under way: keeps both the store and the cores busy.
const READS: usize = 4;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyDepth {
    /// Manifests and pages are read and checked; packs are there and long enough.
    Listed,
    /// Every block is read, opened and compared with its name.
    Hashed,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The object or file.
    pub what: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a verification saw.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Files whose tables were checked.
    pub files: u64,
    /// Distinct blocks that the snapshot refers to.
    pub blocks: u64,
    /// Distinct packs.
    pub packs: u64,
    /// Plain bytes that were read and compared (0 for `Listed`).
    pub hashed_bytes: u64,
    /// What is wrong; empty when all is well.
    pub problems: Vec<Problem>,
}

/// A verification that was remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedMark {
    /// Always `verified`.
    pub kind: String,
    /// When.
    pub at: Timestamp,
    /// How deep.
    pub depth: VerifyDepth,
    /// How many problems it found.
    pub problems: u64,
}

impl VerifyReport {
    fn problem(&mut self, what: impl Into<String>, reason: impl ToString) {
        // A repository that lost everything should not fill the screen and the memory.
        if self.problems.len() < 1000 {
            self.problems.push(Problem { what: what.into(), reason: reason.to_string() });
        }
    }
}

/// A pack that is there: its node, its folder, and what the store says of it.
type PresentPack = (NodeName, String, ObjectEntry);

/// Damage is a finding; anything else (a store that is away) ends the verification.
fn finding(report: &mut VerifyReport, error: RepoError) -> Result<(), RepoError> {
    match error {
        RepoError::Corrupt { object, reason } => {
            report.problem(object, reason);
            Ok(())
        }
        RepoError::Object(ObjectError::NotFound { key }) => {
            report.problem(key, "the object is missing");
            Ok(())
        }
        RepoError::NotFound { what } => {
            report.problem(what, "it is missing");
            Ok(())
        }
        RepoError::TooNew { .. } => {
            report.problem("format", error);
            Ok(())
        }
        other => Err(other),
    }
}

impl Repository {
    /// Verifies one snapshot. Damage is in the report; an error means that the verification itself could not go on.
    /// `on_bytes` is called with the number of plain bytes of each batch as it is proved.
    pub async fn verify(
        &self,
        snapshot: &ListedSnapshot,
        depth: VerifyDepth,
        on_bytes: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<VerifyReport, RepoError> {
        let mut report = VerifyReport::default();
        let manifest = match self.manifest(snapshot).await {
            Ok(manifest) => manifest,
            Err(error) => {
                finding(&mut report, error)?;
                return Ok(report);
            }
        };
        self.verify_chain(snapshot, &manifest, &mut report).await?;
        let mut blocks: HashMap<BlockId, Extent> = HashMap::new();
        let mut pages: HashSet<Arc<PackRef>> = HashSet::new();
        let mut any_tree: Option<NodeTree> = None;
        for record in manifest.nodes.iter().filter(|record| record.status == NodeStatus::Completed) {
            match self.open_node(&manifest, &record.name).await {
                Ok(tree) => {
                    self.verify_tree(&tree, &mut blocks, &mut pages, &mut report).await?;
                    any_tree = Some(tree);
                }
                Err(error) => finding(&mut report, error)?,
            }
        }
        report.blocks = blocks.len() as u64;
        let present = self.verify_packs(&snapshot.cluster, &blocks, &mut report).await?;
        if depth >= VerifyDepth::Hashed {
            self.verify_directories(&snapshot.cluster, present, &mut report).await?;
            self.verify_directories(&snapshot.cluster, self.page_packs(&snapshot.cluster, &pages).await?, &mut report).await?;
        }
        if let (VerifyDepth::Hashed, Some(tree)) = (depth, any_tree) {
            self.verify_blocks(&tree, blocks, &mut report, on_bytes).await?;
        }
        Ok(report)
    }

    /// The predecessor that the manifest names must still be listed: nothing of this version takes snapshots away.
    async fn verify_chain(
        &self,
        snapshot: &ListedSnapshot,
        manifest: &ClusterManifest,
        report: &mut VerifyReport,
    ) -> Result<(), RepoError> {
        let Some(predecessor) = &manifest.predecessor else { return Ok(()) };
        let month = layout::month(&snapshot.cluster, predecessor.date);
        let listed = list_all(self.store().as_ref(), &month).await?;
        let is_there = listed
            .iter()
            .filter_map(|object| layout::parse_cluster_manifest(&snapshot.cluster, &object.key))
            .any(|other| other.uuid == predecessor.uuid);
        if !is_there {
            report.problem(
                format!("snapshot {}/{}", snapshot.cluster, predecessor.date),
                "it is missing, though its successor names it",
            );
        }
        Ok(())
    }

    async fn verify_tree(
        &self,
        tree: &NodeTree,
        blocks: &mut HashMap<BlockId, Extent>,
        pages: &mut HashSet<Arc<PackRef>>,
        report: &mut VerifyReport,
    ) -> Result<(), RepoError> {
        let cluster = &tree.manifest.cluster;
        let (mut files, mut bytes) = (0, 0);
        for reference in &tree.manifest.tree {
            pages.insert(reference.page.pack.clone());
            let page = match self.tree_page(cluster, reference).await {
                Ok(page) => page,
                Err(error) => {
                    finding(report, error)?;
                    continue;
                }
            };
            let shared =
                page.table.as_ref().map(|table| Arc::new(SharedTable { page: table.clone(), first: reference.first.clone() }));
            pages.extend(page.table.as_ref().map(|table| table.pack.clone()));
            let shared_records = match &shared {
                None => Vec::new(),
                Some(shared) => match self.table_page(cluster, &table_place(&shared.first, None), &shared.page).await {
                    Ok(records) => records,
                    Err(error) => {
                        finding(report, error)?;
                        continue;
                    }
                },
            };
            for entry in &page.entries {
                let Some(content) = &entry.content else { continue };
                files += 1;
                bytes += content.size_bytes;
                let mut size = 0;
                for slice in &content.tables {
                    pages.extend(slice.page.as_ref().map(|page| page.pack.clone()));
                    let own;
                    let records = match &slice.page {
                        None => &shared_records,
                        Some(page) => match self.table_page(cluster, &table_place(&entry.path, Some(slice.start)), page).await {
                            Ok(records) => {
                                own = records;
                                &own
                            }
                            Err(error) => {
                                finding(report, error)?;
                                continue;
                            }
                        },
                    };
                    if slice.start != size {
                        report.problem(entry.path.to_string(), "its table has a gap");
                    }
                    let slice = (slice.first as usize)
                        .checked_add(slice.count as usize)
                        .and_then(|last| records.get(slice.first as usize..last));
                    for segment in slice.unwrap_or_default() {
                        size += segment.plain_bytes();
                        if let Segment::Block(extent) = segment {
                            blocks.entry(extent.id).or_insert_with(|| extent.clone());
                        }
                    }
                }
                if size != content.size_bytes {
                    report.problem(format!("{}/{}", tree.manifest.node, entry.path), "its segments do not add up to its size");
                }
            }
        }
        report.files += files;
        if (files, bytes) != (tree.manifest.totals.files, tree.manifest.totals.total_bytes) {
            report.problem(tree.manifest.node.to_string(), "its totals are not those of its files");
        }
        Ok(())
    }

    /// Packs of blocks are there and long enough; returns those that are there.
    async fn verify_packs(
        &self,
        cluster: &ClusterName,
        blocks: &HashMap<BlockId, Extent>,
        report: &mut VerifyReport,
    ) -> Result<Vec<PresentPack>, RepoError> {
        let mut ends: HashMap<String, (&NodeName, u64)> = HashMap::new();
        for extent in blocks.values() {
            let (_, end) = ends.entry(Self::block_key(cluster, extent)).or_insert((&extent.pack.node, 0));
            *end = extent.end().max(*end);
        }
        report.packs = ends.len() as u64;
        let folders: BTreeSet<_> = blocks.values().map(|extent| layout::packs(cluster, &extent.pack.node)).collect();
        let mut sizes = HashMap::new();
        for folder in folders {
            sizes.extend(list_all(self.store().as_ref(), &folder).await?.into_iter().map(|object| (object.key.clone(), object)));
        }
        let mut present = Vec::new();
        for (key, (node, end)) in ends {
            match sizes.remove(&key) {
                None => report.problem(key, "the pack is missing"),
                Some(object) if object.size_bytes < end => report.problem(key, "the pack was cut short"),
                Some(object) => present.push((node.clone(), layout::packs(cluster, node), object)),
            }
        }
        Ok(present)
    }

    /// The packs of pages that are there: those that are not were told when their pages were read.
    async fn page_packs(&self, cluster: &ClusterName, pages: &HashSet<Arc<PackRef>>) -> Result<Vec<PresentPack>, RepoError> {
        let nodes: BTreeSet<_> = pages.iter().map(|pack| &pack.node).collect();
        let mut present = Vec::new();
        for node in nodes {
            let folder = layout::pages(cluster, node);
            let keys: HashSet<_> = pages
                .iter()
                .filter(|pack| pack.node == *node)
                .map(|pack| format!("{folder}{}", layout::pack_name(pack.pack)))
                .collect();
            let listed = list_all(self.store().as_ref(), &folder).await?;
            let wanted = listed.into_iter().filter(|object| keys.contains(&object.key));
            present.extend(wanted.map(|object| (node.clone(), folder.clone(), object)));
        }
        Ok(present)
    }

    /// No file needs a pack's directory, but reuse of its content after an interrupted upload does.
    async fn verify_directories(
        &self,
        cluster: &ClusterName,
        packs: Vec<PresentPack>,
        report: &mut VerifyReport,
    ) -> Result<(), RepoError> {
        let mut reads = futures::stream::iter(
            packs
                .into_iter()
                .map(|(node, folder, object)| async move { self.pack_items(cluster, &node, &folder, &object).await }),
        )
        .buffer_unordered(READS);
        while let Some(read) = reads.next().await {
            if let Err(error) = read {
                finding(report, error)?;
            }
        }
        Ok(())
    }

    async fn verify_blocks(
        &self,
        tree: &NodeTree,
        blocks: HashMap<BlockId, Extent>,
        report: &mut VerifyReport,
        on_bytes: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RepoError> {
        // In the order of storing, so that neighbours are read together.
        let mut extents: Vec<_> = blocks.into_values().collect();
        extents.sort_by(|a, b| (&a.pack, a.offset).cmp(&(&b.pack, b.offset)));
        let batches: Vec<Vec<Extent>> = extents.chunks(BATCH).map(<[Extent]>::to_vec).collect();
        let mut reads = futures::stream::iter(batches.into_iter().map(|batch| async move {
            let whole = self.read_blocks(tree, &batch).await;
            (batch, whole)
        }))
        .buffer_unordered(READS);
        let mut told = HashSet::new();
        while let Some((batch, read)) = reads.next().await {
            if let Ok(read) = &read {
                let bytes = read.iter().map(|block| block.len() as u64).sum();
                report.hashed_bytes += bytes;
                on_bytes(bytes);
                continue;
            }
            // One of them is damaged: each on its own tells which.
            for extent in batch {
                match self.read_blocks(tree, std::slice::from_ref(&extent)).await {
                    Ok(_) => report.hashed_bytes += u64::from(extent.plain_bytes),
                    // A missing pack is told once, not for each of its blocks.
                    Err(RepoError::Corrupt { object, .. }) if !object.contains(" at ") && !told.insert(object.clone()) => {}
                    Err(error) => finding(report, error)?,
                }
                on_bytes(u64::from(extent.plain_bytes));
            }
        }
        report.problems.dedup();
        Ok(())
    }

    /// Remembers that a snapshot was verified.
    pub async fn mark_verified(
        &self,
        snapshot: &ListedSnapshot,
        depth: VerifyDepth,
        report: &VerifyReport,
        now: Timestamp,
    ) -> Result<(), RepoError> {
        let key = format!("{}verified.{}", layout::marks(&snapshot.cluster, snapshot.uuid), Uuid::now_v7());
        let mark = VerifiedMark { kind: "verified".to_owned(), at: now, depth, problems: report.problems.len() as u64 };
        self.put_sealed(&key, SealType::Mark, snapshot.cluster.as_str(), &mark, PutMode::Create).await?;
        Ok(())
    }

    /// The verifications of a snapshot, oldest first. A mark that cannot be read proves nothing and is left out.
    pub async fn verifications(&self, cluster: &ClusterName, snapshot: SnapshotId) -> Result<Vec<VerifiedMark>, RepoError> {
        let prefix = format!("{}verified.", layout::marks(cluster, snapshot));
        let mut marks = Vec::new();
        for object in list_all(self.store().as_ref(), &prefix).await? {
            match self.get_sealed::<VerifiedMark>(&object.key, SealType::Mark, cluster.as_str()).await {
                Ok((mark, ..)) => marks.push(mark),
                Err(error) => tracing::warn!(%error, "a mark cannot be read"),
            }
        }
        Ok(marks)
    }
}
