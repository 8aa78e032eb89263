//! The interface of Dynomite-manager, answered by `tintyped` in front of a real Redis; Dynomite's admin port is a stand-in.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::agent::{Agent, free_port, private, said};
use crate::support::command::Workplace;
use crate::support::dynomite::{Node, Ring, RingPlan, TOKENS};
use crate::support::mount::wait_for;
use crate::support::redis::PATIENCE;
use crate::support::store::Store;

const RING: &str = r#"{"dcs":[{"name":"dc","racks":[{"name":"rack-1","servers":[{"name":"127.0.0.1","host":"127.0.0.1","port":8101,"token":12345}]}]}]}"#;

/// A stand-in for the admin port of Dynomite: it answers 200 to every path, and listens only while `alive` is there.
struct AdminStandIn {
    port: u16,
    over: Arc<AtomicBool>,
}

impl AdminStandIn {
    fn start(alive: PathBuf) -> Self {
        let port = free_port();
        let over: Arc<AtomicBool> = Arc::default();
        let ended = over.clone();
        std::thread::spawn(move || {
            let mut listener = None;
            while !ended.load(Ordering::SeqCst) {
                if !alive.exists() {
                    listener = None;
                } else if listener.is_none() {
                    listener = TcpListener::bind(("127.0.0.1", port)).ok();
                }
                let Some(Ok((mut stream, _))) = listener.as_ref().map(|listener| {
                    listener.set_nonblocking(true).expect("sets");
                    listener.accept()
                }) else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                stream.set_nonblocking(false).expect("sets");
                let _hung_up = Self::answer(&mut stream);
            }
        });
        Self { port, over }
    }

    fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let text = match head.split(' ').nth(1).unwrap_or_default() {
            "/state/get_state" => "State: NORMAL\n",
            "/get_consistency" => "Read Consistency: DC_ONE\r\nWrite Consistency: DC_QUORUM\r\n",
            "/cluster_describe" => RING,
            _ => "OK",
        };
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )
    }
}

impl Drop for AdminStandIn {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Status and body of the answer to a request.
fn ask(port: u16, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    stream.set_read_timeout(Some(PATIENCE * 3)).expect("sets");
    stream.write_all(request.as_bytes()).expect("asks");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"));
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

fn get(port: u16, path: &str) -> (u16, String) {
    ask(port, &format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1:8080\r\n\r\n"))
}

struct Host<'a> {
    store: &'a Store,
    work: &'a Workplace,
    port: u16,
    _admin: AdminStandIn,
    agent: Option<Agent<'a>>,
    alive: PathBuf,
}

impl<'a> Host<'a> {
    fn new(store: &'a Store, work: &'a Workplace) -> Self {
        let alive = work.path("dynomite-is-alive");
        std::fs::write(&alive, "").expect("writes");
        let admin = AdminStandIn::start(alive.clone());
        Self { store, work, port: free_port(), _admin: admin, agent: None, alive }
    }

    /// A start of the store waits for this to go away, and says that it began.
    fn hold(&self) -> (PathBuf, PathBuf) {
        (self.work.path("hold"), self.work.path("began"))
    }

    fn start(&mut self, more: &str) {
        self.agent = None;
        let (store, alive) = (self.store, &self.alive);
        let script = |name: &str| store.root.path().join(name);
        let keys = format!(
            "[agent.dynomite_manager]\ncluster = \"ring\"\nnode = \"host-1\"\nlisten = \"127.0.0.1:{}\"\nadmin = \"http://127.0.0.1:{}\"\nstart = [\"touch\", {alive:?}]\nstop = [\"rm\", {alive:?}]\n{more}\n",
            self.port, self._admin.port
        );
        let (hold, began) = self.hold();
        let lines =
            format!("touch {began:?}; while [ -e {hold:?} ]; do sleep 0.01; done; exec {:?}", script("start")).replace('"', "'");
        // A second of one megabyte is long enough to be met by another one.
        let clusters = format!(
            "[clusters.ring]\nlimits = {{ bandwidth = \"1MiB\" }}\n[clusters.ring.nodes.host-1]\naddress = \"127.0.0.1:{}\"\ndata_directory = {:?}\nstop = [{:?}]\nstart = [\"sh\", \"-c\", {lines:?}]\n",
            store.port,
            store.data,
            script("stop"),
        );
        private(&self.work.path("token"), "a token");
        let name = format!("manager-{}-{}", more.len(), self.port);
        let keys = format!("token_file = {:?}\n{keys}", self.work.path("token"));
        self.agent = Some(Agent::start(self.work, &name, &keys, &clusters));
    }

    fn raw(&self, request: &str) -> (u16, String) {
        ask(self.port, request)
    }

    fn get(&self, path: &str) -> (u16, String) {
        get(self.port, path)
    }

    #[track_caller]
    fn is_ok(&self, name: &str) {
        let (status, text) = self.get(&format!("/REST/v1/admin/{name}"));
        assert_eq!((status, text.as_str()), (200, "[\"ok\"]"), "{name}\n{}", self.agent.as_ref().expect("runs").log());
    }

    #[track_caller]
    fn fails(&self, name: &str, status: u16, words: &str) {
        let (found, text) = self.get(&format!("/REST/v1/admin/{name}"));
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {found} {text:?}: {error}"));
        assert_eq!((found, &value["status"]), (status, &json!("unsuccessful")), "{name}: {text}");
        assert!(value["error"]["message"].as_str().is_some_and(|message| message.contains(words)), "{name}: {text}");
    }

    fn status(&self) -> Value {
        let (status, text) = self.get("/REST/v1/admin/status");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }
}

fn shown(directory: &Path) -> bool {
    directory.join("dump.rdb").is_file()
}

#[test]
fn it_answers_as_dynomite_manager_did_and_says_ok_only_to_what_was_done() {
    let (store, work) = (Store::new("save \"\""), Workplace::new());
    work.configure("");
    work.succeed(&["init"]);
    store.start();
    let mut host = Host::new(&store, &work);
    host.start("hashtag = \"{}\"\nseeds = [\"10.0.0.2:8101:rack-2:dc:1\", \"10.0.0.3:8101:rack-3:dc:2\"]");
    let before = host.status();
    assert_eq!((&before["backup"]["status"], &before["restore"]["status"]), (&json!("not started"), &json!("not started")));
    let health = json!({"dynomiteAlive": true, "storageAlive": true, "Overall": true});
    assert_eq!((&before["health"], &before["consistency"]), (&health, &json!({"read": "DC_ONE", "write": "DC_QUORUM"})));

    store.command(&["SET", "stored", "1"]);
    host.is_ok("BackUp");
    assert_eq!(host.status()["backup"]["status"], "completed");
    assert!(work.succeed(&["show", "ring/latest"]).contains("host-1"));
    let (status, text) = host.get("/api/v1/admin/backup/");
    assert_eq!((status, text.as_str()), (200, "[\"ok\"]"));
    assert_eq!(work.succeed(&["list", "ring"]).lines().count(), 2);

    assert!(!shown(&store.data));
    host.is_ok("takesnapshot");
    assert!(shown(&store.data), "it is on the disk");
    std::fs::remove_file(store.data.join("dump.rdb")).expect("removes");
    std::fs::create_dir(store.data.join("dump.rdb")).expect("makes");
    host.fails("takesnapshot", 500, "BGSAVE failed");
    std::fs::remove_dir(store.data.join("dump.rdb")).expect("removes");

    let value = |path: &str| serde_json::from_str::<Value>(&host.get(&format!("/REST/v1/admin/{path}")).1).expect("JSON");
    assert_eq!(
        value("cluster_describe"),
        json!([{"token": "12345", "hostname": "127.0.0.1", "ip": "127.0.0.1", "port": "8102", "peer_port": "8101", "rack": "rack-1", "zone": "rack-1", "dc": "dc", "hashtag": "{}"}])
    );
    assert_eq!(value("consistency"), json!({"read_consistency": "DC_ONE", "write_consistency": "DC_QUORUM"}));
    assert_eq!((value("hashtag"), value("version")), (json!({"hashtag": "{}"}), json!([env!("CARGO_PKG_VERSION")])));
    let seeds = host.get("/REST/v1/admin/get_seeds");
    assert_eq!(seeds, (200, "10.0.0.2:8101:rack-2:dc:1|10.0.0.3:8101:rack-3:dc:2".to_owned()));
    for placeholder in ["info", "ring/1", "repair", "drain"] {
        host.fails(placeholder, 501, "never did anything");
    }
    host.fails("restore", 501, "allow_restore");
    host.fails("backups", 404, "not known");
    assert_eq!(host.get("/REST/v1/secgroup").0, 404);
    for (request, status) in [
        ("POST /REST/v1/admin/stop HTTP/1.0\r\n\r\n", 405),
        ("HEAD /REST/v1/admin/stop HTTP/1.0\r\n\r\n", 405),
        ("HEAD /REST/v1/admin/version HTTP/1.0\r\n\r\n", 200),
        ("GET /REST/v1/admin/stop HTTP/1.0\r\nHost: elsewhere.example\r\n\r\n", 404),
        ("GET /REST/v1/admin/stop HTTP/1.0\r\nOrigin: http://elsewhere.example\r\n\r\n", 403),
        ("GET /REST/v1/admin/stop HTTP/1.0\r\nSec-Fetch-Site: cross-site\r\n\r\n", 403),
    ] {
        assert_eq!(host.raw(request).0, status, "{request}");
    }
    assert!(host.alive.exists(), "nobody has stopped it");

    host.is_ok("stop");
    assert!(!host.alive.exists());
    assert_eq!(host.status()["health"], json!({"dynomiteAlive": false, "storageAlive": true, "Overall": false}));
    host.fails("consistency", 500, "Dynomite at http://127.0.0.1");
    host.fails("cluster_describe", 500, "refused");
    host.fails("stop", 500, "stop Dynomite");
    host.is_ok("start");

    host.is_ok("stopstorageprocess");
    assert!(store.try_connection().is_none());
    host.fails("backup", 500, "host-1");
    let status = host.status();
    assert_eq!(
        (&status["backup"]["status"], &status["health"]["storageAlive"]),
        (&json!("unsuccessful"), &json!(false)),
        "{status}"
    );
    host.is_ok("stop");
    host.fails("start", 500, "its store does not run");
    assert!(!host.alive.exists(), "it was not started");
    host.is_ok("startStorageProcess");
    host.is_ok("start");
    assert!(store.try_connection().is_some());
    host.is_ok("backup");
    assert_eq!(host.status()["backup"]["status"], "completed");
}

#[test]
fn a_restore_is_carried_out_where_it_is_allowed_and_only_then_is_it_ok() {
    let (store, work) = (Store::new("save \"\""), Workplace::new());
    work.configure("");
    work.succeed(&["init"]);
    store.start();
    let mut host = Host::new(&store, &work);
    host.start("allow_restore = true");
    host.fails("restore", 500, "ring");
    assert_eq!(host.status()["restore"]["status"], "unsuccessful");
    store.command(&["SET", "stored", "1"]);
    host.is_ok("backup");
    store.command(&["SET", "since", "1"]);
    host.is_ok("restore");
    assert_eq!(host.status()["restore"]["status"], "completed");
    let keys = store.command(&["KEYS", "*"]);
    assert_eq!(keys, redis::Value::Array(vec![redis::Value::BulkString(b"stored".to_vec())]));
    host.fails("get_seeds", 501, "seeds");
    host.fails("hashtag", 501, "hashtag");
    assert!(store.run("stop").status.success());
}

#[test]
fn while_a_restore_is_under_way_nothing_else_is_started_and_a_daemon_that_is_stopped_ends_it_first() {
    let (store, work) = (Store::new("save \"\""), Workplace::new());
    work.configure("");
    work.succeed(&["init"]);
    store.start();
    let mut host = Host::new(&store, &work);
    host.start("allow_restore = true");
    store.command(&["SET", "stored", "1"]);
    host.is_ok("backup");
    store.command(&["SET", "since", "1"]);
    let (hold, began) = host.hold();
    std::fs::write(&hold, "").expect("writes");
    let mut agent = host.agent.take().expect("runs");
    std::thread::scope(|scope| {
        let restoring = scope.spawn(|| host.get("/REST/v1/admin/restore"));
        wait_for("its store is started", PATIENCE, || began.exists());
        for name in ["start", "stop", "startstorageprocess", "stopstorageprocess", "restore"] {
            host.fails(name, 500, "a restore is under way");
        }
        assert_eq!(host.status()["restore"]["status"], "pending");
        let pid = rustix::process::Pid::from_child(&agent.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a child");
        wait_for("its other door is closed", PATIENCE, || TcpStream::connect(("127.0.0.1", agent.port)).is_err());
        // Answers that are only written have 5 s: this is for longer.
        let until = Instant::now() + Duration::from_secs(6);
        while Instant::now() < until {
            assert!(agent.process.try_wait().expect("a child").is_none(), "{}", agent.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        host.fails("start", 500, "a restore is under way");
        std::fs::remove_file(&hold).expect("removes");
        assert_eq!(restoring.join().expect("answers"), (200, "[\"ok\"]".to_owned()), "{}", agent.log());
    });
    assert!(agent.process.wait().expect("a child").success(), "{}", agent.log());
    let keys = store.command(&["KEYS", "*"]);
    assert_eq!(keys, redis::Value::Array(vec![redis::Value::BulkString(b"stored".to_vec())]));
    assert!(store.run("stop").status.success());
}

#[test]
fn hosts_that_are_asked_at_the_same_hour_make_one_snapshot_and_all_say_ok() {
    let (store, work) = (Store::new("save \"\""), Workplace::new());
    work.configure("");
    work.succeed(&["init"]);
    store.start();
    let mut noise = vec![0; 3 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let written: redis::RedisResult<()> =
        redis::cmd("SET").arg("noise").arg(&noise).query(&mut store.try_connection().expect("connects"));
    written.expect("writes");
    let mut hosts = [Host::new(&store, &work), Host::new(&store, &work)];
    hosts.iter_mut().for_each(|host| host.start(""));
    let [first, second] = &hosts;
    std::thread::scope(|scope| {
        let making = scope.spawn(|| first.get("/REST/v1/admin/backup"));
        let announced = work.path("repository/clusters/ring/_intents");
        wait_for("it is announced", PATIENCE, || std::fs::read_dir(&announced).is_ok_and(|mut found| found.next().is_some()));
        second.is_ok("backup");
        assert_eq!(making.join().expect("answers").0, 200);
    });
    assert_eq!(work.succeed(&["list", "ring"]).lines().count(), 1);
    assert!(store.run("stop").status.success());
}

/// The distinct words of all values that a node's Redis holds.
fn of_node(node: &Node) -> Vec<String> {
    let mut connection = node.store.try_connection().expect("connects");
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).expect("keys");
    let word = |key: &String| {
        let value: String = redis::cmd("GET").arg(key).query(&mut connection).expect("a value");
        value.split(':').next().unwrap_or_default().to_owned()
    };
    let found: std::collections::BTreeSet<String> = keys.iter().map(word).collect();
    found.into_iter().collect()
}

#[test]
fn a_node_of_a_ring_is_stored_restored_and_comes_back_when_its_host_was_replaced() {
    let ring = Ring::start(&RingPlan { tokens: &TOKENS[..2], ..RingPlan::default() });
    let own = ring.node("a", TOKENS[0]);
    let words = |rack: &str| {
        let mut found: Vec<String> = ring.of_rack(rack).flat_map(of_node).collect();
        found.dedup();
        found
    };
    let fill = |word: &str| {
        let mut client = own.client();
        for key in 0..100 {
            let written: redis::RedisResult<()> =
                redis::cmd("SET").arg(format!("key:{key}")).arg(format!("{word}:{key}")).query(&mut client);
            written.expect("writes");
        }
        wait_for("both racks hold the same", PATIENCE, || words("a") == words("b") && words("a") == [word]);
    };
    fill("stored");
    let work = Workplace::new();
    let table = format!("[clusters.live]\nstore = \"dynomite\"\nrestore_on_start = true\n{}", ring.tables("live"));
    work.configure(&table);
    work.succeed(&["init"]);
    private(&work.path("token"), "a token");
    let port = free_port();
    let keys = format!(
        "token_file = {:?}\n[agent.dynomite_manager]\ncluster = \"live\"\nnode = {:?}\nlisten = \"127.0.0.1:{port}\"\nallow_restore = true\n",
        work.path("token"),
        own.name()
    );
    let agent = Agent::start(&work, "ring", &keys, &table);
    let is_ok = |name: &str| {
        let answer = get(port, &format!("/REST/v1/admin/{name}"));
        assert_eq!(answer, (200, "[\"ok\"]".to_owned()), "{name}\n{}", agent.log());
    };
    is_ok("backup");
    let status: Value = serde_json::from_str(&get(port, "/REST/v1/admin/status").1).expect("JSON");
    assert_eq!((&status["backup"]["status"], &status["health"]["Overall"]), (&json!("completed"), &json!(true)), "{status}");
    fill("live");
    is_ok("restore");
    assert_eq!((of_node(own), words("b")), (vec!["stored".to_owned()], vec!["live".to_owned()]), "this node alone");
    is_ok("stop");
    assert!(!own.is_up());
    is_ok("stopstorageprocess");
    drop(agent);
    // Its host is replaced.
    std::fs::remove_dir_all(&own.store.data).expect("removes");
    let mut daemon = std::process::Command::new(env!("CARGO_BIN_EXE_tintyped"));
    work.prepare(&mut daemon);
    let output = daemon.arg("--restore-only").output().expect("tintyped starts");
    assert!(output.status.success() && said(&output).contains("it is restored"), "{}", said(&output));
    own.store.start();
    own.start_proxy();
    assert_eq!(of_node(own), ["stored"], "{}", said(&output));
}

#[test]
fn without_a_token_it_is_served_on_the_loopback_interface_alone() {
    let work = Workplace::new();
    let table = |keys: &str| format!("{keys}\n[clusters.ring.nodes.host-1]\naddress = \"127.0.0.1:1\"\n");
    let manager =
        |listen: &str| format!("[agent.dynomite_manager]\ncluster = \"ring\"\nnode = \"host-1\"\nlisten = {listen:?}\n");
    let agent = format!("[agent]\nlisten = \"127.0.0.1:{}\"\n", free_port());
    for (keys, words) in [
        (agent.clone() + &manager("0.0.0.0:0"), "knows no token"),
        (agent.clone() + &manager("nonsense"), "dynomite_manager"),
        (agent.clone() + &manager("127.0.0.1:0") + "prefix = \"admin\"\n", "is no path"),
        (agent.clone() + &manager("127.0.0.1:0") + "prefix = \"/:x\"\n", "is no path"),
        (agent.clone() + &manager("127.0.0.1:0") + "prefix = \"/{x}\"\n", "is no path"),
        (manager("127.0.0.1:0"), "wants an agent"),
    ] {
        work.configure(&table(&keys));
        let mut daemon = std::process::Command::new(env!("CARGO_BIN_EXE_tintyped"));
        work.prepare(&mut daemon);
        let output = daemon.output().expect("tintyped starts");
        assert!(output.status.code() == Some(2) && said(&output).contains(words), "{keys}: {}", said(&output));
    }
}
