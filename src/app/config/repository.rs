//! `[repository]`: where snapshots are stored, and how they are written there.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer};

/// `[repository]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepositoryConfig {
    /// A path, `file:///path` or `s3://bucket/prefix`.
    pub url: Option<String>,
    /// Of an S3 store that is not Amazon's.
    pub endpoint: Option<String>,
    /// S3 region.
    pub region: Option<String>,
    /// S3: the bucket in the path, not in the host name.
    pub path_style: Option<bool>,
    /// S3: profile of the credentials.
    pub profile: Option<String>,
    /// S3: a file of credentials instead of the standard one.
    pub credentials_file: Option<PathBuf>,
    /// S3 storage class.
    pub storage_class: Option<String>,
    /// S3 server side encryption: `AES256`, `aws:kms` or `aws:kms:KEY`.
    pub sse: Option<String>,
    /// A file whose first line is the passphrase.
    pub password_file: Option<PathBuf>,
    /// A command whose first line of output is the passphrase.
    pub password_command: Option<Vec<String>>,
    /// A file of at least 32 random bytes, instead of a passphrase.
    pub key_file: Option<PathBuf>,
    /// zstd level of blocks, -7 to 19, or `"none"`.
    pub compression: Option<Compression>,
    /// Packs uploaded at the same time.
    pub uploads: Option<usize>,
}

/// How blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression(pub Option<i32>);

impl<'de> Deserialize<'de> for Compression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Level(i32),
            Word(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Level(level) if (-7..=19).contains(&level) => Ok(Self(Some(level))),
            Form::Word(word) if word == "none" => Ok(Self(None)),
            _ => Err(serde::de::Error::custom("compression is a zstd level from -7 to 19, or \"none\"")),
        }
    }
}
