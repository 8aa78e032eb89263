//! A file system that forgets on a power cut what was not synced, and the tests that cut the power after every step.
//!
//! Model: a file has current and synced bytes, a folder current and synced entries. A sync of a file keeps its bytes, a sync
//! of a folder its entries, and nothing else is kept for certain. What was not synced may survive all the same, so that each
//! cut is looked at in three worlds ([`Survival`]).

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::super::conformance;
use super::super::{Capabilities, ObjectError, ObjectStore, PutMode, list_all};
use super::LocalStore;
use super::disk::{Disk, EntryKind, FileStatus, Lock, NewFile, Visitor};

/// What of the unsynced outlives the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Survival {
    /// Nothing.
    Synced,
    /// Names, but not the bytes behind them: the file that is there and empty.
    Names,
    /// Everything: the process died and the host did not.
    All,
}

pub(crate) const WORLDS: [Survival; 3] = [Survival::Synced, Survival::Names, Survival::All];

/// A disk whose power can fail. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default, Clone)]
struct State {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    /// Changes so far.
    steps: u64,
    /// No change after this many is done.
    power_until: Option<u64>,
    /// The step that answers this error instead, once.
    fails_at: Option<(u64, i32)>,
    log: Vec<String>,
}

#[derive(Debug, Clone)]
enum Node {
    File { bytes: Vec<u8>, synced: Vec<u8> },
    Folder { entries: BTreeMap<String, u64>, synced: BTreeMap<String, u64> },
}

const ROOT: u64 = 0;

impl Node {
    fn folder() -> Self {
        Self::Folder { entries: BTreeMap::new(), synced: BTreeMap::new() }
    }
}

fn errno(code: i32) -> Error {
    Error::from_raw_os_error(code)
}

impl State {
    fn find(&self, path: &str) -> Result<u64> {
        let mut id = ROOT;
        for component in path.split('/').filter(|component| !component.is_empty()) {
            id = *self.entries(id)?.get(component).ok_or_else(|| errno(libc::ENOENT))?;
        }
        Ok(id)
    }

    fn entries(&self, id: u64) -> Result<&BTreeMap<String, u64>> {
        match self.nodes.get(&id) {
            Some(Node::Folder { entries, .. }) => Ok(entries),
            _ => Err(errno(libc::ENOTDIR)),
        }
    }

    /// Calls `change` with the entries of the folder that holds `path`, and the last component.
    fn change<T>(&mut self, path: &str, change: impl FnOnce(&mut BTreeMap<String, u64>, &str) -> Result<T>) -> Result<T> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let id = self.find(folder)?;
        match self.nodes.get_mut(&id) {
            Some(Node::Folder { entries, .. }) => change(entries, name),
            _ => Err(errno(libc::ENOTDIR)),
        }
    }

    fn insert(&mut self, path: &str, node: Node) -> Result<u64> {
        let id = self.next;
        self.change(path, |entries, name| match entries.get(name) {
            Some(_) => Err(errno(libc::EEXIST)),
            None => {
                entries.insert(name.to_owned(), id);
                Ok(())
            }
        })?;
        self.next += 1;
        self.nodes.insert(id, node);
        Ok(id)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let id = self.find(from)?;
        self.change(to, |entries, name| {
            entries.insert(name.to_owned(), id);
            Ok(())
        })?;
        self.change(from, |entries, name| {
            entries.remove(name);
            Ok(())
        })
    }

    fn after_cut(&self, survival: Survival) -> Self {
        let mut after = self.clone();
        (after.power_until, after.fails_at) = (None, None);
        for node in after.nodes.values_mut() {
            match node {
                Node::File { bytes, synced } if survival != Survival::All => bytes.clone_from(synced),
                Node::Folder { entries, synced } if survival == Survival::Synced => entries.clone_from(synced),
                _ => {}
            }
        }
        after
    }
}

impl SimulatedDisk {
    /// An empty disk, with power.
    pub(crate) fn new() -> Self {
        let mut state = State { next: ROOT + 1, ..State::default() };
        state.nodes.insert(ROOT, Node::folder());
        Self::with(state)
    }

    fn with(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a change, unless the power is gone.
    fn step(&self, what: String) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.power_until.is_some_and(|until| state.steps >= until) {
            return Err(Error::other("the power is gone"));
        }
        state.steps += 1;
        state.log.push(what);
        match state.fails_at {
            Some((step, code)) if step == state.steps => Err(errno(code)),
            _ => Ok(state),
        }
    }

    /// Lets no change pass after so many.
    pub(crate) fn cut_after(&self, steps: u64) {
        self.state().power_until = Some(steps);
    }

    /// What a reboot finds, with power again.
    pub(crate) fn left(&self, survival: Survival) -> Self {
        Self::with(self.state().after_cut(survival))
    }

    /// The last change, in words.
    pub(crate) fn last_step(&self) -> String {
        self.state().log.last().cloned().unwrap_or_default()
    }

    /// A directory store on it that remembers nothing.
    pub(crate) fn store(&self) -> LocalStore {
        LocalStore::on(Box::new(self.clone()), "simulated:".to_owned())
    }

    fn files_in(&self, folder: &str) -> usize {
        let state = self.state();
        state.find(folder).and_then(|id| Ok(state.entries(id)?.len())).unwrap_or(0)
    }
}

struct SimulatedFile {
    disk: SimulatedDisk,
    id: u64,
}

impl NewFile for SimulatedFile {
    fn write(&mut self, body: &[u8]) -> Result<()> {
        // Two steps: a write may be cut in its middle.
        for part in [&body[..body.len() / 2], &body[body.len() / 2..]] {
            let mut state = self.disk.step(format!("write {} bytes", part.len()))?;
            if let Some(Node::File { bytes, .. }) = state.nodes.get_mut(&self.id) {
                bytes.extend_from_slice(part);
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<FileStatus> {
        let mut state = self.disk.step("sync file".to_owned())?;
        match state.nodes.get_mut(&self.id) {
            Some(Node::File { bytes, synced }) => {
                synced.clone_from(bytes);
                Ok(status(self.id, bytes))
            }
            _ => Err(errno(libc::EBADF)),
        }
    }
}

struct NoLock;

impl Lock for NoLock {}

fn status(id: u64, bytes: &[u8]) -> FileStatus {
    FileStatus { kind: EntryKind::File, size_bytes: bytes.len() as u64, modified_ns: i128::from(id), inode: id }
}

impl Disk for SimulatedDisk {
    fn has_root(&self) -> bool {
        true
    }

    fn create(&self, path: &str) -> Result<Box<dyn NewFile>> {
        let mut state = self.step(format!("create {path}"))?;
        let id = state.insert(path, Node::File { bytes: Vec::new(), synced: Vec::new() })?;
        Ok(Box::new(SimulatedFile { disk: self.clone(), id }))
    }

    fn make_folder(&self, path: &str) -> Result<()> {
        self.step(format!("make folder {path}"))?.insert(path, Node::folder()).map(|_| ())
    }

    fn sync_folder(&self, path: &str) -> Result<()> {
        let mut state = self.step(format!("sync folder {path}"))?;
        let id = state.find(path)?;
        match state.nodes.get_mut(&id) {
            Some(Node::Folder { entries, synced }) => {
                synced.clone_from(entries);
                Ok(())
            }
            _ => Err(errno(libc::ENOTDIR)),
        }
    }

    fn replace(&self, from: &str, to: &str) -> Result<()> {
        self.step(format!("replace {to}"))?.rename(from, to)
    }

    fn move_new(&self, from: &str, to: &str) -> Result<()> {
        // Looked at and moved under one lock, as the system does it.
        let mut state = self.step(format!("move {to}"))?;
        if state.find(to).is_ok() {
            return Err(errno(libc::EEXIST));
        }
        state.rename(from, to)
    }

    fn remove(&self, path: &str) -> Result<()> {
        let mut state = self.step(format!("remove {path}"))?;
        state.change(path, |entries, name| entries.remove(name).map(|_| ()).ok_or_else(|| errno(libc::ENOENT)))
    }

    fn read(&self, path: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        let state = self.state();
        let Some(Node::File { bytes, .. }) = state.nodes.get(&state.find(path)?) else { return Err(errno(libc::EISDIR)) };
        let range = range.unwrap_or(0..bytes.len() as u64);
        let range = range.start as usize..range.end as usize;
        bytes.get(range).map(Bytes::copy_from_slice).ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    fn status(&self, path: &str) -> Result<FileStatus> {
        let state = self.state();
        let id = state.find(path)?;
        Ok(match state.nodes.get(&id) {
            Some(Node::File { bytes, .. }) => status(id, bytes),
            _ => FileStatus { kind: EntryKind::Folder, ..status(id, &[]) },
        })
    }

    fn visit(&self, path: &str, found: Visitor<'_>) -> Result<()> {
        let state = self.state();
        for (name, id) in state.entries(state.find(path)?)? {
            let kind = match state.nodes.get(id) {
                Some(Node::File { .. }) => EntryKind::File,
                _ => EntryKind::Folder,
            };
            if found(name, kind) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn lock(&self, _path: &str, _is_exclusive: bool, _patience: Duration) -> Result<Box<dyn Lock>> {
        Ok(Box::new(NoLock))
    }
}

fn old() -> Bytes {
    Bytes::from_static(b"the old content")
}

fn new() -> Bytes {
    Bytes::from_static(b"the new content, which is longer")
}

/// Cuts the power after every step of a put and calls `look` with what is left and whether the put had returned.
async fn cut_everywhere(before: &[(&str, Bytes)], key: &str, mode: PutMode, look: impl AsyncFn(LocalStore, bool, String)) {
    let start = SimulatedDisk::new();
    for (key, body) in before {
        start.store().put(key, body.clone(), PutMode::Create).await.expect("nothing is cut yet");
    }
    let first = start.state().steps;
    for step in first.. {
        let disk = SimulatedDisk::with(start.state().clone());
        disk.cut_after(step);
        let has_returned = disk.store().put(key, new(), mode.clone()).await.is_ok();
        for survival in WORLDS {
            let left = disk.left(survival);
            let place = format!("{survival:?} after {:?}", disk.last_step());
            look(left.store(), has_returned, place).await;
        }
        if has_returned {
            return;
        }
        assert!(step - first < 100, "a put has few steps");
    }
}

#[tokio::test]
async fn the_simulated_disk_keeps_every_promise() {
    let capabilities = Capabilities { checks_uploads: false, ..conformance::EVERYTHING };
    let store = SimulatedDisk::new().store();
    conformance::all(&store, &capabilities).await;
    conformance::strict(&store).await;
}

#[tokio::test]
async fn a_new_object_is_whole_or_absent_after_any_power_cut_and_stays_once_put() {
    for mode in [PutMode::Create, PutMode::Replace] {
        cut_everywhere(&[("a/other", old())], "a/deep/er/key", mode, async |left, has_returned, place| {
            match left.get("a/deep/er/key", None).await {
                Ok(found) => assert_eq!(found, new(), "{place}"),
                Err(ObjectError::NotFound { .. }) => assert!(!has_returned, "lost: {place}"),
                Err(error) => panic!("{error}: {place}"),
            }
            assert_eq!(left.get("a/other", None).await.expect("put before"), old(), "{place}");
            let listed = list_all(&left, "").await.expect("list");
            assert!(listed.iter().all(|entry| !entry.key.starts_with(".tmp")), "{place}");
            left.put("a/deep/er/key", new(), PutMode::Replace).await.expect("the store goes on");
        })
        .await;
    }
}

#[tokio::test]
async fn a_replaced_object_is_the_old_or_the_new_after_any_power_cut() {
    cut_everywhere(&[("a/key", old())], "a/key", PutMode::Replace, async |left, has_returned, place| {
        let found = left.get("a/key", None).await.expect("one of both is there");
        assert!(found == new() || found == old() && !has_returned, "{place}");
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_another_writer_made_and_did_not_sync_is_synced_too() {
    let disk = SimulatedDisk::new();
    disk.make_folder("a").expect("made by another");
    disk.store().put("a/key", new(), PutMode::Create).await.expect("put");
    let left = disk.left(Survival::Synced).store();
    assert_eq!(left.get("a/key", None).await.expect("the put returned"), new());
}

#[tokio::test]
async fn a_deleted_object_stays_deleted() {
    let disk = SimulatedDisk::new();
    disk.store().put("a/key", new(), PutMode::Create).await.expect("put");
    disk.store().delete("a/key").await.expect("delete");
    let left = disk.left(Survival::Synced).store();
    assert!(matches!(left.get("a/key", None).await, Err(ObjectError::NotFound { .. })));
}

#[tokio::test]
async fn a_full_disk_is_no_space_at_every_step_and_leaves_nothing() {
    let start = SimulatedDisk::new();
    start.store().put("a/key", old(), PutMode::Create).await.expect("put");
    let first = start.state().steps;
    for code in [libc::ENOSPC, libc::EDQUOT] {
        for step in first + 1.. {
            let disk = SimulatedDisk::with(start.state().clone());
            disk.state().fails_at = Some((step, code));
            let answer = disk.store().put("b/key", new(), PutMode::Create).await;
            if answer.is_ok() {
                assert!(step > first + 5, "the error never came");
                break;
            }
            assert!(matches!(answer, Err(ObjectError::NoSpace { .. })), "{answer:?} at {:?}", disk.state().log.last());
            assert_eq!(disk.files_in(".tmp"), 0, "left at {:?}", disk.state().log);
        }
    }
}
