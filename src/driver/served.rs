//! What restores by links have left in a directory: links to where a snapshot is served, which are files of the node.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::driver::StoredFile;
use crate::driver::beneath::open_beneath;
use crate::model::ids::SnapshotId;
use crate::model::names::{NodeName, TreePath};

/// A node of a snapshot that is served on this host for links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedNode {
    /// Where.
    pub place: PathBuf,
    /// What, where its blocks may be referred to; `None`: it is read.
    pub stored: Option<(SnapshotId, NodeName)>,
}

/// A file of a served node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedFile<'a> {
    node: &'a ServedNode,
    path: TreePath,
}

impl<'a> ServedFile<'a> {
    /// What a link leads to; `None` when that is nothing served. Who owns the directory may have written anything into the
    /// link: what is no name of a file below the place is an error.
    pub fn of_link(served: &'a [ServedNode], target: &Path) -> Option<io::Result<Self>> {
        let (node, inside) = served.iter().find_map(|node| Some((node, target.strip_prefix(&node.place).ok()?)))?;
        let path = TreePath::new(inside.as_os_str().as_bytes().to_vec());
        Some(path.map(|path| Self { node, path }).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error)))
    }

    /// The same as the repository knows it, where it may be referred to.
    pub fn stored(&self) -> Option<StoredFile> {
        let (snapshot, node) = self.node.stored.clone()?;
        Some(StoredFile { snapshot, node, path: self.path.clone() })
    }

    /// Where it is served.
    pub fn open(&self) -> io::Result<File> {
        let not_served = |error: io::Error| {
            let place = self.node.place.join(self.path.as_os_str());
            io::Error::new(error.kind(), format!("it leads to {}, which is not served: {error}", place.display()))
        };
        open_beneath(&self.node.place, Path::new(self.path.as_os_str())).map_err(not_served)
    }
}
