//! Clones where something is wrong: no store, no room; and a file under everything that programs do to one, for long.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags};

use super::clone::{Clone, tree};
use super::daemon::{configure, key, wait_until};
use super::gate::{Gate, Pass, has};
use super::mount::look;
use super::{Home, noise};
use crate::support::effort::{Random, effort, tell};
use crate::support::mapping::{Mapping, PAGE};
use crate::support::s3::S3Server;

/// A file of a clone, and a plain one with the same bytes.
struct Pair<'a> {
    clone: &'a Clone<'a>,
    plain: File,
    shown: File,
    length: u64,
}

const MOST: u64 = 400_000;

impl Pair<'_> {
    fn open(clone: &Clone<'_>, is_direct: bool) -> File {
        let flags = if is_direct { libc::O_DIRECT } else { 0 };
        File::options().read(true).write(true).custom_flags(flags).open(clone.path("file")).expect("opens")
    }

    fn both(&self, work: impl Fn(&File) -> std::io::Result<()>) {
        for file in [&self.shown, &self.plain] {
            work(file).expect("there is room");
        }
    }

    fn step(&mut self, random: &mut Random) {
        let offset = random.next() % MOST;
        let length = if random.next().is_multiple_of(3) { random.next() % 40_000 } else { random.next() % 5000 } + 1;
        let seed = random.next();
        match random.next() % 12 {
            0..=2 => {
                let (mut shown, mut expected) = (vec![0; length as usize], vec![0; length as usize]);
                let counts = (self.shown.read_at(&mut shown, offset), self.plain.read_at(&mut expected, offset));
                let (shown_bytes, expected_bytes) = (counts.0.expect("reads"), counts.1.expect("reads"));
                assert!(shown_bytes == expected_bytes && shown == expected, "read of {length} at {offset}");
            }
            3..=4 => {
                self.both(|file| file.write_all_at(&noise(length as usize, seed), offset));
                self.length = self.length.max(offset + length);
            }
            5 => {
                self.both(|file| file.set_len(offset));
                self.length = offset;
            }
            6 => {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                self.both(|file| Ok(rustix::fs::fallocate(file, how, offset, length)?));
            }
            7 => {
                self.both(|file| Ok(rustix::fs::fallocate(file, FallocateFlags::ZERO_RANGE, offset, length)?));
                self.length = self.length.max(offset + length);
            }
            8 if self.length > 0 => {
                // Written through a shared mapping, as far as the file reaches.
                let first = offset % self.length / PAGE as u64 * PAGE as u64;
                let bytes = noise((length.min(self.length - first)) as usize, seed);
                for file in [&self.shown, &self.plain] {
                    let writable = libc::PROT_READ | libc::PROT_WRITE;
                    let mut mapping = Mapping::new(file, first as usize, bytes.len(), writable, libc::MAP_SHARED).expect("maps");
                    mapping.bytes(bytes.len()).copy_from_slice(&bytes);
                }
            }
            9 if self.length > 0 => {
                let first = offset % self.length / PAGE as u64 * PAGE as u64;
                let bytes = length.min(self.length - first) as usize;
                let read = |file: &File| {
                    let mut mapping = Mapping::new(file, first as usize, bytes, libc::PROT_READ, libc::MAP_SHARED).expect("maps");
                    mapping.bytes(bytes).to_vec()
                };
                assert!(read(&self.shown) == read(&self.plain), "mapped {bytes} at {first}");
            }
            10 => {
                self.both(File::sync_data);
                rustix::fs::fadvise(&self.shown, 0, None, Advice::DontNeed).expect("is advice");
            }
            _ => assert_eq!(self.shown.metadata().expect("known").len(), self.length),
        }
    }
}

#[test]
fn a_file_under_everything_that_programs_do_to_one_is_as_a_plain_one() {
    let mut random = Random::begin("clone file");
    let home = Home::with_repository();
    home.data("data/file", 300_007, 1);
    home.snapshot(&[]);
    for config in ["", "[mount]\npassthrough = false\n"] {
        home.private("tintype.toml", &format!("state_directory = {:?}\n{config}", home.path("state")));
        let steps = effort(3000, 500_000);
        let mut done = 0;
        while done < steps {
            // A fresh clone now and then: after some thousand steps all is written.
            let clone = Clone::new(&home, &[]);
            std::fs::copy(home.path("data/file"), home.path("plain")).expect("copies");
            let plain = File::options().read(true).write(true).open(home.path("plain")).expect("opens");
            let mut pair = Pair { clone: &clone, plain, shown: Pair::open(&clone, false), length: 300_007 };
            for step in 0..1500 {
                pair.step(&mut random);
                if random.next().is_multiple_of(300) {
                    pair.shown = Pair::open(pair.clone, false);
                } else if step % 700 == 699 {
                    drop(std::mem::replace(&mut pair.shown, File::open("/dev/null").expect("opens")));
                    clone.again();
                    pair.shown = Pair::open(&clone, false);
                }
            }
            look(&["cmp", &home.text("plain"), &home.text("clone/file")]).done();
            drop(pair);
            home.run(&["unclone", "clone", "--yes"]).done();
            done += 1500;
        }
    }
}

#[test]
fn direct_reads_and_writes_are_served_in_both_ways() {
    let home = Home::with_repository();
    home.data("data/file", 300_007, 1);
    home.snapshot(&[]);
    let clone = Clone::new(&home, &[]);
    let expected = std::fs::read(home.path("data/file")).expect("ours");
    // The first is layered, the second wholly the clone's own.
    std::fs::write(clone.path("other"), &expected).expect("writes");
    for name in ["file", "other"] {
        let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(clone.path(name)).expect("opens");
        let room = rustix::fs::fstat(&file).expect("known").st_blksize as usize;
        let layout = std::alloc::Layout::from_size_align(2 * room, room).expect("a power of two");
        // SAFETY: the layout is not empty; the memory is freed with the same layout below, and only used in between.
        let place = unsafe { std::alloc::alloc_zeroed(layout) };
        // SAFETY: that many bytes were allocated, zeroed, and belong to nobody else.
        let bytes = unsafe { std::slice::from_raw_parts_mut(place, 2 * room) };
        file.read_exact_at(bytes, room as u64).expect("reads");
        assert!(*bytes == expected[room..3 * room], "{name}");
        bytes.fill(7);
        file.write_all_at(bytes, 4 * room as u64).expect("writes");
        // SAFETY: allocated above with this layout, and not used any more.
        unsafe { std::alloc::dealloc(place, layout) };
        let mut found = expected.clone();
        found[4 * room..6 * room].fill(7);
        assert!(std::fs::read(clone.path(name)).expect("reads") == found, "{name}");
    }
    home.run(&["unclone", "clone", "--yes"]).done();
}

#[test]
fn what_needs_a_store_that_is_away_waits_and_goes_on_when_it_is_back() {
    let absence = Duration::from_secs(effort(5, 300) as u64);
    let (mut home, server) = (Home::new(), S3Server::s3s());
    let options = server.options();
    let endpoint = options.endpoint.expect("it has one");
    let gate = Gate::before(endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port"), |_| Pass::On);
    home.url = format!("s3://{}/away?endpoint=http://127.0.0.1:{}", options.bucket, gate.port);
    let credentials = options.credentials_file.expect("it has some");
    let repository = format!("region = \"us-east-1\"\npath_style = true\ncredentials_file = {credentials:?}\n{}", key(&home));
    configure(&home, "", &repository, "");
    home.data("data/large", 48 << 20, 1);
    home.data("data/small", 5000, 2);
    home.data("tables/CURRENT", 100, 3);
    home.data("tables/000001.sst", 8 << 20, 4);
    home.run(&["init"]).done();
    home.snapshot(&[]);
    home.run(&["snapshot", "tables", "--files", "tables"]).done();
    home.run(&["restore", "tables/latest/tables", "--directory", "linked", "--method", "link", "--no-hydrate"]).done();
    home.run(&["clone", "tables/latest/tables", "impatient", "--deadline", "1s"]).done();
    let clone = Clone { home: &home, place: home.path("clone") };
    home.run(&["clone", "demo/latest/data", "clone"]).done();
    std::fs::write(clone.path("own"), b"of the clone's own").expect("writes");
    let (is_away, fetches) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    let away = is_away.clone();
    gate.rule(move |bytes| {
        if has(bytes, "/packs/") && fetches.fetch_add(1, Ordering::SeqCst) == 3 {
            away.store(true, Ordering::SeqCst);
        }
        if away.load(Ordering::SeqCst) { Pass::Cut } else { Pass::On }
    });
    let mut reading = Command::new("cmp").args([home.path("data/large"), clone.path("large")]).spawn().expect("is installed");
    wait_until("the cut", Duration::from_secs(20), || is_away.load(Ordering::SeqCst));
    let cut = Instant::now();
    let table = |place: &str| home.path(place).join("000001.sst");
    let mut linked = Command::new("cmp").args([table("tables"), table("linked")]).spawn().expect("is installed");
    // One that was told to wait no longer fails, in its time.
    assert_ne!(look(&["cat", &table("impatient").display().to_string()]).code, Some(0));
    let (mut writes, last) = (0u32, 47 << 20);
    while cut.elapsed() < absence {
        let is_waiting = |reader: &mut std::process::Child| reader.try_wait().expect("ours").is_none();
        assert!(is_waiting(&mut reading) && is_waiting(&mut linked), "they neither fail nor end");
        let asked = Instant::now();
        look(&["ls", "-lR", &home.text("clone")]).done();
        std::fs::write(clone.path(&format!("new-{}", writes % 100)), b"no store is needed").expect("writes");
        let file = File::options().write(true).open(clone.path("large")).expect("opens");
        // Whole pages need no store either.
        file.write_all_at(&vec![writes as u8; 4096], last).expect("writes");
        file.sync_all().expect("syncs");
        assert_eq!(std::fs::read(clone.path("own")).expect("reads"), b"of the clone's own");
        assert!(asked.elapsed() < Duration::from_secs(3), "what is local waited for the network: {:?}", asked.elapsed());
        writes += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    let file = File::options().write(true).open(clone.path("large")).expect("opens");
    let original = std::fs::read(home.path("data/large")).expect("ours");
    gate.rule(|_| Pass::On);
    wait_until("the end of the reader", Duration::from_secs(60), || reading.try_wait().expect("ours").is_some());
    assert!(linked.wait().expect("ended").success(), "what links lead to was waited for");
    // It had what was written under it, and no error.
    assert_eq!(reading.wait().expect("ended").code(), Some(1));
    file.write_all_at(&original[last as usize..last as usize + 4096], last).expect("writes");
    drop(file);
    look(&["cmp", &home.text("data/large"), &home.text("clone/large")]).done();
    look(&["cmp", &table("tables").display().to_string(), &table("impatient").display().to_string()]).done();
    home.run(&["hydrate", &home.text("linked")]).done();
    for place in ["impatient", "clone"] {
        home.run(&["unclone", place, "--yes"]).done();
    }
}

/// A small file system of its own, taken away at the end.
struct Small(PathBuf);

impl Small {
    fn new(place: PathBuf) -> Self {
        std::fs::create_dir(&place).expect("a directory");
        look(&["mount", "-t", "tmpfs", "-o", "size=3m,nr_inodes=60", "tmpfs", &place.display().to_string()]).done();
        Self(place)
    }

    /// Takes all the room that is left, and all the files.
    fn fill(&self) {
        let mut filler = File::create(self.0.join("filler")).expect("a file");
        let mut length = 1 << 16;
        while length > 0 {
            if !filler.write(&vec![1; length]).is_ok_and(|count| count > 0) {
                length /= 2;
            }
        }
        for number in 0.. {
            match File::create(self.0.join(format!("none-{number}"))) {
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }

    fn free(&self) {
        for entry in std::fs::read_dir(&self.0).expect("lists") {
            let path = entry.expect("lists").path();
            if path.is_file() {
                std::fs::remove_file(path).expect("ours");
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ended = look(&["umount", "-l", &self.0.display().to_string()]);
    }
}

#[test]
fn a_full_disk_fails_the_call_that_needs_it_and_harms_nothing() {
    type Call = fn(&Path) -> std::io::Result<()>;
    let home = Home::with_repository();
    home.data("data/a", 100_000, 1);
    home.data("data/b", 50_000, 2);
    for number in 0..10 {
        home.data(&format!("data/sub/{number}"), 1000 + number, number as u64);
    }
    home.snapshot(&[]);
    let small = Small::new(home.path("small"));
    let clone = Clone::new(&home, &["--upper", &home.text("small/upper")]);
    look(&["cp", "-a", &home.text("data"), &home.text("plain")]).done();
    let open = |path: PathBuf| File::options().write(true).open(path);
    let calls: [(&str, Call); 14] = [
        ("list an unopened directory", |root| std::fs::read_dir(root.join("sub")).map(drop)),
        ("patch", |root| File::options().write(true).open(root.join("a"))?.write_all_at(b"patch", 5000)),
        ("whole page", |root| File::options().write(true).open(root.join("a"))?.write_all_at(&[3; 4096], 8192)),
        ("append", |root| File::options().append(true).open(root.join("b"))?.write_all(b"appended")),
        ("fsync", |root| File::options().write(true).open(root.join("a"))?.sync_all()),
        ("cut", |root| File::options().write(true).open(root.join("b"))?.set_len(20_000)),
        ("punch", |root| {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(rustix::fs::fallocate(File::options().write(true).open(root.join("b"))?, how, 100, 5000)?)
        }),
        ("reserve", |root| {
            Ok(rustix::fs::fallocate(File::options().write(true).open(root.join("a"))?, FallocateFlags::empty(), 0, 200_000)?)
        }),
        ("create", |root| File::create_new(root.join("sub/created")).map(drop)),
        ("mkdir", |root| std::fs::create_dir(root.join("sub/directory"))),
        ("symlink", |root| std::os::unix::fs::symlink("a", root.join("sub/symlink"))),
        ("link", |root| std::fs::hard_link(root.join("a"), root.join("sub/hard"))),
        ("rename", |root| std::fs::rename(root.join("sub/1"), root.join("sub/renamed"))),
        ("unlink", |root| std::fs::remove_file(root.join("sub/2"))),
    ];
    let mut refused = Vec::new();
    for (what, call) in calls {
        small.fill();
        let done = call(&clone.place);
        small.free();
        match done {
            Ok(()) => call(&home.path("plain")).expect("a plain directory has room"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{what}");
                refused.push(what);
                assert_eq!(tree(&clone.place), tree(&home.path("plain")), "after {what} was refused");
                // With room it goes well.
                call(&clone.place).expect("there is room");
                call(&home.path("plain")).expect("a plain directory has room");
            }
        }
        assert_eq!(tree(&clone.place), tree(&home.path("plain")), "{what}");
    }
    tell(&format!("refused: {refused:?}"));
    assert!(refused.contains(&"patch") && refused.contains(&"list an unopened directory") && refused.contains(&"create"));
    open(clone.path("a")).and_then(|file| file.sync_all()).expect("there is room");
    clone.again();
    assert_eq!(tree(&clone.place), tree(&home.path("plain")));
    home.run(&["unclone", "clone", "--yes"]).done();
}
