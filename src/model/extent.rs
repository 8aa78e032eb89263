//! Where stored bytes live, and how a file's content is pieced together from them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ids::{BlockId, PackId};
use super::names::NodeName;

/// Largest plain length of a block or page: what a reader must be ready to allocate for one.
pub const BLOCK_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Largest stored length of a whole pack; one PUT each.
pub const PACK_BYTES_MAX: u32 = 32 * 1024 * 1024;
/// What sealing adds at most to the plain bytes of a block: form, data key, nonce, tag and the body's own form.
const SEAL_BYTES_MAX: u64 = 1 + 16 + 12 + 16 + 1;
/// Block size of files that are read from end to end.
pub const SEQUENTIAL_BLOCK_BYTES: u32 = 1024 * 1024;
/// Block size of files that are read at random.
pub const RANDOM_BLOCK_BYTES: u32 = 64 * 1024;
/// Longest literal segment: above it a block of its own is cheaper to deduplicate.
pub const LITERAL_BYTES_MAX: usize = 512;

/// A pack, named with the node under whose prefix it lies; always of the cluster of the manifest that refers to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackRef {
    /// The node that wrote it.
    pub node: NodeName,
    /// Its name.
    pub pack: PackId,
}

/// Where one sealed block or page lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Name of the block: the keyed hash of its plain bytes.
    pub id: BlockId,
    /// The pack that holds it.
    #[serde(flatten, with = "shared_pack")]
    pub pack: Arc<PackRef>,
    /// First stored byte within the pack.
    pub offset: u32,
    /// Stored (compressed and sealed) length.
    pub stored_bytes: u32,
    /// Plain length, at most [`BLOCK_BYTES_MAX`].
    pub plain_bytes: u32,
}

impl Extent {
    /// First stored byte behind it.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.stored_bytes)
    }

    /// `next` follows at once in the same pack, so that both come with one ranged GET.
    pub fn is_followed_by(&self, next: &Self) -> bool {
        self.pack == next.pack && self.end() == u64::from(next.offset)
    }

    /// Sizes that no writer produces and no reader should allocate for.
    pub fn fault(&self) -> Option<&'static str> {
        if self.plain_bytes > BLOCK_BYTES_MAX {
            Some("a block is larger than 8 MiB")
        } else if self.end() > u64::from(PACK_BYTES_MAX) {
            Some("a block ends behind the largest pack")
        } else if u64::from(self.stored_bytes) > u64::from(self.plain_bytes) + SEAL_BYTES_MAX {
            Some("a block is stored in more bytes than its seal can add")
        } else if self.stored_bytes == 0 {
            Some("a block is stored in no bytes")
        } else {
            None
        }
    }
}

mod shared_pack {
    use super::{Arc, Deserialize, PackRef, Serialize};

    pub fn serialize<S: serde::Serializer>(pack: &Arc<PackRef>, serializer: S) -> Result<S::Ok, S::Error> {
        pack.as_ref().serialize(serializer)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Arc<PackRef>, D::Error> {
        PackRef::deserialize(deserializer).map(Arc::new)
    }
}

/// A stretch of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// A whole block.
    Block(Extent),
    /// The bytes themselves, at most [`LITERAL_BYTES_MAX`].
    Literal(Vec<u8>),
}

impl Segment {
    /// Plain length.
    pub fn plain_bytes(&self) -> u64 {
        match self {
            Self::Block(extent) => u64::from(extent.plain_bytes),
            Self::Literal(bytes) => bytes.len() as u64,
        }
    }
}

/// Consecutive segments of one file, with where each begins: what one table page holds of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SegmentRun {
    /// File offset of the first segment.
    start: u64,
    /// File offset behind each segment; ascending.
    ends: Vec<u64>,
    segments: Vec<Segment>,
}

impl SegmentRun {
    /// A run that begins at file offset `start`.
    pub fn new(start: u64, segments: Vec<Segment>) -> Self {
        let mut end = start;
        let ends = segments
            .iter()
            .map(|segment| {
                end = end.saturating_add(segment.plain_bytes());
                end
            })
            .collect();
        Self { start, ends, segments }
    }

    /// First file offset covered.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// First file offset not covered any more.
    pub fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or(self.start)
    }

    /// All segments, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Number of the segment that holds `offset`, by binary search; `None` outside the run.
    pub fn position(&self, offset: u64) -> Option<usize> {
        if offset < self.start {
            return None;
        }
        let index = self.ends.partition_point(|end| *end <= offset);
        (index < self.segments.len()).then_some(index)
    }

    /// File offset of a segment's first byte, and the segment.
    pub fn segment(&self, index: usize) -> Option<(u64, &Segment)> {
        let segment = self.segments.get(index)?;
        Some((self.ends[index] - segment.plain_bytes(), segment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_the_segment_that_holds_the_offset() {
        let run = SegmentRun::new(10, vec![Segment::Literal(vec![0; 3]), Segment::Literal(vec![0; 5])]);
        let found: Vec<_> = [9, 10, 12, 13, 17, 18].map(|offset| run.position(offset)).into();
        assert_eq!(found, [None, Some(0), Some(0), Some(1), Some(1), None]);
        assert_eq!(run.segment(1).map(|(start, _)| start), Some(13));
        assert_eq!((run.start(), run.end()), (10, 18));
    }

    #[test]
    fn a_run_of_nothing_holds_no_offset() {
        assert_eq!(SegmentRun::new(0, vec![]).position(0), None);
    }
}
