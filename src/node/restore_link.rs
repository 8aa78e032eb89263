//! Restoring by links: which files are links to where the node is served, and what a Redis server needs beside them.
//!
//! A store never opens for writing what it never changes: sorted tables, dumps, append-only files that a later one has
//! followed. Those may be links into a read-only tree; everything else is copied. Redis writes to the last increment that its
//! manifest names, so a linked restore names one more, which is empty and an ordinary file.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::fresh_directory::FreshDirectory;
use super::restore_error::RestoreError;
use crate::model::manifest::{FileClass, FileKind, TreeEntry};
use crate::model::names::TreePath;
use crate::model::restore_plan::MadeAppendOnly;
use crate::payload::aof::{AofFile, AofFileKind, MANIFEST_BYTES_MAX, parse_manifest, write_manifest};
use crate::repo::{NodeTree, PlacedEntry, SnapshotSource};

/// Smaller files are copied: they cost one block, which their first reader would fetch anyway.
const LINKED_BYTES: u64 = 64 * 1024;

/// Decides for the files of one directory.
pub(super) struct Linking<'a> {
    served: &'a Path,
    is_redis: bool,
    /// The directory is one of a LevelDB or RocksDB, whose tables are known by their names.
    has_tables: bool,
}

impl<'a> Linking<'a> {
    /// `served` shows the node; `entries` are those of the directory.
    pub fn of(served: &'a Path, tree: &NodeTree, entries: &[PlacedEntry]) -> Self {
        let record = tree.snapshot.node(&tree.manifest.node);
        let is_redis = record.is_some_and(|record| matches!(record.description.store.as_str(), "redis" | "valkey"));
        let has_tables = entries.iter().any(|placed| placed.entry.path.file_name() == b"CURRENT");
        Self { served, is_redis, has_tables }
    }

    /// Where a file's link leads; `None`: it is copied.
    pub fn target(&self, entry: &TreeEntry) -> Option<Vec<u8>> {
        let content = entry.content.as_ref().filter(|content| content.size_bytes >= LINKED_BYTES)?;
        let name = entry.path.file_name();
        let is_table = self.has_tables && (name.ends_with(b".sst") || name.ends_with(b".ldb"));
        let is_kept = match content.class {
            FileClass::Immutable => true,
            // An increment that another one follows is only read.
            FileClass::AppendOnly => self.is_redis,
            FileClass::Rewritten => is_table,
        };
        is_kept.then(|| self.served.join(entry.path.to_path_buf()).as_os_str().as_bytes().to_vec())
    }
}

/// Files that a restore by links copies, and their bytes.
pub async fn copied_by_links(source: &dyn SnapshotSource, tree: &NodeTree) -> Result<(u64, u64), RestoreError> {
    let (mut files, mut bytes) = (0, 0);
    let mut waiting = vec![TreePath::root()];
    while let Some(directory) = waiting.pop() {
        let entries = source.directory(tree, &directory).await?;
        let linking = Linking::of(Path::new("/"), tree, &entries);
        for PlacedEntry { entry, .. } in &entries {
            match entry.kind {
                FileKind::Directory => waiting.push(entry.path.clone()),
                FileKind::File if linking.target(entry).is_none() => {
                    files += 1;
                    bytes += entry.size_bytes();
                }
                _ => {}
            }
        }
    }
    Ok((files, bytes))
}

fn tree_path(fresh: &FreshDirectory, name: String) -> Result<TreePath, RestoreError> {
    TreePath::new(name).map_err(|error| RestoreError::refused(fresh.path().display().to_string(), error.to_string()))
}

type Like = ((u32, u32), i64);

fn make(
    fresh: &FreshDirectory,
    name: String,
    (owner, modified_ns): Like,
    fill: &mut dyn FnMut(&File) -> Result<u64, RestoreError>,
) -> Result<u64, RestoreError> {
    let path = tree_path(fresh, name)?;
    let (file, _) = fresh.take_file(&path)?;
    file.set_len(0).map_err(RestoreError::file("cut", fresh.path()))?;
    let length = fill(&file)?;
    fresh.finish_file(&file, &path, 0o640, owner, modified_ns).map(|()| length)
}

fn write_all(fresh: &FreshDirectory, file: &File, text: &[u8]) -> Result<u64, RestoreError> {
    file.write_all_at(text, 0).map(|()| text.len() as u64).map_err(RestoreError::file("write", fresh.path()))
}

fn part(name: String, sequence: u64, kind: AofFileKind) -> AofFile {
    AofFile { name: name.into_bytes(), sequence, kind }
}

/// A base over the dump, an empty increment and a manifest: what a server with `appendonly yes` starts from. `like` is their
/// owner and time. The base is a copy of the dump, or the same link where the dump is one.
pub(super) fn make_append_only(
    fresh: &FreshDirectory,
    made: &MadeAppendOnly,
    may_link: bool,
    like: Like,
) -> Result<u64, RestoreError> {
    let dump = tree_path(fresh, made.dump_file.clone())?;
    let mut copy = |file: &File| {
        let mut dump = fresh.open_file(&dump)?;
        std::io::copy(&mut dump, &mut &*file).map_err(RestoreError::file("copy the dump in", fresh.path()))
    };
    let Some(directory) = &made.directory else { return make(fresh, made.file.clone(), like, &mut copy) };
    let (base, increment) = (format!("{}.1.base.rdb", made.file), format!("{}.1.incr.aof", made.file));
    let manifest =
        write_manifest(&[part(base.clone(), 1, AofFileKind::Base), part(increment.clone(), 1, AofFileKind::Increment)]);
    let inside = tree_path(fresh, directory.clone())?;
    fresh.make_directory(&inside)?;
    let base = format!("{directory}/{base}");
    let bytes = match fresh.link_target(&dump).filter(|_| may_link) {
        Some(target) => fresh.make_link(&tree_path(fresh, base)?, &target, like.0, like.1).map(|()| 0)?,
        None => make(fresh, base, like, &mut copy)?,
    };
    make(fresh, format!("{directory}/{increment}"), like, &mut |_| Ok(0))?;
    make(fresh, format!("{directory}/{}.manifest", made.file), like, &mut |file| write_all(fresh, file, &manifest))?;
    fresh.finish_directory(&inside, 0o750, like.0, like.1)?;
    Ok(bytes)
}

/// Names one more increment, an empty one, in the manifest at `path`, so that none of those before it is written any more.
pub(super) fn add_increment(fresh: &FreshDirectory, path: &str, like: Like) -> Result<(), RestoreError> {
    let manifest = tree_path(fresh, path.to_owned())?;
    let refused = |reason: String| RestoreError::refused(manifest.to_string(), reason);
    let mut text = Vec::new();
    let read = fresh.open_file(&manifest)?.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut text);
    read.map_err(RestoreError::file("read", fresh.path()))?;
    let mut files = parse_manifest(&text).map_err(|error| refused(error.to_string()))?;
    files.retain(|file| file.kind != AofFileKind::History);
    let newest = files.iter().map(|file| file.sequence).max().unwrap_or(0);
    let sequence = newest.checked_add(1).ok_or_else(|| refused("its sequence numbers have come to their end".to_owned()))?;
    let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
    let name = format!("{}.{sequence}.incr.aof", file.strip_suffix(".manifest").unwrap_or(file));
    files.push(part(name.clone(), sequence, AofFileKind::Increment));
    make(fresh, PathBuf::from(directory).join(name).to_string_lossy().into_owned(), like, &mut |_| Ok(0))?;
    fresh.remove(&manifest)?;
    make(fresh, path.to_owned(), like, &mut |file| write_all(fresh, file, &write_manifest(&files)))?;
    Ok(())
}
