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
            process_started: if let Seen::Runs { started } = look_at(process) { started } else { 0 },
            boot: read("/proc/sys/kernel/random/boot_id"),
            namespace: std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default(),
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

/// What can be seen of a process.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// Since so many ticks after boot.
    Runs { started: u64 },
    /// Also when only its parent has not noticed yet.
    Gone,
    /// It is another user's, and the host shows nobody more than that.
    Hidden,
}

/// Fields 3 and 22 of /proc/PID/stat, counted behind the name, which may itself hold blanks and parentheses.
fn look_at(process: u32) -> Seen {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{process}/stat")) else {
        let number = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
        let is_gone = number.is_none_or(|number| rustix::process::test_kill_process(number) == Err(rustix::io::Errno::SRCH));
        return if is_gone { Seen::Gone } else { Seen::Hidden };
    };
    let mut fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    match fields.next() {
        Some("Z" | "X") => Seen::Gone,
        _ => fields.nth(18).and_then(|ticks| ticks.parse().ok()).map_or(Seen::Hidden, |started| Seen::Runs { started }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_is_dead_though_its_parent_has_not_noticed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("coreutils are installed");
        assert!(matches!(look_at(child.id()), Seen::Runs { .. }));
        child.kill().expect("a child");
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while look_at(child.id()) != Seen::Gone {
            assert!(std::time::Instant::now() < until, "it is still taken for alive");
            std::thread::yield_now();
        }
        child.wait().expect("it was still there to be waited for");
        assert_eq!(look_at(child.id()), Seen::Gone, "its number is free");
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
