//! What names this host and a process of it among all others, and whether a process still runs.
//!
//! A process number means one process only within a boot and a namespace (containers have their own), and together with
//! the time at which it started.

/// The host's name, as `hostname` says it; empty where the kernel tells none.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Another one after each boot.
pub fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// The namespace in which this process has its number, as `pid:[4026531836]`.
pub fn process_namespace() -> Option<String> {
    std::fs::read_link("/proc/self/ns/pid").ok().map(|link| link.to_string_lossy().into_owned())
}

/// What can be seen of a process.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is there.
    Runs {
        /// Since so many ticks after boot; process numbers are used again.
        started: u64,
    },
    /// Also when only its parent has not noticed yet.
    Gone,
    /// It is another user's, and the host shows nobody more than that.
    Hidden,
}

/// Fields 3 and 22 of /proc/PID/stat, counted behind the name, which may itself hold blanks and parentheses.
pub fn look_at(process: u32) -> Seen {
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
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_process_that_ended_is_dead_though_its_parent_has_not_noticed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("coreutils are installed");
        assert!(matches!(look_at(child.id()), Seen::Runs { .. }));
        child.kill().expect("a child");
        let until = Instant::now() + Duration::from_secs(10);
        while look_at(child.id()) != Seen::Gone {
            assert!(Instant::now() < until, "it is still taken for alive");
            std::thread::yield_now();
        }
        child.wait().expect("it was still there to be waited for");
        assert_eq!(look_at(child.id()), Seen::Gone, "its number is free");
    }
}
