//! `kill -9` of a restore at any instant: the old data or the restored data, whole, and what the README says mends the rest.

use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::command::{Workplace, succeeded};
use crate::support::effort::{Random, effort, tell};
use crate::support::redis::PATIENCE;
use crate::support::store::Store;

const RESTORE: [&str; 5] = ["restore", "prod/latest", "--yes", "--confirm", "prod"];
const KEYS: usize = 3000;
/// Some steps take microseconds: two kills of three are aimed at one, in turn …
const STEPS: [&str; 5] = ["stop", "swap", "start", "stage", "check"];
/// … so long at most after the command said that it begins.
const AIM: Duration = Duration::from_millis(30);
/// A store lets writes go by itself so long after the restore died that held them back; with a margin for a busy machine.
const HELD_BACK_MAX: Duration = Duration::from_secs(10 + 3);

/// Other values under the same keys, which no two calls with different words share.
fn fill(store: &Store, word: &str) {
    let mut pipeline = redis::pipe();
    pipeline.cmd("FLUSHALL").ignore();
    for key in 0..KEYS {
        pipeline.cmd("SET").arg(format!("key:{key}")).arg(format!("{word}:{key:01000}")).ignore();
    }
    pipeline.query::<()>(&mut store.try_connection().expect("connects")).expect("writes");
}

/// Of everything that it holds; `None` where it does not run or still loads.
fn digest(store: &Store) -> Option<String> {
    redis::cmd("DEBUG").arg("DIGEST").query(&mut store.try_connection()?).ok()
}

/// Of what is found in the data directory, by a server that a supervisor starts where none runs.
fn found(store: &Store, place: &str) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        if store.try_connection().is_none() {
            let started = store.run("start");
            assert!(started.status.success(), "{place}: {started:?}");
        }
        if let Some(digest) = digest(store) {
            return digest;
        }
        assert!(Instant::now() < until, "{place}: no server starts on the data directory: {}", store.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for the stop or start command that outlived the restore, as a supervisor's does. A store that it started is in a
/// session of its own.
fn wait_alone(group: u32, place: &str) {
    let until = Instant::now() + PATIENCE;
    let is_member = |process: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // State, parent, group; the name before them may hold anything.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.next().is_some_and(|state| state != "Z") && fields.nth(1) == Some(&group.to_string())
    };
    while std::fs::read_dir("/proc").expect("lists").flatten().any(is_member) {
        assert!(Instant::now() < until, "{place}: a command of the restore does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_restore_killed_at_any_instant_leaves_the_old_data_or_the_new_and_a_way_to_both() {
    let mut random = Random::begin("a killed restore");
    // Nothing is saved but by a restore, so that what it does not save is lost.
    let store = Store::new("save \"\"\nenable-debug-command local");
    let work = Workplace::new();
    work.configure(&store.table());
    store.start();
    fill(&store, "stored");
    let stored = digest(&store).expect("it runs");
    work.succeed(&["init"]);
    work.succeed(&["snapshot", "prod"]);
    let began = Instant::now();
    work.succeed(&RESTORE);
    let typical = began.elapsed();
    work.succeed(&["settle", "prod", "--yes"]);

    let rounds = effort(10, 200);
    let (mut killed, mut were_new) = (0, 0);
    for round in 0..rounds {
        fill(&store, &format!("live {round}"));
        let live = digest(&store).expect("it runs");
        let mut command = work.command(&RESTORE);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut running = command.spawn().expect("tintype starts");
        let mut notes = BufReader::new(running.stderr.take().expect("a pipe")).lines();
        let step = (round % 3 != 2).then(|| STEPS[(round - round / 3) % STEPS.len()]);
        if let Some(step) = step {
            let is_said = notes.any(|line| line.is_ok_and(|line| line == step));
            assert!(is_said, "round {round}: the restore never came to {step}");
        }
        let delay = random.duration(if step.is_some() { AIM } else { typical });
        std::thread::sleep(delay);
        running.kill().expect("a child");
        let was_killed = running.wait().expect("a child").signal() == Some(libc::SIGKILL);
        killed += usize::from(was_killed);
        let place = format!("round {round}, aimed at {step:?}, killed {was_killed} after {delay:?}");
        wait_alone(running.id(), &place);

        if random.next().is_multiple_of(2) {
            let found = found(&store, &place);
            assert!(found == stored || found == live, "{place}: neither the old data nor the new");
            were_new += usize::from(found == stored);
            let asked = Instant::now();
            store.command(&["PUBLISH", "taken", "again"]);
            assert!(asked.elapsed() < HELD_BACK_MAX, "{place}: writes were held back for {:?}", asked.elapsed());
        }
        let is_again = random.next().is_multiple_of(2);
        if is_again {
            succeeded(&place, &work.run(&RESTORE));
            assert_eq!(digest(&store).as_ref(), Some(&stored), "{place}: restored again");
        }
        // Once for each restore that came so far, until there is nothing to go back to.
        for _ in 0..=usize::from(is_again) {
            let back = work.run(&["rollback", "prod", "--yes"]);
            assert!(matches!(back.status.code(), Some(0 | 4)), "{place}: {}", said(&back));
        }
        let kept = found(&store, &place);
        let what = if kept == stored { "the restored data is left" } else { "an older state is left" };
        assert!(kept == live, "{place}, again {is_again}: what was there before the restore is lost, {what}: {}", store.log());
        let settled = work.run(&["settle", "prod", "--yes"]);
        assert!(matches!(settled.status.code(), Some(0 | 4)), "{place}: {}", said(&settled));
        assert_eq!(store.kept(), Vec::<String>::new(), "{place}");
        assert_eq!(found(&store, &place), live, "{place}: settled");
    }
    tell(&format!("{killed} of {rounds} killed while running (a restore took {typical:?}); {were_new} left the new data"));
    assert!(killed > 0, "no kill hit a running restore");
}
