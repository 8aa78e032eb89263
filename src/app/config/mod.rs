//! The configuration file: found, checked for who could have written it, and parsed with the nearest known key in errors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::failure::Failure;
use crate::model::names::{ClusterName, NodeName};

mod cluster;
mod repository;
mod secrets;
mod units;

pub use cluster::{ClusterConfig, LimitsConfig, NodeConfig};
pub use repository::{Compression, RepositoryConfig};
use secrets::refuse_writable_by_others;
pub use secrets::{read_key_file, read_private, read_secret};
pub use units::{Bytes, Span};

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
    /// The interface of Dynomite-manager, for what still asks for it.
    pub dynomite_manager: Option<DynomiteManagerConfig>,
}

/// `[agent.dynomite_manager]`: for which node it is answered, and what else it tells.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynomiteManagerConfig {
    /// Its cluster.
    pub cluster: ClusterName,
    /// The node of this host.
    pub node: NodeName,
    /// `ADDRESS:PORT` on the loopback interface.
    pub listen: Option<String>,
    /// One more place where it is served.
    pub prefix: Option<String>,
    /// The admin port of this host's Dynomite.
    pub admin: Option<String>,
    /// Where the clients of each Dynomite connect.
    pub client_port: Option<u16>,
    /// The other nodes, as Dynomite is told of them: `host:peer port:rack:datacenter:token`.
    #[serde(default)]
    pub seeds: Vec<String>,
    /// Dynomite's `hash_tag`.
    pub hashtag: Option<String>,
    /// Starts Dynomite.
    pub start: Option<Vec<String>>,
    /// Stops Dynomite.
    pub stop: Option<Vec<String>>,
    /// A GET may replace the node's data by that of `restore_date`.
    #[serde(default)]
    pub allow_restore: bool,
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

/// A string as it stands in a configuration.
pub fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use crate::repo::WriterOptions;

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
