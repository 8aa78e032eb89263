//! Large bodies are written past the page cache.
//!
//! A backup is seldom read soon, and what it would push out of the cache is what the databases of this host read all day.
//! It is faster besides: one copy less, and no pages to find. What was written is read from the disk when it is verified,
//! and not from memory. File systems that cannot do it get an ordinary write.

use std::fs::File;
use std::io::{self, Write};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::base::buffers::PAGE_BYTES;

/// Below this an ordinary write costs less than the disk's answer.
const DIRECT_BYTES_MIN: usize = 1024 * 1024;

/// Appends all of `body` to a new file.
pub(super) fn append(file: &mut File, body: &[u8]) -> io::Result<()> {
    let whole = body.len() - body.len() % PAGE_BYTES;
    let is_aligned = body.as_ptr().addr().is_multiple_of(PAGE_BYTES);
    let written = if body.len() >= DIRECT_BYTES_MIN && is_aligned { append_direct(file, &body[..whole])? } else { 0 };
    file.write_all(&body[written..])
}

/// Appends as much as can be; how much that was.
fn append_direct(file: &mut File, pages: &[u8]) -> io::Result<usize> {
    let flags = fcntl_getfl(&*file)?;
    if fcntl_setfl(&*file, flags | OFlags::DIRECT).is_err() {
        return Ok(0);
    }
    let mut written = 0;
    while written < pages.len() && written.is_multiple_of(PAGE_BYTES) {
        match file.write(&pages[written..]) {
            Ok(0) => break,
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Some refuse only here.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    fcntl_setfl(&*file, flags)?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::buffers::page_aligned;

    #[test]
    fn every_length_and_alignment_is_written_whole() {
        for length in [0, 1, DIRECT_BYTES_MIN - 1, DIRECT_BYTES_MIN, DIRECT_BYTES_MIN + 1, DIRECT_BYTES_MIN + PAGE_BYTES] {
            let mut body = page_aligned(length + 1);
            body.extend((0..=length).map(|at| (at * 31 % 251) as u8));
            for start in [0, 1] {
                let place = tempfile::NamedTempFile::new().expect("a file");
                append(&mut place.reopen().expect("opens"), &body[start..]).expect("writes");
                assert!(std::fs::read(place.path()).expect("reads") == body[start..], "{length} from {start}");
            }
        }
    }
}
