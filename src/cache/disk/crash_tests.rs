//! A host that crashes: of what was written and never synced, any part may be lost, be zeros, be old or be garbage.
//!
//! The crash is simulated on a closed cache: ranges of its files are overwritten and files are put back as they were some
//! time before. Then the host starts again, which is another boot.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::tests::{block, found, key, open, place, slots, taken};
use super::*;

const FILES: u8 = 12;
const LIMIT: u64 = 1_200_000;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

fn files_of(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory.join("files")).expect("lists");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn work(cache: &DiskCache, random: &mut Random) {
    for _ in 0..150 {
        let file = random.below(u64::from(FILES)) as u8;
        let slot = random.below(slots(file));
        match cache.get(&place(file, slot)) {
            Some(bytes) => assert_eq!(bytes, block(file, slot)),
            None => cache.put(&place(file, slot), &block(file, slot)),
        }
        drop(cache.whole_file(&key(file)));
    }
}

fn crash(directory: &Path, before: &[(PathBuf, Vec<u8>)], random: &mut Random) {
    for path in files_of(directory) {
        let file = std::fs::File::options().read(true).write(true).open(&path).expect("opens");
        let length = file.metadata().expect("there").len();
        for _ in 0..random.below(4) {
            let at = random.below(length);
            let count = random.below(20_000).min(length - at) as usize;
            let fill = random.below(256) as u8;
            let bytes: Vec<u8> = match random.below(2) {
                0 => vec![0; count],
                _ => (0..count).map(|at| (at as u8).wrapping_mul(31) ^ fill).collect(),
            };
            file.write_all_at(&bytes, at).expect("writes");
        }
        match random.below(12) {
            0 => file.set_len(random.below(length)).expect("cuts"),
            1 => std::fs::remove_file(&path).expect("removes"),
            2 | 3 => {
                // Bytes and records from different times.
                if let Some((_, old)) = before.iter().find(|(old, _)| *old == path) {
                    std::fs::write(&path, old).expect("writes");
                }
            }
            _ => {}
        }
    }
}

#[test]
fn no_crash_of_the_host_makes_a_wrong_byte() {
    let is_full = std::env::var("TINTYPE_EFFORT").is_ok_and(|effort| effort == "full");
    let mut random = Random(std::process::id().into());
    let first = random.0;
    let (mut survived, mut damaged) = (0, 0);
    for round in 0..if is_full { 400 } else { 25 } {
        let home = tempfile::tempdir().expect("a directory");
        let cache = open(home.path(), LIMIT, "before");
        work(&cache, &mut random);
        let before: Vec<_> =
            files_of(home.path()).into_iter().map(|path| (path.clone(), std::fs::read(path).expect("reads"))).collect();
        work(&cache, &mut random);
        drop(cache);
        crash(home.path(), &before, &mut random);

        let cache = open(home.path(), LIMIT, "after");
        for file in 0..FILES {
            assert!(cache.whole_file(&key(file)).is_none(), "seed {first}, round {round}: the map proves nothing");
            let there = found(&cache, file);
            survived += there;
            if let Some(whole) = cache.whole_file(&key(file)) {
                assert_eq!(there, slots(file));
                let mut bytes = vec![0; key(file).size_bytes as usize];
                whole.read_exact_at(&mut bytes, 0).expect("reads");
                let expected: Vec<u8> = (0..slots(file)).flat_map(|slot| block(file, slot)).collect();
                assert!(bytes == expected, "seed {first}, round {round}: wrong bytes in a whole file");
            }
        }
        damaged += cache.counts().damaged;
        work(&cache, &mut random);
        assert!(taken(home.path()) <= LIMIT, "seed {first}, round {round}");
    }
    assert!(survived > 0 && damaged > 0, "{survived} survived, {damaged} damaged: the crash is no crash");
}
