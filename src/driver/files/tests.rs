//! What a plain directory as a node promises, on the real file system.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, FileType};

use super::*;
use crate::base::SystemClock;

const MANY: u64 = 100_000;

fn options(directory: &Path) -> FilesOptions {
    FilesOptions {
        node: "node-1".to_owned(),
        directory: directory.to_owned(),
        staging: None,
        classes: Vec::new(),
        served: Vec::new(),
    }
}

fn capture(directory: &Path) -> Result<Vec<CapturedEntry>, DriverError> {
    walk_again(&options(directory), &SystemClock::default(), MANY, &mut |_| {})
}

fn read(entry: &CapturedEntry) -> Vec<u8> {
    let CapturedContent::File { file, length_bytes, .. } = &entry.content else { panic!("{} is no file", entry.path) };
    let mut content = vec![0; usize::try_from(*length_bytes).expect("small")];
    file.read_exact_at(&mut content, 0).expect("reads");
    content
}

fn by_path(entries: &[CapturedEntry]) -> BTreeMap<Vec<u8>, &CapturedEntry> {
    entries.iter().map(|entry| (entry.path.as_bytes().to_vec(), entry)).collect()
}

fn fifo(place: &Path) {
    rustix::fs::mknodat(CWD, place, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("makes a FIFO");
}

#[test]
fn a_tree_is_captured_parents_first_with_names_of_any_byte() {
    let directory = tempfile::tempdir().expect("a directory");
    let odd: Vec<u8> = (1..=254).filter(|byte| *byte != b'/').collect();
    std::fs::create_dir_all(directory.path().join("a/b")).expect("makes");
    std::fs::write(directory.path().join("a/b/file"), b"content").expect("writes");
    std::fs::write(directory.path().join(OsStr::from_bytes(&odd)), b"odd").expect("writes");
    symlink("/etc/passwd", directory.path().join("a/out")).expect("links");
    std::fs::set_permissions(directory.path().join("a/b/file"), PermissionsExt::from_mode(0o4640)).expect("sets");

    let entries = capture(directory.path()).expect("captures");
    for (number, entry) in entries.iter().enumerate().skip(1) {
        let parent = entry.path.parent().expect("not the root");
        assert!(entries[..number].iter().any(|earlier| earlier.path == parent), "{}", entry.path);
    }
    let found = by_path(&entries);
    assert_eq!(found.len(), 6);
    assert_eq!(read(found[&b"a/b/file"[..]]), b"content");
    assert_eq!(read(found[&odd]), b"odd");
    assert_eq!(found[&b"a/b/file"[..]].mode, 0o4640);
    assert!(matches!(&found[&b"a/out"[..]].content, CapturedContent::LinkTarget(target) if target == b"/etc/passwd"));
    if rustix::process::getuid().is_root() {
        assert_eq!(found[&b"a"[..]].owner.user.as_deref(), Some("root"));
    }
}

#[test]
fn what_is_no_file_is_refused_with_its_path_and_never_opened() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(directory.path().join("inner")).expect("makes");
    let place = directory.path().join("inner/pipe");
    fifo(&place);
    let error = capture(directory.path()).expect_err("a FIFO");
    assert!(matches!(&error, DriverError::Refused { reason, .. } if reason.contains("inner/pipe: is a FIFO")), "{error}");
    std::fs::remove_file(&place).expect("removes");
    let _listener = UnixListener::bind(&place).expect("binds");
    let error = capture(directory.path()).expect_err("a socket");
    assert!(matches!(&error, DriverError::Refused { reason, .. } if reason.contains("inner/pipe: is a socket")), "{error}");
}

#[test]
fn a_directory_that_is_none_is_refused_and_a_link_to_one_is_resolved() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("node");
    assert!(matches!(capture(&place), Err(DriverError::Refused { .. })));
    fifo(&place);
    let error = capture(&place).expect_err("a FIFO");
    assert!(error.to_string().contains("is a FIFO, not a directory"), "{error}");
    std::fs::create_dir(directory.path().join("real")).expect("makes");
    std::fs::write(directory.path().join("real/file"), b"x").expect("writes");
    symlink("real", directory.path().join("link")).expect("links");
    assert_eq!(capture(&directory.path().join("link")).expect("captures").len(), 2);
}

#[test]
fn an_unreadable_file_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().to_owned();
    std::fs::set_permissions(&place, PermissionsExt::from_mode(0o755)).expect("sets");
    std::fs::write(place.join("secret"), b"x").expect("writes");
    std::fs::set_permissions(place.join("secret"), PermissionsExt::from_mode(0o000)).expect("sets");
    let result = std::thread::spawn(move || {
        if rustix::process::getuid().is_root() {
            // Of this thread alone, which ends with the test.
            // SAFETY: a system call with three numbers.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            assert_eq!(changed, 0);
        }
        capture(&place).map(|entries| entries.len())
    });
    let error = result.join().expect("ends").expect_err("unreadable");
    assert!(matches!(&error, DriverError::Denied { reason, .. } if reason.contains("secret")), "{error}");
}

#[test]
fn what_vanishes_once_is_looked_for_again_and_what_changes_twice_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("file");
    std::fs::write(&place, b"x").expect("writes");
    let clock = SystemClock::default();
    let entries = walk_again(&options(directory.path()), &clock, MANY, &mut |_| drop(std::fs::remove_file(&place)));
    assert_eq!(entries.expect("the second walk does not find it").len(), 1);

    std::fs::write(&place, b"x").expect("writes");
    // Renamed after each listing: every walk sees a name that is gone when it is opened.
    let mut renames = 0;
    let mut current = place.clone();
    let mut vanish = |_: &TreePath| {
        renames += 1;
        let next = directory.path().join(format!("file-{renames}"));
        std::fs::rename(&current, &next).expect("moves");
        current = next;
    };
    let error = walk_again(&options(directory.path()), &clock, MANY, &mut vanish).expect_err("changes");
    assert!(matches!(&error, DriverError::Refused { reason, .. } if reason.contains("vanished")), "{error}");
}

#[test]
fn a_link_put_in_the_place_of_a_directory_is_not_followed() {
    let directory = tempfile::tempdir().expect("a directory");
    let inner = directory.path().join("inner");
    std::fs::create_dir(&inner).expect("makes");
    let mut swap = |path: &TreePath| {
        if path.is_root() && std::fs::remove_dir(&inner).is_ok() {
            symlink("/etc", &inner).expect("links");
        }
    };
    let entries = walk_again(&options(directory.path()), &SystemClock::default(), MANY, &mut swap).expect("captures");
    assert_eq!(entries.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [FileKind::Directory, FileKind::Link]);
}

#[test]
fn thousands_of_files_are_held_open_and_too_many_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    for number in 0..3000 {
        std::fs::write(directory.path().join(number.to_string()), number.to_string()).expect("writes");
    }
    let limit = raise_open_files();
    if limit > 3000 {
        let entries = walk_again(&options(directory.path()), &SystemClock::default(), limit, &mut |_| {}).expect("captures");
        assert_eq!(entries.len(), 3001);
        assert!(entries.iter().skip(1).all(|entry| read(entry) == entry.path.as_bytes()));
    }
    let error = walk_again(&options(directory.path()), &SystemClock::default(), 100, &mut |_| {}).expect_err("too many");
    assert!(matches!(&error, DriverError::Refused { reason, .. } if reason.contains("100 files")), "{error}");
}

#[tokio::test]
async fn a_capture_outlives_unlinks_and_a_change_after_it_is_noticed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (kept, changed) = (directory.path().join("kept"), directory.path().join("changed"));
    std::fs::write(&kept, b"kept").expect("writes");
    std::fs::write(&changed, b"before").expect("writes");
    let mut driver = FilesDriver::new(options(directory.path()), Arc::new(SystemClock::default()));
    driver.prepare(Duration::from_secs(1), Duration::from_secs(1)).await.expect("prepares");
    driver.freeze(Duration::from_secs(1)).await.expect("freezes");
    driver.capture().await.expect("captures");
    assert_eq!(driver.thaw().await.expect("thaws").proof.consistent, Consistency::No);
    std::fs::remove_file(&kept).expect("removes");
    std::fs::OpenOptions::new().write(true).open(&changed).expect("opens").write_all(b"after!").expect("writes");
    let entries = driver.collect().await.expect("collects");
    let still: Vec<_> = entries
        .iter()
        .filter_map(|entry| match &entry.content {
            CapturedContent::File { file, length_bytes, fingerprint: Some(print) } => {
                Some((entry.path.to_string(), is_still(print, *length_bytes, file).expect("stat")))
            }
            _ => None,
        })
        .collect();
    assert_eq!(still, [("changed".to_owned(), false), ("kept".to_owned(), true)]);
    assert!(matches!(driver.collect().await, Err(DriverError::Broken { .. })));
    driver.abandon().await;
    driver.abandon().await;
}

#[test]
fn a_file_written_within_a_tick_of_its_capture_is_not_believed() {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(b"x").expect("writes");
    let meta = file.metadata().expect("stat");
    let print = |age_ns| Fingerprint {
        device: meta.dev(),
        inode: meta.ino(),
        modified_ns: modified_ns(&meta),
        captured_ns: modified_ns(&meta) + age_ns,
    };
    assert!(!is_still(&print(1_000_000), 1, &file).expect("stat"));
    assert!(is_still(&print(11_000_000), 1, &file).expect("stat"));
    assert!(!is_still(&print(11_000_000), 2, &file).expect("stat"));
    // The private clone of another inode.
    assert!(is_still(&Fingerprint { inode: 1, ..print(0) }, 1, &file).expect("stat"));
}

#[test]
fn where_clones_are_possible_a_rewritten_file_keeps_its_bytes_and_elsewhere_it_is_read_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let staging = tempfile::tempdir_in(directory.path().parent().expect("a parent")).expect("a directory");
    let place = directory.path().join("file");
    std::fs::write(&place, b"before").expect("writes");
    let options = FilesOptions { staging: Some(staging.path().to_owned()), ..options(directory.path()) };
    let entries = walk_again(&options, &SystemClock::default(), MANY, &mut |_| {}).expect("captures");
    std::fs::OpenOptions::new().write(true).open(&place).expect("opens").write_all(b"after!").expect("writes");
    let CapturedContent::File { file, fingerprint: Some(print), .. } = &entries[1].content else { panic!("a file") };
    let is_clone = file.metadata().expect("stat").ino() != print.inode;
    assert_eq!(read(&entries[1]), if is_clone { b"before" } else { b"after!" });
    assert_eq!(std::fs::read_dir(staging.path()).expect("lists").count(), 0);
}

#[test]
fn classes_come_from_endings_and_block_sizes_from_class_and_size() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["000001.sst", "log", "big"] {
        std::fs::write(directory.path().join(name), b"x").expect("writes");
    }
    std::fs::File::options()
        .write(true)
        .open(directory.path().join("big"))
        .and_then(|file| file.set_len(SMALL_BLOCKS_MAX_BYTES + 1))
        .expect("grows");
    let classes = vec![(".sst".to_owned(), FileClass::Immutable)];
    let options = FilesOptions { classes, ..options(directory.path()) };
    let entries = walk_again(&options, &SystemClock::default(), MANY, &mut |_| {}).expect("captures");
    let found: BTreeMap<_, _> = entries.iter().map(|entry| (entry.path.to_string(), (entry.class, entry.block_bytes))).collect();
    assert_eq!(found["000001.sst"], (FileClass::Immutable, SEQUENTIAL_BLOCK_BYTES));
    assert_eq!(found["log"], (FileClass::Rewritten, RANDOM_BLOCK_BYTES));
    assert_eq!(found["big"], (FileClass::Rewritten, SEQUENTIAL_BLOCK_BYTES));
}
