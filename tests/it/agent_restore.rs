//! Restores through agents: real servers, each with an agent whose configuration alone knows where it is, and whoever dies.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::agent::{Agent, TOKEN, private, said};
use crate::support::command::Workplace;
use crate::support::effort::{Random, effort, tell};
use crate::support::mount::wait_for;
use crate::support::redis::PATIENCE;
use crate::support::store::Store;

const KEYS: usize = 300;
/// After this an agent takes its coordinator for dead.
const SILENCE: Duration = Duration::from_secs(60);

/// Three stores: two whose agents act for them, and one beside the command.
struct Hosts<'a> {
    stores: &'a [Store],
    agents: Vec<Agent<'a>>,
    work: &'a Workplace,
}

fn table(node: usize, store: &Store) -> String {
    let site = store.site();
    format!(
        "[clusters.prod.nodes.node-{node}]\naddress = \"redis://127.0.0.1:{}\"\ndata_directory = {:?}\nstop = {:?}\nstart = {:?}\n",
        store.port, store.data, site.stop, site.start
    )
}

fn stores() -> Vec<Store> {
    (0..3).map(|_| Store::new("save \"\"")).collect()
}

impl<'a> Hosts<'a> {
    /// All hold `value` in every key, and that is stored.
    fn new(work: &'a Workplace, stores: &'a [Store], value: &str) -> Self {
        private(&work.path("token"), TOKEN);
        let agents: Vec<_> =
            (1..3).map(|node| Agent::with_token(work, &format!("host-{node}"), &table(node, stores[node - 1].start()))).collect();
        stores[2].start();
        let hosts = Self { stores, agents, work };
        hosts.configure(&hosts.agents.iter().map(Agent::url).collect::<Vec<_>>());
        hosts.fill(value);
        work.succeed(&["init"]);
        work.succeed(&["snapshot", "prod"]);
        hosts
    }

    /// Where the command finds the agents; it knows nothing else of their nodes.
    fn configure(&self, urls: &[String]) {
        let nodes: String = urls
            .iter()
            .enumerate()
            .map(|(index, url)| format!("[clusters.prod.nodes.node-{}]\nagent = \"{url}\"\n", index + 1))
            .collect();
        let token = self.work.path("token");
        self.work.configure(&format!("[agent]\ntoken_file = {token:?}\n{nodes}{}", table(3, &self.stores[2])));
    }

    fn fill(&self, value: &str) {
        for (node, store) in self.stores.iter().enumerate() {
            let mut connection = store.try_connection().expect("connects");
            let mut line = redis::pipe();
            for key in 0..KEYS {
                line.cmd("SET").arg(format!("key-{key}")).arg(format!("{value} of {node}")).ignore();
            }
            line.query::<()>(&mut connection).expect("writes");
        }
    }

    /// What each store holds in a key, `None` while it is not there.
    fn values(&self) -> Vec<Option<String>> {
        let value = |(node, store): (usize, &Store)| {
            let mut connection = store.try_connection()?;
            let value: String = redis::cmd("GET").arg(format!("key-{}", KEYS / 2)).query(&mut connection).ok()?;
            value.strip_suffix(&format!(" of {node}")).map(str::to_owned)
        };
        self.stores.iter().enumerate().map(value).collect()
    }

    fn all_hold(&self, value: &str) -> bool {
        self.values().iter().all(|found| found.as_deref() == Some(value))
    }
}

const RESTORE: [&str; 5] = ["restore", "prod/latest", "--yes", "--confirm", "prod"];

#[test]
fn nodes_of_other_hosts_are_restored_rolled_back_and_settled_by_their_agents() {
    let (stores, work) = (stores(), Workplace::new());
    let hosts = Hosts::new(&work, &stores, "stored");
    hosts.fill("newer");
    let plan = work.run(&["restore", "prod/latest", "--dry-run"]);
    let text = said(&plan);
    assert_eq!(plan.status.code(), Some(1), "{text}");
    assert!(text.contains("node-1: it holds newer data than the snapshot"), "{text}");
    let plan = work.succeed(&["restore", "prod/latest", "--dry-run", "--confirm", "prod"]);
    for (agent, store) in hosts.agents.iter().zip(&stores) {
        assert!(plan.contains(&format!("in {}, by {}", store.data.display(), agent.url())), "{plan}");
    }
    assert!(hosts.all_hold("newer"), "a plan touches nothing");

    let report: Value = serde_json::from_str(&work.succeed(&[&RESTORE[..], &["--json"]].concat())).expect("JSON");
    assert!(hosts.all_hold("stored"), "{:?}", hosts.values());
    for node in ["node-1", "node-2", "node-3"] {
        let restored = &report["report"]["nodes"][node];
        assert_eq!((&restored["keys"], &restored["is_compared"]), (&KEYS.into(), &true.into()), "{report}");
    }
    let id = report["plan"]["id"].as_str().expect("an id");
    let status: Value = serde_json::from_str(&work.succeed(&["status", id, "--json"])).expect("JSON");
    assert_eq!((&status["status"], &status["restored_into"]), (&"completed".into(), &"prod".into()), "{status}");
    for agent in &hosts.agents {
        let (code, text) = agent.request("GET", &format!("/v1/clusters/prod/nodes/{}", node_of(&hosts, agent)), Some(TOKEN), "");
        let standing: Value = serde_json::from_str(&text).expect("JSON");
        let restore = &standing["restore"];
        assert_eq!((code, &restore["restore"], &restore["order"]), (200, &id.into(), &"finish".into()), "{text}");
    }

    let text = work.succeed(&["rollback", "prod", "--yes"]);
    assert!(text.matches("is in place again").count() == 3 && hosts.all_hold("newer"), "{text} {:?}", hosts.values());
    let text = work.succeed(&["settle", "prod", "--yes"]);
    assert_eq!(text.matches("1 kept directories were deleted").count(), 3, "{text}");
    assert_eq!(work.run(&["settle", "prod", "--yes"]).status.code(), Some(4), "nothing is left");
    for store in &stores {
        let parent = store.data.parent().expect("it has one");
        let left =
            std::fs::read_dir(parent).expect("lists").flatten().map(|entry| entry.file_name().into_string().expect("text"));
        let left: Vec<_> = left.filter(|name| name.contains("tintype") || name.contains("before")).collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

fn node_of(hosts: &Hosts<'_>, agent: &Agent<'_>) -> String {
    format!("node-{}", 1 + hosts.agents.iter().position(|other| other.port == agent.port).expect("one of them"))
}

#[test]
fn an_agent_that_is_away_or_refuses_is_told_in_the_plan_and_nothing_is_stopped() {
    let (stores, work) = (stores(), Workplace::new());
    let mut hosts = Hosts::new(&work, &stores, "stored");
    hosts.fill("newer");
    let urls: Vec<_> = hosts.agents.iter().map(Agent::url).collect();
    hosts.agents[1].kill();
    let output = work.run(&RESTORE);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("node-2: its agent: ") && text.contains("nothing was touched"), "{text}");
    hosts.agents[1].start_again();

    // What the agent's own configuration does not name is not done, whoever asks.
    hosts.configure(&[urls[1].clone(), urls[0].clone()]);
    let text = said(&work.run(&RESTORE));
    assert!(
        text.contains("node-1: its agent: its agent knows these nodes of prod: node-2")
            || text.contains("knows these nodes of prod: node-2"),
        "{text}"
    );
    hosts.configure(&urls);

    // A stop command that fails: everybody goes on as before.
    let stop = stores[1].root.path().join("stop");
    let script = std::fs::read_to_string(&stop).expect("reads");
    std::fs::write(&stop, "#!/bin/sh\necho it will not >&2\nexit 7\n").expect("writes");
    let output = work.run(&RESTORE);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("node-2") && text.contains("every node is as it was"), "{text}");
    assert!(hosts.all_hold("newer"), "{:?}", hosts.values());
    std::fs::write(&stop, script).expect("writes");
    work.succeed(&RESTORE);
    assert!(hosts.all_hold("stored"), "{:?}", hosts.values());
}

#[test]
fn an_agent_that_dies_in_a_restore_leaves_all_nodes_as_they_were_or_all_restored() {
    let mut random = Random::begin("agents killed in restores");
    let (stores, work) = (stores(), Workplace::new());
    let mut hosts = Hosts::new(&work, &stores, "stored");
    let rounds = effort(5, 60);
    let mut restored = 0;
    for round in 0..rounds {
        hosts.fill("newer");
        let mut running = work.command(&RESTORE).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("tintype starts");
        let mut notes = BufReader::new(running.stderr.take().expect("a pipe")).lines();
        let word = ["stage", "stop", "swap", "start", "check"][round % 5];
        let mut heard = Vec::new();
        let is_said = notes.any(|line| {
            heard.push(line.expect("text"));
            heard.last().is_some_and(|line| line == word)
        });
        assert!(is_said, "round {round}: it never came to {word}: {heard:?}");
        std::thread::sleep(random.duration(Duration::from_millis(60)));
        let victim = usize::from(random.next().is_multiple_of(2));
        hosts.agents[victim].kill();
        hosts.agents[victim].start_again();
        let rest: Vec<_> = notes.map_while(Result::ok).collect();
        let output = running.wait_with_output().expect("it ends");
        let text = format!("{}{}", rest.join("\n"), String::from_utf8_lossy(&output.stdout));
        let place = format!("round {round}, {word}, agent {victim}");
        restored += usize::from(output.status.success());
        let value = if output.status.success() { "stored" } else { "newer" };
        // The store of an agent that died is started again by what comes after it.
        if !hosts.all_hold(value) {
            panic!("{place}: {:?} in place of {value}\n{text}\n{}", hosts.values(), hosts.agents[victim].log());
        }
        if !output.status.success() {
            assert!(text.contains("every node is as it was"), "{place}: {text}");
        }
        let _nothing_left = work.run(&["settle", "prod", "--yes"]);
    }
    hosts.fill("newer");
    work.succeed(&RESTORE);
    assert!(hosts.all_hold("stored"), "{:?}", hosts.values());
    tell(&format!("{restored} of {rounds} restores succeeded although an agent was killed"));
}

#[test]
fn a_coordinator_that_dies_in_a_restore_leaves_all_nodes_of_agents_as_they_were_or_all_restored() {
    let mut random = Random::begin("coordinators of restores killed");
    let (stores, work) = (stores(), Workplace::new());
    let hosts = Hosts::new(&work, &stores, "stored");
    let rounds = effort(1, 8);
    let agents_hold = |value: &str| hosts.values()[..2].iter().all(|found| found.as_deref() == Some(value));
    for round in 0..rounds {
        hosts.fill("newer");
        let mut running = work.command(&RESTORE).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("tintype starts");
        let mut notes = BufReader::new(running.stderr.take().expect("a pipe")).lines();
        let word = ["swap", "check", "stage", "confirm"][round % 4];
        assert!(notes.any(|line| line.is_ok_and(|line| line == word)), "round {round}: it never came to {word}");
        std::thread::sleep(random.duration(Duration::from_millis(20)));
        running.kill().expect("a child");
        let is_done = running.wait().expect("a child").success();
        let began = Instant::now();
        let place = format!("round {round}, {word}, done {is_done}");
        let is_whole = || agents_hold("newer") || agents_hold("stored");
        // They wait for whoever gave the orders, and then find out what is true for all.
        let settled = || is_whole() && hosts.agents.iter().all(|agent| is_over(&hosts, agent));
        wait_for(&format!("{place}: all agents have ended it"), SILENCE + PATIENCE, settled);
        // The node beside the command died with it: the next one brings it to the same end.
        let next = said(&work.run(&["restore", "prod/latest", "--dry-run", "--confirm", "prod"]));
        assert!(hosts.all_hold("newer") || hosts.all_hold("stored"), "{place}: {:?}\n{next}", hosts.values());
        tell(&format!("{place}: {:?} after {:.0?}", hosts.values()[0], began.elapsed()));
        let _what_is_kept = work.run(&["settle", "prod", "--yes"]);
    }
    hosts.fill("newer");
    work.succeed(&RESTORE);
    assert!(hosts.all_hold("stored"), "{:?}", hosts.values());
}

/// The agent is not at work on a restore any more.
fn is_over(hosts: &Hosts<'_>, agent: &Agent<'_>) -> bool {
    let (_, text) = agent.request("GET", &format!("/v1/clusters/prod/nodes/{}", node_of(hosts, agent)), Some(TOKEN), "");
    let standing: Value = serde_json::from_str(&text).unwrap_or_default();
    standing["restore"].is_null() || standing["restore"]["is_gone"] == true
}
