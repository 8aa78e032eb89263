//! Attributes of what the tree shows.

use crate::model::manifest::{FileKind, TreeEntry};

/// Owner shown where nothing was captured, or for everything where it is mapped.
pub type Owner = (u32, u32);

/// Permission bits of directories that are ours and not captured.
const OWN_DIRECTORY_MODE: u32 = 0o555;
/// Permission bits of files that are ours and not captured.
const OWN_FILE_MODE: u32 = 0o444;
/// What is shown of captured permission bits: no set-user-id, no set-group-id, whoever mounts it and however.
const SHOWN_MODE: u32 = 0o1777;
/// What `stat` recommends as the size of reads where no block size is known.
const READ_BYTES: u32 = 128 * 1024;

/// What `stat` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Number, stable for the same thing over remounts.
    pub inode: u64,
    /// Kind.
    pub kind: FileKind,
    /// Length; 0 for directories.
    pub size_bytes: u64,
    /// Permission bits, never with set-user-id or set-group-id.
    pub mode: u32,
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Modification time, nanoseconds since 1970.
    pub modified_ns: i64,
    /// Recommended size of reads.
    pub read_bytes: u32,
}

impl Attributes {
    /// A directory of ours.
    pub fn own_directory(inode: u64, owner: Owner, modified_ns: i64) -> Self {
        let (uid, gid) = owner;
        let (kind, mode) = (FileKind::Directory, OWN_DIRECTORY_MODE);
        Self { inode, kind, size_bytes: 0, mode, uid, gid, modified_ns, read_bytes: READ_BYTES }
    }

    /// A file of ours.
    pub fn own_file(inode: u64, owner: Owner, modified_ns: i64, size_bytes: u64) -> Self {
        let kind = FileKind::File;
        Self { kind, size_bytes, mode: OWN_FILE_MODE, ..Self::own_directory(inode, owner, modified_ns) }
    }

    /// A symbolic link of ours.
    pub fn own_link(inode: u64, owner: Owner, modified_ns: i64, target_bytes: u64) -> Self {
        let kind = FileKind::Link;
        Self { kind, size_bytes: target_bytes, mode: 0o777, ..Self::own_directory(inode, owner, modified_ns) }
    }

    /// What was captured; `owner` replaces the captured one.
    pub fn captured(inode: u64, owner: Option<Owner>, entry: &TreeEntry) -> Self {
        let (uid, gid) = owner.unwrap_or((entry.owner.uid, entry.owner.gid));
        let mode = match entry.kind {
            FileKind::Link => 0o777,
            FileKind::File | FileKind::Directory => entry.mode & SHOWN_MODE,
        };
        Self {
            inode,
            kind: entry.kind,
            size_bytes: entry.size_bytes(),
            mode,
            uid,
            gid,
            modified_ns: entry.modified_ns,
            read_bytes: READ_BYTES,
        }
    }

    /// Units of 512 bytes, as `du` counts them.
    pub fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(512)
    }

    /// Hard links. One for directories too, which tells `find` that the number of subdirectories is not known.
    pub fn links(&self) -> u32 {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::Ownership;
    use crate::model::names::TreePath;

    fn entry(mode: u32) -> TreeEntry {
        let owner = Ownership { uid: 7, gid: 8, user: None, group: None };
        TreeEntry { path: TreePath::root(), kind: FileKind::Directory, mode, owner, modified_ns: -5, content: None, target: None }
    }

    #[test]
    fn bits_that_give_rights_are_never_shown() {
        assert_eq!(Attributes::captured(2, None, &entry(0o7755)).mode, 0o1755);
    }

    #[test]
    fn a_mapped_owner_replaces_the_captured_one() {
        let plain = Attributes::captured(2, None, &entry(0o700));
        let mapped = Attributes::captured(2, Some((1, 2)), &entry(0o700));
        assert_eq!(((plain.uid, plain.gid), (mapped.uid, mapped.gid)), ((7, 8), (1, 2)));
    }
}
