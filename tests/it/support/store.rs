//! A Redis on a data directory of its own, started and stopped by commands as a supervisor's would be.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tintype::app::control::restore::RestoreTarget;
use tintype::driver::NodeSite;
use tintype::driver::redis::RedisOptions;
use tintype::model::names::NodeName;
use tintype::node::StateDirectory;

use super::redis::{PATIENCE, redis_70};

/// Which server, and where it listens.
pub struct Server {
    pub binary: PathBuf,
    pub address: String,
    /// `None`: a free one.
    pub port: Option<u16>,
}

impl Default for Server {
    fn default() -> Self {
        Self { binary: redis_70(), address: "127.0.0.1".to_owned(), port: None }
    }
}

/// The server, whether it runs or not; it ends with this.
pub struct Store {
    pub root: TempDir,
    address: String,
    pub port: u16,
    pub data: PathBuf,
}

impl Store {
    pub fn new(settings: &str) -> Self {
        Self::with_data(settings, |root| {
            let data = root.join("data");
            std::fs::create_dir(&data).expect("makes");
            data
        })
    }

    pub fn with_data(settings: &str, make: impl FnOnce(&Path) -> PathBuf) -> Self {
        Self::made(&Server::default(), settings, None, make)
    }

    /// A server of another version, at another loopback address or port.
    pub fn at(server: &Server, settings: &str) -> Self {
        Self::made(server, settings, None, |root| {
            let data = root.join("data");
            std::fs::create_dir(&data).expect("makes");
            data
        })
    }

    /// A server that runs as this user, to whom its data directory belongs; all may look in.
    pub fn of_user(user: u32, settings: &str) -> Self {
        Self::made(&Server::default(), settings, Some(user), |root| {
            std::fs::set_permissions(root, PermissionsExt::from_mode(0o755)).expect("permits");
            let data = root.join("data");
            std::fs::create_dir(&data).expect("makes");
            chown(&data, Some(user), Some(user)).expect("these tests run as root");
            data
        })
    }

    fn made(server: &Server, settings: &str, user: Option<u32>, make: impl FnOnce(&Path) -> PathBuf) -> Self {
        let root = tempfile::Builder::new().prefix("tintype-restore-").tempdir().expect("a directory");
        // What the server itself writes beside its data.
        let own = root.path().join("run");
        std::fs::create_dir(&own).expect("makes");
        chown(&own, user, user).expect("these tests run as root");
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let (port, address) = (server.port.unwrap_or_else(free), server.address.clone());
        let data = make(root.path());
        let text = |name: &str| root.path().join(name).display().to_string();
        // 6.2 does not know the setting.
        let bus = match settings.contains("cluster-enabled") {
            true => format!("cluster-port {}\n", if port > 32768 { port - 10000 } else { port + 10000 }),
            false => String::new(),
        };
        let configuration = format!(
            "port {port}\nbind {address}\ndaemonize yes\npidfile {}\nlogfile {}\ndir {}\n{bus}{settings}\n",
            text("run/pid"),
            text("run/log"),
            data.display(),
        );
        std::fs::write(root.path().join("redis.conf"), configuration).expect("writes");
        let script = |name: &str, lines: &str| {
            let path = root.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{lines}\n")).expect("writes");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("permits");
        };
        let user = user.map(|user| format!("setpriv --reuid {user} --regid {user} --clear-groups "));
        script("start", &format!("exec {}{} {}", user.unwrap_or_default(), server.binary.display(), text("redis.conf")));
        // It returns when the server is gone, as that of a supervisor does; one that nobody has reaped has no directory.
        let wait = "while readlink /proc/$pid/cwd >/dev/null; do sleep 0.01; done";
        script("stop", &format!("pid=$(cat {}) && kill $pid && {wait}", text("run/pid")));
        Self { root, address, port, data }
    }

    pub fn start(&self) -> &Self {
        assert!(Command::new(self.root.path().join("start")).status().expect("runs").success());
        self.wait();
        self
    }

    /// Runs its `start` or `stop` command.
    pub fn run(&self, name: &str) -> Output {
        Command::new(self.root.path().join(name)).output().expect("runs")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.path().join("run/log")).unwrap_or_default()
    }

    pub fn wait(&self) {
        let until = Instant::now() + PATIENCE;
        while self.try_connection().is_none_or(|mut connection| redis::cmd("PING").query::<String>(&mut connection).is_err()) {
            assert!(Instant::now() < until, "no answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn try_connection(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(format!("redis://{}:{}", self.address, self.port)).ok()?;
        let connection = client.get_connection_with_timeout(Duration::from_secs(2)).ok()?;
        connection.set_read_timeout(Some(PATIENCE)).ok()?;
        Some(connection)
    }

    pub fn command(&self, words: &[&str]) -> redis::Value {
        let mut command = redis::cmd(words[0]);
        words[1..].iter().for_each(|word| {
            command.arg(*word);
        });
        command.query(&mut self.try_connection().expect("connects")).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub fn get(&self, key: &str) -> Option<String> {
        redis::cmd("GET").arg(key).query(&mut self.try_connection().expect("connects")).expect("answers")
    }

    pub fn keys(&self) -> u64 {
        redis::cmd("DBSIZE").query(&mut self.try_connection().expect("connects")).expect("answers")
    }

    pub fn site(&self) -> NodeSite {
        let command = |name: &str| vec![self.root.path().join(name).display().to_string()];
        NodeSite {
            data_directory: Some(self.data.clone()),
            stop: command("stop"),
            start: command("start"),
            ..NodeSite::default()
        }
    }

    /// The node as the configuration of cluster `prod` names it.
    pub fn table(&self) -> String {
        let site = self.site();
        format!(
            "[clusters.prod.nodes.node-1]\naddress = \"redis://127.0.0.1:{}\"\ndata_directory = {:?}\nstop = {:?}\nstart = {:?}\n",
            self.port, self.data, site.stop, site.start
        )
    }

    pub fn target(&self) -> RestoreTarget {
        let node = NodeName::new("node-1").expect("legal");
        RestoreTarget {
            node: node.clone(),
            site: self.site(),
            replica_of: None,
            host: None,
            server: Some(RedisOptions::new(node, format!("redis://127.0.0.1:{}", self.port))),
            agent: None,
        }
    }

    pub fn state(&self) -> StateDirectory {
        StateDirectory::open(&self.root.path().join("state")).expect("opens")
    }

    /// Everything beside the data directory, or inside a mountpoint, that a restore made.
    pub fn kept(&self) -> Vec<String> {
        let real = self.data.canonicalize().expect("is there");
        let names = |path: &Path| {
            std::fs::read_dir(path)
                .expect("lists")
                .map(|entry| entry.expect("lists").file_name().to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        };
        let mut all = names(&real);
        all.extend(names(real.parent().expect("has one")));
        all.retain(|name| {
            name.contains("tintype-") && name.starts_with('.') || name.contains(".before-") || name.starts_with(".before-")
        });
        all
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // By the server's own word: the file with its process id may be older than the server.
        if let Some(mut connection) = self.try_connection() {
            let _ = redis::cmd("SHUTDOWN").arg("NOSAVE").query::<()>(&mut connection);
        }
        // Where a test made the data directory a mountpoint, it is one until here.
        let _ = Command::new("umount").args(["--lazy", "--quiet"]).arg(&self.data).output();
        // A server that is ending still writes and removes files; the directory goes when it is gone.
        let until = Instant::now() + Duration::from_secs(5);
        while std::fs::remove_dir_all(self.root.path()).is_err_and(|error| error.kind() != std::io::ErrorKind::NotFound)
            && Instant::now() < until
        {
            std::thread::yield_now();
        }
    }
}
