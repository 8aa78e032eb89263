//! A node that this process reaches itself: `agent::NodeService` on top of a driver and the node's own upload.

use std::time::Duration;

use async_trait::async_trait;

use crate::agent::{NodeError, NodeErrorKind, NodeService, UploadReceipt};
use crate::driver::{DriverError, StoreDriver};
use crate::model::manifest::{CaptureProof, NodeDescription};
use crate::model::names::NodeName;
use crate::node::{NodeCapture, UploadError};

/// One node, its driver, and where it is stored.
#[derive(Debug)]
pub struct LocalNode {
    driver: Box<dyn StoreDriver>,
    capture: NodeCapture,
}

impl LocalNode {
    /// Joins a driver with the place where its node is stored.
    pub fn new(driver: Box<dyn StoreDriver>, capture: NodeCapture) -> Self {
        Self { driver, capture }
    }
}

fn node_error(error: DriverError) -> NodeError {
    let kind = match &error {
        DriverError::Unreachable { .. } | DriverError::DeadlineExceeded { .. } => NodeErrorKind::Unreachable,
        DriverError::Denied { .. } => NodeErrorKind::Denied,
        DriverError::Refused { .. } => NodeErrorKind::Refused,
        DriverError::Void { .. } => NodeErrorKind::Void,
        DriverError::Broken { .. } | DriverError::Corrupt { .. } => NodeErrorKind::Broken,
    };
    NodeError { kind, message: error.to_string() }
}

#[async_trait]
impl NodeService for LocalNode {
    fn name(&self) -> &NodeName {
        &self.capture.node
    }

    async fn describe(&mut self, _epoch: u64) -> Result<NodeDescription, NodeError> {
        self.driver.describe().await.map_err(node_error)
    }

    async fn prepare(&mut self, max_pause: Duration, patience: Duration) -> Result<(), NodeError> {
        self.driver.prepare(max_pause, patience).await.map_err(node_error)
    }

    async fn freeze(&mut self, pause: Duration) -> Result<(), NodeError> {
        self.driver.freeze(pause).await.map(|_| ()).map_err(node_error)
    }

    async fn capture(&mut self) -> Result<(), NodeError> {
        self.driver.capture().await.map(|_| ()).map_err(node_error)
    }

    async fn thaw(&mut self) -> Result<CaptureProof, NodeError> {
        self.driver.thaw().await.map(|receipt| receipt.proof).map_err(node_error)
    }

    async fn upload(&mut self) -> Result<UploadReceipt, NodeError> {
        match self.capture.upload(self.driver.as_mut()).await {
            Ok(stored) => Ok(UploadReceipt {
                manifest: stored.receipt.manifest,
                totals: stored.receipt.totals,
                keys: stored.keys,
                checked: stored.checked,
            }),
            // After the thaw an unreachable node is a broken capture.
            Err(UploadError::Driver(error)) => Err(NodeError { kind: NodeErrorKind::Broken, message: error.to_string() }),
            Err(UploadError::Repository(error)) => {
                Err(NodeError { kind: NodeErrorKind::Repository, message: format!("{}: {error}", self.capture.node) })
            }
        }
    }

    async fn abandon(&mut self) {
        self.driver.abandon().await;
    }
}
