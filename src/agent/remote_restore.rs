//! A node that another host's agent acts for, in a restore: the port [`RestoreNode`] on top of a [`RestoreCourier`].
//!
//! How it works: as for snapshots ([`super::remote`]), an order is asked again until its outcome comes, and a heartbeat tells the
//! agent that its coordinator is there while other nodes keep it waiting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::remote::{ASK_AGAIN, CourierError, LATE, RETRY, UPLOAD_SILENCE};
use super::restore::{KeptRestore, NodeRestored, Placed, RestoreNode, RestoreStep, StepFailure};
use super::restore_orders::{RestoreAnswer, RestoreCourier, RestoreOrder, RestoreReply, RestoreTicket, Wish};
use crate::base::Clock;
use crate::model::restore_plan::{NodePlan, TargetFacts};

/// Who only looks waits no longer for a host that may be down.
const LOOK_SILENCE: Duration = Duration::from_secs(10);

/// A target node of another host.
#[derive(Debug)]
pub struct RemoteRestore {
    ticket: RestoreTicket,
    /// Its agent's address, for messages.
    agent: String,
    courier: Arc<dyn RestoreCourier>,
    clock: Arc<dyn Clock>,
    /// What was typed to confirm the loss of newer data.
    confirm: Option<String>,
    placed: Mutex<Placed>,
    /// It ran, and may have been stopped.
    was_stopped: AtomicBool,
    /// It may have something to give back.
    is_begun: AtomicBool,
    /// What it places is to end: said again until it does.
    is_given_up: AtomicBool,
    /// From the first order on, until the node was finished or went back.
    heartbeat: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for RemoteRestore {
    fn drop(&mut self) {
        self.fall_silent();
    }
}

impl RemoteRestore {
    /// The ticket's node, acted for by the agent at `agent`.
    pub fn new(
        ticket: RestoreTicket,
        agent: String,
        courier: Arc<dyn RestoreCourier>,
        clock: Arc<dyn Clock>,
        confirm: Option<String>,
    ) -> Self {
        let (placed, heartbeat) = (Mutex::default(), Mutex::default());
        let (was_stopped, is_begun, is_given_up) = (AtomicBool::default(), AtomicBool::default(), AtomicBool::default());
        Self { ticket, agent, courier, clock, confirm, placed, was_stopped, is_begun, is_given_up, heartbeat }
    }

    /// The outcome of an order, or why there is none. Who is not heard within `silence` counts as away.
    async fn order(&self, order: RestoreOrder, silence: Duration) -> Result<RestoreAnswer, String> {
        let beating = || tokio::spawn(beat(self.courier.clone(), self.clock.clone(), self.ticket.clone()));
        self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(beating);
        let mut heard_at = self.clock.monotonic();
        let away = |reason: &dyn std::fmt::Display| format!("its agent: {reason}");
        loop {
            match self.courier.restore(&self.ticket, &order, ASK_AGAIN, ASK_AGAIN + LATE).await {
                Ok(RestoreReply::Ended(RestoreAnswer::Failed(failure))) => return Err(failure.reason),
                Ok(RestoreReply::Ended(answer)) => return Ok(answer),
                Ok(RestoreReply::Running(placed)) => {
                    *self.placed.lock().unwrap_or_else(PoisonError::into_inner) = placed;
                    heard_at = self.clock.monotonic();
                    if matches!(order, RestoreOrder::Stage(_)) && self.is_given_up.load(Ordering::SeqCst) {
                        self.give_up().await;
                    }
                }
                Err(CourierError::Denied(reason) | CourierError::Unclear(reason)) => return Err(away(&reason)),
                Err(CourierError::Unreachable(reason)) if self.clock.monotonic() >= heard_at + silence => {
                    return Err(away(&reason));
                }
                Err(CourierError::Unreachable(_)) => self.clock.sleep(RETRY).await,
            }
        }
    }

    async fn step(&self, step: RestoreStep, order: RestoreOrder) -> Result<RestoreAnswer, StepFailure> {
        let answer = self.order(order, UPLOAD_SILENCE).await;
        answer.map_err(|reason| StepFailure { node: self.ticket.node.to_string(), step, reason })
    }

    async fn done(&self, step: RestoreStep, order: RestoreOrder) -> Result<(), StepFailure> {
        match self.step(step, order).await? {
            RestoreAnswer::Done => Ok(()),
            _ => Err(self.odd(step)),
        }
    }

    fn odd(&self, step: RestoreStep) -> StepFailure {
        let reason = "its agent answers with something else: is it of another version?".to_owned();
        StepFailure { node: self.ticket.node.to_string(), step, reason }
    }

    fn fall_silent(&self) {
        if let Some(heartbeat) = self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).take() {
            heartbeat.abort();
        }
    }
}

/// Asks again and again for a look, which changes nothing, also at an agent that was restarted and knows of nothing.
async fn beat(courier: Arc<dyn RestoreCourier>, clock: Arc<dyn Clock>, ticket: RestoreTicket) {
    loop {
        clock.sleep(ASK_AGAIN).await;
        if let Err(error) = courier.restore(&ticket, &RestoreOrder::Inspect, Duration::ZERO, LATE).await {
            tracing::debug!(node = %ticket.node, %error, "the agent was not told that its coordinator is there");
        }
    }
}

#[async_trait]
impl RestoreNode for RemoteRestore {
    fn name(&self) -> &str {
        self.ticket.node.as_str()
    }

    fn agent(&self) -> Option<&str> {
        Some(&self.agent)
    }

    async fn inspect(&self) -> TargetFacts {
        let facts = match self.order(RestoreOrder::Inspect, LOOK_SILENCE).await {
            Ok(RestoreAnswer::Inspected(facts)) => *facts,
            Ok(_) => TargetFacts { agent_fault: Some(self.odd(RestoreStep::Stage).reason), ..TargetFacts::default() },
            Err(reason) => {
                let reason = reason.strip_prefix("its agent: ").unwrap_or(&reason).to_owned();
                TargetFacts { agent_fault: Some(reason), ..TargetFacts::default() }
            }
        };
        TargetFacts { node: self.ticket.node.to_string(), agent: Some(self.agent.clone()), ..facts }
    }

    fn placed(&self) -> Placed {
        *self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn stage(&self, plan: &NodePlan) -> Result<NodeRestored, StepFailure> {
        let wish = Wish {
            source: plan.source.clone(),
            content: plan.content,
            method: plan.method,
            discard_current: !plan.save_first,
            confirm: self.confirm.clone(),
            promise: Wish::promise_of(plan),
        };
        let order = RestoreOrder::Stage(Box::new(wish));
        self.is_begun.store(true, Ordering::SeqCst);
        match self.step(RestoreStep::Stage, order).await? {
            RestoreAnswer::Staged(staged) => {
                let placed = Placed { bytes: staged.bytes, found_bytes: staged.found_bytes };
                *self.placed.lock().unwrap_or_else(PoisonError::into_inner) = placed;
                Ok(staged)
            }
            _ => Err(self.odd(RestoreStep::Stage)),
        }
    }

    async fn give_up(&self) {
        self.is_given_up.store(true, Ordering::SeqCst);
        if let Err(error) = self.courier.give_up(&self.ticket, LATE).await {
            tracing::debug!(node = %self.ticket.node, %error, "its agent was not told to end what it places");
        }
    }

    async fn stop(&self, plan: &NodePlan) -> Result<(), StepFailure> {
        // Said before it is tried: one whose answer is lost may have happened.
        self.was_stopped.store(plan.before.is_some() && plan.start, Ordering::SeqCst);
        self.done(RestoreStep::Stop, RestoreOrder::Stop).await
    }

    async fn swap(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
        self.done(RestoreStep::Swap, RestoreOrder::Swap).await
    }

    async fn start(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
        self.done(RestoreStep::Start, RestoreOrder::Start).await
    }

    async fn check(&self, _plan: &NodePlan) -> Result<(Option<u64>, bool), StepFailure> {
        match self.step(RestoreStep::Check, RestoreOrder::Check).await? {
            RestoreAnswer::Checked(keys, is_compared) => Ok((keys, is_compared)),
            _ => Err(self.odd(RestoreStep::Check)),
        }
    }

    async fn confirm(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
        self.done(RestoreStep::Confirm, RestoreOrder::Confirm).await
    }

    async fn finish(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
        let finished = self.done(RestoreStep::Confirm, RestoreOrder::Finish).await;
        self.fall_silent();
        finished
    }

    async fn step_aside(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
        self.done(RestoreStep::Stop, RestoreOrder::StepAside).await
    }

    async fn undo(&self, _plan: &NodePlan) -> Result<(), StepFailure> {
        if !self.is_begun.load(Ordering::SeqCst) {
            return Ok(());
        }
        let was_stopped = self.was_stopped.load(Ordering::SeqCst);
        let undone = self.done(RestoreStep::Undo, RestoreOrder::Undo { was_stopped }).await;
        self.fall_silent();
        // An agent that runs sees to it by itself, as soon as it misses us.
        undone.map_err(|failure| StepFailure { reason: format!("{}; see its agent's log", failure.reason), ..failure })
    }

    async fn undo_of_another(&self, _restore: Uuid, was_stopped: bool) -> Result<(), StepFailure> {
        self.done(RestoreStep::Undo, RestoreOrder::Undo { was_stopped }).await
    }

    async fn kept(&self) -> Result<Vec<KeptRestore>, String> {
        match self.order(RestoreOrder::Kept, LOOK_SILENCE).await? {
            RestoreAnswer::Kept(kept) => Ok(kept),
            _ => Err(self.odd(RestoreStep::Undo).reason),
        }
    }

    async fn halt(&self) -> Result<bool, String> {
        match self.order(RestoreOrder::Halt, UPLOAD_SILENCE).await? {
            RestoreAnswer::Halted(did_run) => Ok(did_run),
            _ => Err(self.odd(RestoreStep::Undo).reason),
        }
    }

    async fn go_on(&self) -> Result<(), String> {
        self.order(RestoreOrder::GoOn, UPLOAD_SILENCE).await.map(drop)
    }

    async fn roll_back(&self, restore: Uuid) -> Result<Option<KeptRestore>, String> {
        match self.order(RestoreOrder::RollBack { restore }, UPLOAD_SILENCE).await? {
            RestoreAnswer::RolledBack(record) => Ok(record),
            _ => Err(self.odd(RestoreStep::Undo).reason),
        }
    }

    async fn settle(&self) -> Result<usize, String> {
        match self.order(RestoreOrder::Settle, UPLOAD_SILENCE).await? {
            RestoreAnswer::Settled(count) => Ok(count),
            _ => Err(self.odd(RestoreStep::Undo).reason),
        }
    }
}
