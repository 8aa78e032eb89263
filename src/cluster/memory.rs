//! Whether the hosts have room for all forks of a cut: a pure decision over what the drivers say of memory.

use std::collections::BTreeMap;

use crate::model::manifest::NodeDescription;

/// Share of a store's memory that is allowed for pages copied while its fork writes: a busy store rewrites a part of its
/// data in the seconds to minutes of a dump, rarely more than a quarter.
const FORK_SHARE: (u64, u64) = (1, 4);

/// What speaks against forking all of `nodes` at once: all forks of one host must fit beside what runs there. Looks at what drivers say in `notes`: `used_memory_rss` and
/// `total_system_memory`, both bytes; nodes without them are not counted.
pub(super) fn lacks_memory(nodes: &[&NodeDescription]) -> Option<String> {
    let number = |node: &NodeDescription, key: &str| node.notes.get(key).and_then(|value| value.parse::<u64>().ok());
    let mut hosts: BTreeMap<&str, (u64, u64, usize)> = BTreeMap::new();
    for node in nodes {
        let (Some(used), Some(total)) = (number(node, "used_memory_rss"), number(node, "total_system_memory")) else { continue };
        let host = node.address.rsplit_once(':').map_or(node.address.as_str(), |(host, _)| host);
        let entry = hosts.entry(host).or_insert((0, total, 0));
        *entry = (entry.0.saturating_add(used), entry.1.min(total), entry.2 + 1);
    }
    for (host, (used, total, count)) in hosts {
        let needed = used.saturating_add(used / FORK_SHARE.1 * FORK_SHARE.0);
        if needed > total {
            let mib = |bytes: u64| bytes / (1024 * 1024);
            return Some(format!(
                "{host}: its {count} stores use {} MiB and may need {} MiB while they fork together, but the host has {} MiB; snapshot fewer of its nodes at once, or give it memory",
                mib(used),
                mib(needed),
                mib(total)
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: &str, used_mib: u64) -> NodeDescription {
        let settings = [("used_memory_rss", used_mib << 20), ("total_system_memory", 1000 << 20)]
            .map(|(key, value)| (key.to_owned(), value.to_string()));
        NodeDescription { address: format!("{host}:6379"), notes: settings.into(), ..NodeDescription::default() }
    }

    #[test]
    fn forks_that_do_not_fit_one_host_together_are_refused() {
        assert_eq!(lacks_memory(&[&node("a", 700), &node("b", 700)]), None);
        let refused =
            lacks_memory(&[&node("a", 500), &node("b", 100), &node("a", 400)]).expect("900 and a quarter are more than 1000");
        assert!(refused.starts_with("a: its 2 stores use 900 MiB"), "{refused}");
    }

    #[test]
    fn nodes_that_say_nothing_of_memory_are_not_counted() {
        assert_eq!(lacks_memory(&[&NodeDescription::default()]), None);
    }
}
