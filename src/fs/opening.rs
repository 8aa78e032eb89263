//! Directories and files, opened, read and let go: the second half of the calls of [`SnapshotFs`].

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, Weak};

use bytes::Bytes;
use futures::StreamExt;

use crate::fs::attributes::Attributes;
use crate::fs::catalogue::OpenedNode;
use crate::fs::error::FsError;
use crate::fs::handle::{DirectoryContent, DirectoryItem, OpenContent, OpenDirectory, OpenFile};
use crate::fs::inode::{Inode, NodeKey, Place};
use crate::fs::names::Shown;
use crate::fs::tree::{Found, SnapshotFs};
use crate::model::manifest::FileKind;
use crate::model::names::{NodeName, TreePath};
use crate::read::{FileMap, FileReader};
use crate::repo::PlacedEntry;

/// Nodes opened at a time when a snapshot's directory is listed.
const NODES_AT_A_TIME: usize = 16;

impl SnapshotFs {
    /// Opens a directory from memory. The second value says that it never changes.
    pub fn open_directory_ready(&self, inode: u64) -> Option<Result<(u64, bool), FsError>> {
        let inode = match self.inode(inode) {
            Ok(inode) => inode,
            Err(error) => return Some(Err(error)),
        };
        let content = match &inode.place {
            Place::Root => DirectoryContent::Clusters(self.catalogue.clusters().ready()?),
            Place::Cluster(cluster) => DirectoryContent::Snapshots(self.catalogue.snapshots(cluster).ready()?),
            Place::Captured { node, path, .. } if inode.attributes.kind == FileKind::Directory => {
                DirectoryContent::Entries(node.clone(), self.catalogue.known_directory(node, path)?)
            }
            Place::Snapshot(shown) => {
                let opened = self.catalogue.known_snapshot(shown)?;
                let nodes: Option<Vec<_>> = opened.nodes().map(|name| self.known_node(shown, name)).collect();
                DirectoryContent::Nodes(self.description(shown, &opened).1, nodes?)
            }
            Place::Alias { .. } | Place::Description(_) | Place::Captured { .. } => return Some(Err(FsError::NotADirectory)),
        };
        Some(self.opened_directory(inode, content))
    }

    fn known_node(&self, shown: &Arc<Shown>, name: &NodeName) -> Option<(Arc<NodeKey>, Attributes)> {
        let node = Arc::new(NodeKey { shown: shown.clone(), name: name.clone() });
        let opened = self.catalogue.known_node(&node)?;
        let (_, attributes) = self.node_root(node.clone(), &opened);
        Some((node, attributes))
    }

    fn opened_directory(&self, inode: Arc<Inode>, content: DirectoryContent) -> Result<(u64, bool), FsError> {
        let is_immutable = inode.place.is_immutable();
        let open = OpenDirectory { inode, content, owner: self.options.owner };
        Ok((self.directories.insert(Arc::new(open))?, is_immutable))
    }

    /// Opens a directory; what it lists from then on is what it holds now.
    pub async fn open_directory(&self, inode: u64) -> Result<(u64, bool), FsError> {
        if let Some(opened) = self.open_directory_ready(inode) {
            return opened;
        }
        let inode = self.inode(inode)?;
        let content = self.within(self.directory_content(&inode)).await?;
        self.opened_directory(inode, content)
    }

    async fn directory_content(&self, inode: &Inode) -> Result<DirectoryContent, FsError> {
        Ok(match &inode.place {
            Place::Root => DirectoryContent::Clusters(self.catalogue.clusters().current().await?),
            Place::Cluster(cluster) => DirectoryContent::Snapshots(self.catalogue.snapshots(cluster).current().await?),
            Place::Captured { node, path, .. } => {
                DirectoryContent::Entries(node.clone(), self.catalogue.directory(node, path).await?)
            }
            Place::Snapshot(shown) => {
                let opened = self.catalogue.snapshot(shown).await?;
                let keys: Vec<_> =
                    opened.nodes().map(|name| Arc::new(NodeKey { shown: shown.clone(), name: name.clone() })).collect();
                let nodes = futures::stream::iter(keys).map(|node| self.node_attributes(node)).buffered(NODES_AT_A_TIME);
                let nodes = nodes.collect().await;
                DirectoryContent::Nodes(self.description(shown, &opened).1, nodes)
            }
            Place::Alias { .. } | Place::Description(_) => return Err(FsError::NotADirectory),
        })
    }

    /// One damaged node does not hide the others.
    async fn node_attributes(&self, node: Arc<NodeKey>) -> (Arc<NodeKey>, Attributes) {
        let attributes = match self.catalogue.node(&node).await {
            Ok(opened) => self.node_root(node.clone(), &opened).1,
            Err(error) => {
                tracing::warn!(node = %node.name, snapshot = %node.shown.name, %error, "cannot be opened");
                self.own_attributes(&Place::Captured { node: node.clone(), path: TreePath::root(), target: None })
            }
        };
        (node, attributes)
    }

    /// An open directory.
    pub fn directory(&self, handle: u64) -> Result<Arc<OpenDirectory>, FsError> {
        self.directories.get(handle)
    }

    /// Counts a look-up of an item of a directory and returns what a look-up would have; `None` for `.` and `..`.
    pub fn found_item(&self, item: DirectoryItem) -> Option<Found> {
        let item = item.place?;
        let attributes = item.attributes.unwrap_or_else(|| self.own_attributes(&item.place));
        Some(self.remember((item.place, attributes)))
    }

    /// Lets go of an open directory.
    pub fn release_directory(&self, handle: u64) {
        self.directories.remove(handle);
    }

    fn maps(&self) -> MutexGuard<'_, HashMap<u64, Weak<FileMap>>> {
        self.maps.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Opens a file from memory.
    pub fn open_ready(&self, inode: u64) -> Option<Result<u64, FsError>> {
        let inode = match self.inode(inode) {
            Ok(inode) => inode,
            Err(error) => return Some(Err(error)),
        };
        let number = inode.attributes.inode;
        let content = match &inode.place {
            Place::Description(shown) => OpenContent::Ready(self.catalogue.known_snapshot(shown)?.description().clone()),
            Place::Captured { node, path, .. } if inode.attributes.kind == FileKind::File => {
                let shared = self.maps().get(&number).and_then(Weak::upgrade);
                let map = match shared {
                    Some(map) => map,
                    None => {
                        let opened = self.catalogue.known_node(node)?;
                        self.map(number, &opened, self.catalogue.known_entry(node, path)??)
                    }
                };
                self.walked(node, path);
                OpenContent::Stored(FileReader::new(map))
            }
            place => return Some(Err(not_a_file(place))),
        };
        Some(self.files.insert(Arc::new(OpenFile::new(number, content))))
    }

    fn map(&self, inode: u64, node: &OpenedNode, entry: PlacedEntry) -> Arc<FileMap> {
        let mut maps = self.maps();
        if let Some(map) = maps.get(&inode).and_then(Weak::upgrade) {
            return map;
        }
        let map = FileMap::new(self.blocks.clone(), node.tree.clone(), entry);
        maps.insert(inode, Arc::downgrade(&map));
        map
    }

    /// Opens a file.
    pub async fn open(&self, inode: u64) -> Result<u64, FsError> {
        if let Some(opened) = self.open_ready(inode) {
            return opened;
        }
        let inode = self.inode(inode)?;
        let content = self.within(self.file_content(&inode)).await?;
        self.files.insert(Arc::new(OpenFile::new(inode.attributes.inode, content)))
    }

    async fn file_content(&self, inode: &Inode) -> Result<OpenContent, FsError> {
        match &inode.place {
            Place::Description(shown) => Ok(OpenContent::Ready(self.catalogue.snapshot(shown).await?.description().clone())),
            Place::Captured { node, path, .. } if inode.attributes.kind == FileKind::File => {
                let entry = self.catalogue.entry(node, path).await?;
                let opened = self.catalogue.node(node).await?;
                self.walked(node, path);
                Ok(OpenContent::Stored(FileReader::new(self.map(inode.attributes.inode, &opened, entry))))
            }
            place => Err(not_a_file(place)),
        }
    }

    /// Length of an open file that the cache on a disk may have whole.
    pub fn cacheable_bytes(&self, handle: u64) -> Option<u64> {
        if !self.blocks.keeps_files() {
            return None;
        }
        match &self.files.get(handle).ok()?.content {
            OpenContent::Stored(reader) => Some(reader.map().size_bytes()),
            OpenContent::Ready(_) => None,
        }
    }

    /// The cached copy of an open file, when the cache on a disk has all of it.
    pub async fn whole_file(&self, handle: u64) -> Option<std::fs::File> {
        match &self.files.get(handle).ok()?.content {
            OpenContent::Stored(reader) => reader.map().whole_file().await,
            OpenContent::Ready(_) => None,
        }
    }

    /// Has a stretch of an open file in the cache on the disk; returns how many bytes of the whole file are there then.
    pub async fn warm(&self, handle: u64, offset: u64, length: u64) -> Result<u64, FsError> {
        let file = self.files.get(handle)?;
        let OpenContent::Stored(reader) = &file.content else { return Ok(0) };
        if !self.blocks.keeps_files() {
            return Err(FsError::NoCache);
        }
        self.within(async { Ok(reader.map().warm(offset, offset.saturating_add(length)).await?) }).await
    }

    /// Bytes of an open file from memory: `length` of them, fewer only at the end of the file.
    pub fn read_ready(&self, handle: u64, offset: u64, length: u64) -> Option<Result<Bytes, FsError>> {
        let file = match self.files.get(handle) {
            Ok(file) => file,
            Err(error) => return Some(Err(error)),
        };
        match &file.content {
            OpenContent::Ready(bytes) => Some(Ok(cut(bytes, offset, length))),
            OpenContent::Stored(reader) => match reader.read_cached(offset, length) {
                Some(bytes) => Some(Ok(bytes)),
                None => file.recent_failure(offset, self.clock.monotonic()).map(Err),
            },
        }
    }

    /// Bytes of an open file: `length` of them, fewer only at the end of the file.
    pub async fn read(&self, handle: u64, offset: u64, length: u64) -> Result<Bytes, FsError> {
        if let Some(bytes) = self.read_ready(handle, offset, length) {
            return bytes;
        }
        let file = self.files.get(handle)?;
        let OpenContent::Stored(reader) = &file.content else { return Err(FsError::BadHandle) };
        let bytes = self.within(async { Ok(reader.read(offset, length).await?) }).await;
        if let Err(error) = &bytes {
            file.failed(offset, self.clock.monotonic(), error);
        }
        bytes
    }

    /// Lets go of an open file.
    pub fn release(&self, handle: u64) {
        let Some(file) = self.files.remove(handle) else { return };
        let number = file.inode;
        drop(file);
        let mut maps = self.maps();
        if maps.get(&number).is_some_and(|map| map.strong_count() == 0) {
            maps.remove(&number);
        }
    }
}

fn not_a_file(place: &Place) -> FsError {
    match place {
        Place::Alias { .. } => FsError::WrongKind,
        Place::Captured { target: Some(_), .. } => FsError::WrongKind,
        _ => FsError::IsADirectory,
    }
}

fn cut(bytes: &Bytes, offset: u64, length: u64) -> Bytes {
    let size = bytes.len() as u64;
    let start = offset.min(size);
    let end = offset.saturating_add(length).min(size);
    // Both are at most the length of a slice in memory.
    bytes.slice(start as usize..end as usize)
}
