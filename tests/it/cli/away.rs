//! A mount whose store is cut off while it is used: what goes on, what fails and how soon, and what is well again by itself.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::daemon::{Listener, begin, configure, key, wait_until};
use super::gate::{Gate, Pass, has};
use super::mount::{Mountpoint, look};
use super::{Begun, Home};
use crate::support::effort::effort;
use crate::support::s3::S3Server;

/// A home with a snapshot of `data/a` and `data/b` in a bucket behind a gate, served at `mount` with a cache.
struct Distant {
    home: Home,
    gate: Gate,
    daemon: Begun,
    listener: Listener,
    _place: Mountpoint,
    _server: S3Server,
}

impl Distant {
    fn new(bytes: usize, deadline: &str) -> Self {
        let (mut home, server) = (Home::new(), S3Server::s3s());
        let options = server.options();
        let endpoint = options.endpoint.expect("it has one");
        let gate = Gate::before(endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port"), |_| Pass::On);
        home.url = format!("s3://{}/away?endpoint=http://127.0.0.1:{}", options.bucket, gate.port);
        let credentials = options.credentials_file.expect("it has some");
        let repository = format!("region = \"us-east-1\"\npath_style = true\ncredentials_file = {credentials:?}\n{}", key(&home));
        let cache =
            format!("deadline = {deadline:?}\n[cache]\ndirectory = {:?}\nsize = \"1GiB\"\nkeep_free = \"0\"", home.path("cache"));
        configure(&home, "", &repository, &cache);
        home.data("data/a", bytes, 1);
        home.data("data/b", bytes, 2);
        home.run(&["init"]).done();
        home.snapshot(&[]);
        let (place, listener) = (Mountpoint::new(&home, "mount"), Listener::at(&home));
        let daemon = begin(&home, &place, &home.text("notify"));
        listener.hears();
        Self { home, gate, daemon, listener, _place: place, _server: server }
    }

    fn text(&self, name: &str) -> String {
        self.home.text(&format!("mount/demo/latest/data/{name}"))
    }

    fn compare(&self, name: &str) {
        look(&["cmp", &self.home.text(&format!("data/{name}")), &self.text(name)]).done();
    }

    /// What the kernel holds of the file is not to answer.
    fn forget(&self, name: &str) {
        let open = File::open(self.text(name)).expect("opens");
        rustix::fs::fadvise(&open, 0, None, rustix::fs::Advice::DontNeed).expect("is advice");
    }

    fn cached_bytes(&self, name: &str) -> u64 {
        let said = look(&["getfattr", "--only-values", "-n", "user.tintype.cached_bytes", &self.text(name)]);
        said.done().text().trim().parse().expect("a number")
    }

    fn end(mut self) {
        self.daemon.signal("TERM").ended().done();
        assert!(self.listener.hears().starts_with("STOPPING=1"));
    }
}

#[test]
fn a_copy_outlives_a_store_that_is_cut_off_for_less_than_the_deadline() {
    let absence = Duration::from_secs(effort(3, 60) as u64);
    let distant = Distant::new(48 << 20, "3min");
    look(&["ls", "-lR", &distant.home.text("mount")]).done();
    let (is_away, fetches) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    let away = is_away.clone();
    distant.gate.rule(move |bytes| {
        if has(bytes, "/packs/") && fetches.fetch_add(1, Ordering::SeqCst) == 3 {
            away.store(true, Ordering::SeqCst);
        }
        if away.load(Ordering::SeqCst) { Pass::Cut } else { Pass::On }
    });
    let copy = distant.home.path("copy");
    let mut copying = Command::new("cp").arg(distant.text("a")).arg(&copy).spawn().expect("coreutils are installed");
    wait_until("the cut", Duration::from_secs(20), || is_away.load(Ordering::SeqCst));
    let cut = Instant::now();
    while cut.elapsed() < absence {
        let asked = Instant::now();
        look(&["ls", "-lR", &distant.home.text("mount")]).done();
        look(&["df", &distant.home.text("mount")]).done();
        assert!(asked.elapsed() < Duration::from_secs(2), "what is known waited for the network: {:?}", asked.elapsed());
        assert!(copying.try_wait().expect("ours").is_none(), "it neither fails nor ends");
        std::thread::sleep(Duration::from_millis(200));
    }
    distant.gate.rule(|_| Pass::On);
    wait_until("the end of the copy", Duration::from_secs(20), || copying.try_wait().expect("ours").is_some());
    assert!(copying.wait().expect("ended").success());
    look(&["cmp", &distant.home.text("data/a"), &copy.display().to_string()]).done();
    distant.end();
}

#[test]
fn while_the_store_is_away_what_is_cached_is_served_the_rest_fails_soon_and_recovers_by_itself() {
    let distant = Distant::new(5 << 20, "2s");
    distant.compare("a");
    wait_until("the cache", Duration::from_secs(20), || distant.cached_bytes("a") == 5 << 20);
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    distant.gate.rule(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Pass::Cut
    });

    distant.forget("a");
    distant.compare("a");
    let began = Instant::now();
    fails(&distant.text("b"));
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let began = Instant::now();
        fails(&distant.text("b"));
        if began.elapsed() < Duration::from_millis(300) {
            break;
        }
        assert!(Instant::now() < until, "each read still waits: {:?}", began.elapsed());
    }
    let (before, began) = (requests.load(Ordering::SeqCst), Instant::now());
    for _ in 0..100 {
        fails(&distant.text("b"));
    }
    // One question each second or two, and each is tried twice, in up to two pieces.
    let allowed = 8 + 4 * began.elapsed().as_secs() as usize;
    let asked = requests.load(Ordering::SeqCst) - before;
    assert!(asked <= allowed, "the dead store was asked {asked} times in {:?}", began.elapsed());
    distant.forget("a");
    distant.compare("a");

    distant.gate.rule(|_| Pass::On);
    wait_until("recovery", Duration::from_secs(10), || std::fs::read(distant.text("b")).is_ok());
    distant.compare("b");
    distant.end();
}

fn fails(path: &str) {
    let error = std::fs::read(Path::new(path)).expect_err("the store is away").raw_os_error();
    assert!(matches!(error, Some(libc::EIO | libc::ETIMEDOUT)), "{error:?}");
}
