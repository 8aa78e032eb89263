//! Restores by links: stores start on them at once, do not start while they lead nowhere, and get files of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::clone::process_of;
use super::clone_stores::stores;
use super::mount::{is_mounted, look};
use super::{Home, noise, run};
use crate::support::command::tintype;
use crate::support::effort::{Random, effort, tell};
use crate::support::mount::wait_for;
use crate::support::store::Store;

const PATIENCE: Duration = Duration::from_secs(30);

/// What serves the links of a directory. Dropping it leaves nothing mounted.
struct Served<'a> {
    home: &'a Home,
    place: PathBuf,
}

impl<'a> Served<'a> {
    fn of(home: &'a Home) -> Self {
        let listed = home.run(&["--json", "clones"]).json();
        let place = listed["clones"][0]["clone"]["mountpoint"].as_str().expect("is served");
        Self { home, place: place.into() }
    }

    fn record(&self) -> Value {
        self.home.run(&["--json", "clones"]).json()["clones"][0]["clone"].clone()
    }

    /// Ends who serves it, as a crash would.
    fn kill(&self) {
        let id = self.record()["id"].as_str().expect("has one").to_owned();
        let process = process_of(&id).expect("is served");
        let process = rustix::process::Pid::from_raw(process.cast_signed()).expect("a number");
        rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("ours");
        wait_for("its end", PATIENCE, || process_of(&id).is_none());
    }

    fn wait_gone(&self) {
        wait_for("the end of what served the links", PATIENCE, || !is_mounted(&self.place) && !self.place.exists());
        wait_for("the end of its record", PATIENCE, || {
            self.home.run(&["--json", "clones"]).json()["clones"].as_array().is_some_and(Vec::is_empty)
        });
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.home.path("state/mount.log")).unwrap_or_default();
            tell(&format!("the daemon's log:\n{log}"));
        }
        if is_mounted(&self.place) {
            let _left = self.home.run(&["unmount", &self.place.display().to_string()]);
        }
    }
}

/// The links below a directory.
fn links(directory: &Path) -> usize {
    let found = run(Command::new("find").arg(directory).args(["-type", "l"]));
    found.done().text().lines().count()
}

#[test]
fn stores_start_on_links_which_become_files() {
    let home = Home::with_repository();
    let (count, more) = (effort(20_000, 200_000), effort(5000, 1_000_000));
    std::fs::create_dir(home.path("data")).expect("a directory");
    stores(&["make", &home.text("data"), &count.to_string()]);
    home.snapshot(&[]);
    let ran = home.run(&["restore", "demo/latest/data", "--directory", "placed", "--method", "link", "--no-hydrate"]);
    assert!(ran.done().text().contains("tintype guard"), "{}", ran.text());
    let (placed, served) = (home.text("placed"), Served::of(&home));
    let linked = links(&home.path("placed"));
    assert!(linked >= 4, "{linked} tables of two stores");
    home.run(&["guard", &placed]).done();
    stores(&["check", &placed, &count.to_string()]);
    for store in ["leveldb", "rocksdb", "sqlite"] {
        stores(&["write", &placed, store, &count.to_string(), &(count + more).to_string()]);
        stores(&["check", &placed, &(count + more).to_string(), store]);
    }
    // Nothing is written to what is served, and nothing of it came to the snapshot.
    assert_eq!(look(&["touch", &served.place.join("new").display().to_string()]).code, Some(1));
    home.run(&["hydrate", &placed]).done();
    assert_eq!(links(&home.path("placed")), 0);
    served.wait_gone();
    stores(&["check", &placed, &(count + more).to_string()]);
    assert_eq!(home.run(&["hydrate", &placed]).code, Some(4));
    home.run(&["restore", "demo/latest/data", "--directory", "again"]).done();
    stores(&["check", &home.text("again"), &count.to_string()]);
}

/// A node of a few files as large tables have, restored by links.
fn linked(options: &[&str]) -> Home {
    let home = Home::with_repository();
    for (seed, name) in
        (1..).zip(["data/000001.sst", "data/sub/CURRENT", "data/sub/000002.ldb", "data/CURRENT", "data/000003.sst"])
    {
        home.data(name, 3_000_000, seed);
    }
    home.snapshot(&[]);
    home.run(&[&["restore", "demo/latest/data", "--directory", "placed", "--method", "link"], options].concat()).done();
    home
}

fn compare(home: &Home) {
    look(&["diff", "-r", &home.text("data"), &home.text("placed")]).done();
}

#[test]
fn a_guard_refuses_while_links_lead_nowhere_and_runs_the_store_otherwise() {
    let home = linked(&["--no-hydrate"]);
    let served = Served::of(&home);
    let marker = home.text("started");
    let guarded = || home.run(&["guard", &home.text("placed"), "--", "touch", &marker]);
    assert_eq!(links(&home.path("placed")), 3);
    served.kill();
    let refused = guarded();
    refused.refused(1, &["3 of 3 links lead nowhere", "tintype clones --serve"]);
    assert!(!home.path("started").exists());
    assert!(home.run(&["status"]).done().text().contains("does not answer"));
    home.run(&["clones", "--serve"]).done();
    guarded().done();
    assert!(home.path("started").exists());
    compare(&home);
    // Who has no right to read our configuration may start the store all the same.
    run(Command::new(tintype()).args(["guard", &home.text("placed")]).env_clear().env("TINTYPE_CONFIG", "/nonexistent")).done();
    assert!(home.run(&["unclone", &served.place.display().to_string(), "--yes"]).err.contains("tintype hydrate"));
    home.run(&["hydrate", &home.text("placed")]).done();
    served.wait_gone();
    compare(&home);
}

#[test]
fn a_hydration_that_is_killed_goes_on_and_an_old_file_that_is_open_keeps_it_served() {
    let mut random = Random::begin("hydration");
    for round in 0..effort(2, 20) {
        let home = linked(&["--hydrate-rate", "4MiB"]);
        let served = Served::of(&home);
        let held = std::fs::File::open(home.path("placed/000003.sst")).expect("opens");
        std::thread::sleep(random.duration(Duration::from_secs(2)));
        served.kill();
        // What it was about to make is beside the link, under a name of its own; no name leads to anything else.
        home.run(&["clones", "--serve"]).done();
        compare_without_leavings(&home);
        // A linked table that the store has merged meanwhile is not brought back, and what it made anew is not replaced.
        std::fs::remove_file(home.path("placed/sub/000002.ldb")).expect("was there");
        std::fs::remove_file(home.path("placed/000001.sst")).expect("was there");
        std::fs::write(home.path("placed/000001.sst"), noise(1000, 9)).expect("writes");
        let ran = home.run(&["--json", "hydrate", &home.text("placed"), "--rate", "100MiB"]);
        let said = ran.json();
        // The old daemon's handle died with it, the new one's table is open again.
        let again = std::fs::File::open(home.path("placed/000003.sst")).expect("opens");
        drop((held, again));
        assert_eq!((links(&home.path("placed")), said["links"].as_u64()), (0, Some(0)), "round {round}: {said}");
        served.wait_gone();
        assert!(!home.path("placed/sub/000002.ldb").exists(), "round {round}");
        assert_eq!(std::fs::read(home.path("placed/000001.sst")).expect("reads"), noise(1000, 9), "round {round}");
        assert_eq!(std::fs::read(home.path("placed/000003.sst")).expect("reads"), noise(3_000_000, 5), "round {round}");
        let names = run(Command::new("find").arg(home.path("placed")).args(["-name", "*tintype*"]));
        assert_eq!(names.done().text(), "", "round {round}");
    }
}

fn compare_without_leavings(home: &Home) {
    look(&["diff", "-r", "--exclude=.*", &home.text("data"), &home.text("placed")]).done();
}

#[test]
fn who_holds_an_old_file_open_is_told_and_waited_for() {
    let home = linked(&["--no-hydrate"]);
    let served = Served::of(&home);
    let held = std::fs::File::open(home.path("placed/000003.sst")).expect("opens");
    let said = home.run(&["--json", "hydrate", &home.text("placed")]).json();
    let holder = said["held_by"].as_str().expect("somebody holds it").to_owned();
    assert!(holder.contains(&format!("process {}", std::process::id())), "{holder}");
    assert_eq!(links(&home.path("placed")), 0);
    let status = home.run(&["status"]);
    assert!(status.done().text().contains("still holds old ones open"), "{}", status.text());
    // Read as before, though nothing leads to it any more.
    let mut bytes = vec![0; 1000];
    std::os::unix::fs::FileExt::read_exact_at(&held, &mut bytes, 2_000_000).expect("reads");
    assert_eq!(bytes, noise(3_000_000, 5)[2_000_000..2_001_000]);
    drop(held);
    served.wait_gone();
    compare(&home);
}

#[test]
fn a_snapshot_of_a_linked_node_has_files_and_reads_nothing_of_what_is_stored() {
    let home = linked(&["--no-hydrate"]);
    let served = Served::of(&home);
    let listed = |name: &str| {
        let found = run(Command::new("find").arg(home.path(name)).args(["-mindepth", "1", "-printf", "%P %y %m %s %T@\\n"]));
        let mut lines: Vec<_> = found.done().text().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    // In the same cluster: nothing could be read, since nobody serves it.
    served.kill();
    let taken = home.run(&["--json", "snapshot", "demo", "--files", "placed", "--adopt"]).json();
    assert_eq!((taken["total_bytes"].as_u64(), taken["new_bytes"].as_u64()), (Some(15_000_000), Some(6_000_000)), "{taken}");
    home.run(&["verify", "demo/latest"]).done();
    home.run(&["restore", "demo/latest/placed", "--directory", "again"]).done();
    assert_eq!(listed("again"), listed("data"));
    look(&["diff", "-r", &home.text("data"), &home.text("again")]).done();
    // In another one, which may not refer to those blocks: they are read, and where they cannot be it is said.
    home.run(&["snapshot", "other", "--files", "placed"]).refused(1, &["not served"]);
    home.run(&["clones", "--serve"]).done();
    // Nor does a link that its owner has made lead us out of what is served.
    let planted = home.path("placed/planted");
    std::os::unix::fs::symlink(served.place.join("../key"), &planted).expect("links");
    home.run(&["snapshot", "other", "--files", "placed"]).refused(1, &["planted"]);
    std::fs::remove_file(&planted).expect("removes");
    home.run(&["snapshot", "other", "--files", "placed"]).done();
    home.run(&["restore", "other/latest/placed", "--directory", "other"]).done();
    look(&["diff", "-r", &home.text("data"), &home.text("other")]).done();
    home.run(&["hydrate", &home.text("placed")]).done();
    served.wait_gone();
    let after = home.run(&["--json", "snapshot", "demo", "--files", "placed"]).json();
    assert_eq!(after["new_bytes"].as_u64(), Some(0), "{after}");
}

#[test]
fn a_disk_that_is_not_mounted_is_not_taken_for_a_directory_without_links() {
    let home = Home::with_repository();
    home.data("data/000001.sst", 3_000_000, 1);
    home.data("data/CURRENT", 100, 2);
    home.snapshot(&[]);
    std::fs::create_dir(home.path("disk")).expect("a directory");
    look(&["mount", "-t", "tmpfs", "tintype-test", &home.text("disk")]).done();
    home.run(&["restore", "demo/latest/data", "--directory", "disk", "--method", "link", "--no-hydrate"]).done();
    let served = Served::of(&home);
    look(&["umount", &home.text("disk")]).done();
    wait_for("it notices", PATIENCE, || home.run(&["status"]).text().contains("is that mounted?"));
    assert!(is_mounted(&served.place));
    assert_eq!(served_now(&home), 1);
    home.run(&["unclone", &served.place.display().to_string(), "--yes"]).refused(2, &["tintype hydrate"]);
    home.run(&["hydrate", &home.text("disk"), "--detach"]);
    assert!(is_mounted(&served.place));
}

/// A configured Redis whose start command is guarded.
struct Guarded {
    home: Home,
    store: Store,
}

impl Guarded {
    fn new(settings: &str) -> Self {
        Self::started_by(settings, |store| {
            let guard = [tintype().display().to_string(), "guard".to_owned(), store.data.display().to_string(), "--".to_owned()];
            [&guard[..], &store.site().start[..]].concat()
        })
    }

    fn started_by(settings: &str, start: impl FnOnce(&Store) -> Vec<String>) -> Self {
        let (home, store) = (Home::with_repository(), Store::new(settings));
        let (site, start) = (store.site(), start(&store));
        home.private(
            "tintype.toml",
            &format!(
                "state_directory = {:?}\n[clusters.prod.nodes.node-1]\naddress = \"redis://127.0.0.1:{}\"\ndata_directory = {:?}\nstop = {:?}\nstart = {start:?}\n",
                home.path("state"),
                store.port,
                store.data,
                site.stop,
            ),
        );
        store.start();
        Self { home, store }
    }

    fn fill(&self, keys: usize) {
        let mut pipeline = redis::pipe();
        for key in 0..keys {
            pipeline.cmd("SET").arg(format!("key:{key}")).arg(noise(200, key as u64)).ignore();
        }
        pipeline.query::<()>(&mut self.store.try_connection().expect("connects")).expect("writes");
    }
}

#[test]
fn a_redis_with_append_only_files_is_restored_by_links_rolled_back_and_settled() {
    for capture in ["replication", "aof"] {
        let guarded = Guarded::new("save \"\"\nappendonly yes");
        let (home, store) = (&guarded.home, &guarded.store);
        guarded.fill(2000);
        store.command(&["BGREWRITEAOF"]);
        wait_for("a base", PATIENCE, || store.data.join("appendonlydir/appendonly.aof.2.base.rdb").exists());
        guarded.fill(3000);
        home.run(&["snapshot", "prod", "--capture", capture]).done();
        store.command(&["FLUSHALL"]);
        store.command(&["SET", "which", "live"]);
        let restore = ["restore", "prod/latest", "--method", "link", "--no-hydrate", "--yes", "--confirm", "prod"];
        let ran = home.run(&restore);
        assert!(ran.done().text().contains("3000 keys"), "{capture}: {}", ran.text());
        let served = Served::of(home);
        assert!(links(&store.data) >= 1, "{capture}");
        assert_eq!((store.keys(), store.get("which")), (3000, None), "{capture}");

        // What it writes is there after a restart, and nothing of it went to what is linked.
        store.command(&["SET", "which", "linked"]);
        assert!(store.run("stop").status.success());
        store.start();
        assert_eq!((store.keys(), store.get("which").as_deref()), (3001, Some("linked")), "{capture}");

        // What the links lead to dies under it: the store goes on, and does not start again without it.
        served.kill();
        assert_eq!(store.get("which").as_deref(), Some("linked"), "{capture}");
        assert!(store.run("stop").status.success());
        home.run(&["guard", &store.data.display().to_string(), "--", "true"]).refused(1, &["lead nowhere"]);
        // Not even where nobody asks the guard: the server misses its base, and does not begin empty.
        let _refused = store.run("start");
        std::thread::sleep(Duration::from_millis(300));
        assert!(store.try_connection().is_none(), "{capture}: {}", store.log());
        home.run(&["clones", "--serve"]).done();
        store.start();
        assert_eq!(store.keys(), 3001, "{capture}");

        home.run(&["rollback", "prod", "--yes"]).done();
        assert_eq!((store.keys(), store.get("which").as_deref()), (1, Some("live")), "{capture}");
        assert!(is_mounted(&served.place), "{capture}: the restored directory is kept, with its links");
        home.run(&["settle", "prod", "--yes"]).done();
        served.wait_gone();

        // Again, and this time for good: in the background, without a word.
        let hydrated = ["restore", "prod/latest", "--method", "link", "--yes", "--confirm", "prod"];
        home.run(&hydrated).done();
        let served = Served::of(home);
        served.wait_gone();
        assert_eq!((store.keys(), links(&store.data)), (3000, 0), "{capture}");
        assert!(store.run("stop").status.success());
        store.start();
        assert_eq!(store.keys(), 3000, "{capture}");
        home.run(&["settle", "prod", "--yes"]).done();

        // A clone takes the place of the links: once that is settled, nobody needs what they led to.
        home.run(&restore).done();
        home.run(&["restore", "prod/latest", "--method", "clone", "--yes", "--confirm", "prod"]).done();
        assert_eq!((served_now(home), store.keys()), (2, 3000), "{capture}");
        home.run(&["settle", "prod", "--yes"]).done();
        wait_for("the end of what served the links", PATIENCE, || served_now(home) == 1);
        assert!(store.run("stop").status.success());
        let place = std::fs::read_link(&store.data).expect("a link to the clone");
        home.run(&["unclone", &place.display().to_string(), "--yes"]).done();
    }
}

#[test]
fn append_only_files_of_a_linked_node_are_captured_and_what_is_stored_is_not_read() {
    let guarded = Guarded::new("save \"\"\nappendonly yes");
    let (home, store) = (&guarded.home, &guarded.store);
    guarded.fill(3000);
    store.command(&["BGREWRITEAOF"]);
    wait_for("a base", PATIENCE, || store.data.join("appendonlydir/appendonly.aof.2.base.rdb").exists());
    home.run(&["snapshot", "prod", "--capture", "aof"]).done();
    home.run(&["restore", "prod/latest", "--method", "link", "--no-hydrate", "--yes", "--confirm", "prod"]).done();
    let served = Served::of(home);
    store.command(&["SET", "which", "linked"]);
    let taken = home.run(&["--json", "snapshot", "prod", "--capture", "aof"]).json();
    let (total, new) = (taken["total_bytes"].as_u64().expect("a number"), taken["new_bytes"].as_u64().expect("a number"));
    assert!(total > 600_000 && new < 10_000, "{taken}");
    assert_eq!(links(&store.data), 1, "it is linked as before");
    home.run(&["verify", "prod/latest"]).done();
    store.command(&["FLUSHALL"]);
    home.run(&["restore", "prod/latest", "--yes", "--confirm", "prod"]).done();
    assert_eq!((store.keys(), store.get("which").as_deref()), (3001, Some("linked")));
    assert_eq!(links(&store.data), 0);
    home.run(&["settle", "prod", "--yes"]).done();
    served.wait_gone();
}

#[test]
fn a_redis_that_would_start_empty_gets_no_links() {
    let guarded = Guarded::new("save \"\"");
    let (home, store) = (&guarded.home, &guarded.store);
    guarded.fill(1000);
    home.run(&["snapshot", "prod"]).done();
    let refused = home.run(&["restore", "prod/latest", "--method", "link", "--yes", "--confirm", "prod"]);
    assert!(refused.text().contains("--method copy, or --method clone"), "{}", refused.text());
    assert_eq!(refused.code, Some(1));
    let refused = home.run(&["restore", "prod/latest/node-1", "--method", "link", "--directory", "placed"]);
    refused.refused(2, &["node-1", "could make it start empty"]);
    assert!(!home.path("placed").exists());
    assert_eq!(store.keys(), 1000);
    assert_eq!(store.kept(), Vec::<String>::new());
}

/// What is served for restores on this host.
fn served_now(home: &Home) -> usize {
    home.run(&["--json", "clones"]).json()["clones"].as_array().expect("a list").len()
}

#[test]
fn a_restore_by_links_or_by_a_clone_that_is_killed_leaves_nothing_served_that_nobody_needs() {
    let mut random = Random::begin("killed links");
    for method in ["link", "clone"] {
        let guarded = Guarded::new("save \"\"\nappendonly yes");
        let (home, store) = (&guarded.home, &guarded.store);
        guarded.fill(3000);
        home.run(&["snapshot", "prod"]).done();
        for round in 0..effort(4, 40) {
            let place = format!("{method}, round {round}");
            store.command(&["SET", "which", "live"]);
            let arguments = ["restore", "prod/latest", "--method", method, "--no-hydrate", "--yes", "--confirm", "prod"];
            let mut command = home.command(&arguments);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            let mut child = command.spawn().expect("starts");
            std::thread::sleep(random.duration(Duration::from_millis(900)));
            child.kill().expect("ours");
            child.wait().expect("ended");
            // It goes on or begins anew, whatever was left.
            if store.try_connection().is_none() {
                home.run(&["clones", "--serve"]);
                wait_for("its end", PATIENCE, || store.run("start").status.success());
            }
            store.wait();
            home.run(&arguments).done();
            assert_eq!((store.keys(), store.get("which")), (3000, None), "{place}");
            for _ in 0..2 {
                let ran = home.run(&["rollback", "prod", "--yes"]);
                assert!(matches!(ran.code, Some(0 | 4)), "{place}: {ran:?}");
            }
            assert_eq!(store.get("which").as_deref(), Some("live"), "{place}");
            let settled = home.run(&["settle", "prod", "--yes"]);
            assert!(matches!(settled.code, Some(0 | 4)), "{place}: {settled:?}");
            assert_eq!(store.kept(), Vec::<String>::new(), "{place}");
            wait_for("the end of all that was served", PATIENCE, || served_now(home) == 0);
            let names = std::fs::read_dir(store.root.path()).expect("lists").map(|entry| entry.expect("lists").file_name());
            let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with('.')).collect();
            assert!(left.is_empty(), "{place}: {left:?}");
        }
    }
}

#[test]
fn a_redis_gets_a_clone_in_the_place_of_its_directory_and_its_own_back() {
    for (settings, stored_append_only) in
        [("save \"\"", false), ("save \"\"\nappendonly yes", true), ("save \"\"\nappendonly yes\ndbfilename other.rdb", false)]
    {
        let guarded = Guarded::new(settings);
        let (home, store) = (&guarded.home, &guarded.store);
        guarded.fill(3000);
        if !stored_append_only {
            store.command(&["CONFIG", "SET", "appendonly", "no"]);
        }
        home.run(&["snapshot", "prod"]).done();
        assert!(store.run("stop").status.success());
        store.start();
        store.command(&["FLUSHALL"]);
        store.command(&["SET", "which", "live"]);
        std::fs::write(store.data.join("kept.conf"), "mine").expect("writes");
        let restore = ["restore", "prod/latest", "--method", "clone", "--yes", "--confirm", "prod"];
        home.run(&restore).done();
        assert!(store.data.is_symlink(), "{settings}");
        assert_eq!((store.keys(), store.get("which")), (3000, None), "{settings}");
        assert_eq!(std::fs::read_to_string(store.data.join("kept.conf")).expect("was carried over"), "mine");

        // It writes, saves and rewrites there, and starts from it again.
        store.command(&["SET", "which", "cloned"]);
        store.command(&["SAVE"]);
        assert!(store.run("stop").status.success());
        store.start();
        assert_eq!((store.keys(), store.get("which").as_deref()), (3001, Some("cloned")), "{settings}");
        assert!(store.run("stop").status.success());
        let place = std::fs::read_link(&store.data).expect("a link");
        home.run(&["unmount", &place.display().to_string()]).done();
        home.run(&["guard", &store.data.display().to_string(), "--", "true"]).refused(1, &["is a clone, and nobody serves it"]);
        wait_for("the end of who served it", PATIENCE, || {
            let listed = home.run(&["--json", "clones"]).json();
            process_of(listed["clones"][0]["clone"]["id"].as_str().expect("one")).is_none()
        });
        home.run(&["clones", "--serve"]).done();
        home.run(&["guard", &store.data.display().to_string(), "--", "true"]).done();
        store.start();
        assert_eq!(store.keys(), 3001, "{settings}");

        home.run(&["rollback", "prod", "--yes"]).done();
        assert!(!store.data.is_symlink());
        assert_eq!((store.keys(), store.get("which").as_deref()), (1, Some("live")), "{settings}");
        assert_eq!(served_now(home), 1, "{settings}: kept until it is settled");
        home.run(&["settle", "prod", "--yes"]).done();
        assert_eq!((served_now(home), place.exists()), (0, false), "{settings}");

        // Over a clone that is in place goes another restore of any kind.
        home.run(&restore).done();
        store.command(&["SET", "which", "first"]);
        home.run(&["restore", "prod/latest", "--yes", "--confirm", "prod"]).done();
        assert!(!store.data.is_symlink() && store.keys() == 3000, "{settings}");
        home.run(&["rollback", "prod", "--yes"]).done();
        assert_eq!((store.keys(), store.get("which").as_deref()), (3001, Some("first")), "{settings}");
        home.run(&restore).done();
        assert_eq!((served_now(home), store.keys()), (2, 3000), "{settings}");

        // Settled while it is in place, it is a clone like any other; the one before it is gone.
        home.run(&["settle", "prod", "--yes"]).done();
        assert_eq!((served_now(home), store.keys()), (1, 3000), "{settings}");
        assert!(store.run("stop").status.success());
        let place = std::fs::read_link(&store.data).expect("a link");
        home.run(&["unclone", &place.display().to_string(), "--yes"]).done();
        assert_eq!(served_now(home), 0);
    }
}

/// Units are systemd's, which no test runs under: a stand-in of `systemctl` does what it would do with their drop-ins.
struct StandIn {
    unit: String,
    directory: tempfile::TempDir,
}

impl StandIn {
    fn new() -> Self {
        let unit = format!("tintype-test-{}.service", std::process::id());
        Self { unit, directory: tempfile::tempdir().expect("a directory") }
    }

    fn drop_ins(&self) -> PathBuf {
        Path::new("/etc/systemd/system").join(format!("{}.d", self.unit))
    }

    /// `systemctl start UNIT` runs what the drop-ins say first.
    fn write(&self, start: &[String]) -> Vec<String> {
        let path = self.directory.path().join("systemctl");
        let text = format!(
            "#!/bin/sh -e\n[ \"$1\" = start ] || {{ echo \"$@\" >> {0}/said; exit 0; }}\n\
             for file in {1}/*.conf; do [ -e \"$file\" ] || continue; sed -n 's/^ExecStartPre=+//p' \"$file\" | sh -e; done\nexec {2}\n",
            self.directory.path().display(),
            self.drop_ins().display(),
            start.join(" ")
        );
        std::fs::write(&path, text).expect("writes");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("permits");
        vec![path.display().to_string(), "start".to_owned(), self.unit.clone()]
    }

    fn run(&self, home: &Home, arguments: &[&str]) -> super::Ran {
        let path = format!("{}:{}", self.directory.path().display(), std::env::var("PATH").unwrap_or_default());
        run(home.command(arguments).env("PATH", path))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ours = std::fs::remove_dir_all(self.drop_ins());
    }
}

#[test]
fn a_unit_gets_a_drop_in_that_guards_it_for_as_long_as_there_are_links() {
    let units = StandIn::new();
    let guarded = Guarded::started_by("save \"\"\nappendonly yes", |store| units.write(&store.site().start));
    let (home, store) = (&guarded.home, &guarded.store);
    guarded.fill(2000);
    home.run(&["snapshot", "prod"]).done();
    store.command(&["FLUSHALL"]);
    let restore = ["restore", "prod/latest", "--method", "link", "--no-hydrate", "--confirm", "prod"];
    assert!(home.run(&restore).text().contains("gets a drop-in"));
    assert!(!units.drop_ins().exists());
    units.run(home, &[&restore[..], &["--yes"]].concat()).done();
    assert_eq!(store.keys(), 2000);
    let served = Served::of(home);
    let drop_ins = || std::fs::read_dir(units.drop_ins()).map_or(0, Iterator::count);
    assert_eq!(drop_ins(), 1);
    let text = std::fs::read(units.drop_ins().read_dir().expect("lists").next().expect("one").expect("one").path());
    let unit = format!(
        "[Unit]\nDescription=test\n[Service]\nType=oneshot\nExecStart=/bin/true\n{}",
        String::from_utf8_lossy(&text.expect("reads"))
    );
    let unit_file = home.path("guarded.service");
    std::fs::write(&unit_file, unit).expect("writes");
    let verified = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit_file));
    assert!(!verified.err.contains("guarded.service:"), "{}", verified.err);

    // By way of the unit it does not start while its links lead nowhere.
    assert!(store.run("stop").status.success());
    served.kill();
    let started = run(Command::new(units.directory.path().join("systemctl")).args(["start", &units.unit]));
    assert!(started.code != Some(0) && store.try_connection().is_none(), "{started:?}");
    units.run(home, &["clones", "--serve"]).done();
    run(Command::new(units.directory.path().join("systemctl")).args(["start", &units.unit])).done();
    store.wait();
    assert_eq!(store.keys(), 2000);
    units.run(home, &["hydrate", &store.data.display().to_string()]).done();
    served.wait_gone();
    assert_eq!(drop_ins(), 0);
    let said = std::fs::read_to_string(units.directory.path().join("said")).expect("was told");
    assert_eq!(said, "daemon-reload\ndaemon-reload\n");
    home.run(&["settle", "prod", "--yes"]).done();
}

#[test]
fn a_plan_says_how_long_it_takes_once_a_restore_has_shown_it() {
    let guarded = Guarded::new("save \"\"");
    let (home, store) = (&guarded.home, &guarded.store);
    let mut connection = store.try_connection().expect("connects");
    for key in 0..70u64 {
        redis::cmd("SET").arg(key).arg(noise(1 << 20, key)).query::<()>(&mut connection).expect("writes");
    }
    home.run(&["snapshot", "prod"]).done();
    let plan = || home.run(&["restore", "prod/latest", "--confirm", "prod", "--dry-run"]);
    assert!(plan().done().text().contains("not known before the first restore"));
    home.run(&["restore", "prod/latest", "--confirm", "prod", "--yes"]).done();
    assert!(plan().done().text().contains("placing takes about"), "{}", plan().text());
    assert!(plan().text().contains("then they are away for about"), "{}", plan().text());
    let value = home.run(&["--json", "restore", "prod/latest", "--confirm", "prod", "--dry-run"]).json();
    assert!(value["plan"]["placing_seconds"].as_u64().is_some() && value["plan"]["away_seconds"].as_u64().is_some(), "{value}");
    home.run(&["settle", "prod", "--yes"]).done();
}

#[test]
fn hydration_leaves_the_store_its_room_says_so_and_goes_on_when_there_is_more() {
    let home = Home::with_repository();
    for (name, length, seed) in [("data/CURRENT", 100, 1), ("data/000001.sst", 6_000_000, 2), ("data/000002.sst", 6_000_000, 3)] {
        home.data(name, length, seed);
    }
    home.snapshot(&[]);
    std::fs::create_dir(home.path("disk")).expect("a directory");
    let disk = home.text("disk");
    look(&["mount", "-t", "tmpfs", "-o", "size=9m", "tintype-test", &disk]).done();
    home.run(&["restore", "demo/latest/data", "--directory", "disk", "--method", "link", "--no-hydrate"]).done();
    let served = Served::of(&home);
    let mut hydrating = home.begin(&["hydrate", &disk]);
    hydrating.says("too little space for the next file");
    wait_for("the first", PATIENCE, || links(&home.path("disk")) == 1);
    look(&["mount", "-o", "remount,size=30m", &disk]).done();
    served.wait_gone();
    look(&["diff", "-r", &home.text("data"), &disk]).done();
    hydrating.ended().done();
    look(&["umount", &disk]).done();
}
