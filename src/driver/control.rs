//! What a restore asks of a running store: is it there, is it loaded, save, go.
//!
//! The port is [`StoreControl`]. Stopping and starting by a supervisor's command is not the store's business (`node`).

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

use super::DriverError;
use crate::model::restore_plan::ServerFacts;

/// A store at an address, running or not.
///
/// Promises: `look` changes nothing; "not running" is an answer and not an error, and is given only when nobody listens;
/// after `save` returned everything that was acknowledged before is in the data directory, and nothing is accepted
/// until the store is stopped, `resume` is called or `pause` has passed since it or the last `hold`.
#[async_trait]
pub trait StoreControl: Send + Sync + Debug {
    /// What it says of itself; `None` when nobody listens at its address.
    async fn look(&self) -> Result<Option<ServerFacts>, DriverError>;

    /// Stops writes and puts everything on the disk; they go again by themselves when `pause` has passed since the end of
    /// the save. Until then the caller calls `hold` more often than that.
    async fn save(&self, pause: Duration) -> Result<(), DriverError>;

    /// Stops writes for `pause` from now on.
    async fn hold(&self, pause: Duration) -> Result<(), DriverError>;

    /// Lets writes go again, after a save that was not followed by a stop.
    async fn resume(&self) -> Result<(), DriverError>;

    /// Asks it to end by its own protocol, saving or not, and returns when the connection is gone or nothing came back.
    async fn shut_down(&self, save: bool) -> Result<(), DriverError>;
}
