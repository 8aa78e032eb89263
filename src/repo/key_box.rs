//! Key boxes: the master key, wrapped for a passphrase or a key file (FORMAT.md section 3).

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::RepoError;
use super::layout;
use super::seal::{self, MasterKey, SealType};
use crate::model::ids::RepositoryId;

/// What opens a key box.
pub enum Secret {
    /// What a person remembers.
    Passphrase(Zeroizing<String>),
    /// Content of a key file, at least 32 bytes.
    KeyFile(Zeroizing<Vec<u8>>),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(…)",
            Self::KeyFile(_) => "KeyFile(…)",
        })
    }
}

/// A key box as `key list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyBoxEntry {
    /// Its identity.
    pub id: Uuid,
    /// `passphrase` or `key_file`.
    pub kind: String,
    /// The user's words.
    pub label: String,
    /// When it was made, microseconds since 1970.
    pub created_at: i64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KeyBox {
    pub format: u32,
    pub kind: String,
    #[serde(default)]
    pub label: String,
    pub created_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argon2id: Option<Argon2Settings>,
    pub sealed: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Argon2Settings {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
}

/// RFC 9106, second recommended choice: about 0.1 s and 64 MiB, once per command.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
const KEY_FILE_BYTES_MIN: usize = 32;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|value| u8::try_from(value).ok())).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

impl Argon2Settings {
    fn new() -> Result<Self, RepoError> {
        let mut salt = [0u8; 16];
        seal::random(&mut salt)?;
        Ok(Self { memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES, salt: hex(&salt) })
    }

    fn stretch(&self, passphrase: &str) -> Result<Zeroizing<[u8; 32]>, &'static str> {
        if self.memory_kib > MEMORY_KIB_MAX || self.passes > 32 || self.lanes > 16 {
            return Err("its Argon2id settings are beyond what a reader accepts");
        }
        let salt = unhex(&self.salt).ok_or("its salt is not hexadecimal")?;
        let settings = argon2::Params::new(self.memory_kib, self.passes, self.lanes, Some(32))
            .map_err(|_| "its Argon2id settings are not possible")?;
        let mut key = Zeroizing::new([0u8; 32]);
        argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, settings)
            .hash_password_into(passphrase.as_bytes(), &salt, &mut key[..])
            .map_err(|_| "its Argon2id settings are not possible")?;
        Ok(key)
    }
}

fn key_file_key(content: &[u8]) -> Result<Zeroizing<[u8; 32]>, RepoError> {
    if content.len() < KEY_FILE_BYTES_MIN {
        return Err(RepoError::Refused {
            what: "the key file".to_owned(),
            reason: format!("it holds {} bytes, and at least 32 random ones are needed", content.len()),
        });
    }
    Ok(seal::derive("tintype 1 key file", &[content]))
}

/// A new box for `master`, and the object key that it belongs under.
pub(super) fn make(
    repository: RepositoryId,
    master: &MasterKey,
    secret: &Secret,
    label: &str,
    now_us: i64,
) -> Result<(String, KeyBox), RepoError> {
    let object_key = layout::key_box(Uuid::new_v4());
    let (kind, argon2id, key) = match secret {
        Secret::Passphrase(passphrase) if passphrase.is_empty() => {
            return Err(RepoError::Refused { what: "the passphrase".to_owned(), reason: "it is empty".to_owned() });
        }
        Secret::Passphrase(passphrase) => {
            let settings = Argon2Settings::new()?;
            let key = settings.stretch(passphrase).map_err(|reason| RepoError::corrupt(&object_key, reason))?;
            ("passphrase", Some(settings), key)
        }
        Secret::KeyFile(content) => ("key_file", None, key_file_key(content)?),
    };
    let sealed = seal::wrap(&key, &seal::additional_data(repository, SealType::KeyBox, object_key.as_bytes()), &master[..])?;
    let label = label.to_owned();
    Ok((object_key, KeyBox { format: 1, kind: kind.to_owned(), label, created_at: now_us, argon2id, sealed: hex(&sealed) }))
}

/// The master key, if `secret` is the one that this box was made for.
pub(super) fn open(
    repository: RepositoryId,
    object_key: &str,
    key_box: &KeyBox,
    secret: &Secret,
) -> Result<Option<MasterKey>, RepoError> {
    let key = match (secret, key_box.kind.as_str()) {
        (Secret::Passphrase(passphrase), "passphrase") => {
            let settings =
                key_box.argon2id.as_ref().ok_or_else(|| RepoError::corrupt(object_key, "its Argon2id settings are missing"))?;
            settings.stretch(passphrase).map_err(|reason| RepoError::corrupt(object_key, reason))?
        }
        (Secret::KeyFile(content), "key_file") => key_file_key(content)?,
        _ => return Ok(None),
    };
    let sealed = unhex(&key_box.sealed).ok_or_else(|| RepoError::corrupt(object_key, "it is not hexadecimal"))?;
    let additional_data = seal::additional_data(repository, SealType::KeyBox, object_key.as_bytes());
    let Some(plain) = seal::unwrap_box(&key, &additional_data, &sealed) else { return Ok(None) };
    let mut master = Zeroizing::new([0u8; 32]);
    if plain.len() != master.len() {
        return Err(RepoError::corrupt(object_key, "it holds no master key"));
    }
    master.copy_from_slice(&plain);
    Ok(Some(master))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> [Secret; 2] {
        [Secret::Passphrase(Zeroizing::new("correct horse".to_owned())), Secret::KeyFile(Zeroizing::new(vec![3; 32]))]
    }

    #[test]
    fn a_box_opens_with_its_secret_at_its_place_only() {
        let master = Zeroizing::new([9u8; 32]);
        for (secret, other) in secrets().iter().zip(secrets().iter().rev()) {
            let (key, made) = make(RepositoryId::nil(), &master, secret, "first", 0).expect("makes");
            assert_eq!(open(RepositoryId::nil(), &key, &made, secret).expect("opens"), Some(master.clone()));
            assert_eq!(open(RepositoryId::nil(), &key, &made, other).expect("is no error"), None);
            assert_eq!(open(RepositoryId::nil(), "keys/other.json", &made, secret).expect("is no error"), None);
        }
    }

    #[test]
    fn settings_that_would_exhaust_the_reader_are_refused() {
        let master = Zeroizing::new([9u8; 32]);
        let secret = &secrets()[0];
        let (key, mut made) = make(RepositoryId::nil(), &master, secret, "", 0).expect("makes");
        made.argon2id.as_mut().expect("a passphrase box").memory_kib = u32::MAX;
        assert!(matches!(open(RepositoryId::nil(), &key, &made, secret), Err(RepoError::Corrupt { .. })));
    }

    #[test]
    fn an_empty_passphrase_and_a_short_key_file_are_refused() {
        let master = Zeroizing::new([9u8; 32]);
        for secret in [Secret::Passphrase(Zeroizing::new(String::new())), Secret::KeyFile(Zeroizing::new(vec![1; 31]))] {
            assert!(matches!(make(RepositoryId::nil(), &master, &secret, "", 0), Err(RepoError::Refused { .. })));
        }
    }
}
