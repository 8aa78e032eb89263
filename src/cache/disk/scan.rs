//! The start: what earlier processes left is counted, and then indexed, while the mount is served already.
//!
//! Until all is counted nothing is written; what is there can be read at once, because a file's name follows from its
//! content.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::Inner;
use super::map::Name;
use super::stored::{self, DATA, MAP};

#[derive(Debug, Default)]
struct Seen {
    data: Option<u64>,
    map: Option<u64>,
    used_ns: i128,
}

impl Inner {
    /// Counts and indexes everything; ends early when the cache is let go.
    pub(super) fn scan(&self) {
        match self.count() {
            Ok(true) => {}
            Ok(false) => return,
            // Nothing is written for as long as what is there is not known.
            Err(error) => return tracing::warn!(directory = %self.claim.root.display(), %error, "the cache cannot be listed"),
        }
        self.fit();
        self.scanned.set();
        let names = self.table().names();
        tracing::debug!(files = names.len(), bytes = self.table().used(), "the cache is counted");
        for name in names {
            if self.is_ending.load(Ordering::Relaxed) {
                return;
            }
            // A map that cannot be read is found out when its file is asked for.
            let _ = stored::visit_map(&self.claim.files, &name, &mut |slot, record| {
                self.index().insert(&record.id, name, slot);
                !self.is_ending.load(Ordering::Relaxed)
            });
        }
    }

    fn count(&self) -> std::io::Result<bool> {
        let mut seen: BTreeMap<Name, Seen> = BTreeMap::new();
        for entry in std::fs::read_dir(&self.claim.files)? {
            if self.is_ending.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let entry = entry?;
            let path = entry.path();
            let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(Name::parse);
            let ending = path.extension().and_then(|ending| ending.to_str());
            let (Some(name), Some(ending @ (DATA | MAP))) = (name, ending) else {
                remove_stranger(&path);
                continue;
            };
            let metadata = entry.metadata()?;
            let one = seen.entry(name).or_default();
            let bytes = Some(metadata.blocks() * 512);
            if ending == DATA {
                one.data = bytes;
            } else {
                one.map = bytes;
                one.used_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
            }
        }
        let mut files: Vec<(i128, Name, u64)> = Vec::with_capacity(seen.len());
        for (name, seen) in seen {
            match (seen.data, seen.map) {
                (Some(data), Some(map)) => files.push((seen.used_ns, name, self.bound((data, map)))),
                // A process died between two steps.
                _ => {
                    let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
                    stored::remove(&self.claim.files, &name)?;
                }
            }
        }
        files.sort_unstable_by(|a, b| b.cmp(a));
        let folders = self.measure_folders();
        let mut table = self.table();
        for (_, name, bytes) in files {
            table.charge_older(name, bytes);
        }
        table.folders = folders;
        table.is_complete = true;
        Ok(true)
    }

    /// The limit may be lower than last time.
    fn fit(&self) {
        let _turn = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = std::collections::HashSet::new();
        while self.table().used() > self.options.limit_bytes && !self.is_ending.load(Ordering::Relaxed) {
            let Some(oldest) = self.table().oldest(&kept) else { return };
            if self.evict(&oldest).is_none() {
                kept.insert(oldest);
            }
        }
    }
}

/// Whatever it is, it would take room that nobody counts; a directory is left alone and told of.
fn remove_stranger(path: &Path) {
    let removed = std::fs::remove_file(path);
    tracing::warn!(path = %path.display(), ?removed, "this is no file of the cache");
}
