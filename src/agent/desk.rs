//! Where a host takes the orders for its nodes: one session for each node, of the latest coordinator.
//!
//! **Invariants.** An order of an older epoch changes nothing, not even after a restart: the factory remembers. A later
//! coordinator takes a node over only when the earlier one's session has given everything back.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio::sync::Mutex as AsyncMutex;
use uuid::Uuid;

use super::orders::{Answer, Order};
use super::session::Session;
use super::{NodeError, NodeErrorKind, NodeService, Reply, Ticket};
use crate::base::Clock;
use crate::model::ids::SnapshotId;
use crate::model::names::{ClusterName, NodeName};

/// Plain bytes read for an upload so far.
pub type ReadBytes = Box<dyn Fn() -> u64 + Send + Sync>;

/// Who acts for a node.
pub struct Assigned {
    /// The node.
    pub node: Box<dyn NodeService>,
    /// Counts while it uploads.
    pub read_bytes: ReadBytes,
}

/// Finds what this host's own configuration says of a node.
#[async_trait]
pub trait NodeFactory: Send + Sync + Debug {
    /// Who acts for the ticket's node. Refused: names that are not configured here, another repository, and an epoch older
    /// than the latest that was ever assigned for the node, which is remembered beyond this process.
    async fn assign(&self, ticket: &Ticket) -> Result<Assigned, NodeError>;
}

#[derive(Debug, Default)]
struct Seat {
    session: Option<Arc<Session>>,
}

/// By repository, cluster and node: epochs are counted in each repository.
type Seats = HashMap<(Uuid, ClusterName, NodeName), Arc<AsyncMutex<Seat>>>;

/// What a host is doing for one of its nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its coordinator's epoch.
    pub epoch: u64,
    /// What it was asked last.
    pub order: Option<&'static str>,
    /// Whether that is done, well or badly.
    pub is_done: bool,
    /// Why it takes no more orders.
    pub over: Option<String>,
}

/// Takes the orders for all nodes of a host.
#[derive(Debug)]
pub struct Desk {
    factory: Arc<dyn NodeFactory>,
    clock: Arc<dyn Clock>,
    seats: Mutex<Seats>,
    is_closing: AtomicBool,
}

impl Desk {
    /// A desk at which nobody sits yet.
    pub fn new(factory: Arc<dyn NodeFactory>, clock: Arc<dyn Clock>) -> Self {
        Self { factory, clock, seats: Mutex::default(), is_closing: AtomicBool::new(false) }
    }

    /// Carries an order out, once, and says what came of it, or after `wait` that it is still at it.
    pub async fn ask(&self, ticket: &Ticket, order: Order, wait: Duration) -> Reply {
        match self.session(ticket, order).await {
            Ok(session) => session.ask(order, wait).await,
            Err(error) => Reply::Ended(Answer::Failed(error)),
        }
    }

    /// Gives back what was taken for the ticket, and returns when it is. Fine when nothing was, and twice.
    pub async fn abandon(&self, ticket: &Ticket) {
        let found = self.seat(ticket).lock().await.session.clone();
        if let Some(session) = found.filter(|session| session.ticket == *ticket) {
            session.close(NodeErrorKind::Refused, "the snapshot was ended by its coordinator");
            session.gone().await;
        }
    }

    /// What it is doing for a node.
    pub async fn standing(&self, cluster: &ClusterName, node: &NodeName) -> Option<Standing> {
        let is_named = |key: &(Uuid, ClusterName, NodeName)| (&key.1, &key.2) == (cluster, node);
        let seats: Vec<_> = self.seats().iter().filter(|(key, _)| is_named(key)).map(|(_, seat)| seat.clone()).collect();
        let mut found: Option<Arc<Session>> = None;
        for seat in seats {
            let session = seat.lock().await.session.clone();
            // Of several repositories, the one that it is at work for.
            found = session.filter(|session| found.is_none() || !session.is_over()).or(found);
        }
        let session = found?;
        let (order, is_done, over) = session.standing();
        let Ticket { snapshot, epoch, .. } = session.ticket;
        Some(Standing { snapshot, epoch, order, is_done, over: over.map(|error| error.message) })
    }

    /// Gives everything back, of all nodes: the host stops serving.
    pub async fn close(&self) {
        // Before the seats are listed: who comes to a new one sees it.
        self.is_closing.store(true, Ordering::SeqCst);
        let seats: Vec<_> = self.seats().values().cloned().collect();
        for seat in &seats {
            if let Some(session) = &seat.lock().await.session {
                let kind = if session.was_frozen() { NodeErrorKind::Void } else { NodeErrorKind::Unreachable };
                session.close(kind, "its agent was stopped");
            }
        }
        for seat in &seats {
            if let Some(session) = &seat.lock().await.session {
                session.gone().await;
            }
        }
    }

    /// The ticket's session. The first order begins one, in the place of an older coordinator's.
    async fn session(&self, ticket: &Ticket, order: Order) -> Result<Arc<Session>, NodeError> {
        let node = &ticket.node;
        let seat = self.seat(ticket);
        let mut seat = seat.lock().await;
        if let Some(session) = seat.session.as_ref().filter(|session| session.ticket == *ticket) {
            return Ok(session.clone());
        }
        if let Some(other) = &seat.session {
            let (ours, theirs) = (ticket.epoch, other.ticket.epoch);
            if ours < theirs {
                let reason = format!("{node}: a later coordinator (epoch {theirs}) has taken over from this one (epoch {ours})");
                return Err(NodeError::new(NodeErrorKind::Refused, reason));
            }
            if ours == theirs && !other.is_over() {
                let reason = format!(
                    "{node}: it is being captured for snapshot {}; had its coordinator died, that would be over within a minute",
                    other.ticket.snapshot
                );
                return Err(NodeError::new(NodeErrorKind::Refused, reason));
            }
        }
        if !matches!(order, Order::Describe(_)) {
            let reason = format!("{node}: its agent knows nothing of snapshot {}: was it restarted?", ticket.snapshot);
            // Before the pause that is an agent that was away.
            let kind = if matches!(order, Order::Prepare(..)) { NodeErrorKind::Unreachable } else { NodeErrorKind::Void };
            return Err(NodeError::new(kind, reason));
        }
        if self.is_closing.load(Ordering::SeqCst) {
            return Err(NodeError::new(NodeErrorKind::Unreachable, format!("{node}: its agent is being stopped")));
        }
        if let Some(earlier) = &seat.session {
            earlier.close(NodeErrorKind::Refused, "a later coordinator took over");
            earlier.gone().await;
        }
        let session = Session::begin(ticket.clone(), self.factory.clone(), self.clock.clone());
        seat.session = Some(session.clone());
        Ok(session)
    }

    fn seat(&self, ticket: &Ticket) -> Arc<AsyncMutex<Seat>> {
        let key = (ticket.repository, ticket.cluster.clone(), ticket.node.clone());
        self.seats().entry(key).or_default().clone()
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
