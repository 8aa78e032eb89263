//! Append-only files: where commands end, and the manifest that names the files.
//!
//! An append-only file is an optional RDB preamble, then commands as RESP arrays, with annotation lines (`#TS:…`)
//! between them. [`AofScanner`] finds the longest prefix that ends at a command's end and not between `MULTI` and
//! `EXEC`: the only places where a file may be cut.
//!
//! **Invariants**: no length is believed before its bytes came; nothing is kept but the first argument of a command.

use super::rdb::{RdbChecker, RdbError};

/// Longest header line (`*3`, `$10`): a type, a number of up to 20 digits, a carriage return.
const HEADER_BYTES_MAX: usize = 24;
/// Longest annotation line that is passed over; `redis-server` reads at most 1024 bytes.
const ANNOTATION_BYTES_MAX: u64 = 1024;
/// Longest manifest file: some lines of at most 1 KiB; a thousand history files would still fit.
pub const MANIFEST_BYTES_MAX: usize = 1 << 20;

/// Why an append-only file is not sound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AofError {
    /// What stands there is no command.
    #[error("at byte {offset}: {reason}")]
    Corrupt {
        /// Where.
        offset: u64,
        /// What.
        reason: String,
    },
    /// The RDB preamble is not sound.
    #[error("in its preamble: {0}")]
    Preamble(#[from] RdbError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// At the start of the file: a preamble, or the first command.
    Start,
    Preamble,
    /// Between commands.
    Between,
    Annotation,
    /// The number of arguments.
    Count,
    /// The length of the next argument.
    Length,
    Argument {
        left: u64,
    },
    /// The line end behind an argument.
    LineEnd {
        left: u8,
    },
}

/// Finds where an append-only file may be cut, fed piece by piece.
#[derive(Debug)]
pub struct AofScanner {
    step: Step,
    preamble: Option<Box<RdbChecker>>,
    header: Vec<u8>,
    arguments_left: u64,
    is_first: bool,
    command: Vec<u8>,
    in_transaction: bool,
    annotation_bytes: u64,
    offset: u64,
    safe: u64,
    commands: u64,
    failed: Option<AofError>,
}

impl AofScanner {
    /// A scanner that has seen nothing. `now_ms` is for the expiries of a preamble, see [`RdbChecker::new`].
    pub fn new(now_ms: u64) -> Self {
        Self {
            step: Step::Start,
            preamble: Some(Box::new(RdbChecker::new(now_ms))),
            header: Vec::new(),
            arguments_left: 0,
            is_first: false,
            command: Vec::new(),
            in_transaction: false,
            annotation_bytes: 0,
            offset: 0,
            safe: 0,
            commands: 0,
            failed: None,
        }
    }

    /// The next piece, of any size. An error is final and repeated; what [`Self::safe_length`] said stays true.
    pub fn feed(&mut self, input: &[u8]) -> Result<(), AofError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut rest = input;
        while !rest.is_empty() {
            match self.step(rest) {
                Ok(taken) => {
                    self.offset += taken as u64;
                    rest = &rest[taken..];
                    if self.step == Step::Between && !self.in_transaction {
                        self.safe = self.offset;
                    }
                }
                Err(error) => {
                    self.failed = Some(error.clone());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The longest prefix, of what was fed, that ends behind a whole command and outside of a transaction.
    pub fn safe_length(&self) -> u64 {
        self.safe
    }

    /// Whole commands outside and inside of transactions so far.
    pub fn commands(&self) -> u64 {
        self.commands
    }

    /// How many bytes of `rest` (never empty) were used, at least one unless only the state changed.
    fn step(&mut self, rest: &[u8]) -> Result<usize, AofError> {
        match self.step {
            Step::Start => {
                self.step = if matches!(rest[0], b'R' | b'V') { Step::Preamble } else { Step::Between };
                Ok(0)
            }
            Step::Preamble => {
                let Some(checker) = self.preamble.as_mut() else { return self.corrupt("a second preamble") };
                let taken = checker.feed_prefix(rest)?;
                if checker.is_complete() {
                    self.preamble = None;
                    self.step = Step::Between;
                }
                Ok(taken)
            }
            Step::Between => {
                self.header.clear();
                self.step = match rest[0] {
                    b'*' => Step::Count,
                    b'#' => Step::Annotation,
                    other => return self.corrupt(&format!("a command starts with byte {other:#04x} instead of '*'")),
                };
                self.annotation_bytes = 0;
                // The sign itself belongs to the header line.
                Ok(0)
            }
            Step::Annotation => {
                let end = rest.iter().position(|byte| *byte == b'\n');
                let taken = end.map_or(rest.len(), |end| end + 1);
                self.annotation_bytes += taken as u64;
                if self.annotation_bytes > ANNOTATION_BYTES_MAX {
                    return self.corrupt("an annotation line of more than 1024 bytes");
                }
                if end.is_some() {
                    self.step = Step::Between;
                }
                Ok(taken)
            }
            Step::Count => self.number(rest, b'*').map(|(taken, count)| {
                if let Some(count) = count {
                    self.arguments_left = count;
                    self.is_first = true;
                    self.step = if count == 0 { Step::Between } else { Step::Length };
                }
                taken
            }),
            Step::Length => self.number(rest, b'$').map(|(taken, length)| {
                if let Some(left) = length {
                    self.command.clear();
                    self.step = Step::Argument { left };
                }
                taken
            }),
            Step::Argument { left: 0 } => {
                self.step = Step::LineEnd { left: 2 };
                Ok(0)
            }
            Step::Argument { left } => {
                let taken = (rest.len() as u64).min(left) as usize;
                // MULTI and EXEC are all that must be told apart.
                if self.is_first && self.command.len() + taken <= 5 {
                    self.command.extend_from_slice(&rest[..taken]);
                } else {
                    self.command.resize(6, 0);
                }
                self.step = Step::Argument { left: left - taken as u64 };
                Ok(taken)
            }
            Step::LineEnd { left } => {
                if rest[0] != if left == 2 { b'\r' } else { b'\n' } {
                    return self.corrupt("an argument does not end where its length says");
                }
                if left == 2 {
                    self.step = Step::LineEnd { left: 1 };
                } else {
                    self.argument_ends();
                }
                Ok(1)
            }
        }
    }

    fn argument_ends(&mut self) {
        if self.is_first {
            if self.command.eq_ignore_ascii_case(b"multi") {
                self.in_transaction = true;
            } else if self.command.eq_ignore_ascii_case(b"exec") && self.arguments_left == 1 {
                self.in_transaction = false;
            }
            self.is_first = false;
        }
        self.arguments_left -= 1;
        self.step = Step::Length;
        if self.arguments_left == 0 {
            self.commands += 1;
            self.step = Step::Between;
        }
    }

    /// A header line: how much of `rest` was used, and its number once the line is whole.
    fn number(&mut self, rest: &[u8], sign: u8) -> Result<(usize, Option<u64>), AofError> {
        let end = rest.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(rest.len(), |end| end + 1);
        if self.header.len() + taken > HEADER_BYTES_MAX {
            return self.corrupt("a length of too many digits");
        }
        self.header.extend_from_slice(&rest[..taken]);
        if self.header[0] != sign {
            return self.corrupt(&format!("byte {:#04x} where '{}' must stand", self.header[0], char::from(sign)));
        }
        if end.is_none() {
            return Ok((taken, None));
        }
        let digits = self.header.strip_suffix(b"\r\n").and_then(|line| line.get(1..)).unwrap_or_default();
        let number = if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) {
            std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok())
        } else {
            None
        };
        if number.is_none() {
            return self.corrupt("a length that is no number");
        }
        self.header.clear();
        Ok((taken, number))
    }

    fn corrupt<T>(&self, reason: &str) -> Result<T, AofError> {
        Err(AofError::Corrupt { offset: self.offset, reason: reason.to_owned() })
    }
}

/// What a file of a multi-part AOF is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AofFileKind {
    /// The start; at most one.
    Base,
    /// Superseded; the server is about to delete it.
    History,
    /// What was written since the base, in the order of the sequence numbers.
    Increment,
}

/// One line of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AofFile {
    /// A single path component.
    pub name: Vec<u8>,
    /// Sequence number.
    pub sequence: u64,
    /// What it is.
    pub kind: AofFileKind,
}

/// Why a manifest cannot be used. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ManifestError {
    /// Which line.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// The files that a manifest names, in its order. Pairs that are not known (newer servers add offsets) are passed
/// over; names that would leave the directory, second bases and files without a name are refused.
pub fn parse_manifest(text: &[u8]) -> Result<Vec<AofFile>, ManifestError> {
    if text.len() > MANIFEST_BYTES_MAX {
        return Err(ManifestError { line: 0, reason: "the manifest is longer than 1 MiB".to_owned() });
    }
    let mut files: Vec<AofFile> = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let fault = |reason: &str| ManifestError { line: index + 1, reason: reason.to_owned() };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let words = words(line).ok_or_else(|| fault("unbalanced quotes"))?;
        let (mut name, mut sequence, mut kind) = (None, None, None);
        for pair in words.chunks(2) {
            let [key, value] = pair else { return Err(fault("a key without a value")) };
            match key.to_ascii_lowercase().as_slice() {
                b"file" => name = Some(value.clone()),
                b"seq" => sequence = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok()),
                b"type" => {
                    kind = Some(match value.as_slice() {
                        b"b" => AofFileKind::Base,
                        b"h" => AofFileKind::History,
                        b"i" => AofFileKind::Increment,
                        _ => return Err(fault("a file of an unknown type")),
                    });
                }
                _ => {}
            }
        }
        let (Some(name), Some(sequence), Some(kind)) = (name, sequence, kind) else {
            return Err(fault("no file, seq or type"));
        };
        if !is_component(&name) {
            return Err(fault("the name is not a single path component"));
        }
        if files.iter().any(|file| file.name == name) {
            return Err(fault("the file is named twice"));
        }
        if kind == AofFileKind::Base && files.iter().any(|file| file.kind == AofFileKind::Base) {
            return Err(fault("a second base file"));
        }
        files.push(AofFile { name, sequence, kind });
    }
    Ok(files)
}

fn is_component(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && name.len() <= 255 && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// The text of a manifest that names these files; names are quoted where they need it.
pub fn write_manifest(files: &[AofFile]) -> Vec<u8> {
    let mut text = Vec::new();
    for file in files {
        text.extend_from_slice(b"file ");
        if file.name.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\')) {
            text.extend_from_slice(&file.name);
        } else {
            text.push(b'"');
            for byte in &file.name {
                match byte {
                    b'"' | b'\\' => text.extend_from_slice(&[b'\\', *byte]),
                    b' '..=b'~' => text.push(*byte),
                    other => text.extend_from_slice(format!("\\x{other:02x}").as_bytes()),
                }
            }
            text.push(b'"');
        }
        let kind = match file.kind {
            AofFileKind::Base => 'b',
            AofFileKind::History => 'h',
            AofFileKind::Increment => 'i',
        };
        text.extend_from_slice(format!(" seq {} type {kind}\n", file.sequence).as_bytes());
    }
    text
}

/// Words as `sdssplitargs` of redis-server splits them: quotes, `\xNN`, `\n`, `\r`, `\t`.
fn words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut bytes = line.iter().copied().peekable();
    loop {
        while bytes.next_if(u8::is_ascii_whitespace).is_some() {}
        let Some(first) = bytes.next() else { return Some(words) };
        let mut word = Vec::new();
        match first {
            b'"' => loop {
                match bytes.next()? {
                    b'"' => break,
                    b'\\' => word.push(match bytes.next()? {
                        b'x' => {
                            let digits = [bytes.next()?, bytes.next()?];
                            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                        }
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        other => other,
                    }),
                    byte => word.push(byte),
                }
            },
            b'\'' => loop {
                match bytes.next()? {
                    b'\'' => break,
                    byte => word.push(byte),
                }
            },
            byte => {
                word.push(byte);
                while let Some(byte) = bytes.next_if(|byte| !byte.is_ascii_whitespace()) {
                    word.push(byte);
                }
            }
        }
        words.push(word);
    }
}

#[cfg(test)]
#[path = "aof_tests.rs"]
mod tests;
