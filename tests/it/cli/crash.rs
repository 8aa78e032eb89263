//! A daemon that is killed in the middle of reads, and the one that its supervisor starts after it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Home;
use super::daemon::{Listener, Stuck, begin, configure, key, wait_until};
use super::mount::{Mountpoint, is_mounted, look};
use crate::support::disk::taken;
use crate::support::effort::{Random, effort, tell};
use crate::support::readers::{Reader, Task};

/// Nobody may wait longer for the error.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Within this the next daemon serves.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn a_killed_daemon_fails_its_readers_at_once_and_the_next_one_serves_within_two_seconds() {
    let home = Home::with_repository();
    home.data("data/a", 30 << 20, 1);
    home.snapshot(&[]);
    configure(&home, "", &key(&home), "");
    let (place, listener) = (Mountpoint::new(&home, "mount"), Listener::at(&home));
    let path = home.path("mount/demo/latest/data/a");
    for round in 0..3 {
        let mut daemon = begin(&home, &place, &home.text("notify"));
        listener.hears();
        let open = File::open(&path).expect("opens");
        open.read_exact_at(&mut [0; 100], 0).expect("is served");
        let script = "while cat \"$1\" > /dev/null 2> err; do :; done; cat err >&2";
        let mut busy = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&path)
            .current_dir(home.path(""))
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell");
        std::thread::sleep(Duration::from_millis(50 * round));
        let last = open.metadata().expect("known").len() - 100;
        // What the kernel holds of the file must not answer.
        rustix::fs::fadvise(&open, 0, None, rustix::fs::Advice::DontNeed).expect("is advice");
        let killed = Instant::now();
        daemon.signal("KILL");
        daemon.ended();
        wait_until("the end of the reader", AT_ONCE, || busy.try_wait().expect("ours").is_some());
        open.read_exact_at(&mut [0; 100], last).expect_err("nobody serves it");
        File::open(&path).expect_err("nobody serves it");
        assert!(killed.elapsed() < 2 * AT_ONCE, "{:?}", killed.elapsed());
        assert!(is_mounted(&place.0), "it could not unmount");

        let again = Instant::now();
        let mut daemon = begin(&home, &place, &home.text("notify"));
        listener.hears();
        assert!(again.elapsed() < SOON, "{:?}", again.elapsed());
        look(&["cmp", &home.text("data/a"), &path.display().to_string()]).done();
        open.read_exact_at(&mut [0; 100], last).expect_err("it was the dead one's");
        daemon.signal("TERM").ended().done();
        assert!(listener.hears().starts_with("STOPPING=1") && !is_mounted(&place.0));
    }
}

#[test]
fn a_reader_that_is_stuck_leaves_at_once_when_the_daemon_is_killed() {
    let Stuck { mut reader, mut daemon, listener, place, stalling } = Stuck::new();
    daemon.signal("KILL");
    daemon.ended();
    wait_until("the stuck reader", AT_ONCE, || reader.try_wait().expect("ours").is_some());
    assert!(!reader.wait().expect("ended").success(), "an error, not a short file");

    stalling.server.go_on();
    let home = &stalling.home;
    let mut daemon = begin(home, &place, &home.text("notify"));
    listener.hears();
    look(&["cmp", &home.text("data/a"), &home.text("mount/demo/latest/data/a")]).done();
    daemon.signal("TERM").ended().done();
}

#[test]
fn a_daemon_killed_at_any_instant_of_reads_and_cache_writes_leaves_no_wrong_byte_and_nobody_waiting() {
    const LIMIT: u64 = 8 << 20;
    let mut random = Random::begin("daemon kill");
    let home = Home::with_repository();
    // Three times what the cache holds, so that something is put into it, and something goes, in every round.
    home.data("data/large", 16 << 20, 1);
    home.data("data/middle", 5_000_007, 2);
    (0..40).for_each(|number| home.data(&format!("data/small/{number}"), 1 + number * number * 60, number as u64));
    home.snapshot(&[]);
    let cache = home.path("cache");
    configure(&home, "", &key(&home), &format!("[cache]\ndirectory = {cache:?}\nsize = \"{LIMIT}\"\nkeep_free = \"0\""));
    let (place, listener) = (Mountpoint::new(&home, "mount"), Listener::at(&home));
    let task = Task { shown: &home.path("mount/demo/latest/data"), originals: &home.path("data"), steps: None };
    let (rounds, mut reads, mut bytes, mut most) = (effort(5, 200), 0, 0, 0);
    let begin_soon = || {
        let began = Instant::now();
        let daemon = begin(&home, &place, &home.text("notify"));
        // One that was killed at its beginning may have said something too.
        while !listener.hears().contains(&format!("READY=1\nMAINPID={}\n", daemon.child.id())) {}
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        daemon
    };
    for round in 0..rounds {
        if round % 5 == 4 {
            // In the middle of its beginning, with what the one before it left.
            let mut daemon = begin(&home, &place, &home.text("notify"));
            std::thread::sleep(random.duration(Duration::from_millis(100)));
            daemon.child.kill().expect("ours");
            daemon.ended();
        }
        let mut daemon = begin_soon();
        let readers = [(); 3].map(|()| Reader::begin(&task, &mut random));
        std::thread::sleep(random.duration(Duration::from_millis(400)));
        daemon.child.kill().expect("ours");
        for reader in readers {
            let tally = reader.refused(AT_ONCE);
            (reads, bytes) = (reads + tally.reads, bytes + tally.bytes);
        }
        assert_eq!(daemon.ended().code, None, "round {round}: it was killed");
        most = most.max(taken(&cache));
        assert!(most <= LIMIT, "round {round}: {most} of {LIMIT}");
    }
    let mut daemon = begin_soon();
    look(&["diff", "-r", &home.text("data"), &task.shown.display().to_string()]).done();
    assert!(taken(&cache) <= LIMIT);
    daemon.signal("TERM").ended().done();
    assert!(reads as usize > rounds && most > LIMIT / 2, "{reads} reads, {most} of {LIMIT}");
    tell(&format!("{rounds} kills, {reads} reads of {bytes} bytes, a cache of {most} at most"));
}

#[test]
fn the_doctor_names_a_configured_mount_that_is_dead_and_the_remedy() {
    let home = Home::with_snapshot();
    let (place, listener) = (Mountpoint::new(&home, "mount"), Listener::at(&home));
    configure(&home, "", &key(&home), &format!("mountpoint = {:?}", place.text()));
    let mut daemon = begin(&home, &place, &home.text("notify"));
    listener.hears();
    assert!(home.run(&["doctor"]).done().text().contains(&format!("ok    mounted: {}", place.text())));
    daemon.signal("KILL");
    daemon.ended();
    let ran = home.run(&["doctor"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let said = format!(
        "WRONG mounted: {0}  does not answer\n      next: take it away: tintype unmount {0}; a clone: tintype clones --serve\n",
        place.text()
    );
    assert!(ran.text().contains(&said), "{ran:?}");
    home.run(&["unmount", &place.text()]).done();
}
