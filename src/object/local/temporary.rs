//! Names of files being written, and the removal of those whose writers are gone.
//!
//! A name says which boot, process namespace and process it belongs to: on the same host a dead writer is known at once;
//! of another host's (a shared file system) only the age speaks.

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::super::keys::TEMPORARY_FOLDER;
use super::disk::{Disk, EntryKind};
use crate::base::process::{Seen, boot_id, look_at, process_namespace};

/// No write of one object takes a day.
const STALE_AFTER_NS: i128 = 24 * 3600 * 1_000_000_000;

const SUFFIX: &str = ".writing";

/// A fresh path for one write.
pub(super) fn path() -> String {
    format!("{TEMPORARY_FOLDER}/{}-{}-{}{SUFFIX}", host(), std::process::id(), Uuid::new_v4().simple())
}

/// Removes what dead writers left. Whatever cannot be read or removed stays: the next writer tries again.
pub(super) fn sweep(disk: &dyn Disk) {
    let mut names: Vec<String> = Vec::new();
    let _ = disk.visit(TEMPORARY_FOLDER, &mut |name, kind| {
        if kind == EntryKind::File && name.ends_with(SUFFIX) {
            names.push(name.to_owned());
        }
        ControlFlow::Continue(())
    });
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
    for name in names {
        let path = format!("{TEMPORARY_FOLDER}/{name}");
        let is_stale =
            is_writer_dead(&name) || disk.status(&path).is_ok_and(|status| now_ns - status.modified_ns > STALE_AFTER_NS);
        if is_stale {
            tracing::debug!(path, "removing what a dead writer left");
            let _ = disk.remove(&path);
        }
    }
}

/// Only of a writer of this boot and process namespace can it be said.
fn is_writer_dead(name: &str) -> bool {
    let mut parts = name.split('-');
    let (Some(writer_host), Some(process)) = (parts.next(), parts.next()) else { return false };
    let Ok(process) = process.parse() else { return false };
    writer_host == host() && host() != UNKNOWN_HOST && look_at(process) == Seen::Gone
}

const UNKNOWN_HOST: &str = "unknown";

/// Boot and process namespace: only within one does a process id mean one process.
fn host() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        let (Some(boot), Some(space)) = (boot_id(), process_namespace()) else { return UNKNOWN_HOST.to_owned() };
        let boot: String = boot.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let space: String = space.chars().filter(char::is_ascii_digit).collect();
        format!("{boot}.{space}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_writes_are_not_dead() {
        let path = path();
        let name = path.rsplit_once('/').expect("below the folder").1;
        assert!(!is_writer_dead(name), "{name}");
    }

    #[test]
    fn a_process_that_cannot_be_is_dead_only_on_this_host() {
        // Above the kernel's largest process id.
        assert!(is_writer_dead(&format!("{}-4194399-x{SUFFIX}", host())));
        assert!(!is_writer_dead(&format!("elsewhere.1-4194399-x{SUFFIX}")));
        assert!(!is_writer_dead("notes.writing"));
    }
}
