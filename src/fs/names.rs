//! The names of one cluster's snapshots: what a listing shows and what a look-up finds. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::time::SnapshotDate;
use crate::repo::ListedSnapshot;

/// The link to the newest complete snapshot.
pub const LATEST: &str = "latest";

/// Shortest prefix of a date that a look-up resolves: a year. Anything shorter is a typing error.
const PREFIX_BYTES_MIN: usize = 4;
/// Length of a day, `2026-11-20`.
const DAY_BYTES: usize = 10;

/// A snapshot under the name that it is shown by.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    /// The date; behind a `~` the end of the identity where several snapshots have one date.
    pub name: Box<str>,
    /// The snapshot.
    pub listed: ListedSnapshot,
}

/// The snapshots of a cluster, by name.
#[derive(Debug, Default)]
pub struct SnapshotNames {
    /// Ascending by name, which is by time.
    shown: Vec<Arc<Shown>>,
    latest: Option<Arc<Shown>>,
}

impl SnapshotNames {
    /// Names for these, in any order; what `previous` already holds under the same name is shared with it.
    pub fn new(mut listed: Vec<ListedSnapshot>, previous: Option<&Self>) -> Self {
        listed.sort_by_key(|snapshot| (snapshot.date, snapshot.uuid));
        listed.dedup_by_key(|snapshot| snapshot.uuid);
        let mut same_date: HashMap<SnapshotDate, u32> = HashMap::new();
        for snapshot in &listed {
            *same_date.entry(snapshot.date).or_default() += 1;
        }
        let mut shown: Vec<_> = listed
            .into_iter()
            .map(|listed| {
                let is_alone = same_date.get(&listed.date) == Some(&1);
                let name = if is_alone { listed.date.to_string() } else { format!("{}~{}", listed.date, tail(&listed)) };
                let before = previous.and_then(|previous| previous.find(&name));
                match before.filter(|before| before.listed == listed) {
                    Some(before) => before.clone(),
                    None => Arc::new(Shown { name: name.into(), listed }),
                }
            })
            .collect();
        shown.sort_by(|one, other| one.name.cmp(&other.name));
        let latest = shown.iter().rev().find(|shown| shown.listed.is_complete).cloned();
        Self { shown, latest }
    }

    /// All, ascending.
    pub fn shown(&self) -> &[Arc<Shown>] {
        &self.shown
    }

    /// The newest complete one.
    pub fn latest(&self) -> Option<&Arc<Shown>> {
        self.latest.as_ref()
    }

    /// The newest one, complete or not.
    pub fn newest(&self) -> Option<&Arc<Shown>> {
        self.shown.last()
    }

    /// The one of exactly this name.
    pub fn find(&self, name: &str) -> Option<&Arc<Shown>> {
        let at = self.shown.binary_search_by(|shown| (*shown.name).cmp(name)).ok()?;
        self.shown.get(at)
    }

    /// What a name that no listing shows stands for: a day for its newest, another prefix for the only one that has it.
    pub fn resolve(&self, prefix: &str) -> Option<&Arc<Shown>> {
        if !may_be_prefix(prefix) {
            return None;
        }
        let first = self.shown.partition_point(|shown| *shown.name < *prefix);
        let matching = &self.shown[first..];
        let count = matching.partition_point(|shown| shown.name.starts_with(prefix));
        match count {
            0 => None,
            1 => matching.first(),
            _ if prefix.len() == DAY_BYTES => matching.get(count - 1),
            _ => None,
        }
    }
}

/// Whether a look-up of `name` could mean a date at all; what could not needs no listing to be refused.
pub fn may_be_prefix(name: &str) -> bool {
    name.len() >= PREFIX_BYTES_MIN && name.bytes().take(PREFIX_BYTES_MIN).all(|byte| byte.is_ascii_digit())
}

/// Eight digits that tell snapshots of one second apart: the random end, since a time-ordered identity begins alike.
fn tail(listed: &ListedSnapshot) -> String {
    let text = listed.uuid.simple().to_string();
    text[text.len() - 8..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::SnapshotId;
    use crate::model::names::ClusterName;

    fn listed(date: &str, number: u128, is_complete: bool) -> ListedSnapshot {
        let cluster = ClusterName::new("c").expect("legal");
        let date = date.parse().expect("legal");
        ListedSnapshot { cluster, date, uuid: SnapshotId::from_u128(number), is_complete, key: String::new() }
    }

    fn names() -> SnapshotNames {
        SnapshotNames::new(
            vec![
                listed("2026-11-20T10-15-30Z", 1, true),
                listed("2026-11-20T12-00-00Z", 2, true),
                listed("2026-11-21T00-00-00Z", 3, false),
                listed("2025-01-01T00-00-00Z", 4, true),
            ],
            None,
        )
    }

    #[test]
    fn latest_is_the_newest_complete_one() {
        assert_eq!(names().latest().map(|shown| shown.name.to_string()), Some("2026-11-20T12-00-00Z".to_owned()));
    }

    #[test]
    fn a_day_is_its_newest_and_another_prefix_must_be_unique() {
        let names = names();
        let resolve = |prefix| names.resolve(prefix).map(|shown| shown.name.to_string());
        assert_eq!(resolve("2026-11-20").as_deref(), Some("2026-11-20T12-00-00Z"));
        assert_eq!(resolve("2026-11-20T10").as_deref(), Some("2026-11-20T10-15-30Z"));
        assert_eq!(resolve("2025").as_deref(), Some("2025-01-01T00-00-00Z"));
        for prefix in ["2026", "2026-11-2", "2026-11-20T1", "202", "", "2024", "2026-11-20T10-15-30Z~", "late"] {
            assert_eq!(resolve(prefix), None, "{prefix}");
        }
    }

    #[test]
    fn snapshots_of_one_second_are_told_apart_and_the_bare_date_is_none_of_them() {
        let date = "2026-11-20T10-15-30Z";
        let names = SnapshotNames::new(vec![listed(date, 0xaaaa_0001, true), listed(date, 0xaaaa_0002, true)], None);
        let shown: Vec<_> = names.shown().iter().map(|shown| shown.name.to_string()).collect();
        assert_eq!(shown, ["2026-11-20T10-15-30Z~aaaa0001", "2026-11-20T10-15-30Z~aaaa0002"]);
        assert!(names.find(date).is_none() && names.resolve(date).is_none());
    }

    #[test]
    fn what_did_not_change_is_shared_with_the_listing_before() {
        let before = names();
        let mut listed: Vec<_> = before.shown().iter().map(|shown| shown.listed.clone()).collect();
        listed.push(self::listed("2027-01-01T00-00-00Z", 9, true));
        let after = SnapshotNames::new(listed, Some(&before));
        assert!(before.shown().iter().all(|old| after.shown().iter().any(|new| Arc::ptr_eq(old, new))));
    }
}
