//! Storing one node of one snapshot: files in, a node manifest out.
//!
//! How it works: the driver's entries come one after the other. A file is split into blocks; each block is read, named,
//! compressed and sealed on a thread of its own, several at once, and appended to the current pack *in order*, so that a
//! file read from end to end later comes in few large ranges. Blocks that are stored already are only referred to.
//! `finish` (in `pages`) writes the pages and then the manifest, which nothing refers to until the cluster manifest does.
//!
//! **Invariants.** Nothing refers to what is not stored. At any death the packs that were stored are found by the next
//! attempt. Blocks in flight are bounded by a semaphore that all nodes of a run share.
//!
//! Memory besides: every segment of the node until the end, about 100 bytes each (100 MB for a terabyte).

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use self::feed::{Feed, FileFeed, Job, StreamFeed};
use super::known::{Known, Parent};
use super::pack_writer::PackWriter;
use super::repository::Repository;
use super::seal::{SealType, Sealer, sealed_bytes_max};
use super::{NodeTree, PlacedEntry, RepoError, layout};
use crate::base::Pace;
use crate::base::buffers::{BufferPool, read_exact_at};
use crate::model::extent::{Extent, LITERAL_BYTES_MAX, Segment};
use crate::model::ids::{BlockId, SnapshotId};
use crate::model::manifest::{FileClass, FileContent, FileKind, Fingerprint, NodeTotals, Ownership, TreeEntry};
use crate::model::names::{ClusterName, NodeName, TreePath};

mod feed;
mod pages;

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
    /// Plain and sealed blocks.
    pub block_buffers: Arc<BufferPool<Vec<u8>>>,
    /// Packs.
    pub pack_buffers: Arc<BufferPool<BytesMut>>,
    /// No more bytes a second than this, on average: a pack goes at once.
    pub pace: Option<Arc<Pace>>,
    /// Counted as it goes.
    pub progress: Arc<Progress>,
}

impl WriterOptions {
    /// `level` as configured, two blocks per core and two more, and `uploads` packs under way.
    pub fn new(level: Option<i32>, uploads: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        // Each core works on one, has the next at hand, and the one being appended is nobody's.
        let (blocks, uploads) = (cores * 2 + 2, uploads.max(1));
        Self {
            level,
            blocks: Arc::new(Semaphore::new(blocks)),
            uploads: Arc::new(Semaphore::new(uploads)),
            block_buffers: Arc::new(BufferPool::new(blocks + cores)),
            pack_buffers: Arc::new(BufferPool::new(uploads + 1)),
            pace: None,
            progress: Arc::default(),
        }
    }

    /// For a node of its own: at most so many cores at work on its blocks, and so many bytes a second. What is not said stays
    /// shared with the other nodes.
    pub fn limited(&self, cores: Option<usize>, bytes_per_second: Option<u64>) -> Self {
        let mut limited = self.clone();
        if let Some(cores) = cores {
            limited.blocks = Arc::new(Semaphore::new(cores.max(1)));
        }
        if let Some(bytes) = bytes_per_second {
            limited.pace = Some(Arc::new(Pace::new(bytes)));
        }
        limited
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
        let writer =
            |folder| PackWriter::new(repository.clone(), sealer.clone(), folder, node.clone(), &options, stored_bytes.clone());
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

    /// A file of another snapshot of the same cluster, without reading it.
    pub async fn add_stored(&mut self, meta: EntryMeta, placed: &PlacedEntry) -> Result<(), RepoError> {
        let Some(content) = &placed.entry.content else {
            return Err(RepoError::Refused { what: meta.path.to_string(), reason: "what it leads to is no file".to_owned() });
        };
        let segments = self.repository.all_segments(&self.cluster, placed).await?;
        self.options.progress.read_bytes.fetch_add(content.size_bytes, Ordering::Relaxed);
        let content = FileContent { fingerprint: None, ..content.clone() };
        self.push(entry(EntryMeta { mode: placed.entry.mode, ..meta }, FileKind::File, Some(content), None), segments)
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
        let mut feed = StreamFeed { stream, block_bytes, has_ended: false, buffers: self.options.block_buffers.clone() };
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
        let buffers = self.options.block_buffers.clone();
        tokio::task::spawn_blocking(move || {
            let plain = match job {
                Job::Plain(bytes) => bytes,
                Job::Read { file, offset, length } => {
                    let mut bytes = buffers.take_empty(sealed_bytes_max(length));
                    read_exact_at(&*file, &mut bytes, length, offset).map_err(|error| {
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
            let sealed = if known.block(&id).is_some() {
                None
            } else {
                let mut sealed = buffers.take_empty(sealed_bytes_max(plain.len()));
                sealer.seal_into(SealType::Block, &id.0, &plain, level, &mut sealed)?;
                Some(sealed)
            };
            buffers.give(plain);
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
        self.options.block_buffers.give(sealed);
        self.totals.new_bytes += u64::from(prepared.plain_bytes);
        self.known.add_block(extent.clone());
        Ok(extent)
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
