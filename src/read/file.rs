//! Files: (offset, length) to segments, segments to bytes.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};

use crate::base::SingleFlight;
use crate::model::extent::{Extent, Segment, SegmentRun};
use crate::read::blocks::BlockReader;
use crate::read::error::ReadError;
use crate::read::kept::Wanted;
use crate::read::window::Window;
use crate::repo::{NodeTree, PlacedEntry, RepoError};

/// Runs of segments kept per open file: a run is a table page of up to some ten thousand blocks, so that nearly every
/// file has one, and thousands of open files do not add up.
const RUNS_KEPT: usize = 4;

/// Blocks of one read-ahead request: bounds the work done on the thread that answers a read.
const AHEAD_BLOCKS: usize = 256;

/// Where a file's bytes are: what all handles of one open file share.
#[derive(Debug)]
pub struct FileMap {
    blocks: Arc<BlockReader>,
    tree: NodeTree,
    file: PlacedEntry,
    /// Least recently loaded first.
    runs: Mutex<Vec<Arc<SegmentRun>>>,
    loading: SingleFlight<u64, Result<Arc<SegmentRun>, ReadError>>,
}

impl FileMap {
    /// For a regular file; what is no file has no bytes. Nothing is read yet.
    pub fn new(blocks: Arc<BlockReader>, tree: NodeTree, file: PlacedEntry) -> Arc<Self> {
        Arc::new(Self { blocks, tree, file, runs: Mutex::new(Vec::new()), loading: SingleFlight::default() })
    }

    /// Length of the file.
    pub fn size_bytes(&self) -> u64 {
        self.file.entry.content.as_ref().map_or(0, |content| content.size_bytes)
    }

    /// The file itself, when the cache on a disk has all of it.
    pub async fn whole_file(&self) -> Option<std::fs::File> {
        self.blocks.whole_file(&self.file.entry).await
    }

    /// Has `offset..end` in the cache on a disk; returns how many bytes of the whole file it has then.
    pub async fn warm(&self, offset: u64, end: u64) -> Result<u64, ReadError> {
        let pieces = self.pieces(offset, end.min(self.size_bytes())).await?;
        self.blocks.warm(&self.tree, &self.blocks_of(&pieces).collect::<Vec<_>>()).await?;
        Ok(self.blocks.kept_bytes(&self.file.entry).await)
    }

    fn block_bytes(&self) -> u64 {
        self.file.entry.content.as_ref().map_or(1, |content| u64::from(content.block_bytes))
    }

    fn runs(&self) -> MutexGuard<'_, Vec<Arc<SegmentRun>>> {
        self.runs.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn known_run(&self, offset: u64) -> Option<Arc<SegmentRun>> {
        self.runs().iter().find(|run| run.start() <= offset && offset < run.end()).cloned()
    }

    async fn run(&self, offset: u64) -> Result<Arc<SegmentRun>, ReadError> {
        if let Some(run) = self.known_run(offset) {
            return Ok(run);
        }
        self.loading
            .run(offset, || async {
                let run = self.blocks.source().segments(&self.tree, &self.file, offset).await?;
                // A file that ends before its recorded size is corrupt, never short.
                let run = run.filter(|run| run.position(offset).is_some()).ok_or_else(|| {
                    RepoError::corrupt(self.file.entry.path.to_string(), format!("no bytes are recorded at offset {offset}"))
                })?;
                let mut runs = self.runs();
                if runs.len() == RUNS_KEPT {
                    runs.remove(0);
                }
                runs.push(run.clone());
                Ok(run)
            })
            .await
    }

    /// The pieces of `offset..end` as far as the runs that are known reach, and where they end.
    fn known_pieces(&self, mut offset: u64, end: u64, pieces: &mut Vec<Piece>) -> u64 {
        while offset < end {
            let Some(run) = self.known_run(offset) else { break };
            offset = cut(&run, offset, end, pieces);
        }
        offset
    }

    async fn pieces(&self, mut offset: u64, end: u64) -> Result<Vec<Piece>, ReadError> {
        let mut pieces = Vec::new();
        while offset < end {
            let run = self.run(offset).await?;
            offset = cut(&run, offset, end, &mut pieces);
        }
        Ok(pieces)
    }

    fn blocks_of<'a>(&'a self, pieces: &'a [Piece]) -> impl Iterator<Item = Wanted> + 'a {
        pieces.iter().filter_map(|piece| match piece {
            Piece::Block { extent, start, .. } => Some(Wanted::of(&self.file.entry, *start, extent)),
            Piece::Literal(_) => None,
        })
    }

    /// Begins to fetch a stretch; returns how far it is looked after.
    fn begin_ahead(self: &Arc<Self>, offset: u64, until: u64) -> u64 {
        let end = until.min(self.size_bytes());
        if offset >= end {
            return until;
        }
        let mut pieces = Vec::new();
        if self.known_pieces(offset, end, &mut pieces) == end {
            let wanted = self.blocks_of(&pieces).collect::<Vec<_>>();
            let covered = self.blocks.ahead(&self.tree, &wanted[..wanted.len().min(AHEAD_BLOCKS)]);
            let begin = |wanted: &Wanted| wanted.place.map(|place| place.offset);
            return wanted.get(covered).and_then(begin).unwrap_or(until);
        }
        let map = self.clone();
        self.blocks.runtime().spawn(async move {
            let found = tokio::time::timeout(map.blocks.deadline(), map.pieces(offset, end)).await;
            // A failure is for the reader that comes to it, if one ever does.
            if let Ok(Ok(pieces)) = found {
                map.blocks.ahead(&map.tree, &map.blocks_of(&pieces).take(AHEAD_BLOCKS).collect::<Vec<_>>());
            }
        });
        until
    }
}

/// The blocks of small files, in the order of the files; those whose bytes stand in their tables have none.
pub async fn small_file_extents(blocks: &BlockReader, tree: &NodeTree, files: &[PlacedEntry]) -> Result<Vec<Wanted>, ReadError> {
    let mut found = Vec::new();
    for file in files {
        let Some(run) = blocks.source().segments(tree, file, 0).await? else { continue };
        for index in 0..run.segments().len() {
            if let Some((start, Segment::Block(extent))) = run.segment(index) {
                found.push(Wanted::of(&file.entry, start, extent));
            }
        }
    }
    Ok(found)
}

/// A stretch of a read.
#[derive(Debug)]
enum Piece {
    Literal(Bytes),
    /// `start` is where the block begins in the file.
    Block {
        extent: Extent,
        start: u64,
        from: usize,
        to: usize,
    },
}

/// Cuts `offset..end` out of a run that covers `offset`; returns where it stopped, always behind `offset`.
fn cut(run: &SegmentRun, offset: u64, end: u64, pieces: &mut Vec<Piece>) -> u64 {
    let mut at = offset;
    let mut index = run.position(offset).unwrap_or(usize::MAX);
    while at < end {
        let Some((start, segment)) = run.segment(index) else { break };
        let until = end.min(start + segment.plain_bytes());
        // Segments are at most 8 MiB long, so their inner offsets fit.
        let (from, to) = ((at - start) as usize, (until - start) as usize);
        pieces.push(match segment {
            Segment::Block(extent) => Piece::Block { extent: extent.clone(), start, from, to },
            Segment::Literal(bytes) => Piece::Literal(Bytes::copy_from_slice(&bytes[from..to])),
        });
        at = until;
        index += 1;
    }
    at
}

/// One open handle of a file: its reads, and how they move.
#[derive(Debug)]
pub struct FileReader {
    map: Arc<FileMap>,
    window: Mutex<Window>,
}

impl FileReader {
    /// A handle with its own read-ahead.
    pub fn new(map: Arc<FileMap>) -> Self {
        let window = Mutex::new(Window::new(map.block_bytes(), map.blocks.ahead_bytes()));
        Self { map, window }
    }

    /// What it shares with other handles of the same file.
    pub fn map(&self) -> &Arc<FileMap> {
        &self.map
    }

    /// Bytes from `offset`: exactly `length`, or up to the end of the file; none at and behind the end. A read inside
    /// one block copies nothing.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Bytes, ReadError> {
        let end = offset.saturating_add(length).min(self.map.size_bytes());
        if offset >= end {
            return Ok(Bytes::new());
        }
        let pieces = self.map.pieces(offset, end).await?;
        let wanted = self.map.blocks_of(&pieces).collect::<Vec<_>>();
        // What was asked for goes out before what may be asked for next.
        let pending = self.map.blocks.request(&self.map.tree, &wanted);
        self.look_ahead(offset, end);
        let mut blocks = pending.wait().await?.into_iter();
        Ok(join(pieces, |_| blocks.next()).expect("one block per extent was waited for"))
    }

    /// The same when nothing needs to be waited for; `None` says nothing about the file.
    pub fn read_cached(&self, offset: u64, length: u64) -> Option<Bytes> {
        let end = offset.saturating_add(length).min(self.map.size_bytes());
        if offset >= end {
            return Some(Bytes::new());
        }
        let mut pieces = Vec::new();
        if self.map.known_pieces(offset, end, &mut pieces) != end {
            return None;
        }
        let bytes = join(pieces, |extent| self.map.blocks.cached(extent))?;
        self.look_ahead(offset, end);
        Some(bytes)
    }

    fn look_ahead(&self, offset: u64, end: u64) {
        let window = || self.window.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let wanted = window().observe(offset, end - offset);
        if let Some(range) = wanted {
            let covered = self.map.begin_ahead(range.start, range.end);
            if covered < range.end {
                window().retreat(&range, covered);
            }
        }
    }
}

/// The pieces as one stretch of bytes; `None` as soon as a block is not to be had.
fn join(pieces: Vec<Piece>, mut block: impl FnMut(&Extent) -> Option<Bytes>) -> Option<Bytes> {
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        parts.push(match piece {
            Piece::Literal(bytes) => bytes,
            Piece::Block { extent, from, to, .. } => block(&extent)?.slice(from..to),
        });
    }
    if parts.len() == 1 {
        return parts.pop();
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    Some(whole.freeze())
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
