//! What is seen of a data directory on this host before a restore: whose it is, how much, how young, what stays.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, StatxAttributes, StatxFlags};

use super::restore_error::RestoreError;
use super::swap::stays;
use crate::model::restore_plan::{DirectoryFacts, StoreLayout};
use crate::model::time::Timestamp;

/// Looks at a data directory. `layout` tells the store's own files; `None` for plain directories, all of which is data. A link
/// to a clone that a restore has put in its place (`is_clone`) is replaced itself; other links lead to what is.
pub(super) fn inspect_directory(
    path: &Path,
    layout: Option<&StoreLayout>,
    is_clone: bool,
) -> Result<DirectoryFacts, RestoreError> {
    let mut facts = DirectoryFacts { path: path.to_owned(), ..DirectoryFacts::default() };
    match path.symlink_metadata() {
        Ok(_) => {
            // A dangling link is told from a missing directory: what it should have led to cannot be guessed.
            facts.resolved =
                if is_clone { own_path(path)? } else { path.canonicalize().map_err(RestoreError::file("resolve", path))? };
            facts.exists = true;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            facts.resolved = own_path(path)?;
        }
        Err(error) => return Err(RestoreError::file("look at", path)(error)),
    }
    let parent = facts.resolved.parent().unwrap_or(Path::new("/")).to_owned();
    if facts.exists {
        let meta = facts.resolved.metadata().map_err(RestoreError::file("look at", path))?;
        facts.owner = (meta.uid(), meta.gid());
        facts.is_mountpoint = !is_clone && is_mount_root(&facts.resolved)?;
        if !meta.is_dir() {
            facts.fault = Some("it is not a directory".to_owned());
            return Ok(facts);
        }
        facts.fault = ownership_fault(rustix::process::geteuid().as_raw(), meta.uid());
    }
    // In a mountpoint its entries are renamed, elsewhere its own name.
    let written = if facts.is_mountpoint { &facts.resolved } else { &parent };
    if facts.fault.is_none() && rustix::fs::accessat(CWD, written, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_err()
    {
        facts.fault = Some(format!("{} cannot be written by us", written.display()));
    }
    let space = rustix::fs::statvfs(written).map_err(RestoreError::file("look at", written))?;
    facts.free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
    if facts.exists && facts.fault.is_none() {
        look_inside(&mut facts, layout)?;
    }
    Ok(facts)
}

/// A path whose last component is not followed.
fn own_path(path: &Path) -> Result<PathBuf, RestoreError> {
    let name = path.file_name().ok_or_else(|| RestoreError::refused(path.display().to_string(), "it has no name"))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(parent.canonicalize().map_err(RestoreError::file("resolve", parent))?.join(name))
}

/// Why a directory cannot be replaced by us; root may replace any.
fn ownership_fault(us: u32, owner: u32) -> Option<String> {
    (us != 0 && us != owner).then(|| format!("it belongs to user {owner}, and we are user {us}"))
}

fn is_mount_root(path: &Path) -> Result<bool, RestoreError> {
    let seen =
        rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS).map_err(RestoreError::file("look at", path))?;
    if seen.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(seen.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Kernels before 5.8: a bind mount of the same file system is not noticed here, but its rename says EBUSY.
    let above = path.parent().unwrap_or(Path::new("/")).metadata().map_err(RestoreError::file("look at", path))?;
    let here = path.metadata().map_err(RestoreError::file("look at", path))?;
    Ok(above.dev() != here.dev() || path.parent().is_none())
}

/// A store's own data among the names of its directory.
pub(super) fn is_data(name: &str, layout: &StoreLayout) -> bool {
    let is_temporary = name.starts_with("temp-") && (name.ends_with(".rdb") || name.ends_with(".aof"));
    is_temporary || name == layout.dump_file || name == layout.append_file || layout.append_directory.as_deref() == Some(name)
}

fn look_inside(facts: &mut DirectoryFacts, layout: Option<&StoreLayout>) -> Result<(), RestoreError> {
    let root = facts.resolved.clone();
    for entry in std::fs::read_dir(&root).map_err(RestoreError::file("list", &root))? {
        let name = entry.map_err(RestoreError::file("list", &root))?.file_name();
        let text = name.to_string_lossy().into_owned();
        if stays(name.as_encoded_bytes()) {
            continue;
        }
        let seen = measure(&root.join(&name))?;
        facts.used_bytes += seen.bytes;
        let is_own = layout.is_none_or(|layout| is_data(&text, layout));
        facts.has_append_directory |= is_own && seen.has_append_manifest;
        if is_own {
            facts.newest = facts.newest.max(seen.newest);
        } else if seen.is_plain {
            facts.carried.push(text);
            facts.carried_bytes += seen.bytes;
        }
    }
    facts.carried.sort();
    Ok(())
}

/// Bytes on the disk below a directory; what cannot be read is not counted.
pub fn used_bytes(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let used = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => used_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    used.sum()
}

#[derive(Default)]
struct Measure {
    bytes: u64,
    newest: Option<Timestamp>,
    has_append_manifest: bool,
    /// A file, directory or link: not a socket or FIFO, which belong to a process.
    is_plain: bool,
}

fn measure(path: &Path) -> Result<Measure, RestoreError> {
    let mut sum = Measure::default();
    let mut waiting: Vec<PathBuf> = vec![path.to_owned()];
    let mut is_first = true;
    while let Some(path) = waiting.pop() {
        // What vanishes while it is counted (a temporary file of the store) does not count.
        let Ok(meta) = path.symlink_metadata() else { continue };
        let kind = meta.file_type();
        if std::mem::take(&mut is_first) {
            sum.is_plain = kind.is_file() || kind.is_dir() || kind.is_symlink();
        }
        if kind.is_file() {
            sum.bytes += meta.len();
            let changed = Timestamp(meta.mtime().saturating_mul(1_000_000).saturating_add(meta.mtime_nsec() / 1000));
            sum.newest = sum.newest.max(Some(changed));
            sum.has_append_manifest |= path.extension().is_some_and(|extension| extension == "manifest");
        } else if kind.is_dir() {
            let entries = std::fs::read_dir(&path).map_err(RestoreError::file("list", &path))?;
            waiting.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
        }
    }
    Ok(sum)
}

/// Copies what is not the store's data into the fresh directory: its cluster identity, its configuration. What the
/// snapshot brought under the same name stays.
pub(super) fn carry_over(from: &Path, to: &Path, names: &[String]) -> Result<(), RestoreError> {
    for name in names {
        let (source, target) = (from.join(name), to.join(name));
        if target.symlink_metadata().is_err() && source.symlink_metadata().is_ok() {
            copy_tree(&source, &target)?;
        }
    }
    super::fresh_directory::sync_directory(to)
}

fn copy_tree(source: &Path, target: &Path) -> Result<(), RestoreError> {
    let meta = source.symlink_metadata().map_err(RestoreError::file("look at", source))?;
    let kind = meta.file_type();
    if kind.is_symlink() {
        let leads_to = std::fs::read_link(source).map_err(RestoreError::file("read", source))?;
        std::os::unix::fs::symlink(leads_to, target).map_err(RestoreError::file("link", target))?;
    } else if kind.is_dir() {
        std::fs::create_dir(target).map_err(RestoreError::file("make", target))?;
        for entry in std::fs::read_dir(source).map_err(RestoreError::file("list", source))? {
            let name = entry.map_err(RestoreError::file("list", source))?.file_name();
            copy_tree(&source.join(&name), &target.join(&name))?;
        }
        std::fs::set_permissions(target, meta.permissions()).map_err(RestoreError::file("set the mode of", target))?;
        super::fresh_directory::sync_directory(target)?;
    } else if kind.is_file() {
        // Copies the mode too.
        std::fs::copy(source, target).map_err(RestoreError::file("copy", target))?;
        std::fs::File::open(target).and_then(|file| file.sync_all()).map_err(RestoreError::file("write", target))?;
    } else {
        return Ok(());
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(target, Some(meta.uid()), Some(meta.gid())).map_err(RestoreError::file("give away", target))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_replaces_what_belongs_to_another_user() {
        assert_eq!(ownership_fault(0, 999), None);
        assert_eq!(ownership_fault(999, 999), None);
        assert!(ownership_fault(1000, 999).is_some());
    }

    #[test]
    fn a_link_is_resolved_and_its_own_files_are_told_from_the_rest() {
        let root = tempfile::tempdir().expect("a directory");
        let data = root.path().join("data");
        std::fs::create_dir_all(data.join("appendonlydir")).expect("makes");
        for name in ["dump.rdb", "nodes.conf", "temp-7.rdb", "appendonlydir/a.manifest"] {
            std::fs::write(data.join(name), "x").expect("writes");
        }
        std::os::unix::fs::symlink(&data, root.path().join("link")).expect("links");
        let layout = StoreLayout::from_settings(&Default::default(), "7.0.15");
        let facts = inspect_directory(&root.path().join("link"), Some(&layout), false).expect("looks");
        assert_eq!(facts.resolved, data.canonicalize().expect("resolves"));
        assert_eq!(
            (facts.carried, facts.has_append_directory, facts.used_bytes, facts.is_mountpoint),
            (vec!["nodes.conf".to_owned()], true, 4, false)
        );
    }
}
