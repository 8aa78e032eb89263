//! Who writes: a process of a host, and whether it still can.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::time::Timestamp;

/// What a writer claims is renewed this often …
pub(super) const RENEWAL: Duration = Duration::from_secs(30);
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
        let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let process = std::process::id();
        Self {
            host: read("/proc/sys/kernel/hostname"),
            process,
            process_started: process_started(process).unwrap_or(0),
            boot: read("/proc/sys/kernel/random/boot_id"),
            namespace: std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default(),
        }
    }

    /// Whether it runs, where that can be seen: on this host since it was booted, outside of other containers.
    pub(super) fn runs(&self) -> Option<bool> {
        let here = Self::this_process();
        let place = |writer: &Self| (writer.host.clone(), writer.boot.clone(), writer.namespace.clone());
        let is_here = !self.boot.is_empty() && !self.namespace.is_empty() && place(self) == place(&here);
        is_here.then(|| process_started(self.process) == Some(self.process_started))
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

/// Start of a process in ticks since boot; `None` when it is gone, also when only its parent has not noticed yet. Fields 3
/// and 22 of /proc/PID/stat, counted behind the name, which may itself hold blanks and parentheses.
fn process_started(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_is_dead_though_its_parent_has_not_noticed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("coreutils are installed");
        assert!(process_started(child.id()).is_some());
        child.kill().expect("a child");
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while process_started(child.id()).is_some() {
            assert!(std::time::Instant::now() < until, "it is still taken for alive");
            std::thread::yield_now();
        }
        child.wait().expect("it was still there to be waited for");
    }

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
