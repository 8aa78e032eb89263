//! A host that shares nothing with the nodes but the network: snapshots taken there are proved and start a server.

use std::process::Command;

use crate::support::chains::Chains;
use crate::support::command::{Workplace, succeeded, tintype};
use crate::support::effort::Random;
use crate::support::redis::{Server, cluster, redis_70};

/// `nobody`: owns no directory of a node and may read none.
const FOREIGNER: u32 = 65534;

/// Runs a program as a user without rights, in a mount namespace where the nodes' directories are empty.
fn abroad(work: &Workplace, servers: &[Server], program: &[&str]) -> Command {
    let mut script = String::from("set -e\n");
    for server in servers {
        script.push_str(&format!("mount -t tmpfs -o mode=0700 none '{}'\n", server.directory().display()));
    }
    let user = FOREIGNER.to_string();
    script.push_str(&format!("exec setpriv --reuid {user} --regid {user} --clear-groups -- \"$@\"\n"));
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "abroad"]).args(program);
    work.prepare(&mut command);
    command
}

#[test]
fn a_cluster_under_load_is_snapshotted_from_a_host_that_shares_no_files_with_it() {
    let mut random = Random::begin("a foreign host");
    let servers = cluster(&redis_70(), 3, &["--save", "3600", "1"]);
    let chains = Chains::start(&servers, 8, &mut random);
    let work = Workplace::new();
    // The build directory may be closed to other users.
    let program = work.path("tintype");
    std::fs::copy(tintype(), &program).expect("a copy of the program");
    work.give_to(FOREIGNER);
    let run = |arguments: &[&str]| {
        let program = [&[program.to_str().expect("a path of letters")], arguments].concat();
        abroad(&work, &servers, &program).output().expect("util-linux is installed")
    };

    let mark = servers[0].directory().join("log");
    assert!(mark.exists());
    let seen = abroad(&work, &servers, &["test", "-e", mark.to_str().expect("a path of letters")]).status();
    assert_eq!(seen.expect("util-linux is installed").code(), Some(1), "the foreigner sees a node's files");

    succeeded("init", &run(&["init"]));
    let address = format!("127.0.0.1:{}", servers[1].port);
    let text = succeeded("snapshot", &run(&["--json", "snapshot", "live", "--redis", &address]));
    let report: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
    assert_eq!(report["cut"]["consistent"], "proved", "{text}");
    let text = succeeded("show", &run(&["--json", "show", "live/latest"]));
    let shown: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
    drop(chains);

    let nodes = shown["nodes"].as_array().unwrap_or_else(|| panic!("no nodes in {text}"));
    assert_eq!(nodes.len(), servers.len());
    for node in nodes {
        let name = node["name"].as_str().expect("a name");
        let count = |kind: &str| node["keys"][kind].as_u64().unwrap_or_else(|| panic!("no keys in {node}"));
        let (expired, loaded) = (count("expired"), count("total") - count("expired"));
        assert!(loaded > 0, "{name} holds keys");
        let exported = run(&["export", &format!("live/latest/{name}")]);
        succeeded("export", &exported);
        let place = tempfile::Builder::new().prefix("tintype-redis-").tempdir().expect("a temporary directory");
        tar::Archive::new(exported.stdout.as_slice()).unpack(place.path()).expect("a sound tar");
        let restored = Server::start_in(&redis_70(), place, &[]);
        assert_eq!(restored.info("rdb_last_load_keys_loaded"), loaded.to_string());
        assert_eq!(restored.info("rdb_last_load_keys_expired"), expired.to_string());
        assert_eq!(restored.command(&["DBSIZE"]), loaded.to_string());
    }
}
