//! Users and groups of this host: names to numbers.
//!
//! What only a directory service knows is not found here.

use std::collections::HashMap;
use std::path::Path;

/// The host's own tables, as they were when they were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    users: HashMap<String, u32>,
    groups: HashMap<String, u32>,
}

/// Name and the number in the third field of each line; a line of any other form is passed over.
fn table(text: &str) -> HashMap<String, u32> {
    let line = |line: &str| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

impl Accounts {
    /// Those of `/etc/passwd` and `/etc/group`; none where they cannot be read.
    pub fn of_host() -> Self {
        let read = |path: &str| table(&std::fs::read_to_string(Path::new(path)).unwrap_or_default());
        Self { users: read("/etc/passwd"), groups: read("/etc/group") }
    }

    /// Number of a user.
    pub fn user(&self, name: &str) -> Option<u32> {
        self.users.get(name).copied()
    }

    /// Number of a group.
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.get(name).copied()
    }

    /// The owner here of what belonged to these elsewhere: by name where this host has it, else by number.
    pub fn owner(&self, user: (Option<&str>, u32), group: (Option<&str>, u32)) -> (u32, u32) {
        let uid = user.0.and_then(|name| self.user(name)).unwrap_or(user.1);
        let gid = group.0.and_then(|name| self.group(name)).unwrap_or(group.1);
        (uid, gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_win_over_numbers_and_strange_lines_are_passed_over() {
        let users = table("root:x:0:0:root:/root:/bin/sh\nbroken\nredis:x:999:998::/var/lib/redis:/bin/false\nodd:x:y:z\n");
        let accounts = Accounts { users, groups: table("redis:x:998:\n") };
        assert_eq!(accounts.owner((Some("redis"), 112), (Some("redis"), 113)), (999, 998));
        assert_eq!(accounts.owner((Some("valkey"), 112), (None, 113)), (112, 113));
        assert_eq!((accounts.user("odd"), accounts.user("broken"), accounts.user("root")), (None, None, Some(0)));
    }
}
