//! The one request of our own that a file of the tree takes: have a stretch of it in the cache on the disk.
//!
//! It is an `ioctl` on the open file, `_IOWR('t', 1, struct { u64 offset; u64 length; })`, which takes offset and length in
//! bytes and gives, in place of the offset, how many bytes of the whole file the cache has afterwards.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Length of what is taken and given.
const BYTES: usize = 16;
/// Direction both ways, length, group, number.
pub(super) const WARM: u32 = 3 << 30 | (BYTES as u32) << 16 | (b't' as u32) << 8 | 1;

/// What was asked for: offset and length in bytes.
pub(super) fn decode(bytes: &[u8]) -> Option<(u64, u64)> {
    let (offset, length) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_ne_bytes(*offset), u64::from_ne_bytes(length.try_into().ok()?)))
}

pub(super) fn encode(first: u64, second: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&first.to_ne_bytes());
    bytes[8..].copy_from_slice(&second.to_ne_bytes());
    bytes
}

/// Has `length` bytes from `offset` of a file of a mounted tree fetched into that mount's cache; returns how many bytes of
/// the file are there then. `EOPNOTSUPP`: the mount has no cache; `ENOTTY`: it is no file of ours.
pub fn warm(file: &File, offset: u64, length: u64) -> io::Result<u64> {
    let mut bytes = encode(offset, length);
    // SAFETY: the number says that the kernel reads and writes exactly the 16 bytes that `bytes` has.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), WARM.into(), bytes.as_mut_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(decode(&bytes).map_or(0, |(cached, _)| cached))
}
