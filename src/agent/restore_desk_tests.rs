//! A desk over nodes that tell what they are asked, and its coordinator's side.

use super::super::remote::CourierError;
use super::super::remote_restore::RemoteRestore;
use super::super::restore::{KeptRestore, NodeRestored, RestoreStep};
use super::super::restore_orders::{RestoreCourier, Subject};
use super::super::session::SILENCE_MAX;
use super::*;
use crate::base::ManualClock;
use crate::model::restore_plan::{Content, Method, TargetFacts};

type Log = Arc<Mutex<Vec<String>>>;

/// A node that says what it is asked, and does as it is wished.
#[derive(Debug, Default)]
struct Teller {
    log: Log,
    fails_at: Option<&'static str>,
    /// It stands still there until it is given up or let go.
    stands_at: Option<&'static str>,
    let_go: tokio::sync::Notify,
}

impl Teller {
    async fn step(&self, what: &'static str) -> Result<(), StepFailure> {
        self.log.lock().expect("no panic").push(what.to_owned());
        if self.stands_at == Some(what) {
            self.let_go.notified().await;
        }
        match self.fails_at == Some(what) {
            true => Err(StepFailure { node: "node-1".to_owned(), step: RestoreStep::Stage, reason: "as wished".to_owned() }),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl RestoreNode for Teller {
    fn name(&self) -> &str {
        "node-1"
    }
    fn agent(&self) -> Option<&str> {
        None
    }
    async fn inspect(&self) -> TargetFacts {
        TargetFacts { node: "node-1".to_owned(), has_stop: true, ..TargetFacts::default() }
    }
    fn placed(&self) -> Placed {
        Placed { bytes: 7, found_bytes: 3 }
    }
    async fn stage(&self, _: &NodePlan) -> Result<NodeRestored, StepFailure> {
        self.step("stage").await.map(|()| NodeRestored { files: 1, bytes: 9, found_bytes: 3, ..NodeRestored::default() })
    }
    async fn give_up(&self) {
        self.let_go.notify_one();
    }
    async fn stop(&self, _: &NodePlan) -> Result<(), StepFailure> {
        self.step("stop").await
    }
    async fn swap(&self, _: &NodePlan) -> Result<(), StepFailure> {
        self.step("swap").await
    }
    async fn start(&self, _: &NodePlan) -> Result<(), StepFailure> {
        self.step("start").await
    }
    async fn check(&self, _: &NodePlan) -> Result<(Option<u64>, bool), StepFailure> {
        self.step("check").await.map(|()| (Some(5), true))
    }
    async fn confirm(&self, _: &NodePlan) -> Result<(), StepFailure> {
        self.step("confirm").await
    }
    async fn finish(&self, _: &NodePlan) -> Result<(), StepFailure> {
        self.step("finish").await
    }
    async fn step_aside(&self, _: &NodePlan) -> Result<(), StepFailure> {
        self.step("step aside").await
    }
    async fn undo(&self, _: &NodePlan) -> Result<(), StepFailure> {
        self.step("undo").await
    }
    async fn undo_of_another(&self, restore: Uuid, was_stopped: bool) -> Result<(), StepFailure> {
        self.log.lock().expect("no panic").push(format!("undo {restore} of another, stopped {was_stopped}"));
        Ok(())
    }
    async fn kept(&self) -> Result<Vec<KeptRestore>, String> {
        Ok(Vec::new())
    }
    async fn halt(&self) -> Result<bool, String> {
        self.step("halt").await.map(|()| true).map_err(|failure| failure.reason)
    }
    async fn go_on(&self) -> Result<(), String> {
        self.step("go on").await.map_err(|failure| failure.reason)
    }
    async fn roll_back(&self, _: Uuid) -> Result<Option<KeptRestore>, String> {
        self.step("roll back").await.map(|()| None).map_err(|failure| failure.reason)
    }
    async fn settle(&self) -> Result<usize, String> {
        self.step("settle").await.map(|()| 2).map_err(|failure| failure.reason)
    }
}

/// A host with one node, a repository that says one thing, and a plan.
#[derive(Debug)]
struct Host {
    node: Arc<Teller>,
    plan: NodePlan,
    /// What the repository says, in turn; the last one stays.
    verdicts: Mutex<Vec<Result<Verdict, String>>>,
}

#[async_trait]
impl RestoreFactory for Host {
    async fn assign(&self, _: &RestoreTicket, _: bool) -> Result<Arc<dyn RestoreNode>, String> {
        Ok(self.node.clone())
    }
    async fn plan(&self, ticket: &RestoreTicket, _: &dyn RestoreNode, _: &Wish) -> Result<NodePlan, String> {
        Ok(NodePlan { id: ticket.restore, ..self.plan.clone() })
    }
    async fn verdict(&self, _: &RestoreTicket) -> Result<Verdict, String> {
        let mut verdicts = self.verdicts.lock().expect("no panic");
        if verdicts.len() > 1 { verdicts.remove(0) } else { verdicts[0].clone() }
    }
}

struct Stage {
    log: Log,
    host: Arc<Host>,
    clock: ManualClock,
    desk: Arc<RestoreDesk>,
}

/// Longer than a test may take.
const FOR_EVER: Duration = Duration::from_secs(3600);

impl Stage {
    fn new(node: Teller, verdicts: Vec<Result<Verdict, String>>) -> Self {
        let (log, clock) = (node.log.clone(), ManualClock::at(0));
        let plan = NodePlan { start: true, ..NodePlan::sample("node-1", "/data".into()) };
        let host = Arc::new(Host { node: Arc::new(node), plan, verdicts: Mutex::new(verdicts) });
        let desk = Arc::new(RestoreDesk::new(host.clone(), Arc::new(clock.clone())));
        Self { log, host, clock, desk }
    }

    fn log(&self) -> String {
        std::mem::take(&mut *self.log.lock().expect("no panic")).join(", ")
    }

    fn wish(&self) -> RestoreOrder {
        RestoreOrder::Stage(Box::new(Wish {
            source: NodeName::new("node-1").expect("legal"),
            content: Content::Restored,
            method: Method::Copy,
            discard_current: false,
            confirm: None,
            promise: Wish::promise_of(&self.host.plan),
        }))
    }

    async fn ask(&self, restore: u128, order: RestoreOrder) -> RestoreAnswer {
        match self.desk.ask(&ticket(restore), order, FOR_EVER).await {
            RestoreReply::Ended(answer) => answer,
            running => panic!("{running:?}"),
        }
    }

    async fn refused(&self, restore: u128, order: RestoreOrder) -> String {
        match self.ask(restore, order).await {
            RestoreAnswer::Failed(failure) => failure.reason,
            done => panic!("{done:?}"),
        }
    }

    /// Everything up to a step.
    async fn up_to(&self, restore: u128, last: &str) {
        for order in [self.wish(), RestoreOrder::Stop, RestoreOrder::Swap, RestoreOrder::Start, RestoreOrder::Check] {
            let verb = order.verb();
            let answer = self.ask(restore, order).await;
            assert!(!matches!(answer, RestoreAnswer::Failed(_)), "{verb}: {answer:?}");
            if verb == last {
                return;
            }
        }
    }

    /// Time goes on until the log is as long.
    async fn until(&self, count: usize) {
        while self.log.lock().expect("no panic").len() < count {
            for _turn in 0..20 {
                tokio::task::yield_now().await;
            }
            self.clock.advance_to_next();
        }
        for _turn in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}

fn ticket(restore: u128) -> RestoreTicket {
    let cluster = ClusterName::new("prod").expect("legal");
    RestoreTicket {
        cluster: cluster.clone(),
        node: NodeName::new("node-1").expect("legal"),
        restore: Uuid::from_u128(restore),
        subject: Some(Subject { repository: Uuid::from_u128(1), cluster, snapshot: Uuid::from_u128(2) }),
    }
}

#[tokio::test]
async fn each_step_is_carried_out_once_and_in_its_turn() {
    let stage = Stage::new(Teller::default(), vec![Ok(Verdict::Unknown)]);
    assert!(stage.refused(1, RestoreOrder::Swap).await.contains("knows nothing of restore"));
    let RestoreAnswer::Inspected(facts) = stage.ask(1, RestoreOrder::Inspect).await else { panic!("not inspected") };
    assert!(facts.has_stop);
    assert!(stage.refused(1, RestoreOrder::Swap).await.contains("before what has to be done first"));
    for _again in 0..2 {
        stage.up_to(1, "check").await;
    }
    assert_eq!(stage.ask(1, RestoreOrder::Check).await, RestoreAnswer::Checked(Some(5), true));
    assert_eq!(stage.ask(1, RestoreOrder::Confirm).await, RestoreAnswer::Done);
    assert_eq!(stage.ask(1, RestoreOrder::Finish).await, RestoreAnswer::Done);
    assert_eq!(stage.ask(1, RestoreOrder::Finish).await, RestoreAnswer::Done);
    assert!(stage.refused(1, RestoreOrder::Undo { was_stopped: true }).await.contains("has ended: finish"));
    assert_eq!(stage.log(), "stage, stop, swap, start, check, confirm, finish");
    stage.clock.advance(SILENCE_MAX * 2);
    stage.desk.close().await;
    assert_eq!(stage.log(), "", "nothing is undone that was finished");
}

#[tokio::test]
async fn what_is_seen_there_has_to_be_what_was_agreed_to() {
    let stage = Stage::new(Teller::default(), vec![Ok(Verdict::Unknown)]);
    let RestoreOrder::Stage(wish) = stage.wish() else { panic!("no wish") };
    let other = NodePlan { directory: "/other".into(), ..stage.host.plan.clone() };
    let wish = RestoreOrder::Stage(Box::new(Wish { promise: Wish::promise_of(&other), ..*wish }));
    assert!(stage.refused(1, wish.clone()).await.contains("differs from what the plan says"));
    assert!(stage.refused(1, stage.wish()).await.contains("said otherwise"), "a second wish is not tried");
    assert_eq!(stage.log(), "");
}

#[tokio::test]
async fn before_the_swap_a_node_goes_back_by_itself_when_its_coordinator_is_not_heard() {
    for last in ["stage", "stop"] {
        let stage = Stage::new(Teller::default(), vec![Ok(Verdict::Restored)]);
        stage.up_to(1, last).await;
        let before = stage.log.lock().expect("no panic").len();
        stage.until(before + 1).await;
        assert!(stage.clock.wall_us() >= SILENCE_MAX.as_micros() as i64);
        assert!(stage.log().ends_with(&format!("{last}, undo")));
        let next = if last == "stage" { RestoreOrder::Stop } else { RestoreOrder::Swap };
        assert!(stage.refused(1, next).await.contains("was not heard for 60s"));
        // That is what a coordinator that comes back wants.
        assert_eq!(stage.ask(1, RestoreOrder::Undo { was_stopped: true }).await, RestoreAnswer::Done);
        assert_eq!(stage.log(), "");
    }
}

#[tokio::test]
async fn placing_that_nobody_waits_for_is_cut_short() {
    let node = Teller { stands_at: Some("stage"), fails_at: Some("stage"), ..Teller::default() };
    let stage = Stage::new(node, vec![Ok(Verdict::Restored)]);
    let running = stage.desk.ask(&ticket(1), stage.wish(), Duration::ZERO).await;
    assert_eq!(running, RestoreReply::Running(Placed::default()), "it is still being assigned");
    stage.until(2).await;
    assert_eq!(stage.log(), "stage, undo");
    let running = stage.desk.standing(&ticket(1).cluster, &ticket(1).node).await.expect("it was here");
    assert_eq!((running.order, running.is_done, running.placed.bytes), (Some("stage"), true, 7));
}

#[tokio::test]
async fn after_the_swap_the_repository_says_how_it_ended() {
    let away = || Err("the store is away".to_owned());
    for (verdicts, ends_with) in [
        (vec![Ok(Verdict::Restored)], "swap, finish"),
        (vec![Ok(Verdict::Undone)], "swap, undo"),
        (vec![away(), away(), Ok(Verdict::Restored)], "swap, finish"),
    ] {
        let is_undone = ends_with.ends_with("undo");
        let stage = Stage::new(Teller::default(), verdicts);
        stage.up_to(1, "swap").await;
        stage.until(4).await;
        assert!(stage.log().ends_with(ends_with));
        let answer = stage.ask(1, RestoreOrder::Undo { was_stopped: true }).await;
        assert_eq!(answer == RestoreAnswer::Done, is_undone, "{answer:?}");
    }
}

#[tokio::test]
async fn an_agent_that_stops_takes_back_what_is_not_swapped_and_leaves_the_rest() {
    for (last, log) in [("stop", "stage, stop, undo"), ("start", "stage, stop, swap, start")] {
        let stage = Stage::new(Teller::default(), vec![Ok(Verdict::Undone)]);
        stage.up_to(1, last).await;
        stage.desk.close().await;
        assert_eq!(stage.log(), log);
        assert!(stage.refused(2, RestoreOrder::Inspect).await.contains("is being stopped"));
    }
}

#[tokio::test]
async fn one_restore_works_on_a_node_and_who_only_looked_keeps_nobody_away() {
    let stage = Stage::new(Teller::default(), vec![Ok(Verdict::Unknown)]);
    stage.ask(1, RestoreOrder::Inspect).await;
    stage.ask(2, RestoreOrder::Inspect).await;
    stage.up_to(2, "stage").await;
    assert!(stage.refused(3, RestoreOrder::Inspect).await.contains("is at work on it"));
    assert!(stage.refused(3, RestoreOrder::Settle).await.contains("is at work on it"));
    assert_eq!(stage.ask(2, RestoreOrder::Undo { was_stopped: false }).await, RestoreAnswer::Done);
    assert_eq!(stage.ask(3, RestoreOrder::Halt).await, RestoreAnswer::Halted(true));
    assert_eq!(stage.ask(3, RestoreOrder::RollBack { restore: Uuid::from_u128(2) }).await, RestoreAnswer::RolledBack(None));
    assert_eq!(stage.ask(4, RestoreOrder::Settle).await, RestoreAnswer::Settled(2));
    assert_eq!(stage.log(), "stage, undo, halt, roll back, settle");
}

#[tokio::test]
async fn what_an_agent_that_died_has_begun_is_undone_by_what_it_wrote_down() {
    let stage = Stage::new(Teller::default(), vec![Ok(Verdict::Unknown)]);
    assert_eq!(stage.ask(1, RestoreOrder::Undo { was_stopped: true }).await, RestoreAnswer::Done);
    assert_eq!(stage.log(), format!("undo {} of another, stopped true", Uuid::from_u128(1)));
}

/// A network that loses every other answer, between a coordinator and the desk.
#[derive(Debug)]
struct Losing {
    desk: Arc<RestoreDesk>,
    count: Mutex<usize>,
}

#[async_trait]
impl RestoreCourier for Losing {
    async fn restore(
        &self,
        ticket: &RestoreTicket,
        order: &RestoreOrder,
        _: Duration,
        _: Duration,
    ) -> Result<RestoreReply, CourierError> {
        let reply = self.desk.ask(ticket, order.clone(), Duration::ZERO).await;
        tokio::task::yield_now().await;
        let mut count = self.count.lock().expect("no panic");
        *count += 1;
        if count.is_multiple_of(2) { Ok(reply) } else { Err(CourierError::Unreachable("lost".to_owned())) }
    }

    async fn give_up(&self, ticket: &RestoreTicket, _: Duration) -> Result<(), CourierError> {
        self.desk.give_up(ticket).await;
        Ok(())
    }
}

#[tokio::test]
async fn a_coordinator_asks_until_it_knows_whatever_is_lost_on_the_way() {
    let stage = Stage::new(Teller::default(), vec![Ok(Verdict::Unknown)]);
    let courier = Arc::new(Losing { desk: stage.desk.clone(), count: Mutex::default() });
    let clock = stage.clock.clone();
    let node = RemoteRestore::new(ticket(1), "https://a:7070".to_owned(), courier, Arc::new(clock.clone()), None);
    let steps = async {
        let facts = node.inspect().await;
        assert_eq!((facts.agent.as_deref(), facts.agent_fault), (Some("https://a:7070"), None));
        let plan = stage.host.plan.clone();
        let staged = node.stage(&plan).await.expect("is staged");
        assert_eq!((staged.bytes, node.placed()), (9, Placed { bytes: 9, found_bytes: 3 }));
        node.stop(&plan).await.expect("is stopped");
        node.swap(&plan).await.expect("is swapped");
        node.start(&plan).await.expect("is started");
        assert_eq!(node.check(&plan).await, Ok((Some(5), true)));
        node.confirm(&plan).await.expect("is confirmed");
        node.finish(&plan).await.expect("is finished");
    };
    tokio::pin!(steps);
    loop {
        tokio::select! {
            biased;
            () = &mut steps => break,
            () = tokio::task::yield_now() => clock.advance(Duration::from_millis(50)),
        }
    }
    assert_eq!(stage.log(), "stage, stop, swap, start, check, confirm, finish");
}

/// Nobody is there.
#[derive(Debug)]
struct Away;

#[async_trait]
impl RestoreCourier for Away {
    async fn restore(&self, _: &RestoreTicket, _: &RestoreOrder, _: Duration, _: Duration) -> Result<RestoreReply, CourierError> {
        Err(CourierError::Denied("https://a:7070: a token is wanted".to_owned()))
    }
    async fn give_up(&self, _: &RestoreTicket, _: Duration) -> Result<(), CourierError> {
        Err(CourierError::Unreachable("away".to_owned()))
    }
}

#[tokio::test]
async fn an_agent_that_cannot_be_asked_is_a_refusal_of_the_plan_and_nothing_to_undo() {
    let clock = Arc::new(ManualClock::at(0));
    let node = RemoteRestore::new(ticket(1), "https://a:7070".to_owned(), Arc::new(Away), clock, None);
    let facts = node.inspect().await;
    assert_eq!(facts.agent_fault.as_deref(), Some("https://a:7070: a token is wanted"));
    let plan = NodePlan::sample("node-1", "/data".into());
    assert_eq!(node.undo(&plan).await, Ok(()), "nothing was begun");
    assert!(node.stage(&plan).await.expect_err("it is away").reason.contains("a token is wanted"));
    assert!(node.kept().await.expect_err("it is away").contains("a token is wanted"));
}

#[tokio::test]
async fn what_was_stopped_for_a_rollback_that_does_not_come_is_started_again() {
    let stage = Stage::new(Teller::default(), vec![Ok(Verdict::Unknown)]);
    assert_eq!(stage.ask(1, RestoreOrder::Halt).await, RestoreAnswer::Halted(true));
    assert!(stage.refused(2, RestoreOrder::Settle).await.contains("is at work on it"), "it is held until it runs again");
    stage.until(2).await;
    assert_eq!(stage.log(), "halt, go on");
    assert_eq!(stage.ask(2, RestoreOrder::Settle).await, RestoreAnswer::Settled(2));
}

#[tokio::test]
async fn who_only_looked_and_was_silent_for_long_may_go_on() {
    let stage = Stage::new(Teller::default(), vec![Ok(Verdict::Unknown)]);
    stage.ask(1, RestoreOrder::Inspect).await;
    while !stage.desk.standing(&ticket(1).cluster, &ticket(1).node).await.expect("it was here").is_gone {
        tokio::task::yield_now().await;
        stage.clock.advance(Duration::from_secs(1));
    }
    stage.up_to(1, "stage").await;
    assert_eq!(stage.log(), "stage");
}

#[tokio::test]
async fn a_replica_of_an_agent_that_was_restarted_is_stopped_before_its_master_goes_back() {
    let stage = Stage::new(Teller::default(), vec![Ok(Verdict::Unknown)]);
    assert_eq!(stage.ask(1, RestoreOrder::StepAside).await, RestoreAnswer::Done);
    assert_eq!(stage.ask(1, RestoreOrder::Undo { was_stopped: true }).await, RestoreAnswer::Done);
    assert_eq!(stage.log(), format!("halt, undo {} of another, stopped true", Uuid::from_u128(1)));
}

#[tokio::test]
async fn placing_ends_when_it_is_to_be_undone() {
    let node = Teller { stands_at: Some("stage"), fails_at: Some("stage"), ..Teller::default() };
    let stage = Stage::new(node, vec![Ok(Verdict::Unknown)]);
    stage.desk.ask(&ticket(1), stage.wish(), Duration::ZERO).await;
    assert_eq!(stage.ask(1, RestoreOrder::Undo { was_stopped: false }).await, RestoreAnswer::Done);
    assert_eq!(stage.log(), "stage, undo");
}
