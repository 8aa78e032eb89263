//! A small file that is whole or absent, also after a loss of power.

use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};
use std::path::Path;

/// Puts `bytes` in the place of what is at `path`, which may be nothing. When this returns well they are there after a loss of
/// power; until then what was there before is. It is written under the same name first, with a dot before it and `.new` behind: of two who write one
/// path at once the later wins, and its bytes may be the other's, so that callers exclude each other.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(ErrorKind::InvalidInput, "it has no name or no directory above it"));
    };
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    new.push(".new");
    let new = directory.join(new);
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_replaced_whole_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("record.json");
        for text in ["a long first text", "short"] {
            replace(&path, text.as_bytes()).expect("writes");
            assert_eq!(std::fs::read_to_string(&path).expect("reads"), text);
        }
        assert_eq!(std::fs::read_dir(directory.path()).expect("lists").count(), 1);
        assert_eq!(replace(Path::new("/"), b"").expect_err("no name").kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn where_it_cannot_be_written_what_was_there_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("record");
        replace(&path, b"old").expect("writes");
        std::fs::create_dir(directory.path().join(".record.new")).expect("makes");
        replace(&path, b"new").expect_err("the name is taken by a directory");
        assert_eq!(std::fs::read(&path).expect("reads"), b"old");
    }
}
