//! Sealing: plain bytes to stored bytes and back, under the keys of one scope (FORMAT.md sections 3 and 4).
//!
//! **Invariants.** Nothing is returned that was not authenticated for its repository, type and place. Nonces are random;
//! a data key is replaced long before they could meet. A size is bounded before memory is taken for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Mutex;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::Bytes;
use zeroize::Zeroizing;

use super::RepoError;
use crate::base::buffers::Loan;
use crate::model::ids::{BlockId, DataKeyId, RepositoryId};

/// Largest plain length of a manifest, mark, intent or run: what a reader allocates at most.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A data key is replaced after this many seals …
const SEALS_PER_KEY: u64 = 1 << 31;
/// … or this many bytes.
const BYTES_PER_KEY: u64 = 1 << 40;

const MODE_PLAIN: u8 = 0;
const MODE_AES: u8 = 1;
const BODY_RAW: u8 = 0;
const BODY_ZSTD: u8 = 1;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const CHECK_BYTES: usize = 32;
/// Mode, data key's id and nonce.
const HEAD_BYTES: usize = 1 + 16 + NONCE_BYTES;

/// The longest sealed form of so many plain bytes.
pub const fn sealed_bytes_max(plain_bytes: usize) -> usize {
    HEAD_BYTES + 1 + plain_bytes + CHECK_BYTES
}

/// What sealed bytes are. The numbers are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the variants are the rows of the table in FORMAT.md section 4")]
pub enum SealType {
    KeyBox = 1,
    Block = 2,
    TreePage = 3,
    TablePage = 4,
    PackDirectory = 5,
    NodeManifest = 6,
    ClusterManifest = 7,
    Mark = 8,
    Intent = 9,
    Run = 10,
    /// Only for naming: the content id of a whole file.
    Content = 11,
    Lease = 12,
}

/// The master key: 32 bytes that leave no copy behind.
pub type MasterKey = Zeroizing<[u8; 32]>;

/// Why sealed bytes did not open; the caller adds which object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not authentic, for this place in this repository.
    #[error("its seal is broken: the bytes were changed, or belong elsewhere")]
    NotAuthentic,
    /// Stored without encryption in a repository that is encrypted.
    #[error("it is not encrypted, but the repository is")]
    NotEncrypted,
    /// A form of sealing that this program does not know.
    #[error("it is sealed in an unknown form ({0})")]
    UnknownForm(u8),
    /// Does not hold what it says.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Seals and opens within one scope: one cluster, or the runs of a repository.
pub struct Sealer {
    prefix: Vec<u8>,
    scope_key: Zeroizing<[u8; 32]>,
    is_encrypted: bool,
    naming: Mutex<HashMap<u8, Zeroizing<[u8; 32]>>>,
    opened: Mutex<HashMap<DataKeyId, std::sync::Arc<LessSafeKey>>>,
    current: Mutex<Option<CurrentKey>>,
}

struct CurrentKey {
    id: DataKeyId,
    key: std::sync::Arc<LessSafeKey>,
    seals: u64,
    bytes: u64,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("is_encrypted", &self.is_encrypted).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// BLAKE3 in key derivation mode over several parts.
pub fn derive(context: &'static str, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(part);
    }
    Zeroizing::new(*hasher.finalize().as_bytes())
}

/// Fills `bytes` from the system's random source. The source failing is no state to go on in.
pub fn random(bytes: &mut [u8]) -> Result<(), RepoError> {
    getrandom::fill(bytes)
        .map_err(|error| RepoError::Source { what: "the system's random source".to_owned(), reason: error.to_string() })
}

fn aes_key(bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("AES-256 takes 32 bytes"))
}

/// Additional data of one sealed thing.
pub fn additional_data(repository: RepositoryId, kind: SealType, place: &[u8]) -> Vec<u8> {
    let mut data = prefix(repository);
    data.push(kind as u8);
    data.extend_from_slice(place);
    data
}

fn prefix(repository: RepositoryId) -> Vec<u8> {
    let mut data = b"tintype/1".to_vec();
    data.extend_from_slice(repository.as_bytes());
    data
}

/// nonce ‖ ciphertext ‖ tag under a key that is used for nothing else: key boxes.
pub fn wrap(key: &[u8; 32], additional_data: &[u8], plain: &[u8]) -> Result<Vec<u8>, RepoError> {
    let mut nonce = [0u8; NONCE_BYTES];
    random(&mut nonce)?;
    let mut sealed = plain.to_vec();
    aes_key(key)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(additional_data), &mut sealed)
        .expect("a key box is far below the cipher's limit");
    Ok([&nonce[..], &sealed].concat())
}

/// The reverse of [`wrap`]; `None` when the key is not the right one.
pub fn unwrap_box(key: &[u8; 32], additional_data: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    let mut rest = Zeroizing::new(rest.to_vec());
    let length =
        aes_key(key).open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(additional_data), &mut rest).ok()?.len();
    rest.truncate(length);
    Some(rest)
}

impl Sealer {
    /// The sealer of a scope. `master` is `None` in a repository without encryption.
    pub fn new(repository: RepositoryId, master: Option<&MasterKey>, scope: &str) -> Self {
        let zero = [0u8; 32];
        let master_bytes: &[u8] = master.map_or(&zero[..], |key| &key[..]);
        Self {
            prefix: prefix(repository),
            scope_key: derive("tintype 1 scope key", &[master_bytes, scope.as_bytes()]),
            is_encrypted: master.is_some(),
            naming: Mutex::default(),
            opened: Mutex::default(),
            current: Mutex::default(),
        }
    }

    fn additional_data(&self, kind: SealType, place: &[u8]) -> Vec<u8> {
        let mut data = Vec::with_capacity(self.prefix.len() + 1 + place.len());
        data.extend_from_slice(&self.prefix);
        data.push(kind as u8);
        data.extend_from_slice(place);
        data
    }

    fn naming_hasher(&self, kind: SealType) -> blake3::Hasher {
        let mut naming = lock(&self.naming);
        let key =
            naming.entry(kind as u8).or_insert_with(|| derive("tintype 1 naming key", &[&self.scope_key[..], &[kind as u8]]));
        blake3::Hasher::new_keyed(key)
    }

    /// Name of a block: what its plain bytes are called.
    pub fn block_id(&self, plain: &[u8]) -> BlockId {
        BlockId(*self.naming_hasher(SealType::Block).update(plain).finalize().as_bytes())
    }

    /// Name of a page or manifest, bound to its place.
    pub fn placed_id(&self, kind: SealType, place: &[u8], plain: &[u8]) -> BlockId {
        let length = u32::try_from(place.len()).expect("a place is a key or a path");
        let mut hasher = self.naming_hasher(kind);
        hasher.update(&length.to_le_bytes()).update(place).update(plain);
        BlockId(*hasher.finalize().as_bytes())
    }

    /// A hasher for content ids (FORMAT.md section 4).
    pub fn content_hasher(&self) -> blake3::Hasher {
        self.naming_hasher(SealType::Content)
    }

    fn data_key(&self, id: DataKeyId) -> std::sync::Arc<LessSafeKey> {
        let mut opened = lock(&self.opened);
        // Bounded: each snapshot run has a key of its own, and thousands are read at most.
        if opened.len() > 4096 {
            opened.clear();
        }
        opened
            .entry(id)
            .or_insert_with(|| std::sync::Arc::new(aes_key(&derive("tintype 1 data key", &[&self.scope_key[..], &id.0]))))
            .clone()
    }

    /// The key for the next seal; counts it.
    fn writing_key(&self, bytes: u64) -> Result<(DataKeyId, std::sync::Arc<LessSafeKey>), RepoError> {
        let mut current = lock(&self.current);
        if !current.as_ref().is_some_and(|key| key.seals < SEALS_PER_KEY && key.bytes < BYTES_PER_KEY) {
            let mut id = [0u8; 16];
            random(&mut id)?;
            let id = DataKeyId(id);
            *current = Some(CurrentKey { id, key: self.data_key(id), seals: 0, bytes: 0 });
        }
        let key = current.as_mut().expect("set above");
        key.seals += 1;
        key.bytes += bytes;
        Ok((key.id, key.key.clone()))
    }

    /// Compresses (where `level` is given and it pays) and seals.
    pub fn seal(&self, kind: SealType, place: &[u8], plain: &[u8], level: Option<i32>) -> Result<Vec<u8>, RepoError> {
        let mut sealed = Vec::new();
        self.seal_into(kind, place, plain, level, &mut sealed)?;
        Ok(sealed)
    }

    /// As [`Sealer::seal`], into a buffer whose old content goes; [`sealed_bytes_max`] of room are enough.
    pub fn seal_into(
        &self,
        kind: SealType,
        place: &[u8],
        plain: &[u8],
        level: Option<i32>,
        sealed: &mut Vec<u8>,
    ) -> Result<(), RepoError> {
        let additional_data = self.additional_data(kind, place);
        let head = if self.is_encrypted { HEAD_BYTES } else { 1 };
        put_body(plain, level, head, sealed);
        if !self.is_encrypted {
            sealed[0] = MODE_PLAIN;
            let check = plain_check(&additional_data, &sealed[1..]);
            sealed.extend_from_slice(&check);
            return Ok(());
        }
        let (id, key) = self.writing_key(sealed.len() as u64)?;
        let mut nonce = [0u8; NONCE_BYTES];
        random(&mut nonce)?;
        sealed[0] = MODE_AES;
        sealed[1..17].copy_from_slice(&id.0);
        sealed[17..head].copy_from_slice(&nonce);
        let tag = key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(additional_data), &mut sealed[head..])
            .expect("a body is far below the cipher's limit");
        sealed.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens sealed bytes. `plain_max` bounds what is allocated; `plain_exact` is what the referring record says.
    pub fn open(
        &self,
        kind: SealType,
        place: &[u8],
        sealed: &[u8],
        plain_max: usize,
        plain_exact: Option<usize>,
    ) -> Result<Bytes, OpenError> {
        let additional_data = self.additional_data(kind, place);
        let (mode, rest) = sealed.split_first().ok_or(OpenError::Malformed("it is empty"))?;
        match *mode {
            MODE_PLAIN if self.is_encrypted => Err(OpenError::NotEncrypted),
            MODE_PLAIN => {
                let (body, check) = rest.split_last_chunk::<CHECK_BYTES>().ok_or(OpenError::Malformed("it is too short"))?;
                if plain_check(&additional_data, body) != *check {
                    return Err(OpenError::NotAuthentic);
                }
                open_body(body, plain_max, plain_exact)
            }
            // Without a master key there is nothing to open it with, and nothing of ours to open.
            MODE_AES if !self.is_encrypted => Err(OpenError::Malformed("it is encrypted, but the repository is not")),
            MODE_AES => {
                let (id, rest) = rest.split_first_chunk::<16>().ok_or(OpenError::Malformed("it is too short"))?;
                let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(OpenError::Malformed("it is too short"))?;
                let (cipher, tag) =
                    rest.split_at_checked(rest.len().wrapping_sub(TAG_BYTES)).ok_or(OpenError::Malformed("it is too short"))?;
                // The stored form is at most a little longer than the plain one: nothing larger is worth decrypting.
                if cipher.len() > plain_max + 1 {
                    return Err(OpenError::Malformed("it is longer than its kind allows"));
                }
                let mut body = Loan::new(cipher.len());
                self.data_key(DataKeyId(*id))
                    .open_separate_gather(
                        Nonce::assume_unique_for_key(*nonce),
                        Aad::from(additional_data),
                        cipher,
                        tag,
                        body.as_mut(),
                    )
                    .map_err(|_| OpenError::NotAuthentic)?;
                if body.as_ref().first() == Some(&BODY_RAW) {
                    // The body itself becomes the result: no second copy of what was stored raw.
                    check_length(cipher.len() - 1, plain_max, plain_exact)?;
                    return Ok(body.freeze().slice(1..));
                }
                open_body(body.as_ref(), plain_max, plain_exact)
            }
            other => Err(OpenError::UnknownForm(other)),
        }
    }
}

fn plain_check(additional_data: &[u8], body: &[u8]) -> [u8; CHECK_BYTES] {
    let length = u32::try_from(additional_data.len()).expect("a place is short");
    *blake3::Hasher::new().update(&length.to_le_bytes()).update(additional_data).update(body).finalize().as_bytes()
}

thread_local! {
    // Contexts are large (0.5 to 2 MiB) and slow to make, so each thread keeps one.
    static COMPRESSOR: RefCell<Option<(i32, zstd::bulk::Compressor<'static>)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Replaces `out` by `head` free bytes and the body of `plain`, with room for a check or tag behind.
fn put_body(plain: &[u8], level: Option<i32>, head: usize, out: &mut Vec<u8>) {
    out.clear();
    out.reserve_exact(sealed_bytes_max(plain.len()));
    out.resize(head + 1, 0);
    if let Some(level) = level.filter(|_| plain.len() > 64) {
        let mut body = std::io::Cursor::new(&mut *out);
        body.set_position(head as u64 + 1);
        let written = COMPRESSOR.with_borrow_mut(|slot| {
            if slot.as_ref().is_none_or(|(made_for, _)| *made_for != level) {
                *slot = zstd::bulk::Compressor::new(level).ok().map(|compressor| (level, compressor));
            }
            slot.as_mut()?.1.compress_to_buffer(plain, &mut body).ok()
        });
        // Less than one part in 32 saved does not pay for the reader's work.
        if written.is_some_and(|written| written <= plain.len() - plain.len() / 32) {
            out[head] = BODY_ZSTD;
            return;
        }
        out.truncate(head + 1);
    }
    out[head] = BODY_RAW;
    out.extend_from_slice(plain);
}

fn check_length(length: usize, plain_max: usize, plain_exact: Option<usize>) -> Result<(), OpenError> {
    if length > plain_max {
        return Err(OpenError::Malformed("it is longer than its kind allows"));
    }
    if plain_exact.is_some_and(|exact| exact != length) {
        return Err(OpenError::Malformed("its length is not the one that refers to it"));
    }
    Ok(())
}

fn open_body(body: &[u8], plain_max: usize, plain_exact: Option<usize>) -> Result<Bytes, OpenError> {
    let (form, rest) = body.split_first().ok_or(OpenError::Malformed("it is empty"))?;
    match *form {
        BODY_RAW => {
            check_length(rest.len(), plain_max, plain_exact)?;
            Ok(Bytes::copy_from_slice(rest))
        }
        BODY_ZSTD => {
            let stated = zstd::zstd_safe::get_frame_content_size(rest).ok().flatten();
            let stated =
                stated.and_then(|bytes| usize::try_from(bytes).ok()).ok_or(OpenError::Malformed("its length is not stated"))?;
            check_length(stated, plain_max, plain_exact)?;
            let mut plain = Loan::new(stated);
            let written = DECOMPRESSOR.with_borrow_mut(|slot| {
                if slot.is_none() {
                    *slot = zstd::bulk::Decompressor::new().ok();
                }
                slot.as_mut()?.decompress_to_buffer(rest, plain.as_mut()).ok()
            });
            let written = written.ok_or(OpenError::Malformed("it does not decompress"))?;
            check_length(written, plain_max, Some(stated))?;
            Ok(plain.freeze())
        }
        _ => Err(OpenError::Malformed("its body has an unknown form")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(is_encrypted: bool) -> Sealer {
        let master = Zeroizing::new([7u8; 32]);
        Sealer::new(RepositoryId::nil(), is_encrypted.then_some(&master), "prod")
    }

    fn samples() -> Vec<Vec<u8>> {
        let mut noise = vec![0u8; 5000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        vec![vec![], b"x".to_vec(), vec![b'a'; 100_000], noise]
    }

    #[test]
    fn what_was_sealed_opens_at_its_place_only() {
        for is_encrypted in [false, true] {
            let sealer = sealer(is_encrypted);
            for plain in samples() {
                let sealed = sealer.seal(SealType::Block, b"here", &plain, Some(-1)).expect("seals");
                let open = |kind, place: &[u8], exact| sealer.open(kind, place, &sealed, 1 << 20, exact);
                assert_eq!(open(SealType::Block, b"here", Some(plain.len())).expect("opens"), plain);
                assert_eq!(open(SealType::Block, b"there", None), Err(OpenError::NotAuthentic));
                assert_eq!(open(SealType::TreePage, b"here", None), Err(OpenError::NotAuthentic));
                assert!(open(SealType::Block, b"here", Some(plain.len() + 1)).is_err());
            }
        }
    }

    #[test]
    fn another_scope_or_repository_cannot_open() {
        let master = Zeroizing::new([7u8; 32]);
        let sealed = sealer(true).seal(SealType::Block, b"p", b"secret", None).expect("seals");
        let other_scope = Sealer::new(RepositoryId::nil(), Some(&master), "staging");
        let other_repository = Sealer::new(RepositoryId::max(), Some(&master), "prod");
        for other in [other_scope, other_repository] {
            assert_eq!(other.open(SealType::Block, b"p", &sealed, 100, None), Err(OpenError::NotAuthentic));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        for is_encrypted in [false, true] {
            let sealer = sealer(is_encrypted);
            let sealed = sealer.seal(SealType::Mark, b"p", b"some plain bytes, not many", Some(-1)).expect("seals");
            for position in 0..sealed.len() * 8 {
                let mut changed = sealed.clone();
                changed[position / 8] ^= 1 << (position % 8);
                assert!(sealer.open(SealType::Mark, b"p", &changed, 100, None).is_err(), "bit {position}");
            }
            for length in 0..sealed.len() {
                assert!(sealer.open(SealType::Mark, b"p", &sealed[..length], 100, None).is_err(), "length {length}");
            }
        }
    }

    #[test]
    fn an_encrypted_repository_takes_nothing_unencrypted() {
        let sealed = sealer(false).seal(SealType::Mark, b"p", b"plain", None).expect("seals");
        assert_eq!(sealer(true).open(SealType::Mark, b"p", &sealed, 100, None), Err(OpenError::NotEncrypted));
    }

    #[test]
    fn a_bomb_is_refused_before_it_goes_off() {
        let sealer = sealer(false);
        let sealed = sealer.seal(SealType::Mark, b"p", &vec![0u8; 1 << 20], Some(3)).expect("seals");
        assert!(sealed.len() < 1000);
        assert_eq!(
            sealer.open(SealType::Mark, b"p", &sealed, 1000, None),
            Err(OpenError::Malformed("it is longer than its kind allows"))
        );
    }

    #[test]
    fn a_worn_data_key_is_replaced() {
        let sealer = sealer(true);
        let (first, _) = sealer.writing_key(1).expect("a key");
        lock(&sealer.current).as_mut().expect("in use").seals = SEALS_PER_KEY;
        let (second, _) = sealer.writing_key(1).expect("a key");
        lock(&sealer.current).as_mut().expect("in use").bytes = BYTES_PER_KEY;
        let (third, _) = sealer.writing_key(1).expect("a key");
        assert!(first != second && second != third);
    }
}
