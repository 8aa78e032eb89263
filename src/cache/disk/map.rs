//! The block map of a cached file: a header that says which file it is, and a record for each block.
//!
//! ```text
//! header  "tintypeC" (8) ‖ version (4) ‖ block bytes (4) ‖ size (8) ‖ content id (32) ‖ sum (16) ‖ zeros ‖ handed out (1)
//! record  block id (32) ‖ checksum of the plain bytes (16) ‖ boot (8) ‖ sum (8)
//! ```
//!
//! **Invariants.** A record's own sum covers the file and the block's number, so that zeros, garbage and a record that
//! stands in the wrong place are all the same: no record. A record names the boot in which its block was written or
//! verified; in another one it is a claim that the block's checksum has yet to prove.

use std::fmt;

use super::super::{BlockPlace, FileKey};
use crate::model::extent::BLOCK_BYTES_MAX;
use crate::model::ids::BlockId;

pub(super) const HEADER_BYTES: u64 = 128;
pub(super) const RECORD_BYTES: u64 = 64;
/// Where the header says whether the file was ever handed to the kernel. Not covered by the sum: anything but zero is yes.
pub(super) const HANDED_OUT_AT: u64 = HEADER_BYTES - 1;

const MAGIC: &[u8; 8] = b"tintypeC";
const VERSION: u32 = 1;
/// More would be a file of 256 TiB.
const SLOTS_MAX: u64 = 1 << 32;

/// A boot of the host, shortened.
pub(super) type Boot = [u8; 8];

/// What a cached file is called.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name(pub(super) [u8; 16]);

impl Name {
    pub(super) fn of(key: &FileKey) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&key.content.0).update(&key.size_bytes.to_le_bytes()).update(&key.block_bytes.to_le_bytes());
        Self(first(hasher.finalize()))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let number = u128::from_str_radix(text, 16).ok()?;
        let name = Self(number.to_be_bytes());
        // One spelling only.
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn first<const N: usize>(hash: blake3::Hash) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&hash.as_bytes()[..N]);
    out
}

pub(super) fn boot_of(text: &str) -> Boot {
    first(blake3::hash(text.as_bytes()))
}

/// Sum of a block's plain bytes.
pub(super) fn check_of(bytes: &[u8]) -> [u8; 16] {
    first(blake3::hash(bytes))
}

/// How many blocks a file has; `None` for one that cannot be cached.
pub(super) fn slots(key: &FileKey) -> Option<u64> {
    if key.block_bytes == 0 || key.block_bytes > BLOCK_BYTES_MAX || key.size_bytes == 0 || key.size_bytes > i64::MAX as u64 {
        return None;
    }
    let slots = key.size_bytes.div_ceil(u64::from(key.block_bytes));
    (slots < SLOTS_MAX).then_some(slots)
}

/// Length of a block.
pub(super) fn slot_bytes(key: &FileKey, slot: u64) -> u64 {
    let block_bytes = u64::from(key.block_bytes);
    key.size_bytes.saturating_sub(slot * block_bytes).min(block_bytes)
}

/// The number of a block that stands where blocks of its file stand.
pub(super) fn slot_of(place: &BlockPlace) -> Option<u64> {
    let slots = slots(&place.file)?;
    let block_bytes = u64::from(place.file.block_bytes);
    let slot = place.offset / block_bytes;
    let fits = place.offset.is_multiple_of(block_bytes) && slot < slots;
    (fits && slot_bytes(&place.file, slot) == u64::from(place.plain_bytes)).then_some(slot)
}

pub(super) fn record_at(slot: u64) -> u64 {
    HEADER_BYTES + slot * RECORD_BYTES
}

pub(super) fn encode_header(key: &FileKey) -> [u8; HEADER_BYTES as usize] {
    let mut out = [0; HEADER_BYTES as usize];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&key.block_bytes.to_le_bytes());
    out[16..24].copy_from_slice(&key.size_bytes.to_le_bytes());
    out[24..56].copy_from_slice(&key.content.0);
    let sum: [u8; 16] = first(blake3::hash(&out[..56]));
    out[56..72].copy_from_slice(&sum);
    out
}

pub(super) fn decode_header(bytes: &[u8]) -> Option<FileKey> {
    let sum: [u8; 16] = first(blake3::hash(bytes.get(..56)?));
    if bytes.get(56..72)? != sum || bytes[..8] != *MAGIC || bytes[8..12] != VERSION.to_le_bytes() {
        return None;
    }
    let key = FileKey {
        block_bytes: u32::from_le_bytes(bytes[12..16].try_into().ok()?),
        size_bytes: u64::from_le_bytes(bytes[16..24].try_into().ok()?),
        content: BlockId(bytes[24..56].try_into().ok()?),
    };
    slots(&key).map(|_| key)
}

/// What the map says of a block that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) id: BlockId,
    pub(super) check: [u8; 16],
    pub(super) boot: Boot,
}

impl Record {
    fn sum(name: &Name, slot: u64, body: &[u8]) -> [u8; 8] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&name.0).update(&slot.to_le_bytes()).update(body);
        first(hasher.finalize())
    }

    pub(super) fn encode(&self, name: &Name, slot: u64) -> [u8; RECORD_BYTES as usize] {
        let mut out = [0; RECORD_BYTES as usize];
        out[..32].copy_from_slice(&self.id.0);
        out[32..48].copy_from_slice(&self.check);
        out[48..56].copy_from_slice(&self.boot);
        let sum = Self::sum(name, slot, &out[..56]);
        out[56..].copy_from_slice(&sum);
        out
    }

    pub(super) fn decode(name: &Name, slot: u64, bytes: &[u8]) -> Option<Self> {
        // Most of what is no record is a hole.
        if bytes.get(56..64)? == [0; 8] || bytes[56..64] != Self::sum(name, slot, &bytes[..56]) {
            return None;
        }
        Some(Self {
            id: BlockId(bytes[..32].try_into().ok()?),
            check: bytes[32..48].try_into().ok()?,
            boot: bytes[48..56].try_into().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> FileKey {
        FileKey { content: BlockId([7; 32]), size_bytes: 2500, block_bytes: 1000 }
    }

    #[test]
    fn headers_and_records_read_back_in_their_place_only() {
        assert_eq!(decode_header(&encode_header(&key())), Some(key()));
        let name = Name::of(&key());
        let record = Record { id: BlockId([1; 32]), check: check_of(b"x"), boot: boot_of("b") };
        let bytes = record.encode(&name, 5);
        assert_eq!(Record::decode(&name, 5, &bytes), Some(record));
        assert_eq!(Record::decode(&name, 6, &bytes), None);
        assert_eq!(Record::decode(&Name([0; 16]), 5, &bytes), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes;
            damaged[at] ^= 1;
            assert_eq!(Record::decode(&name, 5, &damaged), None, "{at}");
        }
        assert_eq!(Record::decode(&name, 5, &[0; 64]), None);
        assert_eq!(Record::decode(&name, 5, &[]), None);
    }

    #[test]
    fn names_read_back_in_one_spelling() {
        let name = Name::of(&key());
        assert_eq!(Name::parse(&name.to_string()), Some(name));
        for text in ["", "7", "+0000000000000000000000000000001", &"A".repeat(32), &"0".repeat(33)] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_blocks_that_stand_in_line_have_a_number() {
        let place = |offset, plain_bytes| BlockPlace { file: key(), offset, id: BlockId([0; 32]), plain_bytes };
        assert_eq!(slot_of(&place(2000, 500)), Some(2));
        for (offset, bytes) in [(0, 999), (1, 1000), (2000, 1000), (3000, 0), (u64::MAX, 1)] {
            assert_eq!(slot_of(&place(offset, bytes)), None, "{offset}");
        }
        assert_eq!(slots(&FileKey { size_bytes: 0, ..key() }), None);
        assert_eq!(slots(&FileKey { block_bytes: 0, ..key() }), None);
    }
}
