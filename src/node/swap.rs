//! The change of places between a data directory and a restored one: by rename, or entry by entry in a mountpoint.
//!
//! How it works: who is where is read from the disk (by inode for directories, by presence for entries), so every
//! function here may be begun again after it was interrupted anywhere, and then finishes.
//!
//! **Invariants.** After [`recover`] a data directory holds either all of the old data or all of the restored data. Where
//! the file system can exchange two names, there is no moment without a directory. Nothing that exists is replaced.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::fresh_directory::sync_directory;
use super::journal::{EntryName, RestoreRecord, StateDirectory, Step, inode};
use super::restore_error::RestoreError;
use crate::base::file_lock::MOMENT;
use crate::model::restore_plan::SwapKind;

/// Lets a test stop a restore before any of its steps on the disk, as a crash would.
#[derive(Debug)]
pub struct Steps {
    left: AtomicUsize,
}

impl Default for Steps {
    fn default() -> Self {
        Self { left: AtomicUsize::new(usize::MAX) }
    }
}

impl Steps {
    /// Lets `count` steps happen.
    pub fn stop_after(count: usize) -> Self {
        Self { left: AtomicUsize::new(count) }
    }

    /// Called before each change of the disk.
    pub(super) fn reach(&self, step: &str) -> Result<(), RestoreError> {
        let less = |left: usize| if left == usize::MAX { Some(left) } else { left.checked_sub(1) };
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
            Ok(_) => Ok(()),
            Err(_) => Err(RestoreError::Interrupted { step: step.to_owned() }),
        }
    }
}

/// Puts the restored directory in place and the old one aside.
pub fn swap(state: &StateDirectory, record: &mut RestoreRecord, steps: &Steps) -> Result<(), RestoreError> {
    if record.step != Step::Staged {
        return Err(RestoreError::refused(
            record.directory.display().to_string(),
            format!("it cannot be swapped when {:?}", record.step),
        ));
    }
    if record.swap == SwapKind::Entries {
        record.leaving = names_in_place(record)?;
        record.entering = names(&record.fresh)?;
    }
    note(state, record, Step::Swapping, steps)?;
    match record.swap {
        SwapKind::Rename => forward(record, steps)?,
        SwapKind::Entries => {
            if inode(&record.before)?.is_none() {
                steps.reach("make the directory for the old entries")?;
                std::fs::create_dir(&record.before).map_err(RestoreError::file("make", &record.before))?;
            }
            exchange_entries(record, &record.before, &record.fresh, steps)?;
        }
    }
    note(state, record, Step::Swapped, steps)
}

/// Puts the old directory back and the restored one aside. Also after an interrupted [`swap`].
pub fn swap_back(state: &StateDirectory, record: &mut RestoreRecord, steps: &Steps) -> Result<(), RestoreError> {
    // An undone swap was never a restore that a rollback could be told of: it is as if it had not begun.
    let ends_as = if record.step == Step::Swapping { Step::Staged } else { Step::RolledBack };
    match (record.step, record.swap) {
        (Step::Staging | Step::Staged | Step::RolledBack, _) => return Ok(()),
        (Step::Settling, _) => {
            return Err(RestoreError::refused(record.directory.display().to_string(), "what was set aside is being deleted"));
        }
        (Step::Swapping, SwapKind::Entries) => undo_entries(record, &record.before, &record.fresh, steps)?,
        (Step::RollingBack, SwapKind::Entries) => exchange_entries(record, &record.fresh, &record.before, steps)?,
        (Step::Swapped | Step::Checked, SwapKind::Entries) => {
            // What the store made since is set aside with the rest.
            record.leaving = names_in_place(record)?;
            record.entering = names(&record.before)?;
            note(state, record, Step::RollingBack, steps)?;
            exchange_entries(record, &record.fresh, &record.before, steps)?;
        }
        (_, SwapKind::Rename) => {
            if record.is_in_place() {
                note(state, record, Step::RollingBack, steps)?;
            }
            backward(record, steps)?;
        }
    }
    note(state, record, ends_as, steps)
}

/// Deletes what is aside and forgets the restore. What is in place stays, whichever it is.
pub fn settle(state: &StateDirectory, record: &mut RestoreRecord, steps: &Steps) -> Result<(), RestoreError> {
    if matches!(record.step, Step::Swapping | Step::RollingBack) {
        return Err(RestoreError::refused(
            record.directory.display().to_string(),
            "its directories are half swapped: recover it first",
        ));
    }
    note(state, record, Step::Settling, steps)?;
    let in_place = inode(&record.directory)?;
    for (aside, is_fresh) in [(&record.fresh, true), (&record.before, false)] {
        let found = inode(aside)?;
        // Only what this restore made or moved, and never what is in place under another name. What is being made is not known
        // yet; what was moved always is.
        let is_made = is_fresh && record.new.is_none();
        let is_ours = record.swap == SwapKind::Entries || found == record.new || found == record.old || is_made;
        if found.is_some() && found != in_place && is_ours {
            steps.reach("delete")?;
            std::fs::remove_dir_all(aside).map_err(RestoreError::file("delete", aside))?;
        }
    }
    steps.reach("forget")?;
    state.remove(record)
}

/// What became of an interrupted restore.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovered {
    /// As it is now.
    pub record: RestoreRecord,
    /// For people; what to do next belongs to the caller.
    pub outcome: RecoveredTo,
}

/// Which data is in place after a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveredTo {
    /// The old data, as before the restore; its store may be stopped.
    Old,
    /// The same; what was placed beside it is left for the next attempt.
    Begun,
    /// The old data, after a rollback was finished.
    RolledBack,
    /// The restored data, which nobody has checked.
    Unchecked,
    /// What was in place; the deletion of the rest was finished.
    Settled,
}

/// Finishes or undoes whatever a process that died has left. Restores that are under way are left alone.
pub fn recover(state: &StateDirectory, steps: &Steps) -> Result<Vec<Recovered>, RestoreError> {
    let mut recovered = Vec::new();
    // Who left them may just be ending: a moment for all of them together.
    let until = Instant::now() + MOMENT;
    for record in state.records()? {
        let Ok(_lock) = state.lock(&record.directory, until.saturating_duration_since(Instant::now())) else { continue };
        // Read again under the lock: its owner may have just finished.
        let Some(mut record) = state.records()?.into_iter().find(|now| now.id == record.id && now.node == record.node) else {
            continue;
        };
        let outcome = match record.step {
            Step::Checked | Step::RolledBack => continue,
            Step::Swapped => RecoveredTo::Unchecked,
            // A supervisor may have started the store on what is in place: it must not be taken from under it.
            Step::Swapping if is_in_place(&record)? => {
                if record.swap == SwapKind::Rename {
                    forward(&record, steps)?;
                }
                note(state, &mut record, Step::Swapped, steps)?;
                RecoveredTo::Unchecked
            }
            Step::Staging | Step::Staged => RecoveredTo::Begun,
            // Its clone goes with the next attempt, or when it is settled.
            Step::Swapping if record.clone.is_some() => {
                swap_back(state, &mut record, steps)?;
                RecoveredTo::Begun
            }
            Step::Swapping => {
                swap_back(state, &mut record, steps)?;
                settle(state, &mut record, steps)?;
                RecoveredTo::Old
            }
            Step::RollingBack => {
                swap_back(state, &mut record, steps)?;
                RecoveredTo::RolledBack
            }
            // Its clone is deleted first, by who settles it.
            Step::Settling if record.clone.is_some() => RecoveredTo::Begun,
            Step::Settling => {
                settle(state, &mut record, steps)?;
                RecoveredTo::Settled
            }
        };
        recovered.push(Recovered { record, outcome });
    }
    Ok(recovered)
}

/// Whether an interrupted [`swap`] had come so far that a store would find the restored data, all of it.
fn is_in_place(record: &RestoreRecord) -> Result<bool, RestoreError> {
    Ok(match record.swap {
        SwapKind::Rename => record.new.is_some() && inode(&record.directory)? == record.new,
        SwapKind::Entries => {
            let has_entered = |name| exists(&record.directory, name) && !exists(&record.fresh, name);
            record.leaving.iter().all(|name| exists(&record.before, name)) && record.entering.iter().all(has_entered)
        }
    })
}

/// Writes the record with a new step.
pub(super) fn note(state: &StateDirectory, record: &mut RestoreRecord, step: Step, steps: &Steps) -> Result<(), RestoreError> {
    steps.reach("write the journal")?;
    record.step = step;
    state.write(record)
}

fn rename(from: &Path, to: &Path, steps: &Steps) -> Result<(), RestoreError> {
    steps.reach("rename")?;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems that know no flags; the name was seen to be free, and the directory is locked.
        Err(Errno::INVAL | Errno::NOSYS) if inode(to)?.is_none() => {
            std::fs::rename(from, to).map_err(RestoreError::file("rename", from))
        }
        other => other.map_err(RestoreError::file("rename", from)),
    }
}

/// Exchanges two directories; by way of `spare` where the file system cannot.
fn exchange(one: &Path, other: &Path, spare: &Path, steps: &Steps) -> Result<(), RestoreError> {
    steps.reach("exchange")?;
    match rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS) => {
            rename(other, spare, steps)?;
            rename(one, other, steps)
        }
        done => done.map_err(RestoreError::file("exchange", other)),
    }
}

fn sync_parent(record: &RestoreRecord) -> Result<(), RestoreError> {
    record.directory.parent().map_or(Ok(()), sync_directory)
}

fn replaced_meanwhile(record: &RestoreRecord) -> RestoreError {
    RestoreError::refused(record.directory.display().to_string(), "somebody else has replaced it meanwhile")
}

fn forward(record: &RestoreRecord, steps: &Steps) -> Result<(), RestoreError> {
    let (target, fresh, before) = (&record.directory, &record.fresh, &record.before);
    let in_place = inode(target)?;
    if in_place != record.new {
        if inode(fresh)? != record.new || (in_place.is_some() && in_place != record.old) {
            return Err(replaced_meanwhile(record));
        }
        match in_place {
            Some(_) => exchange(fresh, target, before, steps)?,
            None => rename(fresh, target, steps)?,
        }
    }
    if record.old.is_some() && inode(fresh)? == record.old {
        rename(fresh, before, steps)?;
    }
    sync_parent(record)
}

fn backward(record: &RestoreRecord, steps: &Steps) -> Result<(), RestoreError> {
    let (target, fresh, before) = (&record.directory, &record.fresh, &record.before);
    if inode(target)? == record.new {
        if record.old.is_none() {
            rename(target, fresh, steps)?;
        } else if inode(before)? == record.old {
            exchange(before, target, fresh, steps)?;
        } else if inode(fresh)? == record.old {
            exchange(fresh, target, before, steps)?;
        } else {
            return Err(RestoreError::refused(
                before.display().to_string(),
                "the directory from before the restore is not there any more",
            ));
        }
    } else if inode(target)?.is_none() && record.old.is_some() {
        let aside = if inode(before)? == record.old { before } else { fresh };
        if inode(aside)? != record.old {
            return Err(RestoreError::refused(
                before.display().to_string(),
                "the directory from before the restore is not there any more",
            ));
        }
        rename(aside, target, steps)?;
    } else if inode(target)? != record.old {
        return Err(replaced_meanwhile(record));
    }
    if inode(before)?.is_some() && inode(before)? == record.new {
        rename(before, fresh, steps)?;
    }
    sync_parent(record)
}

fn names(directory: &Path) -> Result<Vec<EntryName>, RestoreError> {
    let entries = std::fs::read_dir(directory).map_err(RestoreError::file("list", directory))?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.map(|entry| EntryName(entry.file_name().as_bytes().to_vec()));
    entries.map(name).collect::<Result<_, _>>().map_err(RestoreError::file("list", directory))
}

/// A name in a mountpoint that a swap leaves where it is: our own directories, and the file system's.
pub fn stays(name: &[u8]) -> bool {
    name == b"lost+found" || name.starts_with(b".tintype-") || name.starts_with(b".before-")
}

fn names_in_place(record: &RestoreRecord) -> Result<Vec<EntryName>, RestoreError> {
    let mut names = names(&record.directory)?;
    names.retain(|name| !stays(&name.0));
    Ok(names)
}

fn exists(directory: &Path, name: &EntryName) -> bool {
    directory.join(OsStr::from_bytes(&name.0)).symlink_metadata().is_ok()
}

fn shift(from: &Path, to: &Path, name: &EntryName, steps: &Steps) -> Result<(), RestoreError> {
    let name = OsStr::from_bytes(&name.0);
    rename(&from.join(name), &to.join(name), steps)
}

/// Moves what leaves to `aside`, then what enters from `from`. All that leaves is gone before anything enters, so
/// that a name which is in both is never mistaken.
fn exchange_entries(record: &RestoreRecord, aside: &Path, from: &Path, steps: &Steps) -> Result<(), RestoreError> {
    let target = &record.directory;
    for name in &record.leaving {
        if !exists(aside, name) && exists(target, name) {
            shift(target, aside, name, steps)?;
        }
    }
    sync_directory(target)?;
    sync_directory(aside)?;
    for name in &record.entering {
        if exists(from, name) {
            shift(from, target, name, steps)?;
        }
    }
    sync_directory(from)?;
    sync_directory(target)
}

/// The way back from anywhere within [`exchange_entries`].
fn undo_entries(record: &RestoreRecord, aside: &Path, from: &Path, steps: &Steps) -> Result<(), RestoreError> {
    let target = &record.directory;
    for name in &record.entering {
        if !exists(from, name) && exists(target, name) {
            shift(target, from, name, steps)?;
        }
    }
    sync_directory(target)?;
    for name in &record.leaving {
        if exists(aside, name) {
            shift(aside, target, name, steps)?;
        }
    }
    sync_directory(target)
}
