//! The small parts of an RDB: bytes, lengths, numbers and strings, each of which may come in several pieces.

use super::lzf;
use super::rdb::RdbChecker;

/// Where the string that is passing stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum TextStep {
    Header,
    PackedLength,
    UnpackedLength {
        packed: u64,
    },
    /// So many bytes are to come.
    Body {
        left: u64,
        form: TextForm,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) enum TextForm {
    Plain,
    /// A little-endian number, whose digits are the text.
    Integer,
    /// Compressed; this long when unpacked.
    Packed(u64),
}

/// A length, or the encoding that stands in its place.
pub(super) enum Length {
    Plain(u64),
    Encoded(u8),
}

/// Why `run` stopped; the offset is added where it is known.
pub(super) enum Fault {
    Corrupt(String),
    Unknown(String),
}

/// The piece that is being read.
pub(super) struct Cursor<'a> {
    pub(super) input: &'a [u8],
    pub(super) at: usize,
    /// Up to here the checksum has seen it.
    pub(super) summed: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.input[self.at..]
    }
}

impl RdbChecker {
    /// Exactly `count` (at most 16) bytes, or nothing before they have come.
    #[inline]
    pub(super) fn take(&mut self, cursor: &mut Cursor<'_>, count: usize) -> Option<[u8; 16]> {
        let more = (count - self.token_bytes).min(cursor.rest().len());
        self.token[self.token_bytes..self.token_bytes + more].copy_from_slice(&cursor.rest()[..more]);
        self.token_bytes += more;
        cursor.at += more;
        if self.token_bytes < count {
            return None;
        }
        self.token_bytes = 0;
        Some(self.token)
    }

    /// The first byte of what comes, which stays where it is.
    #[inline]
    pub(super) fn peek(&self, cursor: &Cursor<'_>) -> Option<u8> {
        if self.token_bytes > 0 { Some(self.token[0]) } else { cursor.rest().first().copied() }
    }

    /// A number; where a string's encoding stands instead, the dump is corrupt.
    pub(super) fn number(&mut self, cursor: &mut Cursor<'_>) -> Result<Option<u64>, Fault> {
        match self.length(cursor)? {
            Some(Length::Plain(number)) => Ok(Some(number)),
            Some(Length::Encoded(_)) => Err(Fault::Corrupt("a string where a number must stand".to_owned())),
            None => Ok(None),
        }
    }

    #[inline]
    fn length(&mut self, cursor: &mut Cursor<'_>) -> Result<Option<Length>, Fault> {
        let Some(first) = self.peek(cursor) else { return Ok(None) };
        let count = match first {
            0x00..=0x3f | 0xc0..=0xff => 1,
            0x40..=0x7f => 2,
            0x80 => 5,
            0x81 => 9,
            _ => return Err(Fault::Corrupt(format!("no length starts with {first:#04x}"))),
        };
        let Some(bytes) = self.take(cursor, count) else { return Ok(None) };
        Ok(Some(match count {
            1 if first >= 0xc0 => Length::Encoded(first & 0x3f),
            1 => Length::Plain(u64::from(first)),
            2 => Length::Plain(u64::from(u16::from_be_bytes([first & 0x3f, bytes[1]]))),
            5 => Length::Plain(u64::from(u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]))),
            _ => Length::Plain(u64::from_be_bytes([
                bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7], bytes[8],
            ])),
        }))
    }

    pub(super) fn keep_next(&mut self, keep: usize) {
        self.kept.clear();
        self.keep = keep;
        self.kept_all = true;
    }

    /// Passes over a string, keeping it where `keep_next` asked for it; true at its end.
    pub(super) fn text(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Fault> {
        loop {
            self.text = match self.text {
                TextStep::Header => match self.length(cursor)? {
                    None => return Ok(false),
                    Some(Length::Plain(left)) => TextStep::Body { left, form: TextForm::Plain },
                    Some(Length::Encoded(form @ 0..=2)) => TextStep::Body { left: 1 << form, form: TextForm::Integer },
                    Some(Length::Encoded(3)) => TextStep::PackedLength,
                    Some(Length::Encoded(other)) => {
                        return Err(Fault::Corrupt(format!("a string in the unknown encoding {other}")));
                    }
                },
                TextStep::PackedLength => match self.number(cursor)? {
                    None => return Ok(false),
                    Some(packed) => TextStep::UnpackedLength { packed },
                },
                TextStep::UnpackedLength { packed } => match self.number(cursor)? {
                    None => return Ok(false),
                    Some(unpacked) => TextStep::Body { left: packed, form: TextForm::Packed(unpacked) },
                },
                TextStep::Body { left, form } => {
                    let piece = &cursor.rest()[..(cursor.rest().len() as u64).min(left) as usize];
                    if self.keep > 0 {
                        // The sum is the same for every piece of one string: it is kept whole or not at all.
                        self.kept_all &= self.kept.len() as u64 + left.min(u64::from(u32::MAX)) <= self.keep as u64;
                        if self.kept_all {
                            self.kept.extend_from_slice(piece);
                        }
                    }
                    cursor.at += piece.len();
                    let left = left - piece.len() as u64;
                    if left > 0 {
                        self.text = TextStep::Body { left, form };
                        return Ok(false);
                    }
                    self.text = TextStep::Header;
                    self.unpack(form)?;
                    return Ok(true);
                }
            };
        }
    }

    /// Turns the kept bytes of a string into its text.
    fn unpack(&mut self, form: TextForm) -> Result<(), Fault> {
        if self.keep == 0 || !self.kept_all {
            return Ok(());
        }
        match form {
            TextForm::Plain => {}
            TextForm::Integer => {
                let number = match self.kept.as_slice() {
                    [byte] => i32::from(i8::from_le_bytes([*byte])),
                    [a, b] => i32::from(i16::from_le_bytes([*a, *b])),
                    [a, b, c, d] => i32::from_le_bytes([*a, *b, *c, *d]),
                    _ => 0,
                };
                self.kept = number.to_string().into_bytes();
            }
            TextForm::Packed(unpacked) if unpacked > self.keep as u64 => self.kept_all = false,
            TextForm::Packed(unpacked) => {
                self.kept = lzf::unpack(&self.kept, unpacked as usize)
                    .ok_or_else(|| Fault::Corrupt("a compressed string cannot be unpacked".to_owned()))?;
            }
        }
        Ok(())
    }
}
