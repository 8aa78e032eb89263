//! A restore of several nodes: all are placed, a few at a time, then all stopped, all swapped, all started, all checked.
//!
//! Replicas are stopped before any master, so that none takes over, and started when every master has been checked; at last
//! every node is looked at again, after the time in which a cluster could have failed it over.
//!
//! Where nodes are on other hosts, that all were restored is decided before any of them is finished (see
//! [`super::restore_decision`]): whoever dies then, all nodes stay restored or all go back.
//!
//! **Invariants.** No node is stopped before the files of all are placed, and none is swapped before all are stopped.
//! When anything fails, every node is brought back to how it was found: the cluster holds the old state or the restored
//! one, never some of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::restore_decision::{Decided, RestoreDecision};
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
    /// Every node was confirmed, and that could not be written down for all: each finds out by itself.
    Undecided,
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

/// Nodes of one host whose files are placed at once: while one waits for the store or syncs, the other fills the disk. Each has several
/// files and runs under way itself, so that more nodes would only share the same disk.
const PLACED_AT_ONCE: usize = 2;
/// Between two looks at whether the operator wants to stop, while files are placed.
const LOOK: Duration = Duration::from_millis(100);

type Pair<'a> = (&'a NodePlan, &'a Arc<dyn RestoreNode>);

/// Told when a step begins on all nodes.
pub type OnStep<'a> = &'a (dyn Fn(RestoreStep) + Sync);

/// Carries out a plan. `nodes` are found by their names; `decision` is wanted where some are on other hosts; `is_cancelled` is
/// asked between steps until the swap, which is the point of no return for a wish to stop (not for an error).
pub async fn restore(
    plan: &RestorePlan,
    nodes: &[Arc<dyn RestoreNode>],
    decision: Option<&RestoreDecision>,
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
    match steps(&pairs, (&masters, &replicas), &mut report, &mut was_swapped, decision, on_step, is_cancelled).await {
        Ok(()) => report.outcome = RestoreOutcome::Restored,
        Err(Trouble::Doubt(failure)) => {
            report.failures.push(failure);
            report.outcome = RestoreOutcome::Undecided;
        }
        Err(Trouble::Failed(failures)) => {
            on_step(RestoreStep::Undo);
            let (mut stuck, mut aside) = (Vec::new(), Vec::new());
            if was_swapped {
                if let Some(decision) = decision {
                    // Agents that are cut off need not find it out by themselves; they do where this is not written.
                    let reason = failures.first().map(ToString::to_string).unwrap_or_default();
                    let _stands_already = decision.undone(&reason).await;
                }
                // None of them takes over while its master goes back.
                aside = join_all(replicas.iter().map(|(plan, node)| node.step_aside(plan))).await;
            }
            report.failures = failures;
            report.failures.extend(aside.into_iter().filter_map(Result::err));
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

/// Why a restore did not come to its end.
enum Trouble {
    /// Every node goes back.
    Failed(Vec<StepFailure>),
    /// Whether the others may go back is not known: nobody is touched.
    Doubt(StepFailure),
}

impl From<Vec<StepFailure>> for Trouble {
    fn from(failures: Vec<StepFailure>) -> Self {
        Self::Failed(failures)
    }
}

async fn steps(
    pairs: &[Pair<'_>],
    (masters, replicas): (&[Pair<'_>], &[Pair<'_>]),
    report: &mut RestoreReport,
    was_swapped: &mut bool,
    decision: Option<&RestoreDecision>,
    on_step: OnStep<'_>,
    is_cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<(), Trouble> {
    let cancelled = |step| if is_cancelled() { Err(vec![interrupted(step)]) } else { Ok(()) };
    on_step(RestoreStep::Stage);
    stage(pairs, report, is_cancelled).await?;
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
    let failure = |reason| StepFailure { node: "restore".to_owned(), step: RestoreStep::Confirm, reason };
    match decision {
        None => {}
        Some(decision) => match decision.restored().await {
            Decided::Restored => {}
            Decided::Undone(reason) => return Err(Trouble::Failed(vec![failure(format!("a node has given up: {reason}"))])),
            Decided::Unknown(reason) => {
                let reason = format!(
                    "every node was confirmed, and that could not be written down: {reason}; each agent finds out by itself whether it stays or goes back"
                );
                return Err(Trouble::Doubt(failure(reason)));
            }
        },
    }
    // From here on nothing is undone: all nodes hold the snapshot.
    let finished = join_all(pairs.iter().map(|(plan, node)| node.finish(plan))).await;
    report.failures.extend(finished.into_iter().filter_map(Result::err));
    Ok(())
}

/// Places the files of all nodes. The first failure, or a wish to stop, ends what is under way.
async fn stage(
    pairs: &[Pair<'_>],
    report: &mut RestoreReport,
    is_cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<(), Vec<StepFailure>> {
    let mut waiting: Vec<&Pair<'_>> = pairs.iter().collect();
    let mut under_way: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    let mut placing = FuturesUnordered::new();
    let mut first_failure = None;
    loop {
        waiting.retain(|(plan, node)| {
            let count = under_way.entry(node.agent()).or_default();
            let has_to_wait = first_failure.is_some() || *count >= PLACED_AT_ONCE;
            if !has_to_wait {
                *count += 1;
                placing.push(async move { (plan, node, node.stage(plan).await) });
            }
            has_to_wait
        });
        let failure = tokio::select! {
            placed = placing.next() => match placed {
                Some((plan, node, result)) => {
                    *under_way.entry(node.agent()).or_default() -= 1;
                    result.map(|placed| drop(report.nodes.insert(plan.target.clone(), placed))).err()
                }
                None => return first_failure.map_or(Ok(()), |failure| Err(vec![failure])),
            },
            () = tokio::time::sleep(LOOK) => None,
        };
        let failure = failure.or_else(|| is_cancelled().then(|| interrupted(RestoreStep::Stage)));
        if first_failure.is_none() && failure.is_some() {
            // What the others say from now on is only that they were told to end.
            first_failure = failure;
            join_all(pairs.iter().map(|(_, node)| node.give_up())).await;
        }
    }
}

fn interrupted(step: RestoreStep) -> StepFailure {
    StepFailure { node: "restore".to_owned(), step, reason: "it was interrupted".to_owned() }
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
    use crate::agent::restore::{KeptRestore, Placed};
    use crate::model::names::ClusterName;
    use crate::model::restore_plan::TargetFacts;
    use crate::model::time::{SnapshotDate, Timestamp};

    type Log = Arc<Mutex<Vec<String>>>;

    /// Says what it is asked, and fails at one step.
    #[derive(Debug, Default)]
    struct Teller {
        name: String,
        fails_at: Option<&'static str>,
        log: Log,
        /// It places its files until it is given up.
        is_endless: bool,
        given_up: tokio::sync::Notify,
        agent: Option<String>,
        /// Nodes that place files now, and the most that ever did.
        placing: Arc<Mutex<(usize, usize)>>,
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
        fn agent(&self) -> Option<&str> {
            self.agent.as_deref()
        }
        async fn inspect(&self) -> TargetFacts {
            TargetFacts::default()
        }
        fn placed(&self) -> Placed {
            Placed::default()
        }
        async fn stage(&self, _plan: &NodePlan) -> Result<NodeRestored, StepFailure> {
            let count = |by: isize| {
                let mut placing = self.placing.lock().expect("no panic");
                placing.0 = placing.0.wrapping_add_signed(by);
                placing.1 = placing.1.max(placing.0);
            };
            count(1);
            let told = self.step("stage");
            for _turn in 0..5 {
                tokio::task::yield_now().await;
            }
            if self.is_endless {
                self.given_up.notified().await;
                self.step("given up")?;
            }
            count(-1);
            told.map(|()| NodeRestored::default())
        }
        async fn give_up(&self) {
            self.given_up.notify_one();
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
        async fn step_aside(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
            self.step("step_aside")
        }
        async fn undo(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
            self.step("undo")
        }
        async fn undo_of_another(&self, _restore: Uuid, _was_stopped: bool) -> Result<(), StepFailure> {
            self.step("undo")
        }
        async fn kept(&self) -> Result<Vec<KeptRestore>, String> {
            Ok(Vec::new())
        }
        async fn halt(&self) -> Result<bool, String> {
            Ok(false)
        }
        async fn go_on(&self) -> Result<(), String> {
            Ok(())
        }
        async fn roll_back(&self, _restore: Uuid) -> Result<Option<KeptRestore>, String> {
            Ok(None)
        }
        async fn settle(&self) -> Result<usize, String> {
            Ok(0)
        }
    }

    fn node(name: &str, content: Content) -> NodePlan {
        NodePlan { content, ..NodePlan::sample(name, "/data".into()) }
    }

    /// Masters `a` and `b` and a replica `c`, of which `b` fails at a step: how it ended, and what was asked in which order.
    async fn told(fails_at: Option<&'static str>) -> (RestoreOutcome, Vec<String>) {
        let log = Log::default();
        let teller = |name: &str| {
            let fails_at = fails_at.filter(|_| name == "b");
            Teller { name: name.to_owned(), fails_at, log: log.clone(), ..Teller::default() }
        };
        let report = run(["a", "b", "c"].map(teller).into(), &|| false).await;
        let log = log.lock().expect("no panic").clone();
        (report.outcome, log)
    }

    /// Masters and, at last, a replica.
    async fn run(tellers: Vec<Teller>, is_cancelled: &(dyn Fn() -> bool + Sync)) -> RestoreReport {
        let last = tellers.len() - 1;
        let content = |at| if at == last { Content::Emptied } else { Content::Restored };
        let plan = RestorePlan {
            id: Uuid::nil(),
            cluster: ClusterName::new("prod").expect("legal"),
            date: SnapshotDate::from_seconds(0).expect("a date"),
            snapshot: Uuid::nil(),
            cut_at: Timestamp(0),
            target_cluster: "prod".to_owned(),
            nodes: tellers.iter().enumerate().map(|(at, teller)| node(&teller.name, content(at))).collect(),
            placing_seconds: None,
            away_seconds: None,
            warnings: Vec::new(),
            refusals: Vec::new(),
        };
        let nodes: Vec<_> = tellers.into_iter().map(|teller| Arc::new(teller) as Arc<dyn RestoreNode>).collect();
        restore(&plan, &nodes, None, &|_| {}, is_cancelled).await
    }

    #[tokio::test]
    async fn two_nodes_are_placed_at_once_and_never_more() {
        let placing = Arc::new(Mutex::new((0, 0)));
        let teller = |name: &str| Teller { name: name.to_owned(), placing: placing.clone(), ..Teller::default() };
        let report = run(["a", "b", "c", "d", "e", "f"].map(teller).into(), &|| false).await;
        assert_eq!((report.outcome, report.nodes.len()), (RestoreOutcome::Restored, 6));
        assert_eq!(*placing.lock().expect("no panic"), (0, PLACED_AT_ONCE));
    }

    #[tokio::test]
    async fn nodes_of_other_hosts_are_placed_beside_them() {
        let placing = Arc::new(Mutex::new((0, 0)));
        let teller = |name: &str| {
            let agent = (name < "d").then(|| "https://a:7070".to_owned());
            Teller { name: name.to_owned(), agent, placing: placing.clone(), ..Teller::default() }
        };
        let report = run(["a", "b", "c", "d", "e", "f"].map(teller).into(), &|| false).await;
        assert_eq!((report.outcome, report.nodes.len()), (RestoreOutcome::Restored, 6));
        assert_eq!(*placing.lock().expect("no panic"), (0, 2 * PLACED_AT_ONCE));
    }

    #[tokio::test]
    async fn a_failure_or_a_wish_to_stop_ends_what_is_being_placed_and_begins_no_other() {
        let log = Log::default();
        let teller = |name: &str| Teller { name: name.to_owned(), log: log.clone(), ..Teller::default() };
        let endless = |name: &str| Teller { is_endless: true, ..teller(name) };
        let failing = Teller { fails_at: Some("stage"), ..teller("b") };
        let report = run(vec![Teller { fails_at: Some("given up"), ..endless("a") }, failing, teller("c")], &|| false).await;
        let failed: Vec<_> = report.failures.iter().map(|failure| failure.node.as_str()).collect();
        assert_eq!((report.outcome, failed), (RestoreOutcome::Undone, vec!["b"]), "not who was told to end");
        let told = std::mem::take(&mut *log.lock().expect("no panic"));
        assert_eq!(told.join(", "), "stage a, stage b, given up a, undo a, undo b, undo c");

        let is_placing = || log.lock().expect("no panic").len() == 2;
        let report = run(vec![endless("a"), endless("b"), teller("c")], &is_placing).await;
        assert_eq!((report.outcome, report.failures), (RestoreOutcome::Undone, vec![interrupted(RestoreStep::Stage)]));
        let told = log.lock().expect("no panic").join(", ");
        assert_eq!(told, "stage a, stage b, given up a, given up b, undo a, undo b, undo c");
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
            assert!(log.join(", ").ends_with("step_aside c, undo a, undo b, undo c"), "{step}: {log:?}");
            assert!(!log.iter().any(|line| line.starts_with("finish")), "{step}: {log:?}");
        }
        let (_, log) = told(Some("stage")).await;
        assert_eq!(log.join(", "), "stage a, stage b, undo a, undo b, undo c");
    }
}
