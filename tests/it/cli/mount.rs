//! `tintype mount` and `unmount`, and every place that cannot be mounted on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Home, Ran, files_below, run};

/// A mountpoint that is taken away whatever happens.
pub struct Mountpoint(pub PathBuf);

impl Mountpoint {
    pub fn new(home: &Home, name: &str) -> Self {
        std::fs::create_dir_all(home.path(name)).expect("a directory");
        Self(home.path(name))
    }

    pub fn text(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        let _ = Command::new("timeout").args(["10", "umount", "-l"]).arg(&self.0).stderr(std::process::Stdio::null()).status();
    }
}

/// A look into the tree, which may not hang.
pub fn look(command: &[&str]) -> Ran {
    run(Command::new("timeout").args(["-k", "2", "30"]).args(command).env("LC_ALL", "C"))
}

pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

#[test]
fn a_mount_shows_what_was_stored_and_goes_away() {
    let home = Home::with_snapshot();
    let place = Mountpoint::new(&home, "mount");
    let said = home.run(&["mount", &place.text()]);
    assert!(said.done().text().contains("next: ls "), "{said:?}");
    look(&["diff", "-r", &home.text("data"), &home.text("mount/demo/latest/data")]).done();
    home.run(&["mount", &place.text()]).refused(1, &[&place.text(), "already", "tintype unmount"]);
    home.run(&["unmount", &place.text()]).done();
    assert!(!is_mounted(&place.0));
    home.run(&["unmount", &place.text()]).refused(1, &[&place.text(), "nothing is mounted"]);

    let value = home.run(&["mount", &place.text(), "--json"]).json();
    assert_eq!(value["mountpoint"], place.text());
    assert_eq!(home.run(&["unmount", &place.text(), "--json"]).json()["forced"], false);
    assert!(!is_mounted(&place.0));
}

#[test]
fn places_that_cannot_be_mounted_on_are_named() {
    let home = Home::with_snapshot();
    let full = home.text("data");
    home.run(&["mount", &full]).refused(1, &[&full, "not empty"]);
    home.run(&["mount", &home.text("none")]).refused(1, &["none", "mkdir"]);
    home.run(&["mount", &home.text("key")]).refused(1, &["key", "not a directory"]);
    let inside = home.text("repository/inside");
    std::fs::create_dir(&inside).expect("a directory");
    home.run(&["mount", &inside]).refused(1, &[&inside, "repository"]);
    home.run(&["mount", &home.text("")]).refused(1, &["repository"]);
    home.run(&["mount"]).refused(2, &["mountpoint"]);
    home.run(&["mount", &inside, "--owner", "nobody-at-all:x"]).refused(2, &["nobody-at-all"]);
    let ran = home.run(&["mount", &full, "--json"]);
    assert_eq!(ran.refused(1, &[]).object()["error"]["code"], "mount");
    for path in [&full, &inside] {
        assert!(!is_mounted(Path::new(path)));
    }
}

#[test]
fn a_daemon_that_cannot_open_the_repository_says_why() {
    let home = Home::with_snapshot();
    let place = Mountpoint::new(&home, "mount");
    let other = home.private("other", "another key file of at least thirty-two bytes");
    let ran = run(home.command(&["mount", &place.text(), "--json"]).env("TINTYPE_KEY_FILE", &other));
    assert_eq!(ran.refused(1, &["fits none of the key boxes"]).object()["error"]["code"], "wrong_key");
    home.run(&["--key-file", "none", "mount", &place.text()]).refused(2, &["none"]);
    assert!(!is_mounted(&place.0));
}

#[test]
fn without_the_device_the_reason_and_the_remedy_are_said() {
    let home = Home::with_snapshot();
    let place = Mountpoint::new(&home, "mount");
    // A /dev of its own, that nobody else sees.
    let script = "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 && exec \"$@\"";
    for (verb, code) in [(&["mount", &place.text()][..], 1), (&["doctor"], 1)] {
        let inner = home.command(verb);
        let mut outer = Command::new("unshare");
        outer.args(["-m", "--propagation", "private", "sh", "-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
        outer.env_clear().current_dir(home.directory.path());
        for (key, value) in inner.get_envs() {
            outer.env(key, value.unwrap_or_default());
        }
        let ran = run(&mut outer);
        assert_eq!(ran.code, Some(code), "{ran:?}");
        let said = format!("{}{}", ran.text(), ran.err);
        assert!(said.contains("/dev/fuse"), "{ran:?}");
        let remedy = said.lines().find(|line| line.trim_start().starts_with("next: ")).unwrap_or_default();
        assert!(remedy.contains("modprobe fuse") && remedy.contains("install fuse3"), "{ran:?}");
    }
}

#[test]
fn damaged_data_is_an_error_of_the_read_and_never_wrong_bytes() {
    let home = Home::with_snapshot();
    let all = files_below(&home.path("repository"));
    let pack = all.iter().find(|path| path.display().to_string().contains("/packs/")).expect("a pack");
    let mut bytes = std::fs::read(pack).expect("readable");
    for byte in bytes.iter_mut().skip(100) {
        *byte ^= 0x40;
    }
    std::fs::write(pack, bytes).expect("ours");
    let place = Mountpoint::new(&home, "mount");
    home.run(&["mount", &place.text()]).done();
    let read = look(&["cat", &home.text("mount/demo/latest/data/a")]);
    assert_eq!(read.code, Some(1));
    assert!(read.err.contains("Input/output error"), "{read:?}");
    assert!(home.data_is_prefix(&read.out), "wrong bytes were served");
    home.run(&["unmount", &place.text()]).done();
}

#[test]
fn what_a_dead_daemon_left_is_cleaned_and_mounted_again() {
    let home = Home::with_snapshot();
    let place = Mountpoint::new(&home, "mount");
    let process = home.run(&["mount", &place.text(), "--json"]).json()["process"].to_string();
    run(Command::new("kill").args(["-9", &process])).done();
    let until = Instant::now() + Duration::from_secs(10);
    while !look(&["ls", &place.text()]).err.contains("not connected") {
        assert!(Instant::now() < until, "the daemon does not die");
        std::thread::sleep(Duration::from_millis(10));
    }
    home.run(&["mount", &place.text()]).done();
    look(&["ls", &home.text("mount/demo/latest/data/a")]).done();
    home.run(&["unmount", &place.text()]).done();
}

#[test]
fn a_signal_ends_a_mount_in_the_foreground() {
    let home = Home::with_snapshot();
    let place = Mountpoint::new(&home, "mount");
    let mut begun = home.begin(&["-v", "mount", "--foreground", &place.text()]);
    begun.says("served").signal("TERM");
    begun.ended().done();
    assert!(!is_mounted(&place.0));
}

#[test]
fn a_cache_on_a_disk_is_kept_used_and_shown() {
    let home = Home::with_snapshot();
    let (place, other) = (Mountpoint::new(&home, "mount"), Mountpoint::new(&home, "other"));
    let text = format!(
        "state_directory = {:?}\n[cache]\ndirectory = {:?}\nsize = \"64MiB\"\nkeep_free = \"1MiB\"\n",
        home.path("state"),
        home.path("cache")
    );
    home.private("tintype.toml", &text);
    let process = home.run(&["mount", &place.text(), "--json"]).json()["process"].clone();
    look(&["diff", "-r", &home.text("data"), &home.text("mount/demo/latest/data")]).done();
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let seen = home.run(&["status", "--json"]).json()["cache"].clone();
        assert_eq!((&seen["process"], seen["limit_bytes"].as_u64()), (&process, Some(64 << 20)), "{seen}");
        if seen["used_bytes"].as_u64().is_some_and(|bytes| bytes > 300_000) && seen["files"].as_u64() == Some(2) {
            break;
        }
        assert!(Instant::now() < until, "{seen}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let attribute = ["getfattr", "--only-values", "-n", "user.tintype.cached_bytes", &home.text("mount/demo/latest/data/a")];
    assert_eq!(look(&attribute).done().text(), "300000");
    assert!(home.run(&["doctor"]).done().text().contains(&format!("ok    cache: {}", home.text("cache"))));
    // One daemon for a cache.
    home.run(&["mount", &other.text()]).refused(1, &[&home.text("cache"), &format!("process {process}")]);
    assert!(!is_mounted(&other.0));
    let second = home.text("cache2");
    home.run(&["mount", &other.text(), "--cache-dir", &second, "--cache-size", "32MiB"]).done();
    home.run(&["unmount", &other.text()]).done();
    home.run(&["unmount", &place.text()]).done();
    home.run(&["mount", &place.text()]).done();
    look(&["diff", "-r", &home.text("data"), &home.text("mount/demo/latest/data")]).done();
    home.run(&["unmount", &place.text()]).done();
}

#[test]
fn places_that_cannot_be_a_cache_are_named() {
    let home = Home::with_snapshot();
    let place = Mountpoint::new(&home, "place/mount");
    let mount = |directory: &str| home.run(&["mount", &place.text(), "--cache-dir", directory, "--cache-size", "1GiB"]);
    for inside in ["repository", "repository/new/cache", ""] {
        mount(&home.text(inside)).refused(1, &["repository", "cache"]);
    }
    mount(&home.text("place/mount/cache")).refused(1, &[&place.text(), "inside or above"]);
    mount(&home.text("place")).refused(1, &[&place.text(), "inside or above"]);
    mount(&home.text("data")).refused(1, &["data", "no cache of tintype"]);
    std::fs::create_dir(home.path("open")).expect("makes");
    std::fs::set_permissions(home.path("open"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmods");
    mount(&home.text("open")).refused(1, &["open", "0777", "others"]);
    home.run(&["mount", &place.text(), "--cache-dir", "x"]).refused(2, &["how large"]);
    home.run(&["mount", &place.text(), "--cache-size", "1GiB"]).refused(2, &["no directory"]);
    assert!(!is_mounted(&place.0) && !home.path("repository/new").exists());
}
