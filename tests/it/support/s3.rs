//! S3 servers of the tests' own, on free loopback ports, in directories that vanish with them.
//!
//! moto keeps the semantics (conditional puts), s3s-fs checks signatures; `scripts/install-needs` installs both.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tintype::object::S3Options;

/// The bucket that every server begins with.
pub const BUCKET: &str = "tintype-test";

/// Python needs some seconds to import moto on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub const ACCESS_KEY: &str = "test-access";
pub const SECRET_KEY: &str = "test-secret";

/// A running server; ended, by its process id, when dropped.
pub struct S3Server {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl S3Server {
    /// A server that keeps conditional puts, and accepts any credentials.
    pub fn moto() -> Self {
        let server = Self::start(|port, _| {
            let mut command = Command::new(tool("venv/bin/moto_server"));
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
            command
        });
        let answer = server.request(&format!("PUT /{BUCKET}")).expect("moto answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "moto makes no bucket: {answer}");
        server
    }

    /// A server that checks signatures.
    pub fn s3s() -> Self {
        Self::start(|port, folder| {
            let root = folder.join("root");
            std::fs::create_dir_all(root.join(BUCKET)).expect("a bucket is a directory of the server's");
            let mut command = Command::new(tool("bin/s3s-fs"));
            command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            command.args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]).arg(root);
            command
        })
    }

    /// How to reach the bucket with good credentials, giving up soon.
    pub fn options(&self) -> S3Options {
        self.options_with_secret(SECRET_KEY)
    }

    /// As [`Self::options`], with another secret.
    pub fn options_with_secret(&self, secret: &str) -> S3Options {
        let file = self.folder.path().join(format!("credentials-{secret}"));
        let text = format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {secret}\n");
        std::fs::write(&file, text).expect("a file in our own directory");
        S3Options {
            bucket: BUCKET.to_owned(),
            prefix: "a prefix/of two".to_owned(),
            endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
            region: Some("us-east-1".to_owned()),
            credentials_file: Some(file),
            connect_timeout: Duration::from_secs(2),
            read_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(15),
            max_attempts: 3,
            ..S3Options::default()
        }
    }

    /// Stops it from answering, as a network that hangs does; connections stay.
    pub fn hold(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets it answer again.
    pub fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Ends the server at once, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn start(command: impl Fn(u16, &Path) -> Command) -> Self {
        let mut last_log = String::new();
        // Another process may take the port between its choice and its use.
        for _ in 0..5 {
            let folder = tempfile::tempdir().expect("a temporary directory");
            let port = free_port();
            let log = File::create(folder.path().join("log")).expect("a log in our own directory");
            let mut command = command(port, folder.path());
            command.stdin(Stdio::null()).stderr(log.try_clone().expect("a second handle")).stdout(log);
            let child = command.spawn().unwrap_or_else(|error| {
                panic!("{:?} does not start ({error}): run scripts/install-needs", command.get_program());
            });
            let mut server = Self { child, port, folder };
            if server.is_ready() {
                return server;
            }
            last_log = std::fs::read_to_string(server.folder.path().join("log")).unwrap_or_default();
        }
        panic!("the S3 server does not come up: {last_log}");
    }

    /// Waits for an answer of any kind; `false` when the server ended or the limit passed.
    fn is_ready(&mut self) -> bool {
        let end = Instant::now() + START_LIMIT;
        while Instant::now() < end {
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return false;
            }
            if self.request("GET /").is_ok_and(|answer| answer.starts_with("HTTP/1.1")) {
                return true;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        false
    }

    fn request(&self, verb_and_path: &str) -> std::io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let head = format!("{verb_and_path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n", self.port);
        stream.write_all(format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn tool(name: &str) -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools");
    let path = std::env::var_os("TINTYPE_TOOLS").map_or_else(own, PathBuf::from).join(name);
    assert!(path.exists(), "{} is not there: run scripts/install-needs", path.display());
    path
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on loopback");
    listener.local_addr().expect("a bound socket has an address").port()
}
