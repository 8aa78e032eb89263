//! A tree served by this process at a directory of its own, and commands that look at it, none of which may hang.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tintype::app::mount::{MountError, MountOptions, Readiness, serve, unmount};
use tintype::read::fixture::{FakeEntry, FakeSource, FakeTree};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The date of the one snapshot that most tests need.
pub const DATE: &str = "2026-11-20T10-15-30Z";

/// A mounted fake source. Dropping it unmounts, and panics when that takes too long.
pub struct Served {
    pub source: Arc<FakeSource>,
    pub mountpoint: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<Result<(), MountError>>>,
    runtime: Option<Runtime>,
    _directory: tempfile::TempDir,
}

/// Serves `source` with options changed by `change`.
pub fn serve_with(source: Arc<FakeSource>, change: impl FnOnce(&mut MountOptions)) -> Served {
    assert!(
        OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok(),
        "these tests need /dev/fuse: modprobe fuse, apt-get install fuse3, and run them as root"
    );
    let directory = tempfile::tempdir().expect("a directory");
    let mountpoint = directory.path().join("mount");
    std::fs::create_dir(&mountpoint).expect("a directory");
    let mut options = MountOptions::new(&mountpoint);
    change(&mut options);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (stop, stopped) = oneshot::channel::<()>();
    let (told, ready) = std::sync::mpsc::channel();
    let readiness = Readiness::Call(Box::new(move |result| told.send(result).expect("the test waits")));
    let served = runtime.spawn(serve(source.clone(), options, readiness, async move {
        // Dropping the sender stops it as well.
        let _ = stopped.await;
    }));
    ready.recv_timeout(Duration::from_secs(20)).expect("told in time").expect("served");
    Served { source, mountpoint, stop: Some(stop), served: Some(served), runtime: Some(runtime), _directory: directory }
}

/// Serves one snapshot `prod/DATE` with one node `node-1`.
pub fn serve_tree(tree: FakeTree, block_bytes: u32) -> Served {
    let source = FakeSource::new();
    source.publish("prod", DATE, block_bytes, &[("node-1", tree)]);
    serve_with(source, |_| {})
}

impl Served {
    /// A path below the mountpoint.
    pub fn path(&self, path: &str) -> PathBuf {
        self.mountpoint.join(path)
    }

    /// The directory of the node of [`serve_tree`].
    pub fn node(&self) -> PathBuf {
        self.path("prod/latest/node-1")
    }

    /// Waits until the serving task ended by itself.
    pub fn wait_ended(&mut self) -> Result<(), MountError> {
        let served = self.served.take().expect("waited for once");
        let runtime = self.runtime.as_ref().expect("there until the end");
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), served).await }).expect("ends").expect("no panic")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.source.resume();
        drop(self.stop.take());
        let runtime = self.runtime.take().expect("dropped once");
        if let Some(served) = self.served.take() {
            let ended = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), served).await });
            if !std::thread::panicking() {
                ended.expect("serving ends when it is stopped").expect("no panic").expect("it unmounts");
            }
        }
        // For tests that failed in the middle: leave nothing mounted.
        let _ = unmount(&self.mountpoint);
        runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

/// Runs a command that is killed after 30 s; its directory is `directory`.
pub fn run(directory: &Path, command: &[&str]) -> Output {
    let output = Command::new("timeout").args(["-k", "2", "30"]).args(command).current_dir(directory).env("LC_ALL", "C").output();
    output.expect("coreutils are installed")
}

/// The same, and it must succeed: its standard output.
pub fn succeed(directory: &Path, command: &[&str]) -> String {
    let output = run(directory, command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{command:?}: {} {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `work`, which must return within `limit`.
pub fn within<T>(limit: Duration, what: &str, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = work();
    assert!(began.elapsed() <= limit, "{what} took {:?}", began.elapsed());
    result
}

/// Looks at a state until it holds.
pub fn wait_for(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes that differ from block to block.
pub fn numbered(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ length as u64;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// A tree with something of each kind.
pub fn sample_tree() -> FakeTree {
    let file = |length| FakeEntry::File(numbered(length));
    let mut tree: FakeTree = BTreeMap::new();
    tree.insert(b"dump.rdb".to_vec(), file(3_000_000));
    tree.insert(b"empty".to_vec(), file(0));
    tree.insert(b"appendonlydir/appendonly.aof.1.base.rdb".to_vec(), file(100_000));
    tree.insert(b"appendonlydir/appendonly.aof.manifest".to_vec(), file(90));
    tree.insert(b"hollow".to_vec(), FakeEntry::Directory);
    tree.insert(b"link".to_vec(), FakeEntry::Link(b"appendonlydir/appendonly.aof.manifest".to_vec()));
    tree
}
