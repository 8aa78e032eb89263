//! Large writes that go past the page cache.
//!
//! A backup that is written is seldom read soon, a restore may be larger than the memory, and what either would push out of
//! the page cache is what the databases of this host read all day. It is faster besides: one copy less, and no pages to find.
//! File systems that cannot do it get ordinary writes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::fs::{CWD, Mode, OFlags, fcntl_getfl, fcntl_setfl};

use super::buffers::{BufferPool, PAGE_BYTES, page_aligned};

/// Below this an ordinary write costs less than the disk's answer.
const DIRECT_BYTES_MIN: usize = 1024 * 1024;

/// The same for one write of a file that several are under way in: the disk is busy meanwhile.
const DIRECT_RUN_BYTES_MIN: usize = 256 * 1024;

/// Appends all of `body` to a new file.
pub fn append(file: &mut File, body: &[u8]) -> io::Result<()> {
    let is_aligned = body.as_ptr().addr().is_multiple_of(PAGE_BYTES);
    let written = if body.len() >= DIRECT_BYTES_MIN && is_aligned { append_direct(file, body)? } else { 0 };
    file.write_all(&body[written..])
}

/// Appends as many pages as can be; how many bytes they have.
fn append_direct(mut file: &File, body: &[u8]) -> io::Result<usize> {
    let flags = fcntl_getfl(file)?;
    if fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return Ok(0);
    }
    let written = write_pages(body, |pages, _| file.write(pages));
    fcntl_setfl(file, flags)?;
    written
}

/// Writes the whole pages of `bytes` until the file system refuses; how many bytes it took.
fn write_pages(bytes: &[u8], mut write: impl FnMut(&[u8], usize) -> io::Result<usize>) -> io::Result<usize> {
    let (whole, mut written) = (bytes.len() - bytes.len() % PAGE_BYTES, 0);
    while written < whole && written.is_multiple_of(PAGE_BYTES) {
        match write(&bytes[written..whole], written) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Some refuse only here.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

/// A file that several threads write, each at places of its own.
///
/// **Invariant.** Only whole pages go past the page cache, and no page goes both ways unless a call wrote a part of it before:
/// the kernel writes such a part out first.
#[derive(Debug)]
pub struct DirectFile {
    file: Arc<File>,
    /// The same file, opened once more: how a descriptor writes is said for all who use it.
    direct: Option<File>,
    buffers: Arc<BufferPool<BytesMut>>,
}

impl DirectFile {
    /// For a file of so many bytes in the end. What is written passes through `buffers`, one for each thread that writes.
    pub fn new(file: &Arc<File>, bytes: u64, buffers: &Arc<BufferPool<BytesMut>>) -> Self {
        let direct = if bytes >= DIRECT_BYTES_MIN as u64 { reopened(file) } else { None };
        Self { file: file.clone(), direct, buffers: buffers.clone() }
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes `parts` one behind the other from `offset`.
    pub fn write_all_at(&self, parts: &[Bytes], mut offset: u64) -> io::Result<()> {
        let bytes = parts.iter().map(Bytes::len).sum::<usize>();
        let mut skipped = match &self.direct {
            Some(direct) if bytes >= DIRECT_RUN_BYTES_MIN && offset.is_multiple_of(PAGE_BYTES as u64) => {
                let mut buffer =
                    self.buffers.take().filter(|kept| kept.capacity() >= bytes).unwrap_or_else(|| page_aligned(bytes));
                parts.iter().for_each(|part| buffer.extend_from_slice(part));
                let written = write_pages(&buffer, |pages, at| direct.write_at(pages, offset + at as u64));
                buffer.clear();
                self.buffers.give(buffer);
                written?
            }
            _ => 0,
        };
        for part in parts {
            let rest = &part[skipped.min(part.len())..];
            self.file.write_all_at(rest, offset + (part.len() - rest.len()) as u64)?;
            skipped = skipped.saturating_sub(part.len());
            offset += part.len() as u64;
        }
        Ok(())
    }
}

fn reopened(file: &File) -> Option<File> {
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty()).map(File::from).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(length: usize) -> BytesMut {
        let mut body = page_aligned(length);
        body.extend((0..length).map(|at| (at * 31 % 251) as u8));
        body
    }

    #[test]
    fn every_length_and_alignment_is_appended_whole() {
        for length in [0, 1, DIRECT_BYTES_MIN - 1, DIRECT_BYTES_MIN, DIRECT_BYTES_MIN + 1, DIRECT_BYTES_MIN + PAGE_BYTES] {
            let body = sample(length + 1);
            for start in [0, 1] {
                let place = tempfile::NamedTempFile::new().expect("a file");
                append(&mut place.reopen().expect("opens"), &body[start..]).expect("writes");
                assert!(std::fs::read(place.path()).expect("reads") == body[start..], "{length} from {start}");
            }
        }
    }

    /// Cut anywhere and written in any order, also where pages in memory cannot be passed by.
    #[test]
    fn parts_are_written_where_they_belong() {
        let body = sample(3 * DIRECT_BYTES_MIN + 1234).freeze();
        let cuts = [
            0,
            1,
            PAGE_BYTES,
            PAGE_BYTES + 1,
            DIRECT_BYTES_MIN,
            2 * DIRECT_BYTES_MIN + 5 * PAGE_BYTES,
            3 * DIRECT_BYTES_MIN,
            body.len(),
        ];
        let runs: Vec<(usize, usize)> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
        for is_direct in [true, false] {
            for turn in 0..runs.len() {
                let place = tempfile::NamedTempFile::new().expect("a file");
                let mut target =
                    DirectFile::new(&Arc::new(place.reopen().expect("opens")), body.len() as u64, &Arc::new(BufferPool::new(1)));
                if !is_direct {
                    target.direct = None;
                }
                for at in 0..runs.len() {
                    let (from, to) = runs[(at + turn) % runs.len()];
                    let middle = from + (to - from) / 3;
                    target.write_all_at(&[body.slice(from..middle), body.slice(middle..to)], from as u64).expect("writes");
                }
                assert!(std::fs::read(place.path()).expect("reads") == body, "turn {turn}, direct {is_direct}");
            }
        }
    }

    #[test]
    fn a_refusal_is_no_error_and_an_error_is_told() {
        let place = tempfile::NamedTempFile::new().expect("a file");
        let mut target = DirectFile::new(&Arc::new(place.reopen().expect("opens")), 1 << 20, &Arc::new(BufferPool::new(1)));
        target.direct = Some(File::open("/dev/null").expect("opens"));
        let error = target.write_all_at(&[sample(DIRECT_RUN_BYTES_MIN).freeze()], 0).expect_err("a descriptor for reading");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        assert_eq!(write_pages(&[7; 3 * PAGE_BYTES], |_, _| Err(io::ErrorKind::InvalidInput.into())).expect("refused"), 0);
        let mut taken = [PAGE_BYTES, 100].into_iter();
        let written = write_pages(&[7; 3 * PAGE_BYTES + 9], |_, _| Ok(taken.next().expect("asked twice")));
        assert_eq!(written.expect("no error"), PAGE_BYTES + 100);
    }
}
