//! A daemon that is killed in the middle of reads, and the one that its supervisor starts after it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Home;
use super::daemon::{Listener, Stalling, begin, configure, is_stuck, key, reader, wait_until};
use super::mount::{Mountpoint, is_mounted, look};

/// Nobody may wait longer for the error.
const AT_ONCE: Duration = Duration::from_secs(1);

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
        assert!(again.elapsed() < Duration::from_secs(2), "{:?}", again.elapsed());
        look(&["cmp", &home.text("data/a"), &path.display().to_string()]).done();
        open.read_exact_at(&mut [0; 100], last).expect_err("it was the dead one's");
        daemon.signal("TERM").ended().done();
        assert!(listener.hears().starts_with("STOPPING=1") && !is_mounted(&place.0));
    }
}

#[test]
fn a_reader_that_is_stuck_leaves_at_once_when_the_daemon_is_killed() {
    let stalling = Stalling::new();
    let home = &stalling.home;
    let (place, listener) = (Mountpoint::new(home, "mount"), Listener::at(home));
    let mut daemon = begin(home, &place, &home.text("notify"));
    listener.hears();
    look(&["ls", "-lR", &place.text()]).done();
    stalling.server.hold();
    let mut reader = reader(&home.path("mount/demo/latest/data/a"));
    wait_until("the reader to be stuck", Duration::from_secs(10), || is_stuck(&reader));
    daemon.signal("KILL");
    daemon.ended();
    wait_until("the stuck reader", AT_ONCE, || reader.try_wait().expect("ours").is_some());
    assert!(!reader.wait().expect("ended").success(), "an error, not a short file");

    stalling.server.go_on();
    let mut daemon = begin(home, &place, &home.text("notify"));
    listener.hears();
    look(&["cmp", &home.text("data/a"), &home.text("mount/demo/latest/data/a")]).done();
    daemon.signal("TERM").ended().done();
}
