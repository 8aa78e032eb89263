//! A ring of stand-ins for Dynomite (`dynomite.py`), each a process of its own in front of a real redis-server.
//!
//! Every node has a loopback address of its own, and the usual ports there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::mount::wait_for;
use super::redis::{PATIENCE, redis_70};
use super::store::{Server, Store};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/dynomite.py");
const CLIENT: u16 = 8102;
const PEER: u16 = 8101;
const ADMIN: u16 = 22222;
const BACKEND: u16 = 22122;
const DATACENTER: &str = "east";
/// Three tokens, as evenly spaced as Dynomite's own.
pub const TOKENS: [u64; 3] = [0, 1_431_655_765, 2_863_311_530];
/// Nodes of one ring have neighbouring addresses.
const NODES_MAX: u32 = 8;

/// What a ring is made of.
pub struct RingPlan<'a> {
    pub racks: &'a [&'a str],
    pub tokens: &'a [u64],
    /// redis-server, and its settings.
    pub binary: PathBuf,
    pub settings: &'a str,
    /// Dynomite's `timeout`.
    pub timeout: Duration,
}

impl Default for RingPlan<'_> {
    fn default() -> Self {
        Self { racks: &["a", "b"], tokens: &TOKENS, binary: redis_70(), settings: "save \"\"", timeout: Duration::from_secs(5) }
    }
}

/// A ring that runs. Its nodes are in the order of racks, then tokens; they end with this.
pub struct Ring {
    pub nodes: Vec<Node>,
    /// Redis and Dynomite of all nodes, as they come and go.
    log: PathBuf,
    _directory: TempDir,
}

/// A Dynomite's stand-in and its Redis.
pub struct Node {
    pub store: Store,
    pub address: String,
    pub rack: String,
    pub token: u64,
    /// Its `start` and `stop`, and its process id.
    directory: PathBuf,
}

/// An address that no other ring has, of this process or another.
fn address() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let (process, ring) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    assert!(ring < 30, "so many rings have addresses");
    u32::from_be_bytes([127, 64 + (process >> 8) as u8 % 128, process as u8, 0]) + 1 + ring * NODES_MAX
}

fn executable(path: &Path, lines: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{lines}\n")).expect("writes");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("permits");
}

impl Ring {
    /// Starts all of it, empty.
    pub fn start(plan: &RingPlan<'_>) -> Self {
        let directory = tempfile::Builder::new().prefix("tintype-ring-").tempdir().expect("a directory");
        let log = directory.path().join("log");
        let first = address();
        let places: Vec<(String, String, u64)> = (plan.racks.iter())
            .flat_map(|rack| plan.tokens.iter().map(|token| ((*rack).to_owned(), *token)))
            .zip(first..)
            .map(|((rack, token), address)| (std::net::Ipv4Addr::from(address).to_string(), rack, token))
            .collect();
        assert!(places.len() <= NODES_MAX as usize);
        let place = |rack: &str, token: u64| json!({"datacenter": DATACENTER, "rack": rack, "token": token});
        let servers: Vec<Value> = (places.iter())
            .map(|(address, rack, token)| {
                json!({"datacenter": DATACENTER, "rack": rack, "token": token, "host": address, "peer": PEER})
            })
            .collect();
        let node = |(address, rack, token): &(String, String, u64)| {
            let server = Server { binary: plan.binary.clone(), address: address.clone(), port: Some(BACKEND) };
            let store = Store::at(&server, plan.settings);
            let own = directory.path().join(format!("{rack}-{token}"));
            std::fs::create_dir(&own).expect("makes");
            let configuration = json!({
                "address": address, "client": CLIENT, "peer": PEER, "admin": ADMIN, "backend": [address, BACKEND],
                "place": place(rack, *token), "servers": servers, "timeout_ms": plan.timeout.as_millis() as u64,
                "stats_interval_ms": 30_000, "log": log,
            });
            let (file, pid) = (own.join("dynomite.json"), own.join("pid"));
            std::fs::write(&file, configuration.to_string()).expect("writes");
            let said = own.join("said");
            executable(
                &own.join("start"),
                &format!(
                    "setsid python3 {SCRIPT} {} >>{} 2>&1 </dev/null & echo $! >{}",
                    file.display(),
                    said.display(),
                    pid.display()
                ),
            );
            // One that is down already is fine; one that nobody has reaped has no directory.
            let wait = "while readlink /proc/$pid/cwd >/dev/null; do sleep 0.01; done";
            executable(&own.join("stop"), &format!("pid=$(cat {}) || exit 0; kill $pid 2>/dev/null; {wait}", pid.display()));
            for (name, verb) in [("store-start", "start"), ("store-stop", "stop")] {
                let script = store.root.path().join(verb);
                let line = format!("echo redis {verb} {rack} {token} >>{}; exec {}", log.display(), script.display());
                executable(&own.join(name), &line);
            }
            Node { store, address: address.clone(), rack: rack.clone(), token: *token, directory: own }
        };
        let nodes: Vec<Node> = places.iter().map(node).collect();
        for node in &nodes {
            node.store.start();
            node.start_proxy();
        }
        let ring = Self { nodes, log, _directory: directory };
        ring.nodes.iter().for_each(Node::wait_up);
        ring
    }

    pub fn node(&self, rack: &str, token: u64) -> &Node {
        self.nodes.iter().find(|node| node.rack == rack && node.token == token).expect("is in the ring")
    }

    pub fn of_rack<'a>(&'a self, rack: &'a str) -> impl Iterator<Item = &'a Node> {
        self.nodes.iter().filter(move |node| node.rack == rack)
    }

    /// `discover` of a configuration.
    pub fn seed(&self) -> String {
        format!("http://{}:{ADMIN}", self.nodes[0].address)
    }

    /// The nodes as targets of a restore, each called `rack-N`.
    pub fn tables(&self, cluster: &str) -> String {
        self.nodes.iter().map(|node| node.table(cluster)).collect()
    }

    /// What has come and gone since the last call.
    pub fn events(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        std::fs::write(&self.log, "").expect("writes");
        text.lines().map(str::to_owned).collect()
    }

    /// Holds writes back on their way between racks.
    pub fn delay(&self, delay: Duration) {
        self.nodes.iter().for_each(|node| drop(node.ask_admin(&format!("/stand_in/delay/{}", delay.as_millis()))));
    }

    /// Every rack's keys by token, sorted: equal where nothing is on its way.
    pub fn keys(&self, rack: &str) -> Vec<Vec<String>> {
        let keys = |node: &Node| {
            let mut connection = node.store.try_connection().expect("connects");
            let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).expect("keys");
            keys.sort();
            keys
        };
        self.of_rack(rack).map(keys).collect()
    }
}

impl Node {
    /// A client of its Dynomite.
    pub fn client(&self) -> redis::Connection {
        let address = ConnectionAddr::Tcp(self.address.clone(), CLIENT);
        // It hangs up on whoever says CLIENT SETINFO.
        let login = RedisConnectionInfo::default().set_skip_set_lib_name();
        let info = address.into_connection_info().expect("an address").set_redis_settings(login);
        let client = redis::Client::open(info).expect("a client");
        let connection = client.get_connection_with_timeout(Duration::from_secs(2)).expect("connects");
        connection.set_read_timeout(Some(PATIENCE)).expect("sets");
        connection
    }

    /// The text at a path of its admin port; empty when nobody listens.
    pub fn ask_admin(&self, path: &str) -> String {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((self.address.as_str(), ADMIN))?;
            write!(stream, "GET {path} HTTP/1.1\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = ask().unwrap_or_default();
        text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }

    /// One that waits is counted only in the next turn: a connection to the port for peers is one.
    pub fn wake(&self) {
        drop(TcpStream::connect((self.address.as_str(), PEER)));
    }

    pub fn start_proxy(&self) {
        assert!(self.run("start").status.success());
    }

    pub fn stop_proxy(&self) {
        assert!(self.run("stop").status.success());
    }

    pub fn is_up(&self) -> bool {
        !self.ask_admin("/ping").is_empty()
    }

    fn wait_up(&self) {
        wait_for("Dynomite's stand-in answers", PATIENCE, || self.is_up());
    }

    fn run(&self, name: &str) -> Output {
        Command::new(self.directory.join(name)).output().expect("runs")
    }

    /// Its name as a target of a restore.
    pub fn name(&self) -> String {
        format!("{}-{}", self.rack, TOKENS.iter().position(|token| *token == self.token).unwrap_or(9))
    }

    /// The script that starts or stops its Redis in a restore, to be made worse.
    pub fn script(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The node as a target of a restore.
    pub fn table(&self, cluster: &str) -> String {
        let command = |name: &str| format!("[{:?}]", self.directory.join(name));
        format!(
            "[clusters.{cluster}.nodes.{}]\ntoken = {}\nrack = {:?}\ndatacenter = {DATACENTER:?}\naddress = \"redis://{}:{BACKEND}\"\n\
             data_directory = {:?}\nstop = {}\nstart = {}\nstop_proxy = {}\nstart_proxy = {}\n",
            self.name(),
            self.token,
            self.rack,
            self.address,
            self.store.data,
            command("store-stop"),
            command("store-start"),
            command("stop"),
            command("start"),
        )
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ended_before = Command::new(self.directory.join("stop")).output();
    }
}
