//! What can go wrong while file content is read.

use std::time::Duration;

use crate::repo::RepoError;

/// Why a read gave no bytes. Cloned to everybody who waited for the same block.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The source's own words.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The source hung.
    #[error("{what}: no answer within {limit:?}")]
    DeadlineExceeded {
        /// What was read.
        what: String,
        /// The limit that was passed.
        limit: Duration,
    },
    /// The fetch ended without a result: the program is shutting down, or the source panicked.
    #[error("{what}: the fetch broke off")]
    BrokenOff {
        /// What was read.
        what: String,
    },
}
