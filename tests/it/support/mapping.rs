//! Files in memory, by `mmap`.

use std::ffi::c_void;
use std::fs::File;
use std::io::PipeWriter;
use std::os::fd::AsRawFd;

use rustix::io::{Errno, Result};

/// What the kernel maps in.
pub const PAGE: usize = 4096;

/// A mapping of a stretch of a file, unmapped when dropped.
pub struct Mapping {
    at: *mut c_void,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes from `offset`, which begins a page.
    pub fn new(file: &File, offset: usize, length: usize, protection: i32, flags: i32) -> Result<Self> {
        let descriptor = file.as_raw_fd();
        // SAFETY: a new mapping at a place that the kernel chooses touches no memory of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, descriptor, offset as libc::off_t) };
        if at == libc::MAP_FAILED {
            return Err(last_error());
        }
        Ok(Self { at, length })
    }

    /// The first so many bytes, which must not reach behind the file's last page.
    pub fn bytes(&mut self, length: usize) -> &mut [u8] {
        assert!(length <= self.length);
        // SAFETY: the pages are mapped until this is dropped, and the file behind them never shrinks.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), length) }
    }

    /// Has the kernel read one byte: where this program would be ended by a signal, that is an error.
    pub fn peek(&self, at: usize, pipe: &PipeWriter) -> Result<()> {
        assert!(at < self.length);
        // SAFETY: the address is inside the mapping, and the kernel looks whether it can be read.
        match unsafe { libc::write(pipe.as_raw_fd(), self.at.cast::<u8>().add(at).cast(), 1) } {
            1 => Ok(()),
            _ => Err(last_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and no reference to it outlives this.
        unsafe { libc::munmap(self.at, self.length) };
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).expect("of the system")
}
