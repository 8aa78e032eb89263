//! A driver of functions: each verb is a closure, so that a test says what a node does in a line.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::{CaptureReceipt, CapturedContent, CapturedEntry, DriverError, FreezeReceipt, StoreDriver, ThawReceipt};
use crate::model::manifest::{CaptureProof, Consistency, FileClass, FileKind, NodeDescription, Ownership};
use crate::model::names::TreePath;

/// A verb without an argument.
pub type Verb<T> = Box<dyn FnMut() -> Result<T, DriverError> + Send>;

/// A node that does what it is told. [`FakeDriver::healthy`] is one that always succeeds; replace what should not.
pub struct FakeDriver {
    /// `describe`.
    pub describe: Verb<NodeDescription>,
    /// `prepare`.
    pub prepare: Verb<()>,
    /// `freeze`; the argument is the pause.
    pub freeze: Box<dyn FnMut(Duration) -> Result<FreezeReceipt, DriverError> + Send>,
    /// `capture`.
    pub capture: Verb<CaptureReceipt>,
    /// `thaw`. What it answers first is remembered and answered again until the next freeze.
    pub thaw: Verb<ThawReceipt>,
    /// `collect`.
    pub collect: Verb<Vec<CapturedEntry>>,
    /// The verbs in the order in which they were called.
    pub calls: Vec<&'static str>,
    frozen: bool,
    captured: bool,
    thawed: Option<Result<ThawReceipt, DriverError>>,
}

impl fmt::Debug for FakeDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeDriver").field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl FakeDriver {
    /// A node of one file, `data`, that holds `content`.
    pub fn healthy(content: &[u8]) -> Self {
        let content = content.to_vec();
        Self {
            describe: Box::new(|| Ok(NodeDescription { store: "fake".to_owned(), ..NodeDescription::default() })),
            prepare: Box::new(|| Ok(())),
            freeze: Box::new(|pause| Ok(FreezeReceipt { deadline: pause, node_time_us: Some(0) })),
            capture: Box::new(|| Ok(CaptureReceipt { offset: Some(1) })),
            thaw: Box::new(|| {
                let checks = vec!["told so".to_owned()];
                Ok(ThawReceipt {
                    proof: CaptureProof {
                        consistent: Consistency::Proved,
                        kind: "fake".to_owned(),
                        checks,
                        fork_us: None,
                        scope: None,
                    },
                })
            }),
            collect: Box::new(move || Ok(vec![literal("data", &content)])),
            calls: Vec::new(),
            frozen: false,
            captured: false,
            thawed: None,
        }
    }
}

/// An entry of a few bytes. A name that is none is an error of the test, and gives the root.
pub fn literal(name: &str, content: &[u8]) -> CapturedEntry {
    CapturedEntry {
        path: TreePath::new(name.as_bytes()).unwrap_or_else(|_| TreePath::root()),
        kind: FileKind::File,
        class: FileClass::Rewritten,
        mode: 0o644,
        owner: Ownership::default(),
        modified_ns: 0,
        block_bytes: 1 << 20,
        content: CapturedContent::Literal(content.to_vec()),
    }
}

fn refused(reason: &str) -> DriverError {
    DriverError::Refused { node: "fake".to_owned(), reason: reason.to_owned() }
}

#[async_trait]
impl StoreDriver for FakeDriver {
    async fn describe(&mut self) -> Result<NodeDescription, DriverError> {
        self.calls.push("describe");
        (self.describe)()
    }

    async fn prepare(&mut self, _max_pause: Duration, _patience: Duration) -> Result<(), DriverError> {
        self.calls.push("prepare");
        (self.prepare)()
    }

    async fn freeze(&mut self, pause: Duration) -> Result<FreezeReceipt, DriverError> {
        self.calls.push("freeze");
        let receipt = (self.freeze)(pause)?;
        (self.frozen, self.captured, self.thawed) = (true, false, None);
        Ok(receipt)
    }

    async fn capture(&mut self) -> Result<CaptureReceipt, DriverError> {
        self.calls.push("capture");
        if !self.frozen {
            return Err(refused("it is not frozen"));
        }
        let receipt = (self.capture)()?;
        self.captured = true;
        Ok(receipt)
    }

    async fn thaw(&mut self) -> Result<ThawReceipt, DriverError> {
        self.calls.push("thaw");
        if !self.frozen {
            return self.thawed.clone().unwrap_or_else(|| Ok(ThawReceipt { proof: CaptureProof::none() }));
        }
        self.frozen = false;
        let outcome = (self.thaw)();
        self.thawed = Some(outcome.clone());
        outcome
    }

    async fn collect(&mut self) -> Result<Vec<CapturedEntry>, DriverError> {
        self.calls.push("collect");
        if !self.captured || !matches!(self.thawed, Some(Ok(_))) {
            return Err(refused("there is no capture to collect"));
        }
        self.captured = false;
        (self.collect)()
    }

    async fn abandon(&mut self) {
        self.calls.push("abandon");
        (self.frozen, self.captured, self.thawed) = (false, false, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_fake_keeps_the_promises_of_the_port() {
        super::super::conformance::all(&mut FakeDriver::healthy(b"content")).await;
    }
}
