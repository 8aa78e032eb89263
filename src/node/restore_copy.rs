//! Placing a node's files into a fresh directory, straight from the source of the snapshot.
//!
//! How it works: directories are walked level by level. Each file is a task; its blocks are read in runs of neighbours,
//! in the order in which they lie in their packs, several runs at a time over all files, and written where they belong.
//! A file whose content another one has already is copied from that one on the disk.
//!
//! **Invariants.** Every byte was verified by the source before it is written. At most [`RUNS`] runs of [`RUN_BYTES`]
//! are in memory, once sealed and once plain: 32 MiB. When it returns well, everything is on the disk.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::fresh_directory::FreshDirectory;
use super::restore_error::RestoreError;
use crate::base::Accounts;
use crate::model::extent::{Extent, Segment};
use crate::model::ids::BlockId;
use crate::model::manifest::{FileContent, FileKind, TreeEntry};
use crate::model::names::{TreePath, escape};
use crate::model::restore_plan::{Fit, MadeAppendOnly};
use crate::repo::{NodeTree, PlacedEntry, RepoError, SnapshotSource};

/// Plain bytes that are read and written at once: four blocks of a file that is read from end to end.
const RUN_BYTES: u64 = 4 * 1024 * 1024;
/// Runs under way: two for each core of a small host, so that reading, opening and writing overlap.
const RUNS: usize = 4;
/// Files under way.
const FILES: usize = 16;
/// Files at least this long are copied from one of equal content rather than fetched again.
const SHARED_BYTES: u64 = 1024 * 1024;
/// Deepest directory that is restored: paths are at most 4095 bytes.
const DEPTH_MAX: usize = 2048;

/// What has been done so far, for progress bars.
#[derive(Debug, Default)]
pub struct PlaceProgress {
    /// Bytes written.
    pub bytes: AtomicU64,
    /// Files finished.
    pub files: AtomicU64,
}

/// What was placed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaceReceipt {
    /// Regular files, made ones included.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Links that lead out of the directory, as captured: worth telling, never followed.
    pub outward_links: Vec<String>,
}

struct Placing {
    source: Arc<dyn SnapshotSource>,
    tree: NodeTree,
    fresh: Arc<FreshDirectory>,
    runs: Arc<Semaphore>,
    progress: Arc<PlaceProgress>,
    accounts: Accounts,
}

/// Places a whole node. On an error the directory holds a part; the caller removes it.
pub async fn place(
    source: Arc<dyn SnapshotSource>,
    tree: NodeTree,
    fresh: Arc<FreshDirectory>,
    fit: &Fit,
    root_mode: Option<u32>,
    progress: Arc<PlaceProgress>,
) -> Result<PlaceReceipt, RestoreError> {
    let placing =
        Arc::new(Placing { source, tree, fresh, runs: Arc::new(Semaphore::new(RUNS)), progress, accounts: Accounts::of_host() });
    let mut receipt = PlaceReceipt::default();
    let mut directories: Vec<(TreePath, TreeEntry)> = Vec::new();
    let root = placing.source.entry(&placing.tree, &TreePath::root()).await?;
    let mut root = root.ok_or_else(|| RepoError::corrupt(placing.what(), "its tree has no root"))?.entry;
    root.mode = root_mode.unwrap_or(root.mode);
    let mut waiting = vec![(TreePath::root(), root)];
    let mut files: JoinSet<Result<u64, RestoreError>> = JoinSet::new();
    let mut originals: HashMap<(BlockId, u32), TreePath> = HashMap::new();
    let mut copies = Vec::new();
    while let Some((directory, entry)) = waiting.pop() {
        if directory.components().count() > DEPTH_MAX {
            return Err(RepoError::corrupt(placing.what(), "its directories are too deep").into());
        }
        let entries = placing.source.directory(&placing.tree, &entry.path).await?;
        directories.push((directory, entry));
        for placed in entries {
            let path = renamed(&placed.entry.path, fit)?;
            match placed.entry.kind {
                FileKind::Directory => {
                    placing.fresh.make_directory(&path)?;
                    waiting.push((path, placed.entry));
                }
                FileKind::Link => {
                    let target = placed.entry.target.as_deref().unwrap_or_default();
                    placing.fresh.make_link(&path, target, placing.owner_of(&placed.entry), placed.entry.modified_ns)?;
                    if leads_out(&path, target) {
                        receipt.outward_links.push(format!("{path} -> {}", escape(target)));
                    }
                }
                FileKind::File => {
                    while files.len() >= FILES {
                        take(&mut files, &mut receipt).await?;
                    }
                    match original_of(&mut originals, &placed.entry, &path) {
                        Some(original) => copies.push((original, placed.entry, path)),
                        None => {
                            files.spawn(place_file(placing.clone(), placed, path));
                        }
                    }
                }
            }
        }
    }
    while !files.is_empty() {
        take(&mut files, &mut receipt).await?;
    }
    for (original, entry, path) in copies {
        while files.len() >= FILES {
            take(&mut files, &mut receipt).await?;
        }
        files.spawn(copy_file(placing.clone(), original, entry, path));
    }
    while !files.is_empty() {
        take(&mut files, &mut receipt).await?;
    }
    if let Some(made) = &fit.append_only {
        let (fresh, made) = (placing.fresh.clone(), made.clone());
        let like = directories.first().map_or(((0, 0), 0), |(_, root)| (placing.owner_of(root), root.modified_ns));
        let bytes = blocking("append-only files", move || make_append_only(&fresh, &made, like)).await?;
        receipt.bytes += bytes;
        receipt.files += 1;
    }
    // The innermost first: a directory's time is that of its last change.
    let fresh = placing.fresh.clone();
    blocking("directories", move || {
        directories
            .iter()
            .rev()
            .try_for_each(|(path, entry)| fresh.finish_directory(path, entry.mode, placing.owner_of(entry), entry.modified_ns))
    })
    .await?;
    Ok(receipt)
}

async fn take(files: &mut JoinSet<Result<u64, RestoreError>>, receipt: &mut PlaceReceipt) -> Result<(), RestoreError> {
    if let Some(done) = files.join_next().await {
        receipt.bytes += done.map_err(|error| RestoreError::refused("restore", error.to_string()))??;
        receipt.files += 1;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| RestoreError::refused(what, error.to_string()))?
}

/// The name at the target. The longest rule that fits wins, so that a file may be renamed within a renamed directory.
fn renamed(path: &TreePath, fit: &Fit) -> Result<TreePath, RestoreError> {
    let is_under =
        |old: &str| path.as_bytes().strip_prefix(old.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
    let rule = fit.renames.iter().filter(|(old, _)| is_under(old)).max_by_key(|(old, _)| old.len());
    let Some((old, new)) = rule else { return Ok(path.clone()) };
    let name = [new.as_bytes(), &path.as_bytes()[old.len()..]].concat();
    TreePath::new(name).map_err(|error| RestoreError::refused(path.to_string(), error.to_string()))
}

/// Whether a link leads out of the node's directory.
fn leads_out(path: &TreePath, target: &[u8]) -> bool {
    let mut depth = path.components().count().saturating_sub(1);
    if target.first() == Some(&b'/') {
        return true;
    }
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if depth == 0 => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

/// The file whose content this one shares; the first of its content is remembered and shares nobody's.
fn original_of(originals: &mut HashMap<(BlockId, u32), TreePath>, entry: &TreeEntry, path: &TreePath) -> Option<TreePath> {
    let content = entry.content.as_ref().filter(|content| content.size_bytes >= SHARED_BYTES)?;
    match originals.entry((content.id, content.block_bytes)) {
        std::collections::hash_map::Entry::Occupied(original) => Some(original.get().clone()),
        std::collections::hash_map::Entry::Vacant(empty) => {
            empty.insert(path.clone());
            None
        }
    }
}

async fn place_file(placing: Arc<Placing>, placed: PlacedEntry, path: TreePath) -> Result<u64, RestoreError> {
    let content = placed
        .entry
        .content
        .clone()
        .ok_or_else(|| RepoError::corrupt(placed.entry.path.to_string(), "a file without content"))?;
    let file = Arc::new(placing.fresh.make_file(&path)?);
    placing.fetch(&placed, &content, &file).await?;
    placing.finish(file, placed.entry, path, content.size_bytes).await
}

async fn copy_file(placing: Arc<Placing>, original: TreePath, entry: TreeEntry, path: TreePath) -> Result<u64, RestoreError> {
    let length = entry.size_bytes();
    let file = Arc::new(placing.fresh.make_file(&path)?);
    let (fresh, to, shown) = (placing.fresh.clone(), file.clone(), placing.fresh.path().join(path.to_path_buf()));
    let copied = blocking("copy", move || {
        let mut from = fresh.open_file(&original)?;
        // Where the file system can, this shares the blocks.
        std::io::copy(&mut from, &mut &*to).map_err(RestoreError::file("copy", &shown))
    })
    .await?;
    placing.progress.bytes.fetch_add(copied, Ordering::Relaxed);
    if copied != length {
        return Err(RestoreError::refused(path.to_string(), "the file that it was copied from changed meanwhile"));
    }
    placing.finish(file, entry, path, length).await
}

impl Placing {
    /// By name where this host has it: its numbers may be others.
    fn owner_of(&self, entry: &TreeEntry) -> (u32, u32) {
        let owner = &entry.owner;
        self.accounts.owner((owner.user.as_deref(), owner.uid), (owner.group.as_deref(), owner.gid))
    }

    fn what(&self) -> String {
        format!("{}/{}/{}", self.tree.snapshot.cluster, self.tree.snapshot.date, self.tree.manifest.node)
    }

    async fn finish(&self, file: Arc<File>, entry: TreeEntry, path: TreePath, length: u64) -> Result<u64, RestoreError> {
        let fresh = self.fresh.clone();
        let owner = self.owner_of(&entry);
        blocking("file", move || fresh.finish_file(&file, &path, entry.mode, owner, entry.modified_ns)).await?;
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        Ok(length)
    }

    /// Writes the content of a file, several runs at a time.
    async fn fetch(self: &Arc<Self>, placed: &PlacedEntry, content: &FileContent, file: &Arc<File>) -> Result<(), RestoreError> {
        let shown = self.fresh.path().join(placed.entry.path.to_path_buf());
        reserve(file, content.size_bytes).map_err(RestoreError::file("reserve space for", &shown))?;
        let mut writing: JoinSet<Result<(), RestoreError>> = JoinSet::new();
        let mut at = 0;
        while at < content.size_bytes {
            let wrong =
                || RepoError::corrupt(format!("{}/{}", self.what(), placed.entry.path), "its segments do not add up to its size");
            let run = self.source.segments(&self.tree, placed, at).await?.ok_or_else(wrong)?;
            if run.end() <= at || run.end() > content.size_bytes || run.start() != at {
                return Err(wrong().into());
            }
            let mut batch: Vec<(u64, Extent)> = Vec::new();
            let mut batch_bytes = 0;
            for segment in run.segments() {
                match segment {
                    Segment::Literal(bytes) => {
                        file.write_all_at(bytes, at).map_err(RestoreError::file("write", &shown))?;
                        self.progress.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    }
                    Segment::Block(extent) => {
                        if batch_bytes + u64::from(extent.plain_bytes) > RUN_BYTES && !batch.is_empty() {
                            self.begin(&mut writing, std::mem::take(&mut batch), file, &shown).await?;
                            batch_bytes = 0;
                        }
                        batch_bytes += u64::from(extent.plain_bytes);
                        batch.push((at, extent.clone()));
                    }
                }
                at += segment.plain_bytes();
            }
            if !batch.is_empty() {
                self.begin(&mut writing, batch, file, &shown).await?;
            }
        }
        while let Some(done) = writing.join_next().await {
            joined(done)?;
        }
        Ok(())
    }

    /// Begins to read and write one run, once it may.
    async fn begin(
        self: &Arc<Self>,
        writing: &mut JoinSet<Result<(), RestoreError>>,
        batch: Vec<(u64, Extent)>,
        file: &Arc<File>,
        shown: &std::path::Path,
    ) -> Result<(), RestoreError> {
        // Those that are done are looked at first: an error ends the file soon, and the set stays small.
        while let Some(done) = writing.try_join_next() {
            joined(done)?;
        }
        let permit = self.runs.clone().acquire_owned().await.expect("the semaphore is never closed");
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

fn write(file: &File, offsets: &[u64], blocks: &[Bytes]) -> std::io::Result<()> {
    for (offset, block) in offsets.iter().zip(blocks) {
        file.write_all_at(block, *offset)?;
    }
    if let (Some(first), Some((last, block))) = (offsets.first(), offsets.last().zip(blocks.last())) {
        // Makes the kernel begin to write now, so that the final fsync finds little to do; it is only advice.
        let length = std::num::NonZeroU64::new(last + block.len() as u64 - first);
        let _ = rustix::fs::fadvise(file, *first, length, rustix::fs::Advice::DontNeed);
    }
    Ok(())
}

/// Takes the space before anything is fetched: a full disk is known at once.
fn reserve(file: &File, bytes: u64) -> Result<(), rustix::io::Errno> {
    if bytes < SHARED_BYTES {
        return Ok(());
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// A base over the dump, an empty increment and a manifest: what a server with `appendonly yes` starts from. `like` is their
/// owner and time.
fn make_append_only(fresh: &FreshDirectory, made: &MadeAppendOnly, like: ((u32, u32), i64)) -> Result<u64, RestoreError> {
    let path = |name: String| {
        TreePath::new(name).map_err(|error| RestoreError::refused(fresh.path().display().to_string(), error.to_string()))
    };
    let (owner, modified_ns) = like;
    let place = |name: String, fill: &mut dyn FnMut(&File) -> Result<u64, RestoreError>| {
        let path = path(name)?;
        let file = fresh.make_file(&path)?;
        let length = fill(&file)?;
        fresh.finish_file(&file, &path, 0o640, owner, modified_ns).map(|()| length)
    };
    let mut copy = |file: &File| {
        let mut dump = fresh.open_file(&path(made.dump_file.clone())?)?;
        std::io::copy(&mut dump, &mut &*file).map_err(RestoreError::file("copy the dump in", fresh.path()))
    };
    let Some(directory) = &made.directory else { return place(made.file.clone(), &mut copy) };
    let (base, increment) = (format!("{}.1.base.rdb", made.file), format!("{}.1.incr.aof", made.file));
    let text = format!("file {base} seq 1 type b\nfile {increment} seq 1 type i\n");
    fresh.make_directory(&path(directory.clone())?)?;
    let bytes = place(format!("{directory}/{base}"), &mut copy)?;
    place(format!("{directory}/{increment}"), &mut |_| Ok(0))?;
    place(format!("{directory}/{}.manifest", made.file), &mut |file| {
        file.write_all_at(text.as_bytes(), 0).map(|()| text.len() as u64).map_err(RestoreError::file("write", fresh.path()))
    })?;
    fresh.finish_directory(&path(directory.clone())?, 0o750, owner, modified_ns)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).expect("legal")
    }

    #[test]
    fn the_longest_rename_wins() {
        let rule = |old: &str, new: &str| (old.to_owned(), new.to_owned());
        let fit = Fit { renames: vec![rule("a", "b"), rule("a/m", "b/n"), rule("dump.rdb", "d")], append_only: None };
        for (old, new) in
            [("a", "b"), ("a/x", "b/x"), ("a/m", "b/n"), ("ab", "ab"), ("dump.rdb", "d"), ("x/dump.rdb", "x/dump.rdb")]
        {
            assert_eq!(renamed(&path(old), &fit).expect("renames"), path(new));
        }
    }

    #[test]
    fn links_that_lead_out_are_known() {
        for (link, target, out) in
            [("a", "/etc", true), ("a", "b/../c", false), ("a", "..", true), ("d/a", "../b", false), ("d/a", "../../b", true)]
        {
            assert_eq!(leads_out(&path(link), target.as_bytes()), out, "{link} -> {target}");
        }
    }
}
