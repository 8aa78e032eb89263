//! One node in one snapshot, at its own host: its orders in their turn, each carried out once, and its own clock.
//!
//! **Invariants.** Whoever asks again is told what came of it the first time. No order is carried out out of its turn, so that
//! one that is late or comes twice changes nothing. A node that does not hear of its coordinator lets writes go at the end of the
//! pause, gives everything back after [`SILENCE_MAX`], and says so to whoever asks later.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::desk::{Assigned, NodeFactory, ReadBytes};
use super::orders::{Answer, Order, serve};
use super::{NodeError, NodeErrorKind, Reply, Ticket};
use crate::base::Clock;

/// A coordinator is heard several times within this, whatever it waits for.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A freeze that comes after such a silence was given up by who gave it: two heartbeats and a half.
const STALE: Duration = Duration::from_secs(25);

#[derive(Debug)]
pub(super) struct Session {
    pub ticket: Ticket,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    asked: Vec<(Order, Option<Answer>)>,
    /// Closed once it takes no more orders.
    orders: Option<mpsc::UnboundedSender<Order>>,
    /// Dropped to cut short what holds nobody's writes back.
    lifeline: Option<watch::Sender<()>>,
    heard_at: Duration,
    frozen_until: Option<Duration>,
    /// Why it takes no more orders.
    over: Option<NodeError>,
    /// The node has given everything back.
    is_gone: bool,
    read_bytes: Option<ReadBytes>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("asked", &self.asked).field("over", &self.over).finish_non_exhaustive()
    }
}

impl State {
    fn is_good(&self, turn: usize) -> bool {
        let answer = self.asked.iter().find(|(order, _)| order.turn() == turn).and_then(|(_, answer)| answer.as_ref());
        answer.is_some_and(|answer| !matches!(answer, Answer::Failed(_)))
    }

    fn was_asked(&self, turn: usize) -> bool {
        self.asked.iter().any(|(order, _)| order.turn() == turn)
    }

    /// Takes an order whose turn it is; one that was taken before is fine too.
    fn take(&mut self, order: Order, now: Duration, node: &str) -> Result<(), NodeError> {
        if self.was_asked(order.turn()) {
            return Ok(());
        }
        if let Some(over) = &self.over {
            return Err(over.clone());
        }
        let turn = order.turn();
        let is_late = self.asked.iter().any(|(asked, _)| asked.turn() > turn);
        // Writes may be let go whatever became of the freeze.
        let is_due = match order {
            Order::Thaw => self.was_asked(Order::Freeze(Duration::ZERO).turn()),
            _ => (0..turn).all(|before| self.is_good(before)),
        };
        if is_late || !is_due {
            let reason = if is_late { "comes too late" } else { "comes before what has to be done first" };
            return Err(NodeError::new(NodeErrorKind::Void, format!("{node}: the order to {} {reason}", order.verb())));
        }
        if let Order::Freeze(pause) = order {
            if now > self.heard_at + STALE {
                let reason = format!("{node}: the order to freeze comes after a silence of {:?}", now - self.heard_at);
                return Err(NodeError::new(NodeErrorKind::Void, reason));
            }
            self.frozen_until = Some(now + pause);
        }
        self.asked.push((order, None));
        if let Some(orders) = &self.orders {
            // Where nobody takes it any more, what it left unanswered is answered when that is seen.
            let _gone = orders.send(order);
        }
        Ok(())
    }

    fn close(&mut self, reason: NodeError) {
        self.over.get_or_insert(reason);
        self.orders = None;
        self.lifeline = None;
    }

    /// When it gives up by itself.
    fn deadline(&self) -> Duration {
        let silent = self.heard_at + SILENCE_MAX;
        self.frozen_until.map_or(silent, |until| until.min(silent))
    }
}

impl Session {
    /// Begins; what acts for the node is asked of the factory with the first order.
    pub fn begin(ticket: Ticket, factory: Arc<dyn NodeFactory>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (orders, received) = mpsc::unbounded_channel();
        let (lifeline, held) = watch::channel(());
        let state = State { orders: Some(orders), lifeline: Some(lifeline), heard_at: clock.monotonic(), ..State::default() };
        let session = Arc::new(Self { ticket, clock, state: Mutex::new(state), changed: watch::Sender::default() });
        let (answering, answers) = mpsc::unbounded_channel();
        tokio::spawn(session.clone().work(factory, received, answering, held));
        tokio::spawn(session.clone().attend(answers));
        session
    }

    /// What came of an order, or that it is not done after `wait`.
    pub async fn ask(&self, order: Order, wait: Duration) -> Reply {
        let mut changed = self.changed.subscribe();
        let now = self.clock.monotonic();
        let until = now + wait;
        {
            let mut state = self.lock();
            let taken = state.take(order, now, self.ticket.node.as_str());
            state.heard_at = now;
            if let Err(error) = taken {
                return Reply::Ended(Answer::Failed(error));
            }
        }
        // Its own deadline may have come nearer.
        self.changed.send_replace(());
        loop {
            changed.mark_unchanged();
            {
                let state = self.lock();
                let asked = state.asked.iter().find(|(asked, _)| asked.turn() == order.turn());
                if let Some((_, Some(answer))) = asked {
                    return Reply::Ended(answer.clone());
                }
                if self.clock.monotonic() >= until {
                    return Reply::Running { read_bytes: state.read_bytes.as_ref().map_or(0, |read| read()) };
                }
            }
            tokio::select! {
                biased;
                _changed = changed.changed() => {}
                () = self.clock.sleep(until.saturating_sub(self.clock.monotonic())) => {}
            }
        }
    }

    /// Takes no more orders, and gives everything back.
    pub fn close(&self, kind: NodeErrorKind, reason: &str) {
        self.lock().close(NodeError::new(kind, format!("{}: {reason}", self.ticket.node)));
        self.changed.send_replace(());
    }

    /// Writes may be held back, or may have been.
    pub fn was_frozen(&self) -> bool {
        self.lock().was_asked(Order::Freeze(Duration::ZERO).turn())
    }

    /// It takes no more orders, or everything was given back by itself.
    pub fn is_over(&self) -> bool {
        let state = self.lock();
        state.is_gone || state.over.is_some()
    }

    /// What it was asked last, whether that is done, and why it takes no more orders.
    pub fn standing(&self) -> (Option<&'static str>, bool, Option<NodeError>) {
        let state = self.lock();
        let last = state.asked.last();
        (last.map(|(order, _)| order.verb()), last.is_some_and(|(_, answer)| answer.is_some()), state.over.clone())
    }

    /// Returns once everything was given back.
    pub async fn gone(&self) {
        let mut changed = self.changed.subscribe();
        while !self.lock().is_gone {
            let _always_open = changed.changed().await;
        }
    }

    async fn work(
        self: Arc<Self>,
        factory: Arc<dyn NodeFactory>,
        orders: mpsc::UnboundedReceiver<Order>,
        answers: mpsc::UnboundedSender<(usize, Answer)>,
        mut lifeline: watch::Receiver<()>,
    ) {
        let ended = async { while lifeline.changed().await.is_ok() {} };
        let assigned = tokio::select! {
            biased;
            assigned = factory.assign(&self.ticket) => assigned,
            () = ended => return,
        };
        match assigned {
            Ok(Assigned { node, read_bytes }) => {
                self.lock().read_bytes = Some(read_bytes);
                serve(0, node, orders, answers, lifeline).await;
            }
            // To whoever has asked or asks: the first order may not have come yet.
            Err(error) => self.lock().close(error),
        }
    }

    /// Takes down what comes of the orders, and ends what nobody asks for any more.
    async fn attend(self: Arc<Self>, mut answers: mpsc::UnboundedReceiver<(usize, Answer)>) {
        let mut changed = self.changed.subscribe();
        loop {
            let rest = self.lock().deadline().saturating_sub(self.clock.monotonic());
            let is_over = self.is_over();
            tokio::select! {
                biased;
                answer = answers.recv() => match answer {
                    Some((_, answer)) => self.record(answer),
                    None => break,
                },
                _changed = changed.changed() => {}
                () = self.clock.sleep(rest), if !is_over => self.give_up_if_silent(),
            }
        }
        let mut state = self.lock();
        let panicked = || NodeError::new(NodeErrorKind::Broken, format!("{}: it was given up", self.ticket.node));
        let reason = state.over.get_or_insert_with(panicked).clone();
        for (_, answer) in &mut state.asked {
            answer.get_or_insert_with(|| Answer::Failed(reason.clone()));
        }
        state.orders = None;
        state.is_gone = true;
        drop(state);
        self.changed.send_replace(());
    }

    fn record(&self, answer: Answer) {
        {
            let mut state = self.lock();
            if let Answer::Thawed(_) = answer {
                state.frozen_until = None;
            }
            if let Some((_, waiting)) = state.asked.iter_mut().find(|(_, answer)| answer.is_none()) {
                *waiting = Some(answer);
            }
        }
        self.changed.send_replace(());
    }

    fn give_up_if_silent(&self) {
        {
            let mut state = self.lock();
            if self.clock.monotonic() < state.deadline() || state.over.is_some() {
                return;
            }
            let node = &self.ticket.node;
            let error = match state.frozen_until {
                Some(_) => NodeError::new(
                    NodeErrorKind::Void,
                    format!("{node}: its coordinator was not heard in time after the freeze: it let writes go by itself"),
                ),
                None => NodeError::new(
                    NodeErrorKind::Broken,
                    format!("{node}: its coordinator was not heard for {SILENCE_MAX:?}: it gave everything back by itself"),
                ),
            };
            tracing::warn!(cluster = %self.ticket.cluster, snapshot = %self.ticket.snapshot, %error, "a snapshot was given up");
            state.close(error);
        }
        self.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
