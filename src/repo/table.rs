//! Table pages: extents and literals in binary (FORMAT.md section 7).

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::extent::{Extent, LITERAL_BYTES_MAX, PackRef, Segment};
use crate::model::ids::{BlockId, PackId};
use crate::model::names::NodeName;

const TAG_BLOCK: u8 = 1;
const TAG_LITERAL: u8 = 2;

/// Records of a table page as bytes.
pub fn encode(segments: &[Segment]) -> Vec<u8> {
    let mut packs: Vec<&Arc<PackRef>> = Vec::new();
    let mut numbers: HashMap<&PackRef, u32> = HashMap::new();
    let mut records = Vec::with_capacity(segments.len() * 49);
    for segment in segments {
        match segment {
            Segment::Block(extent) => {
                let number = *numbers.entry(&extent.pack).or_insert_with(|| {
                    packs.push(&extent.pack);
                    count(packs.len() - 1)
                });
                records.push(TAG_BLOCK);
                records.extend_from_slice(&extent.id.0);
                for value in [number, extent.offset, extent.stored_bytes, extent.plain_bytes] {
                    records.extend_from_slice(&value.to_le_bytes());
                }
            }
            Segment::Literal(bytes) => {
                records.push(TAG_LITERAL);
                let length = u16::try_from(bytes.len()).expect("literals are at most 512 bytes");
                records.extend_from_slice(&length.to_le_bytes());
                records.extend_from_slice(bytes);
            }
        }
    }
    let mut page = count(packs.len()).to_le_bytes().to_vec();
    for pack in packs {
        page.push(u8::try_from(pack.node.as_str().len()).expect("names are at most 128 bytes"));
        page.extend_from_slice(pack.node.as_str().as_bytes());
        page.extend_from_slice(&pack.pack.0);
    }
    page.extend_from_slice(&count(segments.len()).to_le_bytes());
    page.extend_from_slice(&records);
    page
}

fn count(number: usize) -> u32 {
    u32::try_from(number).expect("a page is at most 8 MiB")
}

/// The records of a table page, or what is wrong with it.
pub fn decode(page: &[u8]) -> Result<Vec<Segment>, &'static str> {
    let mut rest = page;
    let pack_count = take_u32(&mut rest)?;
    // Nothing is reserved by what the page says: it grows with the bytes that are really there.
    let mut packs = Vec::new();
    for _ in 0..pack_count {
        let [length] = take::<1>(&mut rest)?;
        let name = take_slice(&mut rest, usize::from(length))?;
        let node =
            std::str::from_utf8(name).ok().and_then(|name| NodeName::new(name).ok()).ok_or("a node name is not allowed")?;
        packs.push(Arc::new(PackRef { node, pack: PackId(take::<16>(&mut rest)?) }));
    }
    let record_count = take_u32(&mut rest)?;
    let mut segments = Vec::new();
    for _ in 0..record_count {
        let [tag] = take::<1>(&mut rest)?;
        segments.push(match tag {
            TAG_BLOCK => {
                let id = BlockId(take::<32>(&mut rest)?);
                let number = take_u32(&mut rest)?;
                let pack = packs.get(number as usize).ok_or("a record names a pack that is not listed")?.clone();
                let (offset, stored_bytes, plain_bytes) = (take_u32(&mut rest)?, take_u32(&mut rest)?, take_u32(&mut rest)?);
                let extent = Extent { id, pack, offset, stored_bytes, plain_bytes };
                match extent.fault() {
                    None => Segment::Block(extent),
                    Some(fault) => return Err(fault),
                }
            }
            TAG_LITERAL => {
                let length = usize::from(u16::from_le_bytes(take::<2>(&mut rest)?));
                if length > LITERAL_BYTES_MAX {
                    return Err("a literal is longer than 512 bytes");
                }
                Segment::Literal(take_slice(&mut rest, length)?.to_vec())
            }
            3 | 4 => return Err("it uses slices or overrides, which this program does not read"),
            _ => return Err("a record has an unknown tag"),
        });
    }
    if rest.is_empty() { Ok(segments) } else { Err("there are bytes behind the last record") }
}

fn take_slice<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], &'static str> {
    let (head, tail) = rest.split_at_checked(length).ok_or("it ends in the middle")?;
    *rest = tail;
    Ok(head)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], &'static str> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or("it ends in the middle")?;
    *rest = tail;
    Ok(*head)
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, &'static str> {
    take::<4>(rest).map(u32::from_le_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn extent(node: &str, pack: u8, offset: u32) -> Extent {
        let pack = Arc::new(PackRef { node: NodeName::new(node).expect("legal"), pack: PackId([pack; 16]) });
        Extent { id: BlockId([pack.pack.0[0] ^ 0x5a; 32]), pack, offset, stored_bytes: 100, plain_bytes: 1000 }
    }

    fn segment() -> impl Strategy<Value = Segment> {
        prop_oneof![
            (0u8..4, 0u32..1000).prop_map(|(pack, offset)| Segment::Block(extent("node-1", pack, offset))),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Segment::Literal),
        ]
    }

    proptest! {
        #[test]
        fn tables_read_back(segments in proptest::collection::vec(segment(), 0..50)) {
            prop_assert_eq!(decode(&encode(&segments)), Ok(segments));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _outcome = decode(&bytes);
        }
    }

    #[test]
    fn a_cut_table_is_refused_at_every_length() {
        let page =
            encode(&[Segment::Block(extent("a", 1, 8)), Segment::Literal(b"xyz".to_vec()), Segment::Block(extent("b", 2, 9))]);
        for length in 0..page.len() {
            assert!(decode(&page[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn absurd_counts_and_sizes_are_refused_without_allocating() {
        assert!(decode(&[0xff; 4]).is_err());
        assert!(decode(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).is_err());
        let mut large = extent("a", 1, 8);
        large.plain_bytes = u32::MAX;
        assert!(decode(&encode(&[Segment::Block(large)])).is_err());
        let mut outside = extent("a", 1, u32::MAX);
        outside.stored_bytes = u32::MAX;
        assert!(decode(&encode(&[Segment::Block(outside)])).is_err());
    }
}
