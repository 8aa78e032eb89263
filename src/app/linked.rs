//! What links of a restore lead to, served for as long as they need it, and making files of them in the background.
//!
//! It is a clone that nobody writes to. The process that serves it looks after the restored directory: it fetches what are
//! still links, one after the other, and ends when there are none and nobody holds an old file open. The kernel decides the
//! latter: a mount that is in use cannot be taken off.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::clone::{CloneRecord, CloneRecords};
use super::failure::Failure;
use super::mountpoint::{PATIENCE, within};
use super::output::size;
use super::renewal::Renewable;
use super::wiring::{Session, absolute_url};
use crate::base::Pace;
use crate::driver::served::ServedNode;
use crate::fuse::mounts::take_off;
use crate::model::names::ClusterName;
use crate::node::{Link, PlaceProgress, clear_leavings, holders, hydrate, links_in_place, links_into};
use crate::repo::{NodeTree, Repository};

/// How often the links are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// After a hydration that failed; the store may be away.
const AGAIN: Duration = Duration::from_secs(10);
/// How a state begins that needs somebody.
pub const WAITS: &str = "hydration waits";
/// Attributes of the root, beside those of a clone.
const DIRECTORY: &str = "user.tintype.links_of";
const STATE: &str = "user.tintype.links";

/// A restore by links, as its record says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkedRestore {
    /// The data directory, links to it resolved.
    pub directory: PathBuf,
    /// All its links were made: it may end when there are none.
    pub is_placed: bool,
    /// Device that it was placed on: where another one is mounted there now, or none, nothing can be said of its links.
    pub device: u64,
    /// Files are made of them in the background.
    pub is_hydrating: bool,
    /// No faster than this.
    pub bytes_per_second: Option<u64>,
}

impl LinkedRestore {
    /// Every place where links of this restore may be: in place, or set aside by a swap.
    fn places(&self) -> std::io::Result<Vec<PathBuf>> {
        let mut places = vec![self.directory.clone()];
        let (Some(parent), Some(name)) = (self.directory.parent(), self.directory.file_name()) else { return Ok(places) };
        let name = name.to_string_lossy();
        let ours = [format!(".{name}.tintype-"), format!(".{name}.before-")];
        for entry in std::fs::read_dir(parent)? {
            let entry = entry?;
            if ours.iter().any(|own| entry.file_name().to_string_lossy().starts_with(own)) {
                places.push(entry.path());
            }
        }
        Ok(places)
    }

    /// The device of the directory, or of the link to a clone that has taken its place.
    fn device_now(&self) -> std::io::Result<u64> {
        self.directory.symlink_metadata().map(|meta| std::os::unix::fs::MetadataExt::dev(&meta))
    }

    /// They were made, and none leads to `served` any more.
    pub fn are_gone(&self, served: &Path) -> bool {
        self.is_placed && self.links(served).is_ok_and(|links| links.is_empty())
    }

    /// What still leads to `served`, wherever it is.
    pub fn links(&self, served: &Path) -> std::io::Result<Vec<Link>> {
        let found = self.places()?.iter().map(|place| links_into(place, served)).collect::<Result<Vec<_>, _>>()?.concat();
        // Where there are some it is the right place, also where a restart of the host has numbered its disks anew.
        if found.is_empty() && self.device_now()? != self.device {
            return Err(std::io::Error::other("it is not on the disk that it was restored to: is that mounted?"));
        }
        Ok(found)
    }
}

/// What is served for links on this host; those of `cluster` in this repository may be referred to.
pub fn served(session: &Session, cluster: &ClusterName) -> Result<Vec<ServedNode>, Failure> {
    let url = absolute_url(session.url()?);
    let records = CloneRecords::open(session)?.all()?.into_iter().filter(|record| record.links.is_some());
    let node = |record: CloneRecord| ServedNode {
        stored: (record.cluster == *cluster && record.repository == url).then_some((record.snapshot, record.node)),
        place: record.mountpoint,
    };
    Ok(records.map(node).collect())
}

/// What the process that looks after the links is about, in words.
#[derive(Debug, Clone, Default)]
pub struct LinkState(Arc<Mutex<String>>);

impl LinkState {
    fn set(&self, words: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }

    /// Attributes of the root.
    pub fn facts(&self, record: &CloneRecord) -> Vec<(&'static str, String)> {
        let Some(links) = &record.links else { return Vec::new() };
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        vec![(DIRECTORY, links.directory.display().to_string()), (STATE, state)]
    }
}

/// The directory whose links lead to a mount with these attributes, and how they are.
pub fn shown<'a>(fact: impl Fn(&str) -> Option<&'a str>) -> Option<(&'a str, &'a str)> {
    Some((fact(DIRECTORY)?, fact(STATE).unwrap_or_default()))
}

/// How far the links are that lead to `served`, as who serves it says; `None` where nobody answers.
pub fn state_at(served: &Path) -> Option<String> {
    let served = served.to_owned();
    let read = move || {
        // A sentence with some names of processes.
        let mut buffer = [0; 4096];
        let length = rustix::fs::getxattr(&served, STATE, &mut buffer[..]).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    within(PATIENCE, read).flatten()
}

/// Looks after the links until nobody needs what is served; returns once it is unmounted.
pub(super) async fn look_after(records: Arc<CloneRecords>, id: Uuid, source: Arc<Renewable>, tree: NodeTree, state: LinkState) {
    loop {
        tokio::time::sleep(LOOK).await;
        let record = match records.get(id) {
            Ok(record) => record,
            Err(failure) => {
                tracing::warn!(%failure, "the record of the links cannot be read");
                continue;
            }
        };
        let Some(links) = record.links.clone().filter(|links| links.is_placed) else { continue };
        match round(&record, &links, &source, &tree, &state).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(directory = %links.directory.display(), error, "the links are looked at again later");
                state.set(format!("{WAITS}: {error}"));
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// One look; whether it is unmounted now.
async fn round(
    record: &CloneRecord,
    links: &LinkedRestore,
    source: &Arc<Renewable>,
    tree: &NodeTree,
    state: &LinkState,
) -> Result<bool, String> {
    let served = &record.mountpoint;
    let look = {
        let (links, served) = (links.clone(), served.clone());
        move || Ok::<_, std::io::Error>((links.links(&served)?, links_in_place(&links.directory, &served)?.len()))
    };
    let looked = tokio::task::spawn_blocking(look).await.map_err(|error| error.to_string())?;
    let (left, in_place) = looked.map_err(|error| format!("{}: {error}", links.directory.display()))?;
    if left.is_empty() {
        let target = served.clone();
        let taken = tokio::task::spawn_blocking(move || take_off(&target, false)).await.map_err(|error| error.to_string())?;
        if taken.is_ok() {
            return Ok(true);
        }
        state.set(format!("every file is local; {} still holds old ones open", held_by(served)));
        return Ok(false);
    }
    if !links.is_hydrating || in_place == 0 {
        state.set(format!("{} links lead here", left.len()));
        return Ok(false);
    }
    let progress = Arc::new(PlaceProgress::default());
    let telling = tokio::spawn(tell(state.clone(), progress.clone(), in_place));
    let pace = links.bytes_per_second.map(Pace::new);
    let done = hydrate(&links.directory, served, record.owner, source.clone(), tree.clone(), pace, progress).await;
    telling.abort();
    done.map(|_| false).map_err(|error| error.to_string())
}

async fn tell(state: LinkState, progress: Arc<PlaceProgress>, links: usize) {
    loop {
        let (files, bytes) = (progress.files.load(Ordering::Relaxed), progress.bytes.load(Ordering::Relaxed));
        state.set(format!("hydrating: {files} of {links} links are files now, {} fetched", size(bytes)));
        tokio::time::sleep(LOOK).await;
    }
}

/// Who holds files of a mount open, for people.
pub fn held_by(served: &Path) -> String {
    let holders = holders(served);
    if holders.is_empty() {
        return "a process that we may not look at".to_owned();
    }
    let one = |holder: &crate::node::Holder| format!("{} (process {}, {} files)", holder.name, holder.process, holder.files);
    holders.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Lets go of everything that served links, the record last. What is served must be unmounted.
pub(super) async fn let_go(repository: &Repository, records: &CloneRecords, record: &CloneRecord) -> Result<(), Failure> {
    if let Some(links) = &record.links {
        clear_leavings(&links.directory)
            .map_err(|error| Failure::new("system", error.to_string()).hint("files named .*.tintype-hydrate in it may go"))?;
    }
    super::clone::forget(records, repository, record).await?;
    // Not empty, or gone: then it is not ours to remove.
    let _left = std::fs::remove_dir(&record.mountpoint);
    Ok(())
}
