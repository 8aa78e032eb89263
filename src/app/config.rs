//! The configuration file: found, checked for who could have written it, and parsed with the nearest known key in errors.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::failure::Failure;
use crate::model::names::{ClusterName, NodeName};
use crate::node::SpoolOptions;
use crate::repo::WriterOptions;

/// The repository takes no shorter ones, see `repo/FORMAT.md`.
const KEY_FILE_BYTES_MIN: usize = 32;

/// What the file says. Every key is optional: a repository and one Redis need no file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[repository]`
    pub repository: RepositoryConfig,
    /// `[mount]`
    pub mount: MountConfig,
    /// `[cache]`
    pub cache: CacheConfig,
    /// `[clones]`
    pub clones: ClonesConfig,
    /// `[agent]`
    pub agent: AgentConfig,
    /// `[clusters.NAME]`
    pub clusters: BTreeMap<ClusterName, ClusterConfig>,
    /// Where running jobs and directories kept for rollback are remembered.
    pub state_directory: Option<PathBuf>,
    /// What is logged: `error`, `warn`, `info`, `debug`, or a list like `info,tintype::repo=debug`.
    pub log: Option<String>,
}

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

/// `[mount]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MountConfig {
    /// Where `tintyped` mounts.
    pub mountpoint: Option<PathBuf>,
    /// Others than the mounting user may look.
    pub allow_other: bool,
    /// `USER:GROUP` shown instead of the captured owners.
    pub owner: Option<String>,
    /// Memory for blocks.
    pub memory: Option<Bytes>,
    /// No call takes longer.
    pub deadline: Option<Span>,
    /// The kernel reads files by itself that the cache has whole.
    pub passthrough: Option<bool>,
}

/// `[clones]`: what holds for new clones, and for what links of a restore lead to.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClonesConfig {
    /// Whoever reads waits so long for an object store that is away; absent: until it is back.
    pub deadline: Option<Span>,
}

/// `[cache]`: blocks that a mount keeps on a disk of this host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// A directory of its own.
    pub directory: Option<PathBuf>,
    /// The most that it takes on the disk.
    pub size: Option<Bytes>,
    /// What the disk has to have left.
    pub keep_free: Option<Bytes>,
}

/// `[agent]`: the node agent that `tintyped` serves, and how this host's commands show themselves to agents.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// `ADDRESS:PORT`; absent: no agent.
    pub listen: Option<String>,
    /// A secret that all hosts share.
    pub token_file: Option<PathBuf>,
    /// Wanted off the loopback interface.
    pub tls: Option<AgentTlsConfig>,
}

/// `tls` under `[agent]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentTlsConfig {
    /// This host's certificate, in PEM.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority of all hosts: both sides show a certificate of it.
    pub ca: Option<PathBuf>,
}

/// `[clusters.NAME]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// `redis` or `files`.
    pub store: Option<String>,
    /// Any node of a Redis Cluster, or a Sentinel.
    pub discover: Option<String>,
    /// Which of the masters that Sentinel watches; empty: all.
    pub masters: Vec<String>,
    /// `replication` (default), `save` or `aof`.
    pub capture: Option<String>,
    /// Who forks for a capture by replication: the `master` (default) or a `replica` of it.
    pub from: Option<String>,
    /// The agents of its nodes; `{host}` stands for the node's own host.
    pub agent: Option<String>,
    /// The host that takes its snapshots, where the object store keeps no conditions; as `hostname` says it.
    pub coordinator: Option<String>,
    /// What each of its nodes may take while it is stored.
    pub limits: LimitsConfig,
    /// Longest write pause.
    pub max_pause: Option<Span>,
    /// How long to wait for running saves before the pause.
    pub patience: Option<Span>,
    /// ACL user of all nodes.
    pub user: Option<String>,
    /// Its password, in a file.
    pub password_file: Option<PathBuf>,
    /// Certificate authorities for `rediss://`.
    pub ca_file: Option<PathBuf>,
    /// `[clusters.NAME.nodes.NODE]`
    pub nodes: BTreeMap<NodeName, NodeConfig>,
}

/// `limits` under `[clusters.NAME]`: for each node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Bytes a second to the object store, on average.
    pub bandwidth: Option<Bytes>,
    /// Cores that compress and seal at once.
    pub cores: Option<usize>,
    /// Bytes of a dump that may wait on a disk of the host that stores it.
    pub spool: Option<Bytes>,
}

impl LimitsConfig {
    /// A store gives up a replica that reads nothing for a minute, and a pack has 32 MiB: less is no way to store a node.
    const BANDWIDTH_MIN: u64 = 1 << 20;

    /// The same settings for one node.
    pub fn apply(&self, writing: &WriterOptions) -> Result<WriterOptions, Failure> {
        let bandwidth = self.bandwidth.map(|bandwidth| bandwidth.0);
        if bandwidth.is_some_and(|bandwidth| bandwidth < Self::BANDWIDTH_MIN) {
            return Err(Failure::usage("limits: a bandwidth of less than 1MiB a second")
                .hint("a store would give up before its dump is read"));
        }
        if self.cores == Some(0) {
            return Err(Failure::usage("limits: cores = 0").hint("leave it out for no limit"));
        }
        Ok(writing.limited(self.cores, bandwidth))
    }

    /// Where dumps wait that come faster than they are stored.
    pub fn spool(&self, state_directory: &Path) -> Option<SpoolOptions> {
        self.spool.map(|limit| SpoolOptions { directory: state_directory.join("spool"), limit_bytes: limit.0 })
    }
}

/// `[clusters.NAME.nodes.NODE]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// `redis://host:port` or `rediss://host:port`.
    pub address: Option<String>,
    /// ACL user, where it differs from the cluster's.
    pub user: Option<String>,
    /// Its password, in a file.
    pub password_file: Option<PathBuf>,
    /// Certificate authorities for `rediss://`.
    pub ca_file: Option<PathBuf>,
    /// The store's directory, where it is on this host.
    pub data_directory: Option<PathBuf>,
    /// It is a replica of this node: not stored, and emptied by a restore of its master, from which it synchronises again.
    pub replica_of: Option<NodeName>,
    /// The agent that acts for it, on its own host; absent: whoever takes the snapshot reaches the node itself.
    pub agent: Option<String>,
    /// Stops the store.
    pub stop: Option<Vec<String>>,
    /// Starts the store.
    pub start: Option<Vec<String>>,
}

/// A size for people: `"64MiB"`, `"20 GB"`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// A duration for people: `"30s"`, `"500 ms"`, `"2h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

impl std::str::FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size like 64MiB or 20GB");
        let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
        let factor = match unit {
            "" | "B" => 1.0,
            "kB" | "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "TB" => 1e12,
            "KiB" | "K" => 1024.0,
            "MiB" | "M" => 1024f64.powi(2),
            "GiB" | "G" => 1024f64.powi(3),
            "TiB" | "T" => 1024f64.powi(4),
            _ => return Err(wrong()),
        };
        let bytes = number * factor;
        if bytes.is_finite() && bytes < 1e18 { Ok(Self(bytes as u64)) } else { Err(wrong()) }
    }
}

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration like 30s, 500ms or 2h");
        let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
        let seconds = match unit {
            "ms" => number / 1e3,
            "s" => number,
            "m" | "min" => number * 60.0,
            "h" => number * 3600.0,
            "d" => number * 86400.0,
            _ => return Err(wrong()),
        };
        // A year: beyond, a unit was mistaken.
        if seconds.is_finite() && seconds <= 366.0 * 86400.0 { Ok(Self(Duration::from_secs_f64(seconds))) } else { Err(wrong()) }
    }
}

macro_rules! from_text {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
from_text!(Bytes);
from_text!(Span);

/// Where the configuration is looked for, after `--config` and `$TINTYPE_CONFIG`; never in the current directory.
fn standard_places() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    home.into_iter()
        .map(|home| home.join(".config/tintype/tintype.toml"))
        .chain([PathBuf::from("/etc/tintype/tintype.toml")])
        .collect()
}

/// The configuration and where it came from; an empty one where there is no file and none was asked for.
pub fn load(asked_for: Option<&Path>) -> Result<(Config, Option<PathBuf>), Failure> {
    let place = match asked_for {
        Some(path) => path.to_owned(),
        None => match standard_places().into_iter().find(|path| path.exists()) {
            Some(path) => path,
            None => return Ok((Config::default(), None)),
        },
    };
    refuse_writable_by_others(&place)?;
    let text = std::fs::read_to_string(&place).map_err(|error| {
        Failure::usage(format!("{}: {error}", place.display()))
            .hint("check --config and $TINTYPE_CONFIG; `tintype setup` writes a configuration")
    })?;
    Ok((parse(&text, &place)?, Some(place)))
}

/// Parses the text of a configuration; `place` is for messages.
pub fn parse(text: &str, place: &Path) -> Result<Config, Failure> {
    toml::from_str(text).map_err(|error| {
        let message = error.message().to_owned();
        let line = error
            .span()
            .map_or(String::new(), |span| format!(" line {}", text[..span.start.min(text.len())].matches('\n').count() + 1));
        let failure = Failure::usage(format!("{}{line}: {message}", place.display()));
        match nearest_key(&message) {
            Some(nearest) => failure.hint(format!("did you mean {nearest}?")),
            None => failure.hint("see the configuration section of the README"),
        }
    })
}

/// From serde's "unknown field `x`, expected one of `a`, `b`": the expected key that is most like the unknown one.
fn nearest_key(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown field").then(|| quoted.next()).flatten()?;
    let nearest = quoted.map(|key| (strsim::damerau_levenshtein(unknown, key), key)).min()?;
    (nearest.0 <= unknown.len().max(3) / 2 + 1).then(|| nearest.1.to_owned())
}

fn refuse_writable_by_others(path: &Path) -> Result<(), Failure> {
    let Ok(meta) = std::fs::metadata(path) else { return Ok(()) };
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me && meta.uid() != 0 {
        return Err(Failure::usage(format!("{}: belongs to another user, who could change what is run", path.display()))
            .hint(format!("chown it to yourself or root: chown {me} {}", path.display())));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(Failure::usage(format!("{}: others could have written it", path.display()))
            .hint(format!("chmod go-w {}", path.display())));
    }
    Ok(())
}

/// The first line of a file that nobody else may read.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let bytes = read_private(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Failure::usage(format!("{}: is not text", path.display())))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(
            Failure::usage(format!("{}: its first line is empty", path.display())).hint("write the password into its first line")
        );
    }
    Ok(Zeroizing::new(line.to_owned()))
}

/// A file that nobody else may read or write.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let unreadable =
        |error: std::io::Error| Failure::usage(format!("{}: {error}", path.display())).hint("check the path and its permissions");
    let meta = std::fs::metadata(path).map_err(unreadable)?;
    refuse_writable_by_others(path)?;
    if meta.is_file() && meta.mode() & 0o077 != 0 {
        return Err(
            Failure::usage(format!("{}: others can read it", path.display())).hint(format!("chmod 600 {}", path.display()))
        );
    }
    std::fs::read(path).map(Zeroizing::new).map_err(unreadable)
}

/// A file of random bytes instead of a passphrase.
pub fn read_key_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let key = read_private(path)?;
    if key.len() < KEY_FILE_BYTES_MIN {
        let message =
            format!("{}: holds {} bytes, and a key file needs {KEY_FILE_BYTES_MIN} random ones", path.display(), key.len());
        return Err(Failure::usage(message).hint(format!(
            "for a new one: (umask 077; head -c 64 /dev/urandom > {}); or say --password-file for a passphrase",
            path.display()
        )));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn place() -> &'static Path {
        Path::new("tintype.toml")
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let failure = parse("[repository]\nulr = \"x\"\n", place()).expect_err("unknown");
        assert_eq!((failure.exit, failure.hint.as_deref()), (super::super::failure::Exit::Usage, Some("did you mean url?")));
        assert!(failure.message.contains("line 2"), "{}", failure.message);
        let failure = parse("[clusters.prod]\nmax_pose = \"1s\"\n", place()).expect_err("unknown");
        assert_eq!(failure.hint.as_deref(), Some("did you mean max_pause?"));
    }

    #[test]
    fn a_whole_configuration_is_understood() {
        let text = r#"
            [repository]
            url = "s3://backups/tintype"
            compression = 3
            [mount]
            memory = "64MiB"
            deadline = "30s"
            [cache]
            directory = "/var/cache/tintype"
            size = "20GiB"
            keep_free = "5GiB"
            [clusters.prod]
            store = "redis"
            max_pause = "500 ms"
            limits = { bandwidth = "50MiB", cores = 1 }
            [clusters.prod.nodes.node-1]
            address = "redis://10.0.0.1:6379"
            stop = ["systemctl", "stop", "redis"]
        "#;
        let config = parse(text, place()).expect("parses");
        assert_eq!(config.mount.memory, Some(Bytes(64 << 20)));
        assert_eq!((config.cache.size, config.cache.keep_free), (Some(Bytes(20 << 30)), Some(Bytes(5 << 30))));
        let cluster = config.clusters.values().next().expect("one");
        let limited = cluster.limits.apply(&WriterOptions::new(None, 4)).expect("fine");
        assert_eq!(
            (limited.blocks.available_permits(), limited.uploads.available_permits(), limited.pace.is_some()),
            (1, 4, true)
        );
        let refused = |limits: LimitsConfig| limits.apply(&limited).expect_err("too little").exit;
        let (bandwidth, usage) = (Some(Bytes(1000)), super::super::failure::Exit::Usage);
        assert_eq!(refused(LimitsConfig { bandwidth, ..LimitsConfig::default() }), usage);
        assert_eq!(refused(LimitsConfig { cores: Some(0), ..LimitsConfig::default() }), usage);
        assert_eq!(cluster.max_pause, Some(Span(Duration::from_millis(500))));
        assert_eq!(config.repository.compression, Some(Compression(Some(3))));
    }

    #[test]
    fn bad_values_are_refused() {
        for text in [
            "[mount]\nmemory = \"lots\"",
            "[mount]\ndeadline = \"30\"",
            "[repository]\ncompression = 99",
            "[clusters.\"a/b\"]\n",
            "x",
        ] {
            assert!(parse(text, place()).is_err(), "{text}");
        }
    }

    #[test]
    fn files_that_others_could_write_or_read_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret");
        std::fs::write(&path, "correct horse\n").expect("writes");
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmods");
        mode(0o600);
        assert_eq!(read_secret(&path).expect("reads").as_str(), "correct horse");
        mode(0o640);
        assert!(read_secret(&path).expect_err("readable").hint.expect("a hint").starts_with("chmod 600"));
        mode(0o622);
        assert!(load(Some(&path)).expect_err("writable").hint.expect("a hint").starts_with("chmod go-w"));
    }
}
