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
