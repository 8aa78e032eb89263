//! RDB dumps: structure, checksum and key counts, while the bytes pass.
//!
//! [`RdbChecker`] is fed pieces of any size and keeps nothing but a few bytes: what a value holds is skipped, not
//! copied. The format of every value is a row of elements, and a small fixed stack of loops walks over them, so
//! that neither a nested nor an absurdly long value costs memory.
//!
//! **Invariants**: no length is believed before its bytes came; every byte up to the end marker is in the checksum;
//! nothing may follow the checksum.
//!
//! **Not here**: the inner structure of listpacks, ziplists and compressed strings, which the checksum covers.

use super::checksum::{crc64, hash_slot};
use super::rdb_layout::Element::{self, Loop, Module, Number, Score, Skip, Text};
use super::rdb_layout::{TEXT, layout};
use super::rdb_token::{Cursor, Fault, TextStep};

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

/// Checks one dump that is fed to it piece by piece.
#[derive(Debug)]
pub struct RdbChecker {
    facts: RdbFacts,
    now_ms: u64,
    slots: Option<Vec<(u16, u16)>>,
    step: Step,
    pub(super) text: TextStep,
    /// Bytes of a small item that came in two pieces.
    pub(super) token: [u8; 16],
    pub(super) token_bytes: usize,
    skip: u64,
    stack: [Frame; DEPTH_MAX],
    depth: usize,
    expiry_ms: Option<u64>,
    pub(super) kept: Vec<u8>,
    pub(super) keep: usize,
    pub(super) kept_all: bool,
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
