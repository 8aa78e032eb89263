//! The whole way with the real programs: a live store, a snapshot, a mount, a server on the mount.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::mount::{wait_for, within};
use crate::support::redis::{Server, redis_70};

const LIMIT: Duration = Duration::from_secs(60);

/// A repository of its own with a key file, so that no test waits for Argon2.
struct Site {
    home: TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self { home: tempfile::Builder::new().prefix("tintype-site-").tempdir().expect("a directory") };
        std::fs::write(site.path("key"), [7u8; 64]).expect("writes");
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(site.path("key"), private).expect("chmods");
        std::fs::create_dir(site.path("mnt")).expect("creates");
        site.succeed(&["init"]);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn tintype(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tintype"));
        command.env_clear().env("HOME", self.home.path()).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(["--repository"]).arg(self.path("repository")).arg("--key-file").arg(self.path("key")).args(arguments);
        within(LIMIT, "tintype", || command.output().expect("runs"))
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.tintype(arguments);
        assert!(output.status.success(), "tintype {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    fn mount(&self) -> Mount<'_> {
        self.succeed(&["mount", self.path("mnt").to_str().expect("text")]);
        Mount { site: self }
    }
}

/// A mount that goes away with its test.
struct Mount<'a> {
    site: &'a Site,
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _gone_already = self.site.tintype(&["unmount", self.site.path("mnt").to_str().expect("text")]);
    }
}

fn daemon_of(mountpoint: &Path) -> u32 {
    let text = mountpoint.to_str().expect("text").as_bytes().to_vec();
    let processes = std::fs::read_dir("/proc").expect("lists").flatten();
    let pid = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0);
        arguments.next().is_some_and(|program| program.ends_with(b"tintyped")) && arguments.any(|argument| argument == text)
    });
    pid.expect("the daemon runs")
}

#[test]
fn a_server_starts_on_the_mount_of_a_live_servers_snapshot() {
    let site = Site::new();
    let live = Server::start(&redis_70(), &[]);
    live.fill(20_000, 100);
    let address = format!("127.0.0.1:{}", live.port);
    let report: serde_json::Value =
        serde_json::from_str(&site.succeed(&["snapshot", "prod", "--redis", &address, "--json"])).expect("JSON");
    assert_eq!(report["cut"]["consistent"], "proved");

    let _mount = site.mount();
    let tree = site.path("mnt").join("prod/latest").canonicalize().expect("latest leads somewhere");
    let node = tree.join(format!("127.0.0.1_{}", live.port));
    // Not a temporary directory: the server's own is the mount, which it cannot write.
    let scratch = tempfile::tempdir().expect("a directory");
    let directory = node.to_str().expect("text").to_owned();
    let copy = within(LIMIT, "a server on the mount", || {
        Server::start_in(&redis_70(), scratch, &["--dir", &directory, "--save", "", "--appendonly", "no"])
    });
    copy.wait_for("loaded", |server| server.info("loading") == "0");
    assert_eq!(copy.command(&["DBSIZE"]), live.command(&["DBSIZE"]));
}

#[test]
fn a_mount_whose_daemon_was_killed_is_cleaned_away_by_the_next_one() {
    let site = Site::new();
    std::fs::create_dir(site.path("data")).expect("creates");
    std::fs::write(site.path("data/file"), b"content").expect("writes");
    site.succeed(&["snapshot", "prod", "--files", site.path("data").to_str().expect("text")]);
    let mount = site.mount();
    let file = site.path("mnt").join("prod/latest/data/file");
    assert_eq!(within(LIMIT, "a read", || std::fs::read(&file)).expect("reads"), b"content");

    let daemon = daemon_of(&site.path("mnt"));
    let killed = Command::new("kill").args(["-9", &daemon.to_string()]).status().expect("runs");
    assert!(killed.success());
    wait_for("the mount is dead", LIMIT, || std::fs::read(&file).is_err());
    let _again = site.mount();
    assert_eq!(within(LIMIT, "a read", || std::fs::read(&file)).expect("reads"), b"content");
    drop(mount);
}

#[test]
fn a_second_snapshot_appears_in_a_mount_and_the_first_one_stays() {
    let site = Site::new();
    std::fs::create_dir(site.path("data")).expect("creates");
    let snapshot = |content: &[u8]| {
        std::fs::write(site.path("data/file"), content).expect("writes");
        let data = site.path("data");
        let report = site.succeed(&["snapshot", "prod", "--files", data.to_str().expect("text"), "--json"]);
        serde_json::from_str::<serde_json::Value>(&report).expect("JSON")["date"].as_str().expect("a date").to_owned()
    };
    let first = snapshot(b"one");
    let _mount = site.mount();
    let read = |date: &str| std::fs::read(site.path("mnt").join("prod").join(date).join("data/file"));
    assert_eq!(read(&first).expect("reads"), b"one");
    let second = snapshot(b"two");
    wait_for("the new snapshot is latest", LIMIT, || read("latest").is_ok_and(|content| content == b"two"));
    assert_eq!((read(&first).expect("reads"), read(&second).expect("reads")), (b"one".to_vec(), b"two".to_vec()));
    // A day and any other beginning lead there too, though no listing shows them.
    assert_eq!(read(&second[..10]).expect("reads"), b"two");
}
