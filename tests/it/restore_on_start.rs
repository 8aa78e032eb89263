//! `restore_on_start`: stores whose directory is gone come back by themselves, and nothing else is ever touched.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::agent::{Agent, free_port, said};
use crate::support::command::Workplace;
use crate::support::effort::{Random, effort, tell};
use crate::support::mount::wait_for;
use crate::support::redis::PATIENCE;
use crate::support::store::Store;

const KEYS: usize = 3000;

/// `tintyped` with the configuration of the place, restoring only.
fn daemon(work: &Workplace) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tintyped"));
    work.prepare(&mut command);
    command.arg("--restore-only");
    command
}

fn restore(work: &Workplace) -> Output {
    daemon(work).output().expect("tintyped starts")
}

fn restored(work: &Workplace) -> String {
    let output = restore(work);
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

fn table(store: &Store, more: &str) -> String {
    format!(
        "[clusters.prod]\nrestore_on_start = true\n{more}\n[clusters.prod.nodes.node-1]\naddress = \"127.0.0.1:{}\"\ndata_directory = {:?}\n",
        store.port, store.data
    )
}

fn stop(store: &Store) {
    let output = store.run("stop");
    assert!(output.status.success(), "{}", said(&output));
}

fn keys(store: &Store) -> u64 {
    match store.command(&["DBSIZE"]) {
        redis::Value::Int(keys) => u64::try_from(keys).expect("a count"),
        other => panic!("{other:?}"),
    }
}

fn fill(store: &Store) {
    let text = "for i = 1, tonumber(ARGV[1]) do redis.call('SET', 'key:' .. i, string.rep('value', 20)) end";
    store.command(&["EVAL", text, "0", &KEYS.to_string()]);
}

/// Names beside a directory.
fn beside(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory.parent().expect("it has one")).expect("lists");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("lists").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_server_whose_directory_is_gone_starts_with_its_data_and_one_that_has_data_keeps_it() {
    for settings in ["save \"\"", "appendonly yes\nsave \"\""] {
        let (store, work) = (Store::new(settings), Workplace::new());
        work.configure(&table(&store, ""));
        work.succeed(&["init"]);
        store.start();
        fill(&store);
        work.succeed(&["snapshot", "prod"]);
        let before = beside(&store.data);
        stop(&store);
        std::fs::remove_dir_all(&store.data).expect("removes");
        restored(&work);
        assert_eq!(beside(&store.data), before, "{settings}: nothing is left aside");
        store.start();
        assert_eq!(keys(&store), KEYS as u64, "{settings}");

        // Emptied, and still there: its owner and mode stay.
        stop(&store);
        std::fs::remove_dir_all(&store.data).expect("removes");
        std::fs::create_dir_all(store.data.join("lost+found")).expect("makes");
        restored(&work);
        store.start();
        assert_eq!(keys(&store), KEYS as u64, "{settings}");

        // What is there is not touched, however old.
        store.command(&["SET", "written since", "1"]);
        store.command(&["SAVE"]);
        stop(&store);
        let said = restored(&work);
        store.start();
        assert!(keys(&store) == KEYS as u64 + 1 && !said.contains("it is restored"), "{settings}: {said}");
        stop(&store);
    }
}

#[test]
fn a_server_that_got_append_only_files_since_starts_with_what_was_stored_before() {
    let (store, work) = (Store::new("save \"\""), Workplace::new());
    work.configure(&table(&store, ""));
    work.succeed(&["init"]);
    store.start();
    fill(&store);
    let report: serde_json::Value = serde_json::from_str(&work.succeed(&["snapshot", "prod", "--json"])).expect("JSON");
    let first = report["date"].as_str().expect("a date");
    let configuration = store.root.path().join("redis.conf");
    let text = std::fs::read_to_string(&configuration).expect("reads");
    std::fs::write(&configuration, format!("{text}\nappendonly yes\n")).expect("writes");
    store.command(&["CONFIG", "SET", "appendonly", "yes"]);
    store.command(&["SET", "written since", "1"]);
    work.succeed(&["snapshot", "prod"]);
    stop(&store);
    std::fs::remove_dir_all(&store.data).expect("removes");
    work.configure(&table(&store, &format!("restore_date = {first:?}")));
    restored(&work);
    store.start();
    assert_eq!(keys(&store), KEYS as u64, "as it was then, and not empty");
    stop(&store);
}

#[test]
fn what_cannot_be_restored_ends_badly_and_what_need_not_be_is_left_alone() {
    let (store, work) = (Store::new("save \"\""), Workplace::new());
    work.configure(&table(&store, ""));
    work.succeed(&["init"]);
    std::fs::remove_dir_all(&store.data).expect("removes");
    // A cluster of which there is nothing starts for the first time.
    let text = restored(&work);
    assert!(text.contains("no snapshot of this cluster was ever taken") && !store.data.exists(), "{text}");

    std::fs::create_dir(&store.data).expect("makes");
    store.start();
    fill(&store);
    work.succeed(&["snapshot", "prod"]);
    // It runs, and has saved nothing yet.
    let text = restored(&work);
    assert!(text.contains("its store runs") && beside(&store.data.join("x")).is_empty(), "{text}");
    stop(&store);

    let refused = |what: &str| {
        let output = restore(&work);
        let text = said(&output);
        assert!(output.status.code() == Some(1) && text.contains("prod/node-1") && text.contains(what), "{what}: {text}");
        assert!(beside(&store.data.join("x")).is_empty(), "{what}");
    };
    work.configure(&table(&store, "restore_date = \"1999\""));
    refused("restore_date");
    work.configure(&table(&store, ""));
    std::fs::rename(work.path("repository"), work.path("away")).expect("renames");
    refused("repository");
    std::fs::rename(work.path("away"), work.path("repository")).expect("renames");
    // Whoever answers at its address, and does not let us ask, runs.
    let stranger = std::net::TcpListener::bind(("127.0.0.1", store.port)).expect("the server is gone");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for stream in stranger.incoming() {
                use std::io::Write;
                let Ok(mut stream) = stream else { break };
                if stream.write_all(b"-ERR not for you\r\n").is_err() || beside(&work.path("x")).contains(&"over".to_owned()) {
                    break;
                }
            }
        });
        refused("");
        std::fs::write(work.path("over"), "").expect("writes");
        let _wakes_it = std::net::TcpStream::connect(("127.0.0.1", store.port));
    });
    drop(stranger);

    // The same configuration on another host.
    let elsewhere = table(&store, "").replace("127.0.0.1", "192.0.2.1");
    work.configure(&elsewhere);
    restored(&work);
    assert!(beside(&store.data.join("x")).is_empty(), "it is a node of another host");
    // A name that leads nowhere says nothing of where the node is.
    let nameless = table(&store, "").replace("127.0.0.1", "node-1.invalid");
    work.configure(&nameless);
    refused("where it is could not be found out");
    let said_so = |word: &str| format!("{nameless}restore_on_start = {word}\n");
    work.configure(&said_so("false"));
    restored(&work);
    std::fs::write(store.data.join("dump.rdb"), "something").expect("writes");
    work.configure(&nameless);
    restored(&work);
    // As a package leaves it that starts its server once.
    work.configure(&table(&store, ""));
    let text = restored(&work);
    assert!(text.contains("holds next to nothing") && text.contains("dump.rdb"), "{text}");
    std::fs::write(store.data.join("dump.rdb"), vec![0; 1 << 20]).expect("writes");
    let text = restored(&work);
    assert!(!text.contains("next to nothing"), "{text}");
    std::fs::remove_file(store.data.join("dump.rdb")).expect("removes");
    work.configure(&table(&store, "").replace("restore_on_start = true", ""));
    assert_eq!(restore(&work).status.code(), Some(2), "nothing asks for it");
    work.configure(&table(&store, ""));
    restored(&work);
    store.start();
    assert_eq!(keys(&store), KEYS as u64);
    stop(&store);
}

#[test]
fn one_that_is_told_to_stop_ends_badly_and_starts_nothing() {
    let (store, work) = (Store::new("save \"\""), Workplace::new());
    std::fs::remove_dir_all(&store.data).expect("removes");
    // Its name is looked up for longer than this takes.
    work.configure(&table(&store, "").replace("127.0.0.1", "node-1.invalid"));
    let running = daemon(&work).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("tintyped starts");
    let pid = rustix::process::Pid::from_child(&running);
    let catches_it = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.id())).expect("a child");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask");
        u64::from_str_radix(caught.trim(), 16).expect("hexadecimal") & (1 << 14) != 0
    };
    wait_for("SIGTERM is caught", PATIENCE, catches_it);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a child");
    let began = Instant::now();
    let output = running.wait_with_output().expect("a child");
    assert!(output.status.code() == Some(1) && said(&output).contains("told to stop"), "{:?} {}", output.status, said(&output));
    assert!(began.elapsed() < PATIENCE && !store.data.exists());
}

#[test]
fn a_daemon_answers_only_when_the_stores_of_its_host_may_start() {
    let (store, work) = (Store::new("save \"\""), Workplace::new());
    let port = free_port();
    work.configure(&format!("[agent]\nlisten = \"127.0.0.1:{port}\"\n{}", table(&store, "")));
    work.succeed(&["init"]);
    store.start();
    fill(&store);
    work.succeed(&["snapshot", "prod"]);
    stop(&store);
    std::fs::remove_dir_all(&store.data).expect("removes");
    let configuration = work.path(".config/tintype/tintype.toml");
    let process = Agent::spawn(&work, &configuration).spawn().expect("tintyped starts");
    let agent = Agent { work: &work, port, configuration, process };
    agent.wait();
    assert!(store.data.join("dump.rdb").exists(), "{}", agent.log());
    store.start();
    assert_eq!(keys(&store), KEYS as u64);
    stop(&store);
}

#[test]
fn a_restore_that_is_killed_at_any_instant_leaves_nothing_or_all_and_the_next_start_finishes_it() {
    let mut random = Random::begin("restore on start");
    let work = Workplace::new();
    let data = work.path("place/data");
    std::fs::create_dir_all(data.join("folder")).expect("makes");
    let mut noise = vec![0; 24 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    for (index, part) in noise.chunks(3 << 20).enumerate() {
        std::fs::write(data.join("folder").join(index.to_string()), part).expect("writes");
    }
    let nodes = format!("[clusters.disk.nodes.here]\ndata_directory = {data:?}\n");
    work.configure(&format!("[clusters.disk]\nstore = \"files\"\nrestore_on_start = true\n{nodes}"));
    work.succeed(&["init"]);
    work.succeed(&["snapshot", "disk"]);
    let is_whole = || {
        noise
            .chunks(3 << 20)
            .enumerate()
            .all(|(index, part)| std::fs::read(data.join("folder").join(index.to_string())).is_ok_and(|read| read == part))
    };
    let lose = || std::fs::remove_dir_all(&data).expect("removes");
    lose();
    let began = Instant::now();
    restored(&work);
    let typical = began.elapsed();
    assert!(is_whole());
    let (rounds, mut unfinished) = (effort(8, 100), 0);
    for round in 0..rounds {
        lose();
        let mut running = daemon(&work).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tintyped starts");
        std::thread::sleep(random.duration(typical.max(Duration::from_millis(50))));
        running.kill().expect("a child");
        running.wait().expect("a child");
        let is_absent = !data.exists();
        unfinished += usize::from(is_absent);
        assert!(is_absent || is_whole(), "round {round}: neither nothing nor all");
        restored(&work);
        assert!(is_whole(), "round {round}");
        assert_eq!(beside(&data), ["data"], "round {round}: something is left aside");
    }
    tell(&format!("{unfinished} of {rounds} killed restores had placed nothing yet"));
}
