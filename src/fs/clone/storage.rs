//! A file of the local disk as a layered file needs it: what tests replace by a disk that loses its power.

use std::fmt::Debug;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::Result;

/// A file that is open for reading and writing.
pub(super) trait Storage: Send + Sync + Debug {
    /// Length in bytes.
    fn length(&self) -> Result<u64>;
    /// Fills `into` from `offset`; what is behind the end is zeros.
    fn read(&self, into: &mut [u8], offset: u64) -> Result<()>;
    /// Writes all of it, or as much as there is room for, and at least a byte.
    fn write(&self, bytes: &[u8], offset: u64) -> Result<usize>;
    /// Writes all of it.
    fn write_all(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match self.write(bytes, offset)? {
            written if written == bytes.len() => Ok(()),
            _ => Err(Errno::NOSPC),
        }
    }
    /// Cuts or extends.
    fn set_length(&self, length: u64) -> Result<()>;
    /// As `fallocate(2)`.
    fn allocate(&self, how: FallocateFlags, offset: u64, length: u64) -> Result<()>;
    /// Returns when all that was written is durable.
    fn sync(&self, data_only: bool) -> Result<()>;
}

impl Storage for File {
    fn length(&self) -> Result<u64> {
        Ok(rustix::fs::fstat(self)?.st_size.cast_unsigned())
    }

    fn read(&self, mut into: &mut [u8], mut offset: u64) -> Result<()> {
        while !into.is_empty() {
            match self.read_at(into, offset) {
                Ok(0) => {
                    into.fill(0);
                    return Ok(());
                }
                Ok(count) => (into, offset) = (&mut into[count..], offset + count as u64),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(number(&error)),
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match self.write_at(&bytes[written..], offset + written as u64) {
                Ok(0) => return if written > 0 { Ok(written) } else { Err(Errno::NOSPC) },
                Ok(count) => written += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) if written > 0 => return Ok(written),
                Err(error) => return Err(number(&error)),
            }
        }
        Ok(written)
    }

    fn set_length(&self, length: u64) -> Result<()> {
        rustix::fs::ftruncate(self, length)
    }

    fn allocate(&self, how: FallocateFlags, offset: u64, length: u64) -> Result<()> {
        rustix::fs::fallocate(self, how, offset, length)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        if data_only { rustix::fs::fdatasync(self) } else { rustix::fs::fsync(self) }
    }
}

/// The system's number of an error; one that has none is EIO.
pub(super) fn number(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
