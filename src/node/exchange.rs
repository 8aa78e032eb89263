//! Putting a file in the place of a link that a store works with.
//!
//! How it works: the two names are exchanged, and only when it is the link that came out is it removed. So what the store has
//! put in the link's place meanwhile (a new dump) or taken away (a table that it merged) stays as the store wants it. While
//! that is under way, the name of our file says which it is, so that after a death at any point the next run knows whether what
//! stands under it is ours or the store's.
//!
//! **Invariants.** A name leads to the same bytes before, during and after. Nothing that the store has written is removed,
//! unless the store has written something newer under the same name.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::fresh_directory::FreshDirectory;
use super::restore_error::RestoreError;
use crate::model::names::TreePath;
use crate::model::restore_facts::HYDRATING;

/// Before the number of the inode.
const MARK: char = '~';

/// The name of the file that is made for a link's place.
pub(super) fn beside(path: &TreePath) -> Result<TreePath, RestoreError> {
    named(path, "")
}

/// The same while the exchange is under way: with the number of its inode.
fn marked(path: &TreePath, inode: u64) -> Result<TreePath, RestoreError> {
    named(path, &format!("{MARK}{inode}"))
}

fn named(path: &TreePath, mark: &str) -> Result<TreePath, RestoreError> {
    let name = [b".".as_slice(), path.file_name(), mark.as_bytes(), HYDRATING.as_bytes()].concat();
    path.parent()
        .unwrap_or_default()
        .join(&name)
        .map_err(|error| RestoreError::refused(path.to_string(), format!("no file can be made beside it: {error}")))
}

/// Puts the file at `made` in the place of the link, if the link is still there; whether it was.
pub(super) fn exchange(fresh: &FreshDirectory, made: &TreePath, link: &TreePath, target: &Path) -> Result<bool, RestoreError> {
    let parent = fresh.parent_of(link)?;
    let shown = fresh.path().join(link.to_path_buf());
    let ours = inode_of(&parent, name_of(made)).ok_or_else(|| RestoreError::file("look at", &shown)(Errno::NOENT))?;
    let marked = marked(link, ours)?;
    let (made_name, name) = (name_of(&marked), name_of(link));
    rustix::fs::renameat(&parent, name_of(made), &parent, made_name).map_err(RestoreError::file("rename", &shown))?;
    let leads = |name: &OsStr| leads_to(&parent, name, target);
    let mut is_replaced = false;
    if leads(name) {
        match rustix::fs::renameat_with(&parent, made_name, &parent, name, RenameFlags::EXCHANGE) {
            Ok(()) if leads(made_name) => is_replaced = true,
            // The store was quicker by less than a microsecond: what it has put there goes back.
            Ok(()) => {
                give_back(&parent, made_name, name, ours).map_err(RestoreError::file("give back", &shown))?;
                return sync(parent, &shown).map(|()| false);
            }
            Err(Errno::NOENT) => {}
            Err(Errno::INVAL | Errno::NOSYS) => {
                let reason = "its file system cannot exchange two names: the links stay, restore by copy instead";
                return Err(RestoreError::refused(shown.display().to_string(), reason));
            }
            Err(error) => return Err(RestoreError::file("replace", &shown)(error)),
        }
    }
    rustix::fs::unlinkat(&parent, made_name, AtFlags::empty()).map_err(RestoreError::file("remove", &shown))?;
    sync(parent, &shown)?;
    Ok(is_replaced)
}

/// What the store has put there, and stands under the hidden name now, for ours.
fn give_back(parent: &OwnedFd, hidden: &OsStr, name: &OsStr, ours: u64) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(parent, hidden, parent, name, RenameFlags::EXCHANGE)?;
    if inode_of(parent, hidden) == Some(ours) {
        return rustix::fs::unlinkat(parent, hidden, AtFlags::empty());
    }
    // It was quicker once more: what it put there last is the newest.
    rustix::fs::renameat(parent, hidden, parent, name)
}

/// Puts right what a run has left that died in an exchange; everything else is left as it is.
pub(super) fn finish(fresh: &FreshDirectory, left: &TreePath) -> Result<(), RestoreError> {
    let Some((link, ours)) = unmarked(left) else { return Ok(()) };
    let parent = fresh.parent_of(left)?;
    let shown = fresh.path().join(link.to_path_buf());
    let (left_name, name) = (name_of(left), name_of(&link));
    match inode_of(&parent, left_name) {
        None => return Ok(()),
        // It did not come to the exchange: a file that is being made, as before.
        Some(inode) if inode == ours => {
            rustix::fs::renameat(&parent, left_name, &parent, name_of(&beside(&link)?))
                .map_err(RestoreError::file("rename", &shown))?;
        }
        // The store's own came out, and ours still stands in its place.
        Some(_) if !is_link(&parent, left_name) && inode_of(&parent, name) == Some(ours) => {
            give_back(&parent, left_name, name, ours).map_err(RestoreError::file("give back", &shown))?;
        }
        // The link came out, or the store has put something newer there since.
        Some(_) => rustix::fs::unlinkat(&parent, left_name, AtFlags::empty()).map_err(RestoreError::file("remove", &shown))?,
    }
    sync(parent, &shown)
}

/// The link that a marked name stands beside, and the number in it.
fn unmarked(left: &TreePath) -> Option<(TreePath, u64)> {
    let name = left.file_name().strip_prefix(b".")?.strip_suffix(HYDRATING.as_bytes())?;
    let at = name.iter().rposition(|byte| *byte == MARK as u8)?;
    let inode = std::str::from_utf8(&name[at + 1..]).ok()?.parse().ok()?;
    Some((left.parent().unwrap_or_default().join(&name[..at]).ok()?, inode))
}

fn is_link(parent: &OwnedFd, name: &OsStr) -> bool {
    rustix::fs::readlinkat(parent, name, Vec::new()).is_ok()
}

fn name_of(path: &TreePath) -> &OsStr {
    OsStr::from_bytes(path.file_name())
}

fn inode_of(parent: &OwnedFd, name: &OsStr) -> Option<u64> {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_ino)
}

fn leads_to(parent: &OwnedFd, name: &OsStr, target: &Path) -> bool {
    rustix::fs::readlinkat(parent, name, Vec::new()).is_ok_and(|found| found.as_bytes() == target.as_os_str().as_bytes())
}

fn sync(parent: OwnedFd, shown: &Path) -> Result<(), RestoreError> {
    File::from(parent).sync_all().map_err(RestoreError::file("write the directory of", shown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fresh_directory::Owner;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).expect("legal")
    }

    #[test]
    fn what_the_store_has_put_in_the_place_of_a_link_stays() {
        let root = tempfile::tempdir().expect("a directory");
        let fresh = FreshDirectory::in_use(root.path(), Owner::Ourselves).expect("opens");
        let (link, made, target) = (path("dump"), path(".dump.tintype-hydrate"), Path::new("/served/dump"));
        let at = |path: &TreePath| root.path().join(path.to_path_buf());
        let make = || std::fs::write(at(&made), "old").expect("writes");
        // It is a link: it is replaced.
        std::os::unix::fs::symlink(target, at(&link)).expect("links");
        make();
        assert!(exchange(&fresh, &made, &link, target).expect("exchanges"));
        assert_eq!(std::fs::read_to_string(at(&link)).expect("reads"), "old");
        // It is a file of the store's, a link of somebody else's, or gone: nothing changes.
        std::fs::write(at(&link), "new").expect("writes");
        make();
        assert!(!exchange(&fresh, &made, &link, target).expect("leaves it"));
        assert_eq!(std::fs::read_to_string(at(&link)).expect("reads"), "new");
        std::fs::remove_file(at(&link)).expect("removes");
        make();
        assert!(!exchange(&fresh, &made, &link, target).expect("leaves it"));
        assert!(at(&link).symlink_metadata().is_err() && at(&made).symlink_metadata().is_err());
    }

    /// A store puts a file there in the instant of the exchange, and we die before it is given back; or elsewhere.
    #[test]
    fn what_a_death_in_an_exchange_leaves_is_put_right() {
        let root = tempfile::tempdir().expect("a directory");
        let fresh = FreshDirectory::in_use(root.path(), Owner::Ourselves).expect("opens");
        let at = |name: &str| root.path().join(name);
        let parent = fresh.parent_of(&path("dump")).expect("opens");
        let plain = ".dump.tintype-hydrate";
        // What stands under the name, whether ours is the one that is hidden, and what is left there and under the hidden name.
        let cases = [
            ("before it", "link", "ours", "link", Some("ours")),
            ("before it, and the store was quicker", "store", "ours", "store", Some("ours")),
            ("after it", "ours", "link", "ours", None),
            ("after it, and the store went on", "store", "link", "store", None),
            ("after it, and the store was quicker", "ours", "store", "store", None),
            ("the same, and the store went on", "newer", "store", "newer", None),
            ("after it, and the store took it away", "", "link", "", None),
        ];
        for (case, shown, hidden, shown_after, hidden_after) in cases {
            std::fs::write(at("ours"), "ours").expect("writes");
            let marked = marked(&path("dump"), inode_of(&parent, OsStr::new("ours")).expect("is there")).expect("legal");
            for (what, name) in [(shown, "dump".to_owned()), (hidden, marked.to_string())] {
                match what {
                    "" => {}
                    "ours" => std::fs::rename(at("ours"), at(&name)).expect("renames"),
                    "link" => std::os::unix::fs::symlink("/served/dump", at(&name)).expect("links"),
                    what => std::fs::write(at(&name), what).expect("writes"),
                }
            }
            finish(&fresh, &marked).expect(case);
            let found = |name: &str| match std::fs::read_link(at(name)) {
                Ok(_) => Some("link".to_owned()),
                Err(_) => std::fs::read_to_string(at(name)).ok(),
            };
            assert_eq!(found("dump").unwrap_or_default(), shown_after, "{case}");
            assert_eq!(found(plain).as_deref(), hidden_after, "{case}");
            assert!(found(&marked.to_string()).is_none(), "{case}");
            for name in ["dump", plain, "ours"] {
                let _gone = std::fs::remove_file(at(name));
            }
        }
        assert_eq!(unmarked(&path(plain)), None);
        assert_eq!(unmarked(&path("sub/.a~7.tintype-hydrate")), Some((path("sub/a"), 7)));
    }
}
