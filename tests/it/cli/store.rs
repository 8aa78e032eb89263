//! Object stores that are not there, deny, vanish in the middle or are full.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::gate::{Gate, Pass, has};
use super::{Home, run};
use crate::support::s3::{BUCKET, S3Server};

/// A home whose repository is in a bucket behind `port`; it gives up soon.
fn home_in(server: &S3Server, bucket: &str, port: u16, secret: Option<&str>) -> Home {
    let options = secret.map_or_else(|| server.options(), |secret| server.options_with_secret(secret));
    let credentials = options.credentials_file.expect("the server has some");
    let mut home = Home::new();
    home.url = format!(
        "s3://{bucket}/cli?endpoint=http://127.0.0.1:{port}&region=us-east-1&max_attempts=2&credentials_file={}",
        credentials.display()
    );
    home
}

fn port(server: &S3Server) -> u16 {
    let endpoint = server.options().endpoint.expect("it has one");
    endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
}

#[test]
fn a_repository_in_a_bucket_does_the_same_as_one_on_disk() {
    let server = S3Server::moto();
    let home = home_in(&server, BUCKET, port(&server), None);
    home.data("data/a", 300_000, 1);
    home.run(&["init", "--json"]).json();
    home.snapshot(&[]);
    assert_eq!(home.snapshot(&[])["new_bytes"], 0);
    assert_eq!(home.dates("demo").len(), 2);
    home.run(&["verify", "--json"]).json();
    assert_eq!(home.run(&["list", "demo/latest/data"]).done().text(), "a\n");
    home.run(&["doctor"]).done();
}

#[test]
fn a_bucket_that_does_not_exist_is_named() {
    let server = S3Server::moto();
    let home = home_in(&server, "no-such-bucket", port(&server), None);
    for verb in [&["init"][..], &["list"], &["snapshot", "demo", "--files", "."]] {
        home.run(verb).refused(1, &["no-such-bucket", "create the bucket"]);
    }
}

#[test]
fn wrong_credentials_are_denied() {
    let server = S3Server::s3s();
    let good = home_in(&server, BUCKET, port(&server), None);
    good.run(&["init"]).done();
    let bad = home_in(&server, BUCKET, port(&server), Some("stolen"));
    for verb in [&["list"][..], &["snapshot", "demo", "--files", "."], &["init"]] {
        let ran = bad.run(verb);
        ran.refused(1, &["credentials"]);
        assert!(!ran.err.contains("stolen\""), "{ran:?}");
    }
    good.run(&["list"]).done();
}

#[test]
fn a_store_that_is_away_is_named_soon() {
    let mut server = S3Server::moto();
    let home = home_in(&server, BUCKET, port(&server), None);
    home.run(&["init"]).done();
    server.kill();
    for verb in [&["list"][..], &["verify"], &["snapshot", "demo", "--files", "."]] {
        home.run(verb).refused(1, &["tintype doctor"]);
    }
}

#[test]
fn a_store_that_vanishes_in_the_middle_lists_nothing_and_keeps_what_it_got() {
    let server = S3Server::moto();
    let gate = Gate::before(port(&server), |_| Pass::On);
    let home = home_in(&server, BUCKET, gate.port, None);
    home.data("data/a", 3_000_000, 1);
    home.run(&["init"]).done();
    // Away from the first node manifest on: the packs are there by then.
    let is_away = Arc::new(AtomicBool::new(false));
    let away = is_away.clone();
    gate.rule(move |bytes| {
        if has(bytes, "PUT ") && has(bytes, "/manifests/") {
            away.store(true, Ordering::SeqCst);
        }
        if away.load(Ordering::SeqCst) { Pass::Cut } else { Pass::On }
    });
    home.run(&["snapshot", "demo", "--files", "data"]).refused(1, &["reused"]);
    assert!(is_away.load(Ordering::SeqCst));
    gate.rule(|_| Pass::On);
    assert!(home.dates("demo").is_empty());
    let value = home.snapshot(&[]);
    let stored = value["stored_bytes"].as_u64().expect("a number");
    assert!(stored < 1_000_000, "{stored} bytes were sent again");
    home.run(&["verify"]).done();
}

/// A file system of a few MiB that goes when this does.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(home: &Home, name: &str) -> Self {
        std::fs::create_dir(home.path(name)).expect("a directory");
        let arguments = ["-t", "tmpfs", "-o", "size=4m", "tmpfs", &home.text(name)];
        run(Command::new("mount").args(arguments)).done();
        Self(home.path(name))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_lists_nothing_and_the_next_attempt_succeeds() {
    let mut home = Home::new();
    let disk = SmallDisk::new(&home, "disk");
    home.url = home.text("disk/repository");
    home.run(&["init"]).done();
    home.data("data/a", 2_000_000, 1);
    std::fs::write(disk.0.join("ballast"), vec![0; 3_000_000]).expect("it fits");
    let ran = home.run(&["snapshot", "demo", "--files", "data"]);
    ran.refused(1, &["space"]);
    assert!(home.dates("demo").is_empty());
    let ran = home.run(&["snapshot", "demo", "--files", "data", "--json"]);
    assert!(ran.refused(1, &[]).object()["error"]["message"].as_str().is_some_and(|text| text.contains("space")));
    std::fs::remove_file(disk.0.join("ballast")).expect("it is ours");
    home.snapshot(&[]);
    home.run(&["verify"]).done();
    assert_eq!(home.dates("demo").len(), 1);
}

#[test]
fn a_full_disk_at_the_beginning_makes_no_half_a_repository() {
    let mut home = Home::new();
    let disk = SmallDisk::new(&home, "disk");
    home.url = home.text("disk/repository");
    std::fs::write(disk.0.join("ballast"), vec![0; 4 << 20]).expect("it fits");
    home.run(&["init"]).refused(1, &["space"]);
    std::fs::remove_file(disk.0.join("ballast")).expect("it is ours");
    home.run(&["init"]).done();
    home.run(&["list"]).done();
}
