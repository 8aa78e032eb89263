//! One node in one restore, at its own host: its steps in their turn, each carried out once, and the way back when its
//! coordinator is not heard any more.
//!
//! How it works: one task takes the orders in the order in which they come. When nothing was heard for [`SILENCE_MAX`], it ends:
//! before the directories have changed places the node goes back by itself. After that it may be that other nodes have heard that
//! all is well, so what the repository says decides, and what it does not say yet is decided there, for all nodes.
//!
//! **Invariants.** Whoever asks again is told what came of it the first time. No step is carried out out of its turn.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{mpsc, watch};

use super::restore::{Placed, RestoreNode, RestoreStep, StepFailure};
use super::restore_desk::{RestoreFactory, RestoreStanding, Verdict};
use super::restore_orders::{RestoreAnswer, RestoreOrder, RestoreReply, RestoreTicket, Wish};
use super::session::SILENCE_MAX;
use crate::base::Clock;
use crate::model::restore_plan::NodePlan;

/// Between two questions to a repository that does not answer.
const RETRY: Duration = Duration::from_secs(10);

pub(super) struct RestoreSession {
    pub ticket: RestoreTicket,
    factory: Arc<dyn RestoreFactory>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl std::fmt::Debug for RestoreSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoreSession").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    asked: Vec<(RestoreOrder, Option<RestoreAnswer>)>,
    /// Closed once it takes no more orders.
    orders: Option<mpsc::UnboundedSender<RestoreOrder>>,
    node: Option<Arc<dyn RestoreNode>>,
    heard_at: Duration,
    /// Why it takes no more orders.
    over: Option<String>,
    /// What is placed is to end, now or as soon as somebody acts for the node.
    is_given_up: bool,
    /// Its host stops serving: nothing is waited for any more.
    is_stopping: bool,
    /// It is as it was found, also where that was done by itself.
    is_undone: bool,
    /// Nothing is under way any more.
    is_gone: bool,
}

impl State {
    fn answer(&self, verb: &str) -> Option<&RestoreAnswer> {
        self.asked.iter().find(|(order, _)| order.verb() == verb)?.1.as_ref()
    }

    fn was_asked(&self, verb: &str) -> bool {
        self.asked.iter().any(|(order, _)| order.verb() == verb)
    }

    fn is_good(&self, turn: usize) -> bool {
        let asked = self.asked.iter().find(|(order, _)| order.turn() == Some(turn));
        asked.is_some_and(|(_, answer)| answer.as_ref().is_some_and(|answer| !matches!(answer, RestoreAnswer::Failed(_))))
    }

    /// Takes an order whose turn it is; one that was taken before is fine too.
    fn take(&mut self, order: &RestoreOrder) -> Result<(), String> {
        if let Some((asked, _)) = self.asked.iter().find(|(asked, _)| asked.verb() == order.verb()) {
            return if asked == order {
                Ok(())
            } else {
                Err(format!("the order to {} came before, and said otherwise", order.verb()))
            };
        }
        if let Some(over) = &self.over {
            return Err(over.clone());
        }
        if let Some(turn) = order.turn() {
            let is_late = self.was_asked("undo") || self.asked.iter().any(|(asked, _)| asked.turn() > Some(turn));
            if is_late || !(0..turn).all(|before| self.is_good(before)) {
                let reason = if is_late { "comes too late" } else { "comes before what has to be done first" };
                return Err(format!("the order to {} {reason}", order.verb()));
            }
        }
        self.asked.push((order.clone(), None));
        if let Some(orders) = &self.orders {
            // Where nobody takes it any more, what it left unanswered is answered when that is seen.
            let _gone = orders.send(order.clone());
        }
        Ok(())
    }

    fn close(&mut self, reason: String) {
        self.over.get_or_insert(reason);
        self.orders = None;
    }
}

impl RestoreSession {
    /// Begins; who acts for the node is asked of the factory. `reads`: it may come to be placed, which needs the snapshot; the ways
    /// back do not.
    pub fn begin(ticket: RestoreTicket, reads: bool, factory: Arc<dyn RestoreFactory>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (orders, received) = mpsc::unbounded_channel();
        let state = State { orders: Some(orders), heard_at: clock.monotonic(), ..State::default() };
        let session = Arc::new(Self { ticket, factory, clock, state: Mutex::new(state), changed: watch::Sender::default() });
        tokio::spawn(session.clone().work(received, reads));
        session
    }

    /// What came of an order, or that it is not done after `wait`.
    pub async fn ask(&self, order: RestoreOrder, wait: Duration) -> RestoreReply {
        let mut changed = self.changed.subscribe();
        let now = self.clock.monotonic();
        let until = now + wait;
        let (verb, step) = (order.verb(), order.step());
        let is_undo = matches!(order, RestoreOrder::Undo { .. });
        let refused = {
            let mut state = self.lock();
            state.heard_at = now;
            state.take(&order).err()
        };
        if is_undo {
            // It waits behind what is being placed otherwise.
            self.give_up().await;
        }
        if let Some(reason) = refused.as_ref().filter(|_| !is_undo) {
            return RestoreReply::Ended(RestoreAnswer::Failed(self.failure(step, reason)));
        }
        self.changed.send_replace(());
        loop {
            changed.mark_unchanged();
            {
                let state = self.lock();
                match state.answer(verb) {
                    Some(answer) => return RestoreReply::Ended(answer.clone()),
                    // It goes back by itself: that is what is asked for.
                    None if state.is_gone && state.is_undone => return RestoreReply::Ended(RestoreAnswer::Done),
                    None if state.is_gone => {
                        let reason = refused.as_deref().or(state.over.as_deref()).unwrap_or("it was given up");
                        return RestoreReply::Ended(RestoreAnswer::Failed(self.failure(step, reason)));
                    }
                    None => {}
                }
                if self.clock.monotonic() >= until {
                    return RestoreReply::Running(state.node.as_ref().map(|node| node.placed()).unwrap_or_default());
                }
            }
            tokio::select! {
                biased;
                _changed = changed.changed() => {}
                () = self.clock.sleep(until.saturating_sub(self.clock.monotonic())) => {}
            }
        }
    }

    /// Ends a `stage` soon.
    pub async fn give_up(&self) {
        let node = {
            let mut state = self.lock();
            state.is_given_up = true;
            state.node.clone()
        };
        if let Some(node) = node {
            node.give_up().await;
        }
    }

    /// Takes no more orders, and ends. What has changed places already stays as it is.
    pub async fn stop(&self, reason: &str) {
        {
            let mut state = self.lock();
            state.is_stopping = true;
            state.close(reason.to_owned());
        }
        self.changed.send_replace(());
        self.give_up().await;
    }

    /// It holds something of the node, or may.
    pub fn is_at_work(&self) -> bool {
        let state = self.lock();
        let is_step = |order: &RestoreOrder| !matches!(order, RestoreOrder::Inspect | RestoreOrder::Kept);
        let is_done = state.answer("finish").is_some() || state.answer("undo").is_some();
        let is_halted = state.was_asked("halt") && state.answer("roll_back").is_none() && state.answer("go_on").is_none();
        // What stands alone (a rollback, a settling) holds something until it is answered.
        let holds = |(order, answer): &(RestoreOrder, Option<RestoreAnswer>)| {
            is_step(order) && (answer.is_none() || (order.turn().is_some() && !is_done))
        };
        !state.is_gone && (is_halted || state.asked.iter().any(holds))
    }

    /// It has ended without having held anything: the same restore may begin anew.
    pub fn is_forgotten(&self) -> bool {
        let state = self.lock();
        let is_look =
            |(order, _): &(RestoreOrder, Option<RestoreAnswer>)| matches!(order, RestoreOrder::Inspect | RestoreOrder::Kept);
        state.is_gone && state.asked.iter().all(is_look)
    }

    /// Why it takes no more orders.
    pub fn over(&self) -> Option<String> {
        self.lock().over.clone()
    }

    /// What it was asked last, and how far that is.
    pub fn standing(&self) -> RestoreStanding {
        let state = self.lock();
        let last = state.asked.last();
        RestoreStanding {
            restore: self.ticket.restore,
            order: last.map(|(order, _)| order.verb()),
            is_done: last.is_some_and(|(_, answer)| answer.is_some()),
            over: state.over.clone(),
            is_gone: state.is_gone,
            placed: state.node.as_ref().map_or_else(Placed::default, |node| node.placed()),
        }
    }

    /// Returns once nothing is under way any more.
    pub async fn gone(&self) {
        let mut changed = self.changed.subscribe();
        while !self.lock().is_gone {
            let _always_open = changed.changed().await;
        }
    }

    async fn work(self: Arc<Self>, orders: mpsc::UnboundedReceiver<RestoreOrder>, reads: bool) {
        // Whatever becomes of it: nobody may wait for its end for ever.
        if AssertUnwindSafe(self.act(orders, reads)).catch_unwind().await.is_err() {
            self.lock().close("our own code panicked; see the agent's log".to_owned());
        }
        {
            let mut guard = self.lock();
            let state = &mut *guard;
            state.is_gone = true;
            state.orders = None;
            let reason = state.over.get_or_insert_with(|| "it was given up".to_owned()).clone();
            for (order, answer) in &mut state.asked {
                let is_undone = state.is_undone && matches!(order, RestoreOrder::Undo { .. });
                let failed = || RestoreAnswer::Failed(self.failure(order.step(), &reason));
                answer.get_or_insert_with(|| if is_undone { RestoreAnswer::Done } else { failed() });
            }
        }
        self.changed.send_replace(());
    }

    async fn act(&self, mut orders: mpsc::UnboundedReceiver<RestoreOrder>, reads: bool) {
        let node = match self.factory.assign(&self.ticket, reads).await {
            Ok(node) => node,
            Err(reason) => return self.lock().close(reason),
        };
        let is_given_up = {
            let mut state = self.lock();
            state.node = Some(node.clone());
            state.is_given_up
        };
        if is_given_up {
            node.give_up().await;
        }
        let mut plan = None;
        while let Some(order) = self.next(&mut orders, node.as_ref()).await {
            let obeying = AssertUnwindSafe(self.obey(node.as_ref(), &mut plan, &order)).catch_unwind();
            let answer = self.heard(obeying, node.as_ref()).await;
            let answer = answer.unwrap_or_else(|_| Err("our own code panicked; see the agent's log".to_owned()));
            self.record(&order, answer.unwrap_or_else(|reason| RestoreAnswer::Failed(self.failure(order.step(), &reason))));
        }
        self.end(node.as_ref(), plan.as_ref()).await;
    }

    /// The next order; `None` once it is over, which a long silence makes it.
    async fn next(&self, orders: &mut mpsc::UnboundedReceiver<RestoreOrder>, node: &dyn RestoreNode) -> Option<RestoreOrder> {
        self.heard(orders.recv(), node).await
    }

    /// Waits for something; when nobody was heard meanwhile for too long, it is over, and what can be cut short is.
    async fn heard<T>(&self, awaited: impl Future<Output = T>, node: &dyn RestoreNode) -> T {
        tokio::pin!(awaited);
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let (rest, is_over) = {
                let state = self.lock();
                ((state.heard_at + SILENCE_MAX).saturating_sub(self.clock.monotonic()), state.over.is_some())
            };
            tokio::select! {
                biased;
                come = &mut awaited => return come,
                _heard = changed.changed() => {}
                () = self.clock.sleep(rest), if !is_over => {
                    let is_silent = {
                        let mut state = self.lock();
                        let is_silent = self.clock.monotonic() >= state.heard_at + SILENCE_MAX;
                        if is_silent {
                            state.close(format!("its coordinator was not heard for {SILENCE_MAX:?}"));
                        }
                        is_silent
                    };
                    if is_silent {
                        node.give_up().await;
                    }
                }
            }
        }
    }

    async fn obey(
        &self,
        node: &dyn RestoreNode,
        plan: &mut Option<NodePlan>,
        order: &RestoreOrder,
    ) -> Result<RestoreAnswer, String> {
        let reason = |failure: StepFailure| failure.reason;
        let done = |()| RestoreAnswer::Done;
        if let RestoreOrder::Stage(wish) = order {
            let own = self.factory.plan(&self.ticket, node, wish).await?;
            if Wish::promise_of(&own) != wish.promise {
                return Err("what it sees differs from what the plan says: run the command again".to_owned());
            }
            let staged = node.stage(plan.insert(own)).await;
            return staged.map(RestoreAnswer::Staged).map_err(reason);
        }
        let planned = || plan.as_ref().ok_or_else(|| "nothing was staged".to_owned());
        match order {
            RestoreOrder::Inspect | RestoreOrder::Stage(_) => Ok(RestoreAnswer::Inspected(Box::new(node.inspect().await))),
            RestoreOrder::Stop => node.stop(planned()?).await.map(done).map_err(reason),
            RestoreOrder::Swap => node.swap(planned()?).await.map(done).map_err(reason),
            RestoreOrder::Start => node.start(planned()?).await.map(done).map_err(reason),
            RestoreOrder::Check => {
                let (keys, is_compared) = node.check(planned()?).await.map_err(reason)?;
                Ok(RestoreAnswer::Checked(keys, is_compared))
            }
            RestoreOrder::Confirm => node.confirm(planned()?).await.map(done).map_err(reason),
            RestoreOrder::Finish => node.finish(planned()?).await.map(done).map_err(reason),
            // Where the agent was restarted meanwhile, it is stopped by what that has left in place.
            RestoreOrder::StepAside if plan.is_none() => node.halt().await.map(|_did_run| RestoreAnswer::Done),
            RestoreOrder::StepAside => node.step_aside(planned()?).await.map(done).map_err(reason),
            RestoreOrder::Undo { was_stopped } => {
                let undone = match plan.as_ref() {
                    Some(plan) => node.undo(plan).await,
                    // Staged by an agent that is gone, or not at all.
                    None => node.undo_of_another(self.ticket.restore, *was_stopped).await,
                };
                undone.map_err(reason)?;
                self.lock().is_undone = true;
                Ok(RestoreAnswer::Done)
            }
            RestoreOrder::Kept => node.kept().await.map(RestoreAnswer::Kept),
            RestoreOrder::Halt => node.halt().await.map(RestoreAnswer::Halted),
            RestoreOrder::RollBack { restore } => node.roll_back(*restore).await.map(RestoreAnswer::RolledBack),
            RestoreOrder::GoOn => node.go_on().await.map(done),
            RestoreOrder::Settle => node.settle().await.map(RestoreAnswer::Settled),
        }
    }

    fn record(&self, order: &RestoreOrder, answer: RestoreAnswer) {
        {
            let mut state = self.lock();
            let ends = matches!(order, RestoreOrder::Finish | RestoreOrder::Undo { .. });
            if ends && !matches!(answer, RestoreAnswer::Failed(_)) {
                state.close(format!("its restore has ended: {}", order.verb()));
            }
            if let Some((_, waiting)) = state.asked.iter_mut().find(|(asked, _)| asked == order) {
                *waiting = Some(answer);
            }
        }
        self.changed.send_replace(());
    }

    /// Brings the node to an end when nobody else does.
    async fn end(&self, node: &dyn RestoreNode, plan: Option<&NodePlan>) {
        let (is_ended, was_swapped) = {
            let state = self.lock();
            let is_good = |verb| state.answer(verb).is_some_and(|answer| *answer == RestoreAnswer::Done);
            (is_good("finish") || is_good("undo"), state.was_asked("swap"))
        };
        let was_halted = {
            let state = self.lock();
            state.was_asked("halt") && !state.was_asked("roll_back") && !state.was_asked("go_on")
        };
        if was_halted && let Err(error) = node.go_on().await {
            tracing::error!(node = node.name(), %error, "it was stopped for a rollback that did not come, and cannot be started");
        }
        let Some(plan) = plan.filter(|_| !is_ended) else { return };
        let verdict = if was_swapped { self.verdict().await } else { Verdict::Undone };
        let ended = match verdict {
            Verdict::Restored => node.finish(plan).await,
            Verdict::Undone => node.undo(plan).await.inspect(|()| self.lock().is_undone = true),
            Verdict::Unknown => Ok(()),
        };
        let (cluster, restore) = (&self.ticket.cluster, self.ticket.restore);
        let reason = self.lock().over.clone().unwrap_or_default();
        match (verdict, ended) {
            (_, Err(failure)) => {
                tracing::error!(%cluster, %restore, %reason, %failure, "a restore that was given up could not be ended: run `tintype rollback`")
            }
            (Verdict::Unknown, _) => {
                tracing::error!(%cluster, %restore, node = node.name(), %reason, "the restored data is in place, and whether all nodes were restored is not known: run `tintype rollback`, or the restore again");
            }
            (Verdict::Undone, Ok(())) => {
                tracing::warn!(%cluster, %restore, node = node.name(), %reason, "it went back to how it was")
            }
            (Verdict::Restored, Ok(())) => {
                tracing::warn!(%cluster, %restore, node = node.name(), %reason, "all nodes were restored")
            }
        }
    }

    /// What the repository says, asked until it answers or the host stops serving.
    async fn verdict(&self) -> Verdict {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if self.lock().is_stopping {
                return Verdict::Unknown;
            }
            match self.factory.verdict(&self.ticket).await {
                Ok(verdict) => return verdict,
                Err(error) => {
                    tracing::warn!(restore = %self.ticket.restore, %error, "how a restore ended cannot be found out yet");
                }
            }
            let until = self.clock.monotonic() + RETRY;
            while self.clock.monotonic() < until && !self.lock().is_stopping {
                tokio::select! {
                    _changed = changed.changed() => {}
                    () = self.clock.sleep(until.saturating_sub(self.clock.monotonic())) => {}
                }
            }
        }
    }

    fn failure(&self, step: RestoreStep, reason: &str) -> StepFailure {
        StepFailure { node: self.ticket.node.to_string(), step, reason: reason.to_owned() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
