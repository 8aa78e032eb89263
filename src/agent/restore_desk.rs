//! Where a host takes the orders of restores for its nodes: one restore of a node at a time.
//!
//! **Invariants.** A restore that holds something of a node is never pushed aside by another one. What an agent that was restarted
//! meanwhile does not know, only begins anew or is undone. There is no lease for restores, and none is needed to fence off an old
//! coordinator: once its session is over, nothing but `undo` is taken from it.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio::sync::Mutex as AsyncMutex;
use uuid::Uuid;

use super::restore::{Placed, RestoreNode, StepFailure};
use super::restore_orders::{RestoreAnswer, RestoreOrder, RestoreReply, RestoreTicket, Wish};
use super::restore_session::RestoreSession;
use crate::base::Clock;
use crate::model::names::{ClusterName, NodeName};
use crate::model::restore_plan::NodePlan;

/// What became of a restore whose coordinator is not heard any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every node was confirmed: the restored data stays.
    Restored,
    /// Nobody will ever say so: every node goes back.
    Undone,
    /// It cannot be found out: the operator decides.
    Unknown,
}

/// Finds what this host's own configuration says of a node, and what the repository says of a restore.
#[async_trait]
pub trait RestoreFactory: Send + Sync + Debug {
    /// Who acts for the ticket's node; what an earlier restore has left half done is recovered first. With `reads` the snapshot
    /// is opened. Refused: names that are not configured here, another repository, an unknown snapshot.
    async fn assign(&self, ticket: &RestoreTicket, reads: bool) -> Result<Arc<dyn RestoreNode>, String>;
    /// The host's own plan for the node, from what it sees now; or what is in the way.
    async fn plan(&self, ticket: &RestoreTicket, node: &dyn RestoreNode, wish: &Wish) -> Result<NodePlan, String>;
    /// Finds out how the restore ended, or decides that it is undone. An error: the repository does not answer.
    async fn verdict(&self, ticket: &RestoreTicket) -> Result<Verdict, String>;
}

/// What a host is doing for one of its nodes in a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreStanding {
    /// The restore.
    pub restore: Uuid,
    /// What it was asked last.
    pub order: Option<&'static str>,
    /// Whether that is done, well or badly.
    pub is_done: bool,
    /// Why it takes no more orders.
    pub over: Option<String>,
    /// Nothing is under way any more, and nothing of the node is held.
    pub is_gone: bool,
    /// How far the placing is.
    pub placed: Placed,
}

type Seats = HashMap<(ClusterName, NodeName), Arc<AsyncMutex<Option<Arc<RestoreSession>>>>>;

/// Takes the orders of restores for all nodes of a host.
#[derive(Debug)]
pub struct RestoreDesk {
    factory: Arc<dyn RestoreFactory>,
    clock: Arc<dyn Clock>,
    seats: Mutex<Seats>,
    is_closing: AtomicBool,
}

impl RestoreDesk {
    /// A desk at which nobody sits yet.
    pub fn new(factory: Arc<dyn RestoreFactory>, clock: Arc<dyn Clock>) -> Self {
        Self { factory, clock, seats: Mutex::default(), is_closing: AtomicBool::new(false) }
    }

    /// Carries an order out, once, and says what came of it, or after `wait` that it is still at it.
    pub async fn ask(&self, ticket: &RestoreTicket, order: RestoreOrder, wait: Duration) -> RestoreReply {
        let step = order.step();
        match self.session(ticket, &order).await {
            Ok(session) => session.ask(order, wait).await,
            Err(reason) => {
                let failure = StepFailure { node: ticket.node.to_string(), step, reason };
                RestoreReply::Ended(RestoreAnswer::Failed(failure))
            }
        }
    }

    /// Ends a `stage` soon. Fine when there is none.
    pub async fn give_up(&self, ticket: &RestoreTicket) {
        let found = self.seat(ticket).lock().await.clone();
        if let Some(session) = found.filter(|session| session.ticket == *ticket) {
            session.give_up().await;
        }
    }

    /// What it is doing, or did last, for a node.
    pub async fn standing(&self, cluster: &ClusterName, node: &NodeName) -> Option<RestoreStanding> {
        let seat = self.seats().get(&(cluster.clone(), node.clone())).cloned()?;
        let session = seat.lock().await.clone()?;
        Some(session.standing())
    }

    /// The host stops serving: what is not swapped yet goes back, and what is stays as it is.
    pub async fn close(&self) {
        self.is_closing.store(true, Ordering::SeqCst);
        let seats: Vec<_> = self.seats().values().cloned().collect();
        let mut sessions = Vec::new();
        for seat in &seats {
            sessions.extend(seat.lock().await.clone());
        }
        for session in &sessions {
            session.stop("its agent was stopped").await;
        }
        for session in &sessions {
            session.gone().await;
        }
    }

    /// The ticket's session; the first order begins one.
    async fn session(&self, ticket: &RestoreTicket, order: &RestoreOrder) -> Result<Arc<RestoreSession>, String> {
        let seat = self.seat(ticket);
        let mut seat = seat.lock().await;
        let same = |session: &&Arc<RestoreSession>| session.ticket.restore == ticket.restore && !session.is_forgotten();
        if let Some(session) = seat.as_ref().filter(same) {
            return if session.ticket == *ticket { Ok(session.clone()) } else { Err("a restore is of one snapshot".to_owned()) };
        }
        let begins = matches!(
            order,
            RestoreOrder::Inspect
                | RestoreOrder::Stage(_)
                | RestoreOrder::Undo { .. }
                | RestoreOrder::StepAside
                | RestoreOrder::Kept
                | RestoreOrder::Halt
                | RestoreOrder::GoOn
                | RestoreOrder::RollBack { .. }
                | RestoreOrder::Settle
        );
        if !begins {
            return Err(format!("its agent knows nothing of restore {}: was it restarted?", ticket.restore));
        }
        if self.is_closing.load(Ordering::SeqCst) {
            return Err("its agent is being stopped".to_owned());
        }
        if let Some(other) = seat.as_ref() {
            if other.is_at_work() {
                let next = match other.over() {
                    Some(over) => format!("{over}; it waits for the repository to say how it ended: `tintype doctor` there"),
                    None => "had its coordinator died, that would be over within a minute".to_owned(),
                };
                return Err(format!("restore {} is at work on it; {next}", other.ticket.restore));
            }
            other.stop("another restore has begun").await;
            other.gone().await;
        }
        let reads = matches!(order, RestoreOrder::Inspect | RestoreOrder::Stage(_));
        let session = RestoreSession::begin(ticket.clone(), reads, self.factory.clone(), self.clock.clone());
        *seat = Some(session.clone());
        Ok(session)
    }

    fn seat(&self, ticket: &RestoreTicket) -> Arc<AsyncMutex<Option<Arc<RestoreSession>>>> {
        self.seats().entry((ticket.cluster.clone(), ticket.node.clone())).or_default().clone()
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "restore_desk_tests.rs"]
mod tests;
