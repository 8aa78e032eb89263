//! What delivers the blocks of one file, in order: an open file or a stream.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::super::seal::sealed_bytes_max;
use crate::base::buffers::BufferPool;
use crate::model::extent::LITERAL_BYTES_MAX;

/// One block: to be read on the thread that prepares it, or here already.
pub(super) enum Job {
    Read { file: Arc<File>, offset: u64, length: usize },
    Plain(Vec<u8>),
}

/// What delivers the blocks of one file, in order.
#[async_trait::async_trait]
pub(super) trait Feed: Send {
    async fn next(&mut self) -> std::io::Result<Option<Job>>;
}

pub(super) struct FileFeed {
    pub file: Arc<File>,
    pub at: u64,
    pub end: u64,
    pub block_bytes: u32,
}

#[async_trait::async_trait]
impl Feed for FileFeed {
    async fn next(&mut self) -> std::io::Result<Option<Job>> {
        let length = usize::try_from((self.end - self.at).min(u64::from(self.block_bytes))).expect("a block fits in memory");
        if length == 0 {
            return Ok(None);
        }
        let offset = self.at;
        self.at += length as u64;
        if length <= LITERAL_BYTES_MAX && offset == 0 {
            let mut bytes = vec![0u8; length];
            self.file.read_exact_at(&mut bytes, 0)?;
            return Ok(Some(Job::Plain(bytes)));
        }
        Ok(Some(Job::Read { file: self.file.clone(), offset, length }))
    }
}

pub(super) struct StreamFeed<'a> {
    pub stream: &'a mut (dyn AsyncRead + Send + Unpin),
    pub block_bytes: u32,
    pub has_ended: bool,
    pub buffers: Arc<BufferPool<Vec<u8>>>,
}

#[async_trait::async_trait]
impl Feed for StreamFeed<'_> {
    async fn next(&mut self) -> std::io::Result<Option<Job>> {
        if self.has_ended {
            return Ok(None);
        }
        // With room for the sealed form too: the pool's buffers are all of one size then.
        let mut bytes = self.buffers.take_empty(sealed_bytes_max(self.block_bytes as usize));
        let mut limited = (&mut *self.stream).take(u64::from(self.block_bytes));
        // Not one read more than the block holds: the buffer would grow for it.
        while bytes.len() < self.block_bytes as usize && limited.read_buf(&mut bytes).await? != 0 {}
        self.has_ended = bytes.len() < self.block_bytes as usize;
        Ok((!bytes.is_empty()).then_some(Job::Plain(bytes)))
    }
}
