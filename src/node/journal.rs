//! What a restore has done so far, on the disk before it is done: one small file per node of a restore.
//!
//! How it works: a record is written to a temporary file, fsynced and renamed before each step, so that after a death at
//! any point the next run knows which step may be half done. `swap` says how each is finished or undone.
//!
//! **Invariants.** A record is whole or absent. Two restores of one directory never run at once: its lock is held by the
//! process that works on it, and the kernel gives it back when that dies.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::fresh_directory::sync_directory;
use super::restore_error::{RestoreError, blocking};
use crate::base::durable;
use crate::base::file_lock::{Hold, MOMENT, lock_file};
use crate::model::ids::SnapshotId;
use crate::model::names::{NodeName, json_bytes};
use crate::model::restore_plan::{Fit, Method, NodePlan, SwapKind};

/// Largest record that is read: names of a directory's entries, a hundred bytes each.
const RECORD_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How far a node's restore is. Written before the step is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The fresh directory is being filled; the old one is untouched.
    Staging,
    /// It is whole.
    Staged,
    /// The directories are changing places.
    Swapping,
    /// The restored one is in place, and not yet known to be good.
    Swapped,
    /// It was loaded and compared.
    Checked,
    /// The directories are changing back.
    RollingBack,
    /// The old one is in place again; the restored one is kept aside.
    RolledBack,
    /// What was set aside is being deleted.
    Settling,
}

/// A name in a directory, as its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryName(#[serde(with = "json_bytes")] pub Vec<u8>);

/// One node of a restore on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreRecord {
    /// 1.
    pub format: u32,
    /// The restore.
    pub id: Uuid,
    /// The configured cluster.
    pub cluster: String,
    /// The configured node.
    pub node: String,
    /// `CLUSTER/DATE/NODE` of what was restored.
    pub source: String,
    /// The data directory, links resolved.
    pub directory: PathBuf,
    /// The snapshot, and how its files were to fit: only the same restore may go on from what an interrupted one has left.
    #[serde(default)]
    pub snapshot: Option<SnapshotId>,
    /// See `snapshot`.
    #[serde(default)]
    pub fit: Fit,
    /// How the files come to the target.
    #[serde(default)]
    pub method: Method,
    /// Where the clone is that takes the directory's place.
    #[serde(default)]
    pub clone: Option<PathBuf>,
    /// How the directories change places.
    pub swap: SwapKind,
    /// The restore that it is a part of. One that goes on from what an interrupted one has left keeps that one's `id`, which
    /// names the directories.
    #[serde(default)]
    pub restore: Option<Uuid>,
    /// Nodes of other hosts belong to that: whether it is restored is decided for all of them.
    #[serde(default)]
    pub is_over_hosts: bool,
    /// Its store ran, and its stop was tried.
    #[serde(default)]
    pub was_stopped: bool,
    /// How far it is.
    pub step: Step,
    /// Where the restored files are while they are not in place.
    pub fresh: PathBuf,
    /// Where the replaced files are while they are set aside.
    pub before: PathBuf,
    /// Device and inode of the restored directory.
    pub new: Option<(u64, u64)>,
    /// Device and inode of the replaced directory; `None` where there was none.
    pub old: Option<(u64, u64)>,
    /// Entries that leave a mountpoint.
    #[serde(default)]
    pub leaving: Vec<EntryName>,
    /// Entries that come into it.
    #[serde(default)]
    pub entering: Vec<EntryName>,
    /// Microseconds since 1970.
    pub begun_at: i64,
}

impl RestoreRecord {
    /// Names the directories of a planned node.
    pub fn new(plan: &NodePlan, cluster: &str, source: String, snapshot: SnapshotId, now_us: i64) -> Result<Self, RestoreError> {
        let shown = plan.directory.display().to_string();
        let (fresh, before) = match plan.swap {
            SwapKind::Entries => {
                (plan.directory.join(format!(".tintype-{}", plan.id)), plan.directory.join(format!(".before-{}", plan.id)))
            }
            SwapKind::Rename => {
                let refused = || RestoreError::refused(&shown, "it has no name or no directory above it");
                let name = plan.directory.file_name().ok_or_else(refused)?.to_string_lossy().into_owned();
                let parent = plan.directory.parent().ok_or_else(refused)?;
                (parent.join(format!(".{name}.tintype-{}", plan.id)), parent.join(format!(".{name}.before-{}", plan.id)))
            }
        };
        Ok(Self {
            format: 1,
            id: plan.id,
            cluster: cluster.to_owned(),
            node: plan.target.clone(),
            source,
            snapshot: Some(snapshot),
            fit: plan.fit.clone(),
            method: plan.method,
            clone: None,
            directory: plan.directory.clone(),
            swap: plan.swap,
            restore: Some(plan.id),
            is_over_hosts: plan.is_over_hosts,
            was_stopped: false,
            step: Step::Staging,
            fresh,
            before,
            new: None,
            old: inode(&plan.directory)?,
            leaving: Vec::new(),
            entering: Vec::new(),
            begun_at: now_us,
        })
    }

    /// It was interrupted while its files were being placed, or before they were put in place.
    pub fn is_begun(&self) -> bool {
        matches!(self.step, Step::Staging | Step::Staged)
    }

    /// It belongs to the restore `id`.
    pub fn is_of(&self, id: Uuid) -> bool {
        self.restore_id() == id
    }

    /// The restore that it is a part of.
    pub fn restore_id(&self) -> Uuid {
        self.restore.unwrap_or(self.id)
    }

    /// The same restore as `other`, so that one goes on from what the other has left.
    pub fn is_same(&self, other: &Self) -> bool {
        let what = |record: &Self| (record.snapshot, record.source.clone(), record.fit.clone(), record.method, record.swap);
        self.directory == other.directory && self.snapshot.is_some() && what(self) == what(other)
    }

    /// The restored data is in place, and the data from before is kept.
    pub fn is_in_place(&self) -> bool {
        matches!(self.step, Step::Swapped | Step::Checked)
    }
}

/// Device and inode of a directory; `None` where nothing is.
pub(super) fn inode(path: &Path) -> Result<Option<(u64, u64)>, RestoreError> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RestoreError::file("look at", path)(error)),
    }
}

/// Where restores are remembered. See [`RestoreRecord`].
#[derive(Debug, Clone)]
pub struct StateDirectory {
    restores: PathBuf,
}

/// Held while a data directory is worked on.
#[derive(Debug)]
pub struct TargetLock {
    _file: File,
}

impl StateDirectory {
    /// Opens `path`, making it (for us alone) where it is not there.
    pub fn open(path: &Path) -> Result<Self, RestoreError> {
        let restores = path.join("restores");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&restores)
            .map_err(RestoreError::file("make", &restores))?;
        Ok(Self { restores })
    }

    fn path(&self, record: &RestoreRecord) -> Result<PathBuf, RestoreError> {
        // The name becomes part of a path.
        let node = NodeName::new(record.node.as_str()).map_err(|error| RestoreError::refused(&record.node, error.to_string()))?;
        Ok(self.restores.join(format!("{}.{node}.json", record.id)))
    }

    /// Takes a data directory for ourselves, waiting at most `patience` for who is ending. Refused while another process works
    /// on it. Blocks the thread.
    pub fn lock(&self, directory: &Path, patience: Duration) -> Result<TargetLock, RestoreError> {
        let name = blake3::hash(directory.as_os_str().as_encoded_bytes()).to_hex();
        let path = self.restores.join(format!("{}.lock", &name[..16]));
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(RestoreError::file("open", &path))?;
        match lock_file(&file, Hold::Alone, patience) {
            Ok(true) => Ok(TargetLock { _file: file }),
            Ok(false) => Err(RestoreError::refused(directory.display().to_string(), "another restore is working on it")),
            Err(error) => Err(RestoreError::file("lock", &path)(error)),
        }
    }

    /// The same for who must not block, after a moment at most.
    pub async fn lock_soon(&self, directory: &Path) -> Result<TargetLock, RestoreError> {
        let (state, directory) = (self.clone(), directory.to_owned());
        blocking("restore", move || state.lock(&directory, MOMENT)).await
    }

    /// Writes a record so that it survives a loss of power.
    pub fn write(&self, record: &RestoreRecord) -> Result<(), RestoreError> {
        let path = self.path(record)?;
        let mut text = serde_json::to_vec_pretty(record).expect("plain structures serialize");
        text.push(b'\n');
        durable::replace(&path, &text).map_err(RestoreError::file("write", &path))
    }

    /// Forgets a record; one that is gone is fine.
    pub fn remove(&self, record: &RestoreRecord) -> Result<(), RestoreError> {
        let path = self.path(record)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(RestoreError::file("remove", &path)(error)),
            _ => sync_directory(&self.restores),
        }
    }

    /// All records, the oldest first. One that cannot be read is an error: what it speaks of must not be forgotten.
    pub fn records(&self) -> Result<Vec<RestoreRecord>, RestoreError> {
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.restores).map_err(RestoreError::file("list", &self.restores))? {
            let path = entry.map_err(RestoreError::file("list", &self.restores))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let wrong = |reason: String| RestoreError::refused(path.display().to_string(), reason);
            let text = match std::fs::metadata(&path).map(|meta| meta.len()) {
                Ok(length) if length > RECORD_BYTES_MAX => {
                    return Err(wrong("it is too large for a record of a restore".to_owned()));
                }
                Ok(_) => std::fs::read(&path),
                Err(error) => Err(error),
            };
            let text = match text {
                // Another node's, forgotten since it was listed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                text => text.map_err(RestoreError::file("read", &path))?,
            };
            let record: RestoreRecord = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
            if record.format != 1 {
                return Err(wrong(format!("its format {} is newer than this program", record.format)));
            }
            records.push(record);
        }
        records.sort_by_key(|record| (record.begun_at, record.id));
        Ok(records)
    }

    /// The newest record of a node whose restored data is in place.
    pub fn in_place(&self, cluster: &str, node: &str) -> Result<Option<RestoreRecord>, RestoreError> {
        Ok(self.records()?.into_iter().rfind(|record| record.cluster == cluster && record.node == node && record.is_in_place()))
    }
}
