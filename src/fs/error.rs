//! What can go wrong in the tree, and the one table of what the kernel is told.

use std::time::Duration;

use crate::read::ReadError;
use crate::repo::{ObjectError, RepoError};

/// Why a call on the tree gave nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// There is nothing of that name.
    #[error("no such file or directory")]
    NotFound,
    /// A name was looked up in something that is no directory.
    #[error("not a directory")]
    NotADirectory,
    /// A directory was opened as a file.
    #[error("is a directory")]
    IsADirectory,
    /// The call makes no sense for this inode.
    #[error("not possible for this kind of file")]
    WrongKind,
    /// A handle that was never given, or was released.
    #[error("unknown handle")]
    BadHandle,
    /// An inode that the kernel was never told of, or forgot.
    #[error("unknown inode")]
    Stale,
    /// A component of more than 255 bytes, or a path too long to exist.
    #[error("name too long")]
    NameTooLong,
    /// No extended attribute of that name.
    #[error("no such attribute")]
    NoAttribute,
    /// Something of the cache on a disk was asked for.
    #[error("there is no cache on a disk")]
    NoCache,
    /// The tree is never changed.
    #[error("read-only file system")]
    ReadOnly,
    /// The table of handles is full.
    #[error("too many open files")]
    TooManyOpen,
    /// The call's own deadline.
    #[error("no answer within {limit:?}")]
    DeadlineExceeded {
        /// The limit that was passed.
        limit: Duration,
    },
    /// The work ended without a result: the program is shutting down.
    #[error("the work broke off")]
    BrokenOff,
    /// Content.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Listings, manifests and trees.
    #[error(transparent)]
    Repo(#[from] RepoError),
}

impl FsError {
    /// What the kernel is told: a number of `errno`.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::NotADirectory => libc::ENOTDIR,
            Self::IsADirectory => libc::EISDIR,
            Self::WrongKind => libc::EINVAL,
            Self::BadHandle => libc::EBADF,
            Self::Stale => libc::ESTALE,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::NoAttribute => libc::ENODATA,
            Self::NoCache => libc::EOPNOTSUPP,
            Self::ReadOnly => libc::EROFS,
            Self::TooManyOpen => libc::ENFILE,
            Self::DeadlineExceeded { .. } | Self::Read(ReadError::DeadlineExceeded { .. }) => libc::ETIMEDOUT,
            Self::BrokenOff | Self::Read(ReadError::BrokenOff { .. }) => libc::EIO,
            Self::Read(ReadError::Repo(error)) | Self::Repo(error) => repo_errno(error),
        }
    }

    /// Nothing is wrong with the machine: the caller asked for what is not there or not allowed.
    pub fn is_callers(&self) -> bool {
        !matches!(self, Self::DeadlineExceeded { .. } | Self::BrokenOff | Self::Read(_) | Self::Repo(_))
            && !matches!(self, Self::TooManyOpen)
    }
}

fn repo_errno(error: &RepoError) -> i32 {
    match error {
        // A snapshot or node that was dropped meanwhile.
        RepoError::NotFound { .. } => libc::ENOENT,
        RepoError::WrongKey { .. } | RepoError::NoKey { .. } | RepoError::Object(ObjectError::Denied { .. }) => libc::EACCES,
        RepoError::Object(ObjectError::DeadlineExceeded { .. }) => libc::ETIMEDOUT,
        // An object that a manifest refers to and that is not there is damage, not an absent name.
        RepoError::Object(_)
        | RepoError::Corrupt { .. }
        | RepoError::TooNew { .. }
        | RepoError::Conflict { .. }
        | RepoError::Refused { .. }
        | RepoError::Source { .. } => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_trouble_has_its_number() {
        let key = || "k".to_owned();
        let object = |error| FsError::Repo(RepoError::Object(error));
        let limit = Duration::from_secs(1);
        let cases = [
            (FsError::NotFound, libc::ENOENT),
            (FsError::NoAttribute, libc::ENODATA),
            (FsError::ReadOnly, libc::EROFS),
            (FsError::NoCache, libc::EOPNOTSUPP),
            (FsError::DeadlineExceeded { limit }, libc::ETIMEDOUT),
            (FsError::Read(ReadError::DeadlineExceeded { what: key(), limit }), libc::ETIMEDOUT),
            (object(ObjectError::DeadlineExceeded { key: key(), limit }), libc::ETIMEDOUT),
            (object(ObjectError::Denied { key: key(), reason: key() }), libc::EACCES),
            (object(ObjectError::NotFound { key: key() }), libc::EIO),
            (object(ObjectError::Unavailable { key: key(), reason: key() }), libc::EIO),
            (FsError::Repo(RepoError::corrupt("o", "r")), libc::EIO),
            (FsError::Repo(RepoError::NotFound { what: key() }), libc::ENOENT),
        ];
        for (error, errno) in cases {
            assert_eq!(error.errno(), errno, "{error}");
        }
    }
}
