//! What is stored of a run: the snapshot that its members make, and how it ended.

use std::time::Duration;

use super::coordinator::{Member, PublishedSnapshot, SnapshotError, SnapshotOptions};
use crate::model::cut::CutTimes;
use crate::model::manifest::{CaptureProof, Consistency, CutRecord, NodeDescription, NodeRecord, NodeStatus, NodeTotals};
use crate::model::names::NodeName;
use crate::model::time::Timestamp;
use crate::repo::{NodeOutcome, Publication, RunRecord, RunStatus};

/// Why a node of the cluster is no part of a snapshot of the others.
const NOT_ASKED_FOR: &str = "it was not asked for";

/// The snapshot that the members make.
pub(super) fn publication(options: &SnapshotOptions, members: &[Member], cut_at: Timestamp, times: CutTimes) -> Publication {
    let stored = || members.iter().filter(|member| member.status == NodeStatus::Completed);
    let consistent = stored().map(|member| member.proof.consistent).min().unwrap_or(Consistency::No);
    // A ring's queues are seen by all of its tokens together: where one is missing, nobody has looked at its.
    let is_whole = options.left_out.is_empty() && stored().count() == members.len();
    let is_seen = is_whole || stored().all(|member| member.description.ring.is_none());
    let consistent = if is_seen { consistent } else { consistent.min(Consistency::Timed) };
    let narrower = stored().find_map(|member| member.proof.scope.as_deref()).or((!is_seen).then_some("rack"));
    // One node agrees with itself; several agree only when something made them.
    let scope = match narrower {
        _ if stored().count() > 1 && consistent == Consistency::No => "node",
        Some(narrower) => narrower,
        None => "cluster",
    };
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    // A store may acknowledge just before it forks, so the longest fork bounds the window from below too.
    let fork_us = stored().filter_map(|member| member.proof.fork_us).max().unwrap_or(0);
    Publication {
        uuid: options.uuid,
        cluster: options.cluster.clone(),
        cut_at,
        store: options.store.clone(),
        cut: CutRecord {
            kind: options.cut_kind,
            consistent,
            scope: scope.to_owned(),
            pause_us: micros(times.pause),
            capture_us: micros(times.capture).max(fork_us),
            skew_us: micros(times.skew),
        },
        nodes: members.iter().map(node_record).chain(options.left_out.iter().map(left_out)).collect(),
        tags: options.tags.clone(),
    }
}

/// How a run ended.
pub(super) fn run_record(
    options: &SnapshotOptions,
    members: &[Member],
    (started_at, ended_at): (Timestamp, Timestamp),
    outcome: &Result<PublishedSnapshot, SnapshotError>,
) -> RunRecord {
    let nodes = members.iter().map(|member| {
        let totals = member.receipt.as_ref().map_or_else(NodeTotals::default, |receipt| receipt.totals);
        // What was under way when the run ended was not stored.
        let status = if member.status == NodeStatus::Processing { NodeStatus::Failed } else { member.status };
        let outcome = NodeOutcome {
            status,
            reason: member.reason.clone(),
            files: totals.files,
            total_bytes: totals.total_bytes,
            new_bytes: totals.new_bytes,
        };
        (member.name.clone(), outcome)
    });
    let left_out = options.left_out.iter().map(|name| {
        let reason = Some(NOT_ASKED_FOR.to_owned());
        (name.clone(), NodeOutcome::empty(NodeStatus::Missing, reason))
    });
    RunRecord {
        restored_into: None,
        uuid: options.uuid,
        cluster: options.cluster.clone(),
        date: outcome.as_ref().ok().map(|published| published.listed.date),
        status: match outcome {
            Ok(published) if published.listed.is_complete => RunStatus::Completed,
            Ok(_) => RunStatus::Partial,
            Err(_) => RunStatus::Failed,
        },
        reason: outcome.as_ref().err().map(ToString::to_string),
        started_at,
        ended_at,
        nodes: nodes.chain(left_out).collect(),
    }
}

fn node_record(member: &Member) -> NodeRecord {
    let mut proof = member.proof.clone();
    if let Some(receipt) = &member.receipt {
        proof.checks.extend(receipt.checked.iter().cloned());
    }
    NodeRecord {
        name: member.name.clone(),
        status: member.status,
        reason: member.reason.clone(),
        manifest: member.receipt.as_ref().map(|receipt| receipt.manifest),
        description: member.description.clone(),
        proof,
        keys: member.receipt.as_ref().and_then(|receipt| receipt.keys),
        totals: member.receipt.as_ref().map_or_else(NodeTotals::default, |receipt| receipt.totals),
    }
}

fn left_out(name: &NodeName) -> NodeRecord {
    NodeRecord {
        name: name.clone(),
        status: NodeStatus::Missing,
        reason: Some(NOT_ASKED_FOR.to_owned()),
        manifest: None,
        description: NodeDescription::default(),
        proof: CaptureProof::none(),
        keys: None,
        totals: NodeTotals::default(),
    }
}
