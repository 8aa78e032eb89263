//! How people name a snapshot: `CLUSTER/DATE[/NODE[/PATH]]`, where DATE may be short, relative or a UUID.

use super::ids::{SnapshotId, Uuid};
use super::names::{BadName, ClusterName, NodeName, TreePath};
use super::time::{SnapshotDate, Timestamp};

/// What a person typed, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotName {
    /// The cluster.
    pub cluster: ClusterName,
    /// Which of its snapshots; absent when only the cluster was named.
    pub date: Option<DateQuery>,
    /// Which of its nodes.
    pub node: Option<NodeName>,
    /// Which file or directory of the node; the root when absent.
    pub path: TreePath,
}

/// How a snapshot of a cluster was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DateQuery {
    /// The newest complete one.
    Latest,
    /// The newest complete one not later than this.
    NotAfter(Timestamp),
    /// By identity.
    Uuid(SnapshotId),
    /// A dated name or the beginning of one; a whole day means the newest of that day.
    Prefix(String),
}

/// A name could not be taken apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSnapshotName {
    /// A component is not allowed.
    #[error(transparent)]
    Name(#[from] BadName),
    /// The date is none.
    #[error(
        "{0:?} is not a date: give 2026-11-20T10-15-30Z, a beginning of it, a day, latest, @TIME (RFC 3339 or '2h ago') or a UUID"
    )]
    Date(String),
}

/// No snapshot, or more than one, fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct NoSingleSnapshot {
    what: String,
    /// Dated names nearest to what was asked for, newest first, at most five.
    pub candidates: Vec<String>,
}

impl SnapshotName {
    /// Takes `CLUSTER[/DATE[/NODE[/PATH]]]` apart. `now` is what relative times count from.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, BadSnapshotName> {
        let mut parts = text.trim_end_matches('/').splitn(4, '/');
        let cluster = ClusterName::new(parts.next().unwrap_or_default())?;
        let date = parts.next().map(|date| DateQuery::parse(date, now)).transpose()?;
        let node = parts.next().map(NodeName::new).transpose()?;
        let path = TreePath::new(parts.next().unwrap_or_default())?;
        Ok(Self { cluster, date, node, path })
    }
}

impl DateQuery {
    /// `latest`, `@TIME`, a UUID, or a beginning of a dated name with at least its year.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, BadSnapshotName> {
        let wrong = || BadSnapshotName::Date(text.chars().take(64).collect());
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Some(time) = text.strip_prefix('@') {
            return parse_time(time, now).map(Self::NotAfter).ok_or_else(wrong);
        }
        if let Ok(uuid) = Uuid::try_parse(text) {
            return Ok(Self::Uuid(uuid));
        }
        let shape = "dddd-dd-ddTdd-dd-ddZ";
        // `~` begins the part of a UUID that tells two snapshots of one second apart.
        let (date, rest) = text.split_at(text.find('~').unwrap_or(text.len()));
        let fits = (4..=shape.len()).contains(&date.len())
            && date
                .bytes()
                .zip(shape.bytes())
                .all(|(byte, form)| if form == b'd' { byte.is_ascii_digit() } else { byte == form })
            && (rest.is_empty()
                || (date.len() == shape.len() && rest.len() > 1 && rest[1..].bytes().all(|byte| byte.is_ascii_hexdigit())));
        if fits { Ok(Self::Prefix(text.to_owned())) } else { Err(wrong()) }
    }

    /// The one snapshot that is meant, of all of a cluster: (date, identity, whether it is complete), newest first.
    pub fn choose(&self, cluster: &ClusterName, all: &[(SnapshotDate, SnapshotId, bool)]) -> Result<usize, NoSingleSnapshot> {
        let none = |what: String, near: Vec<usize>| {
            Err(NoSingleSnapshot { what, candidates: near.into_iter().take(5).map(|index| shown(all, index)).collect() })
        };
        let newest = || (0..all.len().min(5)).collect::<Vec<_>>();
        let found = match self {
            Self::Latest => all.iter().position(|(.., is_complete)| *is_complete),
            Self::NotAfter(time) => {
                all.iter().position(|(date, _, is_complete)| *is_complete && date.seconds() <= time.seconds())
            }
            Self::Uuid(uuid) => all.iter().position(|(_, other, _)| other == uuid),
            Self::Prefix(prefix) => {
                let fitting: Vec<usize> = (0..all.len()).filter(|index| shown(all, *index).starts_with(prefix)).collect();
                let is_day = prefix.len() == "2026-11-20".len();
                match fitting.as_slice() {
                    [only] => Some(*only),
                    [] => {
                        // Those that share the longest beginning are what the person most likely meant.
                        let mut near: Vec<usize> = (0..all.len()).collect();
                        near.sort_by_key(|index| std::cmp::Reverse(common(&shown(all, *index), prefix)));
                        near.truncate(5);
                        near.sort_unstable();
                        return none(format!("{cluster} has no snapshot {prefix}"), near);
                    }
                    many if is_day => many.iter().copied().find(|index| all[*index].2).or(Some(many[0])),
                    many => {
                        return none(
                            format!("{prefix} is ambiguous: {} snapshots of {cluster} begin like that", many.len()),
                            many.to_vec(),
                        );
                    }
                }
            }
        };
        match (found, self) {
            (Some(index), _) => Ok(index),
            (None, Self::Latest) if all.is_empty() => none(format!("{cluster} has no snapshots"), Vec::new()),
            (None, Self::Latest) => none(format!("{cluster} has no complete snapshot"), newest()),
            (None, Self::NotAfter(time)) => none(
                format!("{cluster} has no complete snapshot as old as {time}"),
                (all.len().saturating_sub(5)..all.len()).collect(),
            ),
            (None, Self::Uuid(uuid)) => none(format!("{cluster} has no snapshot {uuid}"), newest()),
            (None, Self::Prefix(prefix)) => none(format!("{cluster} has no snapshot {prefix}"), newest()),
        }
    }
}

fn common(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

/// The dated name as the tree shows it: with the end of the UUID where two snapshots share a second.
fn shown(all: &[(SnapshotDate, SnapshotId, bool)], index: usize) -> String {
    let (date, uuid, _) = all[index];
    let shares = |other: Option<&(SnapshotDate, SnapshotId, bool)>| other.is_some_and(|(other, ..)| *other == date);
    if shares(all.get(index + 1)) || shares(index.checked_sub(1).and_then(|before| all.get(before))) {
        format!("{date}~{}", &uuid.simple().to_string()[24..])
    } else {
        date.to_string()
    }
}

/// RFC 3339, a dated name, or an age such as `2h ago`, `90 min ago`, `3d ago`.
fn parse_time(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(Timestamp(time.as_microsecond()));
    }
    if let Ok(date) = text.parse::<SnapshotDate>() {
        return Some(Timestamp(date.seconds() * 1_000_000));
    }
    let age = text.strip_suffix("ago")?.trim();
    let digits = age.bytes().take_while(u8::is_ascii_digit).count();
    let count: i64 = age[..digits].parse().ok()?;
    let seconds = match age[digits..].trim() {
        "s" | "sec" | "second" | "seconds" => 1,
        "m" | "min" | "minute" | "minutes" => 60,
        "h" | "hour" | "hours" => 3600,
        "d" | "day" | "days" => 86400,
        "w" | "week" | "weeks" => 7 * 86400,
        _ => return None,
    };
    Some(Timestamp(now.0.checked_sub(count.checked_mul(seconds)?.checked_mul(1_000_000)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<(SnapshotDate, SnapshotId, bool)> {
        ["2026-11-20T12-00-00Z", "2026-11-20T10-15-30Z", "2026-11-20T10-00-00Z", "2026-11-19T00-00-00Z"]
            .iter()
            .enumerate()
            .map(|(index, date)| (date.parse().expect("legal"), SnapshotId::from_u128(index as u128), index != 0))
            .collect()
    }

    fn choose(text: &str) -> Result<usize, NoSingleSnapshot> {
        let now = Timestamp("2026-11-20T12:30:00Z".parse::<jiff::Timestamp>().expect("legal").as_microsecond());
        DateQuery::parse(text, now).expect("legal").choose(&ClusterName::new("prod").expect("legal"), &all())
    }

    #[test]
    fn each_way_of_naming_finds_its_snapshot() {
        for (text, expected) in [
            ("latest", 1), // the newest is partial
            ("2026-11-20T12-00-00Z", 0),
            ("2026-11-20T12", 0),
            ("2026-11-19", 3),
            ("2026-11-20", 1),
            ("@2026-11-20T10:15:29Z", 2),
            ("@2h ago", 1),
            ("@2 hours ago", 1),
            ("@3h ago", 3),
            ("00000000-0000-0000-0000-000000000003", 3),
        ] {
            assert_eq!(choose(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn ambiguous_and_unknown_names_tell_the_candidates() {
        let ambiguous = choose("2026-11-20T10").expect_err("two fit");
        assert_eq!(ambiguous.candidates, ["2026-11-20T10-15-30Z", "2026-11-20T10-00-00Z"]);
        let unknown = choose("2026-11-18").expect_err("none fits");
        assert!(!unknown.candidates.is_empty() && unknown.to_string().contains("no snapshot 2026-11-18"));
    }

    #[test]
    fn two_snapshots_of_one_second_are_told_apart() {
        let date = "2026-11-20T12-00-00Z".parse().expect("legal");
        let all = [(date, SnapshotId::from_u128(1), true), (date, SnapshotId::from_u128(2), true)];
        let cluster = ClusterName::new("prod").expect("legal");
        let query = |text: &str| DateQuery::parse(text, Timestamp(0)).expect("legal").choose(&cluster, &all);
        assert!(query("2026-11-20T12-00-00Z").is_err());
        assert_eq!(query("2026-11-20T12-00-00Z~00000002"), Ok(1));
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in
            ["", "yesterday", "26-11-20", "@soon", "@2 fortnights ago", "2026/11", "..", "@99999999999999999h ago", "@ago"]
        {
            assert!(DateQuery::parse(text, Timestamp(0)).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_full_name_is_taken_apart() {
        let name = SnapshotName::parse("prod/latest/node-1/appendonlydir/x", Timestamp(0)).expect("legal");
        assert_eq!(
            (name.cluster.as_str(), name.node.expect("named").as_str(), name.path.to_string().as_str()),
            ("prod", "node-1", "appendonlydir/x")
        );
        assert!(SnapshotName::parse("prod/latest/../x", Timestamp(0)).is_err());
        assert!(SnapshotName::parse("", Timestamp(0)).is_err());
    }
}
