//! Object storage: named, whole, immutable byte strings, in S3, a local directory or memory.
//!
//! The port is [`ObjectStore`]; `conformance` holds its promises as tests, which every implementation and wrapper passes.
//!
//! **Not here**: what the objects mean (`repo`).

use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub mod breaker;
pub mod conformance;
pub mod faulty;
mod keys;
pub mod local;
pub mod memory;
mod open;
pub mod probe;
pub mod s3;

pub use breaker::Breaker;
pub use keys::{LONGEST_COMPONENT_BYTES, LONGEST_KEY_BYTES, check_key};
pub use open::{create, open};
pub use probe::probe;
pub use s3::{S3Options, ServerEncryption};

/// How a put treats an object that is already there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutMode {
    /// Fails with [`ObjectError::Conflict`] when the key is taken, where the store can tell (see [`Capabilities`]).
    Create,
    /// Replaces whatever is there.
    Replace,
    /// Replaces exactly the version that was read; otherwise [`ObjectError::Conflict`].
    IfMatch(ObjectVersion),
}

/// Opaque version of one stored object, equal only for the same content of the same key (an ETag, for S3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectVersion(pub String);

/// What a listing or a head says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// The whole key.
    pub key: String,
    /// Stored length.
    pub size_bytes: u64,
    /// The store's own time of the put, microseconds since 1970 UTC; 0 where it has none.
    pub modified_us: i64,
    /// The version, where the call delivers one (`head` does, `list` may not).
    pub version: Option<ObjectVersion>,
}

/// One page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectPage {
    /// In ascending byte order of their keys.
    pub objects: Vec<ObjectEntry>,
    /// There is more after the last key of this page.
    pub has_more: bool,
}

/// What `put` learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutReceipt {
    /// The stored version.
    pub version: ObjectVersion,
    /// The store itself compared the body with a checksum of ours (or, for a local directory, fsync returned well).
    /// `false`: whoever needs certainty reads it back.
    pub is_checked_by_store: bool,
}

/// What a store was seen to do when it was probed at `init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// A second `Create` of one key was refused.
    pub refuses_second_create: bool,
    /// An `IfMatch` with a stale version was refused.
    pub refuses_stale_replace: bool,
    /// A put whose body did not fit its checksum was refused.
    pub checks_uploads: bool,
    /// A range came back exactly as asked.
    pub serves_ranges: bool,
}

/// Object storage.
///
/// Promises (each is a test in `conformance`):
/// - a put is whole or absent, also when the writer dies in the middle;
/// - `Create` fails when the key is present (where [`Capabilities::refuses_second_create`]);
/// - a range that the object does not fully cover is an error ([`ObjectError::ShortRange`]), never short bytes;
/// - a listing sees every put that returned before it began, in byte order, each key once;
/// - deleting what is not there is fine;
/// - no call outlives the store's configured operation timeout times its tries.
#[async_trait]
pub trait ObjectStore: Send + Sync + Debug {
    /// For people: `file:///srv/backups`, `s3://bucket/prefix`. Holds no secret.
    fn location(&self) -> String;

    /// The object, or exactly `range` of it (end exclusive, not empty).
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError>;

    /// Stores `body` under `key`.
    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<PutReceipt, ObjectError>;

    /// Size, time and version without the body.
    async fn head(&self, key: &str) -> Result<ObjectEntry, ObjectError>;

    /// Up to `limit` objects whose keys begin with `prefix` and are greater than `start_after`.
    async fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<ObjectPage, ObjectError>;

    /// The distinct next path components below `prefix` (which ends with `/` or is empty) that have objects beneath
    /// them, ascending, without the slash.
    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError>;

    /// Deletes an object. One that is not there is fine.
    async fn delete(&self, key: &str) -> Result<(), ObjectError>;

    /// Puts `body` with a checksum that does not fit it: a store that accepts checks nothing. For the probe.
    /// The default says that the store has no such notion.
    async fn put_with_wrong_checksum(&self, _key: &str, _body: Bytes) -> Result<(), ObjectError> {
        Ok(())
    }

    /// Tells the store what it was seen to do when it was probed: how far its own receipts may be believed.
    /// The default does not care.
    fn assume(&self, _capabilities: &Capabilities) {}
}

/// Every object under `prefix`, in order, page by page.
pub async fn list_all(store: &dyn ObjectStore, prefix: &str) -> Result<Vec<ObjectEntry>, ObjectError> {
    list_after(store, prefix, None).await
}

/// Every object under `prefix` whose key is greater than `start_after`, in order.
pub async fn list_after(
    store: &dyn ObjectStore,
    prefix: &str,
    start_after: Option<&str>,
) -> Result<Vec<ObjectEntry>, ObjectError> {
    let mut all: Vec<ObjectEntry> = Vec::new();
    let mut after = start_after.map(str::to_owned);
    loop {
        let page = store.list(prefix, after.as_deref(), 1000).await?;
        let Some(last) = page.objects.last() else { return Ok(all) };
        // A store that repeats itself must not keep us here for ever.
        if after.as_deref().is_some_and(|previous| last.key.as_str() <= previous) {
            return Err(ObjectError::Invalid {
                key: prefix.to_owned(),
                reason: "the store's listing does not move on".to_owned(),
            });
        }
        after = Some(last.key.clone());
        let has_more = page.has_more;
        all.extend(page.objects);
        if !has_more {
            return Ok(all);
        }
    }
}

/// What can go wrong with an object, by what the caller can do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// There is no such object.
    #[error("{key}: no such object")]
    NotFound {
        /// The key, or the bucket or directory where the key makes no sense without it.
        key: String,
    },
    /// The bucket or the directory of the whole store is not there.
    #[error("{location}: no such bucket or directory")]
    NoStore {
        /// As [`ObjectStore::location`].
        location: String,
    },
    /// Somebody else's object is there, or the version moved on.
    #[error("{key}: is already there or has changed")]
    Conflict {
        /// The key.
        key: String,
    },
    /// The object ended before the range did.
    #[error("{key}: shorter than bytes {start}..{end}")]
    ShortRange {
        /// The key.
        key: String,
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
    },
    /// Not permitted: wrong credentials, missing right.
    #[error("{key}: denied: {reason}")]
    Denied {
        /// The key.
        key: String,
        /// In the store's words.
        reason: String,
    },
    /// The store has no room.
    #[error("{key}: no space left in {location}")]
    NoSpace {
        /// The key.
        key: String,
        /// As [`ObjectStore::location`].
        location: String,
    },
    /// The store is away or overloaded; what was tried was tried as often as allowed.
    #[error("{key}: the object store is unavailable: {reason}")]
    Unavailable {
        /// The key.
        key: String,
        /// In the store's or the network's words.
        reason: String,
    },
    /// No answer in time.
    #[error("{key}: no answer within {limit:?}")]
    DeadlineExceeded {
        /// The key.
        key: String,
        /// The limit that was passed.
        limit: Duration,
    },
    /// The request makes no sense to the store, or its answer none to us.
    #[error("{key}: {reason}")]
    Invalid {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

impl ObjectError {
    /// The same call may succeed when tried later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::DeadlineExceeded { .. })
    }
}
