//! The mount under the real kernel: what users and their tools do with it, and what must not happen when things hang.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tintype::app::mount::{MountError, MountOptions, Readiness, serve, stop_signal, unmount};
use tintype::read::fixture::{FakeEntry, FakeSource, FakeTree};

use crate::support::child::{again, hear};
use crate::support::mount::{DATE, Served, numbered, run, sample_tree, serve_tree, serve_with, succeed, wait_for, within};

const SOON: Duration = Duration::from_secs(2);
const BLOCK: u32 = 1 << 20;

fn errno(error: std::io::Error) -> i32 {
    error.raw_os_error().expect("an error of the system")
}

/// Everything below `root`: path to content; directories and links as what they are.
fn collect(root: &Path) -> BTreeMap<PathBuf, FakeEntry> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("can be listed") {
            let path = entry.expect("an entry").path();
            let kind = fs::symlink_metadata(&path).expect("is there").file_type();
            let what = if kind.is_dir() {
                open.push(path.clone());
                FakeEntry::Directory
            } else if kind.is_symlink() {
                FakeEntry::Link(fs::read_link(&path).expect("a link").as_os_str().as_bytes().to_vec())
            } else {
                FakeEntry::File(fs::read(&path).expect("can be read"))
            };
            found.insert(path.strip_prefix(root).expect("below it").to_owned(), what);
        }
    }
    found
}

/// The tree with the directories that its paths imply.
fn expected(tree: &FakeTree) -> BTreeMap<PathBuf, FakeEntry> {
    let mut all = BTreeMap::new();
    for (path, entry) in tree {
        let path = Path::new(OsStr::from_bytes(path));
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            all.insert(above.to_owned(), FakeEntry::Directory);
        }
        all.insert(path.to_owned(), entry.clone());
    }
    all
}

#[test]
fn the_tree_is_that_of_the_interface() {
    let served = serve_tree(sample_tree(), BLOCK);
    let listed = succeed(&served.mountpoint, &["ls", "-lRA", "--time-style=full-iso", "."]);
    for expected in
        ["latest -> 2026-11-20T10-15-30Z", ".snapshot.json", "dump.rdb", "link -> appendonlydir/", "2026-11-20 10:15:30"]
    {
        assert!(listed.contains(expected), "{expected} in {listed}");
    }
    let description = fs::read(served.path("prod/latest/.snapshot.json")).expect("readable");
    let manifest: serde_json::Value = serde_json::from_slice(&description).expect("is JSON");
    assert_eq!(manifest["date"], DATE);
    let size = fs::metadata(served.path("prod/latest/.snapshot.json")).expect("is there").size();
    assert_eq!(size, description.len() as u64);
}

#[test]
fn attributes_are_those_captured_without_bits_that_give_rights() {
    let served = serve_tree(sample_tree(), BLOCK);
    let metadata = fs::metadata(served.node().join("dump.rdb")).expect("is there");
    assert_eq!((metadata.uid(), metadata.gid(), metadata.permissions().mode()), (1234, 4321, 0o100_640));
    assert_eq!((metadata.size(), metadata.blocks(), metadata.nlink()), (3_000_000, 5860, 1));
    let cut = fs::metadata(served.path("prod/latest")).expect("is there");
    assert_eq!((cut.mtime(), cut.permissions().mode()), (1_795_169_730, 0o40_555));
}

#[test]
fn owners_can_be_mapped() {
    let source = FakeSource::new();
    source.publish("prod", DATE, BLOCK, &[("node-1", sample_tree())]);
    let served = serve_with(source, |options| options.owner = Some((77, 88)));
    for path in ["prod", "prod/latest", "prod/latest/node-1", "prod/latest/node-1/dump.rdb"] {
        let metadata = fs::metadata(served.path(path)).expect("is there");
        assert_eq!((metadata.uid(), metadata.gid()), (77, 88), "{path}");
    }
}

#[test]
fn the_kernel_holds_what_the_mount_promises() {
    let source = FakeSource::new();
    source.publish("prod", DATE, BLOCK, &[("node-1", sample_tree())]);
    let served = serve_with(source, |options| options.allow_other = true);
    let table = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let place = served.mountpoint.display().to_string();
    let line = table.lines().find(|line| line.contains(&place)).expect("is mounted");
    for option in ["ro,nosuid,nodev,noexec", " fuse.tintype tintype ", "default_permissions", "allow_other"] {
        assert!(line.contains(option), "{option} in {line}");
    }
    // What was captured as another user's is not readable by everybody.
    let script = "import os, sys\nos.setgid(65534); os.setuid(65534)\n\
        try: open(sys.argv[1])\nexcept PermissionError: print('refused')";
    let file = served.node().join("dump.rdb").display().to_string();
    let parent = served.mountpoint.parent().expect("has one");
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).expect("is ours");
    assert_eq!(succeed(&served.mountpoint, &["python3", "-c", script, &file]), "refused\n");
}

#[test]
fn a_day_and_a_unique_prefix_are_found_though_not_listed() {
    let source = FakeSource::new();
    for date in ["2026-11-20T10-15-30Z", "2026-11-20T12-00-00Z", "2026-11-21T00-00-00Z"] {
        source.publish("prod", date, BLOCK, &[("n", FakeTree::new())]);
    }
    let served = serve_with(source, |_| {});
    let target = |name: &str| fs::read_link(served.path("prod").join(name)).map(|path| path.display().to_string()).ok();
    assert_eq!(target("2026-11-20").as_deref(), Some("2026-11-20T12-00-00Z"));
    assert_eq!(target("2026-11-20T10").as_deref(), Some("2026-11-20T10-15-30Z"));
    assert_eq!(target("2026-11-2"), None);
    assert_eq!(target("latest").as_deref(), Some("2026-11-21T00-00-00Z"));
    assert_eq!(fs::read_dir(served.path("prod")).expect("listed").count(), 4);
}

#[test]
fn tools_that_copy_get_every_byte() {
    let tree = sample_tree();
    let served = serve_tree(tree.clone(), 64 * 1024);
    let target = tempfile::tempdir().expect("a directory");
    let node = served.node().display().to_string();
    let expected = expected(&tree);
    assert_eq!(collect(&served.node()), expected);
    succeed(target.path(), &["cp", "-a", &node, "cp"]);
    assert_eq!(collect(&target.path().join("cp")), expected);
    succeed(target.path(), &["rsync", "-a", &format!("{node}/"), "rsync"]);
    assert_eq!(collect(&target.path().join("rsync")), expected);
    succeed(target.path(), &["tar", "-C", &node, "-cf", "all.tar", "."]);
    fs::create_dir(target.path().join("tar")).expect("a directory");
    succeed(target.path(), &["tar", "-C", "tar", "-xf", "all.tar"]);
    assert_eq!(collect(&target.path().join("tar")), expected);
    let modified = |path: &Path| fs::metadata(path).map(|metadata| (metadata.mtime(), metadata.mtime_nsec())).expect("is there");
    assert_eq!(modified(&target.path().join("cp/dump.rdb")), modified(&served.node().join("dump.rdb")));
}

#[test]
fn find_counts_and_sha256sum_agrees() {
    let tree = sample_tree();
    let served = serve_tree(tree.clone(), BLOCK);
    let files = succeed(&served.node(), &["find", ".", "-type", "f"]);
    assert_eq!(files.lines().count(), 4);
    let plain = tempfile::tempdir().expect("a directory");
    fs::write(plain.path().join("dump.rdb"), numbered(3_000_000)).expect("room");
    assert_eq!(succeed(&served.node(), &["sha256sum", "dump.rdb"]), succeed(plain.path(), &["sha256sum", "dump.rdb"]));
}

#[test]
fn mmap_and_sendfile_give_the_bytes() {
    let content = numbered(5_000_000);
    let served = serve_tree([(b"f".to_vec(), FakeEntry::File(content.clone()))].into(), BLOCK);
    let script = "import mmap, sys\n\
        f = open('f', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n\
        sys.stdout.buffer.write(m[4_000_000:4_000_010] + m[-10:] + m[:10])";
    let output = run(&served.node(), &["python3", "-c", script]);
    assert_eq!(output.stdout, [&content[4_000_000..4_000_010], &content[4_999_990..], &content[..10]].concat());

    let source = fs::File::open(served.node().join("f")).expect("opens");
    let target = tempfile::NamedTempFile::new().expect("a file");
    let mut sent = 0;
    while sent < content.len() {
        sent += rustix::fs::sendfile(target.as_fd(), source.as_fd(), None, content.len() - sent).expect("sends");
    }
    assert_eq!(fs::read(target.path()).expect("readable"), content);
}

#[test]
fn reads_at_random_are_right() {
    let content = numbered(3_000_007);
    let served = serve_tree([(b"f".to_vec(), FakeEntry::File(content.clone()))].into(), 64 * 1024);
    let file = fs::File::open(served.node().join("f")).expect("opens");
    let mut at = 1usize;
    for _ in 0..300 {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (at >> 20) % (content.len() + 1000);
        let mut buffer = vec![0; (at >> 50) % 9000];
        let got = file.read_at(&mut buffer, offset as u64).expect("readable");
        let start = offset.min(content.len());
        assert_eq!(buffer[..got], content[start..(start + buffer.len()).min(content.len())]);
    }
}

#[test]
fn two_thousand_files_can_be_open() {
    let tree: FakeTree =
        (0..2000).map(|number| (format!("d/{number:04}").into_bytes(), FakeEntry::File(numbered(number)))).collect();
    let served = serve_tree(tree, BLOCK);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("up to the hard limit");
    let mut files: Vec<_> =
        (0..2000).map(|number| fs::File::open(served.node().join(format!("d/{number:04}"))).expect("opens")).collect();
    for (number, file) in files.iter_mut().enumerate() {
        let mut content = Vec::new();
        file.read_to_end(&mut content).expect("readable");
        assert_eq!(content, numbered(number));
    }
}

#[test]
fn names_of_any_legal_byte_are_found_and_listed() {
    let names: Vec<Vec<u8>> = vec![
        (1u8..=255).filter(|byte| *byte != b'/').take(200).collect(),
        (129u8..=255).collect(),
        b" ".to_vec(),
        b"new\nline".to_vec(),
        b"-rf".to_vec(),
        b"...".to_vec(),
        vec![0xff; 255],
        "ä…日".as_bytes().to_vec(),
    ];
    let tree: FakeTree = names.iter().map(|name| (name.clone(), FakeEntry::File(name.clone()))).collect();
    let served = serve_tree(tree.clone(), BLOCK);
    for name in &names {
        assert_eq!(&fs::read(served.node().join(OsStr::from_bytes(name))).expect("is found"), name);
    }
    assert_eq!(collect(&served.node()), expected(&tree));
    let long = fs::metadata(served.node().join("x".repeat(256))).expect_err("too long");
    assert_eq!(errno(long), libc::ENAMETOOLONG);
}

#[test]
fn nothing_can_be_changed() {
    let served = serve_tree(sample_tree(), BLOCK);
    let node = served.node();
    let file = node.join("dump.rdb");
    let refused = [
        fs::write(node.join("new"), b"x"),
        fs::write(&file, b"x"),
        fs::OpenOptions::new().append(true).open(&file).map(drop),
        fs::create_dir(served.path("prod/new")),
        fs::create_dir(served.path("new")),
        fs::remove_file(&file),
        fs::remove_dir(node.join("hollow")),
        fs::rename(&file, node.join("other")),
        fs::hard_link(&file, node.join("other")),
        std::os::unix::fs::symlink("x", node.join("other")),
        fs::set_permissions(&file, fs::Permissions::from_mode(0o777)),
        std::os::unix::fs::chown(&file, Some(0), None),
    ];
    for (number, result) in refused.into_iter().enumerate() {
        assert_eq!(result.map_err(errno), Err(libc::EROFS), "{number}");
    }
}

#[test]
fn new_snapshots_appear_and_dropped_ones_go_without_a_remount() {
    let served = serve_tree(FakeTree::new(), BLOCK);
    let link = served.path("prod/latest");
    assert_eq!(fs::read_link(&link).expect("a link"), Path::new(DATE));
    let newer = served.source.publish("prod", "2026-11-21T00-00-00Z", BLOCK, &[("n", FakeTree::new())]);
    served.source.publish("other", DATE, BLOCK, &[("n", FakeTree::new())]);
    wait_for("the new snapshot", Duration::from_secs(6), || {
        fs::read_link(&link).is_ok_and(|target| target == Path::new("2026-11-21T00-00-00Z"))
    });
    assert!(served.path("prod/2026-11-21T00-00-00Z/n").is_dir());
    wait_for("the new cluster", Duration::from_secs(6), || served.path("other/latest/n").is_dir());
    served.source.remove(newer.uuid);
    wait_for("the end of the dropped one", Duration::from_secs(6), || {
        !served.path("prod/2026-11-21T00-00-00Z").exists() && fs::read_link(&link).is_ok_and(|target| target == Path::new(DATE))
    });
}

#[test]
fn a_second_look_costs_the_source_nothing() {
    let served = serve_tree(sample_tree(), BLOCK);
    collect(&served.node());
    let small = served.source.small_reads.load(Ordering::SeqCst);
    let blocks = served.source.blocks_read.load(Ordering::SeqCst);
    collect(&served.path(&format!("prod/{DATE}/node-1")));
    assert_eq!(served.source.blocks_read.load(Ordering::SeqCst), blocks);
    // Tables of the reopened files are not read again either: their pages are in the kernel.
    assert!(served.source.small_reads.load(Ordering::SeqCst) <= small + 2);
}

#[test]
fn ten_thousand_snapshots_are_listed_quickly() {
    let source = FakeSource::new();
    let date = |number: i64| {
        tintype::model::time::SnapshotDate::from_seconds(1_700_000_000 + number * 3600).expect("in range").to_string()
    };
    for number in 0..10_000 {
        source.publish("prod", &date(number), BLOCK, &[]);
    }
    let served = serve_with(source, |_| {});
    let listed = within(Duration::from_secs(10), "ls -l", || succeed(&served.path("prod"), &["ls", "-l"]));
    assert_eq!(listed.lines().count(), 10_002);
    assert_eq!(served.source.small_reads.load(Ordering::SeqCst), 2, "one listing of clusters and one of snapshots");
}

// --- when things hang -----------------------------------------------------------------------------------------------

fn hanging(deadline: Duration) -> Served {
    let source = FakeSource::new();
    source.publish("prod", DATE, BLOCK, &[("node-1", sample_tree())]);
    let served = serve_with(source, |options| {
        options.deadline = deadline;
        options.fresh_for = Duration::from_millis(100);
    });
    // What is known from now on.
    succeed(&served.mountpoint, &["ls", "-lR", "."]);
    served.source.hang();
    served
}

#[test]
fn a_read_that_hangs_times_out() {
    let served = hanging(Duration::from_secs(1));
    let path = served.node().join("dump.rdb");
    let error = within(Duration::from_secs(4), "the read", || {
        fs::File::open(&path).and_then(|file| file.read_at(&mut [0; 100], 0)).expect_err("it hangs")
    });
    assert_eq!(errno(error), libc::ETIMEDOUT);
    served.source.resume();
    wait_for("the file to be readable again", Duration::from_secs(5), || fs::read(&path).is_ok());
    assert_eq!(fs::read(&path).expect("readable"), numbered(3_000_000));
}

#[test]
fn what_is_known_is_listed_while_the_source_hangs() {
    let served = hanging(Duration::from_secs(30));
    for _ in 0..3 {
        within(SOON, "ls", || succeed(&served.mountpoint, &["ls", "-l", ".", "prod", &format!("prod/{DATE}/node-1")]));
    }
    within(SOON, "df", || succeed(&served.mountpoint, &["stat", "-f", "."]));
    within(SOON, "stat", || succeed(&served.mountpoint, &["stat", "prod", "prod/latest/node-1/dump.rdb"]));
    within(SOON, "a name that is not there", || assert!(!served.path("prod/nothing").exists()));
    within(SOON, "the directory above", || succeed(served.mountpoint.parent().expect("has one"), &["ls", "-l"]));
}

#[test]
fn a_killed_reader_leaves_at_once_while_the_source_hangs() {
    let served = hanging(Duration::from_secs(60));
    let before = served.source.fetches.load(Ordering::SeqCst);
    let path = served.path(&format!("prod/{DATE}/node-1/dump.rdb"));
    // Tables are known from here on, so that the reader gets as far as waiting for its pages.
    let mut reader = Command::new("cat").arg(path).stdout(Stdio::null()).spawn().expect("coreutils are installed");
    wait_for("the reader to wait", Duration::from_secs(5), || {
        let asked = served.source.fetches.load(Ordering::SeqCst) > before;
        let waits = served.source.small_reads.load(Ordering::SeqCst) > 0;
        asked || waits && fs::read_to_string(format!("/proc/{}/stat", reader.id())).is_ok_and(|stat| stat.contains(") D "))
    });
    reader.kill().expect("is there");
    within(SOON, "the killed reader", || reader.wait().expect("ends"));
}

#[test]
fn what_is_corrupt_is_an_input_output_error_and_never_bytes() {
    let served = serve_tree(sample_tree(), BLOCK);
    served.source.set_corrupt(true);
    let path = served.node().join("dump.rdb");
    assert_eq!(errno(fs::read(&path).expect_err("corrupt")), libc::EIO);
    served.source.set_corrupt(false);
    wait_for("the file to be readable again", Duration::from_secs(5), || fs::read(&path).is_ok());
}

#[test]
fn unmounting_takes_less_than_five_seconds_while_a_reader_is_stuck() {
    let mut served = hanging(Duration::from_secs(60));
    let path = served.path(&format!("prod/{DATE}/node-1/dump.rdb"));
    let mut reader = Command::new("cat").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("coreutils");
    wait_for("the reader to wait", Duration::from_secs(5), || {
        fs::read_to_string(format!("/proc/{}/stat", reader.id())).is_ok_and(|stat| stat.contains(") D "))
    });
    let unmounted = within(Duration::from_secs(5), "unmount", || unmount(&served.mountpoint).expect("unmounts"));
    assert!(unmounted.was_forced);
    within(SOON, "the stuck reader", || reader.wait().expect("ends"));
    served.wait_ended().expect("ends without an error");
    assert!(matches!(unmount(&served.mountpoint), Err(MountError::NotMounted { .. })));
}

#[test]
fn a_mount_in_use_is_taken_away_from_its_users() {
    let mut served = serve_tree(sample_tree(), BLOCK);
    let file = fs::File::open(served.node().join("dump.rdb")).expect("opens");
    let unmounted = within(Duration::from_secs(5), "unmount", || unmount(&served.mountpoint).expect("unmounts"));
    assert!(unmounted.was_forced);
    assert_eq!(fs::read_dir(&served.mountpoint).expect("an empty directory again").count(), 0);
    drop(file);
    served.wait_ended().expect("ends without an error");
}

#[test]
fn stopping_unmounts() {
    let served = serve_tree(sample_tree(), BLOCK);
    let mountpoint = served.mountpoint.clone();
    drop(served);
    assert!(matches!(unmount(&mountpoint), Err(MountError::NoDirectory { .. } | MountError::NotMounted { .. })));
}

#[test]
fn unmounting_by_others_ends_the_serving() {
    let mut served = serve_tree(sample_tree(), BLOCK);
    let mountpoint = served.mountpoint.display().to_string();
    succeed(Path::new("/"), &["umount", &mountpoint]);
    served.wait_ended().expect("ends without an error");
}

// --- what may be mounted on -----------------------------------------------------------------------------------------

fn refusal(change: impl FnOnce(&mut MountOptions)) -> MountError {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = MountOptions::new(directory.path());
    change(&mut options);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(serve(FakeSource::new(), options, Readiness::Silent, std::future::ready(()))).expect_err("refused")
}

#[test]
fn what_cannot_be_mounted_on_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), b"").expect("room");
    fs::create_dir_all(at("full/inner")).expect("room");
    fs::create_dir_all(at("repository/below")).expect("room");
    std::os::unix::fs::symlink("repository/below", at("link")).expect("room");
    let mount = |path: PathBuf| refusal(|options| options.mountpoint = path);
    assert!(matches!(mount(at("absent")), MountError::NoDirectory { .. }));
    assert!(matches!(mount(at("absent/deep")), MountError::NoDirectory { .. }));
    assert!(matches!(mount(at("file")), MountError::NotADirectory { .. }));
    assert!(matches!(mount(at("full")), MountError::NotEmpty { .. }));
    assert!(matches!(mount("/proc".into()), MountError::AlreadyMounted { .. }));
    let feeding = |path: &str, forbidden: &str| {
        refusal(|options| {
            options.mountpoint = at(path);
            options.forbidden = vec![at(forbidden)];
        })
    };
    assert!(matches!(feeding("link", "repository"), MountError::FeedsOnItself { .. }));
    assert!(matches!(feeding("full/inner", "full/inner/cache-to-be"), MountError::FeedsOnItself { .. }));
    assert!(matches!(feeding("repository/below", "repository/below"), MountError::FeedsOnItself { .. }));
}

#[test]
fn a_second_mount_at_the_same_place_is_refused_and_harms_nothing() {
    let served = serve_tree(sample_tree(), BLOCK);
    let error = refusal(|options| options.mountpoint = served.mountpoint.clone());
    assert!(matches!(error, MountError::AlreadyMounted { .. }), "{error}");
    assert!(served.node().join("dump.rdb").exists());
}

#[test]
fn others_mounts_are_left_alone() {
    let error = unmount(Path::new("/proc")).expect_err("refused");
    assert!(matches!(error, MountError::NotOurs { .. }), "{error}");
}

const CHILD_MOUNTPOINT: &str = "TINTYPE_TEST_MOUNTPOINT";

/// Not a test by itself: a daemon to be killed, run by the tests below as a process of its own.
#[test]
#[ignore = "is run by other tests"]
fn child_that_serves() {
    let Some(mountpoint) = std::env::var_os(CHILD_MOUNTPOINT) else { return };
    let source = FakeSource::new();
    source.publish("prod", DATE, BLOCK, &[("node-1", sample_tree())]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let pipe = std::io::stdout().as_fd().try_clone_to_owned().expect("is open");
    let options = MountOptions::new(mountpoint);
    runtime.block_on(async { serve(source, options, Readiness::Pipe(pipe), stop_signal()).await }).expect("serves");
}

/// The daemon, and its output, which must stay open for it to end well.
fn child(mountpoint: &Path) -> (std::process::Child, std::process::ChildStdout) {
    let mut child =
        again("mount::child_that_serves").env(CHILD_MOUNTPOINT, mountpoint).stdout(Stdio::piped()).spawn().expect("starts");
    let mut output = child.stdout.take().expect("is piped");
    hear(&mut output, "served");
    (child, output)
}

#[test]
fn the_mount_of_a_killed_daemon_is_cleaned_by_the_next_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut killed, _output) = child(directory.path());
    killed.kill().expect("is there");
    killed.wait().expect("ends");
    wait_for("the dead mount", SOON, || {
        fs::metadata(directory.path()).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
    });
    let source = FakeSource::new();
    source.publish("prod", DATE, BLOCK, &[("node-1", sample_tree())]);
    let served = serve_with(source, |options| options.mountpoint = directory.path().to_owned());
    assert!(directory.path().join("prod/latest/node-1/dump.rdb").exists());
    unmount(directory.path()).expect("unmounts");
    drop(served);
}

#[test]
fn the_mount_of_a_killed_daemon_can_be_unmounted() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut killed, _output) = child(directory.path());
    killed.kill().expect("is there");
    killed.wait().expect("ends");
    within(Duration::from_secs(5), "unmount", || unmount(directory.path()).expect("unmounts"));
    assert_eq!(fs::read_dir(directory.path()).expect("an empty directory again").count(), 0);
}

#[test]
fn a_signal_unmounts_and_ends_the_daemon() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut daemon, _output) = child(directory.path());
    let id = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("is there");
    assert!(daemon.wait().expect("ends").success());
    assert_eq!(fs::read_dir(directory.path()).expect("an empty directory again").count(), 0);
}

#[test]
fn a_refusal_reaches_the_readiness_pipe() {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let options = MountOptions::new("/nonexistent/mountpoint");
    let served = serve(FakeSource::new(), options, Readiness::Pipe(writer.into()), std::future::ready(()));
    runtime.block_on(served).expect_err("refused");
    let mut line = String::new();
    reader.read_to_string(&mut line).expect("readable");
    let said: serde_json::Value = serde_json::from_str(line.strip_prefix("error: ").expect("a refusal")).expect("JSON");
    assert_eq!(said["message"], "/nonexistent/mountpoint: no such directory");
    assert!(line.ends_with('\n') && said["hint"].is_string(), "{line}");
}
