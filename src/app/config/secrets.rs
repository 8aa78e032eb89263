//! Files that decide what is run, or that nobody else may read.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::super::failure::Failure;

/// The repository takes no shorter ones, see `repo/FORMAT.md`.
const KEY_FILE_BYTES_MIN: usize = 32;

pub(super) fn refuse_writable_by_others(path: &Path) -> Result<(), Failure> {
    let Ok(meta) = std::fs::metadata(path) else { return Ok(()) };
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me && meta.uid() != 0 {
        return Err(Failure::usage(format!("{}: belongs to another user, who could change what is run", path.display()))
            .hint(format!("chown it to yourself or root: chown {me} {}", path.display())));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(Failure::usage(format!("{}: others could have written it", path.display()))
            .hint(format!("chmod go-w {}", path.display())));
    }
    Ok(())
}

/// The first line of a file that nobody else may read.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let bytes = read_private(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Failure::usage(format!("{}: is not text", path.display())))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(
            Failure::usage(format!("{}: its first line is empty", path.display())).hint("write the password into its first line")
        );
    }
    Ok(Zeroizing::new(line.to_owned()))
}

/// A file that nobody else may read or write.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let unreadable =
        |error: std::io::Error| Failure::usage(format!("{}: {error}", path.display())).hint("check the path and its permissions");
    let meta = std::fs::metadata(path).map_err(unreadable)?;
    refuse_writable_by_others(path)?;
    if meta.is_file() && meta.mode() & 0o077 != 0 {
        return Err(
            Failure::usage(format!("{}: others can read it", path.display())).hint(format!("chmod 600 {}", path.display()))
        );
    }
    std::fs::read(path).map(Zeroizing::new).map_err(unreadable)
}

/// A file of random bytes instead of a passphrase.
pub fn read_key_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let key = read_private(path)?;
    if key.len() < KEY_FILE_BYTES_MIN {
        let message =
            format!("{}: holds {} bytes, and a key file needs {KEY_FILE_BYTES_MIN} random ones", path.display(), key.len());
        return Err(Failure::usage(message).hint(format!(
            "for a new one: (umask 077; head -c 64 /dev/urandom > {}); or say --password-file for a passphrase",
            path.display()
        )));
    }
    Ok(key)
}
