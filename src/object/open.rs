//! From what a person writes to the store that it names.

use std::sync::Arc;

use super::keys::invalid;
use super::local::{LocalStore, path_of_url};
use super::s3::{S3Options, S3Store};
use super::{ObjectError, ObjectStore};

/// Opens the store that `url` names: a path, `file:///path`, or `s3://bucket/prefix?key=value&…`.
///
/// `options` are those of the configuration; bucket and prefix come from the URL, whose query overrides the others. Nothing
/// is read, made or connected: what is missing shows at the first call.
pub fn open(url: &str, options: S3Options) -> Result<Arc<dyn ObjectStore>, ObjectError> {
    match scheme_of(url)? {
        Scheme::S3 => Ok(Arc::new(S3Store::new(options.with_url(url)?)?)),
        Scheme::File => Ok(Arc::new(LocalStore::new(path_of_url(url)?))),
    }
}

/// As [`open`], for a repository about to be made: a local directory and its parents are created (an existing one is fine).
/// A bucket is never created. Blocks.
pub fn create(url: &str, options: S3Options) -> Result<Arc<dyn ObjectStore>, ObjectError> {
    match scheme_of(url)? {
        Scheme::S3 => open(url, options),
        Scheme::File => Ok(Arc::new(LocalStore::create(path_of_url(url)?)?)),
    }
}

enum Scheme {
    S3,
    File,
}

fn scheme_of(url: &str) -> Result<Scheme, ObjectError> {
    if url.is_empty() || url.contains('\0') {
        return Err(invalid(url, "the place of the repository is empty or no text"));
    }
    match url.split_once("://") {
        Some(("s3", _)) => Ok(Scheme::S3),
        Some(("file", _)) | None => Ok(Scheme::File),
        Some((scheme, _)) => {
            Err(invalid(url, format!("unknown kind of store `{scheme}`: write a path, file:///path or s3://bucket/prefix")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_are_told_apart() {
        for (url, location) in [
            ("/srv/backups", "file:///srv/backups"),
            ("file:///srv/backups", "file:///srv/backups"),
            ("s3://bucket/a/b/?region=x", "s3://bucket/a/b"),
        ] {
            assert_eq!(open(url, S3Options::default()).expect("a good place").location(), location);
        }
        for url in ["", "gs://bucket", "file://host/path", "s3://"] {
            assert!(open(url, S3Options::default()).is_err(), "{url}");
        }
    }
}
