//! A directory of very many entries, and a cluster of very many snapshots, in a repository and through the kernel.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{RawDir, SeekFrom};
use tintype::object::memory::MemoryStore;
use tintype::object::{ObjectStore, list_all};
use tintype::repo::{ListedSnapshot, Repository};

use super::Home;
use super::mount::{Mountpoint, look};
use crate::reader::{Stored, Tree, create_in, key_file, path, snapshot};
use crate::support::effort::{Random, effort, tell};

impl Home {
    /// Makes the repository in memory and then writes it out: on a disk each of very many objects is waited for.
    fn filled<T>(&self, work: impl AsyncFnOnce(Arc<Repository>) -> T) -> T {
        let key = key_file(&std::fs::read(self.path("key")).expect("a key"));
        tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
            let store = Arc::new(MemoryStore::default());
            let result = work(create_in(store.clone(), Some(&key)).await).await;
            for object in list_all(store.as_ref(), "").await.expect("lists") {
                let place = Path::new(&self.url).join(&object.key);
                std::fs::create_dir_all(place.parent().expect("has one")).expect("makes");
                std::fs::write(place, store.get(&object.key, None).await.expect("is there")).expect("room");
            }
            result
        })
    }
}

/// Reads on in a directory with a buffer that holds a few entries: names, and where to go on behind each; at most `count`.
fn read_on(directory: &File, count: usize) -> Vec<(Vec<u8>, u64)> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 400];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = entries.next().filter(|_| found.len() < count) {
        let entry = entry.expect("reads");
        found.push((entry.file_name().to_bytes().to_vec(), entry.next_entry_cookie()));
    }
    found
}

fn seconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64()
}

#[test]
fn a_directory_of_very_many_entries_is_listed_once_and_resumed_anywhere() {
    let count = effort(2000, 100_000);
    let mut random = Random::begin("large directory");
    let home = Home::new();
    let stored = |number: usize| match number % 4 {
        0 => Stored::Directory,
        1 => Stored::Link(format!("to/{number}").into_bytes()),
        _ => Stored::File(number.to_string().into_bytes()),
    };
    // Of different lengths, so that buffers end anywhere.
    let name = |number: usize| format!("{number:06}{}", "x".repeat(number * 7 % 60));
    let mut tree: Tree = (0..count).map(|number| (path(format!("large/{}", name(number))), stored(number))).collect();
    tree.insert(path("large"), Stored::Directory);
    let began = Instant::now();
    home.filled(async |repository| snapshot(&repository, &[("node-1", &tree)]).await);
    let written = seconds(began);
    let place = Mountpoint::new(&home, "mount");
    home.run(&["mount", &place.text()]).done();
    let large = home.path("mount/prod/latest/node-1/large");

    let began = Instant::now();
    let mut listed: Vec<_> = std::fs::read_dir(&large).expect("lists").map(|entry| entry.expect("lists").file_name()).collect();
    let listed_in = seconds(began);
    // By number they are in the order of their names.
    listed.sort();
    assert!(listed.iter().map(OsString::as_os_str).eq((0..count).map(name).collect::<Vec<_>>().iter().map(OsStr::new)));

    let began = Instant::now();
    // It asks for the attributes, two extended ones and the target of each, so it has longer than a look.
    let long = Command::new("timeout").args(["300", "ls", "-lU"]).arg(&large).output().expect("coreutils are installed");
    assert!(long.status.success() && long.stdout.iter().filter(|byte| **byte == b'\n').count() == count + 1);
    let shown_in = seconds(began);
    for number in 0..count {
        let metadata = large.join(name(number)).symlink_metadata().expect("is there");
        let found = (metadata.file_type(), metadata.len(), metadata.permissions().mode() & 0o7777, metadata.mtime());
        let expected = match stored(number) {
            Stored::Directory => found.0.is_dir() && (found.1, found.2) == (0, 0o750),
            Stored::Link(target) => found.0.is_symlink() && (found.1, found.2) == (target.len() as u64, 0o777),
            Stored::File(content) | Stored::Same(content) => {
                found.0.is_file() && (found.1, found.2) == (content.len() as u64, 0o640)
            }
        };
        assert!(expected && found.3 == 7, "{number}: {found:?}");
    }

    let directory = File::open(&large).expect("opens");
    let all = read_on(&directory, usize::MAX);
    let names: BTreeMap<_, _> = all.iter().map(|(name, next)| (&name[..], next)).collect();
    assert_eq!((all.len(), names.len()), (count + 2, count + 2), "each once, and the dots");
    let places = (0..300).map(|_| random.next() as usize % all.len()).chain([0, 1, all.len() - 2, all.len() - 1]);
    for at in places {
        rustix::fs::seek(&directory, SeekFrom::Start(all[at].1)).expect("seeks");
        let rest = &all[at + 1..];
        assert_eq!(read_on(&directory, 40), rest[..rest.len().min(40)], "behind entry {at}");
    }
    rustix::fs::seek(&directory, SeekFrom::Start(0)).expect("seeks");
    assert_eq!(read_on(&directory, 40), all[..40]);
    let some = OsStr::from_bytes(&all[all.len() / 2].0);
    assert!(large.join(some).symlink_metadata().is_ok() && !large.join("absent").exists());
    home.run(&["unmount", &place.text()]).done();
    tell(&format!("{count} entries: written in {written:.1} s, listed in {listed_in:.2} s, ls -l in {shown_in:.2} s"));
}

#[test]
fn a_cluster_of_very_many_snapshots_is_mounted_and_listed_soon() {
    let count = effort(200, 10_000);
    let home = Home::new();
    let began = Instant::now();
    let dates = home.filled(async |repository| {
        let mut dates = Vec::new();
        for number in 0..count {
            let tree = Tree::from([(path("number"), Stored::File(number.to_string().into_bytes()))]);
            let listed: ListedSnapshot = snapshot(&repository, &[("node-1", &tree)]).await;
            dates.push(listed.date.to_string());
        }
        dates
    });
    let written = seconds(began);
    let place = Mountpoint::new(&home, "mount");
    let began = Instant::now();
    home.run(&["mount", &place.text()]).done();
    let first = look(&["ls", "-l", &home.text("mount/prod/latest/node-1")]);
    let answered = began.elapsed();
    assert!(first.done().text().contains(" number\n"), "{first:?}");
    assert!(answered < Duration::from_secs(2), "{answered:?}");

    let began = Instant::now();
    let all = look(&["ls", &home.text("mount/prod")]);
    let listed_in = seconds(began);
    assert!(all.done().text().lines().eq(dates.iter().map(String::as_str).chain(["latest"])));
    let newest = dates.last().expect("some");
    assert_eq!(std::fs::read_link(home.path("mount/prod/latest")).expect("a link"), Path::new(newest));
    for at in [0, count / 2, count - 1] {
        let content = std::fs::read_to_string(home.path(&format!("mount/prod/{}/node-1/number", dates[at])));
        assert_eq!(content.expect("readable"), at.to_string());
    }
    home.run(&["unmount", &place.text()]).done();
    tell(&format!(
        "{count} snapshots: written in {written:.1} s, mounted and looked at in {answered:?}, listed in {listed_in:.2} s"
    ));
}
