//! Live Redis servers: the happy path, every way in which one can refuse, and every way in which a cut can go wrong.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::gate::{Gate, Pass, has};
use super::{Home, Ran, run};
use crate::support::redis::{Server, cluster, redis_70};

fn address(server: &Server) -> String {
    format!("127.0.0.1:{}", server.port)
}

fn server() -> Server {
    let server = Server::start(&redis_70(), &[]);
    server.fill(1000, 100);
    server
}

/// Dumps of it take seconds.
fn slow_server() -> Server {
    let server = Server::start(&redis_70(), &["--rdb-key-save-delay", "3000"]);
    server.fill(2000, 1000);
    server
}

fn snapshot(home: &Home, address: &str) -> Ran {
    home.run(&["snapshot", "demo", "--redis", address])
}

/// Writes are accepted, now.
fn assert_not_paused(server: &Server) {
    let began = Instant::now();
    server.command(&["SET", "probe", "1"]);
    assert!(began.elapsed() < Duration::from_secs(2), "the pause was left behind");
}

#[test]
fn a_redis_is_stored_and_a_server_starts_on_what_is_exported() {
    let (home, server) = (Home::with_repository(), server());
    let value = home.run(&["--json", "snapshot", "demo", "--redis", &address(&server)]).json();
    assert_eq!((&value["status"], &value["cut"]["consistent"]), (&"completed".into(), &"proved".into()));
    let text = snapshot(&home, &address(&server));
    assert!(text.done().text().contains("proved to be one instant"), "{text:?}");
    assert_eq!(home.dates("demo").len(), 2);
    let node = format!("127.0.0.1_{}", server.port);
    assert_eq!(home.run(&["list", &format!("demo/latest/{node}")]).done().text(), "dump.rdb\n");
    assert!(home.run(&["show", "demo/latest"]).done().text().contains("1000 keys"));

    std::fs::write(home.path("node.tar"), &home.run(&["export", &format!("demo/latest/{node}")]).done().out).expect("a file");
    let place = tempfile::tempdir().expect("a directory");
    run(Command::new("tar").arg("-xf").arg(home.path("node.tar")).arg("-C").arg(place.path())).done();
    let restored = Server::start_in(&redis_70(), place, &[]);
    assert_eq!(restored.command(&["DBSIZE"]), "1000");
}

#[test]
fn addresses_on_the_command_line_outweigh_what_the_configuration_has_under_the_name() {
    let (home, server) = (Home::with_repository(), server());
    let config = "[clusters.demo]\nstore = \"files\"\n[clusters.demo.nodes.n]\ndata_directory = \"/nowhere\"\n";
    home.private("tintype.toml", &format!("state_directory = {:?}\n{config}", home.path("state")));
    snapshot(&home, &address(&server)).done();
}

#[test]
fn a_cluster_is_found_from_one_node_and_another_one_does_not_get_its_name() {
    let (home, servers) = (Home::with_repository(), cluster(&redis_70(), 3, &[]));
    let value = home.run(&["--json", "snapshot", "demo", "--redis", &address(&servers[1])]).json();
    assert_eq!(value["nodes"].as_object().map(|nodes| nodes.len()), Some(3));
    let doctor = home.run(&["doctor", "--redis", &address(&servers[0])]);
    assert_eq!(doctor.done().text().matches("can be captured").count(), 3, "{doctor:?}");

    let stranger = server();
    snapshot(&home, &address(&stranger)).refused(1, &["demo", "--adopt"]);
    assert_eq!(home.dates("demo").len(), 1);
    home.run(&["snapshot", "demo", "--adopt", "--redis", &address(&stranger)]).done();
    assert_eq!(home.dates("demo").len(), 2);
}

#[test]
fn set_up_writes_a_configuration_that_works() {
    let (home, server) = (Home::new(), server());
    let config = home.text("written/tintype.toml");
    home.run(&["setup", &address(&server), "--yes", "--cluster", "demo", "--output", &config]).done();
    home.run(&["setup", &address(&server), "--yes", "--output", &config]).refused(1, &[&config, "already there"]);
    home.run(&["--config", &config, "init"]).done();
    home.run(&["--config", &config, "snapshot", "demo"]).done();
    let other = home.text("other.toml");
    let value = home.run(&["--json", "setup", &address(&server), "--yes", "--output", &other]).json();
    assert_eq!(value["path"], other);
    home.run(&["setup", "127.0.0.1:1", "--yes", "--output", "none.toml"]).refused(1, &["127.0.0.1"]);
    assert!(!home.path("none.toml").exists());
}

#[test]
fn a_redis_that_is_down_is_named() {
    let home = Home::with_repository();
    let mut server = server();
    snapshot(&home, &address(&server)).done();
    server.kill();
    let ran = snapshot(&home, &address(&server));
    ran.refused(1, &[&server.port.to_string()]);
    let ran = home.run(&["--json", "snapshot", "demo", "--redis", &address(&server)]);
    assert_eq!(ran.refused(1, &[]).object()["error"]["code"], "unreachable");
    snapshot(&home, "no-such-host.invalid:6379").refused(1, &["no-such-host.invalid"]);
    assert_eq!(home.run(&["doctor", "--redis", &address(&server)]).code, Some(1));
    assert_eq!(home.dates("demo").len(), 1);
}

#[test]
fn a_wrong_password_is_denied_and_never_shown() {
    let home = Home::with_repository();
    let server = Server::start(&redis_70(), &["--requirepass", "open-sesame"]);
    let (right, wrong) = (home.private("right", "open-sesame\n"), home.private("wrong", "close-barley\n"));
    snapshot(&home, &address(&server)).refused(1, &["password"]);
    let ran = home.run(&["snapshot", "demo", "--redis", &address(&server), "--redis-password-file", &wrong]);
    ran.refused(1, &["password"]);
    assert!(!ran.err.contains("close-barley"), "{}", ran.err);
    home.run(&["snapshot", "demo", "--redis", &address(&server), "--redis-password-file", &right]).done();
}

#[test]
fn a_right_that_is_missing_is_named_with_the_command_that_gives_it() {
    let (home, server) = (Home::with_repository(), Server::start(&redis_70(), &["--repl-diskless-sync-delay", "0"]));
    let password = home.private("password", "pw\n");
    let common = "+ping +info +time +config|get +client|unpause +client|setname +replconf";
    let grant = |rights: &str| {
        let all: Vec<&str> = "ACL SETUSER bk reset on >pw -@all".split(' ').chain(rights.split(' ')).collect();
        server.command(&all);
    };
    let arguments = ["--redis", &address(&server), "--redis-user", "bk", "--redis-password-file", &password];
    for (given, missing) in [("+client|pause", "+psync"), ("+psync", "+client|pause")] {
        grant(&format!("{common} {given}"));
        home.run(&[&["snapshot", "demo"], &arguments[..]].concat()).refused(1, &[&format!("ACL SETUSER bk {missing}")]);
    }
    assert!(home.dates("demo").is_empty());
    grant(&format!("{common} +client|pause +psync"));
    home.run(&[&["snapshot", "demo"], &arguments[..]].concat()).done();
}

#[test]
fn a_replica_is_refused_and_its_master_named() {
    let (home, master) = (Home::with_repository(), server());
    let replica = Server::start(&redis_70(), &["--replicaof", "127.0.0.1", &master.port.to_string()]);
    replica.wait_for("link", |server| server.info("master_link_status") == "up");
    snapshot(&home, &address(&replica)).refused(1, &["it is a replica", &master.port.to_string()]);
    assert!(home.dates("demo").is_empty());
}

#[test]
fn a_server_that_loads_is_refused_after_the_patience() {
    let (home, full) = (Home::with_repository(), server());
    full.command(&["SAVE"]);
    let place = tempfile::tempdir().expect("a directory");
    std::fs::copy(full.directory().join("dump.rdb"), place.path().join("dump.rdb")).expect("a copy");
    let loading = ["--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024", "--rdbcompression", "no"];
    let slow = Server::spawn(&redis_70(), place, &loading);
    let arguments = ["snapshot", "demo", "--redis", &address(&slow), "--patience", "300ms"];
    home.run(&arguments).refused(1, &["loading"]);
    assert!(home.dates("demo").is_empty());
}

/// A server of a user whom the limit of processes binds, which it does not bind root.
fn server_of_nobody(home: &Home, name: &str, limit: &str) -> Server {
    let user = "setpriv --reuid=64999 --regid=64999 --clear-groups";
    let wrapper = home.private(name, &format!("#!/bin/sh\nexec {user} {limit} redis-server \"$@\"\n"));
    run(Command::new("chmod").args(["755", &wrapper])).done();
    let place = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::chown(place.path(), Some(64999), Some(64999)).expect("these tests run as root");
    let server = Server::start_in(std::path::Path::new(&wrapper), place, &["--bind", "127.0.0.1"]);
    server.fill(10, 10);
    server
}

#[test]
fn a_fork_that_fails_fails_the_snapshot() {
    let home = Home::with_repository();
    // As many as its own threads, and not one child more.
    let free = server_of_nobody(&home, "free", "");
    let status = std::fs::read_to_string(format!("/proc/{}/status", free.info("process_id"))).expect("it runs");
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).expect("a number").trim().to_owned();
    drop(free);
    let server = server_of_nobody(&home, "bound", &format!("prlimit --nproc={threads}:1000"));
    snapshot(&home, &address(&server)).refused(1, &[&server.port.to_string()]);
    assert_not_paused(&server);
    assert!(home.dates("demo").is_empty());
    let process = server.info("process_id");
    let raise = ["--reuid=64999", "--regid=64999", "--clear-groups", "prlimit", "--pid", &process, "--nproc=1000:1000"];
    run(Command::new("setpriv").args(raise)).done();
    snapshot(&home, &address(&server)).done();
}

/// A gate before a server that does something at the first `PSYNC` inside the pause.
fn at_psync(server: &Server, mut then: impl FnMut() -> Pass + Send + 'static) -> Gate {
    let mut is_paused = false;
    Gate::before(server.port, move |bytes| {
        // Before the freeze the right to pause is tried with a time that is none.
        is_paused |= has(bytes, "PAUSE") && !has(bytes, "permitted?") && !has(bytes, "UNPAUSE");
        if is_paused && has(bytes, "PSYNC") { then() } else { Pass::On }
    })
}

#[test]
fn a_node_that_stops_answering_in_the_pause_voids_the_cut() {
    let (home, server) = (Home::with_repository(), server());
    let gate = at_psync(&server, || Pass::Never);
    let began = Instant::now();
    home.run(&["snapshot", "demo", "--redis", &format!("127.0.0.1:{}", gate.port), "--max-pause", "1s"]).refused(1, &[]);
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_not_paused(&server);
    assert!(home.dates("demo").is_empty());
    gate.rule(|_| Pass::On);
    snapshot(&home, &format!("127.0.0.1:{}", gate.port)).done();
}

#[test]
fn a_server_that_hangs_in_the_pause_voids_the_cut() {
    let (home, server) = (Home::with_repository(), Arc::new(server()));
    let stopped = server.clone();
    let gate = at_psync(&server, move || {
        stopped.signal("STOP");
        Pass::On
    });
    let ran = home.run(&["snapshot", "demo", "--redis", &format!("127.0.0.1:{}", gate.port), "--max-pause", "1s"]);
    server.signal("CONT");
    ran.refused(1, &[]);
    server.wait_for("writes", |server| server.command(&["SET", "probe", "1"]) == "OK");
    assert!(home.dates("demo").is_empty());
}

#[test]
fn a_pause_that_somebody_else_ends_voids_the_cut() {
    let (home, server) = (Home::with_repository(), Arc::new(server()));
    let other = server.clone();
    let gate = at_psync(&server, move || {
        other.command(&["CLIENT", "UNPAUSE"]);
        other.command(&["SET", "slipped", "through"]);
        Pass::On
    });
    let ran = home.run(&["snapshot", "demo", "--redis", &format!("127.0.0.1:{}", gate.port)]);
    ran.refused(1, &["run the command again"]);
    assert!(home.dates("demo").is_empty());
}

#[test]
fn a_node_that_becomes_a_replica_in_the_pause_voids_the_cut() {
    let (home, server, master) = (Home::with_repository(), Arc::new(server()), self::server());
    let (other, port) = (server.clone(), master.port.to_string());
    let gate = at_psync(&server, move || {
        other.command(&["REPLICAOF", "127.0.0.1", &port]);
        Pass::On
    });
    snapshot(&home, &format!("127.0.0.1:{}", gate.port)).refused(1, &["run the command again"]);
    assert!(home.dates("demo").is_empty());
}

#[test]
fn a_server_that_another_snapshot_has_paused_is_left_alone() {
    let (home, server) = (Home::with_repository(), server());
    let gate = at_psync(&server, || Pass::Never);
    let mut begun = home.begin(&["snapshot", "demo", "--redis", &format!("127.0.0.1:{}", gate.port), "--max-pause", "4s"]);
    server.wait_for("a pause", |server| server.command(&["CLIENT", "LIST"]).contains("tintype-frozen"));
    let ran = home.run(&["snapshot", "other", "--redis", &address(&server), "--patience", "100ms"]);
    ran.refused(1, &["another snapshot of it is under way"]);
    assert!(server.command(&["CLIENT", "LIST"]).contains("tintype-frozen"), "the other pause was ended");
    begun.ended().refused(1, &[]);
    assert!(home.dates("other").is_empty());
}

#[test]
fn a_gap_in_a_partial_snapshot_is_exit_code_3() {
    let (home, one) = (Home::with_repository(), server());
    let nodes = format!(
        "state_directory = {:?}\n[clusters.demo]\n[clusters.demo.nodes.up]\naddress = \"{}\"\n[clusters.demo.nodes.down]\naddress = \"127.0.0.1:1\"\n",
        home.path("state"),
        address(&one)
    );
    home.private("tintype.toml", &nodes);
    home.run(&["snapshot", "demo"]).refused(1, &["down"]);
    assert!(home.dates("demo").is_empty());
    let ran = home.run(&["--json", "snapshot", "demo", "--partial"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let value = ran.object();
    assert_eq!((&value["nodes"]["up"]["status"], &value["nodes"]["down"]["status"]), (&"completed".into(), &"missing".into()));
    assert!(value["nodes"]["down"]["reason"].is_string());
    let status = home.run(&["status", value["uuid"].as_str().expect("a uuid")]);
    assert_eq!(status.code, Some(3), "{status:?}");
    home.run(&["verify"]).done();
}

#[test]
fn an_interrupted_snapshot_leaves_no_pause_and_nothing_listed() {
    let (home, server) = (Home::with_repository(), slow_server());
    for signal in ["INT", "TERM"] {
        let mut begun = home.begin(&["snapshot", "demo", "--redis", &address(&server)]);
        begun.says("storing");
        let status = home.run(&["status", "--json", &begun.snapshot()]).json();
        let node = &status["nodes"][format!("127.0.0.1_{}", server.port)];
        assert_eq!((&status["status"], &node["status"]), (&"processing".into(), &"processing".into()), "{status}");
        begun.signal(signal);
        begun.ended().refused(1, &["interrupted", "nothing was published"]);
        assert_not_paused(&server);
        assert!(home.dates("demo").is_empty());
        assert!(
            home.run(&["status", "--json"]).json()["clusters"]
                .as_array()
                .is_none_or(|all| all.iter().all(|one| one["processing"].is_null()))
        );
    }
    server.command(&["CONFIG", "SET", "rdb-key-save-delay", "0"]);
    snapshot(&home, &address(&server)).done();
}

#[test]
fn a_killed_snapshot_keeps_nobody_from_taking_the_next_one() {
    let (home, server) = (Home::with_repository(), slow_server());
    let mut killed = Vec::new();
    for phase in ["preparing", "pausing", "storing"] {
        let mut begun = home.begin(&["snapshot", "demo", "--redis", &address(&server)]);
        begun.says(phase).signal("KILL");
        begun.ended();
        let uuid = begun.snapshot();
        let status = home.run(&["status", "--json", &uuid]);
        let value = status.object();
        let node = &value["nodes"][format!("127.0.0.1_{}", server.port)];
        assert_eq!((status.code, &value["status"], &node["status"]), (Some(1), &"failed".into(), &"failed".into()), "{value}");
        assert!(node["reason"].as_str().is_some_and(|reason| reason.contains("died")), "{value}");
        killed.push(uuid);
        // Where it died in the pause, that ends at its own deadline.
        let until = Instant::now() + Duration::from_secs(5);
        server.command(&["SET", "probe", "1"]);
        assert!(Instant::now() < until, "paused past the deadline");
        assert!(home.dates("demo").is_empty());
    }
    server.command(&["CONFIG", "SET", "rdb-key-save-delay", "0"]);
    server.wait_for("the end of the dump", |server| server.info("rdb_bgsave_in_progress") == "0");
    let began = Instant::now();
    snapshot(&home, &address(&server)).done();
    assert!(began.elapsed() < Duration::from_secs(20), "a dead run was waited for");
    for uuid in &killed {
        // The next coordinator has written it down.
        let status = home.run(&["status", uuid]);
        assert!(status.code == Some(1) && status.text().contains("its coordinator died"), "{status:?}");
        assert!(status.text().contains(&format!("127.0.0.1_{}  failed", server.port)), "{status:?}");
    }
    home.run(&["verify"]).done();
}

#[test]
fn a_pause_is_never_longer_than_it_was_allowed_to_be() {
    let (home, server) = (Home::with_repository(), Arc::new(server()));
    let longest = Arc::new(AtomicU64::new(0));
    let (stop, seen, mut connection) = (Arc::new(AtomicBool::new(false)), longest.clone(), server.connection());
    let ended = stop.clone();
    let writer = std::thread::spawn(move || {
        while !ended.load(Ordering::SeqCst) {
            let began = Instant::now();
            ::redis::cmd("INCR").arg("counter").query::<()>(&mut connection).expect("a write");
            seen.fetch_max(u64::try_from(began.elapsed().as_millis()).expect("short"), Ordering::SeqCst);
        }
    });
    let gate = at_psync(&server, || Pass::Never);
    home.run(&["snapshot", "demo", "--redis", &format!("127.0.0.1:{}", gate.port), "--max-pause", "1s"]).refused(1, &[]);
    stop.store(true, Ordering::SeqCst);
    writer.join().expect("no panic");
    assert!(longest.load(Ordering::SeqCst) < 3000, "{longest:?} ms");
}
