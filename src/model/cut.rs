//! The coordinated cut as a pure state machine: events in, requests out, and at the end a verdict.
//!
//! How it works: freeze all → when *all* acknowledged, in less than half of the pause, capture all → when all
//! acknowledged, thaw all → when all answered that their freeze held, the cut is good. Anything else is void: every node
//! is thawed, and nothing is captured twice.
//!
//! **Invariants.** No node is asked to capture before every node acknowledged its freeze. No node is asked to thaw in a
//! good cut before every node acknowledged its capture. A verdict of good implies an instant at which all nodes were
//! frozen, and that each capture lies between that node's freeze and thaw. Every node that was asked to freeze is asked
//! to thaw, whatever happens. After the verdict nothing more is asked.

use std::time::Duration;

/// Something that happened to one node or to time, at `at` on the coordinator's monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutEvent {
    /// The node acknowledged its freeze.
    Frozen,
    /// The node's capture began.
    Captured,
    /// The node thawed, and its freeze held until then.
    Thawed,
    /// The node refused, broke, did not answer in time, or says that its freeze did not hold.
    Failed(String),
}

/// What the coordinator is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutRequest {
    /// Ask every node to freeze.
    FreezeAll,
    /// Ask every node to capture.
    CaptureAll,
    /// Ask every node to thaw, those too that never answered.
    ThawAll,
    /// Nothing more will be asked.
    Finish(CutVerdict),
}

/// How a cut ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutVerdict {
    /// All nodes show one instant.
    Good(CutTimes),
    /// They may not; why, and which node (by number) where it was one.
    Void {
        /// The node, where one is to blame.
        node: Option<usize>,
        /// In words.
        reason: String,
    },
}

/// Durations of a good cut, as the coordinator saw them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutTimes {
    /// From the first freeze sent to the last thaw answered.
    pub pause: Duration,
    /// From the first capture sent to the last one acknowledged.
    pub capture: Duration,
    /// Between the first and the last acknowledged capture.
    pub skew: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Freezing,
    Capturing,
    Thawing,
    Done,
}

#[derive(Debug, Clone, Copy, Default)]
struct NodeTimes {
    frozen: Option<Duration>,
    captured: Option<Duration>,
    /// Answered the thaw, well or badly.
    has_answered: bool,
}

/// One cut over a fixed number of nodes.
#[derive(Debug, Clone)]
pub struct Cut {
    pause: Duration,
    phase: Phase,
    nodes: Vec<NodeTimes>,
    /// When the first freeze was sent: every node's own deadline counts from its own later one, so this is the safe side.
    started: Duration,
    capture_started: Duration,
    failure: Option<(Option<usize>, String)>,
}

impl Cut {
    /// Begins a cut of `nodes` nodes that may be frozen for `pause` each.
    pub fn begin(nodes: usize, pause: Duration, at: Duration) -> (Self, CutRequest) {
        let mut cut = Self {
            pause,
            phase: Phase::Freezing,
            nodes: vec![NodeTimes::default(); nodes],
            started: at,
            capture_started: at,
            failure: None,
        };
        if nodes == 0 {
            cut.phase = Phase::Done;
            return (cut, CutRequest::Finish(CutVerdict::Void { node: None, reason: "there are no nodes".to_owned() }));
        }
        (cut, CutRequest::FreezeAll)
    }

    /// All freezes must be acknowledged by then: half of the pause is left for capture and thaw.
    pub fn freeze_deadline(&self) -> Duration {
        self.started + self.pause / 2
    }

    /// All thaws must be answered by then: later, the first node may have thawed by itself.
    pub fn deadline(&self) -> Duration {
        self.started + self.pause
    }

    /// When [`Cut::tick`] wants to be called at the latest; `None` once nothing is waited for.
    pub fn next_deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Freezing => Some(self.freeze_deadline()),
            Phase::Capturing | Phase::Thawing => Some(self.deadline()),
            Phase::Done => None,
        }
    }

    /// The event that a plain acknowledgement means now.
    pub fn acknowledgement(&self) -> CutEvent {
        match self.phase {
            Phase::Freezing => CutEvent::Frozen,
            Phase::Capturing => CutEvent::Captured,
            // Only a late answer can come here: a thaw is answered with its proof.
            Phase::Thawing | Phase::Done => CutEvent::Captured,
        }
    }

    /// Node number `node` reported `event`. Returns what to do next, if anything. Late and repeated events are harmless.
    pub fn handle(&mut self, node: usize, event: CutEvent, at: Duration) -> Option<CutRequest> {
        if self.phase == Phase::Done || node >= self.nodes.len() {
            return None;
        }
        if let Some(late) = self.overdue(at) {
            self.fail(None, late);
        }
        match (event, self.phase) {
            (CutEvent::Failed(reason), Phase::Thawing) => {
                self.nodes[node].has_answered = true;
                self.fail(Some(node), reason);
            }
            (CutEvent::Failed(reason), _) => self.fail(Some(node), reason),
            (CutEvent::Frozen, Phase::Freezing) => self.nodes[node].frozen = Some(at),
            (CutEvent::Captured, Phase::Capturing) => self.nodes[node].captured = Some(at),
            (CutEvent::Thawed, Phase::Thawing) => self.nodes[node].has_answered = true,
            // An answer to an earlier request that was given up meanwhile.
            (CutEvent::Frozen | CutEvent::Captured | CutEvent::Thawed, _) => {}
        }
        self.advance(at)
    }

    /// Time passed and nothing else happened.
    pub fn tick(&mut self, at: Duration) -> Option<CutRequest> {
        if self.phase == Phase::Done {
            return None;
        }
        if let Some(late) = self.overdue(at) {
            self.fail(None, late);
            if self.phase == Phase::Thawing {
                // Nobody is waited for any longer: their own deadlines have thawed them.
                self.nodes.iter_mut().for_each(|node| node.has_answered = true);
            }
        }
        self.advance(at)
    }

    fn overdue(&self, at: Duration) -> Option<String> {
        let silent = |is_missing: fn(&NodeTimes) -> bool| self.nodes.iter().filter(|node| is_missing(node)).count();
        match self.phase {
            Phase::Freezing if at >= self.freeze_deadline() => Some(format!(
                "{} of {} nodes did not acknowledge the freeze within {:?}, half of the pause",
                silent(|node| node.frozen.is_none()),
                self.nodes.len(),
                self.pause / 2
            )),
            Phase::Capturing if at >= self.deadline() => Some(format!(
                "{} of {} captures had not begun when the pause of {:?} was over",
                silent(|node| node.captured.is_none()),
                self.nodes.len(),
                self.pause
            )),
            Phase::Thawing if at >= self.deadline() => Some(format!(
                "{} of {} nodes had not answered the thaw when the pause of {:?} was over",
                silent(|node| !node.has_answered),
                self.nodes.len(),
                self.pause
            )),
            _ => None,
        }
    }

    /// The first failure is the one that is told.
    fn fail(&mut self, node: Option<usize>, reason: String) {
        self.failure.get_or_insert((node, reason));
    }

    fn advance(&mut self, at: Duration) -> Option<CutRequest> {
        match self.phase {
            Phase::Freezing | Phase::Capturing if self.failure.is_some() => {
                self.phase = Phase::Thawing;
                Some(CutRequest::ThawAll)
            }
            Phase::Freezing if self.nodes.iter().all(|node| node.frozen.is_some()) => {
                self.phase = Phase::Capturing;
                self.capture_started = at;
                Some(CutRequest::CaptureAll)
            }
            Phase::Capturing if self.nodes.iter().all(|node| node.captured.is_some()) => {
                self.phase = Phase::Thawing;
                Some(CutRequest::ThawAll)
            }
            Phase::Thawing if self.nodes.iter().all(|node| node.has_answered) => {
                self.phase = Phase::Done;
                Some(CutRequest::Finish(self.verdict(at)))
            }
            _ => None,
        }
    }

    fn verdict(&self, at: Duration) -> CutVerdict {
        if let Some((node, reason)) = &self.failure {
            return CutVerdict::Void { node: *node, reason: reason.clone() };
        }
        let captured = || self.nodes.iter().filter_map(|node| node.captured);
        let (first, last) = (captured().min().unwrap_or(at), captured().max().unwrap_or(at));
        CutVerdict::Good(CutTimes {
            pause: at.saturating_sub(self.started),
            capture: last.saturating_sub(self.capture_started),
            skew: last.saturating_sub(first),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAUSE: Duration = Duration::from_millis(1000);

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn a_cut_without_trouble_is_good_and_says_how_long() {
        let (mut cut, request) = Cut::begin(2, PAUSE, ms(0));
        assert_eq!(request, CutRequest::FreezeAll);
        assert_eq!(cut.handle(0, CutEvent::Frozen, ms(1)), None);
        assert_eq!(cut.handle(1, CutEvent::Frozen, ms(4)), Some(CutRequest::CaptureAll));
        assert_eq!(cut.handle(1, CutEvent::Captured, ms(9)), None);
        assert_eq!(cut.handle(0, CutEvent::Captured, ms(12)), Some(CutRequest::ThawAll));
        assert_eq!(cut.handle(0, CutEvent::Thawed, ms(13)), None);
        let times = CutTimes { pause: ms(15), capture: ms(8), skew: ms(3) };
        assert_eq!(cut.handle(1, CutEvent::Thawed, ms(15)), Some(CutRequest::Finish(CutVerdict::Good(times))));
    }

    #[test]
    fn a_freeze_that_takes_half_of_the_pause_voids_the_cut() {
        let (mut cut, _) = Cut::begin(2, PAUSE, ms(0));
        assert_eq!(cut.handle(0, CutEvent::Frozen, ms(1)), None);
        assert_eq!(cut.handle(1, CutEvent::Frozen, ms(500)), Some(CutRequest::ThawAll));
        cut.handle(0, CutEvent::Thawed, ms(501));
        let end = cut.handle(1, CutEvent::Thawed, ms(502));
        assert!(matches!(end, Some(CutRequest::Finish(CutVerdict::Void { .. }))), "{end:?}");
    }

    #[test]
    fn a_node_that_says_its_freeze_broke_voids_the_cut() {
        let (mut cut, _) = Cut::begin(1, PAUSE, ms(0));
        cut.handle(0, CutEvent::Frozen, ms(1));
        cut.handle(0, CutEvent::Captured, ms(2));
        let end = cut.handle(0, CutEvent::Failed("written to".to_owned()), ms(3));
        assert_eq!(end, Some(CutRequest::Finish(CutVerdict::Void { node: Some(0), reason: "written to".to_owned() })));
    }

    #[test]
    fn a_silent_node_ends_the_cut_at_the_deadline() {
        let (mut cut, _) = Cut::begin(1, PAUSE, ms(0));
        assert_eq!(cut.tick(ms(499)), None);
        assert_eq!(cut.tick(ms(500)), Some(CutRequest::ThawAll));
        assert_eq!(cut.tick(ms(999)), None);
        assert!(matches!(cut.tick(ms(1000)), Some(CutRequest::Finish(CutVerdict::Void { .. }))));
        assert_eq!(cut.tick(ms(2000)), None);
    }

    /// A simulated node: a frozen interval on the true time line, ended by thaw, by its own deadline, or by a stranger.
    #[derive(Debug, Clone, Default)]
    struct SimulatedNode {
        froze: Option<u64>,
        captured: Option<u64>,
        thawed: Option<u64>,
        asked_to_thaw: bool,
    }

    /// Delays per node and step, lost answers, crashes and strangers, all drawn by proptest: the seed is in its report.
    #[derive(Debug, Clone)]
    struct Trouble {
        request_ms: [u64; 3],
        answer_ms: [u64; 3],
        lost: Option<usize>,
        dies_at: Option<u64>,
        stranger_thaws_at: Option<u64>,
    }

    fn trouble() -> impl Strategy<Value = Trouble> {
        let delay = || prop_oneof![4 => 0u64..40, 1 => 0u64..1500];
        let delays = || [delay(), delay(), delay()];
        (
            delays(),
            delays(),
            proptest::option::weighted(0.1, 0usize..3),
            proptest::option::weighted(0.1, 0u64..1500),
            proptest::option::weighted(0.1, 0u64..1500),
        )
            .prop_map(|(request_ms, answer_ms, lost, dies_at, stranger_thaws_at)| Trouble {
                request_ms,
                answer_ms,
                lost,
                dies_at,
                stranger_thaws_at,
            })
    }

    /// Runs one cut over simulated nodes and returns the verdict with what truly happened.
    fn simulate(troubles: &[Trouble]) -> (CutVerdict, Vec<SimulatedNode>, bool) {
        let pause = PAUSE.as_millis() as u64;
        let mut nodes = vec![SimulatedNode::default(); troubles.len()];
        let (mut cut, request) = Cut::begin(nodes.len(), PAUSE, ms(0));
        // (time, node, step, is answer, event)
        let mut queue: Vec<(u64, usize, usize, Option<CutEvent>)> = Vec::new();
        let (mut now, mut requests, mut captured_early) = (0, vec![request], false);
        loop {
            while let Some(request) = requests.pop() {
                let step = match request {
                    CutRequest::FreezeAll => 0,
                    CutRequest::CaptureAll => {
                        captured_early |= nodes.iter().any(|node| node.froze.is_none());
                        1
                    }
                    CutRequest::ThawAll => {
                        nodes.iter_mut().for_each(|node| node.asked_to_thaw = true);
                        2
                    }
                    CutRequest::Finish(verdict) => return (verdict, nodes, captured_early),
                };
                queue.extend(
                    troubles.iter().enumerate().map(|(node, trouble)| (now + trouble.request_ms[step], node, step, None)),
                );
            }
            queue.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
            let deadline = cut.next_deadline().map_or(u64::MAX, |deadline| deadline.as_millis() as u64);
            if queue.last().is_none_or(|(at, ..)| *at >= deadline) {
                now = deadline;
                requests.extend(cut.tick(ms(now)));
                continue;
            }
            let (at, node, step, answer) = queue.pop().expect("not empty");
            now = at;
            if let Some(event) = answer {
                requests.extend(cut.handle(node, event, ms(now)));
                continue;
            }
            let (trouble, state) = (&troubles[node], &mut nodes[node]);
            if trouble.dies_at.is_some_and(|death| death <= now) {
                continue;
            }
            // What ended the freeze before this request came: a stranger, or the node's own deadline.
            if let Some(froze) = state.froze {
                let own = froze + pause;
                let stranger = trouble.stranger_thaws_at.filter(|time| *time >= froze).unwrap_or(u64::MAX);
                let end = own.min(stranger);
                if end <= now && state.thawed.is_none() {
                    state.thawed = Some(end);
                }
            }
            let event = match step {
                0 => {
                    state.froze = Some(now);
                    CutEvent::Frozen
                }
                1 => {
                    state.captured = Some(now);
                    CutEvent::Captured
                }
                // The driver's own check: it knows whether its freeze held until this thaw.
                _ if state.froze.is_none() => CutEvent::Failed("was not frozen".to_owned()),
                _ if state.thawed.is_some() => CutEvent::Failed("thawed before".to_owned()),
                _ => {
                    state.thawed = Some(now);
                    CutEvent::Thawed
                }
            };
            if trouble.lost != Some(step) {
                queue.push((now + trouble.answer_ms[step], node, step, Some(event)));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn a_good_cut_has_one_instant_at_which_all_nodes_were_frozen(troubles in proptest::collection::vec(trouble(), 1..6)) {
            let (verdict, nodes, captured_early) = simulate(&troubles);
            prop_assert!(!captured_early, "a node was captured before all were frozen");
            prop_assert!(nodes.iter().all(|node| node.asked_to_thaw), "a node was never asked to thaw");
            if let CutVerdict::Good(times) = verdict {
                let last_froze = nodes.iter().map(|node| node.froze.expect("frozen")).max().expect("some");
                let first_thawed = nodes.iter().map(|node| node.thawed.expect("thawed")).min().expect("some");
                prop_assert!(last_froze <= first_thawed);
                for node in &nodes {
                    let captured = node.captured.expect("captured");
                    prop_assert!(node.froze.expect("frozen") <= captured && captured <= node.thawed.expect("thawed"));
                    prop_assert!(last_froze <= captured && captured <= first_thawed);
                }
                prop_assert!(times.pause <= PAUSE);
            }
        }
    }

    #[test]
    fn the_simulation_does_see_good_and_void_cuts() {
        let calm = Trouble { request_ms: [1, 2, 3], answer_ms: [1, 1, 1], lost: None, dies_at: None, stranger_thaws_at: None };
        assert!(matches!(simulate(&vec![calm.clone(); 3]).0, CutVerdict::Good(_)));
        for broken in [
            Trouble { lost: Some(0), ..calm.clone() },
            Trouble { lost: Some(2), ..calm.clone() },
            Trouble { dies_at: Some(3), ..calm.clone() },
            Trouble { stranger_thaws_at: Some(3), ..calm.clone() },
            Trouble { request_ms: [600, 1, 1], ..calm.clone() },
        ] {
            assert!(matches!(simulate(&[calm.clone(), broken.clone()]).0, CutVerdict::Void { .. }), "{broken:?}");
        }
    }
}
