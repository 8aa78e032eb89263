//! What a key may look like: one rule for every store, so that what one accepts none of the others refuses.
//!
//! A key is one or more components joined by `/`. Components are never empty, `.` or `..`, so that a key is at the same
//! time a path that stays beneath a directory.

use super::ObjectError;

/// S3's limit of a whole key.
pub const LONGEST_KEY_BYTES: usize = 1024;

/// What file systems take as one name.
pub const LONGEST_COMPONENT_BYTES: usize = 255;

/// The folder of a directory store that holds what is being written; no key begins with it, in any store.
pub(super) const TEMPORARY_FOLDER: &str = ".tmp";

/// Refuses what is no key.
pub fn check_key(key: &str) -> Result<(), ObjectError> {
    match fault_in_path(key) {
        Some(reason) => Err(invalid(key, reason)),
        None => Ok(()),
    }
}

/// Refuses what no key can begin with. The last component may be partial: `a/b` finds `a/bc`.
pub(super) fn check_prefix(prefix: &str) -> Result<(), ObjectError> {
    let (folder, partial) = prefix.rsplit_once('/').map_or(("", prefix), |(folder, partial)| (folder, partial));
    let fault = if prefix.starts_with('/') {
        Some("a prefix must not begin with a slash")
    } else if !folder.is_empty() {
        fault_in_path(folder)
    } else {
        None
    };
    let fault = fault.or_else(|| partial.contains('\0').then_some("a prefix must not contain NUL"));
    fault.map_or(Ok(()), |reason| Err(invalid(prefix, reason)))
}

/// Refuses what names no folder: it is empty (the root) or ends with a slash.
pub(super) fn check_folder(prefix: &str) -> Result<(), ObjectError> {
    check_prefix(prefix)?;
    if prefix.is_empty() || prefix.ends_with('/') {
        return Ok(());
    }
    Err(invalid(prefix, "a folder must end with a slash"))
}

/// Refuses an empty page: a caller who pages through a listing would never arrive.
pub(super) fn check_limit(prefix: &str, limit: usize) -> Result<(), ObjectError> {
    if limit == 0 { Err(invalid(prefix, "a listing's limit must be at least 1")) } else { Ok(()) }
}

/// Refuses an empty or backward range.
pub(super) fn check_range(key: &str, range: &std::ops::Range<u64>) -> Result<(), ObjectError> {
    if range.start < range.end { Ok(()) } else { Err(invalid(key, "a range must not be empty")) }
}

pub(super) fn invalid(key: &str, reason: impl Into<String>) -> ObjectError {
    ObjectError::Invalid { key: key.to_owned(), reason: reason.into() }
}

fn fault_in_path(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("a key must not be empty");
    }
    if path.len() > LONGEST_KEY_BYTES {
        return Some("a key must not be longer than 1024 bytes");
    }
    if path.contains('\0') {
        return Some("a key must not contain NUL");
    }
    for (index, component) in path.split('/').enumerate() {
        match component {
            "" => return Some("a key must not contain empty components"),
            "." | ".." => return Some("a key must not contain `.` or `..`"),
            TEMPORARY_FOLDER if index == 0 => return Some("keys that begin with `.tmp` are the store's own"),
            _ if component.len() > LONGEST_COMPONENT_BYTES => {
                return Some("a component of a key must not be longer than 255 bytes");
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_keys_are_taken() {
        for key in ["a", "a/b", "a.b/c", "...", ".tmpx", "x/.tmp", "ä/ö"] {
            assert!(check_key(key).is_ok(), "{key}");
        }
    }

    #[test]
    fn prefixes_may_end_in_the_middle_of_a_component() {
        for prefix in ["", "a", "a/", "a/b", "a/.."] {
            assert!(check_prefix(prefix).is_ok(), "{prefix}");
        }
        for prefix in ["/", "/a", "a//", "../", "a/../b", "a\0"] {
            assert!(check_prefix(prefix).is_err(), "{prefix}");
        }
    }
}
