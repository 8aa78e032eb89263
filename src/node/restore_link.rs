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
use super::restore_copy::renamed;
use super::restore_error::RestoreError;
use crate::model::manifest::{FileClass, FileKind, TreeEntry};
use crate::model::names::TreePath;
use crate::model::restore_plan::{Fit, MadeAppendOnly};
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

/// How the base of append-only files comes from the dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BaseFrom {
    /// Its bytes are copied.
    Copy,
    /// The dump is a link, and the base is the same one.
    SameLink,
    /// It is a second name of the same file: no server writes to either, they are only ever replaced.
    SecondName,
}

/// A base over the dump, an empty increment and a manifest: what a server with `appendonly yes` starts from. `like` is their
/// owner and time.
pub(super) fn make_append_only(
    fresh: &FreshDirectory,
    made: &MadeAppendOnly,
    base_from: BaseFrom,
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
    let target = fresh.link_target(&dump).filter(|_| base_from == BaseFrom::SameLink);
    let bytes = match target {
        Some(target) => fresh.make_link(&tree_path(fresh, base)?, &target, like.0, like.1).map(|()| 0)?,
        None if base_from == BaseFrom::SecondName => fresh.make_second_name(&tree_path(fresh, base)?, &dump).map(|()| 0)?,
        None => make(fresh, base, like, &mut copy)?,
    };
    make(fresh, format!("{directory}/{increment}"), like, &mut |_| Ok(0))?;
    make(fresh, format!("{directory}/{}.manifest", made.file), like, &mut |file| write_all(fresh, file, &manifest))?;
    fresh.finish_directory(&inside, 0o750, like.0, like.1)?;
    Ok(bytes)
}

/// Names and makes in a clone what the target reads, as a restore by copy does while it places.
pub(super) fn fit_clone(clone: &FreshDirectory, fit: &Fit, like: Like) -> Result<(), RestoreError> {
    let mut rules: Vec<_> = fit.renames.iter().collect();
    rules.sort_by_key(|(old, _)| old.len());
    let mut done = Fit::default();
    for (old, new) in rules {
        // A file of a directory that has its new name already.
        let now = renamed(&tree_path(clone, old.clone())?, &done)?;
        clone.rename(&now, &tree_path(clone, new.clone())?)?;
        done.renames.push((old.clone(), new.clone()));
    }
    match &fit.append_only {
        Some(made) => make_append_only(clone, made, BaseFrom::SecondName, like).map(|_| ()),
        None => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::super::fresh_directory::Owner;
    use super::*;

    #[test]
    fn a_clone_gets_the_names_that_its_target_reads_and_a_base_that_costs_nothing() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir(at("appendonlydir")).expect("makes");
        std::fs::write(at("dump.rdb"), "dump").expect("writes");
        std::fs::write(at("appendonlydir/appendonly.aof.manifest"), "old").expect("writes");
        let rule = |old: &str, new: &str| (old.to_owned(), new.to_owned());
        let made =
            MadeAppendOnly { dump_file: "state.rdb".to_owned(), directory: Some("made".to_owned()), file: "w.aof".to_owned() };
        let fit = Fit {
            renames: vec![
                rule("appendonlydir/appendonly.aof.manifest", "journal/writes.aof.manifest"),
                rule("appendonlydir", "journal"),
                rule("dump.rdb", "state.rdb"),
            ],
            append_only: Some(made),
            ..Fit::default()
        };
        let clone = FreshDirectory::open(root.path(), Owner::Ourselves, None).expect("opens");
        fit_clone(&clone, &fit, ((0, 0), 0)).expect("fits");
        assert_eq!(std::fs::read_to_string(at("journal/writes.aof.manifest")).expect("reads"), "old");
        let inode = |name: &str| std::os::unix::fs::MetadataExt::ino(&at(name).metadata().expect("is there"));
        assert_eq!(inode("made/w.aof.1.base.rdb"), inode("state.rdb"));
        let manifest = std::fs::read(at("made/w.aof.manifest")).expect("reads");
        assert_eq!(parse_manifest(&manifest).expect("is one").len(), 2);
        assert_eq!(at("made/w.aof.1.incr.aof").metadata().expect("is there").len(), 0);
    }

    #[test]
    fn one_more_increment_is_named_last_and_empty() {
        let root = tempfile::tempdir().expect("a directory");
        let fresh = FreshDirectory::open(root.path(), Owner::Ourselves, None).expect("opens");
        let text =
            "file a.aof.40.base.rdb seq 40 type b\nfile a.aof.39.incr.aof seq 39 type h\nfile a.aof.40.incr.aof seq 40 type i\n";
        std::fs::create_dir(root.path().join("d")).expect("makes");
        std::fs::write(root.path().join("d/a.aof.manifest"), text).expect("writes");
        add_increment(&fresh, "d/a.aof.manifest", ((0, 0), 0)).expect("adds");
        let files = parse_manifest(&std::fs::read(root.path().join("d/a.aof.manifest")).expect("reads")).expect("is one");
        let names: Vec<_> = files.iter().map(|file| (String::from_utf8_lossy(&file.name).into_owned(), file.sequence)).collect();
        let expected = [("a.aof.40.base.rdb", 40), ("a.aof.40.incr.aof", 40), ("a.aof.41.incr.aof", 41)];
        assert_eq!(names, expected.map(|(name, sequence)| (name.to_owned(), sequence)));
        assert_eq!(root.path().join("d/a.aof.41.incr.aof").metadata().expect("is there").len(), 0);
    }
}
