//! Identities: of repositories, snapshots, blocks, packs and data keys.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
pub use uuid::Uuid;

/// Identity of a repository, drawn once at `init`.
pub type RepositoryId = Uuid;
/// Identity of a snapshot (and of the run that made it).
pub type SnapshotId = Uuid;

/// Name of a block or page: keyed BLAKE3 of its plain bytes, see FORMAT.md.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub [u8; 32]);

/// Name of a pack: a version 7 UUID, so that packs sort by the time of their making.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackId(pub [u8; 16]);

/// Name of a data key; the key itself is derived from it, see FORMAT.md.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataKeyId(pub [u8; 16]);

/// Text is not the hexadecimal form of an id of the right length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id of {expected} hexadecimal digits")]
pub struct NotAnId {
    expected: usize,
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], NotAnId> {
    let wrong = NotAnId { expected: N * 2 };
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return Err(wrong);
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut out = [0u8; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        match (value(pair[0]), value(pair[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return Err(wrong),
        }
    }
    Ok(out)
}

macro_rules! hexadecimal {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = NotAnId;
            /// Lower-case hexadecimal digits, nothing else.
            fn from_str(text: &str) -> Result<Self, NotAnId> {
                parse_hex(text).map(Self)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hexadecimal!(BlockId);
hexadecimal!(PackId);
hexadecimal!(DataKeyId);

impl PackId {
    /// A new name; later calls give greater ones while the wall clock does not go back.
    pub fn new() -> Self {
        Self(Uuid::now_v7().into_bytes())
    }
}

impl Default for PackId {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_forms_read_back() {
        let id = BlockId([0xa7; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn upper_case_and_wrong_lengths_are_refused() {
        for text in ["", "A7", "a7", &"g".repeat(32), &"A".repeat(32)] {
            assert!(text.parse::<PackId>().is_err(), "{text:?}");
        }
    }
}
