//! A stream that is read as fast as it comes, however slowly it is taken further: a store gives up a dump that nobody reads.
//!
//! How it works: one task reads ahead. What is ahead waits in memory, and what does not fit there in a file without a name,
//! whose room is given back as it is read.
//!
//! **Invariants.** The bytes come out in their order and all of them, or the error comes that ended them. No more than
//! [`MEMORY_BYTES`] are in memory, nor more than the limit on the disk; then the stream is read no faster than it is taken.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use rustix::fs::{CWD, FallocateFlags, Mode, OFlags};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::task::JoinHandle;

use crate::driver::{CaptureStream, DriverError, StreamFacts};

/// What waits in memory before anything is written.
const MEMORY_BYTES: usize = 16 << 20;
/// Read and written at once.
const PART_BYTES: usize = 1 << 20;
/// Room is given back to the disk in pieces of this.
const HOLE_BYTES: u64 = 64 << 20;

/// Where streams may wait, and how much of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolOptions {
    /// A directory of this host; made where it is absent.
    pub directory: PathBuf,
    /// The most that one stream takes there.
    pub limit_bytes: u64,
}

/// A stream with its reader ahead.
pub(super) struct Spooled {
    node: String,
    out: DuplexStream,
    reading: Reading,
}

enum Reading {
    Ahead(JoinHandle<io::Result<Box<dyn CaptureStream>>>),
    Done(Box<dyn CaptureStream>),
    Broken,
}

impl Spooled {
    /// Begins to read.
    pub fn new(node: &str, stream: Box<dyn CaptureStream>, options: &SpoolOptions) -> Self {
        let (out, into) = tokio::io::duplex(PART_BYTES);
        let spool = Spool {
            options: options.clone(),
            file: None,
            memory: VecDeque::new(),
            memory_bytes: 0,
            begin: 0,
            end: 0,
            punched: 0,
        };
        Self { node: node.to_owned(), out, reading: Reading::Ahead(tokio::spawn(pump(stream, into, spool))) }
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if let Reading::Ahead(task) = &self.reading {
            task.abort();
        }
    }
}

impl AsyncRead for Spooled {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.out).poll_read(context, buffer) {
            Poll::Ready(Ok(())) if buffer.filled().len() == before && buffer.remaining() > 0 => {}
            other => return other,
        }
        // The end of it is one only when the reader came to the end as well.
        let Reading::Ahead(task) = &mut self.reading else { return Poll::Ready(Ok(())) };
        let Poll::Ready(ended) = Pin::new(task).poll(context) else { return Poll::Pending };
        match ended.map_err(io::Error::other).flatten() {
            Ok(stream) => {
                self.reading = Reading::Done(stream);
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                self.reading = Reading::Broken;
                Poll::Ready(Err(error))
            }
        }
    }
}

#[async_trait]
impl CaptureStream for Spooled {
    async fn finish(mut self: Box<Self>) -> Result<StreamFacts, DriverError> {
        let node = self.node.clone();
        let broken = |reason: &str| DriverError::Broken { node: node.clone(), reason: reason.to_owned() };
        match std::mem::replace(&mut self.reading, Reading::Broken) {
            Reading::Done(stream) => stream.finish().await,
            Reading::Ahead(task) => match task.await {
                Ok(Ok(stream)) => stream.finish().await,
                Ok(Err(error)) => Err(broken(&error.to_string())),
                Err(error) => Err(broken(&error.to_string())),
            },
            Reading::Broken => Err(broken("it ended in an error")),
        }
    }
}

/// What was read and not yet taken: first what is in memory, then what is in the file from `begin` to `end`.
struct Spool {
    options: SpoolOptions,
    file: Option<Arc<File>>,
    memory: VecDeque<Bytes>,
    memory_bytes: usize,
    begin: u64,
    end: u64,
    punched: u64,
}

impl Spool {
    fn has_room(&self) -> bool {
        self.end - self.begin + PART_BYTES as u64 <= self.options.limit_bytes
            || (self.end == self.begin && self.memory_bytes < MEMORY_BYTES)
    }

    async fn put(&mut self, part: Bytes) -> io::Result<()> {
        if self.begin == self.end && self.memory_bytes < MEMORY_BYTES {
            self.memory_bytes += part.len();
            self.memory.push_back(part);
            return Ok(());
        }
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                let directory = self.options.directory.clone();
                let file = Arc::new(blocking(move || nameless(&directory)).await?);
                tracing::info!(directory = %self.options.directory.display(), "a dump comes faster than it is stored, and waits on the disk");
                self.file.insert(file).clone()
            }
        };
        let (at, length) = (self.end, part.len() as u64);
        blocking(move || file.write_all_at(&part, at)).await?;
        self.end += length;
        Ok(())
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(part) = self.memory.pop_front() {
            self.memory_bytes -= part.len();
            return Ok(Some(part));
        }
        let Some(file) = self.file.clone().filter(|_| self.begin < self.end) else { return Ok(None) };
        let (at, length) = (self.begin, (self.end - self.begin).min(PART_BYTES as u64));
        self.begin += length;
        let is_empty = self.begin == self.end;
        let hole = (!is_empty && self.begin - self.punched >= HOLE_BYTES).then_some((self.punched, self.begin - self.punched));
        if let Some((at, length)) = hole {
            self.punched = at + length;
        }
        let part = blocking(move || {
            let mut part = vec![0; length as usize];
            file.read_exact_at(&mut part, at)?;
            if is_empty {
                file.set_len(0)?;
            } else if let Some((from, bytes)) = hole {
                // Where a file system cannot, the room comes back when the file is empty.
                let _unsupported =
                    rustix::fs::fallocate(&*file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, bytes);
            }
            Ok(Bytes::from(part))
        });
        let part = part.await?;
        if is_empty {
            (self.begin, self.end, self.punched) = (0, 0, 0);
        }
        Ok(Some(part))
    }
}

/// A file that nobody finds and that is gone with its last descriptor.
fn nameless(directory: &Path) -> io::Result<File> {
    std::fs::create_dir_all(directory)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = directory.join(format!("{}.spool", uuid::Uuid::new_v4()));
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
            let file = rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR)?;
            std::fs::remove_file(&path)?;
            Ok(file.into())
        }
        Err(error) => Err(error.into()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Reads ahead and hands on, until all is handed on; returns the stream for what it has to say.
async fn pump(
    mut stream: Box<dyn CaptureStream>,
    mut into: DuplexStream,
    mut spool: Spool,
) -> io::Result<Box<dyn CaptureStream>> {
    let (mut buffer, mut front, mut has_ended) = (vec![0; PART_BYTES], Bytes::new(), false);
    loop {
        if front.is_empty() {
            front = spool.next().await?.unwrap_or_default();
        }
        if front.is_empty() && has_ended {
            into.shutdown().await?;
            return Ok(stream);
        }
        // Both are safe to be dropped before they are done, and are begun again.
        tokio::select! {
            read = stream.read(&mut buffer), if !has_ended && spool.has_room() => match read? {
                0 => has_ended = true,
                length => spool.put(Bytes::copy_from_slice(&buffer[..length])).await?,
            },
            written = into.write(&front), if !front.is_empty() => front.advance(written?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a piece of its bytes at each read, and then its end or an error.
    struct Source {
        bytes: Vec<u8>,
        at: usize,
        breaks: bool,
        read: Arc<std::sync::atomic::AtomicUsize>,
    }

    impl AsyncRead for Source {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let length = buffer.remaining().min(self.bytes.len() - self.at).min(300_007);
            if length == 0 && self.breaks {
                return Poll::Ready(Err(io::Error::other("the store hung up")));
            }
            buffer.put_slice(&self.bytes[self.at..self.at + length]);
            self.at += length;
            self.read.store(self.at, std::sync::atomic::Ordering::SeqCst);
            Poll::Ready(Ok(()))
        }
    }

    #[async_trait]
    impl CaptureStream for Source {
        async fn finish(self: Box<Self>) -> Result<StreamFacts, DriverError> {
            Ok(StreamFacts { keys: None, checked: vec![format!("{} bytes", self.at)] })
        }
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[tokio::test]
    async fn all_bytes_come_in_their_order_through_memory_and_the_disk_and_the_stream_says_what_it_has_to() {
        let place = tempfile::tempdir().expect("a directory");
        let options = SpoolOptions { directory: place.path().join("spool"), limit_bytes: 200 << 20 };
        let bytes = noise(150 << 20);
        let read: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
        let source = Source { bytes: bytes.clone(), at: 0, breaks: false, read: read.clone() };
        let mut spooled = Box::new(Spooled::new("node-1", Box::new(source), &options));
        // Nobody takes anything, and all is read.
        while read.load(std::sync::atomic::Ordering::SeqCst) < bytes.len() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let (mut found, mut part) = (Vec::new(), vec![0; 777_777]);
        loop {
            match spooled.read(&mut part).await.expect("reads") {
                0 => break,
                length => found.extend_from_slice(&part[..length]),
            }
        }
        assert!(found == bytes, "{} of {}", found.len(), bytes.len());
        assert_eq!(spooled.finish().await.expect("is whole").checked, [format!("{} bytes", bytes.len())]);
        assert_eq!(std::fs::read_dir(&options.directory).expect("lists").count(), 0, "it has no name");
    }

    #[tokio::test]
    async fn no_more_is_read_ahead_than_there_is_room_for() {
        let place = tempfile::tempdir().expect("a directory");
        let options = SpoolOptions { directory: place.path().to_owned(), limit_bytes: 4 << 20 };
        let read: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
        let source = Source { bytes: noise(60 << 20), at: 0, breaks: false, read: read.clone() };
        let spooled = Spooled::new("node-1", Box::new(source), &options);
        let mut before = usize::MAX;
        // Until it stands still for a while.
        while before != read.load(std::sync::atomic::Ordering::SeqCst) {
            before = read.load(std::sync::atomic::Ordering::SeqCst);
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        assert!((16 << 20..MEMORY_BYTES + (4 << 20) + 4 * PART_BYTES).contains(&before), "{before}");
        drop(spooled);
    }

    #[tokio::test]
    async fn a_stream_that_broke_has_no_end() {
        let place = tempfile::tempdir().expect("a directory");
        let options = SpoolOptions { directory: place.path().to_owned(), limit_bytes: 64 << 20 };
        let source = Source { bytes: noise(30 << 20), at: 0, breaks: true, read: Arc::default() };
        let mut spooled = Spooled::new("node-1", Box::new(source), &options);
        let error = spooled.read_to_end(&mut Vec::new()).await.expect_err("it broke");
        assert_eq!(error.to_string(), "the store hung up");
        assert!(Box::new(spooled).finish().await.is_err());
    }
}
