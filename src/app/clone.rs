//! Clones of this host: what is remembered of each, and serving one.
//!
//! A clone is a record in the state directory, an upper layer, a pin in the repository, and a process of its own that serves
//! it, so that no other daemon's end or restart touches it. The record is there first and goes last.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::disk_cache;
use super::failure::Failure;
use super::guard;
use super::linked::{LinkState, LinkedRestore, let_go, look_after};
use super::mount::{MountError, MountOptions, Readiness, answers, prepare, serve_until, stop_signal, unmount};
use super::mount_memory;
use super::mountpoint::{PATIENCE, within};
use super::notify::Supervisor;
use super::renewal::Renewable;
use super::wiring::Session;
use crate::base::durable;
use crate::base::file_lock::{Hold, MOMENT, lock_file};
use crate::cache::{DiskOptions, FileCache, MemoryCache, SharedCache};
use crate::fs::About;
use crate::fs::clone::{BaseNode, CloneFs, CloneOptions, Upper};
use crate::fuse::{PassthroughState, SessionOptions};
use crate::model::ids::SnapshotId;
use crate::model::names::{ClusterName, NodeName};
use crate::model::snapshot_name::DateQuery;
use crate::model::time::{SnapshotDate, Timestamp};
use crate::read::BlockReader;
use crate::repo::{NodeTree, Repository, SnapshotSource};

/// How long one question to the store may take. Who reads waits longer: the question is asked again.
const DEADLINE: Duration = Duration::from_secs(30);
/// What was written and not fsynced is at most this old when the process dies, as with a local file system.
const SAVED_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether another process still serves a clone.
const AGAIN: Duration = Duration::from_millis(20);
/// Memory for blocks where nothing is said.
const MEMORY_BYTES: u64 = 256 << 20;
/// The attribute of the root that says whose clone it is.
pub(super) const CLONE: &str = "user.tintype.clone";

/// A clone of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRecord {
    /// 1.
    pub format: u32,
    /// Its identity, and that of its pin.
    pub id: Uuid,
    /// The cluster of its base.
    pub cluster: ClusterName,
    /// The snapshot of its base.
    pub snapshot: SnapshotId,
    /// The same as the tree shows it.
    pub date: SnapshotDate,
    /// The node that is cloned.
    pub node: NodeName,
    /// Where it appears.
    pub mountpoint: PathBuf,
    /// What was written to it.
    pub upper: PathBuf,
    /// Where the snapshot is, and how it is opened.
    pub repository: String,
    /// The configuration that it was made with.
    pub config: Option<PathBuf>,
    /// Passphrase of the repository, where the command line named it.
    pub password_file: Option<PathBuf>,
    /// Key of the repository, where the command line named it.
    pub key_file: Option<PathBuf>,
    /// Others than who serves it may use it.
    pub allow_other: bool,
    /// Whom everything that was captured is given to.
    pub owner: Option<(u32, u32)>,
    /// Memory for blocks.
    pub memory_bytes: Option<u64>,
    /// How long whoever reads waits for a store that is away, in milliseconds; absent: until it is back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// The unit of systemd that has a drop-in, which keeps it from starting while this is not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// It is what links of a restore lead to: nobody writes to it, and it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<LinkedRestore>,
    /// When it was made.
    pub made_at: Timestamp,
}

impl CloneRecord {
    /// `CLUSTER/DATE/NODE`.
    pub fn source(&self) -> String {
        format!("{}/{}/{}", self.cluster, self.date, self.node)
    }
}

/// The records, one file each.
#[derive(Debug)]
pub struct CloneRecords {
    directory: PathBuf,
}

fn file_failure(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| {
        Failure::new("system", format!("{}: {error}", path.display()))
            .hint("see who owns it, and that the disk has room; state_directory in the configuration names another place")
    }
}

impl CloneRecords {
    /// Those in the state directory, which is made where it is not there.
    pub fn open(session: &Session) -> Result<Self, Failure> {
        let directory = session.state_directory().join("clones");
        let make = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        make.map_err(file_failure(&directory))?;
        let directory = directory.canonicalize().map_err(file_failure(&directory))?;
        Ok(Self { directory })
    }

    fn path(&self, id: Uuid) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    /// Where the upper layer of a clone is when nobody says where.
    pub fn upper(&self, id: Uuid) -> PathBuf {
        self.directory.join(id.to_string())
    }

    /// Writes a record durably.
    pub fn write(&self, record: &CloneRecord) -> Result<(), Failure> {
        let path = self.path(record.id);
        let text = serde_json::to_vec_pretty(record).map_err(|error| Failure::new("internal", error.to_string()))?;
        durable::replace(&path, &text).map_err(file_failure(&path))
    }

    /// Forgets a clone.
    pub fn remove(&self, id: Uuid) -> Result<(), Failure> {
        let path = self.path(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file_failure(&path)(error)),
            _ => Ok(()),
        }
    }

    /// All of them, the oldest first. One that cannot be read is an error: somebody's data hangs on it.
    pub fn all(&self) -> Result<Vec<CloneRecord>, Failure> {
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(file_failure(&self.directory))? {
            let path = entry.map_err(file_failure(&self.directory))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match self.read(&path) {
                    // Forgotten since it was listed, by who served it.
                    Err(_) if !path.exists() => {}
                    record => records.push(record?),
                }
            }
        }
        records.sort_by_key(|record| (record.made_at, record.id));
        Ok(records)
    }

    /// One of them.
    pub fn get(&self, id: Uuid) -> Result<CloneRecord, Failure> {
        self.read(&self.path(id))
    }

    fn read(&self, path: &Path) -> Result<CloneRecord, Failure> {
        let text = std::fs::read(path).map_err(file_failure(path))?;
        let wrong = |reason: String| Failure::new("state", format!("{}: {reason}", path.display()));
        let record: CloneRecord = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if record.format != 1 {
            return Err(wrong(format!("its format {} is newer than this program", record.format)));
        }
        Ok(record)
    }

    /// The clone at this place.
    pub fn at(&self, mountpoint: &Path) -> Result<CloneRecord, Failure> {
        let all = self.all()?;
        let known: Vec<_> = all.iter().map(|record| record.mountpoint.display().to_string()).collect();
        all.into_iter().find(|record| record.mountpoint == mountpoint).ok_or_else(|| {
            let hint = if known.is_empty() { "there are no clones on this host".to_owned() } else { known.join(", ") };
            Failure::new("not_found", format!("{} is no clone", mountpoint.display())).hint(format!("clones: {hint}"))
        })
    }
}

/// The base of a clone, opened.
async fn base(session: &Session, record: &CloneRecord) -> Result<(Arc<Renewable>, String, NodeTree), Failure> {
    let (repository, store) = session.lasting_repository(DEADLINE).await?;
    let id = repository.descriptor().repository.to_string();
    let source = Renewable::new(repository, store);
    let listed = source.snapshots(&record.cluster).await?;
    let all: Vec<_> = listed.iter().map(|snapshot| (snapshot.date, snapshot.uuid, snapshot.is_complete)).collect();
    let index = DateQuery::Uuid(record.snapshot).choose(&record.cluster, &all)?;
    let manifest = source.manifest(&listed[index]).await?;
    let tree = source.open_node(&manifest, &record.node).await?;
    Ok((source, id, tree))
}

/// Why an upper layer cannot be made or opened.
pub(super) fn upper_failure(upper: &Path, error: rustix::io::Errno) -> Failure {
    let hint = match error {
        rustix::io::Errno::OPNOTSUPP => "the upper layer needs a file system with extended attributes, such as ext4 or xfs",
        rustix::io::Errno::PERM => "it has to belong to who makes the clone",
        _ => "see who owns it, and that the disk has room",
    };
    Failure::new("system", format!("{}: {error}", upper.display())).hint(hint)
}

/// Held while a clone is served: a second process on one upper layer would destroy it.
pub(super) fn lock(upper: &Path) -> Result<File, Failure> {
    let path = upper.join("lock");
    let mut options = File::options();
    options.create(true).truncate(false).write(true).custom_flags(libc::O_NOFOLLOW);
    // Never made here: a clone whose disk is not mounted yet must not begin anew on another one.
    let file = options.open(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new("not_found", format!("{}: what was written to the clone is not there", upper.display()))
                .hint("mount the disk that it is on; if it is lost, tintype unclone takes the rest away")
        }
        _ => file_failure(&path)(error),
    })?;
    match lock_file(&file, Hold::Alone, Duration::ZERO) {
        Ok(true) => Ok(file),
        Ok(false) => {
            Err(Failure::new("busy", format!("{}: another process serves this clone", upper.display())).hint("tintype clones"))
        }
        Err(error) => Err(file_failure(&path)(error)),
    }
}

/// The same, once who has it has ended; who served it makes the last writes durable first.
pub(super) async fn lock_soon(upper: &Path, patience: Duration) -> Result<File, Failure> {
    let until = Instant::now() + patience;
    loop {
        match lock(upper) {
            Err(failure) if failure.code == "busy" && Instant::now() < until => tokio::time::sleep(AGAIN).await,
            result => return result,
        }
    }
}

/// Serves a clone until it is unmounted or told to stop.
pub async fn serve(session: &Session, id: Uuid, ready: Readiness) -> Result<(), Failure> {
    let begun = async {
        let records = CloneRecords::open(session)?;
        let record = records.get(id)?;
        let lock = lock_soon(&record.upper, MOMENT).await?;
        let (source, repository, tree) = base(session, &record).await?;
        Ok((records, record, lock, source, repository, tree))
    };
    let (records, record, _lock, source, repository, tree) = match begun.await {
        Ok(begun) => begun,
        Err(failure) => {
            ready.tell(Err(&failure));
            return Err(failure);
        }
    };
    mount_memory::keep_one_heap();
    let mut options = MountOptions::new(&record.mountpoint);
    options.forbidden.extend(session.repository_directory()?);
    options.forbidden.push(record.upper.clone());
    let stop = stop_signal();
    let (records, link_state) = (Arc::new(records), LinkState::default());
    let cache = disk_cache::merge(None, None, &session.config.cache);
    let begin = {
        let (record, runtime, source, tree) = (record.clone(), Handle::current(), source.clone(), tree.clone());
        let is_passthrough_wanted = session.config.mount.passthrough.unwrap_or(true);
        let link_state = link_state.clone();
        move || {
            let cache = cache.and_then(|cache| open_cache(cache, &options));
            let cache = cache.inspect_err(|failure| tracing::warn!(%failure, "the clone is served without the cache"));
            let about = about(&record, source.clone(), repository, link_state, cache.as_ref());
            let files = cache.ok().flatten().map(|cache| cache as Arc<dyn FileCache>);
            let (memory_bytes, read) = mount_memory::divide(record.memory_bytes.unwrap_or(MEMORY_BYTES), DEADLINE);
            let blocks = BlockReader::new(source, Arc::new(MemoryCache::new(memory_bytes)), files, read, runtime);
            begin(&record, &options, blocks, about, tree, is_passthrough_wanted)
        }
    };
    let begun = tokio::task::spawn_blocking(begin).await.map_err(|error| Failure::new("internal", error.to_string()))?;
    let (mounted, fs) = match begun {
        Ok(begun) => begun,
        Err(failure) => {
            ready.tell(Err(&failure));
            return Err(failure);
        }
    };
    let supervisor = Supervisor::from_environment();
    supervisor.ready(&format!("serving {}", record.mountpoint.display()));
    let saving = tokio::spawn(save_now_and_then(fs.clone()));
    let looked_after = async {
        match &record.links {
            Some(_) => look_after(records.clone(), id, source.clone(), tree, link_state).await,
            None => std::future::pending().await,
        }
    };
    let served = serve_until(&mounted, &record.mountpoint, ready, async {
        tokio::select! {
            () = stop => supervisor.stopping(),
            () = looked_after => {}
        }
    })
    .await;
    saving.abort();
    // What is said to be there when it is served again.
    let saved = tokio::task::spawn_blocking(move || fs.save()).await;
    if let Ok(Err(error)) = saved {
        return Err(Failure::new(
            "system",
            format!("{}: what was written last could not be made durable: {error}", record.upper.display()),
        )
        .hint("see whether the disk is full or failing"));
    }
    served?;
    // Whoever unmounted it: what no link leads to is not served again.
    let record = records.get(id)?;
    if record.links.as_ref().is_some_and(|links| links.are_gone(&record.mountpoint)) {
        let_go(&source.current(), &records, &record).await?;
    }
    Ok(())
}

/// Takes back what a clone needs, the record last.
pub(super) async fn forget(records: &CloneRecords, repository: &Repository, record: &CloneRecord) -> Result<(), Failure> {
    if let Some(unit) = &record.unit {
        guard::remove(unit, &record.mountpoint).await?;
    }
    match std::fs::remove_dir_all(&record.upper) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::new("system", format!("{}: {error}", record.upper.display())).hint("run it again"));
        }
        _ => {}
    }
    repository.unpin(&record.cluster, record.snapshot, record.id).await?;
    records.remove(record.id)
}

async fn save_now_and_then(fs: Arc<CloneFs>) {
    loop {
        tokio::time::sleep(SAVED_EVERY).await;
        let fs = fs.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || fs.save()).await {
            tracing::warn!(%error, "what was written to the clone is not durable yet");
        }
    }
}

/// The cache of this host's mounts. Without it a clone is slower, and no worse: whatever is wrong with it keeps no store down.
fn open_cache(cache: Option<DiskOptions>, options: &MountOptions) -> Result<Option<Arc<SharedCache>>, Failure> {
    let Some(cache) = cache else { return Ok(None) };
    let directory = cache.directory.clone();
    let others = [&options.forbidden[..], std::slice::from_ref(&options.mountpoint)].concat();
    let opened = within(PATIENCE, move || {
        disk_cache::check_place(&cache.directory, &others)?;
        Ok(Some(Arc::new(SharedCache::open(cache)?)))
    });
    opened.unwrap_or_else(|| Err(Failure::new("cache", format!("{}: its disk does not answer", directory.display()))))
}

fn begin(
    record: &CloneRecord,
    options: &MountOptions,
    blocks: Arc<BlockReader>,
    about: impl FnOnce(PassthroughState) -> About,
    tree: NodeTree,
    is_passthrough_wanted: bool,
) -> Result<(crate::fuse::Session, Arc<CloneFs>), Failure> {
    let path = prepare(options)?;
    let upper_failure = |error| upper_failure(&record.upper, error);
    let upper = Upper::open(&record.upper, record.owner).map_err(upper_failure)?;
    let passthrough = PassthroughState::new(std::sync::Mutex::new("off".to_owned()));
    let options = CloneOptions { about: about(passthrough.clone()), gives_owners: rustix::process::geteuid().is_root() };
    // A store that maps its files dies of a page that cannot be read: it waits instead, for as long as it takes where nobody
    // says otherwise.
    let patience = record.deadline_ms.map(Duration::from_millis);
    let fs = CloneFs::new(upper, BaseNode::new(blocks, tree, patience), options).map_err(upper_failure)?;
    let session = SessionOptions {
        allow_other: record.allow_other,
        is_read_only: record.links.is_some(),
        passthrough: is_passthrough_wanted.then_some(passthrough),
        source_name: Some(record.source()),
        ..SessionOptions::default()
    };
    let system = |what| {
        let mountpoint = record.mountpoint.clone();
        move |source| Failure::from(MountError::System { mountpoint, what, source })
    };
    let session = crate::fuse::Session::mount_clone(fs.clone(), &path, &session).map_err(system("cannot be mounted on"))?;
    if let Err(error) = answers(&path) {
        let _taken_away = unmount(&path);
        return Err(system("does not answer after mounting")(error));
    }
    Ok((session, fs))
}

/// What it has of the cache, for people.
fn cache_state(cache: &Result<Option<Arc<SharedCache>>, String>) -> String {
    match cache {
        Ok(None) => "none".to_owned(),
        Ok(Some(cache)) => {
            format!("{} {}", if cache.is_writer() { "writes" } else { "reads" }, cache.directory().display())
        }
        Err(reason) => format!("none: {reason}"),
    }
}

/// What the root says of the clone.
fn about(
    record: &CloneRecord,
    store: Arc<Renewable>,
    repository: String,
    links: LinkState,
    cache: Result<&Option<Arc<SharedCache>>, &Failure>,
) -> impl FnOnce(PassthroughState) -> About + use<> {
    let record = record.clone();
    let cache = cache.cloned().map_err(ToString::to_string);
    move |passthrough| {
        About::new(move || {
            let away = store.away_for().map_or("answers".to_owned(), |away| format!("away for {} s", away.as_secs()));
            let mut facts = links.facts(&record);
            facts.extend([
                (CLONE, record.source()),
                ("user.tintype.upper", record.upper.display().to_string()),
                ("user.tintype.repository", repository.clone()),
                ("user.tintype.store", away),
                ("user.tintype.cache", cache_state(&cache)),
                ("user.tintype.passthrough", passthrough.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            ]);
            facts
        })
    }
}
