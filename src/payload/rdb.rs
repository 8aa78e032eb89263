//! RDB dumps: structure, checksum and key counts, while the bytes pass.
