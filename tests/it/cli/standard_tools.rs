//! Restoring with what every host has: `cp`, `rsync`, `ln`, on servers with and without an append-only file; and stores that
//! are started on the mount itself.

use std::path::Path;
use std::process::Command;

use super::mount::{Mountpoint, look};
use super::{Home, run};
use crate::support::redis::{Server, both, redis_70};

const KEYS: usize = 3000;

/// Starts a server on a directory as its owner would, and compares what it has.
fn check(binary: &Path, directory: &Path, arguments: &[&str], digest: &str) {
    let directory = directory.display().to_string();
    let server = Server::start(binary, &[&["--dir", &directory], arguments].concat());
    assert_eq!((server.command(&["DBSIZE"]), server.command(&["DEBUG", "DIGEST"])), (KEYS.to_string(), digest.to_owned()));
    // It can write there as well.
    server.command(&["SET", "more", "1"]);
    server.command(&["SAVE"]);
}

/// A snapshot of a server, which is ended, and the mount that shows it: the node's directory under its date.
fn stored_and_mounted(home: &Home, server: Server) -> (Mountpoint, String) {
    home.run(&["snapshot", "demo", "--redis", &format!("127.0.0.1:{}", server.port)]).done();
    let place = Mountpoint::new(home, "mount");
    home.run(&["mount", &place.text()]).done();
    let dated = std::fs::canonicalize(home.path("mount/demo/latest")).expect("leads to a date");
    (place, dated.join(format!("127.0.0.1_{}", server.port)).display().to_string())
}

#[test]
fn cp_and_rsync_restore_servers_with_and_without_an_append_only_file() {
    for binary in both() {
        for arguments in [&["--appendonly", "no"], &["--appendonly", "yes"]] {
            let home = Home::with_repository();
            let server = Server::start(&binary, arguments);
            server.fill(KEYS, 100);
            let digest = server.command(&["DEBUG", "DIGEST"]);
            let (place, node) = stored_and_mounted(&home, server);
            for (name, copy) in [
                ("copied", ["cp", "-a", "--no-preserve=xattr", &format!("{node}/.")]),
                ("synced", ["rsync", "-a", "--whole-file", &format!("{node}/")]),
            ] {
                std::fs::create_dir(home.path(name)).expect("a directory");
                look(&[&copy[..], &[&home.text(name)]].concat()).done();
                check(&binary, &home.path(name), arguments, &digest);
            }
            home.run(&["unmount", &place.text()]).done();
        }
    }
}

#[test]
fn links_into_the_mount_start_a_server_and_are_replaced_by_its_own_files() {
    for (arguments, script) in [
        (["--appendonly", "no"], "ln -s \"$1/dump.rdb\" dump.rdb"),
        (
            ["--appendonly", "yes"],
            "mkdir appendonlydir; for file in \"$1\"/appendonlydir/*.base.rdb \"$1\"/appendonlydir/*.incr.aof; do \
             ln -s \"$file\" appendonlydir/; done; cp \"$1/appendonlydir/appendonly.aof.manifest\" appendonlydir/; \
             chmod u+w appendonlydir/appendonly.aof.manifest; : > appendonlydir/appendonly.aof.2.incr.aof; \
             echo 'file appendonly.aof.2.incr.aof seq 2 type i' >> appendonlydir/appendonly.aof.manifest",
        ),
    ] {
        let home = Home::with_repository();
        let server = Server::start(&redis_70(), &arguments);
        server.fill(KEYS, 100);
        let digest = server.command(&["DEBUG", "DIGEST"]);
        let (place, node) = stored_and_mounted(&home, server);
        std::fs::create_dir(home.path("linked")).expect("a directory");
        run(Command::new("sh").args(["-ec", script, "sh", &node]).current_dir(home.path("linked"))).done();
        let linked = home.text("linked");
        let server = Server::start(&redis_70(), &[&["--dir", &linked], &arguments[..]].concat());
        assert_eq!(server.command(&["DEBUG", "DIGEST"]), digest);
        server.command(&["SET", "more", "1"]);
        if arguments[1] == "yes" {
            server.command(&["BGREWRITEAOF"]);
            server.wait_for("a rewritten file", |server| server.info("aof_rewrite_in_progress") == "0");
        } else {
            server.command(&["SAVE"]);
        }
        drop(server);
        // Nothing leads to the mount any more.
        home.run(&["unmount", &place.text()]).done();
        let server = Server::start(&redis_70(), &[&["--dir", &linked], &arguments[..]].concat());
        assert_eq!(server.command(&["DBSIZE"]), (KEYS + 1).to_string(), "{arguments:?}");
    }
}

#[test]
fn rocksdb_is_read_right_on_the_mount() {
    let home = Home::with_repository();
    std::fs::create_dir(home.path("data")).expect("a directory");
    let script = "seq -w 20000 | sed 's/.*/key& ==> value&/' | ldb --db=\"$1\" --create_if_missing load --disable_wal";
    run(Command::new("sh").args(["-ec", script, "sh", &home.text("data")])).done();
    home.snapshot(&[]);
    let place = Mountpoint::new(&home, "mount");
    home.run(&["mount", &place.text()]).done();
    let scan = |directory: &str| run(Command::new("ldb").args([&format!("--db={}", home.text(directory)), "scan"]));
    let found = scan("mount/demo/latest/data");
    let lines: Vec<_> = found.done().text().lines().collect();
    assert_eq!((lines.len(), lines[19_999]), (20_000, "key20000 : value20000"), "{}", found.err);
    home.run(&["unmount", &place.text()]).done();
}
