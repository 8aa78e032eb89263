//! The properties of Dynomite-manager, under all the prefixes that it ever had, as a configuration of ours.
//!
//! What it stored stays as it is: the repository that is written here is a new one. No value is ever told but those that are
//! written into the configuration, since one that we do not know may be a password.

use std::collections::BTreeMap;

use super::super::config::quoted;
use super::properties::{self, Property};
use crate::model::names::{ClusterName, NodeName};

/// The store of what is written. As `dynomite`, the keys of a ring are written too; as `redis` they stand there as comments.
pub const STORE: &str = "dynomite";
/// The newest first: of two that say different things, that counts.
const PREFIXES: [&str; 6] = ["dbsidecar.common.", "dbsidecar.aws.", "dbsidecar.cass.", "florida.", "dynomitemanager.", "dm."];
/// Where its Redis listens: it was never a property.
const BACKEND: &str = "127.0.0.1:22122";
/// Nor were these two.
const STORAGE_SCRIPTS: [&str; 2] = ["/apps/nfredis/bin/kill_redis.sh", "/apps/nfredis/bin/launch_nfredis.sh"];
/// What it hands to them.
const STORAGE_ENVIRONMENT: &str = "FLORIDA_STORAGE=redis";
/// Its default for `dyno.backup.restore.date`: nobody means it.
const NO_DATE: &str = "20101010";

/// What becomes of a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It is written into the configuration.
    Mapped,
    /// It has no counterpart, for this reason.
    Unneeded(&'static str),
}

const CREDENTIALS: &str = "roles are assumed by a profile in ~/.aws/config: name it as `profile` under [repository]";
const TOKENS: &str = "tokens are asked of Dynomite, and not of a token store";
const PROXY: &str = "Dynomite's own business";
const STORAGE: &str = "the store is asked itself";

/// Every property that it has, with its default.
const KNOWN: [(&str, &str, Use); 42] = [
    ("region", "", Use::Mapped),
    ("rack", "", Use::Mapped),
    ("zones.available", "", Use::Unneeded(TOKENS)),
    ("dyno.peer.port", "8101", Use::Unneeded(PROXY)),
    ("dyno.port", "8102", Use::Unneeded(PROXY)),
    ("dyno.stats.port", "22222", Use::Mapped),
    ("dyno.stats.localhost.only", "true", Use::Unneeded(PROXY)),
    ("dyno.secure.port", "-1", Use::Unneeded(PROXY)),
    ("dyno.secure.storage.port", "-1", Use::Unneeded(PROXY)),
    ("dyno.backup.snapshot.enabled", "false", Use::Mapped),
    ("dyno.backup.restore.enabled", "false", Use::Mapped),
    ("dyno.backup.schedule", "day", Use::Mapped),
    ("dyno.backup.hour", "12", Use::Mapped),
    ("dyno.backup.restore.date", NO_DATE, Use::Mapped),
    ("dyno.backup.bucket.name", "us-east-1.dynomite-backup-test", Use::Mapped),
    ("dyno.backup.s3.base_dir", "backup", Use::Mapped),
    ("ec2.roleassumption.arn", "null", Use::Unneeded(CREDENTIALS)),
    ("vpc.roleassumption.arn", "null", Use::Unneeded(CREDENTIALS)),
    ("roleassumption.dualaccount", "false", Use::Unneeded(CREDENTIALS)),
    ("dyno.sidecore.clusterName", "cass_turtle", Use::Unneeded(TOKENS)),
    ("dyno.sidecore.port", "7102", Use::Unneeded(TOKENS)),
    ("dyno.sidecore.seeds", "127.0.0.1", Use::Unneeded(TOKENS)),
    ("metadata.keyspace", "dyno_bootstrap", Use::Unneeded(TOKENS)),
    ("dyno.sidecore.tokenRefreshInterval", "0", Use::Unneeded(TOKENS)),
    ("dyno.home", "/apps/dynomite", Use::Unneeded("its scripts are named with their whole paths")),
    ("dyno.startscript", "/apps/dynomite/bin/launch_dynomite.sh", Use::Mapped),
    ("dyno.stopscript", "/apps/dynomite/bin/kill_dynomite.sh", Use::Mapped),
    ("dyno.clustername", "dynomite_demo1", Use::Mapped),
    ("dyno.seed.provider", "florida_provider", Use::Unneeded(PROXY)),
    ("dyno.read.consistency", "DC_ONE", Use::Unneeded(PROXY)),
    ("dyno.write.consistency", "DC_ONE", Use::Unneeded(PROXY)),
    ("dyno.request.timeout", "5000", Use::Mapped),
    ("dyno.tokens.hash", "murmur", Use::Unneeded(PROXY)),
    ("dyno.gossip.interval", "10000", Use::Unneeded(PROXY)),
    ("dyno.warm.bootstrap", "true", Use::Unneeded("a host without data is restored, see restore_on_start")),
    ("dyno.warm.force", "false", Use::Unneeded("a host without data is restored, see restore_on_start")),
    ("dyno.persistence.enabled", "false", Use::Unneeded(STORAGE)),
    (
        "dyno.persistence.type",
        "aof",
        Use::Unneeded("a snapshot does not need the store's own files, and fits what is restored to them"),
    ),
    ("dyno.persistence.directory", "/mnt/data/nfredis", Use::Mapped),
    ("dyno.redis.compatible.engine", "redis", Use::Mapped),
    ("redis.unixpath", "", Use::Mapped),
    ("dyno.storage.mem.pct.int", "85", Use::Unneeded(STORAGE)),
];

/// A configuration that was made, and what is to be said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// In TOML.
    pub text: String,
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// Properties of Dynomite-manager that we do not know: names alone.
    pub unknown: Vec<String>,
    /// Lines that are none of its properties: what they say is not told.
    pub foreign: Vec<usize>,
    /// Properties that were set and have no counterpart, and why.
    pub unneeded: Vec<(String, &'static str)>,
    /// What the operator has to know.
    pub notes: Vec<String>,
}

struct Settings(BTreeMap<&'static str, String>);

impl Settings {
    /// As set, or by default.
    fn get(&self, tail: &'static str) -> &str {
        let default = KNOWN.iter().find(|(known, ..)| *known == tail).map_or("", |(_, default, _)| default);
        self.0.get(tail).map_or(default, String::as_str).trim()
    }

    fn is_set(&self, tail: &str) -> bool {
        self.0.contains_key(tail)
    }

    fn flag(&self, tail: &'static str) -> bool {
        self.get(tail).eq_ignore_ascii_case("true")
    }

    fn number(&self, tail: &'static str, max: u64) -> Result<u64, String> {
        let number = self.get(tail).parse().ok().filter(|number| *number <= max);
        number.ok_or_else(|| format!("{tail} is no number from 0 to {max}"))
    }
}

/// Translates the text of a property file, for the node of that name and token. The error names what makes no sense.
pub fn import(text: &str, node: &NodeName, token: Option<u64>) -> Result<Imported, String> {
    let (mut unknown, mut foreign, mut unneeded, mut notes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut found: BTreeMap<&'static str, (usize, String)> = BTreeMap::new();
    for Property { line, name, value } in properties::parse(text)? {
        let split = PREFIXES.iter().enumerate().find_map(|(rank, prefix)| name.strip_prefix(prefix).map(|tail| (rank, tail)));
        if split.is_none() {
            // It may be a line of a key, or of a passphrase.
            foreign.push(line);
            continue;
        }
        let known = split.and_then(|(rank, tail)| KNOWN.iter().find(|(known, ..)| *known == tail).map(|known| (rank, known)));
        let Some((rank, (tail, _, used))) = known else {
            unknown.push(name);
            continue;
        };
        if let Use::Unneeded(reason) = used {
            unneeded.push((name, *reason));
            continue;
        }
        match found.get(tail) {
            Some((before, kept)) if *before < rank => {
                if *kept != value {
                    notes.push(format!("{name} says something else than {}{tail}, which counts", PREFIXES[*before]));
                }
            }
            Some((before, kept)) => {
                if *kept != value && *before != rank {
                    notes.push(format!("{}{tail} says something else than {name}, which counts", PREFIXES[*before]));
                }
                found.insert(tail, (rank, value));
            }
            None => drop(found.insert(tail, (rank, value))),
        }
    }
    let settings = Settings(found.into_iter().map(|(tail, (_, value))| (tail, value)).collect());
    let engine = settings.get("dyno.redis.compatible.engine");
    if engine != "redis" {
        return Err("dyno.redis.compatible.engine is not redis: its store cannot be captured".to_owned());
    }
    if !settings.get("redis.unixpath").is_empty() {
        notes.push(format!("redis.unixpath: it is reached at {BACKEND} instead: let it listen there"));
    }
    let cluster = settings.get("dyno.clustername");
    let cluster = ClusterName::new(cluster).map_err(|error| format!("dyno.clustername: {error}"))?;
    let text = written(&settings, &cluster, (node, token), &mut notes)?;
    Ok(Imported { text, cluster, unknown, foreign, unneeded, notes })
}

fn written(
    settings: &Settings,
    cluster: &ClusterName,
    (node, token): (&NodeName, Option<u64>),
    notes: &mut Vec<String>,
) -> Result<String, String> {
    let mut text = String::from("# Written by `tintype import-config dynomite-manager`; see the README for every key.\n\n");
    text.push_str(&repository(settings, notes)?);
    text.push_str(&format!("\n[clusters.{}]\nstore = {}\n", quoted(cluster.as_str()), quoted(STORE)));
    let stats = settings.number("dyno.stats.port", 65_535)?;
    text.push_str(&ring(&format!("discover = {}", quoted(&format!("http://127.0.0.1:{stats}")))));
    let timeout = settings.number("dyno.request.timeout", 3_600_000)?;
    text.push_str(&ring(&format!("request_timeout = \"{timeout}ms\"")));
    // Dynomite fails what waits for longer; a fifth is left for everything but the pause.
    let longest = timeout * 4 / 5;
    if longest < 2000 {
        text.push_str(&format!("max_pause = \"{longest}ms\"\n"));
    }
    text.push_str(&schedule(settings)?);
    text.push_str(&restoring(settings, notes)?);
    text.push_str(&format!("\n[clusters.{}.nodes.{}]\n", quoted(cluster.as_str()), quoted(node.as_str())));
    text.push_str(&format!("address = {}\n", quoted(&format!("redis://{BACKEND}"))));
    match token {
        Some(token) => text.push_str(&ring(&format!("token = {token}"))),
        None => {
            text.push_str("# As under tokens in dynomite.yml:\n# token = 1431655765\n");
            notes.push("the node's token is no property: write the one of dynomite.yml into the file, or say --token".to_owned());
        }
    }
    text.push_str(&format!("data_directory = {}\n", quoted(settings.get("dyno.persistence.directory"))));
    for (key, script) in ["stop", "start"].into_iter().zip(STORAGE_SCRIPTS) {
        text.push_str(&format!("{key} = [\"env\", {}, {}]\n", quoted(STORAGE_ENVIRONMENT), quoted(script)));
    }
    for (key, tail) in [("stop_proxy", "dyno.stopscript"), ("start_proxy", "dyno.startscript")] {
        text.push_str(&ring(&format!("{key} = [{}]", quoted(settings.get(tail)))));
    }
    if !settings.get("rack").is_empty() {
        text.push_str(&ring(&format!("rack = {}", quoted(settings.get("rack")))));
    }
    if !settings.get("region").is_empty() {
        text.push_str(&ring(&format!("datacenter = {}", quoted(settings.get("region")))));
    }
    Ok(text)
}

/// A key that only a ring has.
fn ring(line: &str) -> String {
    if STORE == "dynomite" { format!("{line}\n") } else { format!("# {line}\n") }
}

fn repository(settings: &Settings, notes: &mut Vec<String>) -> Result<String, String> {
    let bucket = settings.get("dyno.backup.bucket.name");
    let folder = settings.get("dyno.backup.s3.base_dir").trim_matches('/');
    if bucket.is_empty() || bucket.contains('/') || bucket.chars().any(char::is_whitespace) {
        return Err("dyno.backup.bucket.name is no name of a bucket".to_owned());
    }
    let url =
        [&format!("s3://{bucket}"), folder, "tintype"].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    notes.push(format!(
        "{url} is a new repository: `tintype init` makes it, and what Dynomite-manager stored beside it stays as it is"
    ));
    let mut text = String::from(
        "# A new repository beside what Dynomite-manager stored, which stays as it is and is not read.\n[repository]\n",
    );
    text.push_str(&format!("url = {}\n", quoted(&url)));
    if !settings.get("region").is_empty() {
        text.push_str(&format!("region = {}\n", quoted(settings.get("region"))));
    }
    text.push_str("# Without it nothing is encrypted, and `tintype init` wants --no-encryption.\n# password_file = \"/etc/tintype/password\"\n");
    Ok(text)
}

/// When it stored, as a line of cron: one minute past the hour, in the host's own time.
fn schedule(settings: &Settings) -> Result<String, String> {
    // A negative hour switched it off.
    let is_on = settings.flag("dyno.backup.snapshot.enabled") && !settings.get("dyno.backup.hour").starts_with('-');
    if !is_on {
        return Ok("# Dynomite-manager took no snapshots by itself.\n".to_owned());
    }
    let hour = settings.number("dyno.backup.hour", 23)?;
    let day = match settings.get("dyno.backup.schedule") {
        "week" => "1",
        _ => "*",
    };
    Ok(format!(
        "# It stored at that time; say it to cron or a timer, which run `tintype snapshot`.\n# schedule = \"1 {hour} * * {day}\"\n"
    ))
}

fn restoring(settings: &Settings, notes: &mut Vec<String>) -> Result<String, String> {
    let is_on = settings.flag("dyno.backup.restore.enabled");
    let date = settings.get("dyno.backup.restore.date");
    let mut text = format!("restore_on_start = {is_on}\n");
    let has_date = settings.is_set("dyno.backup.restore.date") && date != NO_DATE;
    if has_date {
        let wrong = || "dyno.backup.restore.date is no yyyyMMdd".to_owned();
        if date.len() != 8 || !date.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        text.push_str(&format!("restore_date = \"{}-{}-{}\"\n", &date[..4], &date[4..6], &date[6..]));
        if is_on {
            notes.push("restore_date names a day: a host without data comes back only once the new repository has a snapshot of it; leave it out for the newest".to_owned());
        }
    }
    if is_on {
        notes.push("restore_on_start restores a host whose data directory is empty, and touches no other; Dynomite-manager restored at every start".to_owned());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::config::{self, ClusterConfig, Config, NodeConfig};
    use super::*;

    fn imported(text: &str) -> Imported {
        import(text, &NodeName::new("host-1").expect("legal"), None).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// What our own parser makes of it.
    fn parsed(imported: &Imported) -> (Config, ClusterConfig, NodeConfig) {
        let config = config::parse(&imported.text, Path::new("x")).unwrap_or_else(|error| panic!("{error}\n{}", imported.text));
        let cluster = config.clusters[&imported.cluster].clone();
        let node = cluster.nodes.values().next().expect("one").clone();
        (config, cluster, node)
    }

    #[test]
    fn every_property_that_is_mapped_is_found_in_the_configuration_under_every_prefix() {
        let date = "dyno.backup.restore.date=20261120";
        // What is set, and a line that only then stands in the configuration.
        let rows = [
            ("region=eu-west-1", "region = \"eu-west-1\""),
            ("rack=eu-west-1a", "rack = \"eu-west-1a\""),
            ("dyno.stats.port=22333", "discover = \"http://127.0.0.1:22333\""),
            ("dyno.backup.snapshot.enabled=true", "# schedule = \"1 12 * * *\""),
            ("dyno.backup.restore.enabled=true", "restore_on_start = true"),
            (date, "restore_date = \"2026-11-20\""),
            ("dyno.backup.bucket.name=backups", "url = \"s3://backups/backup/tintype\""),
            ("dyno.backup.s3.base_dir=/a/b/", "url = \"s3://us-east-1.dynomite-backup-test/a/b/tintype\""),
            ("dyno.startscript=/opt/up", "start_proxy = [\"/opt/up\"]"),
            ("dyno.stopscript=/opt/down", "stop_proxy = [\"/opt/down\"]"),
            ("dyno.clustername=ring", "[clusters.\"ring\"]"),
            ("dyno.request.timeout=1000", "max_pause = \"800ms\""),
            ("dyno.persistence.directory=/data/redis", "data_directory = \"/data/redis\""),
        ];
        let plain = imported("");
        for (row, line) in rows {
            assert!(!plain.text.lines().any(|own| own == line), "{line} stands there anyway");
            for prefix in PREFIXES {
                let imported = imported(&format!("{prefix}{row}\n"));
                assert!(imported.text.lines().any(|own| own == line), "{prefix}{row}: no {line} in\n{}", imported.text);
                assert!(imported.unknown.is_empty() && imported.unneeded.is_empty(), "{prefix}{row}");
                parsed(&imported);
            }
        }
        let weekly = "dm.dyno.backup.snapshot.enabled=true\ndm.dyno.backup.schedule=week\ndm.dyno.backup.hour=3\n";
        assert!(imported(weekly).text.contains("# schedule = \"1 3 * * 1\"\n"));
        assert!(imported("dm.redis.unixpath=/run/redis.sock").notes.iter().any(|note| note.contains("redis.unixpath")));
        let engine = import("florida.dyno.redis.compatible.engine=ardb-rocksdb", &NodeName::new("x").expect("legal"), None);
        assert!(engine.expect_err("no Redis").contains("engine"));
        // All mapped ones have stood here.
        let seen: Vec<_> = rows
            .iter()
            .map(|(row, _)| *row)
            .chain(["dyno.backup.schedule=", "dyno.backup.hour=", "redis.unixpath=", "dyno.redis.compatible.engine="])
            .collect();
        for (tail, ..) in KNOWN.iter().filter(|(_, _, used)| *used == Use::Mapped) {
            assert!(seen.iter().any(|row| row.starts_with(&format!("{tail}="))), "{tail} has no row");
        }
    }

    #[test]
    fn its_defaults_are_ours() {
        let imported = imported("# nothing is set\n");
        let (config, cluster, node) = parsed(&imported);
        assert_eq!(config.repository.url.as_deref(), Some("s3://us-east-1.dynomite-backup-test/backup/tintype"));
        assert_eq!(imported.cluster.as_str(), "dynomite_demo1");
        assert_eq!((cluster.store.as_deref(), cluster.restore_on_start, cluster.restore_date), (Some(STORE), false, None));
        assert_eq!((node.address.as_deref(), cluster.max_pause), (Some("redis://127.0.0.1:22122"), None));
        assert_eq!(node.data_directory.as_deref(), Some(Path::new("/mnt/data/nfredis")));
        let command = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(node.stop, command(&["env", "FLORIDA_STORAGE=redis", "/apps/nfredis/bin/kill_redis.sh"]));
        assert_eq!(node.start, command(&["env", "FLORIDA_STORAGE=redis", "/apps/nfredis/bin/launch_nfredis.sh"]));
        assert!(imported.notes.iter().any(|note| note.contains("a new repository")));
        assert!((node.token, imported.notes.iter().any(|note| note.contains("--token"))) == (None, true));
        let host = NodeName::new("host-1").expect("legal");
        assert_eq!(parsed(&import("", &host, Some(7)).expect("fine")).2.token, Some(7));
    }

    #[test]
    fn what_is_not_known_is_named_and_its_value_never_told() {
        let imported = imported(
            "dbsidecar.aws.secret.password=hunter2\nother.thing=hunter3\nflorida.dyno.gossip.interval=10000\ndbsidecar.aws.ec2.roleassumption.arn=hunter4\nhunter5\n",
        );
        assert_eq!(imported.unknown, ["dbsidecar.aws.secret.password"]);
        assert_eq!(imported.foreign, [2, 5]);
        let unneeded: Vec<_> = imported.unneeded.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(unneeded, ["florida.dyno.gossip.interval", "dbsidecar.aws.ec2.roleassumption.arn"]);
        assert!(!format!("{imported:?}").contains("hunter"), "{imported:?}");
    }

    #[test]
    fn whatever_stands_in_a_property_is_a_string_of_the_configuration() {
        for value in ["/a\u{7f}b", "/a\"b'c", "/a\\\\b", "/a\\tb"] {
            let imported = imported(&format!("dm.dyno.persistence.directory={value}\n"));
            let expected = value.replace("\\\\", "\\").replace("\\t", "\t");
            assert_eq!(parsed(&imported).2.data_directory.as_deref(), Some(Path::new(&expected)), "{}", imported.text);
        }
    }

    #[test]
    fn of_two_prefixes_the_newer_one_counts_and_what_makes_no_sense_is_refused() {
        for text in [
            "dm.dyno.clustername=old\ndbsidecar.common.dyno.clustername=new\n",
            "dbsidecar.common.dyno.clustername=new\ndm.dyno.clustername=old\n",
        ] {
            let imported = imported(text);
            assert_eq!(imported.cluster.as_str(), "new");
            assert!(imported.notes.iter().any(|note| note.contains("dm.dyno.clustername")), "{:?}", imported.notes);
        }
        let node = NodeName::new("host-1").expect("legal");
        for (bad, word) in [
            ("dm.dyno.backup.restore.date=yesterday", "restore.date"),
            ("dm.dyno.clustername=a/b", "clustername"),
            ("dm.dyno.stats.port=many", "stats.port"),
            ("dm.dyno.backup.bucket.name=a/b", "bucket.name"),
            ("dm.dyno.backup.snapshot.enabled=true\ndm.dyno.backup.hour=24", "backup.hour"),
        ] {
            let error = import(bad, &node, None).expect_err(bad);
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
