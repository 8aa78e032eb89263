//! Large buffers that are used again.
//!
//! Memory fresh from the kernel is paid for page by page, and a hypervisor may let its guest pay once more. A run that moves
//! gigabytes through buffers of a megabyte spends more on new pages than on its ciphers, unless it keeps them.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

/// What direct input and output want their memory to begin and end at.
pub const PAGE_BYTES: usize = 4096;

/// Keeps a bounded number of buffers for the next one who needs one.
#[derive(Debug)]
pub struct BufferPool<T> {
    free: Mutex<Vec<T>>,
    kept_max: usize,
}

impl<T> BufferPool<T> {
    /// A pool that keeps at most `kept_max` buffers while nobody uses them.
    pub fn new(kept_max: usize) -> Self {
        Self { free: Mutex::default(), kept_max }
    }

    /// A buffer as it was given back, if there is one.
    pub fn take(&self) -> Option<T> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Gives a buffer back. One that is not kept is freed.
    pub fn give(&self, buffer: T) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.kept_max {
            free.push(buffer);
        }
    }
}

impl BufferPool<Vec<u8>> {
    /// An empty buffer with room for `bytes` at least.
    pub fn take_empty(&self, bytes: usize) -> Vec<u8> {
        let mut buffer = self.take().unwrap_or_default();
        buffer.clear();
        buffer.reserve_exact(bytes);
        buffer
    }
}

/// An empty buffer that begins at a page, with room for `bytes` at least; if it outgrows that, it may begin elsewhere.
pub fn page_aligned(bytes: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(bytes + PAGE_BYTES);
    let lead = buffer.as_ptr().align_offset(PAGE_BYTES);
    buffer.resize(lead, 0);
    buffer.split_off(lead)
}

/// Loans below this are ordinary memory.
const LOAN_BYTES_MIN: usize = 64 * 1024;
/// Loans come in sizes of powers of two, this many of them: 64 KiB to 16 MiB. Room that is not used is never touched.
const LOAN_SIZES: usize = 9;
/// Bytes kept of each size while nobody uses them: what a few requests borrow and give back together.
const LOAN_KEPT_BYTES: usize = 16 * 1024 * 1024;

static LOANS: Mutex<[Vec<Vec<u8>>; LOAN_SIZES]> = Mutex::new([const { Vec::new() }; LOAN_SIZES]);

/// Memory for a block or a range, which serves the next one when the last reader lets go of it.
///
/// Its first content is whatever was there: who borrows fills all of it.
#[derive(Debug)]
pub struct Loan {
    buffer: Vec<u8>,
    length: usize,
}

fn size_of_loan(bytes: usize) -> Option<usize> {
    let size = bytes.max(LOAN_BYTES_MIN).next_power_of_two().ilog2() - LOAN_BYTES_MIN.ilog2();
    (bytes >= LOAN_BYTES_MIN && (size as usize) < LOAN_SIZES).then_some(size as usize)
}

impl Loan {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        let mut buffer = match size_of_loan(bytes) {
            None => Vec::new(),
            Some(size) => {
                let kept = LOANS.lock().unwrap_or_else(PoisonError::into_inner)[size].pop();
                kept.unwrap_or_else(|| Vec::with_capacity(LOAN_BYTES_MIN << size))
            }
        };
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        Self { buffer, length: bytes }
    }

    /// The same bytes, to be shared.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl AsMut<[u8]> for Loan {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.length]
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(size) = size_of_loan(self.length) else { return };
        let mut loans = LOANS.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &loans[size];
        // What was never touched of a buffer's room takes no memory.
        if kept.iter().map(Vec::len).sum::<usize>() + self.buffer.len() <= LOAN_KEPT_BYTES || kept.is_empty() {
            loans[size].push(std::mem::take(&mut self.buffer));
        }
    }
}

/// Fills `bytes` from the file at `offset`; `UnexpectedEof` when it ends before.
pub fn fill_from(file: impl AsFd, bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    let mut at = 0;
    // One pread as a rule: only a signal or the kernel's limit of 2 GiB per call makes it more.
    while at < bytes.len() {
        match rustix::io::pread(&file, &mut bytes[at..], offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                at += read;
                offset += read as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Appends exactly `length` bytes of the file at `offset`; `UnexpectedEof` when it ends before. The room is not zeroed first.
pub fn read_exact_at(file: impl AsFd, bytes: &mut Vec<u8>, length: usize, mut offset: u64) -> io::Result<()> {
    bytes.try_reserve_exact(length).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    let end = bytes.len() + length;
    // One pread as a rule: only a signal or the kernel's limit of 2 GiB per call makes it more.
    while bytes.len() < end {
        let before = bytes.len();
        match rustix::io::pread(&file, rustix::buffer::spare_capacity(bytes), offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => offset += (bytes.len() - before) as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // There may have been more room than was asked for.
    bytes.truncate(end);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_buffer_comes_back_empty_and_no_more_are_kept_than_was_said() {
        let pool = BufferPool::new(1);
        let mut first = pool.take_empty(1000);
        first.extend_from_slice(b"left over");
        let place = first.as_ptr();
        pool.give(first);
        pool.give(Vec::with_capacity(10));
        let again = pool.take_empty(1000);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert!(pool.take().is_none());
        assert!(pool.take_empty(5000).capacity() >= 5000);
    }

    #[test]
    fn an_aligned_buffer_keeps_its_place_while_it_is_filled_and_emptied() {
        let mut buffer = page_aligned(3 * PAGE_BYTES);
        let place = buffer.as_ptr();
        assert!(place.addr().is_multiple_of(PAGE_BYTES));
        for _ in 0..2 {
            buffer.extend_from_slice(&[7; 3 * PAGE_BYTES]);
            let body = buffer.freeze();
            buffer = body.try_into_mut().expect("nobody else has it");
            buffer.clear();
            assert_eq!(buffer.as_ptr(), place);
        }
    }

    #[test]
    fn a_loan_is_lent_again_with_its_own_length() {
        // A size that no other test of this process borrows.
        let length = (8 << 20) + 5;
        let mut loan = Loan::new(length);
        loan.as_mut().fill(7);
        let place = loan.as_ref().as_ptr();
        let shared = loan.freeze();
        let part = shared.slice(3..9);
        drop(shared);
        assert_eq!(&part[..], &[7; 6]);
        assert_ne!(Loan::new(length).as_ref().as_ptr(), place, "a part of it is still read");
        drop(part);
        let again = Loan::new(length - 1);
        assert_eq!(again.as_ref().len(), length - 1);
        assert_eq!(Loan::new(100).as_ref(), [0; 100]);
    }

    #[test]
    fn a_read_appends_exactly_what_was_asked_for() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"0123456789").expect("written");
        let mut bytes = Vec::with_capacity(100);
        bytes.push(b'>');
        read_exact_at(&file, &mut bytes, 3, 4).expect("reads");
        assert_eq!(bytes, b">456");
        let error = read_exact_at(&file, &mut bytes, 3, 8).expect_err("the file ends");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
