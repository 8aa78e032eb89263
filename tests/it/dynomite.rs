//! Rings of Dynomite, with a stand-in for it in front of real redis-servers: discovery, the cut, the racks, the restore.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tintype::driver::dynomite::{Admin, DynomiteDriver, DynomiteOptions, RingMember};
use tintype::driver::redis::RedisOptions;
use tintype::driver::{DriverError, StoreDriver, conformance};
use tintype::model::manifest::{Consistency, RingPlace};
use tintype::model::names::NodeName;

use crate::support::command::{Workplace, succeeded};
use crate::support::dynomite::{Node, Ring, RingPlan, TOKENS};
use crate::support::mount::wait_for;
use crate::support::redis::{PATIENCE, both, redis_62};

const KEYS: usize = 300;
/// The longest that Dynomite allows, for a machine that is busy with other things.
const PAUSE: Duration = Duration::from_secs(4);
/// Snapshots after which one is proved, also on such a machine: where the statistics come late, nothing is.
const TRIES: usize = 20;

/// So many keys through one node, and the same in every rack when this returns.
fn fill(ring: &Ring, word: &str) {
    let mut client = ring.nodes[0].client();
    for key in 0..KEYS {
        redis::cmd("SET").arg(format!("key:{key}")).arg(format!("{word}:{key}")).query::<()>(&mut client).expect("a write");
    }
    settle(ring);
}

/// Waits until every rack has what the others have.
fn settle(ring: &Ring) {
    let racks = || ["a", "b"].map(|rack| values(ring, rack));
    wait_for("both racks hold the same", PATIENCE, || {
        let [a, b] = racks();
        a == b
    });
}

/// What the backends of a rack hold.
fn values(ring: &Ring, rack: &str) -> Vec<Vec<(String, String)>> {
    let pairs = |(node, keys): (&Node, Vec<String>)| {
        let mut connection = node.store.try_connection().expect("connects");
        let value = |key: String| {
            let value: Option<String> = redis::cmd("GET").arg(&key).query(&mut connection).expect("a value");
            (key, value.unwrap_or_default())
        };
        keys.into_iter().map(value).collect()
    };
    ring.of_rack(rack).zip(ring.keys(rack)).map(pairs).collect()
}

/// Every key has this word, asked of every Dynomite.
fn holds(ring: &Ring, word: &str) {
    for node in &ring.nodes {
        let mut client = node.client();
        for key in (0..KEYS).step_by(7) {
            let value: Option<String> = redis::cmd("GET").arg(format!("key:{key}")).query(&mut client).expect("an answer");
            assert_eq!(value, Some(format!("{word}:{key}")), "key {key} by rack {}, token {}", node.rack, node.token);
        }
    }
}

/// A cluster whose ring is found through one node.
fn discovered(ring: &Ring, keys: &str) -> String {
    format!("[clusters.live]\nstore = \"dynomite\"\ndiscover = {:?}\n{keys}\n", ring.seed())
}

/// A ring that can be restored into.
fn restorable(ring: &Ring, cluster: &str) -> String {
    format!("[clusters.{cluster}]\nstore = \"dynomite\"\n{}", ring.tables(cluster))
}

fn member(node: &Node) -> RingMember {
    let name = NodeName::new("token-0").expect("legal");
    RingMember {
        place: RingPlace { token: node.token, datacenter: "east".to_owned(), rack: node.rack.clone() },
        admin: format!("http://{}:22222", node.address),
        redis: RedisOptions::new(name, format!("redis://{}:22122", node.address)),
    }
}

/// A driver for a token that these nodes have.
fn driver(nodes: &[&Node]) -> DynomiteDriver {
    DynomiteDriver::new(DynomiteOptions {
        node: NodeName::new("token-0").expect("legal"),
        members: nodes.iter().copied().map(member).collect(),
        request_timeout: Duration::from_secs(5),
    })
    .expect("the addresses are good")
}

/// One token, two racks.
fn pair() -> Ring {
    Ring::start(&RingPlan { tokens: &TOKENS[..1], ..RingPlan::default() })
}

/// Consistency, scope and checks of one cut.
async fn cut(driver: &mut DynomiteDriver) -> (Consistency, Option<String>, String) {
    driver.describe().await.expect("describe");
    driver.prepare(PAUSE, PATIENCE).await.expect("prepare");
    driver.freeze(PAUSE).await.expect("freeze");
    driver.capture().await.expect("capture");
    let proof = driver.thaw().await.expect("thaw").proof;
    driver.abandon().await;
    (proof.consistent, proof.scope, proof.checks.join("; "))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_keeps_the_promises_of_the_port_with_both_versions() {
    for binary in both() {
        let ring = Ring::start(&RingPlan { tokens: &TOKENS[..1], binary, ..RingPlan::default() });
        fill(&ring, "stored");
        conformance::all(&mut driver(&[&ring.nodes[0], &ring.nodes[1]])).await;
        let mut client = ring.nodes[0].client();
        redis::cmd("SET").arg("after").arg("all").query::<()>(&mut client).expect("nothing is paused");
    }
}

/// Takes snapshots until one is proved: how it is shown.
fn proved(work: &Workplace) -> String {
    let mut shown = String::new();
    for _ in 0..TRIES {
        work.succeed(&["snapshot", "live", "--max-pause", "4s"]);
        shown = work.succeed(&["show", "live/latest"]);
        if shown.contains("consistent: proved (cluster)") {
            return shown;
        }
    }
    panic!("{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_queues_prove_the_cut_and_others_leave_it_timed_for_the_rack() {
    let ring = pair();
    let (near, far) = (&ring.nodes[0], &ring.nodes[1]);
    fill(&ring, "stored");
    let mut seen = cut(&mut driver(&[near, far])).await;
    for _ in 1..TRIES {
        if seen.0 == Consistency::Timed {
            assert!(seen.1.as_deref() == Some("rack") && seen.2.contains("were not renewed within"), "{seen:?}");
            seen = cut(&mut driver(&[near, far])).await;
        }
    }
    let (consistent, scope, checks) = seen;
    assert_eq!((consistent, scope), (Consistency::Proved, None), "{checks}");
    assert!(checks.contains("queues of 2 Dynomites empty in the pause"), "{checks}");

    // A write that this rack has, and the other has not yet.
    ring.delay(Duration::from_secs(20));
    redis::cmd("SET").arg("late").arg("1").query::<()>(&mut near.client()).expect("nobody waits for the other rack");
    let (consistent, scope, checks) = cut(&mut driver(&[near, far])).await;
    assert_eq!((consistent, scope.as_deref()), (Consistency::Timed, Some("rack")), "{checks}");
    assert!(checks.contains(&format!("rack a, http://{}:22222: peer_in_queue is 1", near.address)), "{checks}");

    // The same where nobody told us of that rack: the ring does. And where its Dynomite is down.
    let (consistent, scope, checks) = cut(&mut driver(&[far])).await;
    assert_eq!((consistent, scope.as_deref()), (Consistency::Timed, Some("rack")), "{checks}");
    assert!(checks.contains("peer_in_queue is 1"), "{checks}");
    near.stop_proxy();
    let (consistent, scope, checks) = cut(&mut driver(&[far, near])).await;
    assert_eq!((consistent, scope.as_deref()), (Consistency::Timed, Some("rack")), "{checks}");
    assert!(checks.contains("connection refused"), "{checks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_wait_at_a_paused_backend_are_seen_in_its_queue() {
    let ring = pair();
    fill(&ring, "stored");
    let mut paused = driver(&[&ring.nodes[0], &ring.nodes[1]]);
    paused.prepare(PAUSE, PATIENCE).await.expect("prepare");
    paused.freeze(PAUSE).await.expect("freeze");
    let mut client = ring.nodes[0].client();
    let waiting = std::thread::spawn(move || redis::cmd("SET").arg("waits").arg("1").query::<()>(&mut client));
    wait_for("the write waits", PATIENCE, || {
        ring.nodes[0].wake();
        ring.nodes[0].ask_admin("/info").contains("\"out_queue\": 1")
    });
    paused.capture().await.expect("capture");
    let proof = paused.thaw().await.expect("thaw").proof;
    assert_eq!((proof.consistent, proof.scope.as_deref()), (Consistency::Timed, Some("rack")), "{:?}", proof.checks);
    waiting.join().expect("no panic").expect("it succeeds when the pause is over");
    paused.abandon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_admin_port_is_told() {
    let ring = pair();
    // An unknown path answers 200: the text says what it is. That of a Redis is none.
    let admin = Admin::new("n", &ring.seed()).expect("an address");
    assert_eq!(admin.ring().await.expect("a ring").servers.len(), 2);
    assert_eq!(admin.state().await.expect("a state").as_deref(), Some("NORMAL"));
    let backend = Admin::new("n", &format!("http://{}:22122", ring.nodes[0].address)).expect("an address");
    assert!(matches!(backend.ring().await, Err(DriverError::Unreachable { .. })));
    let nobody = Admin::new("n", &format!("http://{}:1", ring.nodes[0].address)).expect("an address");
    assert_eq!(nobody.state().await.expect("nobody is an answer"), None);
}

#[test]
fn a_ring_is_found_and_its_preferred_rack_captured_and_another_where_that_is_down() {
    let ring = Ring::start(&RingPlan::default());
    fill(&ring, "stored");
    let work = Workplace::new();
    work.configure(&discovered(&ring, "rack = \"b\""));
    work.succeed(&["init"]);
    let doctor = work.run(&["doctor"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.matches("can be captured; its Dynomite is well, in rack b of east").count(), 3, "{doctor}");
    proved(&work);
    let shown =
        |work: &Workplace| -> Value { serde_json::from_str(&work.succeed(&["--json", "show", "live/latest"])).expect("JSON") };
    let places = |shown: &Value| -> Vec<(String, String, u64, String)> {
        let nodes = shown["nodes"].as_array().expect("nodes");
        let place = |node: &Value| {
            let ring = &node["description"]["ring"];
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            (text(&node["name"]), text(&ring["rack"]), ring["token"].as_u64().expect("a number"), text(&ring["datacenter"]))
        };
        nodes.iter().map(place).collect()
    };
    let of = |racks: [&str; 3]| -> Vec<_> {
        TOKENS
            .iter()
            .zip(racks)
            .map(|(token, rack)| (format!("token-{token}"), rack.to_owned(), *token, "east".to_owned()))
            .collect()
    };
    let first = shown(&work);
    let mut found = places(&first);
    found.sort_by_key(|place| place.2);
    assert_eq!(found, of(["b", "b", "b"]));
    assert_eq!((&first["store"], &first["cut"]["scope"]), (&"dynomite".into(), &"cluster".into()), "{first}");
    assert_eq!(first["cut"]["consistent"], "proved");

    // The backend of one is gone, another's Dynomite takes no writes: the other rack has all that they should have.
    let (gone, standby) = (ring.node("b", TOKENS[1]), ring.node("b", TOKENS[2]));
    assert!(gone.store.run("stop").status.success());
    standby.ask_admin("/state/standby");
    work.succeed(&["snapshot", "live", "--max-pause", "4s"]);
    let second = shown(&work);
    let mut found = places(&second);
    found.sort_by_key(|place| place.2);
    assert_eq!(found, of(["b", "a", "a"]));
    let keys: u64 =
        second["nodes"].as_array().expect("nodes").iter().map(|node| node["keys"]["total"].as_u64().unwrap_or(0)).sum();
    assert_eq!(keys, KEYS as u64);
    let text = work.succeed(&["show", "live/latest"]);
    assert!(text.contains(&format!("token {}, from rack a of east", TOKENS[1])), "{text}");

    // A token alone: nobody looked at the queues of the others.
    work.succeed(&["snapshot", "live", "--node", &format!("token-{}", TOKENS[0])]);
    let alone = work.succeed(&["list", "live"]);
    let newest =
        alone.lines().filter(|line| line.len() > 10).max().and_then(|line| line.split_whitespace().next()).expect("a date");
    let text = work.succeed(&["show", &format!("live/{newest}")]);
    assert!(text.contains("consistent: timed (rack)") && text.contains("not stored: it was not asked for"), "{text}");

    // Neither rack: refused, with what is wrong in both.
    ring.node("a", TOKENS[2]).stop_proxy();
    let refused = work.run(&["snapshot", "live"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("rack b: refused: its Dynomite") && said.contains("state STANDBY"), "{said}");
    assert!(said.contains("rack a: cannot be reached: its Dynomite does not listen"), "{said}");
}

#[test]
fn a_pause_that_dynomite_would_not_wait_for_is_refused() {
    let ring = pair();
    let work = Workplace::new();
    work.configure(&discovered(&ring, "max_pause = \"4500ms\""));
    work.succeed(&["init"]);
    let refused = |work: &Workplace| {
        let refused = work.run(&["snapshot", "live"]);
        assert_eq!(refused.status.code(), Some(1));
        String::from_utf8_lossy(&refused.stderr).into_owned()
    };
    let said = refused(&work);
    assert!(said.contains("max_pause (4.5s) is too long: Dynomite fails what waits for 5s") && said.contains("4000ms"), "{said}");
    work.configure(&discovered(&ring, "request_timeout = \"1s\""));
    let said = refused(&work);
    assert!(said.contains("max_pause (2s) is too long: Dynomite fails what waits for 1s"), "{said}");
    work.configure(&discovered(&ring, "max_pause = \"4500ms\"\nrequest_timeout = \"10s\""));
    work.succeed(&["snapshot", "live"]);
}

#[test]
fn mistakes_in_the_configuration_are_told_with_what_is_right() {
    let ring = pair();
    let work = Workplace::new();
    for (text, words) in [
        (discovered(&ring, "rack = \"c\""), "the ring has no rack c; its racks: a in east, b in east"),
        (discovered(&ring, "racks = \"a\""), "did you mean rack?"),
        (discovered(&ring, "[clusters.live.nodes.x]\ntoken = 5"), "the ring has no such node with token 5"),
        (discovered(&ring, "[clusters.live.nodes.x]\ntoken = 0"), "say its rack, one of a, b"),
        (discovered(&ring, "[clusters.live.nodes.x]\nrack = \"a\""), "[clusters.live.nodes.x] has no token"),
        (
            discovered(&ring, "").replace("dynomite", "redis").replace("discover", "rack = \"a\"\ndiscover"),
            "rack is of a ring of Dynomite",
        ),
        (discovered(&ring, "").replace(":22222", ":22122"), "its Dynomite, http://"),
        ("[clusters.live]\nstore = \"dynomite\"\n".to_owned(), "write discover = \"http://ANY-NODE:22222\""),
        ("[clusters.live]\nstore = \"dynomite\"\n[clusters.live.nodes.x]\ntoken = 0\n".to_owned(), "x] has no address"),
    ] {
        work.configure(&text);
        let refused = work.run(&["doctor"]);
        let said = format!("{}{}", String::from_utf8_lossy(&refused.stdout), String::from_utf8_lossy(&refused.stderr));
        assert!(!refused.status.success() && said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_list_of_nodes_is_captured_without_discovery() {
    let ring = pair();
    fill(&ring, "stored");
    let work = Workplace::new();
    work.configure(&restorable(&ring, "live").replacen('\n', "\nrack = \"b\"\n", 1));
    work.succeed(&["init"]);
    let shown = proved(&work);
    assert!(shown.contains("token 0, from rack b of east"), "{shown}");

    // A list that lacks a token would be a ring that lacks keys.
    let ring = Ring::start(&RingPlan { racks: &["a"], tokens: &TOKENS[..2], ..RingPlan::default() });
    work.configure(&format!("[clusters.part]\nstore = \"dynomite\"\n{}", ring.nodes[0].table("part")));
    let refused = work.run(&["snapshot", "part"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("the ring has token {} too", TOKENS[1])) && said.contains("discover = \"http://"), "{said}");
}

/// A `tintyped` that acts for nodes; it ends with this.
struct Agent(Child);

impl Agent {
    fn start(work: &Workplace, configuration: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tintyped"));
        work.prepare(&mut command);
        command.arg("--config").arg(configuration).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("tintyped starts"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended_before = self.0.kill();
        let _reaped_before = self.0.wait();
    }
}

#[test]
fn an_agent_captures_the_node_of_the_ring_that_its_own_configuration_names() {
    let ring = Ring::start(&RingPlan { tokens: &TOKENS[..2], ..RingPlan::default() });
    fill(&ring, "stored");
    let work = Workplace::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    // The same state, where the agent's token is; but of the ring it knows rack b alone.
    let nodes: String = ring.of_rack("b").map(|node| node.table("live")).collect();
    let own = format!(
        "state_directory = {:?}\n[agent]\nlisten = \"127.0.0.1:{port}\"\n[clusters.live]\nstore = \"dynomite\"\n{nodes}",
        work.path("state")
    );
    let configuration = work.path("agent.toml");
    std::fs::write(&configuration, own).expect("writes");
    std::fs::set_permissions(&configuration, PermissionsExt::from_mode(0o600)).expect("permits");
    work.configure(&discovered(&ring, &format!("agent = \"http://127.0.0.1:{port}\"")));
    work.succeed(&["init"]);
    let _agent = Agent::start(&work, &configuration);
    wait_for("the agent listens", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let told = work.run(&["snapshot", "live", "--max-pause", "4s"]);
    let text = format!("{}{}", succeeded("the snapshot", &told), String::from_utf8_lossy(&told.stderr));
    assert!(text.contains(&format!("by http://127.0.0.1:{port}")), "{text}");
    // It was told of one rack, and the ring told it of the other.
    let shown = proved(&work);
    assert_eq!(shown.matches("from rack b of east").count(), 2, "{shown}");
    assert_eq!(shown.matches("queues of 2 Dynomites empty in the pause").count(), 2, "{shown}");

    // A list whose agents alone know where the nodes are, and that lacks a token: the agents say what the ring has.
    let only = format!("[clusters.live.nodes.one]\ntoken = {}\nagent = \"http://127.0.0.1:{port}\"\n", TOKENS[0]);
    work.configure(&format!("[clusters.live]\nstore = \"dynomite\"\n{only}"));
    let snapshot = ["snapshot", "live", "--max-pause", "4s"];
    let refused = work.run(&snapshot);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains(&format!("no node is named with these tokens of the ring: {}", TOKENS[1])), "{said}");
    let told = work.succeed(&[snapshot.as_slice(), &["--partial"]].concat());
    assert!(told.contains(&format!("token-{}: the ring has this token", TOKENS[1])), "{told}");
    let listed = work.succeed(&["list", "live"]);
    assert_eq!(listed.matches("partial").count(), 1, "{listed}");
}

/// Counts upwards through a Dynomite until it is dropped; each writer has a key for each token.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Writers {
    /// Each sets round `n` of its second key only when that of its first is acknowledged.
    fn start(ring: &Ring) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |(index, node): (usize, &Node)| {
            let (mut client, stop, written) = (node.client(), stop.clone(), written.clone());
            std::thread::spawn(move || {
                for round in 1u64.. {
                    for key in 0..6 {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let key = format!("writer:{index}:{key}");
                        redis::cmd("SET").arg(key).arg(round).query::<()>(&mut client).expect("a write waits and succeeds");
                        written.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        };
        let threads = ring.of_rack("a").enumerate().map(writer).collect();
        let writers = Self { stop, written, threads };
        wait_for("writes", PATIENCE, || writers.written.load(Ordering::SeqCst) > 200);
        writers
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a writer panicked");
        }
    }
}

#[test]
fn a_snapshot_under_writers_is_one_instant_and_restores_both_racks_of_another_ring() {
    let (live, other) = (Ring::start(&RingPlan::default()), Ring::start(&RingPlan::default()));
    fill(&live, "stored");
    fill(&other, "other");
    let work = Workplace::new();
    work.configure(&format!("{}{}", discovered(&live, "rack = \"a\""), restorable(&other, "copy")));
    work.succeed(&["init"]);
    let writers = Writers::start(&live);
    let before = writers.written.load(Ordering::SeqCst);
    let text = work.succeed(&["--json", "snapshot", "live", "--max-pause", "4s"]);
    let snapshot: Value = serde_json::from_str(&text).expect("JSON");
    assert!(writers.written.load(Ordering::SeqCst) > before, "writes went on");
    drop(writers);
    // Writers that wait, or whose writes are on their way to the other rack, leave nothing proved.
    assert_eq!((&snapshot["cut"]["consistent"], &snapshot["cut"]["scope"]), (&"timed".into(), &"rack".into()), "{text}");

    other.events();
    let plan = work.run(&["restore", "live/latest", "--to", "copy", "--confirm", "copy", "--dry-run"]);
    let plan = succeeded("the plan", &plan);
    assert_eq!(plan.matches("its Dynomite is stopped before it, and started when all nodes have loaded").count(), 6, "{plan}");
    let text = work.succeed(&["restore", "live/latest", "--to", "copy", "--yes", "--confirm", "copy"]);
    assert!(text.contains("restored live/"), "{text}");
    holds(&other, "stored");
    assert_eq!(values(&other, "a"), values(&other, "b"), "both racks come from the one copy");
    for (index, _) in live.of_rack("a").enumerate() {
        let mut client = other.nodes[0].client();
        let rounds: Vec<u64> = (0..6)
            .map(|key| redis::cmd("GET").arg(format!("writer:{index}:{key}")).query(&mut client).expect("a number"))
            .collect();
        // Its keys descend along its chain by one at most.
        assert!(rounds.is_sorted_by(|earlier, later| earlier >= later) && rounds[0] <= rounds[5] + 1, "{rounds:?}");
    }
    in_order(&other.events(), 6);

    let text = work.succeed(&["rollback", "copy", "--yes"]);
    assert_eq!(text.matches("is in place again").count(), 6, "{text}");
    holds(&other, "other");
    assert!(other.nodes.iter().all(Node::is_up), "Dynomite came back too");
}

/// Of each node first Dynomite goes down, then Redis, then Redis comes up, and when all of them are, with their keys, Dynomite.
fn in_order(events: &[String], nodes: usize) {
    let at = |what: &str| -> Vec<(usize, String)> {
        let is = |(index, event): (usize, &String)| {
            event.strip_prefix(what).map(|rest| (index, rest.rsplitn(3, ' ').take(2).collect::<Vec<_>>().join(" ")))
        };
        events.iter().enumerate().filter_map(is).collect()
    };
    let (down, stop, start, up) = (at("proxy down"), at("redis stop"), at("redis start"), at("proxy up"));
    for (steps, what) in [(&down, "proxy down"), (&stop, "redis stop"), (&start, "redis start"), (&up, "proxy up")] {
        assert_eq!(steps.len(), nodes, "{what}: {events:#?}");
    }
    for (index, node) in &down {
        let stopped = stop.iter().find(|(_, other)| other == node).expect("is stopped too");
        assert!(*index < stopped.0, "{events:#?}");
    }
    let last = |steps: &[(usize, String)]| steps.iter().map(|(index, _)| *index).max().expect("some");
    let first = |steps: &[(usize, String)]| steps.iter().map(|(index, _)| *index).min().expect("some");
    assert!(last(&stop) < first(&start) && last(&start) < first(&up), "{events:#?}");
    assert!(events.iter().filter(|event| event.starts_with("proxy up")).all(|event| !event.contains("keys=:0 ")), "{events:#?}");
}

#[test]
fn one_node_of_a_ring_is_restored_and_its_other_racks_are_told_of() {
    let ring = Ring::start(&RingPlan { tokens: &TOKENS[..2], ..RingPlan::default() });
    fill(&ring, "stored");
    let work = Workplace::new();
    work.configure(&restorable(&ring, "live"));
    work.succeed(&["init"]);
    work.succeed(&["snapshot", "live", "--max-pause", "4s"]);
    fill(&ring, "live");
    let stored = |rack: &str, token: usize| values(&ring, rack)[token].iter().all(|(_, value)| value.starts_with("stored:"));
    ring.events();
    let restore = ["restore", "live/latest", "--node", "token-0", "--yes", "--confirm", "live"];
    let one = [&restore[..], &["--map", "token-0=b-0"]].concat();
    let plan = work.run(&[&one[..], &["--dry-run"]].concat());
    let plan = succeeded("the plan", &plan);
    assert!(plan.contains("a-0: it has token 0 too, in rack a, and keeps what it holds"), "{plan}");
    work.succeed(&one);
    assert_eq!([stored("a", 0), stored("b", 0), stored("a", 1), stored("b", 1)], [false, true, false, false]);
    in_order(&ring.events(), 1);
    // By its token alone: in both racks.
    work.succeed(&restore);
    assert_eq!([stored("a", 0), stored("b", 0), stored("a", 1), stored("b", 1)], [true, true, false, false]);

    let wrong = [&restore[..], &["--map", "token-0=b-1"]].concat();
    let refused = work.run(&wrong);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("token-0 was stored with token 0, and the target has {}", TOKENS[1])), "{said}");
}

#[test]
fn where_a_redis_does_not_load_no_dynomite_is_started_on_it_and_all_is_as_it_was() {
    let ring = Ring::start(&RingPlan { tokens: &TOKENS[..2], ..RingPlan::default() });
    fill(&ring, "stored");
    let work = Workplace::new();
    work.configure(&restorable(&ring, "live"));
    work.succeed(&["init"]);
    work.succeed(&["snapshot", "live", "--max-pause", "4s"]);
    fill(&ring, "live");
    // It damages what it is started on, once: the restored dump.
    let victim = ring.node("b", TOKENS[1]);
    let script = victim.script("store-start");
    let (good, once) = (std::fs::read_to_string(&script).expect("reads"), work.path("once"));
    let dump = victim.store.data.join("dump.rdb");
    let damage = format!("[ -e {0} ] || {{ touch {0}; truncate -s 20 {1}; }}\n", once.display(), dump.display());
    std::fs::write(&script, good.replacen("#!/bin/sh\n", &format!("#!/bin/sh\n{damage}"), 1)).expect("writes");
    ring.events();
    let undone = work.run(&["restore", "live/latest", "--yes", "--confirm", "live"]);
    let said = String::from_utf8_lossy(&undone.stdout).into_owned();
    assert_eq!(undone.status.code(), Some(1), "{said}");
    assert!(once.exists() && said.contains("every node is as it was"), "{said}");
    let events = ring.events();
    // Each Redis was started twice, the damaged one too; Dynomite once, at the end.
    let count = |what: &str| events.iter().filter(|event| event.starts_with(what)).count();
    assert_eq!((count("redis start"), count("proxy down"), count("proxy up")), (8, 4, 4), "{events:#?}");
    let first_up = events.iter().position(|event| event.starts_with("proxy up")).expect("they come back");
    let started = events[..first_up].iter().filter(|event| event.starts_with("redis start")).count();
    assert!(started >= 5, "none was started on what was to be restored: {events:#?}");
    holds(&ring, "live");

    // A Dynomite that does not come up: the same way back.
    std::fs::write(&script, &good).expect("writes");
    let start = victim.script("start");
    let text = std::fs::read_to_string(&start).expect("reads");
    let fails = format!("#!/bin/sh\n[ -e {0} ] || {{ touch {0}; echo no luck >&2; exit 9; }}\n", work.path("twice").display());
    std::fs::write(&start, text.replacen("#!/bin/sh\n", &fails, 1)).expect("writes");
    let undone = work.run(&["restore", "live/latest", "--yes", "--confirm", "live"]);
    let said = String::from_utf8_lossy(&undone.stdout).into_owned();
    assert!(undone.status.code() == Some(1) && said.contains("start_proxy command") && said.contains("no luck"), "{said}");
    holds(&ring, "live");
    assert!(ring.nodes.iter().all(Node::is_up));

    // One whose stop fails and that runs on: Redis is not touched, and it is left as it is.
    let stop = victim.script("stop");
    let text = std::fs::read_to_string(&stop).expect("reads");
    let fails = format!("[ -e {0} ] || {{ touch {0}; exit 8; }}\n", work.path("thrice").display());
    std::fs::write(&stop, text.replacen("#!/bin/sh\n", &format!("#!/bin/sh\n{fails}"), 1)).expect("writes");
    ring.events();
    let undone = work.run(&["restore", "live/latest", "--yes", "--confirm", "live"]);
    let said = String::from_utf8_lossy(&undone.stdout).into_owned();
    assert!(undone.status.code() == Some(1) && said.contains("stop_proxy command"), "{said}");
    let of_victim = format!(" {} {}", victim.rack, victim.token);
    let own: Vec<_> = ring.events().into_iter().filter(|event| event.ends_with(&of_victim)).collect();
    assert_eq!(own, Vec::<String>::new());
    holds(&ring, "live");
    assert!(ring.nodes.iter().all(Node::is_up));

    // One that is down, whatever its stop says: that is what was wanted.
    std::fs::write(&stop, format!("{text}exit 8\n")).expect("writes");
    work.succeed(&["restore", "live/latest", "--yes", "--confirm", "live"]);
    holds(&ring, "stored");
    assert!(ring.nodes.iter().all(Node::is_up));
}

#[test]
fn append_only_files_of_both_forms_are_captured_and_restored() {
    for binary in both() {
        let settings = "save \"\"\nappendonly yes\nappendfsync everysec";
        let plan = RingPlan { tokens: &TOKENS[..1], binary: binary.clone(), settings, ..RingPlan::default() };
        let ring = Ring::start(&plan);
        fill(&ring, "stored");
        let work = Workplace::new();
        work.succeed(&["init"]);
        for capture in ["replication", "aof"] {
            let table = restorable(&ring, "live").replacen('\n', &format!("\ncapture = {capture:?}\n"), 1);
            work.configure(&table);
            work.succeed(&["snapshot", "live", "--max-pause", "4s"]);
            let list = work.succeed(&["list", "live/latest/token-0"]);
            let form = if binary == redis_62() { "appendonly.aof" } else { "appendonlydir" };
            assert!(list.contains(form) || capture == "replication", "{}: {list}", binary.display());
            fill(&ring, "live");
            work.succeed(&["restore", "live/latest", "--yes", "--confirm", "live"]);
            holds(&ring, "stored");
            assert!(has_append_only(&ring.nodes[0].store.data, form), "{}, {capture}", binary.display());
            fill(&ring, "stored");
        }
    }
}

fn has_append_only(data: &Path, form: &str) -> bool {
    data.join(form).exists()
}
