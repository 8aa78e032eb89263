//! What can go wrong with a restore on this host, by what the caller can do about it.

use std::path::Path;
use std::time::Duration;

use crate::driver::DriverError;
use crate::repo::RepoError;

/// Why a step of a restore did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RestoreError {
    /// Something is as it must not be; nothing was changed.
    #[error("{what}: {reason}")]
    Refused {
        /// The node or path.
        what: String,
        /// Why.
        reason: String,
    },
    /// The file system.
    #[error("{path}: {action}: {reason}")]
    File {
        /// Where.
        path: String,
        /// What was tried.
        action: &'static str,
        /// In the system's words.
        reason: String,
        /// No space or quota is left.
        is_full: bool,
    },
    /// A stop or start command, or the server it should have moved.
    #[error("{node}: {what}: {reason}")]
    Command {
        /// The node.
        node: String,
        /// Which command.
        what: String,
        /// What it said.
        reason: String,
    },
    /// No answer in time.
    #[error("{node}: {what} within {limit:?}")]
    DeadlineExceeded {
        /// The node.
        node: String,
        /// What did not happen.
        what: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The data that was loaded is not what was stored.
    #[error("{node}: {reason}")]
    Wrong {
        /// The node.
        node: String,
        /// What was compared.
        reason: String,
    },
    /// The snapshot cannot be read.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The server.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// Another node failed, or the operator wants to stop; what was placed is kept for the next attempt.
    #[error("it was given up before all files were placed")]
    GivenUp,
    /// A test stopped the restore here, as a crash would.
    #[error("stopped at {step}")]
    Interrupted {
        /// The step that was not taken any more.
        step: String,
    },
}

impl RestoreError {
    /// Something is as it must not be.
    pub fn refused(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), reason: reason.into() }
    }

    /// For `map_err`: what was tried, and where.
    pub(super) fn file<E: Into<std::io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |error| {
            let error: std::io::Error = error.into();
            let is_full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
            Self::File { path: path.display().to_string(), action, reason: error.to_string(), is_full }
        }
    }
}

/// Work that blocks, on a thread for such work.
pub(super) async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| RestoreError::refused(what, error.to_string()))?
}
