//! What a directory takes on a disk.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What `du` says, while files come and go.
pub fn taken(directory: &Path) -> u64 {
    let own = std::fs::metadata(directory).map_or(0, |metadata| metadata.blocks() * 512);
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => taken(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    own + below.sum::<u64>()
}
