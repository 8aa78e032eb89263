//! Reading files: which blocks a read wants, read-ahead, and fetching each block once.
//!
//! [`FileReader`] turns (offset, length) into segments by binary search, [`BlockReader`] turns the segments' extents into
//! bytes: from the cache, from a fetch that is already under way (`flights`), or from one more fetch for all neighbours together,
//! which looks into the cache of files first (`kept`).
//! [`window`] decides, without any I/O, how far ahead of a reader to fetch.
//!
//! **Invariants.** No lock is held over an await. A block is under way at most once. Bytes in flight are bounded, and
//! read-ahead never waits for room: it is left out. A fetch that hangs ends at its deadline.
//!
//! **Copies** of a byte on its way from the store to a program, cold:
//!
//! 1. kernel's socket to the HTTP client's buffer: `read(2)`;
//! 2. that to the lent memory of the range (`object::s3`): the client hands over pieces as they arrive, and a block has to
//!    be in one piece to be opened;
//! 3. sealed to plain (`repo::seal`): decrypting and decompressing write each byte once more. Compressed blocks twice, since
//!    the one cannot go on where the other stops; blocks stored as they are are only decrypted, and that result is lent on;
//! 4. plain to the kernel's pages: the reply's `writev(2)` takes it out of the cached block itself. A read over a block's end
//!    is put together first; the kernel asks for aligned stretches, so that happens to other readers only;
//! 5. kernel's pages to the program's buffer: `read(2)`, or none with `mmap`.
//!
//! Warm, only 5 is left. From the cache on a disk, its pages to memory stands for 1 to 3, where the kernel does not read that
//! cache by itself.
//!
//! **Not here**: verification (the source's promise), names and inodes (`fs`).

pub mod blocks;
pub mod error;
pub mod file;
pub mod fixture;
pub mod flights;
pub mod kept;
pub mod window;

pub use blocks::{BlockReader, ReadOptions};
pub use error::ReadError;
pub use file::{FileMap, FileReader, small_file_extents};
pub use kept::Wanted;
pub use window::Window;
