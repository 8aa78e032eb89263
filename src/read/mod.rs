//! Reading files: which blocks a read wants, read-ahead, and fetching each block once.
