//! RDB dumps: structure, checksum and key counts, while the bytes pass.
//!
//! [`RdbChecker`] is fed pieces of any size and keeps nothing but a few bytes: what a value holds is skipped, not
//! copied. The format of every value is a row of [`Element`]s, and a small fixed stack of loops walks over them, so
//! that neither a nested nor an absurdly long value costs memory.
//!
//! **Invariants**: no length is believed before its bytes came; every byte up to the end marker is in the checksum;
//! nothing may follow the checksum.
//!
//! **Not here**: the inner structure of listpacks, ziplists and compressed strings, which the checksum covers.

use super::checksum::{crc64, hash_slot};
use super::lzf;
use super::rdb_layout::Element::{self, Loop, Module, Number, Score, Skip, Text};
use super::rdb_layout::{TEXT, layout};

/// Longest key whose slot is computed. A longer one is counted as unplaced, not as misplaced.
const KEY_BYTES_MAX: usize = 64 * 1024;
/// Longest AUX name or value that is kept; the known ones are under 50 bytes.
const AUX_BYTES_MAX: usize = 256;
/// Loops that stand inside one another: stream groups, their consumers, their pending entries, and one to spare.
const DEPTH_MAX: usize = 4;
/// The first version that ends in a checksum.
const CHECKSUM_SINCE: u32 = 5;

/// What a sound dump holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RdbFacts {
    /// `REDIS` or `VALKEY`.
    pub magic: String,
    /// Version of the format, such as 10 for Redis 7.0.
    pub version: u32,
    /// All keys, those past their expiry included.
    pub keys: u64,
    /// Keys whose expiry lay before the `now_ms` that the checker was made with.
    pub expired: u64,
    /// Keys that have an expiry.
    pub volatile: u64,
    /// Keys outside the slots that the checker was made with; 0 when it was made without.
    pub misplaced: u64,
    /// Keys that are too long to compute their slot.
    pub unplaced: u64,
    /// AUX `redis-ver` or `valkey-ver`.
    pub store_version: Option<String>,
    /// AUX `ctime`: seconds since 1970 at the fork.
    pub created_s: Option<u64>,
    /// AUX `repl-id`; only where the server had a backlog.
    pub replication_id: Option<String>,
    /// AUX `repl-offset`; only where the server had a backlog.
    pub replication_offset: Option<u64>,
    /// Whether the dump carried a checksum: servers with `rdbchecksum no` write zeros.
    pub checksummed: bool,
    /// Length of the dump.
    pub length_bytes: u64,
}

/// Why a dump is not sound, or cannot be judged. `offset` counts from the start of the dump.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RdbError {
    /// The bytes cannot have been written by a server, or were changed since.
    #[error("at byte {offset}: {reason}")]
    Corrupt {
        /// Where.
        offset: u64,
        /// What.
        reason: String,
    },
    /// The bytes ended before the dump did.
    #[error("it ends at byte {offset}, before the end of the dump")]
    Truncated {
        /// Where.
        offset: u64,
    },
    /// A type or opcode of a store newer than this program: it cannot be checked, which does not make it bad.
    #[error("at byte {offset}: {what} is not known to this version, so that the dump cannot be checked")]
    Unknown {
        /// Where.
        offset: u64,
        /// Which.
        what: String,
    },
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    elements: &'static [Element],
    at: usize,
    left: u64,
}

const NO_FRAME: Frame = Frame { elements: &[], at: 0, left: 0 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Magic,
    Version(usize),
    Opcode,
    /// The seconds or milliseconds of an expiry.
    Expiry {
        width: usize,
    },
    /// The key of a value of this type.
    Key {
        kind: u8,
    },
    AuxName,
    AuxValue,
    /// The elements on the stack.
    Value,
    ModuleOpcode,
    ModuleNumber,
    ModuleText,
    Checksum,
    Done,
}

/// Where the string that is passing stands.
#[derive(Debug, Clone, Copy)]
enum TextStep {
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
enum TextForm {
    Plain,
    /// A little-endian number, whose digits are the text.
    Integer,
    /// Compressed; this long when unpacked.
    Packed(u64),
}

/// A length, or the encoding that stands in its place.
enum Length {
    Plain(u64),
    Encoded(u8),
}

/// Why `run` stopped; the offset is added where it is known.
enum Fault {
    Corrupt(String),
    Unknown(String),
}

/// The piece that is being read.
struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
    /// Up to here the checksum has seen it.
    summed: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    fn rest(&self) -> &'a [u8] {
        &self.input[self.at..]
    }
}

/// Checks one dump that is fed to it piece by piece.
#[derive(Debug)]
pub struct RdbChecker {
    facts: RdbFacts,
    now_ms: u64,
    slots: Option<Vec<(u16, u16)>>,
    step: Step,
    text: TextStep,
    /// Bytes of a small item that came in two pieces.
    token: [u8; 16],
    token_bytes: usize,
    skip: u64,
    stack: [Frame; DEPTH_MAX],
    depth: usize,
    expiry_ms: Option<u64>,
    kept: Vec<u8>,
    keep: usize,
    kept_all: bool,
    aux_name: Vec<u8>,
    crc: u64,
    offset: u64,
    failed: Option<RdbError>,
}

impl RdbChecker {
    /// A checker that has seen nothing. `now_ms` (since 1970) decides which keys count as expired.
    pub fn new(now_ms: u64) -> Self {
        Self {
            facts: RdbFacts::default(),
            now_ms,
            slots: None,
            step: Step::Magic,
            text: TextStep::Header,
            token: [0; 16],
            token_bytes: 0,
            skip: 0,
            stack: [NO_FRAME; DEPTH_MAX],
            depth: 0,
            expiry_ms: None,
            kept: Vec::new(),
            keep: 0,
            kept_all: true,
            aux_name: Vec::new(),
            crc: 0,
            offset: 0,
            failed: None,
        }
    }

    /// Also counts the keys outside these inclusive ranges of hash slots. It costs a copy and a CRC16 of every key.
    pub fn with_slots(mut self, slots: Vec<(u16, u16)>) -> Self {
        self.slots = Some(slots);
        self
    }

    /// The next piece of the dump, of any size. An error is final, and repeated by every later call.
    pub fn feed(&mut self, input: &[u8]) -> Result<(), RdbError> {
        let taken = self.feed_prefix(input)?;
        if taken < input.len() {
            return self.fail(RdbError::Corrupt { offset: self.offset, reason: "bytes follow the end of the dump".to_owned() });
        }
        Ok(())
    }

    /// Like [`Self::feed`], but stops at the end of the dump and says how much of `input` belonged to it.
    pub fn feed_prefix(&mut self, input: &[u8]) -> Result<usize, RdbError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut cursor = Cursor { input, at: 0, summed: 0 };
        let outcome = self.run(&mut cursor);
        if !matches!(self.step, Step::Checksum | Step::Done) {
            self.sum(&mut cursor);
        }
        self.offset += cursor.at as u64;
        match outcome {
            Ok(()) => Ok(cursor.at),
            Err(Fault::Corrupt(reason)) => self.fail(RdbError::Corrupt { offset: self.offset, reason }),
            Err(Fault::Unknown(what)) => self.fail(RdbError::Unknown { offset: self.offset, what }),
        }
    }

    /// Whether the whole dump has passed.
    pub fn is_complete(&self) -> bool {
        self.step == Step::Done && self.failed.is_none()
    }

    /// To be called at the end of the bytes: what the dump holds, or why it is not sound.
    pub fn finish(self) -> Result<RdbFacts, RdbError> {
        match self.failed {
            Some(error) => Err(error),
            None if self.step == Step::Done => Ok(RdbFacts { length_bytes: self.offset, ..self.facts }),
            None => Err(RdbError::Truncated { offset: self.offset }),
        }
    }

    fn fail<T>(&mut self, error: RdbError) -> Result<T, RdbError> {
        self.failed = Some(error.clone());
        Err(error)
    }

    fn sum(&mut self, cursor: &mut Cursor<'_>) {
        self.crc = crc64(self.crc, &cursor.input[cursor.summed..cursor.at]);
        cursor.summed = cursor.at;
    }

    /// Goes on until the input or the dump is at its end.
    fn run(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        loop {
            if self.skip > 0 {
                let step = (cursor.rest().len() as u64).min(self.skip);
                cursor.at += step as usize;
                self.skip -= step;
                if self.skip > 0 {
                    return Ok(());
                }
            }
            let went_on = match self.step {
                Step::Magic => self.magic(cursor)?,
                Step::Version(digits) => self.version(cursor, digits)?,
                Step::Opcode => self.opcode(cursor)?,
                Step::Expiry { width } => self.expiry(cursor, width),
                Step::Key { kind } => self.key(cursor, kind)?,
                Step::AuxName | Step::AuxValue => self.aux(cursor)?,
                Step::Value => self.element(cursor)?,
                Step::ModuleOpcode => self.module_opcode(cursor)?,
                Step::ModuleNumber => self.number(cursor)?.is_some_and(|_| self.go(Step::ModuleOpcode)),
                Step::ModuleText => self.text(cursor)? && self.go(Step::ModuleOpcode),
                Step::Checksum => self.checksum(cursor)?,
                Step::Done => return Ok(()),
            };
            if !went_on {
                return Ok(());
            }
        }
    }

    fn go(&mut self, step: Step) -> bool {
        self.step = step;
        true
    }

    /// Exactly `count` (at most 16) bytes, or nothing before they have come.
    #[inline]
    fn take(&mut self, cursor: &mut Cursor<'_>, count: usize) -> Option<[u8; 16]> {
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
    fn peek(&self, cursor: &Cursor<'_>) -> Option<u8> {
        if self.token_bytes > 0 { Some(self.token[0]) } else { cursor.rest().first().copied() }
    }

    fn magic(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Fault> {
        let Some(first) = self.peek(cursor) else { return Ok(false) };
        let (magic, digits) = if first == b'V' { ("VALKEY", 3) } else { ("REDIS", 4) };
        let Some(bytes) = self.take(cursor, magic.len()) else { return Ok(false) };
        if &bytes[..magic.len()] != magic.as_bytes() {
            return Err(Fault::Corrupt("it does not start with REDIS or VALKEY".to_owned()));
        }
        self.facts.magic = magic.to_owned();
        Ok(self.go(Step::Version(digits)))
    }

    fn version(&mut self, cursor: &mut Cursor<'_>, digits: usize) -> Result<bool, Fault> {
        let Some(bytes) = self.take(cursor, digits) else { return Ok(false) };
        for digit in &bytes[..digits] {
            if !digit.is_ascii_digit() {
                return Err(Fault::Corrupt("the version is not a number".to_owned()));
            }
            self.facts.version = self.facts.version * 10 + u32::from(digit - b'0');
        }
        if self.facts.version == 0 {
            return Err(Fault::Corrupt("the version is 0".to_owned()));
        }
        Ok(self.go(Step::Opcode))
    }

    fn opcode(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Fault> {
        let Some(bytes) = self.take(cursor, 1) else { return Ok(false) };
        let valkey = self.facts.magic == "VALKEY";
        Ok(match bytes[0] {
            0xff => {
                if self.expiry_ms.is_some() {
                    return Err(Fault::Corrupt("an expiry without a key".to_owned()));
                }
                self.sum(cursor);
                self.go(if self.facts.version >= CHECKSUM_SINCE { Step::Checksum } else { Step::Done })
            }
            0xfe => self.walk(&[Number]),
            0xfd => self.go(Step::Expiry { width: 4 }),
            0xfc => self.go(Step::Expiry { width: 8 }),
            0xfb => self.walk(&[Number, Number]),
            0xfa => {
                self.keep_next(AUX_BYTES_MAX);
                self.go(Step::AuxName)
            }
            0xf9 => self.walk(&[Skip(1)]),
            0xf8 => self.walk(&[Number]),
            0xf7 => self.walk(&[Number, Module]),
            0xf5 => self.walk(TEXT),
            0xf4 => self.walk(&[Number, Number, Number]),
            kind if layout(kind, valkey).is_some() => {
                self.keep_next(if self.slots.is_some() { KEY_BYTES_MAX } else { 0 });
                self.go(Step::Key { kind })
            }
            opcode if opcode >= 0xf0 => return Err(Fault::Unknown(format!("opcode {opcode}"))),
            kind => return Err(Fault::Unknown(format!("value type {kind}"))),
        })
    }

    fn expiry(&mut self, cursor: &mut Cursor<'_>, width: usize) -> bool {
        let Some(bytes) = self.take(cursor, width) else { return false };
        let mut number = [0; 8];
        number[..width].copy_from_slice(&bytes[..width]);
        let number = u64::from_le_bytes(number);
        self.expiry_ms = Some(if width == 4 { number * 1000 } else { number });
        self.go(Step::Opcode)
    }

    fn key(&mut self, cursor: &mut Cursor<'_>, kind: u8) -> Result<bool, Fault> {
        if !self.text(cursor)? {
            return Ok(false);
        }
        self.facts.keys += 1;
        if let Some(expiry_ms) = self.expiry_ms.take() {
            self.facts.volatile += 1;
            self.facts.expired += u64::from(expiry_ms < self.now_ms);
        }
        if let Some(slots) = &self.slots {
            if self.kept_all {
                let slot = hash_slot(&self.kept);
                let placed = slots.iter().any(|(first, last)| (*first..=*last).contains(&slot));
                self.facts.misplaced += u64::from(!placed);
            } else {
                self.facts.unplaced += 1;
            }
        }
        self.keep = 0;
        let elements = layout(kind, self.facts.magic == "VALKEY").unwrap_or(TEXT);
        Ok(self.walk(elements))
    }

    fn aux(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Fault> {
        if !self.text(cursor)? {
            return Ok(false);
        }
        if self.step == Step::AuxName {
            self.aux_name = std::mem::take(&mut self.kept);
            self.keep_next(AUX_BYTES_MAX);
            return Ok(self.go(Step::AuxValue));
        }
        let value = String::from_utf8_lossy(&self.kept).into_owned();
        match self.aux_name.as_slice() {
            b"redis-ver" | b"valkey-ver" => self.facts.store_version = Some(value),
            b"ctime" => self.facts.created_s = value.parse().ok(),
            b"repl-id" => self.facts.replication_id = Some(value),
            b"repl-offset" => self.facts.replication_offset = value.parse().ok(),
            _ => {}
        }
        self.keep = 0;
        Ok(self.go(Step::Opcode))
    }

    fn walk(&mut self, elements: &'static [Element]) -> bool {
        self.stack[0] = Frame { elements, at: 0, left: 1 };
        self.depth = 1;
        self.go(Step::Value)
    }

    /// The next element of the innermost loop.
    fn element(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Fault> {
        let Some(top) = self.depth.checked_sub(1) else { return Ok(self.go(Step::Opcode)) };
        let frame = self.stack[top];
        let Some(element) = frame.elements.get(frame.at) else {
            self.stack[top].at = 0;
            self.stack[top].left -= 1;
            if self.stack[top].left == 0 {
                self.depth -= 1;
            }
            return Ok(true);
        };
        match element {
            Text => {
                if !self.text(cursor)? {
                    return Ok(false);
                }
            }
            Number => {
                if self.number(cursor)?.is_none() {
                    return Ok(false);
                }
            }
            Skip(count) => self.skip = *count,
            Score => {
                let Some(bytes) = self.take(cursor, 1) else { return Ok(false) };
                // 253 to 255 stand for not-a-number and the infinities.
                self.skip = if bytes[0] >= 253 { 0 } else { u64::from(bytes[0]) };
            }
            Loop(elements) => {
                let Some(left) = self.number(cursor)? else { return Ok(false) };
                if left > 0 {
                    assert!(self.depth < DEPTH_MAX, "the layouts above nest less deep");
                    self.stack[self.depth] = Frame { elements, at: 0, left };
                    self.depth += 1;
                }
            }
            // Nothing follows a module's part, so that the stack may be forgotten.
            Module => return Ok(self.go(Step::ModuleOpcode)),
        }
        self.stack[top].at += 1;
        Ok(true)
    }

    fn module_opcode(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Fault> {
        let Some(opcode) = self.number(cursor)? else { return Ok(false) };
        match opcode {
            0 => return Ok(self.go(Step::Opcode)),
            1 | 2 => return Ok(self.go(Step::ModuleNumber)),
            3 => self.skip = 4,
            4 => self.skip = 8,
            5 => return Ok(self.go(Step::ModuleText)),
            other => return Err(Fault::Unknown(format!("module opcode {other}"))),
        }
        Ok(true)
    }

    /// A number; where a string's encoding stands instead, the dump is corrupt.
    fn number(&mut self, cursor: &mut Cursor<'_>) -> Result<Option<u64>, Fault> {
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

    fn keep_next(&mut self, keep: usize) {
        self.kept.clear();
        self.keep = keep;
        self.kept_all = true;
    }

    /// Passes over a string, keeping it where `keep_next` asked for it; true at its end.
    fn text(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Fault> {
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

    fn checksum(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Fault> {
        let Some(bytes) = self.take(cursor, 8) else { return Ok(false) };
        let mut stored = [0; 8];
        stored.copy_from_slice(&bytes[..8]);
        let stored = u64::from_le_bytes(stored);
        if stored != 0 && stored != self.crc {
            return Err(Fault::Corrupt(format!("the checksum is {:016x}, and {stored:016x} was written", self.crc)));
        }
        self.facts.checksummed = stored != 0;
        Ok(self.go(Step::Done))
    }
}

#[cfg(test)]
#[path = "rdb_tests.rs"]
mod tests;
