//! Stores that are started on a clone: what they had is there, what they write outlives whoever is killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::clone::Clone;
use super::mount::look;
use super::{Home, run_within};
use crate::reader::python;
use crate::support::effort::{Random, effort, tell};
use crate::support::redis::{Server, both, redis_70};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/cli/stores.py");
const STORES: [&str; 3] = ["leveldb", "rocksdb", "sqlite"];

/// Does something with real stores; a million keys take their time.
pub fn stores(arguments: &[&str]) {
    run_within(Duration::from_secs(500), Command::new(python()).arg("-B").arg(SCRIPT).args(arguments)).done();
}

/// Writes to one store until it is killed; returns up to which key all is durable.
fn write_and_kill(directory: &str, store: &str, from: usize, to: usize, steps: usize) -> usize {
    let mut child = Command::new(python())
        .args(["-B", SCRIPT, "write", directory, store, &from.to_string(), &to.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python is installed");
    let mut durable = from;
    for line in BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok) {
        durable = line.strip_prefix("synced ").and_then(|number| number.parse().ok()).expect("a number");
        if durable >= from + steps * 500 {
            break;
        }
    }
    child.kill().expect("ours");
    child.wait().expect("ended");
    durable
}

#[test]
fn stores_open_a_clone_read_all_write_compact_and_reopen_after_a_kill() {
    let mut random = Random::begin("clone stores");
    let home = Home::with_repository();
    let (count, more) = (effort(5000, 100_000), effort(5000, 1_000_000));
    std::fs::create_dir(home.path("data")).expect("a directory");
    stores(&["make", &home.text("data"), &count.to_string()]);
    home.snapshot(&[]);
    let clone = Clone::new(&home, &["--upper", &home.text("upper")]);
    let place = home.text("clone");
    stores(&["check", &place, &count.to_string()]);
    for store in STORES {
        let mut durable = count;
        for round in 0..effort(2, 5) {
            durable = write_and_kill(&place, store, durable, count + more, 1 + random.next() as usize % 8);
            if round % 2 == 1 {
                clone.again();
            }
            stores(&["check", &place, &durable.to_string(), store]);
        }
        stores(&["write", &place, store, &durable.to_string(), &(count + more).to_string()]);
        clone.again();
        stores(&["check", &place, &(count + more).to_string(), store]);
    }
    // Nothing of it came to the snapshot.
    home.run(&["restore", "demo/latest/data", "--directory", "placed"]).done();
    stores(&["check", &home.text("placed"), &count.to_string()]);
    home.run(&["unclone", "clone", "--yes"]).done();
    assert!(!home.path("upper").exists());
}

/// A snapshot of what a Redis has on its disk, and a clone of that.
fn stored(binary: &Path, home: &Home, arguments: &[&str], keys: usize) {
    let server = Server::start(binary, arguments);
    server.fill(keys, 300);
    server.command(&["SAVE"]);
    let data = home.path("data");
    look(&["cp", "-a", &server.directory().display().to_string(), &data.display().to_string()]).done();
    std::fs::remove_file(data.join("log")).expect("its log");
    home.snapshot(&[]);
}

fn on<'a>(clone: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
    [&["--dir", clone], arguments].concat()
}

#[test]
fn redis_runs_saves_and_rewrites_on_a_clone_and_starts_from_it_again() {
    const KEYS: usize = 5000;
    let persistent: [&[&str]; 3] = [
        &["--appendonly", "no", "--save", "900 1"],
        &["--appendonly", "yes", "--appendfsync", "everysec"],
        &["--appendonly", "yes", "--appendfsync", "always", "--aof-use-rdb-preamble", "no"],
    ];
    for binary in both() {
        for arguments in persistent {
            let home = Home::with_repository();
            stored(&binary, &home, arguments, KEYS);
            let clone = Clone::new(&home, &[]);
            let place = home.text("clone");
            let server = Server::start(&binary, &on(&place, arguments));
            assert_eq!(server.command(&["DBSIZE"]), KEYS.to_string());
            server.fill(2 * KEYS, 200);
            for (command, field) in [("BGSAVE", "rdb_bgsave_in_progress"), ("BGREWRITEAOF", "aof_rewrite_in_progress")] {
                server.command(&[command]);
                server.wait_for(command, |server| server.info(field) == "0");
                server.fill(2 * KEYS, 250);
            }
            assert_eq!(server.info("rdb_last_bgsave_status"), "ok");
            server.command(&["SET", "last", "word"]);
            let digest = server.command(&["DEBUG", "DIGEST"]);
            if arguments.contains(&"no") && arguments[1] == "no" {
                server.command(&["SAVE"]);
            }
            let _ends = redis::cmd("SHUTDOWN").exec(&mut server.connection());
            drop(server);
            clone.again();
            let server = Server::start(&binary, &on(&place, arguments));
            assert_eq!(server.command(&["DEBUG", "DIGEST"]), digest, "{arguments:?}");
            drop(server);
            home.run(&["unclone", "clone", "--yes"]).done();
        }
    }
}

#[test]
fn what_redis_acknowledged_is_there_after_the_daemon_under_it_was_killed() {
    let mut random = Random::begin("clone redis kill");
    let home = Home::with_repository();
    let arguments = ["--appendonly", "yes", "--appendfsync", "always"];
    stored(&redis_70(), &home, &arguments, 1000);
    let clone = Clone::new(&home, &[]);
    let place = home.text("clone");
    let rounds = effort(4, 100);
    let mut acknowledged = 0u64;
    for round in 0..rounds {
        let server = Server::start(&redis_70(), &on(&place, &arguments));
        let found: u64 = server.command(&["GET", "counter"]).parse().unwrap_or(0);
        assert!(found >= acknowledged, "round {round}: {found}, and {acknowledged} was acknowledged");
        assert!(server.command(&["DBSIZE"]).parse::<usize>().expect("a number") >= 1000);
        let process = clone.process().expect("is served");
        let is_dead = Arc::new(AtomicBool::new(false));
        let (wait, dead) = (random.duration(Duration::from_millis(300)), is_dead.clone());
        let killer = std::thread::spawn(move || {
            std::thread::sleep(wait);
            let process = rustix::process::Pid::from_raw(process.cast_signed()).expect("a number");
            rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("ours");
            dead.store(true, Ordering::SeqCst);
        });
        acknowledged = found;
        let mut connection = server.connection();
        connection.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        while !is_dead.load(Ordering::SeqCst) {
            match redis::cmd("INCR").arg("counter").query::<u64>(&mut connection) {
                Ok(number) => acknowledged = number,
                Err(_) => break,
            }
            if random.next().is_multiple_of(50) {
                let _begun = redis::cmd("BGREWRITEAOF").query::<String>(&mut connection);
            }
        }
        killer.join().expect("no panic");
        drop(server);
        clone.serve();
    }
    tell(&format!("{rounds} kills, {acknowledged} acknowledged writes"));
    home.run(&["unclone", "clone", "--yes"]).done();
}
