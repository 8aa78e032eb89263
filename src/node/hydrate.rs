//! Making a restore by links one by files: each link is replaced by the verified file that it leads to.
//!
//! How it works: the file is made beside the link under a name of its own, from what an interrupted run has left there and
//! from the snapshot's source; then it takes the link's place (`exchange`). A store that holds the old file open goes on
//! reading that.
//!
//! **Invariants.** A name leads to the same bytes before, during and after. What a run has left behind is taken up by the
//! next. Nothing outside of the directory is written, whatever its links say.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::exchange::{beside, exchange, finish};
use super::fresh_directory::{FreshDirectory, Owner};
use super::place_file::{PlaceProgress, Placing, RunLimit};
use super::restore_error::{RestoreError, blocking};
use super::swap::stays;
use crate::base::Pace;
use crate::model::ids::BlockId;
use crate::model::manifest::FileKind;
use crate::model::names::TreePath;
use crate::model::restore_facts::HYDRATING;
use crate::repo::{NodeTree, RepoError, SnapshotSource};

/// Left to the store on its disk, whatever is hydrated: a GiB, or a twentieth of a smaller disk.
const SPARE_BYTES: u64 = 1 << 30;

/// A link of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where it stands in the data directory.
    pub path: TreePath,
    /// The file of the node that it leads to.
    pub source: TreePath,
}

/// The links below `directory` that lead to what is served at `served`; none where there is no such directory.
pub fn links_into(directory: &Path, served: &Path) -> std::io::Result<Vec<Link>> {
    let mut found = Vec::new();
    walk(directory, &mut |path, kind| {
        // One that came out of an exchange and was not removed any more is nobody's.
        let is_left = path.file_name().ends_with(HYDRATING.as_bytes());
        if kind.is_symlink()
            && !is_left
            && let Ok(target) = std::fs::read_link(directory.join(path.to_path_buf()))
            && let Ok(source) = target.strip_prefix(served)
            && let Ok(source) = TreePath::new(source.as_os_str().as_bytes().to_vec())
        {
            found.push(Link { path, source });
        }
    })?;
    Ok(found)
}

/// Removes what runs have left behind whose links the store has meanwhile replaced or taken away.
pub fn clear_leavings(directory: &Path) -> Result<(), RestoreError> {
    let left = leavings(directory)?;
    if left.is_empty() {
        return Ok(());
    }
    let fresh = FreshDirectory::in_use(directory, Owner::Ourselves)?;
    left.iter().try_for_each(|path| finish(&fresh, path))?;
    leavings(directory)?.iter().try_for_each(|path| fresh.remove(path))
}

/// What runs have left behind.
fn leavings(directory: &Path) -> Result<Vec<TreePath>, RestoreError> {
    let mut left = Vec::new();
    let listed = walk(directory, &mut |path, kind| {
        let name = path.file_name();
        if (kind.is_file() || kind.is_symlink()) && name.starts_with(b".") && name.ends_with(HYDRATING.as_bytes()) {
            left.push(path);
        }
    });
    listed.map_err(RestoreError::file("list", directory))?;
    Ok(left)
}

/// Everything below a directory but directories, no link followed; nothing where there is no such directory.
fn walk(directory: &Path, visit: &mut dyn FnMut(TreePath, std::fs::FileType)) -> std::io::Result<()> {
    let mut waiting = vec![TreePath::root()];
    while let Some(inside) = waiting.pop() {
        let entries = match std::fs::read_dir(directory.join(inside.to_path_buf())) {
            // A directory that goes while it is looked at has no links any more.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(path) = inside.join(entry.file_name().as_bytes()) else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() { waiting.push(path) } else { visit(path, kind) }
        }
    }
    Ok(())
}

/// Replaces the links of a directory; how many were. To be run again until there are none: a store may have moved some.
pub async fn hydrate(
    directory: &Path,
    served: &Path,
    owner: Option<(u32, u32)>,
    source: Arc<dyn SnapshotSource>,
    tree: NodeTree,
    pace: Option<Pace>,
    progress: Arc<PlaceProgress>,
) -> Result<u64, RestoreError> {
    let owner = match owner {
        _ if !rustix::process::geteuid().is_root() => Owner::Ourselves,
        Some((uid, gid)) => Owner::Fixed(uid, gid),
        None => Owner::AsCaptured,
    };
    let fresh = Arc::new(FreshDirectory::in_use(directory, owner)?);
    let placing = Arc::new(Placing::new(source, tree, fresh.clone(), progress, RunLimit::default(), pace));
    let (listed, place) = (directory.to_owned(), served.to_owned());
    let links = blocking("links", move || {
        leavings(&listed)?.iter().try_for_each(|left| finish(&fresh, left))?;
        links_in_place(&listed, &place).map_err(RestoreError::file("list", &listed))
    });
    let links = links.await?;
    let mut originals: HashMap<(BlockId, u32), TreePath> = HashMap::new();
    let (mut replaced, mut failed) = (0, None);
    for link in links {
        match one(&placing, served, &link, &mut originals).await {
            Ok(is_replaced) => replaced += u64::from(is_replaced),
            // One that cannot be read keeps no other from becoming a file.
            Err(error) => {
                tracing::warn!(path = %link.path, %error, "the link stays");
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(replaced), Err)
}

/// One link; whether it was replaced.
async fn one(
    placing: &Arc<Placing>,
    served: &Path,
    link: &Link,
    originals: &mut HashMap<(BlockId, u32), TreePath>,
) -> Result<bool, RestoreError> {
    let absent = || RepoError::NotFound { what: format!("{}/{}, which {} leads to", placing.what(), link.source, link.path) };
    let placed = placing.source.entry(&placing.tree, &link.source).await?;
    let placed = placed.filter(|placed| placed.entry.kind == FileKind::File).ok_or_else(absent)?;
    let (made, fresh) = (beside(&link.path)?, placing.fresh.clone());
    leave_room(fresh.path(), placed.entry.size_bytes())?;
    // What has the same content is on this disk since its turn.
    let content = placed.entry.content.as_ref().map(|content| (content.id, content.block_bytes));
    let original = content.and_then(|content| originals.get(&content)).and_then(|path| fresh.open_beneath(path));
    if let Err(error) = placing.place_file(placed, made.clone(), original).await {
        if matches!(error, RestoreError::File { is_full: true, .. }) {
            // The store needs the room more.
            let _gone = fresh.remove(&made);
        }
        return Err(error);
    }
    let (target, path) = (served.join(link.source.to_path_buf()), link.path.clone());
    let is_replaced = blocking("link", move || exchange(&fresh, &made, &path, &target)).await?;
    if is_replaced {
        originals.extend(content.map(|content| (content, link.path.clone())));
    }
    Ok(is_replaced)
}

/// Refuses what would take the store's own room.
fn leave_room(directory: &Path, bytes: u64) -> Result<(), RestoreError> {
    let space = rustix::fs::statvfs(directory).map_err(RestoreError::file("look at", directory))?;
    let (free, whole) = (space.f_bavail.saturating_mul(space.f_frsize), space.f_blocks.saturating_mul(space.f_frsize));
    let needed = bytes.saturating_add(SPARE_BYTES.min(whole / 20));
    if free >= needed {
        return Ok(());
    }
    let reason = format!(
        "too little space for the next file: {needed} bytes are needed, the store's own room among them, and {free} are free"
    );
    Err(RestoreError::refused(directory.display().to_string(), reason))
}

/// The links of the restored directory itself: not of what a swap has set aside in a mountpoint.
pub fn links_in_place(directory: &Path, served: &Path) -> std::io::Result<Vec<Link>> {
    let mut links = links_into(directory, served)?;
    links.retain(|link| link.path.components().next().is_none_or(|first| !stays(first)));
    Ok(links)
}

/// A process that holds files of a mount open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub process: u32,
    /// What it is called.
    pub name: String,
    /// How many of them, open or mapped.
    pub files: usize,
}

/// Who holds files below `served` open or mapped, of those processes that we may look at.
pub fn holders(served: &Path) -> Vec<Holder> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.flatten().filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    let look = |process: u32| {
        let root = PathBuf::from(format!("/proc/{process}"));
        // The kernel's own words: nothing below the mount is looked at.
        let open = std::fs::read_dir(root.join("fd")).into_iter().flatten().flatten();
        let open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let maps = std::fs::read_to_string(root.join("maps")).unwrap_or_default();
        let mapped = maps.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])));
        let mut files: Vec<_> = open.chain(mapped).filter(|path| path.starts_with(served)).collect();
        files.sort();
        files.dedup();
        let name = std::fs::read_to_string(root.join("comm")).unwrap_or_default().trim().to_owned();
        (!files.is_empty()).then_some(Holder { process, name, files: files.len() })
    };
    numbers.filter_map(look).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).expect("legal")
    }

    #[test]
    fn links_are_found_by_where_they_lead() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, served) = (root.path().join("data"), root.path().join("served"));
        std::fs::create_dir_all(data.join("sub")).expect("makes");
        for (name, target) in [("a", served.join("x/a")), ("sub/b", served.join("b")), ("c", root.path().join("other/c"))] {
            std::os::unix::fs::symlink(target, data.join(name)).expect("links");
        }
        std::fs::write(data.join("d"), "plain").expect("writes");
        let mut found = links_into(&data, &served).expect("lists");
        found.sort_by(|a, b| a.path.cmp(&b.path));
        let pairs: Vec<_> = found.into_iter().map(|link| (link.path, link.source)).collect();
        assert_eq!(pairs, [(path("a"), path("x/a")), (path("sub/b"), path("b"))]);
        assert_eq!(links_into(&root.path().join("none"), &served).expect("is none"), []);
    }

    #[test]
    fn who_holds_a_file_open_or_mapped_is_found() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path().canonicalize().expect("resolves");
        std::fs::write(root.join("file"), "x").expect("writes");
        assert_eq!(holders(&root), []);
        let _open = File::open(root.join("file")).expect("opens");
        let found = holders(&root);
        assert_eq!((found.len(), found[0].process, found[0].files), (1, std::process::id(), 1));
    }
}
