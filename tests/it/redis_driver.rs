//! The Redis driver against real servers of both versions.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tintype::driver::redis::{CaptureMode, Password, RedisDriver, RedisOptions, discover};
use tintype::driver::{CapturedContent, DriverError, StoreDriver, conformance};
use tintype::model::manifest::Consistency;
use tintype::model::names::TreePath;
use tokio::io::AsyncReadExt;

use crate::support::redis::{PATIENCE, Server, both, cluster, redis_62, redis_70};

const PAUSE: Duration = Duration::from_secs(4);

fn driver(options: RedisOptions) -> RedisDriver {
    RedisDriver::new(options).expect("the url is good")
}

fn files(directory: &Path, files: &[(TreePath, Vec<u8>)]) {
    for (path, bytes) in files {
        let path = directory.join(path.to_path_buf());
        std::fs::create_dir_all(path.parent().expect("inside the directory")).expect("a directory");
        std::fs::write(path, bytes).expect("a file");
    }
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("tintype-redis-").tempdir().expect("a temporary directory")
}

/// One whole cut, through to its files.
async fn cut(driver: &mut RedisDriver) -> Vec<(TreePath, Vec<u8>)> {
    conformance::a_whole_cut_is_proved_and_its_tree_is_in_order(driver).await
}

/// A value of every type that the version knows.
fn fill_all_types(server: &Server) {
    server.fill(2000, 100);
    for command in [
        &["RPUSH", "list", "a", "b", "1"][..],
        &["SADD", "ints", "1", "2", "3"],
        &["SADD", "set", "a", "b"],
        &["ZADD", "zset", "1.5", "a", "inf", "b"],
        &["HSET", "hash", "f", "v"],
        &["XADD", "stream", "1-1", "f", "v"],
        &["XGROUP", "CREATE", "stream", "g", "0"],
        &["XREADGROUP", "GROUP", "g", "c", "STREAMS", "stream", ">"],
        &["SET", "volatile", "x", "EX", "10000"],
        &["PFADD", "hll", "a"],
    ] {
        server.command(command);
    }
    let big: Vec<String> = (0..3000).map(|index| format!("member-{index}")).collect();
    for (verb, key) in [("SADD", "big-set"), ("RPUSH", "big-list")] {
        let command: Vec<&str> = [verb, key].into_iter().chain(big.iter().map(String::as_str)).collect();
        server.command(&command);
    }
    let pairs: Vec<&str> = ["HSET", "big-hash"].into_iter().chain(big.iter().map(String::as_str)).collect();
    server.command(&pairs);
    let scores: Vec<&str> = ["ZADD", "big-zset"].into_iter().chain(big.iter().flat_map(|member| ["1.25", member])).collect();
    server.command(&scores);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_keeps_the_promises_of_the_port_with_both_versions_and_forms() {
    for binary in both() {
        for arguments in [&["--save", ""][..], &["--save", "3600", "1", "--repl-diskless-sync", "no"]] {
            let server = Server::start(&binary, arguments);
            fill_all_types(&server);
            conformance::all(&mut driver(server.options())).await;
            let on_disk = arguments.contains(&"no") && server.info("redis_version").starts_with('6');
            assert_eq!(server.directory().join("dump.rdb").exists(), on_disk);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_nobody_reads_yet_keeps_its_server_from_little() {
    let sent = |server: &Server| server.info("total_net_output_bytes").parse::<u64>().expect("a number");
    for binary in both() {
        let server = Server::start(&binary, &["--rdbcompression", "no"]);
        server.fill(8000, 1000);
        let mut node = driver(server.options());
        node.prepare(PAUSE, PATIENCE).await.expect("prepare");
        node.freeze(PAUSE).await.expect("freeze");
        let before = sent(&server);
        node.capture().await.expect("capture");
        server.wait_for("beginning of a dump", |server| sent(server) > before + 30_000);
        // Until it waits for us: each look is an answer too.
        let (mut last, mut now) = (0, sent(&server));
        while now > last + 10_000 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            (last, now) = (now, sent(&server));
        }
        assert!(now - before < 1 << 20, "{} bytes of the dump were sent into the pause", now - before);
        node.thaw().await.expect("thaw");
        let tree = conformance::read(node.collect().await.expect("collect")).await;
        assert!(tree.iter().any(|(_, bytes)| bytes.len() > 8_000_000), "the whole dump came");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_taken_under_load_holds_what_was_there_at_the_cut() {
    for binary in both() {
        let server = Server::start(&binary, &[]);
        fill_all_types(&server);
        let digest_keys = server.command(&["DBSIZE"]);
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut connection = server.connection();
        let writer = std::thread::spawn({
            let (stop, written) = (stop.clone(), written.clone());
            move || {
                while !stop.load(Ordering::SeqCst) {
                    let next: u64 = redis::cmd("INCR").arg("counter").query(&mut connection).expect("a write");
                    written.store(next, Ordering::SeqCst);
                }
            }
        });
        server.wait_for("writes", |_| written.load(Ordering::SeqCst) > 100);
        let mut node = driver(server.options());
        node.prepare(PAUSE, PATIENCE).await.expect("prepare");
        node.freeze(PAUSE).await.expect("freeze");
        let at_freeze = server.command(&["GET", "counter"]);
        node.capture().await.expect("capture");
        let receipt = node.thaw().await.expect("thaw");
        assert_eq!(receipt.proof.consistent, Consistency::Proved);
        let before = written.load(Ordering::SeqCst);
        server.wait_for("writes after the thaw", |_| written.load(Ordering::SeqCst) > before);
        let tree = conformance::read(node.collect().await.expect("collect")).await;
        stop.store(true, Ordering::SeqCst);
        writer.join().expect("the writer does not panic");
        node.abandon().await;

        let place = directory();
        files(place.path(), &tree);
        let restored = Server::start_in(&binary, place, &[]);
        assert_eq!(restored.command(&["GET", "counter"]), at_freeze);
        let keys: u64 = restored.command(&["DBSIZE"]).parse().expect("a number");
        assert_eq!(keys, digest_keys.parse::<u64>().expect("a number") + 1);
        assert_eq!(server.command(&["CONFIG", "GET", "repl-diskless-sync-delay"]), "repl-diskless-sync-delay\n5");
        assert!(!server.directory().join("dump.rdb").exists(), "nothing is left behind where persistence is off");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_is_accepted_inside_the_freeze_and_all_after_the_deadline() {
    let server = Server::start(&redis_70(), &[]);
    let mut node = driver(server.options());
    node.prepare(PAUSE, PATIENCE).await.expect("prepare");
    let pause = Duration::from_secs(1);
    let start = Instant::now();
    node.freeze(pause).await.expect("freeze");
    // Leaks the driver: nobody thaws.
    std::mem::forget(node);
    server.command(&["SET", "k", "v"]);
    let waited = start.elapsed();
    assert!(waited >= pause && waited < pause + Duration::from_secs(3), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_driver_thaws() {
    let server = Server::start(&redis_70(), &[]);
    let mut node = driver(server.options());
    node.prepare(PAUSE, PATIENCE).await.expect("prepare");
    node.freeze(Duration::from_secs(20)).await.expect("freeze");
    drop(node);
    let start = Instant::now();
    server.command(&["SET", "k", "v"]);
    assert!(start.elapsed() < Duration::from_secs(10));
    server
        .wait_for("the delay as it was", |server| server.command(&["CONFIG", "GET", "repl-diskless-sync-delay"]).ends_with('5'));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_dies_at_any_step_leaves_a_setting_changed() {
    let settings = |server: &Server| server.command(&["CONFIG", "GET", "repl-diskless-sync*"]);
    for arguments in [&["--repl-diskless-sync", "yes"][..], &["--repl-diskless-sync", "no"]] {
        let server = Server::start(&redis_70(), arguments);
        server.fill(100, 100);
        let before = settings(&server);
        assert!(before.contains("repl-diskless-sync-delay\n5"), "{before}");
        for steps in 1..=3 {
            let mut node = driver(server.options());
            node.prepare(PAUSE, PATIENCE).await.expect("prepare");
            if steps > 1 {
                node.freeze(Duration::from_secs(2)).await.expect("freeze");
            }
            if steps > 2 {
                node.capture().await.expect("capture");
            }
            assert_eq!(settings(&server), before, "after {steps} steps");
            node.abandon().await;
            assert_eq!(settings(&server), before, "given back after {steps} steps");
        }
        cut(&mut driver(server.options())).await;
        assert_eq!(settings(&server), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_whose_fork_came_too_late_leaves_no_dump_where_persistence_is_off() {
    for binary in both() {
        let server = Server::start(&binary, &[]);
        server.fill(100, 100);
        let directory = Some(server.directory().to_owned());
        let options = RedisOptions { capture: CaptureMode::Save, data_directory: directory, ..server.options() };
        let mut node = driver(options);
        node.prepare(PAUSE, PATIENCE).await.expect("prepare");
        node.freeze(Duration::from_secs(2)).await.expect("freeze");
        server.signal("STOP");
        node.capture().await.expect_err("it does not answer in time");
        server.signal("CONT");
        node.abandon().await;
        assert_eq!(server.info("rdb_bgsave_in_progress"), "0");
        let saved: u64 = server.info("total_forks").parse().unwrap_or(1);
        assert_eq!(saved, 1, "the save that was asked for was made");
        assert!(!server.directory().join("dump.rdb").exists(), "its dump would be loaded at the next start");
    }
}

async fn refusal(options: RedisOptions) -> DriverError {
    let error = driver(options).prepare(PAUSE, Duration::from_millis(200)).await.expect_err("it is refused");
    assert_eq!(error.node(), "node-1");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_denied() {
    for binary in both() {
        let server = Server::start(&binary, &["--requirepass", "secret"]);
        for password in [None, Some("wrong")] {
            let options = RedisOptions { password: password.map(Password::new), ..server.options() };
            let error = refusal(options).await;
            assert!(matches!(&error, DriverError::Denied { reason, .. } if reason.contains("password")), "{error}");
            assert!(!error.to_string().contains("secret"));
        }
        cut(&mut driver(RedisOptions { password: Some(Password::new("secret")), ..server.options() })).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_named() {
    const RIGHTS: [&str; 9] =
        ["+ping", "+info", "+time", "+config|get", "+client|pause", "+client|unpause", "+client|setname", "+psync", "+replconf"];
    for binary in both() {
        let server = Server::start(&binary, &["--save", "3600", "1"]);
        let options = || RedisOptions { user: Some("bk".to_owned()), password: Some(Password::new("pw")), ..server.options() };
        let grant = |without: &str| {
            let rights = RIGHTS.iter().copied().filter(|right| *right != without);
            let command: Vec<&str> = ["ACL", "SETUSER", "bk", "reset", "on", ">pw", "-@all"].into_iter().chain(rights).collect();
            server.command(&command);
        };
        for right in ["+info", "+config|get", "+client|pause", "+client|setname", "+psync", "+replconf"] {
            grant(right);
            let error = refusal(options()).await.to_string();
            assert!(error.contains(&format!("ACL SETUSER bk {right}`")), "{right}: {error}");
        }
        // Asked within a transaction, where that is permitted.
        grant("+client|unpause");
        server.command(&["ACL", "SETUSER", "bk", "+multi", "+discard"]);
        let error = refusal(options()).await.to_string();
        assert!(error.contains("ACL SETUSER bk +client|unpause`"), "{error}");
        server.command(&["ACL", "SETUSER", "bk", "+client|unpause"]);
        cut(&mut driver(options())).await;
        grant("none");
        cut(&mut driver(options())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_refused_and_its_master_named() {
    for binary in both() {
        let master = Server::start(&binary, &["--repl-diskless-sync-delay", "0"]);
        let replica = Server::start(&binary, &["--replicaof", "127.0.0.1", &master.port.to_string()]);
        replica.wait_for("link", |server| server.info("master_link_status") == "up");
        let error = refusal(replica.options()).await.to_string();
        assert!(error.contains("not a master") && error.contains(&master.port.to_string()), "{error}");
        assert!(discover(&replica.options(), &[]).await.is_err());
        // With a replica attached, its pings advance the offset.
        cut(&mut driver(master.options())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loading_server_is_refused_after_the_patience() {
    let server = Server::start(&redis_70(), &[]);
    server.fill(5000, 1000);
    server.command(&["SAVE"]);
    let place = directory();
    std::fs::copy(server.directory().join("dump.rdb"), place.path().join("dump.rdb")).expect("a copy");
    let slow = Server::spawn(
        &redis_70(),
        place,
        &["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "4096", "--rdbcompression", "no"],
    );
    let error = refusal(slow.options()).await.to_string();
    assert!(error.contains("loading"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_discovered_and_refused_while_slots_migrate() {
    for binary in both() {
        let servers = cluster(&binary, 3, &[]);
        let found = discover(&servers[1].options(), &[]).await.expect("discovered");
        let mut ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
        ports.sort_unstable();
        let mut found_ports: Vec<u16> = found
            .iter()
            .map(|node| node.node.as_str().strip_prefix("127.0.0.1_").expect("named so").parse().expect("a port"))
            .collect();
        found_ports.sort_unstable();
        assert_eq!(found_ports, ports);

        let mut node = driver(servers[0].options());
        let description = node.describe().await.expect("described");
        assert_eq!(description.slots, [(0, 5460)]);
        assert_eq!(description.role, "master");
        let id = servers[0].command(&["CLUSTER", "MYID"]);
        assert_eq!(description.shard.as_deref(), Some(id.as_str()));
        assert!(description.identity.contains(&format!("node:{id}")));
        // "foo{06S}" lies in slot 0.
        servers[0].command(&["SET", "{06S}x", "v"]);
        cut(&mut node).await;

        let other = servers[1].command(&["CLUSTER", "MYID"]);
        servers[0].command(&["CLUSTER", "SETSLOT", "0", "MIGRATING", &other]);
        let error = refusal(servers[0].options()).await.to_string();
        assert!(error.contains("migrating"), "{error}");
    }
}

async fn frozen(server: &Server) -> RedisDriver {
    let mut node = driver(server.options());
    node.prepare(PAUSE, PATIENCE).await.expect("prepare");
    node.freeze(PAUSE).await.expect("freeze");
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_inside_the_freeze_voids_the_cut() {
    for binary in both() {
        for capture_first in [true, false] {
            let server = Server::start(&binary, &[]);
            let mut node = frozen(&server).await;
            if capture_first {
                node.capture().await.expect("capture");
            }
            server.command(&["CLIENT", "UNPAUSE"]);
            server.command(&["SET", "k", "v"]);
            if !capture_first {
                node.capture().await.expect("capture");
            }
            let error = node.thaw().await.expect_err("void");
            assert!(matches!(error, DriverError::Void { .. }), "{error}");
            assert!(node.collect().await.is_err());
            node.abandon().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_inside_the_freeze_voids_the_cut() {
    let (server, other) = (Server::start(&redis_70(), &[]), Server::start(&redis_70(), &[]));
    let mut node = frozen(&server).await;
    node.capture().await.expect("capture");
    server.command(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]);
    let error = node.thaw().await.expect_err("void");
    assert!(matches!(&error, DriverError::Void { reason, .. } if reason.contains("role")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_inside_the_freeze_voids_the_cut() {
    for capture_first in [true, false] {
        let mut server = Server::start(&redis_70(), &[]);
        let mut node = frozen(&server).await;
        if capture_first {
            node.capture().await.expect("capture");
        }
        server.kill();
        if !capture_first {
            assert!(node.capture().await.is_err());
        }
        let error = node.thaw().await.expect_err("void");
        assert!(matches!(error, DriverError::Void { .. }), "{error}");
        node.abandon().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_thaw_voids_the_cut() {
    let server = Server::start(&redis_70(), &[]);
    let mut node = driver(server.options());
    node.prepare(PAUSE, PATIENCE).await.expect("prepare");
    let pause = Duration::from_millis(300);
    node.freeze(pause).await.expect("freeze");
    node.capture().await.expect("capture");
    // The write waits for the end of the pause.
    server.command(&["SET", "k", "v"]);
    let error = node.thaw().await.expect_err("void");
    assert!(matches!(error, DriverError::Void { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_coordinator_leaves_the_pause_alone() {
    for binary in both() {
        let server = Server::start(&binary, &[]);
        let mut second = driver(server.options());
        second.prepare(PAUSE, PATIENCE).await.expect("prepare");
        // Another one, which looked before we were there, freezes first.
        let mut first = server.connection();
        redis::cmd("CLIENT").arg("SETNAME").arg("tintype-frozen").exec(&mut first).expect("a name");
        let start = Instant::now();
        redis::cmd("CLIENT").arg("PAUSE").arg(2000).arg("WRITE").exec(&mut first).expect("a pause");
        let error = second.freeze(Duration::from_secs(1)).await.expect_err("it is frozen already");
        assert!(matches!(&error, DriverError::Refused { reason, .. } if reason.contains("another coordinator")), "{error}");
        assert!(second.capture().await.is_err());
        second.abandon().await;
        server.command(&["SET", "k", "v"]);
        assert!(start.elapsed() >= Duration::from_secs(2), "its pause was left alone");
        assert_eq!(server.command(&["CONFIG", "GET", "repl-diskless-sync-delay"]), "repl-diskless-sync-delay\n5");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_under_way_is_noticed_before_the_freeze() {
    let server = Server::start(&redis_70(), &[]);
    let mut first = driver(server.options());
    first.prepare(PAUSE, PATIENCE).await.expect("prepare");
    let error = refusal(server.options()).await.to_string();
    assert!(error.contains("another snapshot"), "{error}");
    first.abandon().await;
    cut(&mut driver(server.options())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_save_is_waited_for_and_then_refused() {
    let server = Server::start(&redis_70(), &["--rdb-key-save-delay", "2000"]);
    server.fill(1000, 10);
    server.command(&["BGSAVE"]);
    let error = refusal(server.options()).await.to_string();
    assert!(error.contains("a save"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_would_take_too_long_is_refused() {
    let server = Server::start(&redis_70(), &[]);
    server.command(&["BGSAVE"]);
    server.wait_for("end of the save", |server| server.info("rdb_bgsave_in_progress") == "0");
    let error = driver(server.options()).prepare(Duration::from_nanos(1), PATIENCE).await.expect_err("refused").to_string();
    assert!(error.contains("fork") && error.contains("max_pause"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_breaks_is_noticed() {
    for arguments in [&["--save", ""][..], &["--save", "3600", "1", "--repl-diskless-sync", "no"]] {
        let mut server = Server::start(&redis_70(), arguments);
        server.fill(20_000, 1000);
        server.command(&["CONFIG", "SET", "rdbcompression", "no"]);
        let mut node = frozen(&server).await;
        node.capture().await.expect("capture");
        node.thaw().await.expect("thaw");
        let mut entries = node.collect().await.expect("collect");
        let CapturedContent::Stream(mut stream) = entries.remove(0).content else { panic!("the dump is a stream") };
        let mut start = vec![0; 100_000];
        stream.read_exact(&mut start).await.expect("the start arrives");
        server.kill();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect_err("the end does not");
        assert!(matches!(stream.finish().await, Err(DriverError::Broken { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appendonly_tree_starts_with_the_data() {
    for binary in both() {
        let server = Server::start(&binary, &["--appendonly", "yes"]);
        fill_all_types(&server);
        let digest = server.command(&["DEBUG", "DIGEST"]);
        let tree = cut(&mut driver(server.options())).await;
        let place = directory();
        files(place.path(), &tree);
        let restored = Server::start_in(&binary, place, &["--appendonly", "yes"]);
        assert_eq!(restored.command(&["DEBUG", "DIGEST"]), digest);
        restored.command(&["SET", "after", "1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_is_captured_and_leaves_nothing_where_persistence_is_off() {
    for binary in both() {
        for (save, stays) in [(&["--save", ""][..], false), (&["--save", "3600", "1"], true)] {
            let server = Server::start(&binary, save);
            fill_all_types(&server);
            let digest = server.command(&["DEBUG", "DIGEST"]);
            let options = RedisOptions {
                capture: CaptureMode::Save,
                data_directory: Some(server.directory().to_owned()),
                ..server.options()
            };
            conformance::all(&mut driver(options.clone())).await;
            let tree = cut(&mut driver(options)).await;
            assert_eq!(server.directory().join("dump.rdb").exists(), stays);
            let place = directory();
            files(place.path(), &tree);
            let restored = Server::start_in(&binary, place, &[]);
            assert_eq!(restored.command(&["DEBUG", "DIGEST"]), digest);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn append_only_files_are_captured() {
    for binary in both() {
        for preamble in [false, true] {
            let server = Server::start(&binary, &["--appendonly", "yes", "--auto-aof-rewrite-percentage", "0"]);
            fill_all_types(&server);
            if preamble {
                server.command(&["BGREWRITEAOF"]);
                server.wait_for("end of the rewrite", |server| {
                    server.info("aof_rewrite_in_progress") == "0" && server.info("aof_rewrite_scheduled") == "0"
                });
                server.command(&["MSET", "a", "1", "b", "2"]);
            }
            let digest = server.command(&["DEBUG", "DIGEST"]);
            let options = RedisOptions {
                capture: CaptureMode::Aof,
                data_directory: Some(server.directory().to_owned()),
                ..server.options()
            };
            conformance::all(&mut driver(options.clone())).await;
            let tree = cut(&mut driver(options)).await;
            let place = directory();
            files(place.path(), &tree);
            let restored = Server::start_in(&binary, place, &["--appendonly", "yes"]);
            assert_eq!(restored.command(&["DEBUG", "DIGEST"]), digest);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_server_is_noticed() {
    let server = Server::start(&redis_62(), &["--appendonly", "yes"]);
    let other = Server::start(&redis_62(), &["--appendonly", "yes"]);
    server.fill(10, 10);
    let mut node = driver(RedisOptions {
        capture: CaptureMode::Aof,
        data_directory: Some(other.directory().to_owned()),
        ..server.options()
    });
    node.prepare(PAUSE, PATIENCE).await.expect("prepare");
    node.freeze(PAUSE).await.expect("freeze");
    let error = node.capture().await.expect_err("noticed").to_string();
    assert!(error.contains("data_directory"), "{error}");
    node.abandon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_answering_is_given_up_in_time() {
    let server = Server::start(&redis_70(), &[]);
    let mut node = driver(server.options());
    node.prepare(PAUSE, PATIENCE).await.expect("prepare");
    server.signal("STOP");
    let start = Instant::now();
    let error = node.freeze(Duration::from_secs(1)).await.expect_err("no answer");
    assert!(matches!(error, DriverError::DeadlineExceeded { .. }), "{error}");
    node.abandon().await;
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    server.signal("CONT");
    server.command(&["SET", "k", "v"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_captured_through_tls() {
    let place = directory();
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(place.path())
        .output()
        .expect("openssl is there: `apt-get install openssl`");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (key, cert) = (place.path().join("key.pem"), place.path().join("cert.pem"));
    let tls_port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let server = Server::start(
        &redis_70(),
        &[
            "--tls-port",
            &tls_port.to_string(),
            "--tls-cert-file",
            &cert.display().to_string(),
            "--tls-key-file",
            &key.display().to_string(),
            "--tls-ca-cert-file",
            &cert.display().to_string(),
            "--tls-auth-clients",
            "no",
        ],
    );
    server.fill(1000, 1000);
    let options = RedisOptions { url: format!("rediss://127.0.0.1:{tls_port}"), ca_file: Some(cert), ..server.options() };
    let tree = cut(&mut driver(options.clone())).await;
    assert!(tree[0].1.starts_with(b"REDIS"));
    // A certificate that nobody vouches for.
    let error = driver(RedisOptions { ca_file: None, ..options }).prepare(PAUSE, PATIENCE).await.expect_err("not trusted");
    assert!(matches!(error, DriverError::Unreachable { .. }), "{error}");
}
