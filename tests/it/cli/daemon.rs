//! `tintyped` under a supervisor: what it says, what it reads again, and how it ends.

use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::mount::{Mountpoint, is_mounted, look};
use super::{Begun, Home, run};
use crate::support::s3::S3Server;

/// A supervisor's socket.
pub struct Listener(UnixDatagram);

impl Listener {
    pub fn at(home: &Home) -> Self {
        let path = home.path("notify");
        if path.exists() {
            std::fs::remove_file(&path).expect("ours");
        }
        Self::new(UnixDatagram::bind(path).expect("a socket"))
    }

    fn new(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        Self(socket)
    }

    /// The next thing that is said.
    pub fn hears(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("something is said in time");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}

/// The daemon as its unit starts it; its standard error goes to the file `err`.
pub fn begin(home: &Home, place: &Mountpoint, notify: &str) -> Begun {
    let err = std::fs::File::create(home.path("err")).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tintyped"));
    command.env_clear().env("TINTYPE_CONFIG", home.path("tintype.toml")).env("HOME", home.path(""));
    command.env("NOTIFY_SOCKET", notify).arg(&place.0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(err);
    Begun { child: command.spawn().expect("the program is built"), err: home.path("err") }
}

/// A configuration with more lines for each table.
pub fn configure(home: &Home, top: &str, repository: &str, mount: &str) {
    let text = format!(
        "state_directory = {:?}\n{top}\n[repository]\nurl = {:?}\n{repository}\n[mount]\n{mount}\n",
        home.path("state"),
        home.url
    );
    home.private("tintype.toml", &text);
}

pub fn key(home: &Home) -> String {
    format!("key_file = {:?}", home.path("key"))
}

/// A home with one snapshot in a bucket whose server can be made to hang.
pub struct Stalling {
    pub home: Home,
    pub server: S3Server,
    /// What `[repository]` needs.
    pub repository: String,
}

impl Stalling {
    pub fn new() -> Self {
        let (mut home, server) = (Home::new(), S3Server::moto());
        let options = server.options();
        home.url = format!("s3://{}/daemon", options.bucket);
        let credentials = options.credentials_file.expect("it has some");
        let repository = format!(
            "endpoint = {:?}\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = {credentials:?}\n{}",
            options.endpoint.expect("it has one"),
            key(&home)
        );
        configure(&home, "", &repository, "deadline = \"10min\"");
        home.data("data/a", 3_000_000, 1);
        home.run(&["init"]).done();
        home.snapshot(&[]);
        Self { home, server, repository }
    }
}

/// A daemon, and somebody who reads a file through it until the end, who waits for a bucket that hangs.
pub struct Stuck {
    pub reader: Child,
    pub daemon: Begun,
    pub listener: Listener,
    pub place: Mountpoint,
    pub stalling: Stalling,
}

impl Stuck {
    pub fn new() -> Self {
        let stalling = Stalling::new();
        let home = &stalling.home;
        let (place, listener) = (Mountpoint::new(home, "mount"), Listener::at(home));
        let daemon = begin(home, &place, &home.text("notify"));
        listener.hears();
        look(&["ls", "-lR", &place.text()]).done();
        stalling.server.hold();
        let path = home.path("mount/demo/latest/data/a");
        let mut cat = Command::new("cat");
        let reader = cat.arg(path).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("coreutils are installed");
        wait_until("the reader to be stuck", Duration::from_secs(10), || is_stuck(&reader));
        Self { reader, daemon, listener, place, stalling }
    }
}

pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sleeps in a call that only the file system ends.
fn is_stuck(child: &Child) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", child.id())).is_ok_and(|stat| stat.contains(") D "))
}

#[test]
fn the_supervisor_hears_of_readiness_reload_and_end() {
    let home = Home::with_snapshot();
    configure(&home, "", &key(&home), "");
    let place = Mountpoint::new(&home, "mount");
    let abstract_name = format!("tintype-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&abstract_name).expect("a name");
    let abstract_listener = Listener::new(UnixDatagram::bind_addr(&address).expect("a socket"));
    let listeners = [(home.text("notify"), Listener::at(&home)), (format!("@{abstract_name}"), abstract_listener)];
    for (socket, listener) in listeners {
        let mut daemon = begin(&home, &place, &socket);
        let said = listener.hears();
        assert!(said.starts_with(&format!("READY=1\nMAINPID={}\nSTATUS=serving ", daemon.child.id())), "{said}");
        assert!(home.path("mount/demo/latest/data/a").exists(), "ready means served");
        daemon.signal("HUP");
        let said = listener.hears();
        let at = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&said);
        assert!(at.parse::<u64>().is_ok_and(|at| at > 0), "{said}");
        assert!(listener.hears().starts_with("READY=1\n"));
        daemon.signal("TERM");
        assert!(listener.hears().starts_with("STOPPING=1\n"));
        daemon.ended().done();
        assert!(!is_mounted(&place.0));
    }
}

#[test]
fn a_daemon_that_cannot_serve_says_nothing_and_ends() {
    let home = Home::with_snapshot();
    configure(&home, "", "", "");
    let (place, listener) = (Mountpoint::new(&home, "mount"), Listener::at(&home));
    let mut daemon = begin(&home, &place, &home.text("notify"));
    assert_eq!(daemon.ended().code, Some(1));
    listener.0.set_nonblocking(true).expect("a mode");
    assert!(listener.0.recv(&mut [0; 100]).is_err(), "not ready, so nothing was said");
}

#[test]
fn a_reload_takes_over_what_can_change_and_names_what_needs_a_restart() {
    let stalling = Stalling::new();
    let (home, s3) = (&stalling.home, stalling.repository.replace(&key(&stalling.home), ""));
    let second = home.private("second", "another key file of at least thirty-two bytes, added later");
    home.run(&["key", "add", "--new-key-file", &second, "--label", "second"]).done();
    configure(home, "", &stalling.repository, "deadline = \"60s\"");
    let (place, listener) = (Mountpoint::new(home, "mount"), Listener::at(home));
    let mut daemon = begin(home, &place, &home.text("notify"));
    listener.hears();
    let mut reload = |top: &str, repository: &str, mount: &str, words: &[&str]| {
        configure(home, top, &format!("{s3}\n{repository}"), mount);
        daemon.signal("HUP");
        listener.hears();
        let status = listener.hears();
        words.iter().for_each(|word| {
            daemon.says(word);
        });
        status
    };
    let other_key = format!("key_file = {second:?}");
    reload("log = \"info\"", &other_key, "deadline = \"1s\"", &["read again", "deadline=1s"]);
    reload("log = \"info\"", &other_key, "deadline = \"1h\"\nallow_other = true", &["allow_other", "a longer deadline"]);
    let status = reload("log = \"off\"", "key_file = \"/nonexistent\"", "", &["not renewed"]);
    assert!(status.contains("; not renewed: "), "{status}");
    reload("lag = 1", "", "", &["lag"]);
    reload("log = \"tintype=loud\"", &other_key, "", &["log: "]);
    reload("log = \"info\"", &other_key, "deadline = \"1s\"", &[]);
    assert!(home.path("mount/demo/latest").exists());

    // The deadline of now, not that of the start.
    stalling.server.hold();
    let began = Instant::now();
    let read = look(&["cat", &home.text("mount/demo/latest/data/a")]);
    assert!(read.err.contains("timed out"), "{read:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    daemon.signal("TERM").ended().done();
}

#[test]
fn a_signal_unmounts_and_ends_it_within_five_seconds_while_a_reader_is_stuck() {
    let mut stuck = Stuck::new();
    let began = Instant::now();
    stuck.daemon.signal("TERM").ended().done();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(!is_mounted(&stuck.place.0));
    assert!(!stuck.reader.wait().expect("ends").success(), "an error, not a short file");
}

#[test]
fn the_units_are_understood_by_systemd() {
    let home = Home::new();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let names =
        ["tintyped.service", "mnt-backups.mount", "mnt-backups.automount", "tintype-clones.service", "tintype-restore.service"];
    for name in names {
        let text = std::fs::read_to_string(units.join(name)).expect("a unit");
        let here = text.replace("/usr/local/bin/tintyped ", concat!(env!("CARGO_BIN_EXE_tintyped"), " "));
        let here = here.replace("/usr/local/bin/tintype ", concat!(env!("CARGO_BIN_EXE_tintype"), " "));
        std::fs::write(home.path(name), here).expect("a copy");
    }
    // What adds to a unit is verified as a part of it.
    let drop_in = std::fs::read_to_string(units.join("tintyped-restores.conf")).expect("a drop-in");
    let directory = home.path("tintyped.service.d");
    std::fs::create_dir(&directory).expect("makes");
    std::fs::write(directory.join("restores.conf"), &drop_in).expect("a copy");
    for capability in ["CAP_CHOWN", "CAP_FOWNER", "CAP_SYS_PTRACE"] {
        assert!(drop_in.contains(capability), "{capability}");
    }
    let service = std::fs::read_to_string(units.join("tintyped.service")).expect("a unit");
    for line in ["Type=notify", "After=network-online.target", "Restart=on-failure", "DeviceAllow=/dev/fuse rw"] {
        assert!(service.contains(line), "{line}");
    }
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        let note = "systemd-analyze is not installed: the units were not verified\n";
        std::io::stderr().write_all(note.as_bytes()).expect("is open");
        return;
    }
    let ran = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).args(names.map(|name| home.path(name))));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
}
