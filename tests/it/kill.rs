//! `kill -9` of a snapshot at any instant: no store stays paused or changed, nothing half-made is listed, the next one succeeds.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::chains::Chains;
use crate::support::command::Workplace;
use crate::support::effort::{Random, effort, tell};
use crate::support::redis::{Server, cluster, redis_70};

/// What the snapshots are told; a node ends a pause after this by itself.
const PAUSE: Duration = Duration::from_secs(2);
/// For a machine that is busy with other things than the pause.
const MARGIN: Duration = Duration::from_secs(3);
const WRITERS: usize = 4;
/// The pause is a few per cent of a snapshot: every so many kills are aimed at it …
const AIMED_EVERY: usize = 3;
/// … so long at most after the command said that it begins.
const AIM: Duration = Duration::from_millis(8);
/// A write that waits so long was held back by a pause.
const HELD_BACK: Duration = Duration::from_millis(200);
/// Settings that a capture may change for an instant.
const SETTINGS: [&str; 3] = ["repl-diskless-sync", "repl-diskless-sync-delay", "save"];
/// Rounds between two looks at every byte of all snapshots, which take longer with every one.
const ALL_EVERY: usize = 100;

fn settings(servers: &[Server]) -> Vec<String> {
    let get = |server: &Server| SETTINGS.map(|name| server.command(&["CONFIG", "GET", name]));
    servers.iter().flat_map(get).collect()
}

/// The longest that a node needs to accept a write.
pub fn longest_wait(servers: &[Server]) -> Duration {
    let waits = std::thread::scope(|scope| {
        let threads: Vec<_> = servers.iter().map(|server| scope.spawn(|| wait_of(server))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a write is accepted")).collect::<Vec<_>>()
    });
    waits.into_iter().max().unwrap_or_default()
}

fn wait_of(server: &Server) -> Duration {
    let began = Instant::now();
    // It names no key, so that every shard accepts it, and a pause holds it back like any write.
    server.command(&["PUBLISH", "taken", "again"]);
    began.elapsed()
}

#[test]
fn a_snapshot_killed_at_any_instant_leaves_nothing_paused_changed_or_half_listed() {
    let mut random = Random::begin("kill");
    let servers = cluster(&redis_70(), 3, &[]);
    let _chains = Chains::start(&servers, WRITERS, &mut random);
    let before = settings(&servers);
    let work = Workplace::new();
    work.succeed(&["init"]);
    let address = format!("127.0.0.1:{}", servers[0].port);
    let snapshot = ["snapshot", "live", "--redis", &address, "--max-pause", "2s"];

    let mut durations: Vec<Duration> = (0..3)
        .map(|_| {
            let began = Instant::now();
            work.succeed(&snapshot);
            began.elapsed()
        })
        .collect();
    durations.sort_unstable();
    let typical = durations[1];

    let rounds = effort(15, 500);
    let (mut killed, mut held_back, mut longest, mut taken) = (0, 0, Duration::ZERO, durations.len());
    for round in 0..rounds {
        let mut running = work.command(&snapshot).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("tintype starts");
        let mut notes = BufReader::new(running.stderr.take().expect("a pipe")).lines();
        let is_aimed = round % AIMED_EVERY == 0;
        if is_aimed {
            let found = notes.find(|line| line.as_ref().is_ok_and(|line| line.contains("pausing writes")));
            assert!(found.is_some(), "round {round}: the command never came to the pause");
        }
        let delay = random.duration(if is_aimed { AIM } else { typical });
        std::thread::sleep(delay);
        running.kill().expect("a child");
        // Succeeded before it was killed: then it is listed.
        let was_killed = !running.wait().expect("a child").success();
        killed += usize::from(was_killed);
        let place = format!("round {round}, aimed {is_aimed}, killed {was_killed} after {delay:?} of {typical:?}");

        let wait = longest_wait(&servers);
        assert!(wait <= PAUSE + MARGIN, "{place}: a write waited {wait:?}");
        longest = longest.max(wait);
        held_back += usize::from(wait > HELD_BACK);
        // Sent before the kill, it may be executed a little later.
        servers[0].wait_for(&format!("settings as they were ({place})"), |_| settings(&servers) == before);
        // No other than the newest can be of this round.
        work.succeed(&["verify", "live/latest", "--depth", "hashed", "--quiet"]);

        let output = work.run(&snapshot);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{place}: the next snapshot: {text}");
        taken += 1 + usize::from(!was_killed);
        assert_eq!(settings(&servers), before, "{place}: after the next snapshot");
        if round % ALL_EVERY == ALL_EVERY - 1 {
            work.succeed(&["verify", "--depth", "listed", "--quiet"]);
        }
    }
    work.succeed(&["verify", "--depth", "hashed", "--quiet"]);
    let listed = work.succeed(&["list", "live"]).lines().count();
    assert!(listed >= taken, "{taken} succeeded and {listed} are listed");
    tell(&format!(
        "{killed} of {rounds} killed within {typical:?}, {held_back} of them inside the pause, where a write waited {longest:?} at most; {listed} listed"
    ));
}
