//! A node of a snapshot as a tar: for `tintype export`, and streamed to who asks the daemon for it.

use std::ffi::OsString;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::failure::Failure;
use crate::agent::fleet::TarStream;
use crate::model::extent::{Extent, Segment};
use crate::model::manifest::{FileKind, TreeEntry};
use crate::model::names::TreePath;
use crate::repo::{NodeTree, PlacedEntry, RepoError, Repository, SnapshotSource};

/// Blocks of one read …
const BATCH: usize = 8;
/// … and reads under way, so that fetching and writing overlap.
const READS: usize = 3;
/// What is written at once …
const PIECE_BYTES: usize = 1 << 20;
/// … and may wait for who takes it.
const PIECES: usize = 4;
/// Who takes nothing for so long is gone, or may ask again: the bytes are held in memory.
const STALL: Duration = Duration::from_secs(60);

/// Writes what is at and below `from` as a tar.
pub async fn write_tar<W: Write>(repository: &Arc<Repository>, tree: &NodeTree, from: TreePath, out: W) -> Result<(), Failure> {
    let mut tar = tar::Builder::new(BufWriter::with_capacity(PIECE_BYTES, out));
    let mut directories = vec![from];
    while let Some(directory) = directories.pop() {
        for placed in repository.directory(tree, &directory).await? {
            if placed.entry.kind == FileKind::Directory {
                directories.push(placed.entry.path.clone());
            }
            write_entry(repository, tree, &placed, &mut tar).await?;
        }
    }
    tar.into_inner().and_then(|mut out| out.flush()).map_err(broken_pipe)
}

fn broken_pipe(error: std::io::Error) -> Failure {
    Failure::new("output", format!("the tar could not be written: {error}")).hint("it is not whole; ask for it again")
}

/// The same as a stream, for whoever takes it within `STALL` piece by piece; `place` is kept until its end.
pub fn stream_tar(repository: Arc<Repository>, tree: NodeTree, place: OwnedSemaphorePermit) -> TarStream {
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        let pipe = Pipe(sender.clone());
        if let Err(failure) = write_tar(&repository, &tree, TreePath::root(), pipe).await {
            tracing::warn!(%failure, "an export was broken off");
            // A body that ends without an error would be taken for whole.
            let _gone = sender.send_timeout(Err(std::io::Error::other(failure)), STALL).await;
        }
        drop(place);
    });
    let pieces = futures::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    Box::pin(pieces)
}

/// Pieces of a tar for who streams it.
struct Pipe(mpsc::Sender<std::io::Result<Bytes>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let piece = Ok(Bytes::copy_from_slice(bytes));
        let sent = tokio::task::block_in_place(|| Handle::current().block_on(self.0.send_timeout(piece, STALL)));
        sent.map(|()| bytes.len()).map_err(|_| std::io::Error::new(ErrorKind::BrokenPipe, "nobody takes it any more"))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn write_entry<W: Write>(
    repository: &Arc<Repository>,
    tree: &NodeTree,
    placed: &PlacedEntry,
    tar: &mut tar::Builder<W>,
) -> Result<(), Failure> {
    let entry = &placed.entry;
    let mut header = header(entry);
    let path = entry.path.to_path_buf();
    match entry.kind {
        FileKind::Directory => tar.append_data(&mut header, path, std::io::empty()).map_err(broken_pipe)?,
        FileKind::Link => {
            let target = OsString::from_vec(entry.target.clone().unwrap_or_default());
            tar.append_link(&mut header, path, target).map_err(broken_pipe)?;
        }
        FileKind::File => {
            // The archive pulls and blocks, the repository is asynchronous: a channel of a few blocks stands between them.
            let (sender, receiver) = std::sync::mpsc::sync_channel(BATCH);
            let fetching = tokio::spawn(fetch(repository.clone(), tree.clone(), placed.clone(), sender));
            let mut blocks = Blocks { receiver, current: Bytes::new(), left: entry.size_bytes() };
            let written = tokio::task::block_in_place(|| tar.append_data(&mut header, path, &mut blocks));
            drop(blocks);
            // Why it broke is better known to who fetched.
            fetching.await.map_err(|error| Failure::new("internal", error.to_string()))??;
            written.map_err(broken_pipe)?;
        }
    }
    Ok(())
}

fn header(entry: &TreeEntry) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(match entry.kind {
        FileKind::File => tar::EntryType::Regular,
        FileKind::Directory => tar::EntryType::Directory,
        FileKind::Link => tar::EntryType::Symlink,
    });
    // Who unpacks as root must not get what runs as somebody else.
    header.set_mode(entry.mode & 0o777);
    header.set_uid(u64::from(entry.owner.uid));
    header.set_gid(u64::from(entry.owner.gid));
    header.set_mtime(u64::try_from(entry.modified_ns.div_euclid(1_000_000_000)).unwrap_or(0));
    header.set_size(if entry.kind == FileKind::File { entry.size_bytes() } else { 0 });
    // Names too long for the header stay numbers only.
    let _too_long = entry.owner.user.as_ref().map(|name| header.set_username(name));
    let _too_long = entry.owner.group.as_ref().map(|name| header.set_groupname(name));
    header
}

/// Sends the content of a file in order; ends early when nobody reads any more.
async fn fetch(
    repository: Arc<Repository>,
    tree: NodeTree,
    placed: PlacedEntry,
    sender: SyncSender<Bytes>,
) -> Result<(), RepoError> {
    let mut offset = 0;
    while let Some(run) = repository.segments(&tree, &placed, offset).await? {
        let batches = run.segments().chunks(BATCH).map(|batch| {
            let (repository, tree) = (repository.clone(), tree.clone());
            let batch = batch.to_vec();
            async move {
                let extents: Vec<Extent> = batch
                    .iter()
                    .filter_map(|segment| if let Segment::Block(extent) = segment { Some(extent.clone()) } else { None })
                    .collect();
                let mut blocks = repository.read_blocks(&tree, &extents).await?.into_iter();
                let plain = batch.into_iter().filter_map(|segment| match segment {
                    Segment::Block(_) => blocks.next(),
                    Segment::Literal(bytes) => Some(Bytes::from(bytes)),
                });
                Ok::<_, RepoError>(plain.collect::<Vec<_>>())
            }
        });
        let mut reads = futures::stream::iter(batches.collect::<Vec<_>>()).buffered(READS);
        while let Some(blocks) = reads.next().await {
            for block in blocks? {
                if tokio::task::block_in_place(|| sender.send(block)).is_err() {
                    return Ok(());
                }
            }
        }
        offset = run.end();
    }
    Ok(())
}

/// The blocks of one file as a reader of exactly its size.
struct Blocks {
    receiver: Receiver<Bytes>,
    current: Bytes,
    left: u64,
}

impl Read for Blocks {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        while self.current.is_empty() {
            // The sender ended before the size was reached: reading the repository broke.
            self.current = self.receiver.recv().map_err(|_| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        }
        let length = into.len().min(self.current.len());
        into[..length].copy_from_slice(&self.current.split_to(length));
        self.left = self.left.saturating_sub(length as u64);
        Ok(length)
    }
}
