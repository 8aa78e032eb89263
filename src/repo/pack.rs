//! Packs: many sealed items in one object, with a sealed directory at the end (FORMAT.md section 5).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::RepoError;
use super::seal::{SealType, Sealer};
use crate::model::extent::{Extent, PACK_BYTES_MAX, PackRef};
use crate::model::ids::{BlockId, PackId};
use crate::model::names::NodeName;

const HEAD: &[u8; 8] = b"TINTYPE1";
const TAIL: &[u8; 8] = b"TTPACKv1";
/// Length of the sealed directory's length and the tail mark.
pub const TRAILER_BYTES: u64 = 12;
const ITEM_BYTES: usize = 1 + 32 + 12;
/// Seal, form and check around a directory: at most this much more than its plain bytes.
const SEAL_OVERHEAD: usize = 128;

/// One line of a pack's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackItem {
    /// Block, tree page or table page.
    pub kind: u8,
    /// Where it lies and what it is called.
    pub extent: Extent,
}

/// A pack being filled in memory.
#[derive(Debug)]
pub struct PackBuilder {
    pack: Arc<PackRef>,
    bytes: BytesMut,
    directory: Vec<u8>,
}

impl PackBuilder {
    /// An empty pack with a new name, filled into an empty buffer.
    pub fn new(node: NodeName, mut bytes: BytesMut) -> Self {
        bytes.extend_from_slice(HEAD);
        Self { pack: Arc::new(PackRef { node, pack: PackId::new() }), bytes, directory: Vec::new() }
    }

    /// Its name.
    pub fn pack(&self) -> &Arc<PackRef> {
        &self.pack
    }

    /// Nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.directory.is_empty()
    }

    /// Length of the finished pack if it were finished after one more item of `sealed_bytes`.
    pub fn length_with(&self, sealed_bytes: usize) -> usize {
        self.bytes.len() + sealed_bytes + self.directory.len() + ITEM_BYTES + SEAL_OVERHEAD + 12
    }

    /// The item fits below the limit of one pack.
    pub fn fits(&self, sealed_bytes: usize) -> bool {
        self.length_with(sealed_bytes) <= PACK_BYTES_MAX as usize
    }

    /// Appends a sealed item and says where it lies. The caller asked [`PackBuilder::fits`] first.
    pub fn add(&mut self, kind: SealType, id: BlockId, plain_bytes: u32, sealed: &[u8]) -> Extent {
        let number = |value: usize| u32::try_from(value).expect("a pack is at most 32 MiB");
        let extent = Extent {
            id,
            pack: self.pack.clone(),
            offset: number(self.bytes.len()),
            stored_bytes: number(sealed.len()),
            plain_bytes,
        };
        self.bytes.extend_from_slice(sealed);
        self.directory.push(kind as u8);
        self.directory.extend_from_slice(&id.0);
        for value in [extent.offset, extent.stored_bytes, extent.plain_bytes] {
            self.directory.extend_from_slice(&value.to_le_bytes());
        }
        extent
    }

    /// The whole object, to be put under `key`.
    pub fn finish(mut self, sealer: &Sealer, key: &str) -> Result<Bytes, RepoError> {
        let directory = sealer.seal(SealType::PackDirectory, key.as_bytes(), &self.directory, Some(1))?;
        let length = u32::try_from(directory.len()).expect("a directory is smaller than its pack");
        self.bytes.extend_from_slice(&directory);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(TAIL);
        Ok(self.bytes.freeze())
    }
}

/// Length of the sealed directory, from the last [`TRAILER_BYTES`] of a pack of `pack_bytes`.
pub fn directory_length(trailer: &[u8], pack_bytes: u64) -> Result<u32, &'static str> {
    let (length, tail) = trailer.split_first_chunk::<4>().ok_or("its trailer is too short")?;
    if tail != TAIL {
        return Err("it does not end like a pack");
    }
    let length = u32::from_le_bytes(*length);
    if u64::from(length) + TRAILER_BYTES + HEAD.len() as u64 > pack_bytes {
        return Err("its directory is longer than the pack");
    }
    Ok(length)
}

/// The items of a directory that was opened.
pub fn parse_directory(plain: &[u8], pack: &Arc<PackRef>) -> Result<Vec<PackItem>, &'static str> {
    let (lines, rest) = plain.as_chunks::<ITEM_BYTES>();
    if !rest.is_empty() {
        return Err("its directory ends in the middle of a line");
    }
    lines
        .iter()
        .map(|line| {
            let number = |at: usize| u32::from_le_bytes([line[at], line[at + 1], line[at + 2], line[at + 3]]);
            let mut id = [0u8; 32];
            id.copy_from_slice(&line[1..33]);
            let extent = Extent {
                id: BlockId(id),
                pack: pack.clone(),
                offset: number(33),
                stored_bytes: number(37),
                plain_bytes: number(41),
            };
            match extent.fault() {
                None => Ok(PackItem { kind: line[0], extent }),
                Some(fault) => Err(fault),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::RepositoryId;

    #[test]
    fn a_pack_tells_what_is_in_it() {
        let sealer = Sealer::new(RepositoryId::nil(), None, "prod");
        let mut pack = PackBuilder::new(NodeName::new("n").expect("legal"), BytesMut::new());
        let first = pack.add(SealType::Block, BlockId([1; 32]), 10, b"sealed one");
        let second = pack.add(SealType::TreePage, BlockId([2; 32]), 20, b"sealed two!");
        assert!(first.is_followed_by(&second));
        let reference = pack.pack().clone();
        let object = pack.finish(&sealer, "key").expect("finishes");

        let length = directory_length(&object[object.len() - 12..], object.len() as u64).expect("a trailer") as usize;
        let sealed = &object[object.len() - 12 - length..object.len() - 12];
        let plain = sealer.open(SealType::PackDirectory, b"key", sealed, 1000, None).expect("opens");
        let items = parse_directory(&plain, &reference).expect("parses");
        assert_eq!(items.iter().map(|item| (item.kind, &item.extent)).collect::<Vec<_>>(), [(2, &first), (3, &second)]);
        assert_eq!(&object[first.offset as usize..first.end() as usize], b"sealed one");
    }

    #[test]
    fn what_is_no_pack_is_refused() {
        assert!(directory_length(b"\x01\0\0\0TTPACKv2", 100).is_err());
        assert!(directory_length(b"\xff\0\0\0TTPACKv1", 100).is_err());
        assert!(directory_length(b"", 100).is_err());
    }
}
