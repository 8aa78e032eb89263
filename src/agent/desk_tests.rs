//! A desk over nodes made of wishes, and a coordinator's side of the network that loses and repeats.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use super::super::UploadReceipt;
use super::super::remote::{Courier, CourierError, RemoteNode};
use super::super::session::SILENCE_MAX;
use super::*;
use crate::base::{ManualClock, SystemClock};
use crate::model::ids::BlockId;
use crate::model::manifest::{CaptureProof, NodeDescription, NodeTotals};
use tokio::sync::Notify;

const PAUSE: Duration = Duration::from_secs(2);
/// Longer than a test may take.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// What happened to the nodes of a host.
#[derive(Debug, Default)]
struct Host {
    log: Mutex<Vec<String>>,
    is_frozen: AtomicBool,
    /// The order at which a node stands still until it is let go.
    stands_at: Mutex<Option<&'static str>>,
    let_go: Notify,
    fails_at: Mutex<Option<&'static str>>,
    epoch: AtomicU64,
    read_bytes: Arc<AtomicU64>,
}

impl Host {
    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().expect("no panic"))
    }

    fn note(&self, what: String) {
        self.log.lock().expect("no panic").push(what);
    }
}

#[derive(Debug)]
struct Wished {
    name: NodeName,
    host: Arc<Host>,
}

impl Wished {
    async fn step(&self, what: &'static str) -> Result<(), NodeError> {
        self.host.note(what.to_owned());
        let stands = *self.host.stands_at.lock().expect("no panic") == Some(what);
        if stands {
            self.host.let_go.notified().await;
        }
        match *self.host.fails_at.lock().expect("no panic") == Some(what) {
            true => Err(NodeError::new(NodeErrorKind::Refused, "as wished")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl NodeService for Wished {
    fn name(&self) -> &NodeName {
        &self.name
    }
    async fn describe(&mut self, epoch: u64) -> Result<NodeDescription, NodeError> {
        self.step("describe").await?;
        Ok(NodeDescription { address: format!("epoch {epoch}"), ..NodeDescription::default() })
    }
    async fn prepare(&mut self, _: Duration, _: Duration) -> Result<(), NodeError> {
        self.step("prepare").await
    }
    async fn freeze(&mut self, pause: Duration) -> Result<(), NodeError> {
        assert_eq!(pause, PAUSE);
        self.host.is_frozen.store(true, Ordering::SeqCst);
        self.step("freeze").await
    }
    async fn capture(&mut self) -> Result<(), NodeError> {
        assert!(self.host.is_frozen.load(Ordering::SeqCst), "captured while writes go");
        self.step("capture").await
    }
    async fn thaw(&mut self) -> Result<CaptureProof, NodeError> {
        self.host.is_frozen.store(false, Ordering::SeqCst);
        self.step("thaw").await.map(|()| CaptureProof::none())
    }
    async fn upload(&mut self) -> Result<UploadReceipt, NodeError> {
        self.host.read_bytes.store(7, Ordering::SeqCst);
        self.step("upload").await?;
        let totals = NodeTotals { files: 1, ..NodeTotals::default() };
        Ok(UploadReceipt { manifest: BlockId([7; 32]), totals, keys: None, checked: vec!["rdb-crc64".to_owned()] })
    }
    async fn abandon(&mut self) {
        self.host.is_frozen.store(false, Ordering::SeqCst);
        self.host.note("abandon".to_owned());
    }
}

/// A host that several may hold.
#[derive(Debug)]
struct Hosted(Arc<Host>);

#[async_trait]
impl NodeFactory for Hosted {
    async fn assign(&self, ticket: &Ticket) -> Result<Assigned, NodeError> {
        let known = self.0.epoch.fetch_max(ticket.epoch, Ordering::SeqCst);
        if ticket.epoch < known {
            return Err(NodeError::new(NodeErrorKind::Refused, "an older epoch"));
        }
        let read = self.0.read_bytes.clone();
        let node = Wished { name: ticket.node.clone(), host: self.0.clone() };
        Ok(Assigned { node: Box::new(node), read_bytes: Box::new(move || read.load(Ordering::SeqCst)) })
    }
}

fn ticket(epoch: u64) -> Ticket {
    Ticket {
        repository: Uuid::from_u128(1),
        cluster: ClusterName::new("prod").expect("legal"),
        node: NodeName::new("node-1").expect("legal"),
        snapshot: Uuid::from_u128(u128::from(epoch) + 100),
        epoch,
    }
}

fn orders(epoch: u64) -> [Order; 6] {
    let prepare = Order::Prepare(PAUSE, Duration::from_secs(300));
    [Order::Describe(epoch), prepare, Order::Freeze(PAUSE), Order::Capture, Order::Thaw, Order::Upload]
}

struct Stage {
    host: Arc<Host>,
    clock: ManualClock,
    desk: Arc<Desk>,
}

impl Stage {
    fn new() -> Self {
        let (host, clock) = (Arc::new(Host::default()), ManualClock::at(0));
        let desk = Arc::new(Desk::new(Arc::new(Hosted(host.clone())), Arc::new(clock.clone())));
        Self { host, clock, desk }
    }

    async fn ask(&self, ticket: &Ticket, order: Order) -> Answer {
        match self.desk.ask(ticket, order, FOR_EVER).await {
            Reply::Ended(answer) => answer,
            running => panic!("{order:?}: {running:?}"),
        }
    }

    /// The first orders, all of them well.
    async fn begin(&self, ticket: &Ticket, count: usize) {
        for order in &orders(ticket.epoch)[..count] {
            let answer = self.ask(ticket, *order).await;
            assert!(!matches!(answer, Answer::Failed(_)), "{order:?}: {answer:?}");
        }
    }

    /// Why an order was not carried out.
    async fn refusal(&self, ticket: &Ticket, order: Order) -> String {
        match self.ask(ticket, order).await {
            Answer::Failed(error) => error.message,
            other => panic!("{order:?}: {other:?}"),
        }
    }

    /// Moves the clock on, in steps that nobody oversleeps, until the node has given everything back.
    async fn until_given_back(&self) -> Duration {
        let from = self.clock.monotonic();
        while !self.host.log.lock().expect("no panic").iter().any(|line| line == "abandon") {
            for _turn in 0..20 {
                tokio::task::yield_now().await;
            }
            self.clock.advance(Duration::from_millis(100));
        }
        self.clock.monotonic() - from
    }
}

#[tokio::test]
async fn each_order_is_carried_out_once_however_often_it_comes() {
    let stage = Stage::new();
    let ticket = ticket(3);
    for order in orders(3) {
        let first = stage.ask(&ticket, order).await;
        assert!(!matches!(first, Answer::Failed(_)), "{order:?}: {first:?}");
        let (a, b) = tokio::join!(stage.ask(&ticket, order), stage.ask(&ticket, order));
        assert_eq!((&a, &b), (&first, &first), "{order:?}");
    }
    assert_eq!(stage.host.log().join(", "), "describe, prepare, freeze, capture, thaw, upload");
    // One that was on its way for long.
    assert_eq!(stage.ask(&ticket, Order::Freeze(PAUSE)).await, Answer::Done);
    assert!(!stage.host.is_frozen.load(Ordering::SeqCst));
    stage.desk.abandon(&ticket).await;
    stage.desk.abandon(&ticket).await;
    assert_eq!(stage.host.log(), ["abandon"]);
    assert!(matches!(stage.ask(&ticket, Order::Upload).await, Answer::Uploaded(receipt) if receipt.totals.files == 1));
}

#[tokio::test]
async fn no_order_is_carried_out_out_of_its_turn() {
    let stage = Stage::new();
    let ticket = ticket(3);
    assert!(stage.refusal(&ticket, Order::Freeze(PAUSE)).await.contains("knows nothing of snapshot"));
    stage.begin(&ticket, 2).await;
    for order in [Order::Capture, Order::Thaw, Order::Upload] {
        assert!(stage.refusal(&ticket, order).await.contains("comes before"), "{order:?}");
    }
    stage.begin(&ticket, 3).await;
    assert!(matches!(stage.ask(&ticket, Order::Thaw).await, Answer::Thawed(_)), "allowed whatever came before");
    assert!(stage.refusal(&ticket, Order::Capture).await.contains("too late"));
    assert!(stage.refusal(&ticket, Order::Upload).await.contains("comes before"));
    assert_eq!(stage.host.log().join(", "), "describe, prepare, freeze, thaw");
}

#[tokio::test]
async fn a_frozen_node_that_hears_nothing_lets_writes_go_and_says_so() {
    let stage = Stage::new();
    let ticket = ticket(3);
    for count in [3, 4] {
        stage.begin(&ticket, count).await;
    }
    assert!(stage.host.is_frozen.load(Ordering::SeqCst));
    let took = stage.until_given_back().await;
    assert!((PAUSE..PAUSE + Duration::from_millis(200)).contains(&took), "{took:?}");
    assert!(!stage.host.is_frozen.load(Ordering::SeqCst));
    assert!(stage.refusal(&ticket, Order::Thaw).await.contains("let writes go by itself"));
    assert_eq!(stage.ask(&ticket, Order::Capture).await, Answer::Done, "what was done was done");
    let standing = stage.desk.standing(&ticket.cluster, &ticket.node).await.expect("it was begun");
    assert_eq!((standing.order, standing.epoch), (Some("capture"), 3));
    assert!(standing.over.expect("it is over").contains("by itself"));
}

#[tokio::test]
async fn questions_do_not_make_a_freeze_longer() {
    let stage = Stage::new();
    let ticket = ticket(3);
    *stage.host.stands_at.lock().expect("no panic") = Some("capture");
    stage.begin(&ticket, 3).await;
    let (desk, asked) = (stage.desk.clone(), ticket.clone());
    let asking = tokio::spawn(async move {
        loop {
            match desk.ask(&asked, Order::Capture, Duration::from_millis(50)).await {
                Reply::Running { .. } => {}
                Reply::Ended(answer) => return answer,
            }
        }
    });
    // What the store does in the pause ends within the driver's deadlines; here it is let go when the pause is over.
    for _step in 0..21 {
        for _turn in 0..20 {
            tokio::task::yield_now().await;
        }
        stage.clock.advance(Duration::from_millis(100));
    }
    stage.host.let_go.notify_one();
    stage.until_given_back().await;
    assert!(!stage.host.is_frozen.load(Ordering::SeqCst));
    assert_eq!(asking.await.expect("no panic"), Answer::Done);
    assert!(stage.refusal(&ticket, Order::Thaw).await.contains("by itself"));
}

#[tokio::test]
async fn a_node_whose_coordinator_is_gone_gives_everything_back() {
    for (count, stands_at) in [(1, None), (2, None), (5, None), (1, Some("prepare")), (5, Some("upload"))] {
        let stage = Stage::new();
        let ticket = ticket(3);
        *stage.host.stands_at.lock().expect("no panic") = stands_at;
        stage.begin(&ticket, count).await;
        if stands_at.is_some() {
            let reply = stage.desk.ask(&ticket, orders(3)[count], Duration::ZERO).await;
            assert!(matches!(reply, Reply::Running { .. }), "{reply:?}");
        }
        let took = stage.until_given_back().await;
        assert!((SILENCE_MAX..SILENCE_MAX + Duration::from_millis(300)).contains(&took), "{count} {stands_at:?}: {took:?}");
        assert!(stage.refusal(&ticket, orders(3)[count]).await.contains("was not heard for 60s"));
    }
}

#[tokio::test]
async fn a_long_order_is_asked_for_again_and_keeps_the_session_alive() {
    let stage = Stage::new();
    let ticket = ticket(3);
    *stage.host.stands_at.lock().expect("no panic") = Some("upload");
    stage.begin(&ticket, 5).await;
    for _asked in 0..10 {
        let reply = stage.desk.ask(&ticket, Order::Upload, Duration::ZERO);
        tokio::task::yield_now().await;
        assert!(matches!(reply.await, Reply::Running { .. }));
        for _turn in 0..20 {
            tokio::task::yield_now().await;
        }
        stage.clock.advance(SILENCE_MAX / 2);
    }
    assert_eq!(stage.desk.ask(&ticket, Order::Upload, Duration::ZERO).await, Reply::Running { read_bytes: 7 });
    stage.host.let_go.notify_one();
    assert!(matches!(stage.ask(&ticket, Order::Upload).await, Answer::Uploaded(_)));
    assert_eq!(stage.host.log().join(", "), "describe, prepare, freeze, capture, thaw, upload");
}

#[tokio::test]
async fn an_older_epoch_changes_nothing_and_a_later_one_takes_over_when_all_is_given_back() {
    let stage = Stage::new();
    let (old, new) = (ticket(3), ticket(4));
    stage.begin(&old, 4).await;
    stage.begin(&new, 2).await;
    assert_eq!(stage.host.log().join(", "), "describe, prepare, freeze, capture, abandon, describe, prepare");
    for order in orders(3) {
        assert!(stage.refusal(&old, order).await.contains("epoch 4"), "{order:?}");
    }
    stage.desk.abandon(&old).await;
    assert_eq!(stage.host.log(), Vec::<String>::new());
    stage.begin(&new, 6).await;

    // Of the same epoch, which is how it is where there are no leases: who came first is not disturbed, until it is done.
    let other = Ticket { snapshot: Uuid::from_u128(9), ..new.clone() };
    assert!(stage.refusal(&other, Order::Describe(4)).await.contains("is being captured for snapshot"));
    stage.desk.abandon(&new).await;
    stage.begin(&other, 1).await;

    // The host was restarted.
    let restarted = Desk::new(Arc::new(Hosted(stage.host.clone())), Arc::new(stage.clock.clone()));
    let reply = restarted.ask(&old, Order::Describe(3), FOR_EVER).await;
    assert_eq!(reply, Reply::Ended(Answer::Failed(NodeError::new(NodeErrorKind::Refused, "an older epoch"))));
    assert!(matches!(restarted.ask(&other, Order::Thaw, FOR_EVER).await, Reply::Ended(Answer::Failed(_))));
}

#[tokio::test]
async fn what_failed_ends_the_turn_and_an_agent_that_stops_gives_everything_back() {
    let stage = Stage::new();
    let ticket = ticket(3);
    *stage.host.fails_at.lock().expect("no panic") = Some("freeze");
    stage.begin(&ticket, 2).await;
    assert_eq!(stage.refusal(&ticket, Order::Freeze(PAUSE)).await, "as wished");
    assert!(stage.refusal(&ticket, Order::Capture).await.contains("comes before"));
    stage.desk.close().await;
    assert_eq!(stage.host.log().join(", "), "describe, prepare, freeze, abandon");
    assert!(!stage.host.is_frozen.load(Ordering::SeqCst));
    assert!(stage.refusal(&ticket, Order::Thaw).await.contains("its agent was stopped"));
}

/// A network that loses every `loses`th request or its answer, and brings every third one twice.
#[derive(Debug)]
struct Lossy {
    desk: Arc<Desk>,
    count: AtomicU64,
    loses: u64,
}

#[async_trait]
impl Courier for Lossy {
    async fn ask(&self, ticket: &Ticket, order: Order, wait: Duration, _: Duration) -> Result<Reply, CourierError> {
        let count = self.count.fetch_add(1, Ordering::SeqCst);
        let lost = || CourierError::Unreachable("lost".to_owned());
        if count.is_multiple_of(self.loses * 2) {
            return Err(lost());
        }
        let reply = self.desk.ask(ticket, order, wait.min(Duration::from_millis(20))).await;
        if count.is_multiple_of(3) {
            let again = self.desk.ask(ticket, order, wait.min(Duration::from_millis(20))).await;
            assert!(matches!(again, Reply::Running { .. }) || again == reply || matches!(reply, Reply::Running { .. }));
        }
        if count.is_multiple_of(self.loses) { Err(lost()) } else { Ok(reply) }
    }

    async fn abandon(&self, ticket: &Ticket, _: Duration) -> Result<(), CourierError> {
        self.desk.abandon(ticket).await;
        if self.count.fetch_add(1, Ordering::SeqCst).is_multiple_of(self.loses) {
            return Err(CourierError::Unreachable("lost".to_owned()));
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_remote_node_is_as_good_as_its_host_over_a_network_that_loses_and_repeats() {
    for loses in [2, 3, 5, 100] {
        let host = Arc::new(Host::default());
        let clock = Arc::new(SystemClock::default());
        let desk = Arc::new(Desk::new(Arc::new(Hosted(host.clone())), clock.clone()));
        let courier = Arc::new(Lossy { desk, count: AtomicU64::new(0), loses });
        let Ticket { repository, cluster, node, snapshot, .. } = ticket(3);
        let mut remote = RemoteNode::new(courier, clock, repository, cluster, node, snapshot);
        assert_eq!(remote.describe(3).await.expect("describes").address, "epoch 3");
        remote.prepare(PAUSE, Duration::from_secs(300)).await.expect("prepares");
        remote.freeze(PAUSE).await.expect("freezes");
        remote.capture().await.expect("captures");
        remote.thaw().await.expect("thaws");
        assert_eq!(remote.upload().await.expect("uploads").checked, ["rdb-crc64"]);
        remote.abandon().await;
        let log = host.log();
        assert_eq!(log.join(", "), "describe, prepare, freeze, capture, thaw, upload, abandon", "loses {loses}");
        assert_eq!(log.iter().collect::<BTreeSet<_>>().len(), log.len());
    }
}

#[tokio::test]
async fn a_node_that_waits_for_the_others_hears_the_heartbeat_and_a_freeze_after_a_silence_is_refused() {
    let stage = Stage::new();
    let pass = async |seconds: u64| {
        for _second in 0..seconds {
            for _turn in 0..20 {
                tokio::task::yield_now().await;
            }
            stage.clock.advance(Duration::from_secs(1));
        }
    };
    let courier = Arc::new(Lossy { desk: stage.desk.clone(), count: AtomicU64::new(1), loses: u64::MAX / 2 });
    let Ticket { repository, cluster, node, snapshot, .. } = ticket(3);
    let mut remote = RemoteNode::new(courier, Arc::new(stage.clock.clone()), repository, cluster, node, snapshot);
    remote.describe(3).await.expect("describes");
    remote.prepare(PAUSE, Duration::from_secs(300)).await.expect("prepares");
    pass(5 * SILENCE_MAX.as_secs()).await;
    remote.freeze(PAUSE).await.expect("freezes");
    remote.thaw().await.expect("thaws");
    drop(remote);
    stage.until_given_back().await;
    assert_eq!(stage.host.log().join(", "), "describe, prepare, freeze, thaw, abandon");

    let ticket = ticket(4);
    stage.begin(&ticket, 2).await;
    pass(30).await;
    assert!(stage.refusal(&ticket, Order::Freeze(PAUSE)).await.contains("after a silence of"));
    assert!(!stage.host.is_frozen.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_connection_that_hangs_is_given_up_for_another() {
    /// Nothing comes of the first two requests of each order.
    #[derive(Debug)]
    struct Hanging {
        stage: Arc<Desk>,
        clock: ManualClock,
        asked: Mutex<HashMap<&'static str, u32>>,
    }
    #[async_trait]
    impl Courier for Hanging {
        async fn ask(&self, ticket: &Ticket, order: Order, wait: Duration, limit: Duration) -> Result<Reply, CourierError> {
            let count = {
                let mut asked = self.asked.lock().expect("no panic");
                let count = asked.entry(order.verb()).or_default();
                *count += 1;
                *count
            };
            if count <= 2 && !matches!(order, Order::Describe(_)) {
                self.clock.sleep(limit).await;
                return Err(CourierError::Unreachable("hangs".to_owned()));
            }
            Ok(self.stage.ask(ticket, order, wait).await)
        }
        async fn abandon(&self, ticket: &Ticket, _: Duration) -> Result<(), CourierError> {
            self.stage.abandon(ticket).await;
            Ok(())
        }
    }
    let stage = Stage::new();
    let moving = stage.clock.clone();
    let moved = tokio::spawn(async move {
        loop {
            for _turn in 0..20 {
                tokio::task::yield_now().await;
            }
            moving.advance(Duration::from_millis(10));
        }
    });
    let courier = Hanging { stage: stage.desk.clone(), clock: stage.clock.clone(), asked: Mutex::default() };
    let Ticket { repository, cluster, node, snapshot, .. } = ticket(3);
    let mut remote = RemoteNode::new(Arc::new(courier), Arc::new(stage.clock.clone()), repository, cluster, node, snapshot);
    remote.describe(3).await.expect("describes");
    for (order, outcome) in [("freeze", remote.freeze(PAUSE).await.err()), ("upload", remote.upload().await.map(drop).err())] {
        let outcome = outcome.expect("out of its turn");
        assert!(outcome.message.contains("comes before"), "{order}: {outcome}: it was not asked again");
    }
    moved.abort();
}

#[tokio::test]
async fn a_remote_node_that_is_away_is_told_apart_by_when() {
    #[derive(Debug)]
    struct Away;
    #[async_trait]
    impl Courier for Away {
        async fn ask(&self, _: &Ticket, _: Order, _: Duration, _: Duration) -> Result<Reply, CourierError> {
            Err(CourierError::Unreachable("nobody there".to_owned()))
        }
        async fn abandon(&self, _: &Ticket, _: Duration) -> Result<(), CourierError> {
            Err(CourierError::Unreachable("nobody there".to_owned()))
        }
    }
    let clock = ManualClock::at(0);
    let moving = clock.clone();
    let moved = tokio::spawn(async move {
        loop {
            tokio::task::yield_now().await;
            moving.advance(Duration::from_millis(50));
        }
    });
    let Ticket { repository, cluster, node, snapshot, .. } = ticket(3);
    let mut remote = RemoteNode::new(Arc::new(Away), Arc::new(clock), repository, cluster, node, snapshot);
    let kinds = [
        remote.describe(3).await.map(drop).expect_err("away").kind,
        remote.freeze(PAUSE).await.expect_err("away").kind,
        remote.thaw().await.map(drop).expect_err("away").kind,
        remote.upload().await.map(drop).expect_err("away").kind,
    ];
    assert_eq!(kinds, [NodeErrorKind::Unreachable, NodeErrorKind::Void, NodeErrorKind::Void, NodeErrorKind::Broken]);
    remote.abandon().await;
    moved.abort();
}
