//! Snapshots through agents: real `tintyped` processes that act for nodes, each with a configuration of its own.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kill::longest_wait;
use crate::support::agent::{Agent, TOKEN, free_port, name, said};
use crate::support::chains::{Chains, counters};
use crate::support::command::{Workplace, succeeded};
use crate::support::effort::{Random, effort, tell};
use crate::support::redis::{Server, cluster, redis_70};

/// A node ends a pause after this by itself.
const PAUSE: Duration = Duration::from_secs(2);
/// For a machine that is busy with other things than the pause.
const MARGIN: Duration = Duration::from_secs(3);
/// A ring, two agents that act for a node of it each, and a third node that is reached from where snapshots are taken.
struct Ring<'a> {
    agents: Vec<Agent<'a>>,
}

impl<'a> Ring<'a> {
    fn new(work: &'a Workplace, servers: &[Server]) -> Self {
        let ring = format!("[clusters.live]\ndiscover = \"redis://127.0.0.1:{}\"\n", servers[0].port);
        let agents: Vec<_> = ["east", "west"].iter().map(|name| Agent::with_token(work, name, &ring)).collect();
        let nodes: String = agents
            .iter()
            .zip(servers)
            .map(|(agent, server)| format!("[clusters.live.nodes.\"{}\"]\nagent = \"{}\"\n", name(server), agent.url()))
            .collect();
        work.configure(&format!("[agent]\ntoken_file = {:?}\n{ring}max_pause = \"2s\"\n{nodes}", work.path("token")));
        Self { agents }
    }
}

#[test]
fn a_ring_whose_hosts_have_agents_is_one_instant_under_writers() {
    let mut random = Random::begin("agents");
    let servers = cluster(&redis_70(), 3, &[]);
    let chains = Chains::start(&servers, 8, &mut random);
    let work = Workplace::new();
    let ring = Ring::new(&work, &servers);
    work.succeed(&["init"]);
    let rounds = effort(4, 100);
    let mut pauses = Vec::new();
    for round in 0..rounds {
        let output = work.run(&["snapshot", "live", "--json"]);
        let text = succeeded("snapshot", &output);
        let report: Value = serde_json::from_str(&text).expect("one object");
        assert_eq!(report["cut"]["consistent"], "proved", "{report}");
        let notes = String::from_utf8_lossy(&output.stderr);
        for (agent, server) in ring.agents.iter().zip(&servers) {
            assert!(notes.contains(&format!("{} by {}", name(server), agent.url())), "{notes}");
        }
        assert!(notes.contains("through this one: 1"), "{notes}");
        pauses.push(report["cut"]["pause_us"].as_u64().expect("a number"));
        let place = work.path(&format!("placed-{round}"));
        work.succeed(&["restore", "live/latest", "--directory", &place.display().to_string(), "--quiet"]);
        let dumps: Vec<_> =
            servers.iter().map(|server| std::fs::read(place.join(name(server)).join("dump.rdb")).expect("a dump")).collect();
        let found = dumps.iter().flat_map(|dump| counters(dump)).collect();
        assert_eq!(chains.violations(&found), Vec::<String>::new(), "round {round}");
        std::fs::remove_dir_all(place).expect("removes");
    }
    pauses.sort_unstable();
    tell(&format!(
        "{rounds} snapshots by agents, 0 violations; pause us: median {}, longest {}",
        pauses[rounds / 2],
        pauses[rounds - 1]
    ));
    work.succeed(&["verify", "live/latest", "--depth", "hashed", "--quiet"]);
}

#[test]
fn whoever_is_killed_at_any_instant_no_store_stays_paused_and_the_next_snapshot_succeeds() {
    let mut random = Random::begin("killed agents");
    let servers = cluster(&redis_70(), 3, &[]);
    let _chains = Chains::start(&servers, 4, &mut random);
    let work = Workplace::new();
    let mut ring = Ring::new(&work, &servers);
    work.succeed(&["init"]);
    let began = Instant::now();
    work.succeed(&["snapshot", "live"]);
    let typical = began.elapsed();
    let (rounds, mut failed) = (effort(9, 200), 0);
    for round in 0..rounds {
        let mut running =
            work.command(&["snapshot", "live"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("tintype starts");
        let mut notes = BufReader::new(running.stderr.take().expect("a pipe")).lines();
        // Two of three are aimed at the pause or at what comes right behind it.
        let word = [None, Some("pausing writes"), Some("storing")][round % 3];
        if let Some(word) = word {
            let is_said = notes.any(|line| line.is_ok_and(|line| line.contains(word)));
            assert!(is_said, "round {round}: the snapshot never came to {word}");
        }
        std::thread::sleep(random.duration(if word.is_some() { Duration::from_millis(10) } else { typical }));
        let is_agent = random.next().is_multiple_of(2);
        if is_agent {
            let victim = &mut ring.agents[usize::from(random.next().is_multiple_of(2))];
            victim.kill();
            assert!(longest_wait(&servers) <= PAUSE + MARGIN, "round {round}: held back after the death of an agent");
            victim.start_again();
            // What is left of the output is nothing to wait for.
            std::thread::spawn(move || notes.for_each(drop));
        } else {
            running.kill().expect("a child");
        }
        let is_done = running.wait().expect("a child").success();
        failed += usize::from(!is_done);
        let place = format!("round {round}, word {word:?}, agent {is_agent}, done {is_done}");
        let wait = longest_wait(&servers);
        assert!(wait <= PAUSE + MARGIN, "{place}: a write waited {wait:?}");
        let output = work.run(&["snapshot", "live"]);
        assert!(output.status.success(), "{place}: the next snapshot: {}", said(&output));
    }
    work.succeed(&["verify", "--depth", "hashed", "--quiet"]);
    tell(&format!("{failed} of {rounds} snapshots ended by the death of an agent or of the coordinator"));
}

#[test]
fn an_agent_obeys_nobody_without_its_token_and_acts_for_what_is_configured_alone() {
    let server = Server::start(&redis_70(), &[]);
    let work = Workplace::new();
    let table = format!("[clusters.prod.nodes.node-1]\naddress = \"{}\"\n", server.url());
    let agent = Agent::with_token(&work, "one", &table);
    work.configure(&format!("[clusters.prod.nodes.node-1]\nagent = \"{}\"\n", agent.url()));
    work.succeed(&["init"]);
    let repository: Value =
        serde_json::from_slice(&std::fs::read(work.path("repository/tintype.json")).expect("a descriptor")).expect("JSON");
    let repository = repository["repository"].as_str().expect("an id").to_owned();

    assert_eq!(agent.request("GET", "/v1/health", None, ""), (200, "{\"status\":\"ok\"}".to_owned()));
    let snapshot = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
    let path = |cluster: &str, node: &str, verb: &str| format!("/v1/clusters/{cluster}/nodes/{node}/snapshots/{snapshot}/{verb}");
    let body = |repository: &str| format!("{{\"repository\":\"{repository}\",\"epoch\":1,\"wait_us\":5000000}}");
    let describe = path("prod", "node-1", "describe");
    for token in [None, Some(""), Some("a token"), Some("a token that all hosts shar")] {
        let (status, text) = agent.request("POST", &describe, token, &body(&repository));
        assert_eq!(status, 401, "{token:?}: {text}");
        assert!(text.contains("token_file under [agent]"), "{text}");
        assert_eq!(agent.request("GET", "/v1/clusters/prod/nodes/node-1", token, "").0, 401);
    }
    assert!(agent.log().contains("without the right token"), "{}", agent.log());
    let ask = |path: &str, body: &str| agent.request("POST", path, Some(TOKEN), body);
    for (path, body, status, words) in [
        (path("prod", "node-2", "describe"), body(&repository), 200, "its agent knows these nodes of prod: node-1"),
        (path("other", "node-1", "describe"), body(&repository), 200, "cluster other is not in its agent's configuration"),
        (describe.clone(), body("6f9619ff-8b86-4d01-b42d-00cf4fc964ff"), 200, "its agent stores into another repository"),
        (path("prod", "node-1", "freeze"), body(&repository), 400, "pause_us is missing"),
        (path("prod", "node-1", "capture"), body(&repository), 200, "knows nothing of snapshot"),
        (path("prod", "node-1", "melt"), body(&repository), 400, "is no order"),
        (path("prod", "..%2Fnode-1", "describe"), body(&repository), 400, ""),
        (path("%2E%2E", "node-1", "describe"), body(&repository), 400, ""),
        (describe.clone(), "{}".to_owned(), 422, "missing field"),
        (describe.clone(), "{".to_owned(), 400, ""),
        (describe.clone(), " ".repeat(20_000), 413, ""),
        ("/v1/nothing".to_owned(), String::new(), 404, "nothing at this address"),
    ] {
        let (found, text) = ask(&path, &body);
        assert!(found == status && text.contains(words), "{path}: {found} {text}");
    }
    assert_eq!(agent.request("GET", &describe, Some(TOKEN), "").0, 405);
    let (status, text) = ask(&describe, &body(&repository));
    assert!(status == 200 && text.contains("\"described\""), "{status} {text}");
    let (status, text) = agent.request("GET", "/v1/clusters/prod/nodes/node-1", Some(TOKEN), "");
    let standing: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &standing["snapshot"], &standing["order"]), (200, &snapshot.into(), &"describe".into()), "{text}");

    let output = work.run(&["snapshot", "prod"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("node-1: its agent") && text.contains("a token is wanted"), "{text}");

    let output = work.run(&["doctor"]);
    assert!(output.status.code() == Some(1) && said(&output).contains("a token is wanted"), "{}", said(&output));

    // With the token, and before that one begun for another coordinator: of a later epoch, it is taken over.
    work.configure(&format!(
        "[agent]\ntoken_file = {:?}\n[clusters.prod.nodes.node-1]\nagent = \"{}\"\n",
        work.path("token"),
        agent.url()
    ));
    work.succeed(&["snapshot", "prod"]);
    let (_, text) = ask(&path("prod", "node-1", "thaw"), &body(&repository));
    assert!(text.contains("a later coordinator"), "{text}");

    let output = work.run(&["doctor"]);
    assert!(said(&output).contains("its agent obeys"), "{}", said(&output));
    let mut agent = agent;
    agent.kill();
    let output = work.run(&["doctor"]);
    assert!(output.status.code() == Some(1) && said(&output).contains("start tintyped there"), "{}", said(&output));
    let output = work.run(&["snapshot", "prod"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("node-1: its agent: {}", agent.url())), "{text}");
    // It remembers whom it obeyed last.
    agent.start_again();
    let (_, text) = agent.request("POST", &describe, Some(TOKEN), &body(&repository));
    assert!(text.contains("a later coordinator"), "{text}");
}

#[test]
fn without_a_token_file_an_agent_on_the_loopback_interface_makes_one_and_the_commands_of_its_user_find_it() {
    let work = Workplace::new();
    let data = work.path("data");
    std::fs::create_dir(&data).expect("makes");
    std::fs::write(data.join("file"), "content").expect("writes");
    let (port, gone) = (free_port(), free_port());
    work.configure(&format!(
        "[agent]\nlisten = \"127.0.0.1:{port}\"\n[clusters.disk]\nstore = \"files\"\n[clusters.disk.nodes.here]\ndata_directory = {data:?}\nagent = \"http://localhost:{port}\"\n[clusters.disk.nodes.there]\nagent = \"http://127.0.0.1:{gone}\"\n"
    ));
    let configuration = work.path(".config/tintype/tintype.toml");
    let process = Agent::spawn(&work, &configuration).spawn().expect("tintyped starts");
    let agent = Agent { work: &work, port, configuration, process };
    agent.wait();
    work.succeed(&["init"]);
    let token = std::fs::metadata(work.path("state/agent.token")).expect("a token");
    assert_eq!((token.permissions().mode() & 0o777, token.len()), (0o600, 65));
    assert_eq!(agent.request("POST", "/v1/clusters/disk/nodes/here/snapshots/x/describe", None, "{}").0, 401);

    let output = work.run(&["snapshot", "disk", "--partial"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("there: its agent") && text.contains(&gone.to_string()), "{text}");
    let output = work.run(&["snapshot", "disk", "--node", "here", "--json"]);
    let report: Value = serde_json::from_str(&succeeded("snapshot", &output)).expect("JSON");
    assert_eq!(
        (&report["nodes"]["here"]["status"], &report["nodes"]["here"]["new_bytes"]),
        (&"completed".into(), &0.into()),
        "{report}"
    );
    assert_eq!(work.succeed(&["list", &format!("disk/{}/here", report["date"].as_str().expect("a date"))]).trim(), "file");

    let refused = work.run(&["snapshot", "disk", "--capture", "save"]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    let mut stop = Command::new("kill");
    assert!(stop.args(["-TERM", &agent.process.id().to_string()]).status().expect("runs").success());
    let mut agent = agent;
    assert!(agent.process.wait().expect("a child").success(), "{}", agent.log());
}

/// A certificate authority, or a certificate for 127.0.0.1 that `signer` signs.
fn certify(place: &Path, name: &str, signer: Option<&str>) {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", &format!("/CN={name}")]);
    command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]).current_dir(place);
    match signer {
        Some(signer) => command
            .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-CA", &format!("{signer}.pem"), "-CAkey", &format!("{signer}.key")]),
        None => command.args(["-addext", "basicConstraints=critical,CA:TRUE"]),
    };
    let made = command.output().expect("openssl is there: `apt-get install openssl`");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn off_the_loopback_interface_both_sides_show_certificates_or_there_is_no_agent() {
    let work = Workplace::new();
    let place = work.path("certificates");
    std::fs::create_dir(&place).expect("makes");
    for (name, signer) in [("ours", None), ("theirs", None), ("host", Some("ours")), ("stranger", Some("theirs"))] {
        certify(&place, name, signer);
    }
    let tls = |name: &str, ca: Option<&str>| {
        let path = |file: String| format!("{:?}", place.join(file));
        let ca = ca.map(|ca| format!(", ca = {}", path(format!("{ca}.pem")))).unwrap_or_default();
        format!("tls = {{ cert = {}, key = {}{ca} }}", path(format!("{name}.pem")), path(format!("{name}.key")))
    };
    let port = free_port();
    for (keys, words) in [
        (String::new(), "others on the network could read"),
        (tls("host", None), "anybody on the network could give orders"),
        (tls("nobody", Some("ours")), "nobody.pem"),
        (tls("host", Some("nobody")), "nobody.pem"),
    ] {
        work.configure(&format!("[agent]\nlisten = \"0.0.0.0:{port}\"\n{keys}\n"));
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_tintyped"));
        work.prepare(&mut daemon);
        let output = daemon.output().expect("tintyped starts");
        assert!(output.status.code() == Some(2) && said(&output).contains(words), "{keys}: {}", said(&output));
    }

    let data = work.path("data");
    std::fs::create_dir(&data).expect("makes");
    std::fs::write(data.join("file"), "content").expect("writes");
    let clusters = format!("[clusters.disk]\nstore = \"files\"\n[clusters.disk.nodes.here]\ndata_directory = {data:?}\n");
    let agent = Agent::start(&work, "one", &tls("host", Some("ours")), &clusters);
    let with = |keys: &str, url: &str| {
        let nodes = format!("[clusters.disk]\nstore = \"files\"\n[clusters.disk.nodes.here]\nagent = \"{url}\"\n");
        work.configure(&format!("[agent]\n{keys}\n{nodes}"));
        work.run(&["snapshot", "disk"])
    };
    work.configure("");
    work.succeed(&["init"]);
    let url = format!("https://127.0.0.1:{}", agent.port);
    succeeded("with a certificate of ours", &with(&tls("host", Some("ours")), &url));
    for (keys, what) in [
        (tls("stranger", Some("ours")), "another's certificate"),
        (tls("host", Some("theirs")), "an authority that is not the agent's"),
    ] {
        let output = with(&keys, &url);
        assert!(output.status.code() == Some(1) && said(&output).contains("here: its agent"), "{what}: {}", said(&output));
    }
    let output = with("", "http://10.255.255.1:7070");
    assert!(output.status.code() == Some(2) && said(&output).contains("would show the token"), "{}", said(&output));
    let output = with("", &agent.url());
    assert!(output.status.code() == Some(1), "without TLS: {}", said(&output));
}
