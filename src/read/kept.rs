//! The cache of files behind the blocks: asked before the source, and filled behind the readers' backs.
//!
//! **Invariants.** No reader waits for a block to be put. Blocks that are not put in time are not put: the queue is short. A
//! disk that hangs is waited for once in a while, and is a miss the rest of the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::cache::{BlockPlace, FileCache, FileKey};
use crate::model::extent::Extent;
use crate::model::manifest::{FileContent, TreeEntry};

/// Blocks that wait to be put.
const QUEUE: usize = 64;
/// A disk of any kind has answered by then; a network file system that is gone has not.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the cache is left alone after it did not answer.
const PAUSE: Duration = Duration::from_secs(30);

/// A block that is wanted, and where it stands in its file.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The block.
    pub extent: Extent,
    /// Absent where no cache of files is to know it.
    pub place: Option<BlockPlace>,
}

impl From<Extent> for Wanted {
    fn from(extent: Extent) -> Self {
        Self { extent, place: None }
    }
}

impl Wanted {
    /// A block of `file` that begins at `offset`.
    pub fn of(file: &TreeEntry, offset: u64, extent: &Extent) -> Self {
        let place = |content: &FileContent| BlockPlace {
            file: file_key(content),
            offset,
            id: extent.id,
            plain_bytes: extent.plain_bytes,
        };
        Self { extent: extent.clone(), place: file.content.as_ref().map(place) }
    }
}

/// What the cache knows a content by.
pub(super) fn file_key(content: &FileContent) -> FileKey {
    FileKey { content: content.id, size_bytes: content.size_bytes, block_bytes: content.block_bytes }
}

#[derive(Debug)]
pub(super) struct Kept {
    files: Arc<dyn FileCache>,
    queue: SyncSender<(BlockPlace, Bytes)>,
    patience: Duration,
    began: Instant,
    /// Not asked before, in milliseconds since `began`.
    paused_until_ms: AtomicU64,
}

impl Kept {
    /// `None` when there can be no thread: then there is no cache. The source has to have most of `deadline`.
    pub(super) fn new(files: Arc<dyn FileCache>, deadline: Duration) -> Option<Self> {
        let (queue, waiting) = sync_channel(QUEUE);
        let target = files.clone();
        let thread = std::thread::Builder::new().name("cache-put".to_owned()).spawn(move || put_all(target.as_ref(), &waiting));
        if let Err(error) = thread {
            tracing::warn!(%error, "the cache is not used");
            return None;
        }
        let patience = PATIENCE.min(deadline / 4);
        Some(Self { files, queue, patience, began: Instant::now(), paused_until_ms: AtomicU64::new(0) })
    }

    /// What is there of these, in their order.
    pub(super) async fn find(&self, wanted: &[Wanted]) -> Vec<Option<Bytes>> {
        let nothing = vec![None; wanted.len()];
        let now_ms = || self.began.elapsed().as_millis() as u64;
        if now_ms() < self.paused_until_ms.load(Ordering::Relaxed) {
            return nothing;
        }
        let places: Vec<_> = wanted.iter().map(|wanted| wanted.place).collect();
        let files = self.files.clone();
        let looking = tokio::task::spawn_blocking(move || {
            places.iter().map(|place| place.as_ref().and_then(|place| files.get(place))).collect()
        });
        match tokio::time::timeout(self.patience, looking).await {
            Ok(found) => found.unwrap_or(nothing),
            Err(_) => {
                tracing::warn!("the cache does not answer, and is left alone for a while");
                self.paused_until_ms.store(now_ms() + PAUSE.as_millis() as u64, Ordering::Relaxed);
                nothing
            }
        }
    }

    /// Bytes of a file that are there.
    pub(super) async fn bytes_of(&self, file: FileKey) -> u64 {
        let files = self.files.clone();
        let looking = tokio::task::spawn_blocking(move || files.cached_bytes(&file));
        match tokio::time::timeout(self.patience, looking).await {
            Ok(Ok(bytes)) => bytes,
            // Nothing that could be read now.
            Ok(Err(_)) | Err(_) => 0,
        }
    }

    /// The file itself, when all of it is there.
    pub(super) async fn whole_file(&self, file: FileKey) -> Option<std::fs::File> {
        let files = self.files.clone();
        let looking = tokio::task::spawn_blocking(move || files.whole_file(&file));
        tokio::time::timeout(self.patience, looking).await.ok()?.ok()?
    }

    /// Puts blocks, and waits until they are put or dropped.
    pub(super) async fn put(&self, blocks: Vec<(BlockPlace, Bytes)>) {
        let files = self.files.clone();
        let putting = tokio::task::spawn_blocking(move || blocks.iter().for_each(|(place, block)| files.put(place, block)));
        // It broke off: then they are not there, as after any failure.
        let _ = putting.await;
    }

    /// A block that came from the source.
    pub(super) fn offer(&self, place: &BlockPlace, block: &Bytes) {
        // Full: whoever reads it next offers it again.
        let _ = self.queue.try_send((*place, block.clone()));
    }
}

/// Until the last reader is gone.
fn put_all(files: &dyn FileCache, waiting: &Receiver<(BlockPlace, Bytes)>) {
    while let Ok((place, block)) = waiting.recv() {
        files.put(&place, &block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::extent::PackRef;
    use crate::model::ids::{BlockId, PackId};
    use crate::model::names::NodeName;

    /// A disk on which everything takes long.
    #[derive(Debug)]
    struct Slow;

    impl FileCache for Slow {
        fn get(&self, _: &BlockPlace) -> Option<Bytes> {
            std::thread::sleep(Duration::from_millis(500));
            Some(Bytes::new())
        }
        fn put(&self, _: &BlockPlace, _: &Bytes) {
            std::thread::sleep(Duration::from_millis(500));
        }
        fn whole_file(&self, _: &FileKey) -> Option<std::fs::File> {
            None
        }
        fn cached_bytes(&self, _: &FileKey) -> u64 {
            0
        }
        fn used_bytes(&self) -> u64 {
            0
        }
        fn limit_bytes(&self) -> u64 {
            0
        }
    }

    #[tokio::test]
    async fn a_disk_that_hangs_is_a_miss_and_holds_nobody_up() {
        let kept = Kept::new(Arc::new(Slow), Duration::from_millis(80)).expect("a thread");
        let id = BlockId([1; 32]);
        let file = FileKey { content: id, size_bytes: 1, block_bytes: 1 };
        let place = BlockPlace { file, offset: 0, id, plain_bytes: 1 };
        let pack = Arc::new(PackRef { node: NodeName::new("n").expect("legal"), pack: PackId([1; 16]) });
        let wanted = Wanted { extent: Extent { id, pack, offset: 0, stored_bytes: 1, plain_bytes: 1 }, place: Some(place) };
        let began = Instant::now();
        for _ in 0..100 {
            assert_eq!(kept.find(std::slice::from_ref(&wanted)).await, [None]);
            kept.offer(&place, &Bytes::from_static(b"x"));
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}
