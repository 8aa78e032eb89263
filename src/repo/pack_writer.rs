//! A stream of sealed items into packs: one is filled while the ones before it are uploaded.
//!
//! Memory: the pack being filled and those under way, at most [`PACK_TARGET_BYTES`] each; how many are under way is
//! bounded by a semaphore that all nodes of a run share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::RepoError;
use super::node_writer::WriterOptions;
use super::pack::PackBuilder;
use super::repository::Repository;
use super::seal::{SealType, Sealer};
use crate::base::Pace;
use crate::base::buffers::{BufferPool, page_aligned};
use crate::model::extent::Extent;
use crate::model::ids::{BlockId, PackId};
use crate::model::names::NodeName;
use crate::object::PutMode;

/// A pack is closed here: large enough that requests cost nothing beside the bytes, half of the format's limit so that a
/// block more always fits, and four of them stay well below the memory that a snapshot may take.
const PACK_TARGET_BYTES: usize = 16 * 1024 * 1024;

/// Packs of one kind for one node.
#[derive(Debug)]
pub(super) struct PackWriter {
    repository: Arc<Repository>,
    sealer: Arc<Sealer>,
    /// Folder of the packs, with its slash.
    folder: String,
    node: NodeName,
    uploads: Arc<Semaphore>,
    buffers: Arc<BufferPool<BytesMut>>,
    pace: Option<Arc<Pace>>,
    stored_bytes: Arc<AtomicU64>,
    current: Option<PackBuilder>,
    newest: Option<PackId>,
    running: JoinSet<Result<(), RepoError>>,
}

impl PackWriter {
    pub fn new(
        repository: Arc<Repository>,
        sealer: Arc<Sealer>,
        folder: String,
        node: NodeName,
        options: &WriterOptions,
        stored_bytes: Arc<AtomicU64>,
    ) -> Self {
        let (uploads, buffers, pace) = (options.uploads.clone(), options.pack_buffers.clone(), options.pace.clone());
        let (current, newest, running) = (None, None, JoinSet::new());
        Self { repository, sealer, folder, node, uploads, buffers, pace, stored_bytes, current, newest, running }
    }

    /// The last pack begun.
    pub fn newest(&self) -> Option<PackId> {
        self.newest
    }

    /// Appends a sealed item and says where it will lie. It is stored only after [`PackWriter::finish`] returned well.
    pub async fn add(&mut self, kind: SealType, id: BlockId, plain_bytes: u32, sealed: &[u8]) -> Result<Extent, RepoError> {
        let closes = |pack: &PackBuilder| !pack.is_empty() && pack.length_with(sealed.len()) > PACK_TARGET_BYTES;
        if self.current.as_ref().is_some_and(closes) {
            self.close().await?;
        }
        let pack = self.current.get_or_insert_with(|| {
            PackBuilder::new(self.node.clone(), self.buffers.take().unwrap_or_else(|| page_aligned(PACK_TARGET_BYTES)))
        });
        self.newest = Some(pack.pack().pack);
        debug_assert!(pack.fits(sealed.len()), "a sealed item is at most 8 MiB and a pack 32");
        Ok(pack.add(kind, id, plain_bytes, sealed))
    }

    async fn close(&mut self) -> Result<(), RepoError> {
        let Some(pack) = self.current.take() else { return Ok(()) };
        // An upload that failed ends the run here, not at its end.
        while let Some(ended) = self.running.try_join_next() {
            joined(ended)?;
        }
        // Before it takes the place of a node that has no limit.
        if let Some(pace) = &self.pace {
            pace.wait(pack.length_with(0) as u64).await;
        }
        let permit = self.uploads.clone().acquire_owned().await.expect("the semaphore is never closed");
        let key = format!("{}{}", self.folder, super::layout::pack_name(pack.pack().pack));
        let (repository, sealer, stored_bytes) = (self.repository.clone(), self.sealer.clone(), self.stored_bytes.clone());
        let buffers = self.buffers.clone();
        self.running.spawn(async move {
            let body = pack.finish(&sealer, &key)?;
            let length = body.len() as u64;
            repository.put_verified(&key, body.clone(), PutMode::Create).await?;
            stored_bytes.fetch_add(length, Ordering::Relaxed);
            // A store that still holds the body keeps it.
            if let Ok(mut body) = body.try_into_mut() {
                body.clear();
                buffers.give(body);
            }
            drop(permit);
            Ok(())
        });
        Ok(())
    }

    /// Closes the last pack and waits until all are stored.
    pub async fn finish(&mut self) -> Result<(), RepoError> {
        self.close().await?;
        while let Some(ended) = self.running.join_next().await {
            joined(ended)?;
        }
        Ok(())
    }
}

fn joined(ended: Result<Result<(), RepoError>, tokio::task::JoinError>) -> Result<(), RepoError> {
    ended.map_err(|error| RepoError::Source { what: "an upload".to_owned(), reason: error.to_string() })?
}
