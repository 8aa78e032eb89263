//! Storing one node of one snapshot: files in, a node manifest out.
//!
//! How it works: the driver's entries come one after the other. A file is split into blocks; each block is read, named,
//! compressed and sealed on a thread of its own, several at once, and appended to the current pack *in order*, so that a
//! file read from end to end later comes in few large ranges. Blocks that are stored already are only referred to.
//! `finish` writes the pages and then the manifest, which nothing refers to until the cluster manifest does.
//!
//! **Invariants.** Nothing refers to what is not stored. At any death the packs that were stored are found by the next
//! attempt. Blocks in flight are bounded by a semaphore that all nodes of a run share.
//!
//! Memory besides: every segment of the node until the end, about 100 bytes each (100 MB for a terabyte).

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::known::{Known, Parent};
use super::pack_writer::PackWriter;
use super::reader::{table_place, tree_place};
use super::repository::Repository;
use super::seal::{SealType, Sealer};
use super::{NodeTree, RepoError, layout, table, tree_pages};
use crate::model::extent::{BLOCK_BYTES_MAX, Extent, LITERAL_BYTES_MAX, Segment};
use crate::model::ids::{BlockId, SnapshotId};
use crate::model::manifest::{
    FORMAT_VERSION, FileClass, FileContent, FileKind, Fingerprint, NodeManifest, NodeTotals, Ownership, TableSlice, TreeEntry,
    TreePage, TreePageRef,
};
use crate::model::names::{ClusterName, NodeName, TreePath};
use crate::object::PutMode;

/// Files with at most this many segments share their tree page's table; larger ones have pages of their own, so that
/// opening a small file beside a large one costs little.
const SHARED_SEGMENTS_MAX: usize = 256;
/// Records of one table page of a file's own: 4 GiB of file in 1 MiB blocks, 200 KiB of table.
const OWN_PAGE_RECORDS: usize = 4096;
/// Metadata is written once and read often, and small: the level is worth it.
const PAGE_LEVEL: i32 = 3;

/// What has been done so far, for progress bars; shared by all nodes of a run.
#[derive(Debug, Default)]
pub struct Progress {
    /// Plain bytes taken in, reused ones included.
    pub read_bytes: AtomicU64,
    /// Bytes stored.
    pub stored_bytes: AtomicU64,
}

/// How a run stores; shared by its nodes.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// zstd level of blocks; `None`: as they are.
    pub level: Option<i32>,
    /// Blocks in flight, of all nodes together.
    pub blocks: Arc<Semaphore>,
    /// Packs being uploaded, of all nodes together.
    pub uploads: Arc<Semaphore>,
    /// Counted as it goes.
    pub progress: Arc<Progress>,
}

impl WriterOptions {
    /// `level` as configured, two blocks per core and two more, and `uploads` packs under way.
    pub fn new(level: Option<i32>, uploads: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            level,
            // Each core works on one, has the next at hand, and the one being appended is nobody's.
            blocks: Arc::new(Semaphore::new(cores * 2 + 2)),
            uploads: Arc::new(Semaphore::new(uploads.max(1))),
            progress: Arc::default(),
        }
    }
}

/// What is known of an entry besides its content.
#[derive(Debug, Clone)]
pub struct EntryMeta {
    /// Where it stands.
    pub path: TreePath,
    /// Permission bits.
    pub mode: u32,
    /// Who owns it.
    pub owner: Ownership,
    /// Nanoseconds since 1970.
    pub modified_ns: i64,
}

/// A node that was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReceipt {
    /// Id of its manifest, for the cluster manifest.
    pub manifest: BlockId,
    /// Sizes.
    pub totals: NodeTotals,
}

/// Stores one node of one snapshot.
#[derive(Debug)]
pub struct NodeWriter {
    repository: Arc<Repository>,
    sealer: Arc<Sealer>,
    cluster: ClusterName,
    node: NodeName,
    snapshot: SnapshotId,
    options: WriterOptions,
    known: Arc<Known>,
    parent: Option<Parent>,
    has_parent_blocks: bool,
    data: PackWriter,
    pages: PackWriter,
    stored_bytes: Arc<AtomicU64>,
    entries: Vec<(TreeEntry, Vec<Segment>)>,
    places: HashMap<TreePath, usize>,
    totals: NodeTotals,
}

enum Job {
    Read { file: Arc<File>, offset: u64, length: usize },
    Plain(Vec<u8>),
}

struct Prepared {
    id: BlockId,
    plain_bytes: u32,
    /// Absent when the block is known.
    sealed: Option<Vec<u8>>,
}

impl NodeWriter {
    /// Begins a node. `parent` is the tree whose blocks may be reused: the newest snapshot that has this node.
    pub async fn begin(
        repository: Arc<Repository>,
        cluster: ClusterName,
        node: NodeName,
        snapshot: SnapshotId,
        parent: Option<NodeTree>,
        options: WriterOptions,
    ) -> Result<Self, RepoError> {
        let known = Arc::new(Known::default());
        let newest_pack = parent.as_ref().filter(|tree| tree.manifest.node == node).and_then(|tree| tree.manifest.newest_pack);
        repository.load_leftovers(&cluster, &node, newest_pack, &known).await?;
        let parent = match parent {
            Some(tree) => Some(repository.load_parent(tree, &known).await?),
            None => None,
        };
        let sealer = repository.sealer(&cluster);
        let stored_bytes = Arc::new(AtomicU64::new(0));
        let writer = |folder| {
            PackWriter::new(
                repository.clone(),
                sealer.clone(),
                folder,
                node.clone(),
                options.uploads.clone(),
                stored_bytes.clone(),
            )
        };
        Ok(Self {
            data: writer(layout::packs(&cluster, &node)),
            pages: writer(layout::pages(&cluster, &node)),
            stored_bytes: stored_bytes.clone(),
            sealer: sealer.clone(),
            repository: repository.clone(),
            cluster,
            node: node.clone(),
            snapshot,
            options: options.clone(),
            known,
            parent,
            has_parent_blocks: false,
            entries: Vec::new(),
            places: HashMap::new(),
            totals: NodeTotals::default(),
        })
    }

    fn push(&mut self, entry: TreeEntry, segments: Vec<Segment>) -> Result<(), RepoError> {
        if self.places.insert(entry.path.clone(), self.entries.len()).is_some() {
            return Err(RepoError::Refused {
                what: format!("{}/{}", self.node, entry.path),
                reason: "it was handed over twice".to_owned(),
            });
        }
        if let Some(content) = &entry.content {
            self.totals.files += 1;
            self.totals.total_bytes += content.size_bytes;
        }
        self.entries.push((entry, segments));
        Ok(())
    }

    /// A directory. The root has the empty path.
    pub fn add_directory(&mut self, meta: EntryMeta) -> Result<(), RepoError> {
        self.push(entry(meta, FileKind::Directory, None, None), Vec::new())
    }

    /// A symbolic link.
    pub fn add_link(&mut self, meta: EntryMeta, target: Vec<u8>) -> Result<(), RepoError> {
        self.push(entry(meta, FileKind::Link, None, Some(target)), Vec::new())
    }

    /// Takes a file over from the parent without reading it, when its fingerprint and size say that it did not change.
    /// Returns whether it did.
    pub async fn add_unchanged(&mut self, meta: &EntryMeta, size_bytes: u64, now: &Fingerprint) -> Result<bool, RepoError> {
        let Some(placed) = self.parent.as_ref().and_then(|parent| parent.entries.get(&meta.path)) else { return Ok(false) };
        let Some(content) = placed.entry.content.as_ref() else { return Ok(false) };
        if content.size_bytes != size_bytes || !content.fingerprint.is_some_and(|then| then.shows_unchanged(now)) {
            return Ok(false);
        }
        let placed = placed.clone();
        let segments = self.repository.all_segments(&self.cluster, &placed).await?;
        self.options.progress.read_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        // The fingerprint stays the old one: it was the older capture that proved the times, and the page stays the same.
        self.push(entry(meta.clone(), FileKind::File, placed.entry.content.clone(), None), segments)?;
        Ok(true)
    }

    /// The first `length_bytes` of an open file.
    ///
    /// Of an append-only file that the parent has with the same inode and that only grew, the whole blocks that were
    /// there are not read again, save the last one of them, which must still be the same.
    pub async fn add_file(
        &mut self,
        meta: EntryMeta,
        class: FileClass,
        block_bytes: u32,
        file: File,
        length_bytes: u64,
        fingerprint: Option<Fingerprint>,
    ) -> Result<(), RepoError> {
        let file = Arc::new(file);
        let mut segments = Vec::new();
        if class == FileClass::AppendOnly {
            segments = self.appended_to(&meta.path, block_bytes, &file, length_bytes, fingerprint.as_ref()).await?;
        }
        let start = segments.iter().map(Segment::plain_bytes).sum();
        self.options.progress.read_bytes.fetch_add(start, Ordering::Relaxed);
        let mut feed = FileFeed { file, at: start, end: length_bytes, block_bytes };
        self.store(&meta.path, &mut feed, &mut segments).await?;
        self.push_file(meta, class, block_bytes, fingerprint, segments)
    }

    /// A stream until its end. Returns its length.
    pub async fn add_stream(
        &mut self,
        meta: EntryMeta,
        class: FileClass,
        block_bytes: u32,
        stream: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<u64, RepoError> {
        let mut segments = Vec::new();
        let mut feed = StreamFeed { stream, block_bytes, has_ended: false };
        self.store(&meta.path, &mut feed, &mut segments).await?;
        let length = segments.iter().map(Segment::plain_bytes).sum();
        self.push_file(meta, class, block_bytes, None, segments)?;
        Ok(length)
    }

    /// A file with the same bytes as one that was added before.
    pub fn add_same(&mut self, meta: EntryMeta, class: FileClass, as_path: &TreePath) -> Result<(), RepoError> {
        let unknown = || RepoError::Refused {
            what: meta.path.to_string(),
            reason: format!("it is to be the same as {as_path}, which was not stored before it"),
        };
        let (other, segments) = self.places.get(as_path).and_then(|place| self.entries.get(*place)).ok_or_else(unknown)?;
        let block_bytes = other.content.as_ref().ok_or_else(unknown)?.block_bytes;
        let segments = segments.clone();
        self.push_file(meta, class, block_bytes, None, segments)
    }

    fn push_file(
        &mut self,
        meta: EntryMeta,
        class: FileClass,
        block_bytes: u32,
        fingerprint: Option<Fingerprint>,
        segments: Vec<Segment>,
    ) -> Result<(), RepoError> {
        let size_bytes = segments.iter().map(Segment::plain_bytes).sum::<u64>();
        let mut hasher = self.sealer.content_hasher();
        hasher.update(&size_bytes.to_le_bytes());
        for segment in &segments {
            match segment {
                Segment::Block(extent) => hasher.update(&[1]).update(&extent.id.0),
                Segment::Literal(bytes) => {
                    let length = u16::try_from(bytes.len()).expect("literals are at most 512 bytes");
                    hasher.update(&[2]).update(&length.to_le_bytes()).update(bytes)
                }
            };
        }
        let id = BlockId(*hasher.finalize().as_bytes());
        let content = FileContent { size_bytes, block_bytes, class, id, tables: Vec::new(), fingerprint };
        self.push(entry(meta, FileKind::File, Some(content), None), segments)
    }

    /// The parent's whole blocks of a file that only grew; none when that is not certain.
    async fn appended_to(
        &mut self,
        path: &TreePath,
        block_bytes: u32,
        file: &Arc<File>,
        length_bytes: u64,
        now: Option<&Fingerprint>,
    ) -> Result<Vec<Segment>, RepoError> {
        let Some(placed) = self.parent.as_ref().and_then(|parent| parent.entries.get(path)) else { return Ok(Vec::new()) };
        let (Some(content), Some(now)) = (&placed.entry.content, now) else { return Ok(Vec::new()) };
        let is_same_file = content.fingerprint.is_some_and(|then| (then.device, then.inode) == (now.device, now.inode));
        if !is_same_file
            || content.class != FileClass::AppendOnly
            || content.block_bytes != block_bytes
            || content.size_bytes > length_bytes
        {
            return Ok(Vec::new());
        }
        let placed = placed.clone();
        let mut segments = self.repository.all_segments(&self.cluster, &placed).await?;
        let is_whole = |segment: &Segment| matches!(segment, Segment::Block(extent) if extent.plain_bytes == block_bytes);
        segments.truncate(segments.iter().take_while(|segment| is_whole(segment)).count());
        let Some(Segment::Block(last)) = segments.last() else { return Ok(Vec::new()) };
        let offset = (segments.len() as u64 - 1) * u64::from(block_bytes);
        let (file, sealer, expected) = (file.clone(), self.sealer.clone(), last.id);
        let found = blocking(path, move || {
            let mut plain = vec![0u8; block_bytes as usize];
            file.read_exact_at(&mut plain, offset).map(|()| sealer.block_id(&plain))
        })
        .await?;
        if found == expected { Ok(segments) } else { Ok(Vec::new()) }
    }

    /// Stores what `feed` delivers behind `segments`.
    async fn store(&mut self, path: &TreePath, feed: &mut dyn Feed, segments: &mut Vec<Segment>) -> Result<(), RepoError> {
        let source = |reason: String| RepoError::Source { what: path.to_string(), reason };
        let mut running: VecDeque<(JoinHandle<Result<Prepared, RepoError>>, OwnedSemaphorePermit)> = VecDeque::new();
        let mut has_more = true;
        while has_more || !running.is_empty() {
            // The oldest block is appended as soon as it is ready; before that, as many are begun as may be in flight.
            let permit = if running.is_empty() {
                Some(self.options.blocks.clone().acquire_owned().await.expect("the semaphore is never closed"))
            } else {
                self.options.blocks.clone().try_acquire_owned().ok()
            };
            if let Some(permit) = permit.filter(|_| has_more) {
                match feed.next().await.map_err(|error| source(error.to_string()))? {
                    None => has_more = false,
                    Some(Job::Plain(bytes)) if bytes.len() <= LITERAL_BYTES_MAX && segments.is_empty() && running.is_empty() => {
                        self.options.progress.read_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        segments.push(Segment::Literal(bytes));
                    }
                    Some(job) => {
                        self.load_known_blocks().await?;
                        running.push_back((self.prepare(path, job), permit));
                    }
                }
                continue;
            }
            let Some((task, permit)) = running.pop_front() else { continue };
            let prepared = task.await.map_err(|error| source(error.to_string()))??;
            segments.push(Segment::Block(self.place(prepared).await?));
            drop(permit);
        }
        Ok(())
    }

    async fn load_known_blocks(&mut self) -> Result<(), RepoError> {
        if let (false, Some(parent)) = (self.has_parent_blocks, &self.parent) {
            self.repository.load_parent_blocks(parent, &self.known).await?;
        }
        self.has_parent_blocks = true;
        Ok(())
    }

    /// Reads, names, compresses and seals one block on a thread of its own.
    fn prepare(&self, path: &TreePath, job: Job) -> JoinHandle<Result<Prepared, RepoError>> {
        let (sealer, known, level, what) = (self.sealer.clone(), self.known.clone(), self.options.level, path.clone());
        tokio::task::spawn_blocking(move || {
            let plain = match job {
                Job::Plain(bytes) => bytes,
                Job::Read { file, offset, length } => {
                    let mut bytes = vec![0u8; length];
                    file.read_exact_at(&mut bytes, offset).map_err(|error| {
                        let reason = if error.kind() == std::io::ErrorKind::UnexpectedEof {
                            "it became shorter while it was read".to_owned()
                        } else {
                            error.to_string()
                        };
                        RepoError::Source { what: what.to_string(), reason }
                    })?;
                    bytes
                }
            };
            let id = sealer.block_id(&plain);
            let plain_bytes = u32::try_from(plain.len()).expect("blocks are at most 8 MiB");
            let sealed =
                if known.block(&id).is_some() { None } else { Some(sealer.seal(SealType::Block, &id.0, &plain, level)?) };
            Ok(Prepared { id, plain_bytes, sealed })
        })
    }

    /// Where a block lies: where it is known to be, or at the end of the current pack.
    async fn place(&mut self, prepared: Prepared) -> Result<Extent, RepoError> {
        self.options.progress.read_bytes.fetch_add(u64::from(prepared.plain_bytes), Ordering::Relaxed);
        // Asked again: the same block may have been stored since it was sealed.
        if let Some(extent) = self.known.block(&prepared.id) {
            return Ok(extent);
        }
        let sealed = prepared.sealed.ok_or_else(|| RepoError::Refused {
            what: prepared.id.to_string(),
            reason: "a known block was forgotten".to_owned(),
        })?;
        let extent = self.data.add(SealType::Block, prepared.id, prepared.plain_bytes, &sealed).await?;
        self.options.progress.stored_bytes.fetch_add(sealed.len() as u64, Ordering::Relaxed);
        self.totals.new_bytes += u64::from(prepared.plain_bytes);
        self.known.add_block(extent.clone());
        Ok(extent)
    }

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
        for length in tree_pages::page_lengths(&tree_entries) {
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
        packs: &mut HashSet<(Arc<crate::model::extent::PackRef>, bool)>,
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

fn entry(meta: EntryMeta, kind: FileKind, content: Option<FileContent>, target: Option<Vec<u8>>) -> TreeEntry {
    TreeEntry {
        path: meta.path,
        kind,
        mode: meta.mode & 0o7777,
        owner: meta.owner,
        modified_ns: meta.modified_ns,
        content,
        target,
    }
}

async fn blocking<T: Send + 'static>(
    path: &TreePath,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, RepoError> {
    let source = |reason: String| RepoError::Source { what: path.to_string(), reason };
    tokio::task::spawn_blocking(work).await.map_err(|error| source(error.to_string()))?.map_err(|error| source(error.to_string()))
}

/// What delivers the blocks of one file, in order.
#[async_trait::async_trait]
trait Feed: Send {
    async fn next(&mut self) -> std::io::Result<Option<Job>>;
}

struct FileFeed {
    file: Arc<File>,
    at: u64,
    end: u64,
    block_bytes: u32,
}

#[async_trait::async_trait]
impl Feed for FileFeed {
    async fn next(&mut self) -> std::io::Result<Option<Job>> {
        let length = usize::try_from((self.end - self.at).min(u64::from(self.block_bytes))).expect("a block fits in memory");
        if length == 0 {
            return Ok(None);
        }
        let offset = self.at;
        self.at += length as u64;
        if length <= LITERAL_BYTES_MAX && offset == 0 {
            let mut bytes = vec![0u8; length];
            self.file.read_exact_at(&mut bytes, 0)?;
            return Ok(Some(Job::Plain(bytes)));
        }
        Ok(Some(Job::Read { file: self.file.clone(), offset, length }))
    }
}

struct StreamFeed<'a> {
    stream: &'a mut (dyn AsyncRead + Send + Unpin),
    block_bytes: u32,
    has_ended: bool,
}

#[async_trait::async_trait]
impl Feed for StreamFeed<'_> {
    async fn next(&mut self) -> std::io::Result<Option<Job>> {
        if self.has_ended {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(self.block_bytes as usize);
        let mut limited = (&mut *self.stream).take(u64::from(self.block_bytes));
        // Not one read more than the block holds: the buffer would grow for it.
        while bytes.len() < self.block_bytes as usize && limited.read_buf(&mut bytes).await? != 0 {}
        self.has_ended = bytes.len() < self.block_bytes as usize;
        Ok((!bytes.is_empty()).then_some(Job::Plain(bytes)))
    }
}
