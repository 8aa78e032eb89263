//! What a clone reads of its snapshot, and how it waits for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::io::Errno;
use tokio::sync::OnceCell;

use super::Result;
use crate::fs::FsError;
use crate::model::manifest::FileKind;
use crate::model::names::TreePath;
use crate::read::{BlockReader, FileMap, FileReader, ReadError};
use crate::repo::{NodeTree, ObjectError, PlacedEntry, RepoError};

/// Between two attempts at a store that does not answer. The store's own breaker asks far less often.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the log says that it is still away.
const SAID: Duration = Duration::from_secs(60);

/// The bytes of one file of the base.
#[async_trait]
pub(super) trait BaseFile: Send + Sync + std::fmt::Debug {
    /// `offset..offset + length`, all of it.
    async fn read(&self, offset: u64, length: u64) -> Result<Bytes>;
    /// The same when nothing needs to be waited for.
    fn read_cached(&self, offset: u64, length: u64) -> Option<Bytes>;
}

/// The node of a snapshot that a clone stands on.
///
/// A store that maps its files dies of a page that cannot be read. So what is not an answer is waited for, `patience` long or
/// for ever; what is one (the object is gone, its bytes are wrong) is EIO at once.
#[derive(Debug)]
pub struct BaseNode {
    blocks: Arc<BlockReader>,
    tree: NodeTree,
    patience: Option<Duration>,
}

impl BaseNode {
    /// Reads `tree` through `blocks`. Without `patience` a store that is away is waited for until it is back.
    pub fn new(blocks: Arc<BlockReader>, tree: NodeTree, patience: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { blocks, tree, patience })
    }

    /// What runs its work.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        self.blocks.runtime()
    }

    /// The entry of a directory itself.
    pub(super) async fn entry(&self, path: &TreePath) -> Result<Option<PlacedEntry>> {
        self.waiting(|| async { self.blocks.source().entry(&self.tree, path).await.map_err(ReadError::from) }).await
    }

    pub(super) async fn directory(&self, path: &TreePath) -> Result<Vec<PlacedEntry>> {
        self.waiting(|| async { self.blocks.source().directory(&self.tree, path).await.map_err(ReadError::from) }).await
    }

    /// A file of it; nothing is read yet.
    pub(super) fn file(self: &Arc<Self>, path: TreePath) -> Arc<dyn BaseFile> {
        Arc::new(SnapshotFile { node: self.clone(), path, reader: OnceCell::new() })
    }

    async fn waiting<T, F: Future<Output = std::result::Result<T, ReadError>>>(&self, work: impl Fn() -> F) -> Result<T> {
        let began = Instant::now();
        let mut said = None;
        loop {
            let answer = match self.patience {
                None => work().await,
                // One question may take longer than whoever asks it has patience.
                Some(patience) => match tokio::time::timeout(patience.saturating_sub(began.elapsed()), work()).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        tracing::warn!(?patience, "the base of the clone was not read in time");
                        return Err(Errno::TIMEDOUT);
                    }
                },
            };
            match answer {
                Ok(found) => return Ok(found),
                Err(error) if !is_away(&error) || self.patience.is_some_and(|patience| began.elapsed() >= patience) => {
                    tracing::warn!(%error, "the base of the clone cannot be read");
                    return Err(Errno::from_raw_os_error(FsError::Read(error).errno()));
                }
                Err(error) => {
                    if said.is_none_or(|said: Instant| said.elapsed() >= SAID) {
                        tracing::warn!(%error, waited = ?began.elapsed(), "the store is away, what reads from it waits");
                        said = Some(Instant::now());
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// It is worth asking again: nobody said that it is not there, or wrong.
fn is_away(error: &ReadError) -> bool {
    use ObjectError::{DeadlineExceeded, Denied, Unavailable};
    match error {
        ReadError::DeadlineExceeded { .. } => true,
        ReadError::Repo(RepoError::Object(error)) => {
            matches!(error, Unavailable { .. } | DeadlineExceeded { .. } | Denied { .. })
        }
        ReadError::Repo(_) | ReadError::BrokenOff { .. } => false,
    }
}

#[derive(Debug)]
struct SnapshotFile {
    node: Arc<BaseNode>,
    path: TreePath,
    reader: OnceCell<FileReader>,
}

#[async_trait]
impl BaseFile for SnapshotFile {
    async fn read(&self, offset: u64, length: u64) -> Result<Bytes> {
        let open = || async {
            let placed = self.node.entry(&self.path).await?.filter(|placed| placed.entry.kind == FileKind::File);
            let placed = placed.ok_or_else(|| {
                tracing::error!(path = %self.path, "the snapshot has no such file, though the clone was made of it");
                Errno::IO
            })?;
            Ok(FileReader::new(FileMap::new(self.node.blocks.clone(), self.node.tree.clone(), placed)))
        };
        let reader = self.reader.get_or_try_init(open).await?;
        let found = self.node.waiting(|| reader.read(offset, length)).await?;
        if found.len() as u64 == length { Ok(found) } else { Err(Errno::IO) }
    }

    fn read_cached(&self, offset: u64, length: u64) -> Option<Bytes> {
        self.reader.get()?.read_cached(offset, length).filter(|found| found.len() as u64 == length)
    }
}
