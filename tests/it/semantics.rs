//! Every system call on the tree, through the kernel: what the section Semantics of README says of it, line by line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{
    Access, AtFlags, CWD, Dir, FallocateFlags, FileType, FlockOperation, IFlags, Mode, OFlags, SeekFrom, Timespec, Timestamps,
    XattrFlags,
};
use rustix::io::{Errno, Result};

use tintype::read::fixture::{FakeEntry, FakeSource};

use crate::support::mapping::{Mapping, PAGE};
use crate::support::mount::{DATE, Served, numbered, sample_tree, serve_tree, serve_with, succeed, within};

/// A served tree, the paths that calls are tried on, and a directory of an ordinary file system.
struct Place {
    served: Served,
    node: PathBuf,
    file: PathBuf,
    directory: PathBuf,
    link: PathBuf,
    /// A name that nothing has.
    new: PathBuf,
    other: tempfile::TempDir,
}

/// The content of [`Place::file`].
fn content() -> Vec<u8> {
    numbered(3_000_000)
}

impl Place {
    fn new() -> Self {
        let served = serve_tree(sample_tree(), 1 << 20);
        let node = served.node();
        let at = |name: &str| node.join(name);
        let other = tempfile::tempdir().expect("a directory");
        let (file, directory, link, new) = (at("dump.rdb"), at("hollow"), at("link"), at("new"));
        Self { file, directory, link, new, node, other, served }
    }

    fn open(&self) -> File {
        File::open(&self.file).expect("opens for reading")
    }

    /// An ordinary file that is open for writing.
    fn plain(&self) -> File {
        let path = self.other.path().join("plain");
        File::options().read(true).write(true).create(true).truncate(true).open(path).expect("room")
    }
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(path, flags, Mode::RUSR)
}

const NOW: Timestamps =
    Timestamps { last_access: Timespec { tv_sec: 1, tv_nsec: 0 }, last_modification: Timespec { tv_sec: 1, tv_nsec: 0 } };

type Call = (&'static str, Errno, fn(&Place) -> Result<()>);

/// What would change something, and what the caller is told.
const REFUSED: &[Call] = &[
    // By path: the whole file system is read-only, whether the name exists or not.
    ("open O_WRONLY", Errno::ROFS, |at| open(&at.file, OFlags::WRONLY).map(drop)),
    ("open O_RDWR", Errno::ROFS, |at| open(&at.file, OFlags::RDWR).map(drop)),
    ("open O_APPEND", Errno::ROFS, |at| open(&at.file, OFlags::WRONLY | OFlags::APPEND).map(drop)),
    ("open O_TRUNC", Errno::ROFS, |at| open(&at.file, OFlags::RDONLY | OFlags::TRUNC).map(drop)),
    ("open O_CREAT", Errno::ROFS, |at| open(&at.new, OFlags::WRONLY | OFlags::CREATE).map(drop)),
    ("open O_CREAT, reading", Errno::ROFS, |at| open(&at.new, OFlags::RDONLY | OFlags::CREATE).map(drop)),
    ("open O_CREAT O_EXCL of what is there", Errno::EXIST, |at| {
        open(&at.file, OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL).map(drop)
    }),
    ("open O_TMPFILE", Errno::ROFS, |at| open(&at.directory, OFlags::RDWR | OFlags::TMPFILE).map(drop)),
    ("open a directory for writing", Errno::ISDIR, |at| open(&at.directory, OFlags::WRONLY).map(drop)),
    ("truncate", Errno::ROFS, |at| {
        let path = std::ffi::CString::new(at.file.to_str().expect("is text")).expect("no zero byte");
        // SAFETY: the path ends with a zero byte and outlives the call.
        match unsafe { libc::truncate(path.as_ptr(), 0) } {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).expect("of the system")),
        }
    }),
    ("unlink", Errno::ROFS, |at| rustix::fs::unlink(&at.file)),
    ("unlink of a link", Errno::ROFS, |at| rustix::fs::unlink(&at.link)),
    ("rmdir", Errno::ROFS, |at| rustix::fs::rmdir(&at.directory)),
    ("rename", Errno::ROFS, |at| rustix::fs::rename(&at.file, &at.new)),
    ("rename to another file system", Errno::XDEV, |at| rustix::fs::rename(&at.file, at.other.path().join("new"))),
    ("link", Errno::ROFS, |at| rustix::fs::link(&at.file, &at.new)),
    ("symlink", Errno::ROFS, |at| rustix::fs::symlink("target", &at.new)),
    ("mkdir", Errno::ROFS, |at| rustix::fs::mkdir(&at.new, Mode::RWXU)),
    ("mknod of a FIFO", Errno::ROFS, |at| rustix::fs::mknodat(CWD, &at.new, FileType::Fifo, Mode::RUSR, 0)),
    ("mknod of a file", Errno::ROFS, |at| rustix::fs::mknodat(CWD, &at.new, FileType::RegularFile, Mode::RUSR, 0)),
    ("chmod", Errno::ROFS, |at| rustix::fs::chmod(&at.file, Mode::RWXU)),
    ("chown", Errno::ROFS, |at| rustix::fs::chown(&at.file, Some(rustix::fs::Uid::ROOT), None)),
    ("utimens", Errno::ROFS, |at| rustix::fs::utimensat(CWD, &at.file, &NOW, AtFlags::empty())),
    ("utimens of a link", Errno::ROFS, |at| rustix::fs::utimensat(CWD, &at.link, &NOW, AtFlags::SYMLINK_NOFOLLOW)),
    ("setxattr", Errno::ROFS, |at| rustix::fs::setxattr(&at.file, "user.x", b"1", XattrFlags::empty())),
    ("removexattr", Errno::ROFS, |at| rustix::fs::removexattr(&at.file, "user.x")),
    ("access W_OK of a file", Errno::ROFS, |at| rustix::fs::access(&at.file, Access::WRITE_OK)),
    ("access W_OK of a directory", Errno::ROFS, |at| rustix::fs::access(&at.directory, Access::WRITE_OK)),
    // By a descriptor: what changes a file's attributes.
    ("fchmod", Errno::ROFS, |at| rustix::fs::fchmod(at.open(), Mode::RWXU)),
    ("fchown", Errno::ROFS, |at| rustix::fs::fchown(at.open(), Some(rustix::fs::Uid::ROOT), None)),
    ("futimens", Errno::ROFS, |at| rustix::fs::futimens(at.open(), &NOW)),
    ("fsetxattr", Errno::ROFS, |at| rustix::fs::fsetxattr(at.open(), "user.x", b"1", XattrFlags::empty())),
    ("fremovexattr", Errno::ROFS, |at| rustix::fs::fremovexattr(at.open(), "user.x")),
    ("ioctl FS_IOC_SETFLAGS", Errno::ROFS, |at| rustix::fs::ioctl_setflags(at.open(), IFlags::APPEND)),
    // By a descriptor: what changes content. There are none for writing, so the kernel says that this one is not.
    ("write", Errno::BADF, |at| rustix::io::write(at.open(), b"x").map(drop)),
    ("pwrite", Errno::BADF, |at| rustix::io::pwrite(at.open(), b"x", 0).map(drop)),
    ("ftruncate", Errno::INVAL, |at| rustix::fs::ftruncate(at.open(), 0)),
    ("fallocate", Errno::BADF, |at| rustix::fs::fallocate(at.open(), FallocateFlags::empty(), 0, 1)),
    ("copy_file_range to it", Errno::BADF, |at| rustix::fs::copy_file_range(at.plain(), None, at.open(), None, 10).map(drop)),
    ("sendfile to it", Errno::BADF, |at| rustix::fs::sendfile(at.open(), at.open(), None, 10).map(drop)),
    ("ioctl FICLONE", Errno::BADF, |at| rustix::fs::ioctl_ficlone(at.open(), at.open())),
    ("mmap shared, writable", Errno::ACCESS, |at| {
        Mapping::new(&at.open(), 0, PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED).map(drop)
    }),
    ("fcntl lock for writing", Errno::BADF, |at| rustix::fs::fcntl_lock(at.open(), FlockOperation::NonBlockingLockExclusive)),
    // What there is none of.
    ("mmap executable", Errno::PERM, |at| {
        Mapping::new(&at.open(), 0, PAGE, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE).map(drop)
    }),
    ("access X_OK of a file", Errno::ACCESS, |at| rustix::fs::access(&at.file, Access::EXEC_OK)),
    ("getxattr of another name", Errno::NODATA, |at| rustix::fs::getxattr(&at.file, "user.x", &mut [0u8; 9]).map(drop)),
    ("getxattr of an ACL", Errno::NODATA, |at| {
        rustix::fs::getxattr(&at.file, "system.posix_acl_access", &mut [0u8; 9]).map(drop)
    }),
    ("getxattr without room", Errno::RANGE, |at| rustix::fs::getxattr(&at.file, "user.tintype.content", &mut [0u8; 9]).map(drop)),
    ("listxattr without room", Errno::RANGE, |at| rustix::fs::listxattr(&at.file, &mut [0u8; 9]).map(drop)),
    ("ioctl FS_IOC_GETFLAGS", Errno::NOTTY, |at| rustix::fs::ioctl_getflags(at.open()).map(drop)),
    ("copy_file_range from it", Errno::XDEV, |at| rustix::fs::copy_file_range(at.open(), None, at.plain(), None, 10).map(drop)),
    ("lseek SEEK_DATA behind the end", Errno::NXIO, |at| rustix::fs::seek(at.open(), SeekFrom::Data(3_000_000)).map(drop)),
    ("read of a directory", Errno::ISDIR, |at| {
        rustix::io::read(File::open(&at.directory).expect("opens"), &mut [0u8; 9]).map(drop)
    }),
    ("open O_NOFOLLOW of a link", Errno::LOOP, |at| open(&at.link, OFlags::RDONLY | OFlags::NOFOLLOW).map(drop)),
    ("open O_DIRECTORY of a file", Errno::NOTDIR, |at| open(&at.file, OFlags::RDONLY | OFlags::DIRECTORY).map(drop)),
];

#[test]
fn every_call_that_would_change_something_is_refused_with_its_number() {
    let place = Place::new();
    let wrong: Vec<_> = REFUSED
        .iter()
        .map(|(name, expected, call)| (name, Err(*expected), call(&place)))
        .filter(|(_, expected, answer)| expected != answer)
        .collect();
    assert!(wrong.is_empty(), "call, expected, answered: {wrong:#?}");
    assert_eq!(fs::read(&place.file).expect("readable"), content());
    assert!(!place.new.exists() && place.link.is_symlink() && place.directory.is_dir());
}

#[test]
fn reading_by_all_ways_gives_the_bytes() {
    let (place, content) = (Place::new(), content());
    for flags in [OFlags::empty(), OFlags::CREATE, OFlags::APPEND, OFlags::NOATIME, OFlags::NONBLOCK, OFlags::SYNC] {
        let file = File::from(open(&place.file, OFlags::RDONLY | flags).expect("opens"));
        let mut buffer = [0; 100];
        file.read_exact_at(&mut buffer, 2_000_000).expect("readable");
        assert_eq!(buffer, content[2_000_000..2_000_100], "{flags:?}");
    }
    let file = place.open();
    let mut buffer = [0; 100];
    assert_eq!(rustix::io::pread(&file, &mut buffer, 2_999_990).expect("reads"), 10, "short at the end alone");
    assert_eq!(rustix::io::pread(&file, &mut buffer, 3_000_000).expect("reads"), 0);
    assert_eq!(rustix::io::pread(&file, &mut buffer, 1 << 40).expect("reads"), 0);
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::WillNeed).expect("is advice");
}

#[test]
fn a_shared_mapping_shows_the_file_and_a_private_one_is_its_owners() {
    let (place, content) = (Place::new(), content());
    let file = place.open();
    let mut shared = Mapping::new(&file, 0, PAGE, libc::PROT_READ, libc::MAP_SHARED).expect("maps");
    let mut private = Mapping::new(&file, 0, PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE).expect("maps");
    drop(file);
    assert_eq!(shared.bytes(PAGE), &content[..PAGE]);
    private.bytes(PAGE).fill(7);
    assert_eq!(private.bytes(PAGE), [7; PAGE]);
    assert_eq!(shared.bytes(PAGE), &content[..PAGE], "what is written into a private mapping stays there");
    assert_eq!(fs::read(&place.file).expect("readable"), content);
}

#[test]
fn sendfile_gives_the_bytes_and_cp_gets_over_copy_file_range() {
    let (place, content) = (Place::new(), content());
    let (from, to) = (place.open(), place.plain());
    let mut sent = 0;
    while sent < content.len() {
        sent += rustix::fs::sendfile(to.as_fd(), from.as_fd(), None, content.len() - sent).expect("sends");
    }
    assert_eq!(fs::read(place.other.path().join("plain")).expect("readable"), content);
    let copy = place.other.path().join("copy");
    assert!(Command::new("cp").args([&place.file, &copy]).status().expect("coreutils").success());
    assert_eq!(fs::read(copy).expect("readable"), content);
}

#[test]
fn the_whole_file_is_data() {
    let file = Place::new();
    let file = file.open();
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)), Ok(0));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(1_234_567)), Ok(1_234_567));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)), Ok(3_000_000));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::End(-1)), Ok(2_999_999));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::End(1000)), Ok(3_001_000), "behind the end, as everywhere");
}

#[test]
fn locks_hold_among_the_processes_of_this_host() {
    let place = Place::new();
    let (one, other) = (place.open(), place.open());
    rustix::fs::flock(&one, FlockOperation::NonBlockingLockExclusive).expect("is free");
    assert_eq!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN));
    let script = "import fcntl, sys\n\
        try: fcntl.flock(open(sys.argv[1]), fcntl.LOCK_SH | fcntl.LOCK_NB)\nexcept BlockingIOError: print('held')";
    let output = Command::new("python3").args(["-c", script]).arg(&place.file).output().expect("python3");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "held\n");
    drop(one);
    rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared).expect("is free again");
    rustix::fs::fcntl_lock(&other, FlockOperation::NonBlockingLockShared).expect("a lock for reading");
    rustix::fs::fcntl_lock(&other, FlockOperation::Unlock).expect("and away");
}

#[test]
fn statfs_says_nothing_is_free_and_nothing_may_be_written() {
    let place = Place::new();
    let space = rustix::fs::statvfs(&place.file).expect("answers");
    assert_eq!((space.f_blocks, space.f_bfree, space.f_bavail, space.f_ffree), (0, 0, 0, 0));
    assert_eq!((space.f_namemax, space.f_bsize), (255, 4096));
    let flags = space.f_flag;
    use rustix::fs::StatVfsMountFlags as Flags;
    assert!(flags.contains(Flags::RDONLY | Flags::NOSUID | Flags::NODEV | Flags::NOEXEC), "{flags:?}");
}

#[test]
fn fsync_succeeds_since_there_is_nothing_to_write() {
    let place = Place::new();
    let (file, directory) = (place.open(), File::open(&place.node).expect("opens"));
    for descriptor in [&file, &directory] {
        rustix::fs::fsync(descriptor).expect("nothing to do");
        rustix::fs::fdatasync(descriptor).expect("nothing to do");
    }
    rustix::fs::syncfs(&file).expect("nothing to do");
}

#[test]
fn a_directory_can_be_read_on_from_any_of_its_offsets() {
    let place = Place::new();
    let read = |from: Option<i64>| {
        let mut directory = Dir::new(File::open(&place.node).expect("opens")).expect("a directory");
        if let Some(offset) = from {
            directory.seek(offset).expect("to an offset that it gave");
        }
        let entry = |entry: Result<rustix::fs::DirEntry>| entry.map(|entry| (entry.file_name().to_owned(), entry.offset()));
        directory.map(entry).collect::<Result<Vec<_>>>().expect("readable")
    };
    let all = read(None);
    assert_eq!(all.len(), 7, "five entries, `.` and `..`: {all:?}");
    for (index, (_, offset)) in all.iter().enumerate() {
        assert_eq!(read(Some(*offset)), all[index + 1..], "behind entry {index}");
    }
    let mut again = Dir::new(File::open(&place.node).expect("opens")).expect("a directory");
    let first = again.by_ref().count();
    again.rewind();
    assert_eq!((first, again.count()), (7, 7));
}

#[test]
fn inotify_tells_what_programs_of_this_host_do() {
    let place = Place::new();
    let watcher = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("a watcher");
    inotify::add_watch(&watcher, &place.file, WatchFlags::ALL_EVENTS).expect("can be watched");
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    assert!(matches!(inotify::Reader::new(&watcher, &mut buffer).next(), Err(Errno::AGAIN)), "nothing happened yet");
    assert_eq!(fs::read(&place.file).expect("readable"), content());
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let event = inotify::Reader::new(&watcher, &mut buffer).next().expect("it was opened").events();
    assert!(event.contains(inotify::ReadFlags::OPEN), "{event:?}");
}

#[test]
fn access_agrees_with_the_modes_and_nothing_can_be_executed() {
    let place = Place::new();
    for path in [&place.file, &place.directory] {
        rustix::fs::access(path, Access::READ_OK | Access::EXISTS).expect("root reads");
    }
    rustix::fs::access(&place.directory, Access::EXEC_OK).expect("can be passed through");
    let tree = [(b"program".to_vec(), FakeEntry::File(b"#!/bin/sh\necho run\n".to_vec()))];
    let served = serve_tree(tree.into(), 1 << 20);
    let error = Command::new(served.node().join("program")).output().expect_err("noexec");
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
}

#[test]
fn ioctl_of_a_file_knows_what_the_kernel_knows_by_itself() {
    let place = Place::new();
    let file = place.open();
    assert_eq!(rustix::io::ioctl_fionread(&file), Ok(3_000_000));
    let output = Command::new("lsattr").arg(&place.file).output();
    if let Ok(output) = output {
        assert!(!output.status.success(), "there are no flags");
    }
}

/// Path to number, of everything below a directory.
fn numbers(root: &Path) -> BTreeMap<PathBuf, u64> {
    let listed = succeed(root, &["find", ".", "-printf", "%i %p\\n"]);
    let line = |line: &str| line.split_once(' ').map(|(number, path)| (path.into(), number.parse().expect("a number")));
    listed.lines().map(|text| line(text).expect("two words")).collect()
}

#[test]
fn every_file_has_the_same_number_after_a_remount_and_in_any_order_of_looks() {
    let source = FakeSource::new();
    for (cluster, date) in [("prod", DATE), ("prod", "2026-11-21T00-00-00Z"), ("other", DATE)] {
        source.publish(cluster, date, 1 << 20, &[("node-1", sample_tree()), ("node-2", sample_tree())]);
    }
    let first = serve_with(source.clone(), |_| {});
    let before = numbers(&first.mountpoint);
    let different: BTreeSet<_> = before.values().collect();
    assert!(before.len() > 50 && different.len() == before.len(), "one number, one file: {before:#?}");
    drop(first);

    let again = serve_with(source, |options| options.owner = Some((1, 1)));
    for (path, number) in before.iter().rev() {
        let found = fs::symlink_metadata(again.path(path.to_str().expect("is text"))).expect("is there").ino();
        assert_eq!(found, *number, "{}", path.display());
    }
    assert_eq!(numbers(&again.mountpoint), before);
}

fn extended(path: &Path) -> BTreeMap<String, String> {
    let mut list = vec![0; rustix::fs::listxattr_query(path).expect("says how long")];
    assert_eq!(rustix::fs::listxattr(path, &mut list[..]).expect("lists"), list.len());
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(|name| String::from_utf8_lossy(name));
    let value = |name: &str| {
        let mut value = vec![0; rustix::fs::getxattr_query(path, name).expect("says how long")];
        assert_eq!(rustix::fs::getxattr(path, name, &mut value[..]).expect("is there"), value.len());
        String::from_utf8(value).expect("is text")
    };
    names.map(|name| (name.to_string(), value(&name))).collect()
}

#[test]
fn extended_attributes_tell_how_a_file_is_stored() {
    let place = Place::new();
    let of_file = extended(&place.file);
    let names = ["block_bytes", "blocks", "cached_bytes", "class", "content"].map(|name| format!("user.tintype.{name}"));
    assert!(of_file.keys().eq(&names), "{of_file:?}");
    assert_eq!((&*of_file[&names[0]], &*of_file[&names[1]]), ("1048576", "3"));
    assert!(["immutable", "append_only", "rewritten"].contains(&&*of_file[&names[3]]), "{of_file:?}");
    assert_eq!(&*of_file[&names[2]], "0", "without a cache on a disk");
    let id = &of_file[&names[4]];
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(extended(&place.node.join("empty"))["user.tintype.blocks"], "0");

    let snapshot = place.node.parent().expect("has one");
    let of_snapshot = extended(snapshot);
    let text = fs::read_to_string(snapshot.join(".snapshot.json")).expect("readable");
    let manifest: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(manifest["uuid"], of_snapshot["user.tintype.uuid"]);
    assert_eq!(manifest["cut"]["consistent"], of_snapshot["user.tintype.consistent"]);
    assert_eq!(of_snapshot.len(), 2);

    let above = snapshot.parent().and_then(Path::parent).expect("has one");
    let of_mount = extended(above);
    assert!(of_mount.iter().map(|(name, value)| (&**name, &**value)).eq([("user.tintype.passthrough", "off")]), "{of_mount:?}");
    for path in [&above.join("prod"), &place.node, &place.directory, &snapshot.join(".snapshot.json")] {
        assert!(extended(path).is_empty(), "{}", path.display());
    }
}

#[test]
fn extended_attributes_of_what_was_listed_come_from_memory_while_the_source_hangs() {
    let place = Place::new();
    assert_eq!(fs::read_dir(&place.node).expect("can be listed").count(), 5);
    let before = extended(&place.file);
    place.served.source.hang();
    within(Duration::from_secs(1), "getxattr", || {
        assert_eq!(extended(&place.file), before);
        assert_eq!(rustix::fs::getxattr(&place.file, "security.capability", &mut [0u8; 9]), Err(Errno::NODATA));
    });
    place.served.source.resume();
}

#[test]
fn every_call_of_the_table_is_in_readme() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("README.md is there");
    let section = readme.split("### Semantics").nth(1).expect("the section");
    let section = section.split("\n### ").next().expect("its text");
    let calls = REFUSED.iter().map(|(name, ..)| name.split(' ').next().expect("a word"));
    let others = "read pread mmap sendfile flock fcntl statfs fsync readdir inotify execve ioctl lseek stat readlink listxattr";
    for call in calls.chain(others.split(' ')) {
        let call = call.strip_suffix(',').unwrap_or(call);
        assert!(section.contains(&format!("`{call}`")), "{call}");
    }
    for word in ["O_TMPFILE", "O_TRUNC", "O_APPEND", "O_CREAT", "W_OK", "X_OK", "SEEK_DATA", "SEEK_HOLE"] {
        assert!(section.contains(word), "{word}");
    }
}
