//! Redis and Valkey: one node of a cluster, or a standalone master, frozen by `CLIENT PAUSE … WRITE`.
//!
//! How one capture goes, by replication (the default):
//! ```text
//! prepare   rights, version, role, slots, running saves; control and replication connection opened
//! freeze    one write: CLIENT PAUSE <ms> WRITE, INFO replication, persistence and stats, CLUSTER INFO, TIME
//! capture   PSYNC ? -1 on the open replication connection; "+FULLRESYNC <id> <offset>" says that the fork is done
//! thaw      one write: the same readings, CLIENT UNPAUSE; the two readings and the fork's answer are the proof
//! collect   the dump as a stream, checked while it passes
//! ```
//! Where a replica is to fork instead (`from_replica`), only the capture is another one.
//!
//! **Invariants**: the node ends the pause by itself, whoever dies; a pause that somebody else has made too is never
//! ended by us; settings are changed only for the fork (before Redis 7: inside the freeze) and put back at once; what cannot
//! be proved is an error.
//!
//! Commands go through the `redis` crate, the replication stream through `replica` and `transfer`; what is decided
//! is decided in [`checks`], without a connection.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::driver::{CaptureReceipt, CapturedEntry, DriverError, FreezeReceipt, StoreDriver, ThawReceipt};
use crate::model::manifest::{CaptureProof, NodeDescription};

mod aof_files;
pub mod checks;
mod collect;
mod control;
mod describe;
mod discover;
mod from_replica;
mod options;
mod prepare;
mod replica;
pub mod reply;
mod save;
mod store_control;
mod tls;
mod transfer;

pub use control::RIGHTS;
pub use discover::{Discovered, discover};
pub use options::{CaptureMode, Password, RedisOptions};
pub use store_control::RedisControl;

use aof_files::AofFiles;
use checks::Mark;
use control::{Answer, Control, text};
use prepare::Prepared;
use replica::{Replica, Resynchronisation};
use reply::{Fields, Reading, clients_named};
use save::SaveWatch;

/// Every connection of ours that has a name has one that begins so.
pub(super) const NAME_PREFIX: &str = "tintype-";
/// A connection that has prepared a capture, or is reading one.
pub(super) const NAME_IDLE: &str = "tintype-snapshot";
/// A control connection whose pause may be in force.
const NAME_FROZEN: &str = "tintype-frozen";
/// Limit for the thaw to be answered: long enough for a node that is busy after its fork. Most pauses are over by then.
const THAW_LIMIT: Duration = Duration::from_secs(2);

/// One Redis or Valkey node.
#[derive(Debug)]
pub struct RedisDriver {
    options: RedisOptions,
    control: Option<Control>,
    replica: Option<Replica>,
    /// The replica of this node that forks instead of it.
    source: Option<Box<RedisDriver>>,
    prepared: Option<Prepared>,
    frozen: Option<Frozen>,
    captured: Option<Captured>,
    /// Settings to put back: name and value.
    changed: Vec<(&'static str, String)>,
    /// A pause of ours may be in force, and is ours alone.
    paused: bool,
}

/// From freeze to the end of the capture.
#[derive(Debug)]
struct Frozen {
    before: Reading,
    sent: Instant,
    pause: Duration,
    node_time_us: Option<i64>,
    mark: Mark,
    outcome: Option<Result<ThawReceipt, DriverError>>,
}

/// What the capture holds on to.
#[derive(Debug)]
enum Captured {
    Stream(Box<Replica>),
    Save(SaveWatch),
    Files(AofFiles),
}

impl RedisDriver {
    /// A driver that has not connected yet; a url that is not understood is refused.
    pub fn new(options: RedisOptions) -> Result<Self, DriverError> {
        options.endpoint()?;
        Ok(Self {
            options,
            control: None,
            replica: None,
            source: None,
            prepared: None,
            frozen: None,
            captured: None,
            changed: Vec::new(),
            paused: false,
        })
    }

    fn node(&self) -> String {
        self.options.node.to_string()
    }

    fn refused(&self, reason: impl Into<String>) -> DriverError {
        DriverError::Refused { node: self.node(), reason: reason.into() }
    }

    fn void(&self, reason: impl Into<String>) -> DriverError {
        DriverError::Void { node: self.node(), reason: reason.into() }
    }

    fn broken(&self, reason: impl Into<String>) -> DriverError {
        DriverError::Broken { node: self.node(), reason: reason.into() }
    }

    /// The control connection, opened where it is not.
    async fn control(&mut self) -> Result<&mut Control, DriverError> {
        if self.control.is_none() {
            self.control = Some(Control::open(&self.options).await?);
        }
        match self.control.as_mut() {
            Some(control) => Ok(control),
            None => Err(DriverError::Unreachable { node: self.options.node.to_string(), reason: "no connection".to_owned() }),
        }
    }

    fn is_cluster(&self) -> bool {
        self.prepared.as_ref().is_some_and(|prepared| prepared.cluster)
    }

    /// What both readings consist of.
    fn reading_commands(&self) -> Vec<Vec<String>> {
        let mut commands = vec![owned(&["INFO", "replication"]), owned(&["INFO", "persistence"]), owned(&["INFO", "stats"])];
        if self.is_cluster() {
            commands.push(owned(&["CLUSTER", "INFO"]));
        }
        commands
    }

    fn reading(&self, answers: &[Answer]) -> Result<Reading, DriverError> {
        let mut fields = Fields::default();
        for answer in answers {
            match answer {
                Ok(value) => fields.add(&text(value)),
                Err(error) => return Err(self.broken(format!("INFO: {error}"))),
            }
        }
        Ok(Reading::from_fields(&fields))
    }

    async fn send(&mut self, commands: &[Vec<String>], limit: Duration) -> Result<Vec<Answer>, DriverError> {
        let commands: Vec<Vec<&str>> = commands.iter().map(|command| command.iter().map(String::as_str).collect()).collect();
        let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
        self.control().await?.ask_all(&commands, limit).await
    }

    /// Puts settings back and ends our pause, over a new connection where the old one is gone. What does not succeed
    /// is logged: the pause then ends by itself.
    async fn release(&mut self) {
        for attempt in 0..2 {
            let commands = self.release_commands();
            if commands.is_empty() {
                return;
            }
            if attempt > 0 {
                self.control = None;
            }
            match self.send(&commands, THAW_LIMIT).await {
                Ok(answers) => {
                    for error in answers.into_iter().filter_map(Result::err) {
                        tracing::warn!(node = %self.options.node, %error, "a setting or the pause could not be given back");
                    }
                    self.changed.clear();
                    self.paused = false;
                    return;
                }
                Err(error) => tracing::warn!(node = %self.options.node, %error, attempt, "the node could not be thawed"),
            }
        }
        // It ends by itself before the node could be asked again; settings are tried once more by `abandon`.
        self.paused = false;
    }

    fn release_commands(&self) -> Vec<Vec<String>> {
        let mut commands: Vec<Vec<String>> =
            self.changed.iter().map(|(name, value)| owned(&["CONFIG", "SET", name, value])).collect();
        if self.paused {
            commands.push(owned(&["CLIENT", "UNPAUSE"]));
        }
        commands
    }

    async fn freeze_node(&mut self, pause: Duration) -> Result<FreezeReceipt, DriverError> {
        let Some(prepared) = &self.prepared else { return Err(self.refused("it was not prepared")) };
        let lists_clients = prepared.lists_clients;
        let settings = match &prepared.transfer {
            Some(plan) if !plan.in_one_write => plan.settings.clone(),
            _ => Vec::new(),
        };
        let mut commands = vec![owned(&["CLIENT", "SETNAME", NAME_FROZEN])];
        if lists_clients {
            commands.push(owned(&["CLIENT", "LIST"]));
        }
        let pause_at = commands.len();
        commands.push(owned(&["CLIENT", "PAUSE", &pause.as_millis().to_string(), "WRITE"]));
        commands.extend(settings.iter().map(|(name, value, _)| owned(&["CONFIG", "SET", name, value])));
        let reading_at = commands.len();
        commands.extend(self.reading_commands());
        let time_at = commands.len();
        commands.push(owned(&["TIME"]));

        let sent = Instant::now();
        self.changed = settings.into_iter().map(|(name, _, before)| (name, before)).collect();
        self.paused = true;
        // Half of the time is for the other nodes to be frozen too.
        let answers = self.send(&commands, pause / 2).await?;
        // A pause that was refused is not ours to end.
        self.paused = answers[pause_at].is_ok();
        if lists_clients {
            let list = answers[1].as_ref().map(text).unwrap_or_default();
            let frozen = clients_named(&list, NAME_FROZEN);
            if frozen.len() > 1 {
                // Ending the pause would end theirs: it runs out instead.
                self.paused = false;
                return Err(self.refused(format!("another coordinator has paused it ({}); try again later", frozen.join(", "))));
            }
        }
        for (command, answer) in commands[pause_at..reading_at].iter().zip(&answers[pause_at..reading_at]) {
            if let Err(error) = answer {
                let what = command[..2].join(" ");
                return Err(match &self.control {
                    Some(control) => control.fault(&what, error),
                    None => self.broken(format!("{what}: {error}")),
                });
            }
        }
        let before = self.reading(&answers[reading_at..time_at])?;
        if before.role != "master" {
            return Err(self.void(format!("its role became '{}' before the freeze", before.role)));
        }
        let node_time_us = answers[time_at].as_ref().ok().and_then(node_time_us);
        self.frozen = Some(Frozen { before, sent, pause, node_time_us, mark: Mark::None, outcome: None });
        Ok(FreezeReceipt { deadline: pause, node_time_us })
    }

    async fn capture_node(&mut self) -> Result<CaptureReceipt, DriverError> {
        let (remaining, offset, stream) = match &self.frozen {
            Some(Frozen { outcome: None, sent, pause, before, .. }) => {
                let offset = before.has_backlog.then_some(before.offset);
                (pause.saturating_sub(sent.elapsed()), offset, before.replication_id.clone())
            }
            _ => return Err(self.refused("it is not frozen")),
        };
        if remaining.is_zero() {
            return Err(self.void("the pause had run out before the capture began"));
        }
        let (mark, offset) = match self.options.capture {
            CaptureMode::Replication => {
                let plan = self.prepared.as_ref().and_then(|prepared| prepared.transfer.clone());
                let (Some(mut replica), Some(plan)) = (self.replica.take(), plan) else {
                    return Err(self.refused("it was not prepared"));
                };
                let settings = if plan.in_one_write { plan.settings.as_slice() } else { &[] };
                // They are put back in the same write, but nobody hears the answer: the thaw says it once more.
                self.changed.extend(settings.iter().map(|(name, _, before)| (*name, before.clone())));
                let Resynchronisation { replication_id, offset } = replica.synchronise(settings, remaining).await?;
                let mark = Mark::Resynchronisation { replication_id, offset, on_disk: !plan.diskless };
                self.captured = Some(Captured::Stream(Box::new(replica)));
                (mark, Some(offset))
            }
            CaptureMode::FromReplica => {
                let Some(at) = offset else { return Err(self.void("it lost its replicas before the freeze")) };
                (self.fork_source(&stream, at, remaining).await?, offset)
            }
            CaptureMode::Save => {
                let changes = self.begin_save(remaining).await?;
                (Mark::Save { changes }, offset)
            }
            CaptureMode::Aof => {
                self.captured = Some(Captured::Files(self.open_append_only(remaining).await?));
                (Mark::Files, offset)
            }
        };
        if let Some(frozen) = self.frozen.as_mut() {
            frozen.mark = mark;
        }
        Ok(CaptureReceipt { offset })
    }

    async fn thaw_node(&mut self, frozen: &Frozen) -> Result<ThawReceipt, DriverError> {
        let mut commands: Vec<Vec<String>> = Vec::new();
        let reading = self.reading_commands();
        commands.extend(reading.iter().cloned());
        commands.extend(self.release_commands());
        commands.push(owned(&["CLIENT", "SETNAME", NAME_IDLE]));
        let answers = match self.send(&commands, THAW_LIMIT).await {
            Ok(answers) => answers,
            Err(error) => {
                self.release().await;
                return Err(self.void(format!("the thaw was not answered: {error}")));
            }
        };
        let elapsed = frozen.sent.elapsed();
        for (command, answer) in commands.iter().zip(&answers).skip(reading.len()) {
            if let Err(error) = answer {
                // A release that was refused is tried once more, and otherwise ends with the pause.
                self.release().await;
                return Err(self.void(format!("{} was refused at the thaw: {error}", command[..2].join(" "))));
            }
        }
        self.changed.clear();
        self.paused = false;
        let after = self.reading(&answers[..reading.len()])?;
        let (consistent, mut checks) = checks::freeze_held(&frozen.before, &frozen.mark, &after, elapsed, frozen.pause)
            .map_err(|reason| self.void(format!("{reason}; take another snapshot")))?;
        if let Some(Captured::Files(files)) = &self.captured {
            checks.push(files.check());
        }
        let kind = match frozen.mark {
            Mark::None => return Ok(ThawReceipt { proof: CaptureProof::none() }),
            Mark::Resynchronisation { .. } | Mark::Save { .. } | Mark::OfReplica { .. } => "fork_reply",
            Mark::Files => "open_files",
        };
        // That it is of our fork was just proved: there was one since the freeze. A replica's own is not asked for.
        let is_own = matches!(frozen.mark, Mark::Resynchronisation { .. } | Mark::Save { .. });
        let fork_us = if is_own { after.fork_us } else { None };
        Ok(ThawReceipt { proof: CaptureProof { consistent, kind: kind.to_owned(), checks, fork_us, scope: None } })
    }
}

#[async_trait]
impl StoreDriver for RedisDriver {
    async fn describe(&mut self) -> Result<NodeDescription, DriverError> {
        self.describe_node().await
    }

    async fn prepare(&mut self, max_pause: Duration, patience: Duration) -> Result<(), DriverError> {
        self.abandon().await;
        let outcome = self.prepare_node(max_pause, patience).await;
        if outcome.is_err() {
            self.abandon().await;
        }
        outcome
    }

    async fn freeze(&mut self, pause: Duration) -> Result<FreezeReceipt, DriverError> {
        let outcome = self.freeze_node(pause).await;
        if outcome.is_err() {
            self.release().await;
        }
        outcome
    }

    async fn capture(&mut self) -> Result<CaptureReceipt, DriverError> {
        self.capture_node().await
    }

    async fn thaw(&mut self) -> Result<ThawReceipt, DriverError> {
        let Some(mut frozen) = self.frozen.take() else {
            self.release().await;
            return Ok(ThawReceipt { proof: CaptureProof::none() });
        };
        let outcome = match frozen.outcome.take() {
            Some(outcome) => outcome,
            None => self.thaw_node(&frozen).await,
        };
        if let Some(source) = &mut self.source {
            source.release().await;
        }
        frozen.outcome = Some(outcome.clone());
        self.frozen = Some(frozen);
        outcome
    }

    async fn collect(&mut self) -> Result<Vec<CapturedEntry>, DriverError> {
        self.collect_node().await
    }

    async fn abandon(&mut self) {
        self.release().await;
        if let Some(Captured::Save(watch)) = self.captured.take() {
            self.clear_save(watch).await;
        }
        if let Some(mut source) = self.source.take() {
            source.abandon().await;
        }
        // Closing the replication connection ends the child that writes for it.
        self.replica = None;
        self.frozen = None;
        self.prepared = None;
        self.control = None;
    }
}

impl Drop for RedisDriver {
    fn drop(&mut self) {
        // The node ends the pause by itself; being early is a courtesy, where there is still a runtime to be so in.
        let commands = self.release_commands();
        if let (Some(mut control), false, Ok(runtime)) =
            (self.control.take(), commands.is_empty(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move {
                let commands: Vec<Vec<&str>> =
                    commands.iter().map(|command| command.iter().map(String::as_str).collect()).collect();
                let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
                let _ = control.ask_all(&commands, THAW_LIMIT).await;
            });
        }
    }
}

fn owned(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

/// Seconds and microseconds, as `TIME` answers.
fn node_time_us(value: &redis::Value) -> Option<i64> {
    let redis::Value::Array(parts) = value else { return None };
    let [seconds, microseconds] = parts.as_slice() else { return None };
    let (seconds, microseconds): (i64, i64) = (text(seconds).parse().ok()?, text(microseconds).parse().ok()?);
    seconds.checked_mul(1_000_000)?.checked_add(microseconds)
}
