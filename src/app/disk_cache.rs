//! The disk cache as people ask for it: command line before configuration, where it may be, and opening it.

use std::path::{Path, PathBuf};

use super::config::{Bytes, CacheConfig};
use super::failure::Failure;
use super::output::size;
use crate::base::process::boot_id;
use crate::cache::disk::{DiskCacheError, DiskOptions, inspect};

/// What the disk keeps where nothing is said: enough to log in and clean up.
const KEEP_FREE: Bytes = Bytes(1 << 30);

/// The cache that was asked for, if one was.
pub fn merge(directory: Option<&PathBuf>, limit: Option<Bytes>, config: &CacheConfig) -> Result<Option<DiskOptions>, Failure> {
    let limit = limit.or(config.size);
    let Some(directory) = directory.or(config.directory.as_ref()) else {
        return match limit {
            None => Ok(None),
            Some(_) => Err(Failure::usage("the cache has a size and no directory")
                .hint("say --cache-dir DIRECTORY, or write directory under [cache] into the configuration")),
        };
    };
    let Some(limit) = limit else {
        return Err(Failure::usage(format!("{}: nothing is said of how large the cache may grow", directory.display()))
            .hint("say --cache-size SIZE, for example 20GiB, or write size under [cache] into the configuration"));
    };
    let directory =
        std::path::absolute(directory).map_err(|error| Failure::usage(format!("{}: {error}", directory.display())))?;
    let keep_free_bytes = config.keep_free.unwrap_or(KEEP_FREE).0;
    Ok(Some(DiskOptions { directory, limit_bytes: limit.0, keep_free_bytes, boot: boot() }))
}

/// This boot of the host; where it cannot be known, every start counts as one.
fn boot() -> String {
    boot_id().unwrap_or_else(|| uuid::Uuid::new_v4().to_string())
}

/// The path without links, also of what is not there yet.
pub fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let found = path.ancestors().find_map(|above| above.canonicalize().ok().map(|canonical| (above, canonical)));
    match found {
        Some((above, canonical)) => match path.strip_prefix(above) {
            Ok(rest) if rest.as_os_str().is_empty() => canonical,
            Ok(rest) => canonical.join(rest),
            Err(_) => path,
        },
        None => path,
    }
}

/// One is the other, or inside it.
pub fn overlap(one: &Path, other: &Path) -> bool {
    let (one, other) = (resolved(one), resolved(other));
    one.starts_with(&other) || other.starts_with(&one)
}

/// Directories of this host that are used for something else: a cache among them would store itself, or be in the way.
pub fn check_place(directory: &Path, others: &[PathBuf]) -> Result<(), Failure> {
    match others.iter().find(|other| overlap(directory, other)) {
        None => Ok(()),
        Some(other) => {
            let message = format!("{}: is inside or above {}, and cannot be a cache", directory.display(), other.display());
            Err(Failure::new("cache", message).hint("name a cache directory outside of the repository and the mountpoint"))
        }
    }
}

/// One line for people: what is seen of a cache from outside.
pub fn seen(options: &DiskOptions) -> Result<(String, serde_json::Value), Failure> {
    let seen = inspect(&options.directory)?;
    let limit = size(options.limit_bytes);
    let text = match &seen {
        None => format!("{}, not there yet, of {limit}", options.directory.display()),
        Some(seen) => {
            let user = seen.process.map_or("in use by no process".to_owned(), |process| format!("in use by process {process}"));
            let (used, free) = (size(seen.used_bytes), size(seen.free_bytes));
            format!(
                "{}, {used} of {limit} in {} files, {user}; that disk has {free} free",
                options.directory.display(),
                seen.files
            )
        }
    };
    let value = serde_json::json!({
        "directory": options.directory,
        "limit_bytes": options.limit_bytes,
        "used_bytes": seen.as_ref().map_or(0, |seen| seen.used_bytes),
        "files": seen.as_ref().map_or(0, |seen| seen.files),
        "free_bytes": seen.as_ref().map(|seen| seen.free_bytes),
        "process": seen.as_ref().and_then(|seen| seen.process),
    });
    Ok((text, value))
}

impl From<&DiskCacheError> for Failure {
    fn from(error: &DiskCacheError) -> Self {
        Self::new("cache", error.to_string()).hint(error.hint())
    }
}

impl From<DiskCacheError> for Failure {
    fn from(error: DiskCacheError) -> Self {
        Self::from(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_has_both_a_place_and_a_size() {
        let place = PathBuf::from("/var/cache/tintype");
        let config = CacheConfig { directory: Some(place.clone()), size: Some(Bytes(7)), keep_free: Some(Bytes(5)) };
        let none = CacheConfig::default();
        assert!(merge(None, None, &none).expect("fine").is_none());
        assert!(merge(Some(&place), None, &none).is_err() && merge(None, Some(Bytes(1)), &none).is_err());
        let options = merge(None, Some(Bytes(9)), &config).expect("fine").expect("asked for");
        assert_eq!((options.directory, options.limit_bytes, options.keep_free_bytes), (place, 9, 5));
        assert!(options.boot.len() > 30);
    }

    #[test]
    fn places_are_compared_without_links_also_when_they_are_not_there() {
        let home = tempfile::tempdir().expect("a directory");
        let real = home.path().join("real");
        std::fs::create_dir(&real).expect("makes");
        std::os::unix::fs::symlink(&real, home.path().join("link")).expect("links");
        for (one, other, is_overlap) in
            [("link/new/cache", "real", true), ("real", "link/new", true), ("link", "real", true), ("real/a", "real/ab", false)]
        {
            assert_eq!(overlap(&home.path().join(one), &home.path().join(other)), is_overlap, "{one} {other}");
        }
        assert!(check_place(&home.path().join("link/x"), &[real]).is_err());
    }
}
