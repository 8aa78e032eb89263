//! A repository, opened: its descriptor, its keys, and whole sealed objects in and out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::key_box::{self, KeyBox, KeyBoxEntry, Secret};
use super::reader::twice;
use super::recent::Recent;
use super::seal::{self, MANIFEST_BYTES_MAX, MasterKey, SealType, Sealer};
use super::writer::Writer;
use super::{RepoError, layout};
use crate::base::SingleFlight;
use crate::model::extent::{Segment, SegmentRun};
use crate::model::ids::{BlockId, RepositoryId};
use crate::model::manifest::{ClusterManifest, FORMAT_VERSION, NodeManifest, TreePage};
use crate::model::names::ClusterName;
use crate::object::{Capabilities, ObjectError, ObjectStore, ObjectVersion, PutMode, list_all};

const FORMAT_NAME: &str = "tintype repository";
/// Nobody needs more key boxes; a listing of more is somebody's mischief.
const KEY_BOXES_MAX: usize = 1000;
/// Largest descriptor or key box that is read.
const SMALL_OBJECT_BYTES_MAX: usize = 64 * 1024;
/// Manifests and pages kept in memory: a few large nodes' worth, small beside the mount's own limit of 64 MiB.
const RECENT_BYTES: usize = 8 * 1024 * 1024;

/// Whether blocks are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Encryption {
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    #[serde(rename = "none")]
    None,
}

/// The one object that makes a place a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    format: String,
    version: u32,
    /// Drawn once; part of the additional data of every seal.
    pub repository: RepositoryId,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// Decided at `init`, for good.
    pub encryption: Encryption,
    /// What the object store was seen to do.
    pub capabilities: Capabilities,
}

/// A repository.
pub struct Repository {
    store: Arc<dyn ObjectStore>,
    descriptor: Descriptor,
    /// Who claims leases and announces snapshots here.
    pub(super) writer: Writer,
    master: Option<MasterKey>,
    sealers: Mutex<HashMap<String, Arc<Sealer>>>,
    pub(super) manifests: Recent<String, ClusterManifest>,
    pub(super) nodes: Recent<String, NodeManifest>,
    pub(super) trees: Recent<BlockId, TreePage>,
    pub(super) runs: Recent<(BlockId, u32), SegmentRun>,
    /// Table pages that many small files share.
    pub(super) tables: Recent<BlockId, Vec<Segment>>,
    pub(super) loading_tables: SingleFlight<BlockId, Result<Arc<Vec<Segment>>, RepoError>>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("location", &self.location()).finish_non_exhaustive()
    }
}

impl Repository {
    /// Makes a repository in an empty place. `secret` absent: without encryption, a deliberate choice of the caller.
    ///
    /// [`RepoError::Conflict`] when there is one already or the place holds something else. The descriptor is
    /// written last: an interrupted `init` leaves no repository and may be repeated.
    pub async fn init(
        store: Arc<dyn ObjectStore>,
        secret: Option<&Secret>,
        capabilities: Capabilities,
        now_us: i64,
    ) -> Result<Self, RepoError> {
        let location = store.location();
        match store.head(layout::DESCRIPTOR).await {
            Ok(_) => return Err(RepoError::Conflict { what: location, reason: "there is a repository already".to_owned() }),
            Err(ObjectError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let page = store.list("", None, 20).await?;
        if let Some(other) = page.objects.iter().find(|object| !object.key.starts_with(layout::KEY_BOXES)) {
            return Err(RepoError::Conflict {
                what: location,
                reason: format!("the place is not empty: it holds {}", other.key),
            });
        }
        let repository = Uuid::new_v4();
        let master = match secret {
            None => None,
            Some(secret) => {
                let mut master = Zeroizing::new([0u8; 32]);
                seal::random(&mut master[..])?;
                let (key, made) = key_box::make(repository, &master, secret, "made by init", now_us)?;
                store.put(&key, json(&made), PutMode::Create).await?;
                Some(master)
            }
        };
        let encryption = if master.is_some() { Encryption::Aes256Gcm } else { Encryption::None };
        let descriptor = Descriptor {
            format: FORMAT_NAME.to_owned(),
            version: FORMAT_VERSION,
            repository,
            created_at: now_us,
            encryption,
            capabilities,
        };
        match store.put(layout::DESCRIPTOR, json(&descriptor), PutMode::Create).await {
            Err(ObjectError::Conflict { .. }) => {
                Err(RepoError::Conflict { what: location, reason: "somebody else made a repository there just now".to_owned() })
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(Self::with(store, descriptor, master)),
        }
    }

    /// Opens a repository. A passphrase costs about 0.1 s and 64 MiB, by design.
    pub async fn open(store: Arc<dyn ObjectStore>, secret: Option<&Secret>) -> Result<Self, RepoError> {
        let location = store.location();
        let bytes = match small_object(store.as_ref(), layout::DESCRIPTOR).await {
            Err(RepoError::Object(ObjectError::NotFound { .. })) => {
                return Err(RepoError::NotFound { what: format!("a repository at {location}") });
            }
            other => other?,
        };
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let wrong = |reason: String| RepoError::corrupt(layout::DESCRIPTOR, reason);
        // Looked at first: a newer descriptor may have another shape.
        let head: Head = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if head.format != FORMAT_NAME {
            return Err(wrong(format!("it says {:?}, not {FORMAT_NAME:?}", head.format)));
        }
        if head.version > FORMAT_VERSION {
            return Err(RepoError::TooNew {
                object: layout::DESCRIPTOR.to_owned(),
                found: head.version,
                supported: FORMAT_VERSION,
            });
        }
        let descriptor: Descriptor = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        let master = match (descriptor.encryption, secret) {
            (Encryption::None, None) => None,
            (Encryption::None, Some(_)) => {
                let reason = "it is not encrypted, but a passphrase or key file was given; take that out of the configuration if this is the right repository";
                return Err(RepoError::Conflict { what: location, reason: reason.to_owned() });
            }
            (Encryption::Aes256Gcm, None) => return Err(RepoError::NoKey { repository: location }),
            (Encryption::Aes256Gcm, Some(secret)) => Some(unlock(&store, descriptor.repository, secret).await?),
        };
        Ok(Self::with(store, descriptor, master))
    }

    fn with(store: Arc<dyn ObjectStore>, descriptor: Descriptor, master: Option<MasterKey>) -> Self {
        Self {
            store,
            descriptor,
            writer: Writer::this_process(),
            master,
            sealers: Mutex::default(),
            manifests: Recent::new(RECENT_BYTES),
            nodes: Recent::new(RECENT_BYTES),
            trees: Recent::new(RECENT_BYTES),
            runs: Recent::new(RECENT_BYTES),
            tables: Recent::new(RECENT_BYTES),
            loading_tables: SingleFlight::default(),
        }
    }

    /// The same for a process of another host, for tests.
    #[cfg(test)]
    pub(crate) fn seen_from(mut self, host: &str) -> Self {
        self.writer.host = host.to_owned();
        self
    }

    /// As [`ObjectStore::location`].
    pub fn location(&self) -> String {
        self.store.location()
    }

    /// The object store below.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// What was fixed at `init`.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The sealer of a cluster's objects.
    pub(super) fn sealer(&self, cluster: &ClusterName) -> Arc<Sealer> {
        self.scope(cluster.as_str())
    }

    /// The sealer of a scope: a cluster's name, or empty for what belongs to no cluster.
    pub(super) fn scope(&self, scope: &str) -> Arc<Sealer> {
        let mut sealers = self.sealers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        sealers
            .entry(scope.to_owned())
            .or_insert_with(|| Arc::new(Sealer::new(self.descriptor.repository, self.master.as_ref(), scope)))
            .clone()
    }

    /// The key boxes, oldest first.
    pub async fn key_boxes(&self) -> Result<Vec<KeyBoxEntry>, RepoError> {
        let mut entries: Vec<_> = read_boxes(&self.store)
            .await?
            .into_iter()
            .filter_map(|(key, read)| {
                let id = Uuid::try_parse(key.strip_prefix(layout::KEY_BOXES)?.strip_suffix(".json")?).ok()?;
                Some(KeyBoxEntry { id, kind: read.kind, label: read.label, created_at: read.created_at })
            })
            .collect();
        entries.sort_by_key(|entry| (entry.created_at, entry.id));
        Ok(entries)
    }

    /// Adds a box that opens with `secret`, and reads it back before it says so.
    pub async fn add_key(&self, secret: &Secret, label: &str, now_us: i64) -> Result<Uuid, RepoError> {
        let Some(master) = &self.master else {
            return Err(RepoError::Conflict {
                what: self.location(),
                reason: "it is not encrypted, so there is no key to keep".to_owned(),
            });
        };
        let (key, made) = key_box::make(self.descriptor.repository, master, secret, label, now_us)?;
        self.store.put(&key, json(&made), PutMode::Create).await?;
        let stored: KeyBox = parse(&key, &small_object(self.store.as_ref(), &key).await?)?;
        if key_box::open(self.descriptor.repository, &key, &stored, secret)?.as_ref() != Some(master) {
            return Err(RepoError::corrupt(key, "it does not open again after it was written"));
        }
        let id = key.strip_prefix(layout::KEY_BOXES).and_then(|name| name.strip_suffix(".json"));
        Ok(id.and_then(|id| Uuid::try_parse(id).ok()).expect("made of an id just now"))
    }

    /// Removes a box. The last one is refused: nobody could open the repository again.
    pub async fn remove_key(&self, id: Uuid) -> Result<(), RepoError> {
        let boxes = self.key_boxes().await?;
        if !boxes.iter().any(|entry| entry.id == id) {
            return Err(RepoError::NotFound { what: format!("key box {id}") });
        }
        if boxes.len() < 2 {
            return Err(RepoError::Conflict {
                what: format!("key box {id}"),
                reason: "it is the last one: without it the repository can never be opened again".to_owned(),
            });
        }
        Ok(self.store.delete(&layout::key_box(id)).await?)
    }

    /// Seals `value` as JSON and stores it; returns its id and stored length.
    pub(super) async fn put_sealed<T: Serialize + Sync>(
        &self,
        key: &str,
        kind: SealType,
        scope: &str,
        value: &T,
        mode: PutMode,
    ) -> Result<(BlockId, u64), RepoError> {
        let (sealed, id) = self.sealed(key, kind, scope, value)?;
        let length = sealed.len() as u64;
        self.put_verified(key, sealed, mode).await?;
        Ok((id, length))
    }

    /// What is stored under `key`, and its id.
    pub(super) fn sealed<T: Serialize>(
        &self,
        key: &str,
        kind: SealType,
        scope: &str,
        value: &T,
    ) -> Result<(Bytes, BlockId), RepoError> {
        let plain =
            serde_json::to_vec(value).map_err(|error| RepoError::Refused { what: key.to_owned(), reason: error.to_string() })?;
        if plain.len() > MANIFEST_BYTES_MAX {
            return Err(RepoError::Refused { what: key.to_owned(), reason: "it is larger than 64 MiB".to_owned() });
        }
        let sealer = self.scope(scope);
        // A manifest is written once and read often: the level is worth it.
        let sealed = sealer.seal(kind, key.as_bytes(), &plain, Some(3))?;
        Ok((Bytes::from(sealed), sealer.placed_id(kind, key.as_bytes(), &plain)))
    }

    /// Puts an object and makes sure that the store has it: by its own checksum, or by reading it back.
    pub(super) async fn put_verified(&self, key: &str, body: Bytes, mode: PutMode) -> Result<ObjectVersion, RepoError> {
        let receipt = self.store.put(key, body.clone(), mode).await?;
        if !receipt.is_checked_by_store && self.store.get(key, None).await? != body {
            return Err(RepoError::corrupt(key, "the store returned other bytes than were put"));
        }
        Ok(receipt.version)
    }

    /// Opens a sealed JSON object; returns it with its id.
    pub(super) async fn get_sealed<T: DeserializeOwned>(
        &self,
        key: &str,
        kind: SealType,
        scope: &str,
    ) -> Result<(T, BlockId, usize), RepoError> {
        twice(|| async {
            let sealed = self.store.get(key, None).await?;
            let sealer = self.scope(scope);
            let plain = sealer
                .open(kind, key.as_bytes(), &sealed, MANIFEST_BYTES_MAX, None)
                .map_err(|error| RepoError::corrupt(key, error.to_string()))?;
            Ok((parse(key, &plain)?, sealer.placed_id(kind, key.as_bytes(), &plain), plain.len()))
        })
        .await
    }
}

fn json<T: Serialize>(value: &T) -> Bytes {
    let mut text = serde_json::to_vec_pretty(value).expect("plain structures serialize");
    text.push(b'\n');
    Bytes::from(text)
}

fn parse<T: DeserializeOwned>(key: &str, plain: &[u8]) -> Result<T, RepoError> {
    #[derive(Deserialize)]
    struct Head {
        format: Option<u32>,
    }
    // Said before the shape is looked at: "newer" helps, "missing field" does not.
    if let Ok(Head { format: Some(found) }) = serde_json::from_slice::<Head>(plain)
        && found > FORMAT_VERSION
    {
        return Err(RepoError::TooNew { object: key.to_owned(), found, supported: FORMAT_VERSION });
    }
    serde_json::from_slice(plain).map_err(|error| RepoError::corrupt(key, error.to_string()))
}

async fn small_object(store: &dyn ObjectStore, key: &str) -> Result<Bytes, RepoError> {
    let bytes = store.get(key, None).await?;
    if bytes.len() > SMALL_OBJECT_BYTES_MAX {
        return Err(RepoError::corrupt(key, "it is larger than such an object can be"));
    }
    Ok(bytes)
}

async fn read_boxes(store: &Arc<dyn ObjectStore>) -> Result<Vec<(String, KeyBox)>, RepoError> {
    let listed = list_all(store.as_ref(), layout::KEY_BOXES).await?;
    if listed.len() > KEY_BOXES_MAX {
        return Err(RepoError::corrupt(layout::KEY_BOXES, "there are more than 1000 key boxes"));
    }
    let mut boxes = Vec::new();
    for object in listed {
        // One that was removed since the listing, or that is damaged, must not keep the others from opening.
        match small_object(store.as_ref(), &object.key).await.and_then(|bytes| parse(&object.key, &bytes)) {
            Ok(read) => boxes.push((object.key, read)),
            Err(RepoError::Object(error)) if !matches!(error, ObjectError::NotFound { .. }) => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "a key box cannot be read"),
        }
    }
    Ok(boxes)
}

async fn unlock(store: &Arc<dyn ObjectStore>, repository: RepositoryId, secret: &Secret) -> Result<MasterKey, RepoError> {
    let mut damage = None;
    for (key, read) in read_boxes(store).await? {
        match key_box::open(repository, &key, &read, secret) {
            Ok(Some(master)) => return Ok(master),
            Ok(None) => {}
            Err(error) => damage = Some(error),
        }
    }
    Err(damage.unwrap_or_else(|| RepoError::WrongKey { repository: store.location() }))
}
