//! Stopping and starting a node's store: by its supervisor's commands or its own protocol, and believed only when seen.

use std::convert::Infallible;
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::restore_error::RestoreError;
use crate::base::process::{Seen, look_at};
use crate::driver::DriverError;
use crate::driver::control::StoreControl;
use crate::model::names::escape;
use crate::model::restore_plan::ServerFacts;

/// How often a state is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Ten times the pause that systemd makes before a restart.
const RESTART_LIMIT: Duration = Duration::from_secs(1);
/// How often a server that was started in the wrong place is ended.
const RESTARTS_MAX: usize = 5;
/// A server that neither answers nor works in its directory for so long has ended.
const NOBODY_LIMIT: Duration = Duration::from_secs(3);
/// Most of a command's output that is kept for the message.
const OUTPUT_BYTES_MAX: u64 = 2048;

/// How long what may take.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// A stop or start command. systemd itself gives up after 90 s.
    pub command: Duration,
    /// From the end of the stop to the process being gone.
    pub gone: Duration,
    /// From the end of the start command to the first answer.
    pub answer: Duration,
    /// Loading without a byte of progress.
    pub stall: Duration,
    /// For a replica to have everything of its master's: 100 GB at 50 MB/s take half an hour.
    pub synchronised: Duration,
    /// For a cluster to be well again: twice the usual cluster-node-timeout, and the time to agree.
    pub cluster: Duration,
    /// Between the save and the stop writes are held back, and go again so long after we died. Renewed five times as often.
    pub pause: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            command: seconds(120),
            gone: seconds(120),
            answer: seconds(60),
            stall: seconds(120),
            synchronised: seconds(3600),
            cluster: seconds(60),
            pause: seconds(10),
        }
    }
}

/// A store, its commands and its limits.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub node: String,
    pub control: Arc<dyn StoreControl>,
    pub stop: Vec<String>,
    pub start: Vec<String>,
    pub limits: ServerLimits,
}

impl Server {
    /// Stops what `before` described. It is saved first, unless `save` says not to.
    pub async fn stop(&self, before: &ServerFacts, save: bool) -> Result<(), RestoreError> {
        let has_append_only = before.layout().has_append_only;
        if self.stop.is_empty() {
            // Append-only files are written and fsynced by any SHUTDOWN.
            self.control.shut_down(save && !has_append_only).await?;
            self.wait_gone(before.pid).await?;
        } else {
            tokio::select! {
                stopped = self.stop_by_command(before.pid, save) => stopped?,
                never = self.keep_holding(), if save => match never {},
            }
        }
        if self.stop.is_empty() {
            // Nobody told a supervisor, so one that restarts is given the time to show itself.
            let until = Instant::now() + RESTART_LIMIT;
            while Instant::now() < until {
                self.is_still_stopped().await?;
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    async fn stop_by_command(&self, pid: u32, save: bool) -> Result<(), RestoreError> {
        if save {
            self.save().await?;
        }
        if let Err(error) = run(&self.node, "stop command", &self.stop, self.limits.command).await {
            self.resume().await;
            return Err(error);
        }
        self.wait_gone(pid).await
    }

    /// Holds writes back for as long as it is polled, and little longer.
    async fn keep_holding(&self) -> Infallible {
        loop {
            tokio::time::sleep(self.limits.pause / 5).await;
            // It saves, or is ending: both let no write in.
            if let Err(error) = self.control.hold(self.limits.pause).await {
                tracing::debug!(node = %self.node, %error, "the write pause was not renewed");
            }
        }
    }

    /// Makes sure that whoever runs works in `directory` as it is now, and not in one that was set aside under it: a
    /// supervisor may have started it in between. It is ended without saving until it does.
    pub async fn leave_other_directories(&self, directory: &Path) -> Result<(), RestoreError> {
        for _ in 0..RESTARTS_MAX {
            let Some(now) = self.control.look().await? else { return Ok(()) };
            let (Some(works_in), Some(wanted)) = (working_inode(now.pid), resolved_inode(directory)) else {
                return Ok(());
            };
            if works_in == wanted {
                return Ok(());
            }
            self.control.shut_down(false).await?;
            let until = Instant::now() + self.limits.gone;
            while is_alive(now.pid) && Instant::now() < until {
                tokio::time::sleep(POLL).await;
            }
        }
        let reason = "its supervisor keeps starting it on a directory that was set aside: stop the supervisor".to_owned();
        Err(RestoreError::Command { node: self.node.clone(), what: "stop".to_owned(), reason })
    }

    /// The server, loaded; `None` where none runs. One that was started a moment ago works in its directory before it answers,
    /// and must not be taken for none: the directory would be exchanged under it.
    pub async fn running(&self, directory: &Path) -> Result<Option<ServerFacts>, RestoreError> {
        let until = Instant::now() + NOBODY_LIMIT;
        loop {
            match self.control.look().await? {
                Some(facts) if facts.is_loading => return self.wait_loaded(directory).await.map(Some),
                Some(facts) => return Ok(Some(facts)),
                None if is_deserted(directory) || Instant::now() >= until => return Ok(None),
                None => tokio::time::sleep(POLL).await,
            }
        }
    }

    async fn save(&self) -> Result<(), RestoreError> {
        let saved = self.control.save(self.limits.pause).await;
        if saved.is_err() {
            self.resume().await;
        }
        Ok(saved?)
    }

    /// Lets writes go again; a pause that stays is told and ends by itself.
    pub async fn resume(&self) {
        if let Err(error) = self.control.resume().await {
            tracing::warn!(node = %self.node, %error, "writes are held back until the pause ends");
        }
    }

    async fn wait_gone(&self, pid: u32) -> Result<(), RestoreError> {
        let until = Instant::now() + self.limits.gone;
        loop {
            let seen = self.control.look().await;
            match &seen {
                Ok(None) if !is_alive(pid) => return Ok(()),
                Ok(Some(facts)) if facts.pid != pid && pid != 0 && !is_alive(pid) => return Err(self.came_back(facts.pid)),
                // One that is ending may answer anything.
                _ => {}
            }
            if Instant::now() >= until {
                return Err(RestoreError::DeadlineExceeded {
                    node: self.node.clone(),
                    what: "it did not end".to_owned(),
                    limit: self.limits.gone,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn came_back(&self, pid: u32) -> RestoreError {
        let reason = format!(
            "it was started again by somebody (process {pid}), likely its supervisor: give the supervisor's own stop command"
        );
        RestoreError::Command { node: self.node.clone(), what: "stop".to_owned(), reason }
    }

    /// Nobody answers: to be called right before anything relies on it.
    pub async fn is_still_stopped(&self) -> Result<(), RestoreError> {
        match self.control.look().await {
            Ok(None) => Ok(()),
            Ok(Some(facts)) => Err(self.came_back(facts.pid)),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts it and waits until it has loaded. A server that works in `directory` no more has ended.
    pub async fn start(&self, directory: &Path) -> Result<ServerFacts, RestoreError> {
        run(&self.node, "start command", &self.start, self.limits.command).await?;
        self.wait_loaded(directory).await
    }

    /// Waits until it answers and has loaded.
    pub async fn wait_loaded(&self, directory: &Path) -> Result<ServerFacts, RestoreError> {
        let mut nobody_since = None;
        let late = |what: &str, limit| RestoreError::DeadlineExceeded { node: self.node.clone(), what: what.to_owned(), limit };
        let mut until = Instant::now() + self.limits.answer;
        let mut what = ("it did not answer after its start; look at its log", self.limits.answer);
        let mut progress = None;
        loop {
            match self.control.look().await {
                Ok(Some(facts)) if !facts.is_loading => return Ok(facts),
                Ok(Some(facts)) => {
                    if progress != Some(facts.loaded_bytes) {
                        progress = Some(facts.loaded_bytes);
                        until = Instant::now() + self.limits.stall;
                        what = ("its load made no progress", self.limits.stall);
                    }
                }
                Ok(None) if progress.is_some() => {
                    let reason = "it ended while it loaded; look at its log".to_owned();
                    return Err(RestoreError::Command { node: self.node.clone(), what: "start".to_owned(), reason });
                }
                Err(error @ DriverError::Denied { .. }) => return Err(error.into()),
                Ok(None) if is_deserted(directory) => {
                    // Long enough for a start that goes by way of other processes.
                    if nobody_since.get_or_insert_with(Instant::now).elapsed() > NOBODY_LIMIT {
                        let reason = "it ended right after its start; look at its log".to_owned();
                        return Err(RestoreError::Command { node: self.node.clone(), what: "start".to_owned(), reason });
                    }
                }
                Ok(None) | Err(_) => nobody_since = None,
            }
            if Instant::now() >= until {
                return Err(late(what.0, what.1));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until a replica follows a master and has everything of it. One that lets go of it altogether is told at once.
    pub async fn wait_synchronised(&self, directory: &Path) -> Result<ServerFacts, RestoreError> {
        let until = Instant::now() + self.limits.synchronised;
        loop {
            // A full synchronisation ends with a load, in which it answers little.
            let now = self.wait_loaded(directory).await?;
            if now.role == "master" {
                let reason = "it was emptied as a replica and came back as a master: put replicaof into its configuration";
                return Err(RestoreError::Wrong { node: self.node.clone(), reason: reason.to_owned() });
            }
            if now.link_is_up {
                return Ok(now);
            }
            if Instant::now() >= until {
                let what = "it did not synchronise with its master".to_owned();
                return Err(RestoreError::DeadlineExceeded { node: self.node.clone(), what, limit: self.limits.synchronised });
            }
            tokio::time::sleep(POLL * 4).await;
        }
    }

    /// Nobody has taken over from it: it is a master with its slots.
    pub async fn is_still_master(&self, before: &ServerFacts) -> Result<(), RestoreError> {
        let wrong = |reason: &str| Err(RestoreError::Wrong { node: self.node.clone(), reason: reason.to_owned() });
        match self.control.look().await? {
            None => wrong("it ended after it had loaded; look at its log"),
            Some(now) if now.role != "master" => {
                wrong("it is a replica now: the cluster failed it over, and its new master overwrites what was restored")
            }
            Some(now) if now.slots != before.slots => wrong("its slots went to another node"),
            Some(_) => Ok(()),
        }
    }

    /// Waits until its cluster is well and it is a master with its slots.
    pub async fn wait_cluster(&self, slots: &[(u16, u16)]) -> Result<ServerFacts, RestoreError> {
        let until = Instant::now() + self.limits.cluster;
        loop {
            let seen = self.control.look().await;
            match seen {
                Ok(Some(facts)) if facts.role != "master" => {
                    let reason = "it is a replica now: the cluster failed it over while it was down, and its new master overwrites what was restored";
                    return Err(RestoreError::Wrong { node: self.node.clone(), reason: reason.to_owned() });
                }
                Ok(Some(facts)) if facts.cluster_ok && facts.slots == slots => return Ok(facts),
                _ => {}
            }
            if Instant::now() >= until {
                return Err(RestoreError::DeadlineExceeded {
                    node: self.node.clone(),
                    what: "the cluster did not become well again".to_owned(),
                    limit: self.limits.cluster,
                });
            }
            tokio::time::sleep(POLL * 4).await;
        }
    }
}

/// Device and inode of the directory that a process works in; `None` where that may not be known.
pub(super) fn working_inode(pid: u32) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(format!("/proc/{pid}/cwd")).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Device and inode of a data directory, which may be a link to a clone.
fn resolved_inode(directory: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(directory).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// No process works in a directory, for certain: where some may not be looked at, that is not certain.
fn is_deserted(directory: &Path) -> bool {
    let Some(wanted) = resolved_inode(directory) else { return false };
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    for process in processes.flatten() {
        if process.file_name().as_encoded_bytes().iter().any(|byte| !byte.is_ascii_digit()) {
            continue;
        }
        match std::fs::metadata(process.path().join("cwd")) {
            Ok(meta) if (meta.dev(), meta.ino()) == wanted => return false,
            // Root may look at every process that could be a store; what is kept even from it is none.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() => {
                return false;
            }
            _ => {}
        }
    }
    true
}

/// A process is there and not merely waiting to be reaped.
fn is_alive(pid: u32) -> bool {
    matches!(look_at(pid), Seen::Runs { .. })
}

/// Runs a command of the configuration until it ends; what it says is kept for the message only.
pub async fn run(node: &str, what: &str, command: &[String], limit: Duration) -> Result<(), RestoreError> {
    let failed =
        |reason: String| RestoreError::Command { node: node.to_owned(), what: format!("{what} `{}`", command.join(" ")), reason };
    let (program, arguments) = command.split_first().ok_or_else(|| failed("there is none".to_owned()))?;
    // In memory and not a pipe: a store that the command leaves running may keep it open for ever.
    let output =
        rustix::fs::memfd_create("tintype-output", rustix::fs::MemfdFlags::CLOEXEC).map_err(|error| failed(error.to_string()))?;
    let mut output = std::fs::File::from(output);
    let copy = || output.try_clone().map_err(|error| failed(error.to_string()));
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(copy()?)
        .stderr(copy()?)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let Ok(ended) = tokio::time::timeout(limit, child.wait()).await else {
        let _ = child.start_kill();
        return Err(failed(format!("it did not end within {limit:?}")));
    };
    let status = ended.map_err(|error| failed(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if output.rewind().is_ok() {
        let _ = output.take(OUTPUT_BYTES_MAX).read_to_end(&mut said);
    }
    Err(failed(format!("{status}: {}", escape(said.trim_ascii()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Vec<String> {
        ["sh", "-c", text].map(str::to_owned).into()
    }

    #[tokio::test]
    async fn a_command_that_fails_is_told_with_what_it_said() {
        let error =
            run("n", "stop command", &command("echo gone wrong >&2; exit 3"), Duration::from_secs(10)).await.expect_err("fails");
        assert!(error.to_string().contains("gone wrong"), "{error}");
    }

    #[tokio::test]
    async fn a_command_that_leaves_something_running_is_not_waited_for() {
        let begun = Instant::now();
        run("n", "start command", &command("sleep 5 & exit 0"), Duration::from_secs(10)).await.expect("starts");
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn a_process_that_ended_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().expect("spawns");
        let pid = child.id();
        assert!(is_alive(std::process::id()));
        child.wait().expect("ends");
        assert!(!is_alive(pid));
    }
}
