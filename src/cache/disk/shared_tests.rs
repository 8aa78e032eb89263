//! Several users of one directory. Each opens it for itself, as processes do: locks are of the open file, not of the process.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::tests::{block, open, place, slots};
use super::*;

const ROOMY: u64 = 64 << 20;

fn shared(directory: &Path, limit_bytes: u64) -> SharedCache {
    let options = DiskOptions { directory: directory.to_owned(), limit_bytes, keep_free_bytes: 0, boot: "b".to_owned() };
    SharedCache::open(options).expect("may be opened")
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What is not counted yet is not written.
fn put(cache: &SharedCache, file: u8, slot: u64) {
    until("it is put", || {
        cache.put(&place(file, slot), &block(file, slot));
        cache.get(&place(file, slot)).is_some()
    });
}

fn has(cache: &dyn FileCache, file: u8, slot: u64) -> bool {
    cache.get(&place(file, slot)).is_some_and(|read| read == block(file, slot))
}

#[test]
fn the_first_writes_the_others_read_and_one_of_them_goes_on() {
    let home = tempfile::tempdir().expect("a directory");
    let first = shared(home.path(), ROOMY);
    let others = [shared(home.path(), ROOMY), shared(home.path(), ROOMY)];
    assert!(first.is_writer() && others.iter().all(|other| !other.is_writer()));
    put(&first, 3, 0);
    for (other, slot) in others.iter().zip(1..) {
        assert!(has(other, 3, 0) && other.get(&place(3, slot)).is_none());
        // Of a file that is open already.
        put(&first, 3, slot);
        assert!(has(other, 3, slot));
        other.put(&place(4, 0), &block(4, 0));
        assert!(other.get(&place(4, 0)).is_none(), "a reader writes nothing");
        assert!(other.cached_bytes(&place(3, 0).file) > 0 && other.whole_file(&place(3, 0).file).is_none());
    }
    drop(first);
    until("one of the others writes", || others.iter().any(SharedCache::is_writer));
    std::thread::sleep(3 * Duration::from_millis(200));
    assert_eq!(others.iter().filter(|other| other.is_writer()).count(), 1, "and only one");
    let (writer, reader) = if others[0].is_writer() { (&others[0], &others[1]) } else { (&others[1], &others[0]) };
    put(writer, 5, 0);
    assert!(has(reader, 5, 0));
    assert!(has(reader, 3, 0), "what the first one put is there");
}

#[test]
fn a_mount_has_the_directory_at_once_and_gives_it_back() {
    let home = tempfile::tempdir().expect("a directory");
    let clones = [shared(home.path(), ROOMY), shared(home.path(), ROOMY)];
    put(&clones[0], 3, 0);
    let mount = open(home.path(), ROOMY, "b");
    assert!(has(&mount, 3, 0));
    assert!(clones.iter().all(|clone| !clone.is_writer()));
    mount.put(&place(6, 0), &block(6, 0));
    for clone in &clones {
        assert!(has(clone, 6, 0));
    }
    // Another mount is refused as ever: the first one does not make room.
    let options = DiskOptions { directory: home.path().to_owned(), limit_bytes: ROOMY, keep_free_bytes: 0, boot: "b".to_owned() };
    assert!(matches!(DiskCache::open(options), Err(DiskCacheError::InUse { .. })));
    drop(mount);
    until("a clone writes again", || clones.iter().any(SharedCache::is_writer));
}

#[test]
fn a_reader_sees_a_file_that_went_and_came_back_and_believes_no_damage() {
    let home = tempfile::tempdir().expect("a directory");
    let (writer, reader) = (shared(home.path(), ROOMY), shared(home.path(), ROOMY));
    put(&writer, 7, 0);
    put(&writer, 7, 1);
    assert!(has(&reader, 7, 0));
    let name = Name::of(&place(7, 0).file);
    let data = home.path().join("files").join(format!("{name}.data"));
    let bytes = std::fs::read(&data).expect("its bytes");
    let mut damaged = bytes.clone();
    damaged[5] ^= 1;
    std::fs::write(&data, damaged).expect("writes");
    assert!(reader.get(&place(7, 0)).is_none());
    assert!(has(&reader, 7, 1));
    std::fs::write(&data, bytes).expect("writes");
    assert!(has(&reader, 7, 0));
    // As the writer takes a file away, and as it comes back: another one of the same name.
    let file = |ending: &str| home.path().join("files").join(format!("{name}.{ending}"));
    let copies = ["map", "data"].map(|ending| (file(ending), std::fs::read(file(ending)).expect("reads")));
    let map = std::fs::File::options().write(true).open(file("map")).expect("opens");
    stored::remove(&home.path().join("files"), &name).expect("removed");
    map.set_len(0).expect("emptied");
    assert!(reader.get(&place(7, 0)).is_none());
    for (path, bytes) in copies {
        std::fs::write(path, bytes).expect("writes");
    }
    assert!(has(&reader, 7, 0) && has(&reader, 7, 1));
}

/// How many files below the directory are open here that have no name any more.
fn held_removed(directory: &Path) -> usize {
    let files = std::fs::read_dir("/proc/self/fd").expect("lists").flatten();
    let targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    targets.filter(|path| path.starts_with(directory) && path.to_string_lossy().ends_with(" (deleted)")).count()
}

#[test]
fn what_the_writer_removes_takes_no_room_for_long_also_when_it_was_handed_out() {
    let home = tempfile::tempdir().expect("a directory");
    let home = home.path().canonicalize().expect("resolves");
    let (writer, reader) = (shared(&home, ROOMY), shared(&home, ROOMY));
    for slot in 0..slots(3) {
        put(&writer, 3, slot);
    }
    assert!(has(&reader, 3, 0));
    let handed_out = writer.whole_file(&place(3, 0).file).expect("it is whole");
    // Of such a file nothing is emptied: it goes with its last handle.
    stored::remove(&home.join("files"), &Name::of(&place(3, 0).file)).expect("removed");
    drop((handed_out, writer));
    until("the reader let it go", || held_removed(&home) == 0);
}

#[test]
fn a_directory_that_is_removed_is_nobodys_until_a_mount_makes_it_anew() {
    let home = tempfile::tempdir().expect("a directory");
    let place_of = home.path().canonicalize().expect("resolves").join("cache");
    let clones = [shared(&place_of, ROOMY), shared(&place_of, ROOMY)];
    put(&clones[0], 3, 0);
    std::fs::remove_dir_all(&place_of).expect("removes");
    until("nobody writes", || clones.iter().all(|clone| !clone.is_writer()));
    std::thread::sleep(Duration::from_millis(500));
    assert!(!place_of.exists() && clones.iter().all(|clone| !clone.is_writer() && clone.get(&place(3, 0)).is_none()));
    let mount = open(&place_of, ROOMY, "b");
    mount.put(&place(4, 0), &block(4, 0));
    for clone in &clones {
        until("it reads what the mount has put", || has(clone, 4, 0));
    }
    drop(mount);
    until("one writes", || clones.iter().any(SharedCache::is_writer));
    assert_eq!(clones.iter().filter(|clone| clone.is_writer()).count(), 1);
}

#[test]
fn whatever_is_read_while_the_writer_makes_room_is_right() {
    let home = tempfile::tempdir().expect("a directory");
    // Room for a part of the files only.
    let (writer, reader) = (shared(home.path(), 1 << 20), shared(home.path(), 1 << 20));
    until("it is counted", || {
        writer.put(&place(3, 0), &block(3, 0));
        writer.get(&place(3, 0)).is_some()
    });
    let (is_over, found) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for file in 0..60 {
                        for slot in 0..slots(file) {
                            if let Some(read) = reader.get(&place(file, slot)) {
                                assert_eq!(read, block(file, slot));
                                found.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
        for _ in 0..3 {
            for file in 0..60 {
                for slot in 0..slots(file) {
                    writer.put(&place(file, slot), &block(file, slot));
                }
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(found.into_inner() > 0, "nothing was found");
}
