//! How the values of an RDB are laid out, one row per type.
//!
//! Sources: `rdb.h` and `rdb.c` of Redis 5 to 7.4 and Valkey 8 and 9.

/// One part of a value, as it is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Element {
    /// A string in any encoding.
    Text,
    /// A length-encoded number.
    Number,
    /// So many bytes.
    Skip(u64),
    /// A score of old: a length byte and so many digits.
    Score,
    /// A count, and so many times the elements.
    Loop(&'static [Element]),
    /// What a module wrote, up to its end opcode.
    Module,
}

use Element::{Loop, Module, Number, Score, Skip, Text};

pub(super) const TEXT: &[Element] = &[Text];
const STREAM_PENDING: Element = Loop(&[Skip(16), Skip(8), Number]);
const STREAM_CONSUMER: Element = Loop(&[Text, Skip(8), Loop(&[Skip(16)])]);
const STREAM_CONSUMER_ACTIVE: Element = Loop(&[Text, Skip(16), Loop(&[Skip(16)])]);

/// The layout of a value of this type, or nothing where it is not known.
pub(super) fn layout(kind: u8, valkey: bool) -> Option<&'static [Element]> {
    Some(match kind {
        // Strings, and everything that is one string of packed bytes.
        0 | 9..=13 | 16 | 17 | 20 => TEXT,
        1 | 2 | 14 => &[Loop(TEXT)],
        3 => &[Loop(&[Text, Score])],
        4 => &[Loop(&[Text, Text])],
        5 => &[Loop(&[Text, Skip(8)])],
        7 => &[Number, Module],
        15 => &[Loop(&[Text, Text]), Number, Number, Number, Loop(&[Text, Number, Number, STREAM_PENDING, STREAM_CONSUMER])],
        18 => &[Loop(&[Number, Text])],
        19 => &[
            Loop(&[Text, Text]),
            Number,
            Number,
            Number,
            Number,
            Number,
            Number,
            Number,
            Number,
            Loop(&[Text, Number, Number, Number, STREAM_PENDING, STREAM_CONSUMER]),
        ],
        21 => &[
            Loop(&[Text, Text]),
            Number,
            Number,
            Number,
            Number,
            Number,
            Number,
            Number,
            Number,
            Loop(&[Text, Number, Number, Number, STREAM_PENDING, STREAM_CONSUMER_ACTIVE]),
        ],
        // The two families part here: Valkey 9 writes field, value, expiry.
        22 if valkey => &[Loop(&[Text, Text, Skip(8)])],
        22 if !valkey => &[Loop(&[Number, Text, Text])],
        23 if !valkey => TEXT,
        24 if !valkey => &[Skip(8), Loop(&[Number, Text, Text])],
        25 if !valkey => &[Skip(8), Text],
        _ => return None,
    })
}
