//! Placing a node's files into a fresh directory, straight from the source of the snapshot.
//!
//! How it works: directories are walked level by level. Each file is a task, or a link, where the restore is one by links
//! and the file never changes (`restore_link`). A file whose content another one has already is copied from that one on the
//! disk.
//!
//! **Invariants.** Every byte was verified by the source before it is written. When it returns well, everything is on the
//! disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{CWD, Mode, OFlags};
use tokio::task::JoinSet;

use super::fresh_directory::{FreshDirectory, Owner, open_regular};
use super::place_file::{PlaceProgress, Placing, RunLimit};
use super::restore_error::{RestoreError, blocking};
use super::restore_link::{BaseFrom, Linking, add_increment, copied_by_links, make_append_only};
use crate::model::ids::BlockId;
use crate::model::manifest::{FileKind, TreeEntry};
use crate::model::names::{TreePath, escape};
use crate::model::restore_plan::Fit;
use crate::repo::{NodeTree, RepoError, SnapshotSource};

/// Files under way.
const FILES: usize = 16;
/// Files at least this long are copied from one of equal content rather than fetched again.
const SHARED_BYTES: u64 = 1024 * 1024;
/// Deepest directory that is restored: paths are at most 4095 bytes.
const DEPTH_MAX: usize = 2048;

/// What was placed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaceReceipt {
    /// Regular files, made ones included.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that are links to where the node is served.
    pub linked_files: u64,
    /// Their bytes.
    pub linked_bytes: u64,
    /// Links that lead out of the directory, as captured: worth telling, never followed.
    pub outward_links: Vec<String>,
}

/// How a node is placed.
#[derive(Debug, Default)]
pub struct PlaceOptions<'a> {
    /// What is renamed and made for the target.
    pub fit: Option<&'a Fit>,
    /// Mode of the directory itself; `None`: as captured.
    pub root_mode: Option<u32>,
    /// The directory that is to be replaced: blocks that are in its files need not be fetched.
    pub old: Option<&'a Path>,
    /// Where the node is served for links into it; `None`: everything is copied.
    pub links: Option<&'a Path>,
    /// What it may have under way, alone or with other nodes.
    pub runs: RunLimit,
}

/// Places a whole node. On an error the directory holds a part; the caller removes it.
pub async fn place(
    source: Arc<dyn SnapshotSource>,
    tree: NodeTree,
    fresh: Arc<FreshDirectory>,
    options: PlaceOptions<'_>,
    progress: Arc<PlaceProgress>,
) -> Result<PlaceReceipt, RestoreError> {
    let plain = Fit::default();
    let PlaceOptions { fit, root_mode, old, links, runs } = options;
    let fit = fit.unwrap_or(&plain);
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    // One that is not there or not for us is worth nothing.
    let old = old.and_then(|old| rustix::fs::openat(CWD, old, flags, Mode::empty()).ok());
    let placing = Arc::new(Placing::new(source, tree, fresh, progress, runs, None));
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
        let names = entries.iter().map(|placed| renamed(&placed.entry.path, fit).map(|path| path.file_name().to_vec()));
        placing.fresh.keep_only(&directory, &names.collect::<Result<_, _>>()?)?;
        directories.push((directory, entry));
        let is_linked = links.map(|served| Linking::of(served, &placing.tree, &entries));
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
                FileKind::File if let Some(target) = is_linked.as_ref().and_then(|linking| linking.target(&placed.entry)) => {
                    placing.fresh.make_link(&path, &target, placing.owner_of(&placed.entry), placed.entry.modified_ns)?;
                    receipt.linked_files += 1;
                    receipt.linked_bytes += placed.entry.size_bytes();
                }
                FileKind::File => {
                    while files.len() >= FILES {
                        take(&mut files, &mut receipt).await?;
                    }
                    match original_of(&mut originals, &placed.entry, &path) {
                        Some(original) => copies.push((original, placed.entry, path)),
                        None => {
                            let old = old.as_ref().and_then(|old| open_regular(old, &path));
                            let placing = placing.clone();
                            files.spawn(async move { placing.place_file(placed, path, old).await });
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
    let like = directories.first().map_or(((0, 0), 0), |(_, root)| (placing.owner_of(root), root.modified_ns));
    if let Some(made) = &fit.append_only {
        let (fresh, made) = (placing.fresh.clone(), made.clone());
        let base_from = if links.is_some() { BaseFrom::SameLink } else { BaseFrom::Copy };
        let bytes = blocking("append-only files", move || make_append_only(&fresh, &made, base_from, like)).await?;
        receipt.bytes += bytes;
        receipt.files += 1;
    } else if let Some(manifest) = fit.append_manifest.clone().filter(|_| links.is_some()) {
        let fresh = placing.fresh.clone();
        blocking("append-only files", move || add_increment(&fresh, &manifest, like)).await?;
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

/// The name at the target. The longest rule that fits wins, so that a file may be renamed within a renamed directory.
pub(super) fn renamed(path: &TreePath, fit: &Fit) -> Result<TreePath, RestoreError> {
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

async fn copy_file(placing: Arc<Placing>, original: TreePath, entry: TreeEntry, path: TreePath) -> Result<u64, RestoreError> {
    let length = entry.size_bytes();
    let file = Arc::new(placing.fresh.take_file(&path)?.0);
    let (fresh, to, shown) = (placing.fresh.clone(), file.clone(), placing.fresh.path().join(path.to_path_buf()));
    let copied = blocking("copy", move || {
        let mut from = fresh.open_file(&original)?;
        to.set_len(0).map_err(RestoreError::file("cut", &shown))?;
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

/// Places a node's files into a directory that does not exist yet or is empty, and touches no server. On an error
/// what was made is deleted again.
pub async fn place_only(
    directory: PathBuf,
    source: Arc<dyn SnapshotSource>,
    tree: NodeTree,
    links: Option<&Path>,
    progress: Arc<PlaceProgress>,
) -> Result<PlaceReceipt, RestoreError> {
    let owner = if rustix::process::geteuid().is_root() { Owner::AsCaptured } else { Owner::Ourselves };
    let existed = match std::fs::read_dir(&directory) {
        Ok(mut entries) => match entries.next() {
            None => true,
            Some(_) => {
                return Err(RestoreError::refused(
                    directory.display().to_string(),
                    "it is not empty; name a directory that does not exist yet",
                ));
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(RestoreError::file("list", &directory)(error)),
    };
    let space_at = if existed {
        directory.as_path()
    } else {
        directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
    };
    let space = rustix::fs::statvfs(space_at).map_err(RestoreError::file("look at", space_at))?;
    let needed = match links {
        None => tree.manifest.totals.total_bytes,
        Some(_) => copied_by_links(source.as_ref(), &tree).await?.1,
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < needed {
        let reason = format!("{needed} bytes are needed and {free} are free on its file system");
        return Err(RestoreError::refused(directory.display().to_string(), reason));
    }
    let fresh =
        if existed { FreshDirectory::open(&directory, owner, None)? } else { FreshDirectory::create(&directory, owner, None)? };
    let placed = place(source, tree, Arc::new(fresh), PlaceOptions { links, ..PlaceOptions::default() }, progress).await;
    if placed.is_err() {
        let removed = if existed { clear(&directory) } else { std::fs::remove_dir_all(&directory) };
        removed.map_err(RestoreError::file("clear", &directory))?;
    }
    placed
}

fn clear(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { std::fs::remove_dir_all(entry.path())? } else { std::fs::remove_file(entry.path())? }
    }
    Ok(())
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
        let fit = Fit { renames: vec![rule("a", "b"), rule("a/m", "b/n"), rule("dump.rdb", "d")], ..Fit::default() };
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
