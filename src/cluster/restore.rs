//! A restore of several nodes: all are placed, then all stopped, all swapped, all started, all checked.
//!
//! Replicas are stopped before any master, so that none takes over, and started when every master has been checked; at last
//! every node is looked at again, after the time in which a cluster could have failed it over.
//!
//! **Invariants.** No node is stopped before the files of all are placed, and none is swapped before all are stopped.
//! When anything fails, every node is brought back to how it was found: the cluster holds the old state or the restored
//! one, never some of each.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::agent::restore::{NodeRestored, RestoreNode, RestoreStep, StepFailure};
use crate::model::restore_plan::{Content, NodePlan, RestorePlan};

/// How a restore of a cluster ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreOutcome {
    /// Every node holds the snapshot, checked where it was started.
    Restored,
    /// Something failed, and every node is as it was found.
    Undone,
    /// Something failed, and some nodes could not be brought back; see their failures.
    Stuck,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The restore.
    pub id: Uuid,
    /// How it ended.
    pub outcome: RestoreOutcome,
    /// By target node.
    pub nodes: BTreeMap<String, NodeRestored>,
    /// What went wrong, the first cause first.
    pub failures: Vec<StepFailure>,
}

type Pair<'a> = (&'a NodePlan, &'a Arc<dyn RestoreNode>);

/// Told when a step begins on all nodes.
pub type OnStep<'a> = &'a (dyn Fn(RestoreStep) + Sync);

/// Carries out a plan. `nodes` are found by their names; `is_cancelled` is asked between steps until the swap, which
/// is the point of no return for a wish to stop (not for an error).
pub async fn restore(
    plan: &RestorePlan,
    nodes: &[Arc<dyn RestoreNode>],
    on_step: OnStep<'_>,
    is_cancelled: &(dyn Fn() -> bool + Sync),
) -> RestoreReport {
    let mut report = RestoreReport { id: plan.id, outcome: RestoreOutcome::Undone, nodes: BTreeMap::new(), failures: Vec::new() };
    let mut pairs: Vec<Pair<'_>> = Vec::new();
    for node in &plan.nodes {
        match nodes.iter().find(|candidate| candidate.name() == node.target) {
            Some(found) => pairs.push((node, found)),
            None => report.failures.push(StepFailure {
                node: node.target.clone(),
                step: RestoreStep::Stage,
                reason: "nobody acts for this node".to_owned(),
            }),
        }
    }
    if let Some(refusal) = plan.refusals.first() {
        report.failures.push(StepFailure { node: refusal.node.clone(), step: RestoreStep::Stage, reason: refusal.to_string() });
    }
    if !report.failures.is_empty() {
        return report;
    }
    let (replicas, masters): (Vec<Pair<'_>>, Vec<Pair<'_>>) =
        pairs.iter().partition(|(plan, _)| plan.content == Content::Emptied);
    let mut was_swapped = false;
    match steps(&pairs, (&masters, &replicas), &mut report, &mut was_swapped, on_step, is_cancelled).await {
        Ok(()) => report.outcome = RestoreOutcome::Restored,
        Err(failures) => {
            report.failures = failures;
            on_step(RestoreStep::Undo);
            let mut stuck = Vec::new();
            if was_swapped {
                // None of them takes over while its master goes back.
                stuck.extend(
                    join_all(replicas.iter().map(|(plan, node)| node.stop(plan))).await.into_iter().filter_map(Result::err),
                );
            }
            for nodes in [&masters, &replicas] {
                stuck
                    .extend(join_all(nodes.iter().map(|(plan, node)| node.undo(plan))).await.into_iter().filter_map(Result::err));
            }
            report.outcome = if stuck.is_empty() { RestoreOutcome::Undone } else { RestoreOutcome::Stuck };
            report.failures.extend(stuck);
        }
    }
    report
}

async fn steps(
    pairs: &[Pair<'_>],
    (masters, replicas): (&[Pair<'_>], &[Pair<'_>]),
    report: &mut RestoreReport,
    was_swapped: &mut bool,
    on_step: OnStep<'_>,
    is_cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<(), Vec<StepFailure>> {
    let cancelled = |step| {
        let failure = StepFailure { node: "restore".to_owned(), step, reason: "it was interrupted".to_owned() };
        if is_cancelled() { Err(vec![failure]) } else { Ok(()) }
    };
    on_step(RestoreStep::Stage);
    // One after the other: each uses all cores and the whole disk, and the first failure spares the others the work.
    for (plan, node) in pairs {
        cancelled(RestoreStep::Stage)?;
        let placed = node.stage(plan).await.map_err(|failure| vec![failure])?;
        report.nodes.insert(plan.target.clone(), placed);
    }
    cancelled(RestoreStep::Stop)?;
    on_step(RestoreStep::Stop);
    all(join_all(replicas.iter().map(|(plan, node)| node.stop(plan))).await)?;
    all(join_all(masters.iter().map(|(plan, node)| node.stop(plan))).await)?;
    cancelled(RestoreStep::Swap)?;
    on_step(RestoreStep::Swap);
    *was_swapped = true;
    all(join_all(pairs.iter().map(|(plan, node)| node.swap(plan))).await)?;
    for nodes in [masters, replicas] {
        if nodes.is_empty() {
            continue;
        }
        on_step(RestoreStep::Start);
        all(join_all(nodes.iter().map(|(plan, node)| node.start(plan))).await)?;
        on_step(RestoreStep::Check);
        let checked = all(join_all(nodes.iter().map(|(plan, node)| node.check(plan))).await)?;
        for ((plan, _), (keys, is_compared)) in nodes.iter().zip(checked) {
            let node = report.nodes.entry(plan.target.clone()).or_default();
            (node.keys, node.is_compared) = (keys, is_compared);
        }
    }
    on_step(RestoreStep::Confirm);
    all(join_all(pairs.iter().map(|(plan, node)| node.confirm(plan))).await)?;
    // From here on nothing is undone: all nodes hold the snapshot.
    let finished = join_all(pairs.iter().map(|(plan, node)| node.finish(plan))).await;
    report.failures.extend(finished.into_iter().filter_map(Result::err));
    Ok(())
}

/// All results, or all failures.
fn all<T>(results: Vec<Result<T, StepFailure>>) -> Result<Vec<T>, Vec<StepFailure>> {
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => done.push(value),
            Err(failure) => failures.push(failure),
        }
    }
    if failures.is_empty() { Ok(done) } else { Err(failures) }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::model::names::ClusterName;
    use crate::model::time::{SnapshotDate, Timestamp};

    type Log = Arc<Mutex<Vec<String>>>;

    /// Says what it is asked, and fails at one step.
    #[derive(Debug)]
    struct Teller {
        name: String,
        fails_at: Option<&'static str>,
        log: Log,
    }

    impl Teller {
        fn step(&self, step: &'static str) -> Result<(), StepFailure> {
            self.log.lock().expect("no panic").push(format!("{step} {}", self.name));
            match self.fails_at == Some(step) {
                true => Err(StepFailure { node: self.name.clone(), step: RestoreStep::Check, reason: step.to_owned() }),
                false => Ok(()),
            }
        }
    }

    #[async_trait]
    impl RestoreNode for Teller {
        fn name(&self) -> &str {
            &self.name
        }
        async fn stage(&self, _plan: &NodePlan) -> Result<NodeRestored, StepFailure> {
            self.step("stage").map(|()| NodeRestored::default())
        }
        async fn stop(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
            self.step("stop")
        }
        async fn swap(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
            self.step("swap")
        }
        async fn start(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
            self.step("start")
        }
        async fn check(&self, _plan: &NodePlan) -> Result<(Option<u64>, bool), StepFailure> {
            self.step("check").map(|()| (None, false))
        }
        async fn confirm(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
            self.step("confirm")
        }
        async fn finish(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
            self.step("finish")
        }
        async fn undo(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
            self.step("undo")
        }
    }

    fn node(name: &str, content: Content) -> NodePlan {
        NodePlan { content, ..NodePlan::sample(name, "/data".into()) }
    }

    /// Masters `a` and `b` and a replica `c`, of which `b` fails at a step: how it ended, and what was asked in which order.
    async fn told(fails_at: Option<&'static str>) -> (RestoreOutcome, Vec<String>) {
        let log = Log::default();
        let plan = RestorePlan {
            id: Uuid::nil(),
            cluster: ClusterName::new("prod").expect("legal"),
            date: SnapshotDate::from_seconds(0).expect("a date"),
            snapshot: Uuid::nil(),
            cut_at: Timestamp(0),
            target_cluster: "prod".to_owned(),
            nodes: vec![node("a", Content::Restored), node("b", Content::Restored), node("c", Content::Emptied)],
            placing_seconds: None,
            away_seconds: None,
            warnings: Vec::new(),
            refusals: Vec::new(),
        };
        let teller = |name: &str| {
            let fails_at = fails_at.filter(|_| name == "b");
            Arc::new(Teller { name: name.to_owned(), fails_at, log: log.clone() }) as Arc<dyn RestoreNode>
        };
        let nodes = ["a", "b", "c"].map(teller);
        let report = restore(&plan, &nodes, &|_| {}, &|| false).await;
        let log = log.lock().expect("no panic").clone();
        (report.outcome, log)
    }

    #[tokio::test]
    async fn replicas_stop_first_and_start_last_and_nothing_is_finished_before_all_are_confirmed() {
        let (outcome, log) = told(None).await;
        assert_eq!(outcome, RestoreOutcome::Restored);
        let expected = "stage a, stage b, stage c, stop c, stop a, stop b, swap a, swap b, swap c, start a, start b, check a, check b, \
            start c, check c, confirm a, confirm b, confirm c, finish a, finish b, finish c";
        assert_eq!(log.join(", "), expected);
    }

    #[tokio::test]
    async fn one_node_that_is_not_confirmed_undoes_all_and_no_replica_takes_over_meanwhile() {
        for step in ["start", "check", "confirm"] {
            let (outcome, log) = told(Some(step)).await;
            assert_eq!(outcome, RestoreOutcome::Undone);
            assert!(log.join(", ").ends_with("stop c, undo a, undo b, undo c"), "{step}: {log:?}");
            assert!(!log.iter().any(|line| line.starts_with("finish")), "{step}: {log:?}");
        }
        let (_, log) = told(Some("stage")).await;
        assert_eq!(log.join(", "), "stage a, stage b, undo a, undo b, undo c");
    }
}
