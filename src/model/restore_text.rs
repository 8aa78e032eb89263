//! The restore plan as text for people.

use std::fmt;

use super::restore_plan::{Content, Guard, Method, NodePlan, RestorePlan, StopKind, SwapKind};

/// Bytes for people, in binary units.
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes;
    let mut rest = 0;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024 {
            return if unit == "B" { format!("{value} B") } else { format!("{value}.{} {unit}", rest * 10 / 1024) };
        }
        rest = value % 1024;
        value /= 1024;
    }
    format!("{value} PiB")
}

/// Durations for people: `40 s`, `12 min`, `3 h 20 min`.
fn human_seconds(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{} s", seconds.max(1)),
        120..=7199 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// By whom, where that is not this host.
fn by(node: &NodePlan) -> String {
    node.agent.as_ref().map(|agent| format!(", by {agent}")).unwrap_or_default()
}

impl fmt::Display for RestorePlan {
    /// For people: what is replaced by what, in which order, and what is in the way.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "restore {}/{} (cut {}) into {}", self.cluster, self.date, self.cut_at, self.target_cluster)?;
        for node in &self.nodes {
            if node.content == Content::Emptied {
                let go = if node.start { "started after its master, and synchronises again" } else { "left as it is: stopped" };
                writeln!(f, "  {} in {}{}", node.target, node.directory.display(), by(node))?;
                writeln!(f, "    replica  stopped first and emptied, what it has kept for rollback; {go}")?;
                continue;
            }
            writeln!(f, "  {} -> {} in {}{}", node.source, node.target, node.directory.display(), by(node))?;
            writeln!(
                f,
                "    place    {} in {} files; {} free",
                human_bytes(node.bytes),
                node.files,
                human_bytes(node.free_bytes)
            )?;
            if node.method == Method::Clone {
                writeln!(
                    f,
                    "    clone    {} in {} files, fetched as they are read",
                    human_bytes(node.linked_bytes),
                    node.linked_files
                )?;
            }
            if node.method == Method::Link {
                writeln!(
                    f,
                    "    link     {} in {} files, fetched as they are read",
                    human_bytes(node.linked_bytes),
                    node.linked_files
                )?;
            }
            if let Guard::Unit(unit) = &node.guard
                && node.method != Method::Copy
            {
                writeln!(f, "    guard    {unit} gets a drop-in that keeps it from starting while that is away")?;
            }
            if node.begun_bytes > 0 {
                writeln!(
                    f,
                    "    resume   {} are left of an interrupted restore: what fits is kept",
                    human_bytes(node.begun_bytes)
                )?;
            }
            match &node.before {
                Some(server) => writeln!(
                    f,
                    "    replace  {} keys, {} on disk, kept for rollback",
                    server.keys,
                    human_bytes(node.replaced_bytes)
                )?,
                None if node.owner.is_some() => {
                    writeln!(f, "    replace  {} on disk, kept for rollback", human_bytes(node.replaced_bytes))?
                }
                None => writeln!(f, "    replace  nothing")?,
            }
            if !node.carried.is_empty() {
                writeln!(f, "    keep     {}", node.carried.join(", "))?;
            }
            if node.swap == SwapKind::Entries {
                writeln!(f, "    swap     entry by entry: the directory is a mountpoint")?;
            }
            if node.has_proxy {
                let then = if node.start { "started when all nodes have loaded" } else { "its start is left to you" };
                writeln!(f, "    proxy    its Dynomite is stopped before it, and {then}")?;
            }
            let save = if node.save_first { "save, then stop" } else { "stop without saving" };
            match node.stop {
                StopKind::NotRunning => writeln!(f, "    stop     it does not run")?,
                StopKind::Command => writeln!(f, "    stop     {save} by its command")?,
                StopKind::Protocol => writeln!(f, "    stop     {save} by SHUTDOWN")?,
            }
            match (node.start, node.keys) {
                (true, Some(keys)) => writeln!(f, "    start    and find {} keys again", keys.total)?,
                (true, None) => writeln!(f, "    start    and wait until it has loaded")?,
                (false, _) => writeln!(f, "    start    left to you")?,
            }
        }
        match self.placing_seconds {
            Some(seconds) => writeln!(
                f,
                "  placing takes about {}, as fast as the last restore here; stores run on meanwhile",
                human_seconds(seconds)
            )?,
            None => writeln!(
                f,
                "  how long placing takes is not known before the first restore on this host; stores run on meanwhile"
            )?,
        }
        if let Some(seconds) = self.away_seconds {
            writeln!(f, "  then they are away for about {}: stopped, started, loading", human_seconds(seconds))?;
        }
        if self.nodes.len() > 1 {
            let order: Vec<_> = self.nodes.iter().map(|node| node.target.as_str()).collect();
            writeln!(
                f,
                "  all are placed first, then stopped, swapped and started together, masters before replicas: {}",
                order.join(", ")
            )?;
        }
        self.warnings.iter().try_for_each(|warning| writeln!(f, "  warning: {warning}"))?;
        self.refusals.iter().try_for_each(|refusal| writeln!(f, "  refused: {refusal}"))
    }
}
