//! The content of one file of a node: what is on this disk already is kept, the rest is fetched, several runs at a time.
//!
//! How it works: the blocks of a file are read in runs of neighbours, in the order in which they lie in their packs, and
//! written where they belong. Before that, each is looked for where it may be already: in the file itself, when an interrupted
//! restore has begun it, and in the file of the same name that it is to replace, up to the first block that differs (files
//! that only grow or never change share a beginning, others share nothing).
//!
//! Large files are written past the page cache: what a restore writes may be more than the memory, and the stores of this
//! host run on meanwhile, on what they have there.
//!
//! **Invariants.** Every byte that is kept or written was verified by the source. At most [`RUNS`] runs of [`RUN_BYTES`]
//! are in memory, each of them twice: sealed and plain, or plain and on its way to the disk: 64 MiB, over all nodes that
//! share a [`RunLimit`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::fresh_directory::FreshDirectory;
use super::restore_error::{RestoreError, blocking};
use crate::base::buffers::BufferPool;
use crate::base::direct::DirectFile;
use crate::base::{Accounts, Pace};
use crate::model::extent::{Extent, Segment};
use crate::model::manifest::{FileContent, TreeEntry};
use crate::model::names::TreePath;
use crate::repo::{NodeTree, PlacedEntry, RepoError, SnapshotSource};

/// Plain bytes that are read and written at once: four blocks of a file that is read from end to end.
const RUN_BYTES: u64 = 4 * 1024 * 1024;
/// Runs under way: four for each core of a small host, since each waits for the store and for the disk most of its time.
const RUNS: usize = 8;
/// Files at least this long have their space taken before anything is fetched.
const RESERVED_BYTES: u64 = 1024 * 1024;

/// What has been done so far, for progress bars.
#[derive(Debug, Default)]
pub struct PlaceProgress {
    /// Bytes in place, those that were found included.
    pub bytes: AtomicU64,
    /// Of those, bytes that were on this disk already.
    pub found_bytes: AtomicU64,
    /// Files finished.
    pub files: AtomicU64,
}

/// The runs that nodes may have under way together.
#[derive(Debug, Clone)]
pub struct RunLimit {
    permits: Arc<Semaphore>,
    buffers: Arc<BufferPool<BytesMut>>,
}

impl Default for RunLimit {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(RUNS)), buffers: Arc::new(BufferPool::new(RUNS)) }
    }
}

/// A node of a snapshot on its way into a directory.
pub(super) struct Placing {
    pub source: Arc<dyn SnapshotSource>,
    pub tree: NodeTree,
    pub fresh: Arc<FreshDirectory>,
    pub progress: Arc<PlaceProgress>,
    runs: RunLimit,
    pace: Option<Pace>,
    accounts: Accounts,
}

/// Where blocks of a file may be already.
#[derive(Debug, Default)]
pub(super) struct Local {
    /// In the file itself.
    pub is_begun: bool,
    /// In this one, at the same places.
    pub old: Option<File>,
}

impl Placing {
    pub fn new(
        source: Arc<dyn SnapshotSource>,
        tree: NodeTree,
        fresh: Arc<FreshDirectory>,
        progress: Arc<PlaceProgress>,
        runs: RunLimit,
        pace: Option<Pace>,
    ) -> Self {
        Self { source, tree, fresh, progress, runs, pace, accounts: Accounts::of_host() }
    }

    /// By name where this host has it: its numbers may be others.
    pub fn owner_of(&self, entry: &TreeEntry) -> (u32, u32) {
        let owner = &entry.owner;
        self.accounts.owner((owner.user.as_deref(), owner.uid), (owner.group.as_deref(), owner.gid))
    }

    pub fn what(&self) -> String {
        format!("{}/{}/{}", self.tree.snapshot.cluster, self.tree.snapshot.date, self.tree.manifest.node)
    }

    pub async fn finish(&self, file: Arc<File>, entry: TreeEntry, path: TreePath, length: u64) -> Result<u64, RestoreError> {
        let fresh = self.fresh.clone();
        let owner = self.owner_of(&entry);
        blocking("file", move || fresh.finish_file(&file, &path, entry.mode, owner, entry.modified_ns)).await?;
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        Ok(length)
    }

    /// Makes a file whole at `path`, from what is there under that name or in `old` and from the source.
    pub async fn place_file(
        self: &Arc<Self>,
        placed: PlacedEntry,
        path: TreePath,
        old: Option<File>,
    ) -> Result<u64, RestoreError> {
        let content = placed
            .entry
            .content
            .clone()
            .ok_or_else(|| RepoError::corrupt(placed.entry.path.to_string(), "a file without content"))?;
        let (file, is_begun) = self.fresh.take_file(&path)?;
        let file = Arc::new(file);
        self.fetch(&placed, &content, &file, Local { is_begun, old }).await?;
        self.finish(file, placed.entry, path, content.size_bytes).await
    }

    /// Writes the content of a file, several runs at a time.
    async fn fetch(
        self: &Arc<Self>,
        placed: &PlacedEntry,
        content: &FileContent,
        file: &Arc<File>,
        mut local: Local,
    ) -> Result<(), RestoreError> {
        let shown = self.fresh.path().join(placed.entry.path.to_path_buf());
        if local.is_begun {
            file.set_len(content.size_bytes).map_err(RestoreError::file("cut", &shown))?;
        }
        reserve(file, content.size_bytes).map_err(RestoreError::file("reserve space for", &shown))?;
        let file = Arc::new(DirectFile::new(file, content.size_bytes, &self.runs.buffers));
        let mut writing: JoinSet<Result<(), RestoreError>> = JoinSet::new();
        let mut at = 0;
        while at < content.size_bytes {
            let wrong =
                || RepoError::corrupt(format!("{}/{}", self.what(), placed.entry.path), "its segments do not add up to its size");
            let run = self.source.segments(&self.tree, placed, at).await?.ok_or_else(wrong)?;
            if run.end() <= at || run.end() > content.size_bytes || run.start() != at {
                return Err(wrong().into());
            }
            let mut blocks: Vec<(u64, Extent)> = Vec::new();
            for segment in run.segments() {
                match segment {
                    Segment::Literal(bytes) => {
                        file.file().write_all_at(bytes, at).map_err(RestoreError::file("write", &shown))?;
                        self.progress.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    }
                    Segment::Block(extent) => blocks.push((at, extent.clone())),
                }
                at += segment.plain_bytes();
            }
            (blocks, local) = self.keep(blocks, local, &file, &shown).await?;
            let mut batch: Vec<(u64, Extent)> = Vec::new();
            let mut batch_bytes = 0;
            for (offset, extent) in blocks {
                if batch_bytes + u64::from(extent.plain_bytes) > RUN_BYTES && !batch.is_empty() {
                    self.begin(&mut writing, std::mem::take(&mut batch), &file, &shown).await?;
                    batch_bytes = 0;
                }
                batch_bytes += u64::from(extent.plain_bytes);
                batch.push((offset, extent));
            }
            if !batch.is_empty() {
                self.begin(&mut writing, batch, &file, &shown).await?;
            }
        }
        while let Some(done) = writing.join_next().await {
            joined(done)?;
        }
        Ok(())
    }

    /// Keeps the blocks that are in the file already and takes those that are in its old one; returns the others.
    async fn keep(
        self: &Arc<Self>,
        blocks: Vec<(u64, Extent)>,
        local: Local,
        file: &Arc<DirectFile>,
        shown: &Path,
    ) -> Result<(Vec<(u64, Extent)>, Local), RestoreError> {
        if !local.is_begun && local.old.is_none() {
            return Ok((blocks, local));
        }
        let (placing, file, shown) = (self.clone(), file.clone(), shown.to_owned());
        blocking("blocks", move || {
            let (mut missing, mut local, mut buffer) = (Vec::new(), local, Vec::new());
            for (offset, extent) in blocks {
                buffer.resize(extent.plain_bytes as usize, 0);
                let mut has = |from: &File| {
                    from.read_exact_at(&mut buffer, offset).is_ok() && placing.source.is_block(&placing.tree, &extent, &buffer)
                };
                let is_there = local.is_begun && has(file.file());
                let is_old = !is_there && local.old.as_ref().is_some_and(has);
                if is_old {
                    file.file().write_all_at(&buffer, offset).map_err(RestoreError::file("write", &shown))?;
                } else if !is_there {
                    local.old = None;
                    missing.push((offset, extent));
                    continue;
                }
                placing.progress.found_bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
                placing.progress.bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            }
            Ok((missing, local))
        })
        .await
    }

    /// Begins to read and write one run, once it may.
    async fn begin(
        self: &Arc<Self>,
        writing: &mut JoinSet<Result<(), RestoreError>>,
        batch: Vec<(u64, Extent)>,
        file: &Arc<DirectFile>,
        shown: &Path,
    ) -> Result<(), RestoreError> {
        // Those that are done are looked at first: an error ends the file soon, and the set stays small.
        while let Some(done) = writing.try_join_next() {
            joined(done)?;
        }
        if let Some(pace) = &self.pace {
            pace.wait(batch.iter().map(|(_, extent)| u64::from(extent.plain_bytes)).sum()).await;
        }
        let permit = self.runs.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (placing, file, shown) = (self.clone(), file.clone(), shown.to_owned());
        writing.spawn(async move {
            let _permit = permit;
            let (offsets, extents): (Vec<u64>, Vec<Extent>) = batch.into_iter().unzip();
            let blocks = placing.source.read_blocks(&placing.tree, &extents).await?;
            if blocks.len() != extents.len()
                || blocks.iter().zip(&extents).any(|(block, extent)| block.len() != extent.plain_bytes as usize)
            {
                return Err(RepoError::corrupt(placing.what(), "blocks have other lengths than their table says").into());
            }
            let written: u64 = blocks.iter().map(|block| block.len() as u64).sum();
            blocking("write", move || write(&file, &offsets, &blocks).map_err(RestoreError::file("write", &shown))).await?;
            placing.progress.bytes.fetch_add(written, Ordering::Relaxed);
            Ok(())
        });
        Ok(())
    }
}

fn joined(done: Result<Result<(), RestoreError>, tokio::task::JoinError>) -> Result<(), RestoreError> {
    done.map_err(|error| RestoreError::refused("restore", error.to_string()))?
}

/// Writes blocks that lie in this order, neighbours together.
fn write(file: &DirectFile, offsets: &[u64], blocks: &[Bytes]) -> std::io::Result<()> {
    let mut from = 0;
    for at in 1..=blocks.len() {
        if offsets.get(at) != Some(&(offsets[at - 1] + blocks[at - 1].len() as u64)) {
            file.write_all_at(&blocks[from..at], offsets[from])?;
            from = at;
        }
    }
    Ok(())
}

/// Takes the space before anything is fetched: a full disk is known at once.
fn reserve(file: &File, bytes: u64) -> Result<(), rustix::io::Errno> {
    if bytes < RESERVED_BYTES {
        return Ok(());
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}
