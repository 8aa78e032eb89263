//! Clones: made, written, served again after an orderly end and after a kill, compared with a plain directory, taken away.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::mount::{is_mounted, look};
use super::{Home, noise};
use crate::support::effort::{Random, effort, tell};
use crate::support::mount::wait_for;

/// A clone of the node `data` of `demo`. Dropping it leaves nothing mounted.
pub struct Clone<'a> {
    pub home: &'a Home,
    pub place: PathBuf,
}

impl<'a> Clone<'a> {
    pub fn new(home: &'a Home, options: &[&str]) -> Self {
        let clone = Self { home, place: home.path("clone") };
        home.run(&[&["clone", "demo/latest/data", "clone"], options].concat()).done();
        clone
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    pub fn listed(&self) -> Value {
        self.home.run(&["--json", "clones"]).json()["clones"][0].clone()
    }

    pub fn upper(&self) -> PathBuf {
        PathBuf::from(self.listed()["clone"]["upper"].as_str().expect("has one"))
    }

    /// Ends the process that serves it in an orderly way, and serves it again.
    pub fn again(&self) {
        self.home.run(&["unmount", &self.home.text("clone")]).done();
        self.serve();
    }

    pub fn serve(&self) {
        wait_for("the end of who served it", Duration::from_secs(20), || self.process().is_none());
        self.home.run(&["clones", "--serve"]).done();
    }

    /// Who serves it.
    pub fn process(&self) -> Option<u32> {
        process_of(self.listed()["clone"]["id"].as_str().expect("has one"))
    }
}

/// Who serves a clone.
pub fn process_of(id: &str) -> Option<u32> {
    let entries = std::fs::read_dir("/proc").expect("is there").flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let serves = |process: &u32| {
        std::fs::read(format!("/proc/{process}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&format!("--clone\0{id}")))
    };
    numbers.into_iter().find(serves)
}

impl Drop for Clone<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.home.path("state/mount.log")).unwrap_or_default();
            tell(&format!("the daemon's log:\n{log}"));
        }
        if is_mounted(&self.place) {
            let _left = self.home.run(&["unmount", &self.home.text("clone")]);
        }
    }
}

/// Everything below a directory: kind, mode, owner, content.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).expect("lists") {
            let path = entry.expect("lists").path();
            let metadata = path.symlink_metadata().expect("is there");
            let content = if metadata.is_dir() {
                waiting.push(path.clone());
                String::new()
            } else if metadata.is_symlink() {
                std::fs::read_link(&path).expect("a link").display().to_string()
            } else {
                blake3::hash(&std::fs::read(&path).expect("reads")).to_hex().to_string()
            };
            let name = path.strip_prefix(root).expect("below").to_owned();
            let length = if metadata.is_file() { metadata.len() } else { 0 };
            found.insert(
                name,
                format!("{:o} {}:{} {} {length} {content}", metadata.mode(), metadata.uid(), metadata.gid(), links(&metadata)),
            );
        }
    }
    found
}

/// Names of a file; those of a directory are counted in different ways by different file systems.
fn links(metadata: &std::fs::Metadata) -> u64 {
    if metadata.is_dir() { 1 } else { metadata.nlink() }
}

#[test]
fn a_clone_is_written_served_again_and_taken_away_and_the_snapshot_never_changes() {
    let home = Home::with_snapshot();
    let began = Instant::now();
    let clone = Clone::new(&home, &[]);
    tell(&format!("a clone is there after {:?}", began.elapsed()));
    assert_eq!(tree(&clone.place), tree(&home.path("data")), "it begins as the snapshot");
    let before = tree(&home.path("data"));

    let mut patched = std::fs::read(home.path("data/a")).expect("ours");
    patched[100_000..100_003].copy_from_slice(b"xyz");
    patched.extend_from_slice(b"the end");
    let file = File::options().write(true).open(clone.path("a")).expect("opens");
    file.write_all_at(b"xyz", 100_000).expect("writes");
    file.write_all_at(b"the end", 300_000).expect("appends");
    file.sync_all().expect("syncs");
    drop(file);
    assert!(std::fs::read(clone.path("a")).expect("reads") == patched);
    std::fs::rename(clone.path("sub"), clone.path("moved")).expect("renames");
    std::fs::hard_link(clone.path("moved/b"), clone.path("again")).expect("links");
    std::fs::create_dir(clone.path("new")).expect("makes");
    std::fs::write(clone.path("new/file"), b"of its own").expect("writes");
    assert_eq!(std::fs::read(clone.path("again")).expect("reads"), std::fs::read(home.path("data/sub/b")).expect("ours"));

    let listed = clone.listed();
    assert_eq!((&listed["served"], listed["clone"]["node"].as_str()), (&Value::Bool(true), Some("data")));
    let expected = tree(&clone.place);
    clone.again();
    assert_eq!(tree(&clone.place), expected);
    home.run(&["clone", "demo/latest/data", "clone"]).refused(1, &["is a clone of demo/", "tintype unclone"]);
    home.run(&["clone", "demo/latest/data", "data"]).refused(1, &["is not empty"]);
    home.run(&["clone", "demo/latest", "other"]).refused(2, &["no node was named"]);
    home.run(&["clone", "demo/latest/nobody", "other"]).refused(1, &["nobody"]);
    assert!(!home.path("other").exists(), "nothing is left of what was refused");
    let shown = home.run(&["show", "demo/latest"]);
    assert!(shown.done().text().contains("pinned: clone "), "{shown:?}");

    let plan = home.run(&["unclone", "clone"]);
    assert!(
        plan.code == Some(4) && plan.text().contains("would be unmounted") && plan.text().contains("tintype unclone"),
        "{plan:?}"
    );
    assert!(is_mounted(&clone.place), "nothing was done yet");
    let upper = clone.upper();
    home.run(&["unmount", "clone"]).done();
    wait_for("the end of who served it", Duration::from_secs(20), || clone.process().is_none());
    std::fs::rename(&upper, home.path("elsewhere")).expect("ours");
    let refused = home.run(&["clones", "--serve"]);
    assert!(refused.code == Some(3) && refused.text().contains("is not there"), "{refused:?}");
    assert!(!upper.exists(), "a clone whose disk is away does not begin anew");
    std::fs::rename(home.path("elsewhere"), &upper).expect("ours");
    clone.serve();
    assert_eq!(tree(&clone.place), expected);
    home.run(&["unclone", "clone", "--yes"]).done();
    assert!(!is_mounted(&clone.place) && !upper.exists());
    assert!(!home.run(&["show", "demo/latest"]).text().contains("pinned"), "the pin is taken back");
    home.run(&["unclone", "clone", "--yes"]).refused(1, &["is no clone"]);
    assert_eq!(tree(&home.path("data")), before);
    home.run(&["verify", "demo"]).done();
    assert_eq!(home.run(&["--json", "clones"]).json()["clones"], Value::Array(Vec::new()));
}

#[test]
fn what_was_fsynced_outlives_a_daemon_killed_at_any_instant() {
    let mut random = Random::begin("clone kill");
    let home = Home::with_repository();
    home.data("data/base", 3 << 20, 1);
    home.snapshot(&[]);
    let clone = Clone::new(&home, &[]);
    // What is known to be durable, and what was written since: sector by sector.
    const SLOTS: usize = 700;
    let original = std::fs::read(home.path("data/base")).expect("ours");
    let mut synced: Vec<Vec<u8>> = original.chunks(4500).take(SLOTS).map(<[u8]>::to_vec).collect();
    let mut made: Vec<(String, Vec<u8>)> = Vec::new();
    let rounds = effort(5, 100);
    for round in 0..rounds {
        let mut unsynced: Vec<(usize, Vec<u8>)> = Vec::new();
        let until = Instant::now() + random.duration(Duration::from_millis(300));
        let process = clone.process().expect("is served");
        let mut file = File::options().read(true).write(true).open(clone.path("base")).expect("opens");
        let killer = {
            let wait = until.saturating_duration_since(Instant::now());
            std::thread::spawn(move || {
                std::thread::sleep(wait);
                let process = rustix::process::Pid::from_raw(process.cast_signed()).expect("a number");
                rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("ours");
            })
        };
        let mut number = 0;
        loop {
            let slot = random.next() as usize % SLOTS;
            let bytes = noise(synced[slot].len(), random.next());
            unsynced.push((slot, bytes.clone()));
            if file.write_all_at(&bytes, slot as u64 * 4500).is_err() {
                break;
            }
            if random.next().is_multiple_of(4) {
                if file.sync_data().is_err() {
                    break;
                }
                for (slot, bytes) in unsynced.drain(..) {
                    synced[slot] = bytes;
                }
                number += 1;
                let (name, bytes) = (format!("new-{round}-{number}"), noise(3000, random.next()));
                let write = || -> std::io::Result<()> {
                    let mut file = File::create(clone.path(&name))?;
                    file.write_all(&bytes)?;
                    file.sync_all()?;
                    File::open(&clone.place)?.sync_all()
                };
                match write() {
                    Ok(()) => made.push((name, bytes)),
                    Err(_) => break,
                }
            }
        }
        killer.join().expect("no panic");
        drop(file);
        clone.serve();
        file = File::open(clone.path("base")).expect("opens");
        for (slot, durable) in synced.iter_mut().enumerate() {
            let mut found = vec![0; durable.len()];
            file.read_exact_at(&mut found, slot as u64 * 4500).expect("reads");
            let allowed: Vec<&[u8]> = std::iter::once(&durable[..])
                .chain(unsynced.iter().filter(|(at, _)| *at == slot).map(|(_, bytes)| &bytes[..]))
                .collect();
            for (at, byte) in found.iter().enumerate() {
                assert!(
                    allowed.iter().any(|bytes| bytes[at] == *byte),
                    "round {round}: byte {at} of slot {slot} was never written"
                );
            }
            *durable = found;
        }
        for (name, bytes) in &made {
            assert!(std::fs::read(clone.path(name)).expect("it was fsynced") == *bytes, "round {round}: {name}");
        }
    }
    tell(&format!("{rounds} kills, {} files", made.len()));
    home.run(&["unclone", "clone", "--yes"]).done();
}

/// A clone and a plain directory with the same content, to which the same is done.
struct Twins<'a> {
    clone: &'a Clone<'a>,
    plain: PathBuf,
    directories: Vec<String>,
    names: Vec<String>,
}

impl Twins<'_> {
    fn both<T: std::fmt::Debug>(&self, what: &str, work: impl Fn(&Path) -> std::io::Result<T>) -> bool {
        let code = |result: std::io::Result<T>| result.map(|_| ()).map_err(|error| error.raw_os_error());
        let (shown, expected) = (code(work(&self.clone.place)), code(work(&self.plain)));
        assert_eq!(shown, expected, "{what}");
        expected.is_ok()
    }

    fn step(&mut self, random: &mut Random) {
        let any = |list: &[String], random: &mut Random| list[random.next() as usize % list.len()].clone();
        let fresh = format!("{}/n{}", any(&self.directories, random), random.next() % 40);
        let (old, other) = (any(&self.names, random), any(&self.names, random));
        let directory = any(&self.directories, random);
        let (offset, length) = (random.next() % 50_000, (random.next() % 20_000) as usize);
        let seed = random.next();
        let kind = random.next() % 17;
        let what = format!("{kind}: {old} {other} {fresh} {directory} {offset} {length}");
        match kind {
            0..=2 => drop(self.both(&what, |root| {
                let file = File::options().write(true).open(root.join(&old))?;
                file.write_all_at(&noise(length, seed), offset)
            })),
            3 => drop(self.both(&what, |root| {
                let mut file = File::options().append(true).open(root.join(&old))?;
                file.write_all(&noise(length, seed))
            })),
            4 => drop(self.both(&what, |root| File::options().write(true).open(root.join(&old))?.set_len(offset))),
            5 => {
                if self.both(&what, |root| File::options().write(true).create_new(true).mode(0o640).open(root.join(&fresh))) {
                    self.names.push(fresh);
                }
            }
            6 => drop(self.both(&what, |root| std::fs::rename(root.join(&old), root.join(&other)))),
            7 => {
                if self.both(&what, |root| std::fs::rename(root.join(&old), root.join(&fresh))) {
                    self.names.push(fresh);
                }
            }
            8 => drop(self.both(&what, |root| std::fs::remove_file(root.join(&old)))),
            9 => {
                if self.both(&what, |root| std::fs::hard_link(root.join(&old), root.join(&fresh))) {
                    self.names.push(fresh);
                }
            }
            10 => {
                if self.both(&what, |root| std::fs::create_dir(root.join(&fresh))) {
                    self.directories.push(fresh);
                }
            }
            11 => drop(self.both(&what, |root| std::fs::remove_dir(root.join(&directory)))),
            12 => {
                if self.both(&what, |root| std::os::unix::fs::symlink(&old, root.join(&fresh))) {
                    self.names.push(fresh);
                }
            }
            13 => drop(self.both(&what, |root| {
                let mode = std::fs::Permissions::from_mode((seed & 0o777) as u32 | 0o600);
                if root.join(&old).is_symlink() { Ok(()) } else { std::fs::set_permissions(root.join(&old), mode) }
            })),
            14 => drop(self.both(&what, |root| {
                let file = File::options().write(true).open(root.join(&old))?;
                let how = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(&file, how, offset, length as u64 + 1)?)
            })),
            15 => drop(self.both(&what, |root| {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                Ok(rustix::fs::renameat_with(rustix::fs::CWD, root.join(&old), rustix::fs::CWD, root.join(&other), flags)?)
            })),
            _ => drop(self.both(&what, |root| {
                let to = root.join(&fresh);
                std::fs::rename(root.join(&directory), to)
            })),
        }
    }
}

#[test]
fn a_clone_behaves_as_a_plain_directory_does() {
    model("", effort(400, 20_000));
}

#[test]
fn a_clone_that_the_kernel_must_not_read_by_itself_does_so_too() {
    model("[mount]\npassthrough = false\n", effort(400, 20_000));
}

fn model(config: &str, steps: usize) {
    let mut random = Random::begin("clone model");
    let home = Home::with_repository();
    home.private("tintype.toml", &format!("state_directory = {:?}\n{config}", home.path("state")));
    let mut names = Vec::new();
    let mut directories = vec![".".to_owned()];
    for directory in 0..4 {
        directories.push(format!("d{directory}"));
        for number in 0..5 {
            let name = format!("d{directory}/f{number}");
            home.data(&format!("data/{name}"), (directory * 17_000 + number * 9_001) as usize, number as u64);
            names.push(name);
        }
    }
    std::os::unix::fs::symlink("d0/f1", home.path("data/link")).expect("links");
    names.push("link".to_owned());
    home.snapshot(&[]);
    look(&["cp", "-a", &home.text("data"), &home.text("plain")]).done();
    let clone = Clone::new(&home, &[]);
    let mut twins = Twins { clone: &clone, plain: home.path("plain"), directories, names };
    for step in 0..steps {
        twins.step(&mut random);
        if step % 40 == 0 || random.next().is_multiple_of(50) {
            assert_eq!(tree(&clone.place), tree(&twins.plain), "after step {step}");
        }
        if random.next().is_multiple_of(150) {
            clone.again();
            assert_eq!(tree(&clone.place), tree(&twins.plain), "served again after step {step}");
        }
    }
    assert_eq!(tree(&clone.place), tree(&twins.plain));
    let said = look(&["getfattr", "--only-values", "-n", "user.tintype.passthrough", &home.text("clone")]);
    assert_eq!(said.done().text().starts_with("off"), !config.is_empty(), "{said:?}");
    home.run(&["unclone", "clone", "--yes"]).done();
}
