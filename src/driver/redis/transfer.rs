//! The frame around a dump in a replication stream, and the dump that is checked while it passes.
//!
//! A transfer begins with empty lines (sent to keep the connection alive) and a header: `$<length>` when the dump comes
//! from a file on the node, `$EOF:<40 bytes>` when it is streamed and ends with those bytes again. [`Frame`] is pure.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::driver::{CaptureStream, DriverError, StreamFacts};
use crate::model::manifest::KeyCounts;
use crate::payload::rdb::{RdbChecker, RdbError, RdbFacts};

/// Length of the marker of a streamed dump.
const MARKER_BYTES: usize = 40;
/// The longest header: `$EOF:`, the marker, a line end.
const HEADER_BYTES_MAX: usize = 64;
/// One read of a transfer: large enough to make system calls cheap, small beside the blocks that it becomes.
const READ_BYTES: usize = 128 * 1024;

/// The frame around one dump.
#[derive(Debug)]
pub(super) enum Frame {
    /// Nothing but empty lines so far.
    Header,
    /// So many bytes of the dump are to come.
    Length(u64),
    /// Until these bytes.
    Marker([u8; MARKER_BYTES]),
    /// The whole dump has passed.
    End,
}

impl Frame {
    /// How many bytes at the start of `buffer` belong to the frame, and how many behind them to the dump. What is left
    /// over is to be shown again with what comes next.
    pub(super) fn split(&mut self, buffer: &[u8]) -> Result<(usize, usize), String> {
        match self {
            Self::Header => {
                let empty = buffer.iter().take_while(|byte| **byte == b'\n').count();
                let rest = &buffer[empty..];
                let Some(end) = rest.iter().take(HEADER_BYTES_MAX).position(|byte| *byte == b'\n') else {
                    if rest.len() >= HEADER_BYTES_MAX {
                        return Err("the transfer has no header".to_owned());
                    }
                    return Ok((empty, 0));
                };
                let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
                *self = Self::parse(line)?;
                Ok((empty + end + 1, 0))
            }
            Self::Length(left) => {
                let taken = (buffer.len() as u64).min(*left) as usize;
                *left -= taken as u64;
                if *left == 0 {
                    *self = Self::End;
                }
                Ok((0, taken))
            }
            Self::Marker(marker) => {
                // The marker may be anywhere at the end, so that as many bytes are held back.
                let Some(safe) = buffer.len().checked_sub(MARKER_BYTES) else { return Ok((0, 0)) };
                if buffer[safe..] == *marker {
                    *self = Self::End;
                    return Ok((0, safe));
                }
                Ok((0, safe))
            }
            Self::End => Ok((0, 0)),
        }
    }

    fn parse(line: &[u8]) -> Result<Self, String> {
        if let Some(marker) = line.strip_prefix(b"$EOF:") {
            return marker.try_into().map(Self::Marker).map_err(|_| "the end marker has not 40 bytes".to_owned());
        }
        let text = String::from_utf8_lossy(line);
        match text.strip_prefix('$').and_then(|digits| digits.parse().ok()) {
            Some(0) => Err("an empty dump was announced".to_owned()),
            Some(length) => Ok(Self::Length(length)),
            None => Err(format!("the transfer begins with '{}'", text.escape_default())),
        }
    }
}

/// A framed dump from a socket, without its frame.
pub(super) struct Transfer<S> {
    socket: S,
    frame: Frame,
    buffer: Vec<u8>,
    /// Bytes of the dump at the start of `buffer`.
    ready: usize,
    handed: usize,
    chunk: Box<[u8]>,
    stall_limit: Duration,
    stall: Pin<Box<Sleep>>,
    /// The stall is being timed: a reader that pauses by itself is none.
    waiting: bool,
}

impl<S> Transfer<S> {
    /// `early` is what was read from the socket together with the answer to `PSYNC`.
    pub(super) fn new(socket: S, early: Vec<u8>, stall_limit: Duration) -> Self {
        Self {
            socket,
            frame: Frame::Header,
            buffer: early,
            ready: 0,
            handed: 0,
            chunk: vec![0; READ_BYTES].into_boxed_slice(),
            stall_limit,
            stall: Box::pin(sleep(stall_limit)),
            waiting: false,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Transfer<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, output: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.handed < this.ready {
                let count = (this.ready - this.handed).min(output.remaining());
                output.put_slice(&this.buffer[this.handed..this.handed + count]);
                this.handed += count;
                return Poll::Ready(Ok(()));
            }
            this.buffer.drain(..this.ready);
            (this.ready, this.handed) = (0, 0);
            let was_header = matches!(this.frame, Frame::Header);
            let (skipped, dump) =
                this.frame.split(&this.buffer).map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))?;
            this.buffer.drain(..skipped);
            this.ready = dump;
            if dump > 0 || (was_header && !matches!(this.frame, Frame::Header)) {
                continue;
            }
            if matches!(this.frame, Frame::End) {
                return Poll::Ready(Ok(()));
            }
            let mut read = ReadBuf::new(&mut this.chunk);
            match Pin::new(&mut this.socket).poll_read(context, &mut read) {
                Poll::Ready(Ok(())) if read.filled().is_empty() => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the node closed the connection before the end of the dump",
                    )));
                }
                Poll::Ready(Ok(())) => {
                    this.buffer.extend_from_slice(read.filled());
                    this.waiting = false;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if !this.waiting {
                        this.waiting = true;
                        this.stall.as_mut().reset(Instant::now() + this.stall_limit);
                    }
                    return match this.stall.as_mut().poll(context) {
                        Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            format!("nothing came for {:?}", this.stall_limit),
                        ))),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    }
}

/// A dump that is checked while it passes. Its end is clean only when the dump is sound.
pub(super) struct CheckedDump<S> {
    source: S,
    checker: Option<RdbChecker>,
    facts: Option<RdbFacts>,
    node: String,
    path: String,
    failed: Option<DriverError>,
    has_slots: bool,
}

impl<S> CheckedDump<S> {
    /// `slots` are the node's own, empty outside of a cluster; `now_ms` decides which keys had expired.
    pub(super) fn new(source: S, node: &str, path: &str, now_ms: u64, slots: Vec<(u16, u16)>) -> Self {
        let checker = RdbChecker::new(now_ms);
        let has_slots = !slots.is_empty();
        let checker = if has_slots { checker.with_slots(slots) } else { checker };
        Self {
            source,
            checker: Some(checker),
            facts: None,
            node: node.to_owned(),
            path: path.to_owned(),
            failed: None,
            has_slots,
        }
    }

    fn corrupt(&mut self, error: &RdbError) -> io::Error {
        let hint = match error {
            RdbError::Unknown { .. } => "; a newer tintype may know it",
            _ => "; take another snapshot, and look at the node's log if it happens again",
        };
        self.fail(DriverError::Corrupt { node: self.node.clone(), path: self.path.clone(), reason: format!("{error}{hint}") })
    }

    fn fail(&mut self, error: DriverError) -> io::Error {
        let text = error.to_string();
        self.failed = Some(error);
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CheckedDump<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, output: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(error) = &this.failed {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())));
        }
        if output.remaining() == 0 || this.facts.is_some() {
            return Poll::Ready(Ok(()));
        }
        let before = output.filled().len();
        match Pin::new(&mut this.source).poll_read(context, output) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                let reason = format!("the transfer of {} broke: {error}; take another snapshot", this.path);
                return Poll::Ready(Err(this.fail(DriverError::Broken { node: this.node.clone(), reason })));
            }
        }
        let piece = &output.filled()[before..];
        if piece.is_empty() {
            let outcome = match this.checker.take() {
                Some(checker) => checker.finish(),
                None => Err(RdbError::Truncated { offset: 0 }),
            };
            return Poll::Ready(match outcome {
                Ok(facts) => {
                    this.facts = Some(facts);
                    Ok(())
                }
                Err(error) => Err(this.corrupt(&error)),
            });
        }
        let outcome = this.checker.as_mut().map_or(Ok(()), |checker| checker.feed(piece));
        Poll::Ready(match outcome {
            Ok(()) => Ok(()),
            Err(error) => {
                // A reader may take what was filled for good, and an error promises that nothing was.
                output.set_filled(before);
                Err(this.corrupt(&error))
            }
        })
    }
}

#[async_trait]
impl<S: AsyncRead + Send + Unpin> CaptureStream for CheckedDump<S> {
    async fn finish(mut self: Box<Self>) -> Result<StreamFacts, DriverError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let Some(facts) = self.facts else {
            return Err(DriverError::Broken { node: self.node, reason: format!("{} was not read to its end", self.path) });
        };
        let mut checked = vec!["rdb-structure".to_owned()];
        if facts.checksummed {
            checked.push("rdb-crc64".to_owned());
        }
        if self.has_slots {
            checked.push(match facts.misplaced {
                0 => "rdb-slots".to_owned(),
                count => format!("rdb-slots: {count} keys outside the node's slots"),
            });
        }
        if let Some(offset) = facts.replication_offset {
            checked.push(format!("rdb-repl-offset {offset}"));
        }
        let keys = KeyCounts { total: facts.keys, expired: facts.expired, volatile: facts.volatile };
        Ok(StreamFacts { keys: Some(keys), checked })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const DUMP: &[u8] = b"REDIS0003\xfe\x00\x00\x01k\x01v\xff";

    async fn read(sent: &[u8]) -> io::Result<Vec<u8>> {
        let mut dump = Vec::new();
        Transfer::new(sent, Vec::new(), Duration::from_secs(9)).read_to_end(&mut dump).await?;
        Ok(dump)
    }

    #[tokio::test]
    async fn both_forms_give_the_dump_without_its_frame() {
        let length = [b"\n\n$".as_slice(), DUMP.len().to_string().as_bytes(), b"\r\n", DUMP, b"*1"].concat();
        assert_eq!(read(&length).await.expect("whole"), DUMP);
        let marker = [b'm'; 40];
        let streamed = [b"\n$EOF:".as_slice(), &marker, b"\r\n", DUMP, &marker].concat();
        assert_eq!(read(&streamed).await.expect("whole"), DUMP);
        for cut in 0..streamed.len() {
            assert!(read(&streamed[..cut]).await.is_err(), "cut to {cut}");
        }
    }

    #[test]
    fn the_pieces_of_a_transfer_do_not_matter() {
        let marker = [b'm'; 40];
        let streamed = [b"\n$EOF:".as_slice(), &marker, b"\r\n", DUMP, &marker].concat();
        for size in 1..streamed.len() {
            let (mut frame, mut buffer, mut dump) = (Frame::Header, Vec::new(), Vec::new());
            for piece in streamed.chunks(size) {
                buffer.extend_from_slice(piece);
                loop {
                    let (skipped, taken) = frame.split(&buffer).expect("sound");
                    dump.extend_from_slice(&buffer[skipped..skipped + taken]);
                    buffer.drain(..skipped + taken);
                    if skipped + taken == 0 {
                        break;
                    }
                }
            }
            assert_eq!((dump.as_slice(), matches!(frame, Frame::End)), (DUMP, true), "pieces of {size}");
        }
    }

    #[tokio::test]
    async fn a_dump_that_is_not_sound_never_ends_cleanly() {
        for (bytes, sound) in [(DUMP, true), (&DUMP[..10], false), (b"REDIS0003\x66", false)] {
            let mut stream = Box::new(CheckedDump::new(bytes, "n", "dump.rdb", 0, vec![(0, 16383)]));
            let mut dump = Vec::new();
            assert_eq!(stream.read_to_end(&mut dump).await.is_ok(), sound);
            let facts = stream.finish().await;
            assert_eq!(facts.is_ok(), sound);
            if let Ok(facts) = facts {
                assert_eq!(facts.keys, Some(KeyCounts { total: 1, expired: 0, volatile: 0 }));
            }
        }
    }
}
