//! The decisions of the Redis driver: how a dump is asked for, and whether a freeze held. Pure.

use std::time::Duration;

use crate::model::manifest::Consistency;

use super::reply::{Fields, Reading};

/// The oldest server that can be captured: 6.2 brought `CLIENT PAUSE … WRITE` and `CLIENT UNPAUSE`.
pub const OLDEST_VERSION: (u32, u32) = (6, 2);
/// Bytes of one `PING` in the replication stream. No write is as short, so that one step is never mistaken.
const PING_BYTES: u64 = 14;
/// Time of a fork by resident memory, where the server has never forked: slow virtual machines need 160 ms for 1 GB.
const FORK_MICROSECONDS_PER_MEBIBYTE: u64 = 160;

/// The settings that decide how a dump can be transferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferSettings {
    /// As `redis_version` says.
    pub version: (u32, u32),
    /// `repl-diskless-sync`.
    pub diskless: bool,
    /// `repl-diskless-sync-delay`, seconds.
    pub delay_s: u64,
    /// Whether `CONFIG SET` is permitted to us.
    pub may_configure: bool,
    /// Whether `CLIENT REPLY` is: it lets a setting and `PSYNC` go in one write.
    pub may_silence: bool,
    /// Whether `save` has save points.
    pub saves: bool,
    /// `appendonly`.
    pub appends: bool,
    /// `rdb-del-sync-files`.
    pub deletes_sync_files: bool,
}

/// A setting that is changed for a while: its name, the value meanwhile, the value before.
pub type Setting = (&'static str, String, String);

/// How the dump is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferPlan {
    /// Announce `capa eof`, so that the dump is streamed without a file on the node.
    pub diskless: bool,
    /// Settings to change for the fork: name, value for it, value before.
    pub settings: Vec<Setting>,
    /// They are changed and put back in the very write that asks for the fork: nobody who dies can leave them changed.
    /// Otherwise they stay changed from the freeze to the thaw.
    pub in_one_write: bool,
}

/// How the dump reaches us, with the fork inside the freeze and nothing left behind on the node; or why it cannot.
///
/// Streaming is preferred. It wants a delay of 0, which may have to be set: since Redis 7 the fork is done before the next
/// command of the connection is looked at, so that the setting, `PSYNC` and the setting as it was go in one write. Before
/// Redis 7 a timer of a second begins it; there the dump goes through the node's disk where the node writes dumps anyway,
/// and the setting stays changed throughout the freeze where it does not. A dump on the disk of a node without
/// persistence would be loaded at its next start and bring deleted keys back.
pub fn plan_transfer(settings: &TransferSettings) -> Result<TransferPlan, String> {
    let on_disk = TransferPlan { diskless: false, settings: Vec::new(), in_one_write: false };
    let in_one_write = settings.version >= (7, 0);
    // With an append-only file a dump is not loaded at a start; with save points it is replaced all the time.
    let disk_is_harmless = settings.saves || settings.appends || settings.deletes_sync_files;
    if settings.version < (7, 0) && disk_is_harmless {
        return Ok(on_disk);
    }
    let mut changes = Vec::new();
    if !settings.diskless {
        changes.push(("repl-diskless-sync", "yes".to_owned(), "no".to_owned()));
    }
    if settings.delay_s > 0 {
        changes.push(("repl-diskless-sync-delay", "0".to_owned(), settings.delay_s.to_string()));
    }
    if changes.is_empty() || settings.may_configure && (settings.may_silence || !in_one_write) {
        return Ok(TransferPlan { diskless: true, settings: changes, in_one_write });
    }
    if disk_is_harmless {
        return Ok(on_disk);
    }
    Err("persistence is off and repl-diskless-sync-delay is not 0: a full synchronisation would come too late for the freeze or \
         leave a dump that the next start loads; permit `+config|set +client|reply`, or set repl-diskless-sync-delay to 0 or \
         rdb-del-sync-files to yes on the node"
        .to_owned())
}

/// How long the next fork will take: as long as the last one, or by memory where there was none.
pub fn fork_estimate(fields: &Fields) -> Duration {
    match fields.number("latest_fork_usec") {
        Some(microseconds @ 1..) => Duration::from_micros(microseconds),
        _ => {
            let mebibytes = fields.number("used_memory_rss").unwrap_or(0) >> 20;
            Duration::from_micros(mebibytes.saturating_mul(FORK_MICROSECONDS_PER_MEBIBYTE))
        }
    }
}

/// Whether the server says that somebody has paused its clients; older ones do not say it.
pub fn pause_in_force(fields: &Fields) -> bool {
    fields.get("paused_reason").is_some_and(|reason| reason != "none") || fields.number("paused_timeout_milliseconds") > Some(0)
}

/// What marked the instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// Nothing was captured.
    None,
    /// `+FULLRESYNC` with this stream and offset.
    Resynchronisation {
        /// Identity of the stream.
        replication_id: String,
        /// Offset of the fork.
        offset: u64,
        /// The dump goes through a file on the node: when it is complete, the count of changes starts again.
        on_disk: bool,
    },
    /// `+FULLRESYNC` of a replica, with its master's stream and this offset.
    OfReplica {
        /// Where the replica is.
        by: String,
        /// Identity of the stream.
        replication_id: String,
        /// Offset of the fork.
        offset: u64,
    },
    /// `+Background saving started`.
    Save {
        /// The count of changes read in the same write, right before it.
        changes: u64,
    },
    /// The files were open and flushed.
    Files,
}

/// Whether nothing was written from freeze to thaw, and the mark lies between: what was compared, or what did not hold.
///
/// `elapsed` is from before the freeze was sent until after the thaw was answered, both by our own monotonic clock;
/// `pause` is what the node was told.
///
/// It is proved, but for one case: without a backlog before the freeze only the count of changes could show a write ahead
/// of the fork, and a save that ended inside the freeze started that count again.
pub fn freeze_held(
    before: &Reading,
    mark: &Mark,
    after: &Reading,
    elapsed: Duration,
    pause: Duration,
) -> Result<(Consistency, Vec<String>), String> {
    let mut checks = Vec::new();
    if elapsed >= pause {
        return Err(format!("the thaw came after {elapsed:?}, later than the pause of {pause:?}; raise max_pause"));
    }
    checks.push(format!("thawed after {} us of {} us", elapsed.as_micros(), pause.as_micros()));
    if before.role != "master" || after.role != "master" {
        return Err(format!("the role was {} at the freeze and {} at the thaw", before.role, after.role));
    }
    checks.push("role:master before and after".to_owned());
    if before.epochs != after.epochs {
        return Err(format!("the cluster's configuration epoch changed from {:?} to {:?}", before.epochs, after.epochs));
    }
    if let Some((own, current)) = before.epochs {
        checks.push(format!("epoch {own} of {current} before and after"));
    }
    let consistent = changes_held(before, mark, after, &mut checks)?;
    let pings = |from: u64, to: u64| {
        let moved = to.checked_sub(from)?;
        // One ping a second is the shortest period that can be configured.
        (moved % PING_BYTES == 0 && moved / PING_BYTES <= elapsed.as_secs() + 1).then_some(moved)
    };
    if let Mark::OfReplica { by, .. } = mark {
        if !before.has_backlog {
            return Err("it had no replicas at the freeze".to_owned());
        }
        checks.push(format!("forked by its replica {by}"));
    }
    let (stream, from) = match mark {
        Mark::Resynchronisation { replication_id, offset, .. } | Mark::OfReplica { replication_id, offset, .. } => {
            // A server without a backlog begins a new stream at the first synchronisation, and until then it does not count.
            if before.has_backlog {
                if *replication_id != before.replication_id {
                    return Err("the replication id changed inside the freeze".to_owned());
                }
                let Some(moved) = pings(before.offset, *offset) else {
                    return Err(format!("the fork was at offset {offset}, and the freeze at {}", before.offset));
                };
                checks.push(format!("fork at offset {offset}, {moved} bytes of pings after the freeze"));
            } else {
                checks.push(format!("fork answered inside the freeze at offset {offset} (no backlog before)"));
            }
            (replication_id, *offset)
        }
        _ => (&before.replication_id, before.offset),
    };
    if *stream != after.replication_id {
        return Err("the replication id changed inside the freeze".to_owned());
    }
    let Some(moved) = pings(from, after.offset) else {
        return Err(format!("the replication offset moved from {from} to {} inside the freeze", after.offset));
    };
    checks.push(format!("offset {} at the thaw, {moved} bytes of pings", after.offset));
    if let (Mark::Resynchronisation { .. } | Mark::Save { .. }, Some(before), Some(after)) = (mark, before.forks, after.forks) {
        if after != before + 1 {
            return Err(format!("{} forks inside the freeze instead of one", after.saturating_sub(before)));
        }
        checks.push("one fork".to_owned());
    }
    Ok((consistent, checks))
}

/// What the count of changes says: it grows with every write, and starts again when a save is complete.
fn changes_held(before: &Reading, mark: &Mark, after: &Reading, checks: &mut Vec<String>) -> Result<Consistency, String> {
    let to_file = matches!(mark, Mark::Save { .. } | Mark::Resynchronisation { on_disk: true, .. });
    if let Mark::Save { changes } = mark
        && *changes != before.changes
    {
        return Err(format!("{} keys were changed between the freeze and the fork", changes.abs_diff(before.changes)));
    }
    if to_file && !after.saving {
        if after.save_failed {
            return Err("the save failed; see the node's log (memory, disk space)".to_owned());
        }
        if after.changes != 0 {
            return Err(format!("{} keys were changed inside the freeze", after.changes));
        }
        checks.push("no change counted since the fork, whose save has ended".to_owned());
        let shown = before.has_backlog || matches!(mark, Mark::Save { .. });
        return Ok(if shown { Consistency::Proved } else { Consistency::Timed });
    }
    if after.changes != before.changes {
        return Err(format!("{} keys were changed inside the freeze", after.changes.abs_diff(before.changes)));
    }
    checks.push("no change counted since the freeze".to_owned());
    Ok(Consistency::Proved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(offset: u64) -> Reading {
        Reading {
            role: "master".to_owned(),
            replication_id: "a".to_owned(),
            offset,
            has_backlog: true,
            changes: 5,
            saving: true,
            save_failed: false,
            epochs: Some((1, 3)),
            forks: Some(7),
            fork_us: None,
        }
    }

    fn after(offset: u64) -> Reading {
        Reading { forks: Some(8), ..reading(offset) }
    }

    fn fork(offset: u64) -> Mark {
        Mark::Resynchronisation { replication_id: "a".to_owned(), offset, on_disk: false }
    }

    fn held(before: &Reading, mark: &Mark, after: &Reading) -> bool {
        freeze_held(before, mark, after, Duration::from_millis(100), Duration::from_secs(2)).is_ok()
    }

    #[test]
    fn a_freeze_held_when_nothing_but_pings_moved() {
        assert!(held(&reading(100), &fork(100), &after(100)));
        assert!(held(&reading(100), &fork(114), &after(114)));
        assert!(held(&reading(100), &fork(100), &after(114)));
    }

    #[test]
    fn a_write_inside_voids_the_cut() {
        assert!(!held(&reading(100), &fork(127), &after(127)));
        // As long as two pings, but there was no time for two.
        assert!(!held(&reading(100), &fork(128), &after(128)));
        assert!(!held(&reading(100), &fork(100), &after(101)));
        assert!(!held(&reading(100), &fork(90), &after(100)));
        assert!(!held(&reading(100), &fork(100), &Reading { changes: 6, ..after(100) }));
    }

    #[test]
    fn a_change_of_role_stream_or_epoch_voids_the_cut() {
        assert!(!held(&reading(1), &fork(1), &Reading { role: "slave".to_owned(), ..after(1) }));
        assert!(!held(&reading(1), &fork(1), &Reading { epochs: Some((1, 4)), ..after(1) }));
        assert!(!held(&reading(1), &fork(1), &Reading { replication_id: "b".to_owned(), ..after(1) }));
        assert!(!held(&reading(1), &fork(1), &Reading { forks: Some(9), ..after(1) }));
    }

    #[test]
    fn a_late_thaw_voids_the_cut() {
        let pause = Duration::from_secs(2);
        assert!(freeze_held(&reading(1), &fork(1), &after(1), pause, pause).is_err());
    }

    #[test]
    fn without_a_backlog_the_stream_may_be_new() {
        let before = Reading { has_backlog: false, offset: 0, replication_id: "old".to_owned(), ..reading(0) };
        assert!(held(&before, &fork(0), &after(0)));
        assert!(!held(&before, &Mark::Save { changes: 5 }, &after(0)));
        assert!(held(&before, &Mark::Save { changes: 5 }, &Reading { forks: Some(8), ..before.clone() }));
    }

    #[test]
    fn a_save_that_ended_inside_starts_the_count_again() {
        let pause = Duration::from_secs(2);
        let ended = Reading { saving: false, changes: 0, ..after(1) };
        let consistent = |before: &Reading, mark: &Mark, after: &Reading| {
            freeze_held(before, mark, after, Duration::ZERO, pause).ok().map(|(consistent, _)| consistent)
        };
        let on_disk = Mark::Resynchronisation { replication_id: "a".to_owned(), offset: 1, on_disk: true };
        assert_eq!(consistent(&reading(1), &on_disk, &ended), Some(Consistency::Proved));
        let alone = Reading { has_backlog: false, ..reading(0) };
        assert_eq!(consistent(&alone, &on_disk, &ended), Some(Consistency::Timed));
        assert_eq!(consistent(&alone, &on_disk, &after(1)), Some(Consistency::Proved));
        assert_eq!(consistent(&reading(1), &on_disk, &Reading { changes: 1, ..ended.clone() }), None);
        assert_eq!(consistent(&reading(1), &on_disk, &Reading { save_failed: true, ..ended.clone() }), None);
        assert_eq!(consistent(&reading(1), &Mark::Save { changes: 5 }, &ended), Some(Consistency::Proved));
        assert_eq!(consistent(&reading(1), &Mark::Save { changes: 6 }, &ended), None);
    }

    fn settings() -> TransferSettings {
        TransferSettings {
            version: (7, 0),
            diskless: true,
            delay_s: 5,
            may_configure: true,
            may_silence: true,
            saves: false,
            appends: false,
            deletes_sync_files: false,
        }
    }

    #[test]
    fn a_delay_is_set_aside_for_the_freeze() {
        let plan = plan_transfer(&settings()).expect("possible");
        assert!(plan.diskless);
        assert_eq!(plan.settings, [("repl-diskless-sync-delay", "0".to_owned(), "5".to_owned())]);
        assert!(plan.in_one_write);
        assert!(plan_transfer(&TransferSettings { delay_s: 0, ..settings() }).expect("possible").settings.is_empty());
    }

    #[test]
    fn without_the_right_to_configure_the_disk_is_used_where_it_does_no_harm() {
        for narrow in
            [TransferSettings { may_configure: false, ..settings() }, TransferSettings { may_silence: false, ..settings() }]
        {
            assert!(plan_transfer(&narrow).is_err());
            for harmless in [
                TransferSettings { saves: true, ..narrow.clone() },
                TransferSettings { appends: true, ..narrow.clone() },
                TransferSettings { deletes_sync_files: true, ..narrow },
            ] {
                assert!(!plan_transfer(&harmless).expect("possible").diskless);
            }
        }
    }

    #[test]
    fn an_old_server_streams_only_where_its_disk_must_stay_clean() {
        let old = TransferSettings { version: (6, 2), diskless: false, ..settings() };
        let plan = plan_transfer(&old).expect("possible");
        assert!(plan.diskless && !plan.in_one_write);
        assert!(!plan_transfer(&TransferSettings { saves: true, ..old }).expect("possible").diskless);
    }

    #[test]
    fn a_pause_is_seen_where_the_server_tells() {
        assert!(pause_in_force(&Fields::parse("paused_reason:client_pause\npaused_timeout_milliseconds:900\n")));
        assert!(!pause_in_force(&Fields::parse("paused_reason:none\npaused_timeout_milliseconds:0\n")));
        assert!(!pause_in_force(&Fields::parse("connected_clients:1\n")));
    }

    #[test]
    fn a_fork_that_never_was_is_estimated_by_memory() {
        assert_eq!(fork_estimate(&Fields::parse("latest_fork_usec:300\n")), Duration::from_micros(300));
        let fields = Fields::parse("latest_fork_usec:0\nused_memory_rss:1073741824\n");
        assert_eq!(fork_estimate(&fields), Duration::from_micros(163_840));
    }
}
