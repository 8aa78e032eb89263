//! What stores write: RDB and AOF, read as streams.
//!
//! Pure: bytes in, facts out; no I/O. Lengths are never believed before the bytes are there.

pub mod aof;
pub mod checksum;
mod lzf;
pub mod rdb;
mod rdb_layout;
mod rdb_token;
