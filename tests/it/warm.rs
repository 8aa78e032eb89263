//! Files that the cache on a disk has whole: filled ahead by `warm`, read by the kernel itself, and never twice in two ways.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::Advice;
use tintype::cache::DiskOptions;
use tintype::fuse::request;
use tintype::read::fixture::FakeSource;

use crate::support::mount::{DATE, Served, sample_tree, serve_with};

const SIZE: u64 = 3_000_000;

/// Serves the sample tree with a cache in a directory of its own.
fn serve(cache: &Path, passthrough: bool) -> Served {
    let source = FakeSource::new();
    source.publish("prod", DATE, 1 << 20, &[("node-1", sample_tree())]);
    serve_with(source, |options| {
        options.passthrough = passthrough;
        options.cache = Some(DiskOptions {
            directory: cache.to_owned(),
            limit_bytes: 64 << 20,
            keep_free_bytes: 0,
            boot: "this boot".to_owned(),
        });
    })
}

fn attribute(path: &Path, name: &str) -> String {
    let mut buffer = [0; 4096];
    let length = rustix::fs::getxattr(path, name, &mut buffer[..]).expect("it has this attribute");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn passthrough(served: &Served) -> String {
    attribute(&served.mountpoint, "user.tintype.passthrough")
}

/// The store is away from now on; what was listed is known.
fn cut_off(served: &Served) {
    assert!(std::fs::read_dir(served.node()).expect("lists").count() > 0);
    served.source.hang();
}

fn dump(served: &Served) -> File {
    File::open(served.node().join("dump.rdb")).expect("opens")
}

fn assert_whole(file: &File) {
    let expected = crate::support::mount::numbered(SIZE as usize);
    let mut read = vec![0; SIZE as usize];
    file.read_exact_at(&mut read, 0).expect("readable");
    assert!(read == expected, "wrong bytes");
    assert_eq!(file.read_at(&mut read, SIZE).expect("behind the end"), 0);
    assert_eq!(file.metadata().expect("known").len(), SIZE);
}

#[test]
fn a_warmed_file_is_read_by_the_kernel_itself_and_needs_no_store() {
    let cache = tempfile::tempdir().expect("a directory");
    let served = serve(&cache.path().join("cache"), true);
    {
        let file = dump(&served);
        assert!(request::warm(&file, 0, 1 << 20).expect("fetched") >= 1 << 20);
        assert_eq!(request::warm(&file, 1 << 20, 1 << 30).expect("fetched"), SIZE);
        assert_eq!(attribute(&served.node().join("dump.rdb"), "user.tintype.cached_bytes"), SIZE.to_string());
    }
    cut_off(&served);
    let (one, two) = (dump(&served), dump(&served));
    assert!(passthrough(&served).starts_with("active, 1 files"), "{}", passthrough(&served));
    assert_whole(&one);
    assert_whole(&two);
    // The kernel passes this one advice on to the daemon, which answers it.
    rustix::fs::fadvise(&one, 0, None, Advice::WillNeed).expect("is advice");
    let mapped = File::open(served.node().join("dump.rdb")).expect("opens");
    drop((one, two));
    assert_whole(&mapped);
    drop(mapped);
    crate::support::mount::wait_for("the last release", std::time::Duration::from_secs(5), || {
        passthrough(&served).starts_with("possible")
    });
}

#[test]
fn all_handles_of_a_file_are_served_in_one_way_until_the_last_is_closed() {
    let cache = tempfile::tempdir().expect("a directory");
    let served = serve(&cache.path().join("cache"), true);
    let before = dump(&served);
    assert_whole(&before);
    request::warm(&before, 0, SIZE).expect("fetched");
    // It is whole now, and the kernel has it in the other way.
    let meanwhile = dump(&served);
    assert!(passthrough(&served).starts_with("possible"), "{}", passthrough(&served));
    assert_whole(&meanwhile);
    drop(before);
    let still = dump(&served);
    assert!(passthrough(&served).starts_with("possible"));
    assert_whole(&still);
    drop((meanwhile, still));
    crate::support::mount::wait_for("the other way", std::time::Duration::from_secs(5), || {
        let file = dump(&served);
        assert_whole(&file);
        passthrough(&served).starts_with("active")
    });
}

#[test]
fn without_passthrough_a_warmed_file_is_read_through_the_daemon() {
    let cache = tempfile::tempdir().expect("a directory");
    let served = serve(&cache.path().join("cache"), false);
    let known = dump(&served);
    assert_eq!(request::warm(&known, 0, SIZE).expect("fetched"), SIZE);
    cut_off(&served);
    assert_whole(&dump(&served));
    assert_eq!(passthrough(&served), "off");
}

#[test]
fn a_mount_without_a_cache_and_other_files_refuse_to_be_warmed() {
    let served = crate::support::mount::serve_tree(sample_tree(), 1 << 20);
    let refused = |file: &File| request::warm(file, 0, 1).expect_err("refused").raw_os_error();
    assert_eq!(refused(&dump(&served)), Some(libc::EOPNOTSUPP));
    let ours = File::open(std::env::current_exe().expect("runs")).expect("opens");
    assert_eq!(refused(&ours), Some(libc::ENOTTY));
}
