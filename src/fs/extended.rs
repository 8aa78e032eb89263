//! Extended attributes: what is known of a file's storage, for people and scripts that look for it.
//!
//! Which names an inode has follows from what it is, so that listing them never waits. Asking for a value waits for what
//! opening the file would wait for, and for nothing else; asking for a name that is not there never does: programs such
//! as `ls -l` ask each file for several. What the cache on a disk holds of a file is the one value that changes.

use std::sync::Arc;

use crate::fs::error::FsError;
use crate::fs::inode::{Inode, Place};
use crate::fs::tree::SnapshotFs;
use crate::model::manifest::{Consistency, FileClass, FileContent, FileKind, TreeEntry};

const BLOCKS: &str = "user.tintype.blocks";
const BLOCK_BYTES: &str = "user.tintype.block_bytes";
const CONTENT: &str = "user.tintype.content";
const CLASS: &str = "user.tintype.class";
const CACHED_BYTES: &str = "user.tintype.cached_bytes";
const UUID: &str = "user.tintype.uuid";
const CONSISTENT: &str = "user.tintype.consistent";

/// Of a captured file.
const FILE: &[&str] = &[BLOCKS, BLOCK_BYTES, CONTENT, CLASS, CACHED_BYTES];
/// Of a snapshot's directory.
const SNAPSHOT: &[&str] = &[UUID, CONSISTENT];

type Facts = Vec<(&'static str, String)>;

/// What whoever mounts the tree says of the mount: extended attributes of the root, with their values of now, from memory.
#[derive(Clone, Default)]
pub struct About(Option<Arc<dyn Fn() -> Facts + Send + Sync>>);

impl About {
    /// `facts` is asked each time, and never waits.
    pub fn new(facts: impl Fn() -> Facts + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(facts)))
    }

    pub(super) fn facts(&self) -> Facts {
        self.0.as_ref().map_or_else(Vec::new, |facts| facts())
    }
}

impl std::fmt::Debug for About {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("About").field(&self.facts()).finish()
    }
}

/// Of all but the root.
fn names(inode: &Inode) -> &'static [&'static str] {
    match &inode.place {
        Place::Captured { .. } if inode.attributes.kind == FileKind::File => FILE,
        Place::Snapshot(_) => SNAPSHOT,
        _ => &[],
    }
}

impl SnapshotFs {
    /// Names of the extended attributes of an inode, each with a zero byte behind it: always from memory.
    pub fn extended_names(&self, inode: u64) -> Result<Vec<u8>, FsError> {
        let inode = self.inode(inode)?;
        if matches!(inode.place, Place::Root) {
            return Ok(self.options.about.facts().iter().flat_map(|(name, _)| name.bytes().chain([0])).collect());
        }
        Ok(names(&inode).iter().flat_map(|name| name.bytes().chain([0])).collect())
    }

    /// An extended attribute from memory.
    pub fn extended_ready(&self, inode: u64, name: &[u8]) -> Option<Result<Vec<u8>, FsError>> {
        let inode = match self.inode(inode) {
            Ok(inode) => inode,
            Err(error) => return Some(Err(error)),
        };
        if matches!(inode.place, Place::Root) {
            let found = self.options.about.facts().into_iter().find(|(known, _)| known.as_bytes() == name);
            return Some(found.map(|(_, value)| value.into_bytes()).ok_or(FsError::NoAttribute));
        }
        let Some(name) = names(&inode).iter().find(|known| known.as_bytes() == name) else {
            return Some(Err(FsError::NoAttribute));
        };
        match &inode.place {
            Place::Snapshot(shown) if *name == UUID => Some(Ok(shown.listed.uuid.to_string().into_bytes())),
            Place::Snapshot(shown) => Some(Ok(consistent(self.catalogue.known_snapshot(shown)?.manifest.cut.consistent))),
            // The disk is asked, which may wait.
            Place::Captured { .. } if *name == CACHED_BYTES => None,
            Place::Captured { node, path, .. } => {
                let found = self.catalogue.known_entry(node, path)?;
                Some(found.ok_or(FsError::NotFound).and_then(|placed| of_file(&placed.entry, name.as_bytes())))
            }
            _ => Some(Err(FsError::NoAttribute)),
        }
    }

    /// An extended attribute; waits no longer than opening would.
    pub async fn extended(&self, inode: u64, name: &[u8]) -> Result<Vec<u8>, FsError> {
        if let Some(value) = self.extended_ready(inode, name) {
            return value;
        }
        let inode = self.inode(inode)?;
        self.within(async {
            match &inode.place {
                Place::Snapshot(shown) => Ok(consistent(self.catalogue.snapshot(shown).await?.manifest.cut.consistent)),
                Place::Captured { node, path, .. } => {
                    let entry = self.catalogue.entry(node, path).await?.entry;
                    if name == CACHED_BYTES.as_bytes() {
                        return Ok(self.blocks.kept_bytes(&entry).await.to_string().into_bytes());
                    }
                    of_file(&entry, name)
                }
                _ => Err(FsError::NoAttribute),
            }
        })
        .await
    }
}

fn of_file(entry: &TreeEntry, name: &[u8]) -> Result<Vec<u8>, FsError> {
    let content = entry.content.as_ref().ok_or(FsError::NoAttribute)?;
    let value = match std::str::from_utf8(name) {
        Ok(BLOCKS) => blocks(content).to_string(),
        Ok(BLOCK_BYTES) => content.block_bytes.to_string(),
        Ok(CONTENT) => content.id.to_string(),
        Ok(CLASS) => class(content.class).to_owned(),
        _ => return Err(FsError::NoAttribute),
    };
    Ok(value.into_bytes())
}

/// All but the last have the same length, so their number needs no table.
fn blocks(content: &FileContent) -> u64 {
    content.size_bytes.div_ceil(u64::from(content.block_bytes.max(1)))
}

/// The words of the stored format.
fn class(class: FileClass) -> &'static str {
    match class {
        FileClass::Immutable => "immutable",
        FileClass::AppendOnly => "append_only",
        FileClass::Rewritten => "rewritten",
    }
}

/// The words of the stored format.
fn consistent(consistent: Consistency) -> Vec<u8> {
    let word: &[u8] = match consistent {
        Consistency::No => b"no",
        Consistency::Timed => b"timed",
        Consistency::Proved => b"proved",
    };
    word.to_vec()
}
