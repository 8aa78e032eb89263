//! Dumps that a replica forks while its master stands still, against real servers of both versions.

use std::path::Path;
use std::time::{Duration, Instant};

use tintype::driver::redis::{CaptureMode, RedisDriver, RedisOptions};
use tintype::driver::{DriverError, StoreDriver, conformance};

use crate::support::redis::{PATIENCE, Server, both, redis_62, redis_70};

const PAUSE: Duration = Duration::from_secs(4);

/// One that follows `master` and has all that it has.
pub fn replica_of(master: &Server, binary: &Path, arguments: &[&str]) -> Server {
    let port = master.port.to_string();
    let arguments = [&["--replicaof", "127.0.0.1", &port], arguments].concat();
    let replica = Server::start(binary, &arguments);
    replica.wait_for("link to its master", |replica| replica.info("master_link_status") == "up");
    master.wait_for("replica that is online", |master| master.command(&["INFO", "replication"]).contains("state=online"));
    replica
}

fn driver(master: &Server) -> RedisDriver {
    let options = RedisOptions { capture: CaptureMode::FromReplica, ..master.options() };
    RedisDriver::new(options).expect("the url is good")
}

fn forks(server: &Server) -> u64 {
    server.info("total_forks").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_forks_instead_of_its_master_and_its_tree_starts_a_server() {
    // Before Redis 7 nothing can be set aside for the fork alone.
    for (binary, settings) in [
        (redis_70(), &[][..]),
        (redis_62(), &["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]),
        (redis_62(), &["--appendonly", "yes"]),
    ] {
        let master = Server::start(&binary, &["--repl-diskless-sync-delay", "0"]);
        master.fill(3000, 100);
        let replica = replica_of(&master, &binary, settings);
        let before = (forks(&master), forks(&replica), replica.info("repl-diskless-sync-delay"));
        conformance::all(&mut driver(&master)).await;
        let tree = conformance::a_whole_cut_is_proved_and_its_tree_is_in_order(&mut driver(&master)).await;
        assert_eq!(forks(&master), before.0, "the master forked");
        assert!(forks(&replica) > before.1, "the replica did not fork");
        assert_eq!(replica.info("repl-diskless-sync-delay"), before.2);
        let place = tempfile::Builder::new().prefix("tintype-redis-").tempdir().expect("a temporary directory");
        for (path, bytes) in &tree {
            std::fs::write(place.path().join(path.to_path_buf()), bytes).expect("a file");
        }
        let restored = Server::start_in(&binary, place, &[]);
        assert_eq!(restored.command(&["DEBUG", "DIGEST"]), master.command(&["DEBUG", "DIGEST"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_replica_in_good_standing_nothing_is_paused() {
    for binary in both() {
        let master = Server::start(&binary, &["--repl-diskless-sync-delay", "0"]);
        let error = driver(&master).prepare(PAUSE, PATIENCE).await.expect_err("nobody can fork");
        assert!(error.to_string().contains("no replica of it is online"), "{error}");
    }
    let master = Server::start(&redis_62(), &["--repl-diskless-sync-delay", "0"]);
    let _replica = replica_of(&master, &redis_62(), &[]);
    let error = driver(&master).prepare(PAUSE, PATIENCE).await.expect_err("it would fork seconds later");
    assert!(error.to_string().contains("repl-diskless-sync-delay"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stands_still_or_leaves_its_master_makes_the_cut_void_in_time() {
    let master = Server::start(&redis_70(), &["--repl-diskless-sync-delay", "0"]);
    master.fill(1000, 100);
    let replica = replica_of(&master, &redis_70(), &[]);
    for trouble in ["STOP", "leave"] {
        let mut node = driver(&master);
        node.prepare(PAUSE, PATIENCE).await.expect("prepares");
        if trouble == "STOP" {
            replica.signal("STOP");
        } else {
            replica.command(&["REPLICAOF", "NO", "ONE"]);
        }
        // It cannot have that.
        master.command(&["SET", "late", trouble]);
        let began = Instant::now();
        node.freeze(Duration::from_secs(2)).await.expect("the master answers");
        let error = node.capture().await.expect_err("the replica lacks a write");
        assert!(matches!(error, DriverError::Void { .. }), "{trouble}: {error}");
        assert!(began.elapsed() < Duration::from_secs(10), "{trouble}: it was waited for");
        if trouble == "STOP" {
            replica.signal("CONT");
        }
        node.abandon().await;
        let began = Instant::now();
        master.command(&["SET", "after", trouble]);
        assert!(began.elapsed() < Duration::from_secs(4), "{trouble}: still paused");
    }
}
