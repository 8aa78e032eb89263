//! Capture by `BGSAVE`: the child's temporary file is opened right after the fork, whatever becomes of its name.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::driver::DriverError;
use crate::driver::beneath::open_own;

use super::control::text;
use super::{Captured, RedisDriver};

/// How often the child's file and its end are looked for.
const POLL: Duration = Duration::from_millis(5);
/// How long an abandoned save is waited for, so that its file can be removed.
const CLEAR_LIMIT: Duration = Duration::from_secs(30);

/// A save that has begun.
#[derive(Debug)]
pub(super) struct SaveWatch {
    directory: PathBuf,
    dump_name: String,
    temporary_before: BTreeSet<OsString>,
    dump_before: Option<(u64, u64)>,
    saves_before: Option<u64>,
    last_save_before: Option<u64>,
    file: Option<File>,
    /// The dump is ours alone and must not stay.
    remove: bool,
}

impl SaveWatch {
    fn look(&mut self) -> io::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        for name in temporary_files(&self.directory)? {
            if self.temporary_before.contains(&name) {
                continue;
            }
            match open_own(&self.directory, Path::new(&name)) {
                Ok(file) => {
                    self.file = Some(file);
                    return Ok(());
                }
                // It was renamed to the dump's name in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let dump = self.directory.join(&self.dump_name);
        if identity(&dump)?.is_some_and(|now| self.dump_before != Some(now)) {
            self.file = Some(open_own(&self.directory, Path::new(&self.dump_name))?);
        }
        Ok(())
    }

    /// Removes the dump, if it is still the one that our save made.
    fn remove_dump(&self) -> io::Result<()> {
        let dump = self.directory.join(&self.dump_name);
        let Some(file) = self.file.as_ref().filter(|_| self.remove) else { return Ok(()) };
        let ours = file.metadata()?;
        if identity(&dump)? == Some((ours.dev(), ours.ino())) {
            std::fs::remove_file(&dump)?;
        }
        Ok(())
    }
}

impl RedisDriver {
    /// Returns the count of changes right before the fork. What may have begun is watched, also after an error: a fork that
    /// took longer than the pause leaves its dump all the same.
    pub(super) async fn begin_save(&mut self, limit: Duration) -> Result<u64, DriverError> {
        let directory = self.data_directory()?;
        let Some(prepared) = self.prepared.clone() else { return Err(self.refused("it was not prepared")) };
        let place = |error: io::Error| self.file_error(&directory, &error);
        let mut watch = SaveWatch {
            temporary_before: temporary_files(&directory).map_err(place)?,
            dump_before: identity(&directory.join(&prepared.dump_name)).map_err(place)?,
            dump_name: prepared.dump_name.clone(),
            saves_before: None,
            last_save_before: None,
            file: None,
            remove: false,
            directory: directory.clone(),
        };
        // Where nothing is ever saved, the next start would load our dump and bring deleted keys back.
        watch.remove = watch.dump_before.is_none() && !prepared.saves && !prepared.appends;
        let answers = self.control().await?.ask_all(&[&["INFO", "persistence"], &["BGSAVE"]], limit).await;
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => {
                self.captured = Some(Captured::Save(watch));
                return Err(error);
            }
        };
        let [fields, answer] = answers.as_slice() else { return Err(self.broken("BGSAVE was not answered")) };
        let fields = super::Fields::parse(&fields.as_ref().map(text).unwrap_or_default());
        let changes = fields.number("rdb_changes_since_last_save").unwrap_or(u64::MAX);
        watch.saves_before = fields.number("rdb_saves");
        watch.last_save_before = fields.number("rdb_last_save_time");
        match answer {
            Ok(value) if text(value) == "Background saving started" => {}
            Ok(value) => return Err(self.broken(format!("BGSAVE answered '{}' instead of starting at once", text(value)))),
            Err(error) => {
                return Err(match &self.control {
                    Some(control) => control.fault("BGSAVE", error),
                    None => self.broken(error.to_string()),
                });
            }
        }
        self.captured = Some(Captured::Save(watch));
        // The child makes its file within a few milliseconds. If it is late, it is found after the thaw.
        let until = Instant::now() + limit / 4;
        while !self.look_at_save()?.0 && Instant::now() < until {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(changes)
    }

    /// Waits for the child, and hands over the file that it wrote.
    pub(super) async fn finish_save(&mut self) -> Result<File, DriverError> {
        let limit = self.options.stall_limit;
        let mut progress = (Instant::now(), 0);
        let fields = loop {
            let (_, length) = self.look_at_save()?;
            let fields = self.control().await?.info(&["persistence"]).await?;
            if !fields.flag("rdb_bgsave_in_progress") {
                break fields;
            }
            if length > progress.1 {
                progress = (Instant::now(), length);
            }
            if progress.0.elapsed() > limit {
                return Err(DriverError::DeadlineExceeded { node: self.node(), what: "the save to go on".to_owned(), limit });
            }
            sleep(POLL).await;
        };
        self.look_at_save()?;
        let Some(Captured::Save(watch)) = &self.captured else { return Err(self.refused("no save was begun")) };
        if fields.get("rdb_last_bgsave_status") != Some("ok") {
            return Err(self.broken("BGSAVE was not successful; see the node's log (memory, disk space)"));
        }
        let advanced = match (watch.saves_before, fields.number("rdb_saves")) {
            (Some(before), Some(after)) => after > before,
            // Before Redis 7 only the time of the last save is told, in whole seconds.
            _ => fields.number("rdb_last_save_time") >= watch.last_save_before,
        };
        if !advanced {
            return Err(self.broken("no save was completed"));
        }
        let Some(file) = &watch.file else {
            return Err(self.broken(format!(
                "the save made no file in {}; is data_directory the node's own (CONFIG GET dir)?",
                watch.directory.display()
            )));
        };
        let file = file.try_clone().map_err(|error| self.file_error(&watch.directory, &error))?;
        watch.remove_dump().map_err(|error| self.file_error(&watch.directory.join(&watch.dump_name), &error))?;
        Ok(file)
    }

    /// Opens the child's file where it is there by now: whether it is, and its length so far.
    fn look_at_save(&mut self) -> Result<(bool, u64), DriverError> {
        let Some(Captured::Save(watch)) = &mut self.captured else { return Err(self.refused("no save was begun")) };
        let (looked, directory) = (watch.look(), watch.directory.clone());
        let length = watch.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
        let has_file = watch.file.is_some();
        looked.map(|()| (has_file, length)).map_err(|error| self.file_error(&directory, &error))
    }

    /// After a save that nobody wants any more: its dump is removed where it must not stay.
    pub(super) async fn clear_save(&mut self, mut watch: SaveWatch) {
        if !watch.remove {
            return;
        }
        let until = Instant::now() + CLEAR_LIMIT;
        while Instant::now() < until {
            let _ = watch.look();
            let saving = match self.control().await {
                Ok(control) => control.info(&["persistence"]).await.is_ok_and(|fields| fields.flag("rdb_bgsave_in_progress")),
                Err(_) => false,
            };
            if !saving {
                break;
            }
            sleep(POLL).await;
        }
        if let Err(error) = watch.look().and_then(|()| watch.remove_dump()) {
            tracing::error!(node = %self.options.node, %error, "remove the dump from the data directory: the node would load it at its next start");
        }
    }

    pub(super) fn file_error(&self, path: &Path, error: &io::Error) -> DriverError {
        let node = self.node();
        let path = path.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                DriverError::Denied { node, reason: format!("{path}: {error}; run as a user who may read the data directory") }
            }
            _ => DriverError::Broken {
                node,
                reason: format!("{path}: {error}; is data_directory the node's own (CONFIG GET dir)?"),
            },
        }
    }
}

fn temporary_files(directory: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        let child = text.strip_prefix("temp-").and_then(|rest| rest.strip_suffix(".rdb"));
        if child.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())) {
            names.insert(name);
        }
    }
    Ok(names)
}

fn identity(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
