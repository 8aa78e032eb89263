//! Blocks by their extents: from the cache, from a fetch under way, or from one more fetch for neighbours together.
//!
//! A fetch is a task of its own. The reader that began it may give up (its caller's deadline, a killed process) without
//! taking it away from the others who wait for the same block.
//!
//! **Invariants.** A block is fetched at most once at a time. The bytes of all fetches together stay within
//! [`ReadOptions::in_flight_bytes`], those of read-ahead within three quarters of that. Every fetch ends at the deadline, and a
//! failure is told to those who waited and then forgotten: it is never cached.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cache::{BlockCache, FileCache};
use crate::model::extent::Extent;
use crate::model::ids::BlockId;
use crate::model::manifest::TreeEntry;
use crate::read::error::ReadError;
use crate::read::flights::{Claim, Flights, Joined, Waiting};
use crate::read::kept::{Kept, Wanted, file_key};
use crate::read::window::STRETCH_BYTES;
use crate::repo::{NodeTree, RepoError, SnapshotSource};

/// Most plain bytes asked of the source in one call: large enough to hide the first byte's latency, small enough that
/// a reader of the first block does not wait long for the last.
const FETCH_BYTES: u64 = STRETCH_BYTES;

/// Permits are counted in these, because a semaphore's numbers are 32 bits wide.
const PERMIT_BYTES: u64 = 1024;

/// Limits of reading.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Plain bytes under way at a time, over all files.
    pub in_flight_bytes: u64,
    /// How far ahead of one sequential reader at most.
    pub ahead_bytes: u64,
    /// How long one fetch may take.
    pub deadline: Duration,
}

impl Default for ReadOptions {
    /// 128 MiB in flight fill a 10 Gbit/s line at 30 ms; 16 MiB ahead are sixteen blocks, two fetches of eight.
    fn default() -> Self {
        Self { in_flight_bytes: 128 << 20, ahead_bytes: 16 << 20, deadline: Duration::from_secs(30) }
    }
}

type Outcome = Result<Bytes, ReadError>;

/// Reads blocks of one source through one cache. Shared by all files.
#[derive(Debug)]
pub struct BlockReader {
    source: Arc<dyn SnapshotSource>,
    cache: Arc<dyn BlockCache>,
    kept: Option<Kept>,
    options: ReadOptions,
    runtime: Handle,
    in_flight: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    flights: Arc<Flights<BlockId, Outcome>>,
}

impl BlockReader {
    /// Fetches run on `runtime`, also those begun from threads outside it. They look into `files` first, if it is given.
    pub fn new(
        source: Arc<dyn SnapshotSource>,
        cache: Arc<dyn BlockCache>,
        files: Option<Arc<dyn FileCache>>,
        options: ReadOptions,
        runtime: Handle,
    ) -> Arc<Self> {
        let all = permits(options.in_flight_bytes);
        // What is read ahead passes through the cache: more than a part of it would drive itself out.
        let ahead = permits((options.in_flight_bytes / 4 * 3).min(cache.limit_bytes() / 2));
        Arc::new(Self {
            source,
            cache,
            kept: files.and_then(|files| Kept::new(files, options.deadline)),
            options,
            runtime,
            in_flight: Arc::new(Semaphore::new(all as usize)),
            ahead: Arc::new(Semaphore::new(ahead as usize)),
            flights: Flights::new(),
        })
    }

    /// Where the blocks come from.
    pub fn source(&self) -> &Arc<dyn SnapshotSource> {
        &self.source
    }

    /// How far ahead one reader may be: the option, or half of a cache that is small.
    pub fn ahead_bytes(&self) -> u64 {
        self.options.ahead_bytes.min(self.cache.limit_bytes() / 2)
    }

    /// How long one fetch may take.
    pub fn deadline(&self) -> Duration {
        self.options.deadline
    }

    /// Bytes of a file that the cache on a disk holds; 0 where there is none.
    pub async fn kept_bytes(&self, file: &TreeEntry) -> u64 {
        match (&self.kept, &file.content) {
            (Some(kept), Some(content)) => kept.bytes_of(file_key(content)).await,
            _ => 0,
        }
    }

    /// Whether there is a cache on a disk that may have files whole.
    pub fn keeps_files(&self) -> bool {
        self.kept.is_some()
    }

    /// The file itself, open for reading, when the cache on a disk has all of it, verified since the host started.
    pub async fn whole_file(&self, file: &TreeEntry) -> Option<std::fs::File> {
        let (kept, content) = (self.kept.as_ref()?, file.content.as_ref()?);
        kept.whole_file(file_key(content)).await
    }

    /// Where tasks run.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The block, if the cache has it: no waiting.
    pub fn cached(&self, extent: &Extent) -> Option<Bytes> {
        self.cache.get(&extent.id).filter(|block| block.len() as u64 == u64::from(extent.plain_bytes))
    }

    /// Begins whatever is needed for these blocks at once; [`Pending::wait`] delivers them in the same order.
    pub fn request(self: &Arc<Self>, tree: &NodeTree, blocks: &[Wanted]) -> Pending {
        let mut claimed = Vec::new();
        let mut parts = Vec::with_capacity(blocks.len());
        for wanted in blocks {
            parts.push(match self.cached(&wanted.extent) {
                Some(block) => Part::Landed(Ok(block)),
                None => self.join(wanted, &mut claimed),
            });
        }
        self.fetch(tree, claimed, None);
        Pending { parts }
    }

    /// Begins to fetch those of the blocks that nobody has or fetches yet, as far as there is room; never waits. Returns how
    /// many of the first it looked after.
    pub fn ahead(self: &Arc<Self>, tree: &NodeTree, blocks: &[Wanted]) -> usize {
        let room = self.ahead.available_permits() as u64 * PERMIT_BYTES;
        let mut wanted = Vec::new();
        let (mut bytes, mut covered, mut first) = (0, 0, None);
        for block in blocks {
            let extent = &block.extent;
            if self.cached(extent).is_none() && !self.flights.has(&extent.id) {
                let first = *first.get_or_insert(covered);
                if bytes + u64::from(extent.plain_bytes) > room {
                    // Several readers share the room: a part too small for a good request is left until there is more.
                    if bytes < FETCH_BYTES {
                        return first;
                    }
                    break;
                }
                bytes += u64::from(extent.plain_bytes);
                wanted.push(block);
            }
            covered += 1;
        }
        if wanted.is_empty() {
            return covered;
        }
        // Another reader may have been quicker.
        let Ok(room) = self.ahead.clone().try_acquire_many_owned(permits(bytes)) else { return 0 };
        let mut claimed = Vec::new();
        for wanted in wanted {
            // The receiver is let go: whoever reads the block joins by its name.
            let _ = self.join(wanted, &mut claimed);
        }
        self.fetch(tree, claimed, Some(Arc::new(room)));
        covered
    }

    /// Waits for a fetch under way, or claims the block.
    fn join(&self, wanted: &Wanted, claimed: &mut Vec<Claimed>) -> Part {
        let extent = &wanted.extent;
        match self.flights.join(extent.id, || self.cached(extent).map(Ok)) {
            Joined::Ready(landed) => Part::Landed(landed),
            Joined::Waiting(waiting) => Part::Waiting(waiting, extent.clone()),
            Joined::Claimed(claim, waiting) => {
                claimed.push(Claimed { wanted: wanted.clone(), claim });
                Part::Waiting(waiting, extent.clone())
            }
        }
    }

    /// Spawns the fetches of what was claimed, in stretches of at most [`FETCH_BYTES`].
    fn fetch(self: &Arc<Self>, tree: &NodeTree, mut claimed: Vec<Claimed>, room: Option<Arc<OwnedSemaphorePermit>>) {
        while !claimed.is_empty() {
            let rest = claimed.split_off(stretch(claimed.iter().map(|claim| &claim.wanted)));
            self.spawn(tree, std::mem::replace(&mut claimed, rest), room.clone());
        }
    }

    fn spawn(self: &Arc<Self>, tree: &NodeTree, claimed: Vec<Claimed>, room: Option<Arc<OwnedSemaphorePermit>>) {
        let (reader, tree) = (self.clone(), tree.clone());
        self.runtime.spawn(async move {
            let limit = reader.options.deadline;
            let what = describe(&claimed);
            let wanted: Vec<_> = claimed.iter().map(|claim| claim.wanted.clone()).collect();
            let work = async {
                let _permit = reader.in_flight.acquire_many(reader.room(&wanted)).await;
                reader.read(&tree, &wanted).await
            };
            let result = match tokio::time::timeout(limit, work).await {
                Ok(result) => result.map_err(|error: RepoError| ReadError::Repo(error)),
                Err(_) => Err(ReadError::DeadlineExceeded { what, limit }),
            };
            drop(room);
            reader.land(claimed, result);
        });
    }

    /// Has these blocks in the cache on the disk, and waits until they are; they pass by the one in memory.
    pub async fn warm(&self, tree: &NodeTree, wanted: &[Wanted]) -> Result<(), ReadError> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let mut rest = wanted;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(stretch(rest));
            rest = later;
            let _permit = self.in_flight.acquire_many(self.room(now)).await;
            let new = self.find(tree, now).await?.into_iter().zip(now);
            let new = new.filter_map(|((block, is_new), wanted)| is_new.then_some((wanted.place?, block)));
            kept.put(new.collect()).await;
        }
        Ok(())
    }

    /// Permits for blocks that are fetched together.
    fn room(&self, blocks: &[Wanted]) -> u32 {
        let bytes = blocks.iter().map(|wanted| u64::from(wanted.extent.plain_bytes)).sum();
        permits(bytes).min(permits(self.options.in_flight_bytes))
    }

    async fn read(&self, tree: &NodeTree, wanted: &[Wanted]) -> Result<Vec<Bytes>, RepoError> {
        let found = self.find(tree, wanted).await?.into_iter().zip(wanted);
        let offered = found.map(|((block, is_new), wanted)| {
            if let (Some(kept), Some(place), true) = (&self.kept, &wanted.place, is_new) {
                kept.offer(place, &block);
            }
            block
        });
        Ok(offered.collect())
    }

    /// What the cache of files has, and the rest from the source, which is new.
    async fn find(&self, tree: &NodeTree, wanted: &[Wanted]) -> Result<Vec<(Bytes, bool)>, RepoError> {
        let found = match &self.kept {
            Some(kept) => kept.find(wanted).await,
            None => vec![None; wanted.len()],
        };
        let missing = wanted.iter().zip(&found).filter(|(_, found)| found.is_none());
        let extents: Vec<_> = missing.map(|(wanted, _)| wanted.extent.clone()).collect();
        let mut fetched = Vec::new();
        if !extents.is_empty() {
            fetched = self.source.read_blocks(tree, &extents).await?;
            check(&extents, &fetched)?;
        }
        let mut fetched = fetched.into_iter();
        // As many as are missing: that was checked.
        Ok(found
            .into_iter()
            .filter_map(|found| found.map(|block| (block, false)).or_else(|| Some((fetched.next()?, true))))
            .collect())
    }

    fn land(&self, claimed: Vec<Claimed>, result: Result<Vec<Bytes>, ReadError>) {
        let outcomes: Vec<_> = match result {
            Ok(blocks) => blocks.into_iter().map(Ok).collect(),
            Err(error) => claimed.iter().map(|_| Err(error.clone())).collect(),
        };
        for (Claimed { wanted, claim }, outcome) in claimed.into_iter().zip(outcomes) {
            claim.land(outcome, |outcome| {
                if let Ok(block) = outcome {
                    self.cache.put(wanted.extent.id, block.clone());
                }
            });
        }
    }
}

/// What the source owes by its own promise, looked at once more before it is believed.
fn check(extents: &[Extent], blocks: &[Bytes]) -> Result<(), RepoError> {
    if blocks.len() != extents.len() {
        return Err(RepoError::corrupt("blocks", format!("{} asked for, {} delivered", extents.len(), blocks.len())));
    }
    for (extent, block) in extents.iter().zip(blocks) {
        if block.len() as u64 != u64::from(extent.plain_bytes) {
            let reason = format!("{} bytes instead of {}", block.len(), extent.plain_bytes);
            return Err(RepoError::corrupt(format!("block {}", extent.id), reason));
        }
    }
    Ok(())
}

/// How many of the first are fetched together: at most [`FETCH_BYTES`], at least one.
fn stretch<'a>(wanted: impl IntoIterator<Item = &'a Wanted>) -> usize {
    let lengths = wanted.into_iter().map(|wanted| u64::from(wanted.extent.plain_bytes));
    let ends = lengths.scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    ends.take_while(|end| *end <= FETCH_BYTES).count().max(1)
}

fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX).min(1 << 28)
}

/// A block that is to be fetched; dropping it gives the block up.
#[derive(Debug)]
struct Claimed {
    wanted: Wanted,
    claim: Claim<BlockId, Outcome>,
}

fn describe(claimed: &[Claimed]) -> String {
    match claimed.first() {
        Some(claim) => {
            let Extent { pack, offset, .. } = &claim.wanted.extent;
            format!("pack {} of {} at {offset}", pack.pack, pack.node)
        }
        None => "nothing".to_owned(),
    }
}

/// Blocks that were asked for and may still be on their way.
#[derive(Debug)]
pub struct Pending {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Landed(Outcome),
    Waiting(Waiting<Outcome>, Extent),
}

impl Pending {
    /// The blocks, in the order asked for; the first failure among them otherwise. Giving up on this future harms nobody.
    pub async fn wait(self) -> Result<Vec<Bytes>, ReadError> {
        let mut blocks = Vec::with_capacity(self.parts.len());
        for part in self.parts {
            blocks.push(match part {
                Part::Landed(landed) => landed?,
                Part::Waiting(flight, extent) => {
                    let broken_off = || ReadError::BrokenOff { what: format!("block {}", extent.id) };
                    flight.landed().await.ok_or_else(broken_off)??
                }
            });
        }
        Ok(blocks)
    }
}
