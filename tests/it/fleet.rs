//! The REST interface for people and scripts: real `tintyped` processes that coordinate snapshots and tell of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kill::longest_wait;
use crate::support::agent::{Agent, TOKEN, said};
use crate::support::command::Workplace;
use crate::support::redis::{PATIENCE, Server, redis_70};

/// A node ends a pause after this by itself, and a machine may be busy.
const PAUSE: Duration = Duration::from_secs(5);
/// Microseconds for each key of a dump: with [`KEYS`] it lasts long enough to look at it.
const SLOWLY: &str = "4000";
const KEYS: usize = 2000;

/// Two masters, a daemon that acts for the first, and one that coordinates and reaches the second by itself.
struct Fleet<'a> {
    servers: Vec<Server>,
    east: Agent<'a>,
    coordinator: Agent<'a>,
}

impl<'a> Fleet<'a> {
    fn new(work: &'a Workplace) -> Self {
        let servers: Vec<Server> = (0..2).map(|_| Server::start(&redis_70(), &[])).collect();
        servers.iter().for_each(|server| server.fill(KEYS, 10));
        let node = |name: &str, keys: String| format!("[clusters.prod.nodes.{name}]\n{keys}\n");
        let address = |server: &Server| format!("address = \"{}\"", server.url());
        let both = |first: String| node("node-1", first) + &node("node-2", address(&servers[1]));
        let east = Agent::with_token(work, "east", &both(address(&servers[0])));
        let coordinator = Agent::with_token(work, "coordinator", &both(format!("agent = \"{}\"", east.url())));
        work.configure("");
        work.succeed(&["init"]);
        Self { servers, east, coordinator }
    }

    fn hurry(&self, delay: &str) {
        self.servers.iter().for_each(|server| drop(server.command(&["CONFIG", "SET", "rdb-key-save-delay", delay])));
    }

    /// Saves that go slowly are over, however they were begun.
    fn settle(&self) {
        self.hurry("0");
        for server in &self.servers {
            server.wait_for("the end of the dump", |server| server.info("rdb_bgsave_in_progress") == "0");
        }
    }

    /// Both nodes are being dumped, for which nobody holds back writes any more.
    fn wait_for_dumps(&self) {
        for server in &self.servers {
            server.wait_for("a dump", |server| server.info("rdb_bgsave_in_progress") == "1");
        }
    }
}

fn ask(agent: &Agent<'_>, method: &str, path: &str, body: &str) -> (u16, Value) {
    let (status, text) = agent.request(method, path, Some(TOKEN), body);
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{method} {path}: {status} {text:?}: {error}")))
}

fn begin(agent: &Agent<'_>, body: &str) -> String {
    let (status, answer) = ask(agent, "POST", "/v1/clusters/prod/snapshots", body);
    assert_eq!((status, &answer["status"]), (202, &json!("processing")), "{answer}\n{}", agent.log());
    answer["uuid"].as_str().expect("an id").to_owned()
}

/// The status as a whole, and of each node.
fn stands(answer: &Value) -> (&str, BTreeMap<&str, &str>) {
    let word = |value: &Value| value.as_str().map(str::to_owned);
    let nodes = answer["nodes"].as_object().unwrap_or_else(|| panic!("{answer}"));
    assert!(word(&answer["status"]).is_some(), "{answer}");
    (
        answer["status"].as_str().unwrap_or_default(),
        nodes.iter().map(|(name, node)| (name.as_str(), node["status"].as_str().unwrap_or_default())).collect(),
    )
}

fn told(agent: &Agent<'_>, uuid: &str) -> Value {
    let (status, answer) = ask(agent, "GET", &format!("/v1/snapshots/{uuid}"), "");
    assert_eq!(status, 200, "{answer}");
    answer
}

/// What it says when it is not under way any more.
fn outcome(agent: &Agent<'_>, uuid: &str) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = told(agent, uuid);
        if answer["status"] != "processing" {
            return answer;
        }
        assert!(Instant::now() < until, "{answer}\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn all(status: &str) -> BTreeMap<&str, &str> {
    BTreeMap::from([("node-1", status), ("node-2", status)])
}

/// A request whose answer may be bytes: in HTTP/1.0, so that they come as they are. Status, and a stream at its body.
fn open(agent: &Agent<'_>, path: &str) -> (u16, TcpStream) {
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port)).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("sets");
    write!(stream, "GET {path} HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n").expect("asks");
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head}")), stream)
}

#[test]
fn a_daemon_that_is_asked_takes_a_snapshot_and_everybody_tells_how_it_fares() {
    let work = Workplace::new();
    let fleet = Fleet::new(&work);
    let (_, clusters) = ask(&fleet.coordinator, "GET", "/v1/clusters", "");
    assert_eq!((&clusters["clusters"][0]["cluster"], &clusters["clusters"][0]["newest"]), (&json!("prod"), &Value::Null));
    assert_eq!(ask(&fleet.east, "GET", "/v1/clusters/prod/snapshots", "").1["snapshots"], json!([]));

    fleet.hurry(SLOWLY);
    let uuid = begin(&fleet.coordinator, r#"{"tags": {"reason": "a test"}}"#);
    let answer = told(&fleet.coordinator, &uuid);
    assert_eq!(stands(&answer), ("processing", all("processing")), "{answer}");
    let (status, refused) = ask(&fleet.coordinator, "POST", "/v1/clusters/prod/snapshots", "");
    assert_eq!((status, &refused["error"]["code"], &refused["error"]["uuid"]), (409, &json!("conflict"), &json!(uuid)));
    fleet.wait_for_dumps();
    // The others read it in the repository.
    let answer = told(&fleet.east, &uuid);
    assert_eq!(stands(&answer), ("processing", all("processing")), "{answer}");
    let (status, refused) = ask(&fleet.east, "POST", "/v1/clusters/prod/snapshots", "{}");
    assert_eq!((status, &refused["error"]["code"], &refused["error"]["uuid"]), (409, &json!("conflict"), &json!(uuid)));
    let shown: Value = serde_json::from_str(&work.succeed(&["status", &uuid, "--json"])).expect("JSON");
    assert_eq!(stands(&shown), ("processing", all("processing")), "{shown}");
    assert_eq!(ask(&fleet.east, "GET", "/v1/clusters", "").1["clusters"][0]["processing"], json!(uuid));

    fleet.hurry("0");
    let answer = outcome(&fleet.coordinator, &uuid);
    assert_eq!(stands(&answer), ("completed", all("completed")), "{answer}");
    assert_eq!(told(&fleet.east, &uuid), answer);
    let shown: Value = serde_json::from_str(&work.succeed(&["status", &uuid, "--json"])).expect("JSON");
    assert_eq!(shown, answer);
    let (_, listed) = ask(&fleet.east, "GET", "/v1/clusters/prod/snapshots", "");
    assert_eq!(listed["snapshots"], json!([{"date": answer["date"], "uuid": uuid, "complete": true}]));
    let manifest: Value = serde_json::from_str(&work.succeed(&["show", "prod/latest", "--json"])).expect("JSON");
    assert_eq!((&manifest["tags"]["reason"], &manifest["cut"]["consistent"]), (&json!("a test"), &json!("proved")));

    for node in ["node-1", "node-2"] {
        let (status, mut stream) = open(&fleet.east, &format!("/v1/snapshots/{uuid}/nodes/{node}.tar"));
        let mut tar = Vec::new();
        stream.read_to_end(&mut tar).expect("a tar");
        let exported = work.run(&["export", &format!("prod/latest/{node}")]);
        assert!(status == 200 && tar.len() > 1024 && tar == exported.stdout, "{node}: {status}, {} bytes", tar.len());
    }

    // Of one node alone: the other one was not asked for.
    let uuid = begin(&fleet.coordinator, r#"{"nodes": ["node-2"]}"#);
    let answer = outcome(&fleet.coordinator, &uuid);
    assert_eq!(stands(&answer), ("partial", BTreeMap::from([("node-1", "missing"), ("node-2", "completed")])), "{answer}");
    let (status, answer) = ask(&fleet.east, "GET", &format!("/v1/snapshots/{uuid}/nodes/node-1.tar"), "");
    assert_eq!(status, 404, "{answer}");
}

#[test]
fn what_a_killed_daemon_was_making_is_failed_for_everybody_and_the_next_one_goes_well() {
    let work = Workplace::new();
    let mut fleet = Fleet::new(&work);
    fleet.hurry(SLOWLY);
    let uuid = begin(&fleet.coordinator, "");
    fleet.wait_for_dumps();
    fleet.coordinator.kill();
    assert!(longest_wait(&fleet.servers) <= PAUSE);
    let answer = told(&fleet.east, &uuid);
    assert_eq!(stands(&answer), ("failed", all("failed")), "{answer}");
    assert!(answer["nodes"]["node-2"]["reason"].as_str().is_some_and(|reason| reason.contains("died")), "{answer}");
    let output = work.run(&["status", &uuid]);
    assert!(output.status.code() == Some(1) && said(&output).contains("node-1  failed"), "{}", said(&output));

    fleet.settle();
    fleet.coordinator.start_again();
    let next = begin(&fleet.coordinator, "{}");
    assert_eq!(stands(&outcome(&fleet.coordinator, &next)), ("completed", all("completed")));
    // Now it stands in the record that its successor wrote.
    let answer = told(&fleet.coordinator, &uuid);
    assert_eq!(stands(&answer), ("failed", all("failed")), "{answer}");
    work.succeed(&["verify", "--depth", "hashed", "--quiet"]);
}

#[test]
fn a_daemon_that_is_stopped_gives_back_what_it_took_for_a_snapshot() {
    let work = Workplace::new();
    let mut fleet = Fleet::new(&work);
    fleet.hurry(SLOWLY);
    let uuid = begin(&fleet.coordinator, "");
    fleet.wait_for_dumps();
    let began = Instant::now();
    let mut stop = Command::new("kill");
    assert!(stop.args(["-TERM", &fleet.coordinator.process.id().to_string()]).status().expect("runs").success());
    let ended = fleet.coordinator.process.wait().expect("a child");
    assert!(ended.success() && began.elapsed() < Duration::from_secs(10), "{ended} {:?}", began.elapsed());
    assert!(longest_wait(&fleet.servers) <= PAUSE);
    let answer = told(&fleet.east, &uuid);
    assert_eq!((&answer["status"], &answer["reason"]), (&json!("failed"), &json!("interrupted")), "{answer}");
    // Nobody reads the dumps any more, so the servers give them up at once.
    for server in &fleet.servers {
        server.wait_for("the end of the dump", |server| server.info("connected_slaves") == "0");
    }
    fleet.settle();
    let next = begin(&fleet.east, "");
    assert_eq!(outcome(&fleet.east, &next)["status"], "completed");
}

#[test]
fn requests_that_make_no_sense_or_come_from_a_web_page_change_nothing() {
    let work = Workplace::new();
    let fleet = Fleet::new(&work);
    let agent = &fleet.coordinator;
    let snapshots = "/v1/clusters/prod/snapshots";
    for (method, path) in
        [("GET", "/v1/clusters"), ("POST", snapshots), ("GET", "/openapi.json"), ("GET", "/v1/snapshots/x/nodes/x.tar")]
    {
        for token in [None, Some(""), Some("another")] {
            assert_eq!(agent.request(method, path, token, "").0, 401, "{method} {path} {token:?}");
        }
    }
    let unknown = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
    let tar = |node: &str| format!("/v1/snapshots/{unknown}/nodes/{node}");
    for (method, path, body, status, words) in [
        ("POST", "/v1/clusters/other/snapshots".to_owned(), "{}".to_owned(), 404, "configured clusters: prod"),
        ("GET", "/v1/clusters/other/snapshots".to_owned(), String::new(), 404, "configured clusters: prod"),
        ("POST", "/v1/clusters/..%2Fprod/snapshots".to_owned(), String::new(), 400, "usage"),
        ("POST", snapshots.to_owned(), "{".to_owned(), 400, "no wish"),
        ("POST", snapshots.to_owned(), r#"{"redis": "10.0.0.1:6379"}"#.to_owned(), 400, "unknown field"),
        ("POST", snapshots.to_owned(), r#"{"nodes": ["../node-1"]}"#.to_owned(), 400, "usage"),
        ("POST", snapshots.to_owned(), r#"{"nodes": ["node-3"]}"#.to_owned(), 404, "its nodes: node-1, node-2"),
        ("POST", snapshots.to_owned(), " ".repeat(20_000), 413, "usage"),
        ("DELETE", snapshots.to_owned(), String::new(), 405, "takes no such request"),
        ("GET", format!("/v1/snapshots/{unknown}"), String::new(), 404, "nothing is known"),
        ("GET", "/v1/snapshots/latest".to_owned(), String::new(), 400, "usage"),
        ("GET", tar("node-1.tar"), String::new(), 404, "there is no snapshot"),
        ("GET", tar("node-1"), String::new(), 400, ".tar"),
        ("GET", tar("%2e%2e.tar"), String::new(), 400, "usage"),
    ] {
        let (found, answer) = ask(agent, method, &path, &body);
        assert!(found == status && answer["error"]["code"].is_string(), "{method} {path}: {found} {answer}");
        assert!(answer["error"].to_string().contains(words), "{method} {path}: {answer}");
    }
    for header in ["Origin: http://elsewhere.example", "Sec-Fetch-Site: cross-site"] {
        let mut stream = TcpStream::connect(("127.0.0.1", agent.port)).expect("connects");
        write!(stream, "POST {snapshots} HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n{header}\r\n\r\n").expect("asks");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.0 403") && answer.contains("web pages"), "{answer}");
    }
    assert_eq!(ask(agent, "GET", snapshots, "").1["snapshots"], json!([]));
}

#[test]
fn the_description_names_every_address_that_is_served_and_no_other() {
    let work = Workplace::new();
    let data = work.path("data");
    std::fs::create_dir(&data).expect("makes");
    let clusters = format!("[clusters.disk]\nstore = \"files\"\n[clusters.disk.nodes.here]\ndata_directory = {data:?}\n");
    let agent = Agent::with_token(&work, "one", &clusters);
    work.configure("");
    work.succeed(&["init"]);
    let (status, document) = ask(&agent, "GET", "/openapi.json", "");
    let described = document["paths"].as_object().expect("an object");
    let paths: BTreeSet<&str> = described.keys().map(String::as_str).collect();
    assert_eq!(
        (status, paths),
        (
            200,
            BTreeSet::from([
                "/openapi.json",
                "/v1/clusters",
                "/v1/clusters/{cluster}/snapshots",
                "/v1/health",
                "/v1/snapshots/{uuid}",
                "/v1/snapshots/{uuid}/nodes/{file}",
            ])
        )
    );
    for (path, item) in described {
        let real = path.replace("{cluster}", "nobody").replace("{uuid}", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff");
        let real = real.replace("{file}", "here.tar");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let (status, text) = agent.request(method, &real, Some(TOKEN), "");
            match item.get(method.to_lowercase()) {
                None => assert_eq!(status, 405, "{method} {path}: {text}"),
                Some(operation) => {
                    assert!(!text.contains("nothing at this address"), "{method} {path}: {status} {text}");
                    assert!(operation["responses"][status.to_string()].is_object(), "{method} {path}: {status} is not described");
                }
            }
        }
    }
    for (path, _) in described.iter().filter(|(path, _)| *path != "/v1/health") {
        assert_eq!(agent.request("GET", path, None, "").0, 401, "{path}");
    }
}

fn peak_kb(agent: &Agent<'_>) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_tar_is_streamed_in_little_memory_and_who_hangs_up_is_let_go() {
    const FILE_BYTES: usize = 256 << 20;
    let work = Workplace::new();
    let data = work.path("data");
    std::fs::create_dir(&data).expect("makes");
    let mut noise = vec![0; FILE_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    std::fs::write(data.join("noise"), &noise).expect("writes");
    let clusters = format!("[clusters.disk]\nstore = \"files\"\n[clusters.disk.nodes.here]\ndata_directory = {data:?}\n");
    let agent = Agent::with_token(&work, "one", &clusters);
    work.configure(&clusters);
    work.succeed(&["init"]);
    let report: Value = serde_json::from_str(&work.succeed(&["snapshot", "disk", "--json"])).expect("JSON");
    let path = format!("/v1/snapshots/{}/nodes/here.tar", report["uuid"].as_str().expect("an id"));

    let before = peak_kb(&agent);
    let (status, mut stream) = open(&agent, &path);
    assert_eq!(status, 200);
    let mut tar = Vec::new();
    stream.read_to_end(&mut tar).expect("a tar");
    assert!(tar.windows(4096).step_by(512).any(|window| window == &noise[..4096]) && tar.len() > FILE_BYTES, "{}", tar.len());
    let grown = peak_kb(&agent).saturating_sub(before);
    assert!(grown < 128 << 10, "{grown} kB for a tar of {} bytes", tar.len());

    let open_ones: Vec<_> = (0..4).map(|_| open(&agent, &path)).collect();
    assert!(open_ones.iter().all(|(status, _)| *status == 200));
    let (status, answer) = ask(&agent, "GET", &path, "");
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("busy")), "{answer}");
    drop(open_ones);
    let until = Instant::now() + PATIENCE;
    while open(&agent, &path).0 != 200 {
        assert!(Instant::now() < until, "{}", agent.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}
