//! A whole Redis Cluster with replicas on this host: restored, undone, rolled back, and nobody fails over.

use std::time::Duration;

use crate::support::command::{Workplace, succeeded, tintype};
use crate::support::mount::wait_for;
use crate::support::redis::PATIENCE;
use crate::support::store::Store;

const SETTINGS: &str = "cluster-enabled yes\ncluster-node-timeout 2000\nsave \"\"\nrepl-diskless-sync-delay 0\nenable-debug-command local\nrepl-ping-replica-period 1";
const SHARDS: usize = 3;
const KEYS: usize = 900;

/// Masters first, then a replica of each in the same order.
struct Ring {
    stores: Vec<Store>,
    work: Workplace,
}

fn bus(store: &Store) -> u16 {
    if store.port > 32768 { store.port - 10000 } else { store.port + 10000 }
}

/// The text that a server answers; empty when it does not, or with something else.
pub fn ask(store: &Store, words: &[&str]) -> String {
    let value: Option<redis::Value> = store.try_connection().and_then(|mut connection| {
        let mut command = redis::cmd(words[0]);
        words[1..].iter().for_each(|word| {
            command.arg(*word);
        });
        command.query(&mut connection).ok()
    });
    match value {
        Some(redis::Value::BulkString(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Some(redis::Value::VerbatimString { text, .. } | redis::Value::SimpleString(text)) => text,
        Some(redis::Value::Okay) => "OK".to_owned(),
        _ => String::new(),
    }
}

impl Ring {
    fn new() -> Self {
        let stores: Vec<Store> = (0..2 * SHARDS).map(|_| Store::new(SETTINGS)).collect();
        for store in &stores {
            store.start();
        }
        let first = &stores[0];
        for (index, store) in stores.iter().enumerate() {
            if index < SHARDS {
                let (from, to) = (16384 * index / SHARDS, 16384 * (index + 1) / SHARDS - 1);
                store.command(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]);
                store.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
            }
            store.command(&["CLUSTER", "MEET", "127.0.0.1", &first.port.to_string(), &bus(first).to_string()]);
        }
        let ring = Self { stores, work: Workplace::new() };
        let all = format!("cluster_known_nodes:{}", 2 * SHARDS);
        wait_for("everybody knows everybody", PATIENCE, || {
            ring.stores.iter().all(|store| ask(store, &["CLUSTER", "INFO"]).contains(&all))
        });
        for (master, replica) in ring.shards() {
            let id = ask(master, &["CLUSTER", "MYID"]);
            wait_for("a replica follows", PATIENCE, || ask(replica, &["CLUSTER", "REPLICATE", &id]) == "OK");
        }
        ring.wait_well("at first");
        ring.configure(true);
        ring
    }

    fn shards(&self) -> impl Iterator<Item = (&Store, &Store)> {
        self.stores[..SHARDS].iter().zip(&self.stores[SHARDS..])
    }

    fn configure(&self, with_replicas: bool) {
        let mut text = String::new();
        for (index, store) in self.stores.iter().enumerate() {
            let (shard, is_replica) = (index % SHARDS + 1, index >= SHARDS);
            if is_replica && !with_replicas {
                continue;
            }
            let site = store.site();
            let name = if is_replica { format!("node-{shard}-copy") } else { format!("node-{shard}") };
            text.push_str(&format!(
                "[clusters.prod.nodes.{name}]\naddress = \"redis://127.0.0.1:{}\"\ndata_directory = {:?}\nstop = {:?}\nstart = {:?}\n",
                store.port, store.data, site.stop, site.start
            ));
            if is_replica {
                text.push_str(&format!("replica_of = \"node-{shard}\"\n"));
            }
        }
        self.work.configure(&text);
    }

    /// Everybody has the role that it began with, and replicas have all that their masters have.
    fn wait_well(&self, when: &str) {
        let is_well = |(master, replica): (&Store, &Store)| {
            ask(master, &["CLUSTER", "INFO"]).contains("cluster_state:ok")
                && ask(master, &["INFO", "replication"]).contains("role:master")
                && ask(replica, &["INFO", "replication"]).contains("master_link_status:up")
                && !ask(master, &["DEBUG", "DIGEST"]).is_empty()
                && ask(master, &["DEBUG", "DIGEST"]) == ask(replica, &["DEBUG", "DIGEST"])
        };
        wait_for(&format!("the ring is well {when}"), PATIENCE, || self.shards().all(is_well));
    }

    /// Every key on the master whose slot it has.
    fn fill(&self, word: &str) {
        for (master, _) in self.shards() {
            master.command(&["FLUSHALL"]);
        }
        let mut connections: Vec<_> = self.shards().map(|(master, _)| master.try_connection().expect("connects")).collect();
        for key in 0..KEYS {
            let taken = connections.iter_mut().any(|connection| {
                redis::cmd("SET").arg(format!("key:{key}")).arg(format!("{word}:{key:0300}")).query::<()>(connection).is_ok()
            });
            assert!(taken, "key {key} has an owner");
        }
        self.wait_well(word);
    }

    fn digests(&self) -> Vec<String> {
        self.shards().map(|(master, _)| ask(master, &["DEBUG", "DIGEST"])).collect()
    }

    fn kept(&self) -> usize {
        self.stores.iter().map(|store| store.kept().len()).sum()
    }
}

/// The whole cluster, without a question.
pub const RESTORE: [&str; 5] = ["restore", "prod/latest", "--yes", "--confirm", "prod"];

#[test]
fn a_ring_with_replicas_is_restored_undone_and_rolled_back_and_nobody_fails_over() {
    let ring = Ring::new();
    let work = &ring.work;
    ring.fill("stored");
    let stored = ring.digests();
    work.succeed(&["init"]);
    let text = work.succeed(&["snapshot", "prod"]);
    assert!(!text.contains("copy"), "replicas are not stored: {text}");
    ring.fill("live");
    let live = ring.digests();

    // Without the replicas a restore would be failed over, and is refused before anything is stopped.
    ring.configure(false);
    let refused = work.run(&RESTORE);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("replica_of = \"node-1\""), "{said}");
    ring.configure(true);
    let plan = work.run(&["restore", "prod/latest", "--confirm", "prod", "--dry-run"]);
    let plan = succeeded("the plan", &plan);
    assert!(plan.contains("node-2-copy") && plan.contains("masters before replicas"), "{plan}");

    let text = work.succeed(&RESTORE);
    assert!(text.contains("restored prod/"), "{text}");
    ring.wait_well("after the restore");
    assert_eq!(ring.digests(), stored);

    let text = work.succeed(&["rollback", "prod", "--yes"]);
    assert_eq!(text.lines().filter(|line| line.contains("is in place again")).count(), 2 * SHARDS, "{text}");
    ring.wait_well("after the rollback");
    assert_eq!(ring.digests(), live);
    work.succeed(&["settle", "prod", "--yes"]);
    assert_eq!(ring.kept(), 0);

    // One replica does not come back: all nodes do, to what they were.
    let start = ring.stores[SHARDS + 1].root.path().join("start");
    let good = std::fs::read_to_string(&start).expect("reads");
    let once = ring.stores[0].root.path().join("failed-once");
    std::fs::write(
        &start,
        good.replace("#!/bin/sh\n", &format!("#!/bin/sh\n[ -e {0} ] || {{ touch {0}; exit 7; }}\n", once.display())),
    )
    .expect("writes");
    let undone = work.run(&RESTORE);
    let said = String::from_utf8_lossy(&undone.stdout).into_owned();
    assert!(undone.status.code() == Some(1) && said.contains("every node is as it was"), "{said}");
    assert!(once.exists(), "its start was tried");
    ring.wait_well("after a restore that failed");
    assert_eq!(ring.digests(), live);

    // A replica that runs under a wrong name is told.
    std::fs::write(&start, good).expect("writes");
    ring.stores[SHARDS].command(&["CLUSTER", "REPLICATE", &ask(&ring.stores[1], &["CLUSTER", "MYID"])]);
    wait_for("the change", Duration::from_secs(10), || {
        let refused = work.run(&RESTORE);
        String::from_utf8_lossy(&refused.stdout).contains("node-1-copy: it is no replica of node-1 now")
    });
    assert_eq!(ring.digests(), live);
}

#[test]
fn a_test_cluster_is_refreshed_from_production_by_one_line_and_keeps_its_own_identity() {
    let settings = "cluster-enabled yes\ncluster-node-timeout 500\nsave \"\"";
    let (production, staging) = (Store::new(settings), Store::new(settings));
    for store in [&production, &staging] {
        store.start().command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
        wait_for("it is well", PATIENCE, || ask(store, &["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    }
    let work = Workplace::new();
    let site = staging.site();
    work.configure(&format!(
        "{}[clusters.staging.nodes.db-a]\naddress = \"redis://127.0.0.1:{}\"\ndata_directory = {:?}\nstop = {:?}\nstart = {:?}\n",
        production.table(),
        staging.port,
        staging.data,
        site.stop,
        site.start
    ));
    work.succeed(&["init"]);
    for key in 0..500 {
        production.command(&["SET", &format!("key:{key}"), "production"]);
    }
    work.succeed(&["snapshot", "prod"]);
    production.command(&["SET", "key:0", "later"]);
    staging.command(&["SET", "key:0", "staging"]);
    let identities = [&production, &staging].map(|store| ask(store, &["CLUSTER", "MYID"]));
    // The newest of a day, as `date -u +%F` says it; taken from the snapshot, which may be of the minute before midnight.
    let day = work.succeed(&["list", "prod"]).lines().find(|line| line.len() > 10).expect("one is listed")[..10].to_owned();
    let mut line = std::process::Command::new("sh");
    line.args(["-ec", "\"$0\" -q restore \"prod/$1\" --to staging --yes --confirm staging"]).arg(tintype()).arg(day);
    work.prepare(&mut line);
    succeeded("the refresh", &line.output().expect("a shell"));
    assert_eq!((staging.keys(), staging.get("key:0").as_deref()), (500, Some("production")));
    assert_eq!(production.get("key:0").as_deref(), Some("later"));
    assert_eq!([&production, &staging].map(|store| ask(store, &["CLUSTER", "MYID"])), identities);
    assert!(!ask(&staging, &["CLUSTER", "NODES"]).contains(&identities[0]), "the two know nothing of one another");
    // Without the name of what is lost nothing happens.
    let refused = work.run(&["restore", "prod/latest", "--to", "staging", "--yes", "--confirm", "prod"]);
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stdout));
}
