//! Who writes: a process of a host, and whether it still can.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::process::{Seen, boot_id, host_name, look_at, process_namespace};
use crate::model::time::Timestamp;

/// What a writer claims is renewed this often …
pub(super) const RENEWAL: Duration = Duration::from_secs(30);
/// … after a renewal that the store did not answer so much later …
pub(super) const RETRY: Duration = Duration::from_secs(5);
/// … and over this long after the last renewal: four misses.
pub(super) const LIFETIME: Duration = Duration::from_secs(120);

/// What identifies a process among all hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Its host.
    pub host: String,
    /// Its number there.
    pub process: u32,
    /// When it started, in ticks since boot: process numbers are used again.
    pub process_started: u64,
    /// The host's boot id: process numbers mean nothing across boots.
    pub boot: String,
    /// The namespace of its number: containers of one host have their own.
    #[serde(default)]
    pub namespace: String,
}

impl Writer {
    /// This process.
    pub(super) fn this_process() -> Self {
        let process = std::process::id();
        Self {
            host: host_name(),
            process,
            process_started: if let Seen::Runs { started } = look_at(process) { started } else { 0 },
            boot: boot_id().unwrap_or_default(),
            namespace: process_namespace().unwrap_or_default(),
        }
    }

    /// Whether it runs, where that can be seen: on this host since it was booted, outside of other containers.
    pub(super) fn runs(&self) -> Option<bool> {
        let here = Self::this_process();
        let place = |writer: &Self| (writer.host.clone(), writer.boot.clone(), writer.namespace.clone());
        if self.boot.is_empty() || self.namespace.is_empty() || place(self) != place(&here) {
            return None;
        }
        match look_at(self.process) {
            Seen::Runs { started } => Some(started == self.process_started),
            Seen::Gone => Some(false),
            Seen::Hidden => None,
        }
    }
}

impl std::fmt::Display for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {}", self.process, self.host)
    }
}

/// When a claim ends that is made or renewed now.
pub(super) fn expiry(now: Timestamp) -> Timestamp {
    Timestamp(now.0.saturating_add(i64::try_from(LIFETIME.as_micros()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_of_this_host_can_be_seen() {
        let mine = Writer::this_process();
        assert_eq!(mine.runs(), Some(true));
        let again = Writer { process_started: mine.process_started + 1, ..mine.clone() };
        assert_eq!(again.runs(), Some(false), "the number is used again");
        assert_eq!(Writer { host: "elsewhere".to_owned(), ..mine.clone() }.runs(), None);
        assert_eq!(Writer { boot: "another".to_owned(), ..mine.clone() }.runs(), None);
        assert_eq!(Writer { namespace: "pid:[1]".to_owned(), ..mine }.runs(), None, "another container");
    }
}
