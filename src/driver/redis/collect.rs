//! The tree of a captured node: a directory that its server can be started on.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

use crate::driver::{CaptureStream, CapturedContent, CapturedEntry, DriverError};
use crate::model::manifest::{FileClass, FileKind, Ownership};
use crate::model::names::TreePath;
use crate::payload::aof::{AofFile, AofFileKind, write_manifest};

use super::prepare::Prepared;
use super::transfer::CheckedDump;
use super::{Captured, Frozen, RedisDriver};

/// Dumps and append-only files are read from end to end.
pub(super) const STREAMED_BLOCK_BYTES: u32 = 1 << 20;
/// What redis-server gives its files under the usual umask of its packages.
pub(super) const FILE_MODE: u32 = 0o640;
pub(super) const DIRECTORY_MODE: u32 = 0o750;
/// One piece of a file on its way to the checker; four of them are in memory at most.
const PIECE_BYTES: usize = 256 * 1024;

impl RedisDriver {
    pub(super) async fn collect_node(&mut self) -> Result<Vec<CapturedEntry>, DriverError> {
        let thawed = matches!(&self.frozen, Some(Frozen { outcome: Some(Ok(_)), .. }));
        let (true, Some(prepared), Some(captured)) = (thawed, self.prepared.clone(), self.captured.take()) else {
            return Err(self.refused("there is no capture to collect: it needs a freeze, a capture and a thaw that held"));
        };
        let cut_us = self.frozen.as_ref().and_then(|frozen| frozen.node_time_us).unwrap_or(0);
        let owner = self.owner();
        let now_ms = u64::try_from(cut_us / 1000).unwrap_or(0);
        let node = self.node();
        let stream: Box<dyn CaptureStream> = match captured {
            Captured::Stream(replica) => {
                let dump = replica.into_dump(self.options.stall_limit);
                Box::new(CheckedDump::new(dump, &node, &prepared.dump_name, now_ms, prepared.slots.clone()))
            }
            Captured::Save(watch) => {
                // Kept until its dump is gone: whoever cuts the wait short finds it there, and `abandon` removes the dump.
                self.captured = Some(Captured::Save(watch));
                let file = FileReader::start(self.finish_save().await?);
                self.captured = None;
                Box::new(CheckedDump::new(file, &node, &prepared.dump_name, now_ms, prepared.slots.clone()))
            }
            Captured::Files(files) => return self.collect_files(files, owner).await,
        };
        self.dump_entries(stream, &prepared, owner, cut_us.saturating_mul(1000))
    }

    fn dump_entries(
        &self,
        stream: Box<dyn CaptureStream>,
        prepared: &Prepared,
        owner: Ownership,
        modified_ns: i64,
    ) -> Result<Vec<CapturedEntry>, DriverError> {
        let join = |directory: &TreePath, name: &str| {
            directory.join(name.as_bytes()).map_err(|error| self.broken(format!("{name} cannot be a file's name: {error}")))
        };
        let entry = |path: TreePath, class: FileClass, content: CapturedContent| CapturedEntry {
            kind: if matches!(content, CapturedContent::Nothing) { FileKind::Directory } else { FileKind::File },
            mode: if matches!(content, CapturedContent::Nothing) { DIRECTORY_MODE } else { FILE_MODE },
            path,
            class,
            owner: owner.clone(),
            modified_ns,
            block_bytes: STREAMED_BLOCK_BYTES,
            content,
        };
        let root = TreePath::root();
        let dump = join(&root, &prepared.dump_name)?;
        let mut entries = vec![entry(dump.clone(), FileClass::Immutable, CapturedContent::Stream(stream))];
        if !prepared.appends {
            return Ok(entries);
        }
        // A server with `appendonly yes` does not look at the dump: it would start empty.
        if prepared.version < (7, 0) {
            let path = join(&root, &prepared.append_name)?;
            entries.push(entry(path, FileClass::AppendOnly, CapturedContent::SameAs(dump)));
            return Ok(entries);
        }
        let directory = join(&root, &prepared.append_directory)?;
        let base = format!("{}.1.base.rdb", prepared.append_name);
        let increment = format!("{}.1.incr.aof", prepared.append_name);
        let part = |name: &str, kind| AofFile { name: name.as_bytes().to_vec(), sequence: 1, kind };
        let manifest = write_manifest(&[part(&base, AofFileKind::Base), part(&increment, AofFileKind::Increment)]);
        entries.push(entry(directory.clone(), FileClass::Rewritten, CapturedContent::Nothing));
        entries.push(entry(join(&directory, &base)?, FileClass::Immutable, CapturedContent::SameAs(dump)));
        entries.push(entry(join(&directory, &increment)?, FileClass::AppendOnly, CapturedContent::Literal(Vec::new())));
        let manifest_path = join(&directory, &format!("{}.manifest", prepared.append_name))?;
        entries.push(entry(manifest_path, FileClass::Rewritten, CapturedContent::Literal(manifest)));
        Ok(entries)
    }

    /// Who owns the data directory here; elsewhere the user that packages run the server as, by name.
    fn owner(&self) -> Ownership {
        match self.options.data_directory.as_deref().map(std::fs::metadata) {
            Some(Ok(metadata)) => Ownership { uid: metadata.uid(), gid: metadata.gid(), ..Ownership::default() },
            _ => Ownership { uid: 0, gid: 0, user: Some("redis".to_owned()), group: Some("redis".to_owned()) },
        }
    }
}

/// A file as a stream, read by a thread that may block, ahead of its reader by a few pieces.
struct FileReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl FileReader {
    fn start(file: File) -> Self {
        let (sender, pieces) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || {
            let mut at = 0;
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let read = file.read_at(&mut piece, at).map(|count| {
                    piece.truncate(count);
                    Bytes::from(piece)
                });
                let ends = !matches!(&read, Ok(piece) if !piece.is_empty());
                at += read.as_ref().map_or(0, |piece| piece.len() as u64);
                // Nobody listens any more, or there is no more to tell.
                if sender.blocking_send(read).is_err() || ends {
                    return;
                }
            }
        });
        Self { pieces, piece: Bytes::new() }
    }
}

impl AsyncRead for FileReader {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, output: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.piece.is_empty() {
            match self.pieces.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(piece))) => self.piece = piece,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
            }
        }
        let count = self.piece.len().min(output.remaining());
        output.put_slice(&self.piece.split_to(count));
        Poll::Ready(Ok(()))
    }
}
