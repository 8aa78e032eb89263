//! A file system that forgets on a power cut what was not synced.
