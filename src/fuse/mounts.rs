//! The kernel's table of mounts: finding what is mounted at a path without touching it, and taking it away.
//!
//! A path below a dead or hanging mount must not be looked at: even `stat` fails or blocks. The table is always readable.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};

use crate::fuse::KERNEL_TYPE;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Where, as the kernel sees it: absolute, no links.
    pub mountpoint: PathBuf,
    /// File system type, `fuse.tintype` for ours.
    pub kernel_type: String,
    /// Device numbers, major and minor; the minor names a FUSE connection.
    pub device: (u32, u32),
}

impl MountEntry {
    /// One of ours, of this process or another, alive or dead.
    pub fn is_ours(&self) -> bool {
        self.kernel_type == KERNEL_TYPE
    }

    /// The file through which the kernel's connection behind it is cut, whatever is stuck in it.
    fn abort_path(&self) -> PathBuf {
        PathBuf::from(format!("/sys/fs/fuse/connections/{}/abort", self.device.1))
    }

    /// Cuts the connection: every request under way and every later one fails. Only for FUSE mounts.
    pub fn abort(&self) -> io::Result<()> {
        std::fs::write(self.abort_path(), b"1")
    }

    /// Raises the kernel's read-ahead to `bytes`; needs root.
    pub fn set_read_ahead(&self, bytes: u64) -> io::Result<()> {
        let (major, minor) = self.device;
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), (bytes / 1024).to_string())
    }
}

/// What is mounted at exactly this absolute path without links: the uppermost where several are stacked.
pub fn mounted_at(path: &Path) -> io::Result<Option<MountEntry>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&table).into_iter().rev().find(|entry| entry.mountpoint == path))
}

/// The lines of a table in the form of `/proc/self/mountinfo`, in its order; lines that make no sense are passed over.
pub fn parse(table: &[u8]) -> Vec<MountEntry> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let mountpoint = unescape(fields.nth(1)?);
    // Optional fields of any number end with a dash.
    let kernel_type = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(MountEntry {
        mountpoint: PathBuf::from(OsString::from_vec(mountpoint)),
        kernel_type: String::from_utf8_lossy(kernel_type).into_owned(),
        device: (major.parse().ok()?, minor.parse().ok()?),
    })
}

/// Blank, tab, newline and backslash stand as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits {
            Some(digits) if first == b'\\' => {
                plain.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &behind[3..];
            }
            _ => {
                plain.push(first);
                rest = behind;
            }
        }
    }
    plain
}

/// Takes the uppermost mount off `path`. By force: at once, whoever uses it, and what is under way in it fails. Who is not
/// root goes through `fusermount3`, which cannot end what is under way: see [`MountEntry::abort`].
pub fn take_off(path: &Path, by_force: bool) -> io::Result<()> {
    let force = UnmountFlags::FORCE | UnmountFlags::DETACH;
    let flags = if by_force { force | UnmountFlags::NOFOLLOW } else { UnmountFlags::NOFOLLOW };
    match unmount(path, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => fusermount(path, by_force),
        Err(error) => Err(error.into()),
    }
}

fn fusermount(path: &Path, is_lazy: bool) -> io::Result<()> {
    let mut said = String::new();
    for program in ["fusermount3", "fusermount"] {
        let mut command = Command::new(program);
        command.arg("-u").args(is_lazy.then_some("-z")).arg("--").arg(path).stdin(Stdio::null());
        match command.output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                let kind = if said.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::PermissionDenied };
                return Err(io::Error::new(kind, said));
            }
            Err(error) => said = error.to_string(),
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("fusermount3: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
        40 21 0:52 / /mnt/with\\040blank\\134 ro,nosuid - fuse.tintype tintype ro,user_id=0\n\
        nonsense\n\
        41 40 0:53 / /mnt/with\\040blank\\134 ro - tmpfs none rw\n";

    #[test]
    fn lines_are_read_with_their_escapes() {
        let entries = parse(TABLE);
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[1].mountpoint, Path::new("/mnt/with blank\\"));
        assert_eq!((entries[1].is_ours(), entries[1].device), (true, (0, 52)));
        assert!(!entries[2].is_ours());
    }

    #[test]
    fn the_root_is_mounted_and_an_ordinary_directory_is_not() {
        assert!(mounted_at(Path::new("/")).expect("the table is readable").is_some());
        let plain = tempfile::tempdir().expect("a directory");
        assert_eq!(mounted_at(plain.path()).expect("the table is readable"), None);
    }
}
