//! The programs as people and scripts run them: every verb, and every mistake with its exit code, its words and its hint.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

mod away;
mod clone;
mod clone_cache;
mod clone_faults;
mod clone_stores;
mod crash;
mod daemon;
mod damage;
mod faults;
mod files;
mod gate;
mod host;
mod large;
mod links;
mod mount;
mod mount_helper;
mod names;
mod partial;
mod redis;
mod repository;
mod standard_tools;
mod store;
mod verbs;
mod warm;

/// No command of these tests may take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// A person's home with a key file, a configuration and a place for a repository; nothing of ours leaks in from outside.
pub struct Home {
    directory: TempDir,
    /// What `--repository` says.
    url: String,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Home {
    /// Without a repository.
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("tintype-cli-").tempdir().expect("a directory");
        let home = Self { url: directory.path().join("repository").display().to_string(), directory };
        home.private("key", "a key file of at least thirty-two bytes, for tests");
        home.private("tintype.toml", &format!("state_directory = {:?}\n", home.path("state")));
        home
    }

    /// With an empty repository.
    fn with_repository() -> Self {
        let home = Self::new();
        home.run(&["init"]).done();
        home
    }

    /// With one snapshot of the directory `data` as cluster `demo`.
    fn with_snapshot() -> Self {
        let home = Self::with_repository();
        home.data("data/a", 300_000, 1);
        home.data("data/sub/b", 1000, 2);
        home.snapshot(&[]);
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A file that only its owner reads.
    fn private(&self, name: &str, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(self.path(name), text).expect("a file");
        std::fs::set_permissions(self.path(name), PermissionsExt::from_mode(0o600)).expect("a mode");
        self.text(name)
    }

    /// A file of bytes that do not compress, different for each seed.
    fn data(&self, name: &str, length: usize, seed: u64) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("inside the home")).expect("a directory");
        std::fs::write(path, noise(length, seed)).expect("a file");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tintype"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.directory.path());
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("TINTYPE_CONFIG", self.path("tintype.toml"));
        command.env("TINTYPE_REPOSITORY", &self.url).env("TINTYPE_KEY_FILE", self.path("key"));
        command.current_dir(self.directory.path()).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        run(&mut self.command(arguments))
    }

    /// Runs without the key file in the environment.
    fn run_without_key(&self, arguments: &[&str]) -> Ran {
        run(self.command(arguments).env_remove("TINTYPE_KEY_FILE"))
    }

    /// A snapshot of the directory `data`, which must succeed: what its JSON says.
    fn snapshot(&self, arguments: &[&str]) -> Value {
        self.run(&[&["--json", "snapshot", "demo", "--files", "data"], arguments].concat()).json()
    }

    /// The dates that `list CLUSTER` shows.
    fn dates(&self, cluster: &str) -> Vec<String> {
        let ran = self.run(&["list", cluster]);
        if ran.code == Some(1) && ran.err.contains("has no snapshots") {
            return Vec::new();
        }
        ran.done().text().lines().map(str::to_owned).collect()
    }

    /// Starts a command whose standard error goes to the file `err`.
    fn begin(&self, arguments: &[&str]) -> Begun {
        let err = std::fs::File::create(self.path("err")).expect("a file");
        let mut command = self.command(arguments);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(err).spawn().expect("the program is built");
        Begun { child, err: self.path("err") }
    }
}

/// Runs a command to its end, or panics at the limit.
fn run(command: &mut Command) -> Ran {
    run_within(LIMIT, command)
}

/// The same for what works on a million keys.
fn run_within(limit: Duration, command: &mut Command) -> Ran {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it is installed");
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let code = wait_within(limit, &mut child, &format!("{command:?}"));
    let (out, err) = (out.join().expect("read"), err.join().expect("read"));
    Ran { code, out, err: String::from_utf8_lossy(&err).into_owned() }
}

fn collect(from: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    let mut from = from.expect("piped");
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    })
}

fn wait(child: &mut Child, what: &str) -> Option<i32> {
    wait_within(LIMIT, child, what)
}

fn wait_within(limit: Duration, child: &mut Child, what: &str) -> Option<i32> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("our child") {
            return status.code();
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A command that runs while the test does something to it.
pub struct Begun {
    child: Child,
    err: PathBuf,
}

impl Begun {
    /// Waits until standard error has `text`.
    fn says(&mut self, text: &str) -> &mut Self {
        let until = Instant::now() + LIMIT;
        loop {
            let err = std::fs::read_to_string(&self.err).unwrap_or_default();
            if err.contains(text) {
                return self;
            }
            assert!(self.child.try_wait().expect("our child").is_none(), "it ended without {text:?}: {err}");
            assert!(Instant::now() < until, "no {text:?}: {err}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn signal(&mut self, name: &str) -> &mut Self {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill is there").success());
        self
    }

    /// The snapshot that `tintype snapshot` has named.
    fn snapshot(&self) -> String {
        let err = std::fs::read_to_string(&self.err).unwrap_or_default();
        let uuid = err.lines().find_map(|line| line.strip_prefix("snapshot ")?.split(' ').next());
        uuid.expect("it names the snapshot first").to_owned()
    }

    fn ended(&mut self) -> Ran {
        let code = wait(&mut self.child, "the command");
        Ran { code, out: Vec::new(), err: std::fs::read_to_string(&self.err).unwrap_or_default() }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ran {
    /// It must have succeeded.
    #[track_caller]
    fn done(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// It must have ended with `code`, named all of `names`, and said what to do next.
    #[track_caller]
    fn refused(&self, code: i32, names: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{}", self.err);
        assert!(self.err.contains("\n  next: "), "no hint: {}", self.err);
        let missing: Vec<_> = names.iter().filter(|name| !self.err.contains(**name)).collect();
        assert!(missing.is_empty(), "{missing:?} not in: {}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    #[track_caller]
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).expect("text")
    }

    /// It must have succeeded and printed one JSON object, and nothing else.
    #[track_caller]
    fn json(&self) -> Value {
        self.done().object()
    }

    /// The one JSON object that it printed.
    #[track_caller]
    fn object(&self) -> Value {
        let value: Value = serde_json::from_slice(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert!(value.is_object(), "{self:?}");
        value
    }
}

/// The same bytes for the same seed; they do not compress.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed + 1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// All files below a directory, in order.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

impl Home {
    /// Whether the bytes are a beginning of the file `data/a`.
    fn data_is_prefix(&self, bytes: &[u8]) -> bool {
        std::fs::read(self.path("data/a")).expect("readable").starts_with(bytes)
    }
}
