//! Masters under a real Sentinel: found through it, snapshotted whichever server they are, restored without a failover.

use std::collections::HashMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::ring::{RESTORE, ask};
use crate::support::command::Workplace;
use crate::support::mount::wait_for;
use crate::support::redis::{PATIENCE, redis_70};
use crate::support::store::Store;

const SETTINGS: &str = "save \"\"\nrepl-diskless-sync-delay 0\nenable-debug-command local\nrepl-ping-replica-period 1";

/// A master and a replica of it, both running.
fn pair() -> (Store, Store) {
    let master = Store::new(SETTINGS);
    let replica = Store::new(&format!("{SETTINGS}\nreplicaof 127.0.0.1 {}", master.port));
    master.start();
    replica.start();
    (master, replica)
}

/// A Sentinel that fails over after three seconds, on its own. It ends with this.
struct Sentinel {
    process: Child,
    place: TempDir,
    port: u16,
}

impl Sentinel {
    fn of(master: &Store) -> Self {
        let place = tempfile::Builder::new().prefix("tintype-sentinel-").tempdir().expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let settings = format!(
            "port {port}\nbind 127.0.0.1\ndir {0}\nlogfile {0}/log\nsentinel monitor prod 127.0.0.1 {1} 1\n\
             sentinel down-after-milliseconds prod 3000\nsentinel failover-timeout prod 6000\n",
            place.path().display(),
            master.port
        );
        let file = place.path().join("sentinel.conf");
        std::fs::write(&file, settings).expect("writes");
        let process = Command::new(redis_70()).arg(file).arg("--sentinel").stdout(Stdio::null()).spawn().expect("starts");
        Self { process, place, port }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.path().join("log")).unwrap_or_default()
    }

    fn connection(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).ok()?;
        client.get_connection_with_timeout(Duration::from_secs(2)).ok()
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Port of the master and count of the replicas, as it knows them; nothing while it takes the master to be away.
    fn sees(&self) -> Option<(String, usize)> {
        let mut connection = self.connection()?;
        let ask = |what: &str| {
            let mut command = redis::cmd("SENTINEL");
            command.arg(what).arg("prod");
            command
        };
        let address: Vec<String> = ask("get-master-addr-by-name").query(&mut connection).ok()?;
        let replicas: Vec<redis::Value> = ask("replicas").query(&mut connection).ok()?;
        let master: HashMap<String, String> = ask("master").query(&mut connection).ok()?;
        // It has noticed that the master is there again.
        let is_up = master.get("flags").is_some_and(|flags| flags == "master");
        is_up.then_some((address.get(1)?.clone(), replicas.len()))
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Value of a key in the newest snapshot.
fn stored(work: &Workplace, place: &str, key: &str) -> Option<String> {
    work.succeed(&["restore", "prod/latest/prod", "--directory", place]);
    let loaded = Store::with_data("save \"\"", |_| work.path(place));
    loaded.start();
    loaded.get(key)
}

#[test]
fn a_master_is_found_through_sentinel_also_after_a_failover_and_not_while_it_is_down() {
    let (first, second) = pair();
    let (work, sentinel) = (Workplace::new(), Sentinel::of(&first));
    wait_for("Sentinel knows both", PATIENCE, || sentinel.sees() == Some((first.port.to_string(), 1)));
    wait_for("a replica", PATIENCE, || ask(&second, &["INFO", "replication"]).contains("master_link_status:up"));
    first.command(&["SET", "which", "first"]);
    work.succeed(&["init"]);
    // One address is all that has to be known.
    let (repository, written) = (work.path("repository").display().to_string(), work.path("written.toml"));
    let output = written.display().to_string();
    let arguments =
        ["setup", &sentinel.address(), "--cluster", "prod", "--yes", "--repository", &repository, "--output", &output];
    work.succeed(&arguments);
    let text = std::fs::read_to_string(written).expect("was written");
    assert!(text.contains(&format!("discover = \"redis://{}\"", sentinel.address())), "{text}");
    work.configure(&text);
    work.succeed(&["snapshot", "prod"]);
    assert_eq!(stored(&work, "one", "which").as_deref(), Some("first"));

    // The other server is the master now: it is the same cluster, and the same node.
    // It knows no good replica before it has asked it for itself.
    wait_for("the beginning of a failover", PATIENCE, || {
        let fail_over = |mut connection| redis::cmd("SENTINEL").arg("FAILOVER").arg("prod").query::<()>(&mut connection).is_ok();
        sentinel.connection().is_some_and(fail_over)
    });
    wait_for("the failover", PATIENCE, || sentinel.sees() == Some((second.port.to_string(), 1)));
    wait_for("a replica", PATIENCE, || ask(&first, &["INFO", "replication"]).contains("master_link_status:up"));
    second.command(&["SET", "which", "second"]);
    // A Sentinel has no password when its servers have one.
    second.command(&["CONFIG", "SET", "requirepass", "secret"]);
    let password = work.path("redis-password");
    std::fs::write(&password, "secret").expect("writes");
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("permits");
    let password = password.display().to_string();
    work.succeed(&["snapshot", "prod", "--redis", &sentinel.address(), "--redis-password-file", &password]);
    assert_eq!(stored(&work, "two", "which").as_deref(), Some("second"));
    let open = second.try_connection().and_then(|mut connection| {
        redis::cmd("AUTH").arg("secret").query::<()>(&mut connection).ok()?;
        redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("").query::<()>(&mut connection).ok()
    });
    assert!(open.is_some(), "the password is taken away");

    // With nobody to fail over to there is nothing that could be stored.
    assert!(first.run("stop").status.success() && second.run("stop").status.success());
    wait_for("Sentinel notices", PATIENCE, || sentinel.sees().is_none());
    let refused = work.run(&["snapshot", "prod"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("to be down"), "{said}");
}

#[test]
fn a_master_that_sentinel_watches_is_restored_with_its_replicas_and_stays_the_master() {
    let (master, replica) = pair();
    let work = Workplace::new();
    // Away for longer than Sentinel waits.
    let start = master.root.path().join("start");
    let slowly = std::fs::read_to_string(&start).expect("reads").replace("#!/bin/sh\n", "#!/bin/sh\nsleep 6\n");
    std::fs::write(&start, slowly).expect("writes");
    let copy = format!(
        "[clusters.prod.nodes.node-1-copy]\naddress = \"redis://127.0.0.1:{}\"\ndata_directory = {:?}\nstop = {:?}\nstart = {:?}\nreplica_of = \"node-1\"\n",
        replica.port,
        replica.data,
        replica.site().stop,
        replica.site().start
    );
    work.configure(&format!("{}{copy}", master.table()));
    let sentinel = Sentinel::of(&master);
    let is_well = || {
        let digest = ask(&master, &["DEBUG", "DIGEST"]);
        sentinel.sees() == Some((master.port.to_string(), 1))
            && ask(&replica, &["INFO", "replication"]).contains("master_link_status:up")
            && !digest.is_empty()
            && digest == ask(&replica, &["DEBUG", "DIGEST"])
    };
    wait_for("Sentinel knows both", PATIENCE, is_well);
    master.command(&["SET", "which", "stored"]);
    work.succeed(&["init"]);
    work.succeed(&["snapshot", "prod"]);
    master.command(&["SET", "which", "live"]);

    work.configure(&master.table());
    let refused = work.run(&RESTORE);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("Sentinel makes another one the master"), "{said}");
    assert_eq!(master.get("which").as_deref(), Some("live"));

    work.configure(&format!("{}{copy}", master.table()));
    for (command, value, times) in [(&RESTORE[..], "stored", 1), (&["rollback", "prod", "--yes"], "live", 2)] {
        work.succeed(command);
        wait_for("all is well again", PATIENCE, is_well);
        assert_eq!((master.get("which").as_deref(), replica.get("which").as_deref()), (Some(value), Some(value)));
        let log = sentinel.log();
        assert!(log.matches("+sdown master prod").count() >= times && !log.contains("+switch-master"), "{log}");
    }
    work.succeed(&["settle", "prod", "--yes"]);
}
