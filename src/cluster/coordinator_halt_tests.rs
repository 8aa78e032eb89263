//! The coordinator over nodes that stop for ever, or panic, at each step.

use super::*;
use crate::base::SystemClock;
use crate::object::conformance::EVERYTHING;
use crate::object::memory::MemoryStore;
use std::sync::atomic::{AtomicBool, Ordering};

/// A node that comes as far as one step and then stays there, or panics.
#[derive(Debug)]
struct Halting {
    name: NodeName,
    stops_at: &'static str,
    panics: bool,
    given_back: Arc<AtomicBool>,
}

impl Halting {
    async fn step(&self, step: &str) {
        if step == self.stops_at {
            assert!(!self.panics, "the test wants it so");
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait::async_trait]
impl NodeService for Halting {
    fn name(&self) -> &NodeName {
        &self.name
    }

    async fn describe(&mut self, _: u64) -> Result<NodeDescription, NodeError> {
        self.step("describe").await;
        Ok(NodeDescription::default())
    }

    async fn prepare(&mut self, _max_pause: Duration, _patience: Duration) -> Result<(), NodeError> {
        self.step("prepare").await;
        Ok(())
    }

    async fn freeze(&mut self, _pause: Duration) -> Result<(), NodeError> {
        self.step("freeze").await;
        Ok(())
    }

    async fn capture(&mut self) -> Result<(), NodeError> {
        self.step("capture").await;
        Ok(())
    }

    async fn thaw(&mut self) -> Result<CaptureProof, NodeError> {
        self.step("thaw").await;
        Ok(CaptureProof::none())
    }

    async fn upload(&mut self) -> Result<UploadReceipt, NodeError> {
        self.step("upload").await;
        Err(NodeError { kind: NodeErrorKind::Broken, message: "nothing to store".to_owned() })
    }

    async fn abandon(&mut self) {
        self.given_back.store(true, Ordering::SeqCst);
    }
}

/// Two nodes, the second of which halts; `interrupt` once the phase is reached. What became of it within ten seconds.
async fn halted(stops_at: &'static str, panics: bool, interrupt: Option<SnapshotPhase>) -> SnapshotError {
    let repository = Repository::init(Arc::new(MemoryStore::new()), None, EVERYTHING, 0).await.expect("inits");
    let given_back: Vec<Arc<AtomicBool>> = (0..2).map(|_| Arc::default()).collect();
    let nodes = given_back.iter().enumerate().map(|(index, given_back)| -> Box<dyn NodeService> {
        let name = NodeName::new(format!("node-{index}")).expect("legal");
        let stops_at = if index == 1 { stops_at } else { "" };
        Box::new(Halting { name, stops_at, panics, given_back: given_back.clone() })
    });
    let options = SnapshotOptions {
        uuid: SnapshotId::new_v4(),
        cluster: ClusterName::new("prod").expect("legal"),
        store: "files".to_owned(),
        cut_kind: CutKind::Frozen,
        pause: Duration::from_secs(2),
        patience: Duration::from_secs(300),
        partial: false,
        left_out: Vec::new(),
        adopt: false,
        tags: BTreeMap::new(),
    };
    let (raise, interrupted) = watch::channel(false);
    let on_phase = Box::new(move |phase| {
        if Some(phase) == interrupt {
            raise.send_replace(true);
        }
    });
    let clock = Arc::new(SystemClock::default());
    let coordinator = Coordinator::new(Arc::new(repository), clock, options, nodes.collect(), interrupted, on_phase);
    let outcome = tokio::time::timeout(Duration::from_secs(10), coordinator.run()).await.expect("nobody waits for ever");
    assert!(
        given_back.iter().all(|given_back| given_back.load(Ordering::SeqCst)),
        "{stops_at}: a node was not told to give back"
    );
    outcome.expect_err("it cannot succeed")
}

#[tokio::test]
async fn an_interruption_does_not_wait_for_what_takes_minutes() {
    for (step, phase) in
        [("describe", SnapshotPhase::Preparing), ("prepare", SnapshotPhase::Preparing), ("upload", SnapshotPhase::Storing)]
    {
        let error = halted(step, false, Some(phase)).await;
        assert!(matches!(error, SnapshotError::Interrupted), "{step}: {error}");
    }
}

#[tokio::test]
async fn a_node_that_breaks_does_not_keep_the_others_storing() {
    // The first node fails its upload, the second one would go on for ever.
    let error = halted("upload", false, None).await;
    assert!(matches!(error, SnapshotError::Node { .. }), "{error}");
}

#[tokio::test]
async fn a_node_that_panics_fails_the_snapshot_and_all_give_back() {
    for step in ["describe", "prepare", "freeze", "capture", "thaw", "upload"] {
        let error = halted(step, true, None).await;
        assert!(matches!(error, SnapshotError::Node { .. } | SnapshotError::Void(_)), "{step}: {error}");
    }
}
