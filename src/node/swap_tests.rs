//! The change of places, stopped before every single step: the old data or the restored data, never a mixture.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::journal::{RestoreRecord, StateDirectory, Step, inode};
use super::restore_error::RestoreError;
use super::swap::{RecoveredTo, Steps, recover, settle, swap, swap_back};
use crate::model::ids::SnapshotId;
use crate::model::restore_plan::{NodePlan, SwapKind};

struct Scene {
    _root: TempDir,
    state: StateDirectory,
    record: RestoreRecord,
}

type Files = BTreeMap<String, String>;

fn old() -> Files {
    [("dump.rdb", "old"), ("nodes.conf", "old"), ("appendonlydir/base", "old")]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into()
}

fn new() -> Files {
    [("dump.rdb", "new"), ("appendonlydir/base", "new"), ("appendonlydir/incr", "new")]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into()
}

fn write(directory: &Path, content: &Files) {
    for (name, text) in content {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("makes");
        std::fs::write(path, text).expect("writes");
    }
}

fn read(directory: &Path) -> Files {
    let mut content = Files::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(inside) = waiting.pop() {
        for entry in std::fs::read_dir(directory.join(&inside)).expect("lists") {
            let name = entry.expect("lists").file_name();
            let text = name.to_string_lossy().into_owned();
            if inside.as_os_str().is_empty()
                && (text.starts_with(".tintype-") || text.starts_with(".before-") || text == "lost+found")
            {
                continue;
            }
            let path = inside.join(name);
            if directory.join(&path).is_dir() {
                waiting.push(path);
            } else {
                content.insert(path.display().to_string(), std::fs::read_to_string(directory.join(&path)).expect("reads"));
            }
        }
    }
    content
}

/// A directory with old data and a whole restored one beside it.
fn scene(kind: SwapKind, has_old: bool) -> Scene {
    let root = tempfile::tempdir().expect("a directory");
    let directory = root.path().join("redis");
    if has_old {
        write(&directory, &old());
    }
    let state = StateDirectory::open(&root.path().join("state")).expect("opens");
    let plan = NodePlan { swap: kind, ..NodePlan::sample("node-1", directory) };
    let mut record = RestoreRecord::new(&plan, "prod", "prod/now/node-1".to_owned(), SnapshotId::new_v4(), 0).expect("names");
    write(&record.fresh, &new());
    record.new = inode(&record.fresh).expect("looks");
    record.step = Step::Staged;
    state.write(&record).expect("writes");
    Scene { _root: root, state, record }
}

fn is_interrupted(result: Result<(), RestoreError>) -> bool {
    match result {
        Ok(()) => false,
        Err(RestoreError::Interrupted { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

fn leftovers(scene: &Scene) -> Vec<PathBuf> {
    [&scene.record.fresh, &scene.record.before].into_iter().filter(|path| path.exists()).cloned().collect()
}

#[test]
fn a_swap_stopped_anywhere_leaves_the_old_data_or_the_new_after_recovery() {
    for kind in [SwapKind::Rename, SwapKind::Entries] {
        let (mut went_on, mut begun) = (0, 0);
        for count in 0.. {
            let mut scene = scene(kind, true);
            if !is_interrupted(swap(&scene.state, &mut scene.record, &Steps::stop_after(count))) {
                assert!(count > 3, "{kind:?}: every step was stopped at");
                assert_eq!(read(&scene.record.directory), new());
                break;
            }
            let found = read(&scene.record.directory);
            let recovered = recover(&scene.state, &Steps::default()).expect("recovers");
            assert_eq!(recovered.len(), 1);
            // A store that was started meanwhile on the restored data keeps it; the old data is kept for a rollback.
            let (mut outcome, data) = if found == new() { (RecoveredTo::Unchecked, new()) } else { (RecoveredTo::Old, old()) };
            if recovered[0].outcome == RecoveredTo::Begun {
                // It had not begun to swap: what was placed is there for the next attempt, whole.
                outcome = RecoveredTo::Begun;
                assert_eq!(read(&scene.record.fresh), new(), "{kind:?} {count}");
                settle(&scene.state, &mut recovered[0].record.clone(), &Steps::default()).expect("settles");
                begun += 1;
            }
            assert_eq!(recovered[0].outcome, outcome, "{kind:?} {count}");
            assert_eq!(read(&scene.record.directory), data, "{kind:?} {count}");
            if outcome == RecoveredTo::Unchecked {
                went_on += 1;
                let mut record = recovered[0].record.clone();
                swap_back(&scene.state, &mut record, &Steps::default()).expect("rolls back");
                assert_eq!(read(&scene.record.directory), old(), "{kind:?} {count}");
                settle(&scene.state, &mut record, &Steps::default()).expect("settles");
            }
            assert_eq!(leftovers(&scene), Vec::<PathBuf>::new(), "{kind:?} {count}");
            assert_eq!(scene.state.records().expect("lists"), []);
        }
        assert!(went_on > 0 && begun == 1, "{kind:?}: some stop came after the exchange, one before the swap: {begun}");
    }
}

#[test]
fn a_recovery_stopped_anywhere_is_finished_by_the_next_one() {
    for kind in [SwapKind::Rename, SwapKind::Entries] {
        for first in 0..12 {
            for second in 0..12 {
                let mut scene = scene(kind, true);
                let is_done = !is_interrupted(swap(&scene.state, &mut scene.record, &Steps::stop_after(first)));
                if is_done {
                    break;
                }
                let is_new = read(&scene.record.directory) == new();
                let _ = recover(&scene.state, &Steps::stop_after(second));
                recover(&scene.state, &Steps::default()).expect("recovers");
                let data = if is_new { new() } else { old() };
                assert_eq!(read(&scene.record.directory), data, "{kind:?} {first} {second}");
                let is_begun = scene.state.records().expect("lists").iter().any(RestoreRecord::is_begun);
                assert_eq!(leftovers(&scene).is_empty(), !is_new && !is_begun, "{kind:?} {first} {second}");
            }
        }
    }
}

#[test]
fn a_rollback_stopped_anywhere_ends_with_the_old_data() {
    for kind in [SwapKind::Rename, SwapKind::Entries] {
        for count in 0.. {
            let mut scene = scene(kind, true);
            swap(&scene.state, &mut scene.record, &Steps::default()).expect("swaps");
            // The store has made a file of its own since, and replaced one.
            std::fs::write(scene.record.directory.join("temp-1.rdb"), "later").expect("writes");
            std::fs::write(scene.record.directory.join("dump.rdb"), "later").expect("writes");
            let was_stopped = is_interrupted(swap_back(&scene.state, &mut scene.record, &Steps::stop_after(count)));
            if count == 0 {
                // Nothing was begun: the restored data is in place.
                assert_eq!(scene.state.in_place("prod", "node-1").expect("looks").map(|record| record.id), Some(scene.record.id));
                continue;
            }
            recover(&scene.state, &Steps::default()).expect("recovers");
            assert_eq!(read(&scene.record.directory), old(), "{kind:?} {count}");
            let mut record = scene.state.records().expect("lists").remove(0);
            assert_eq!(record.step, Step::RolledBack);
            settle(&scene.state, &mut record, &Steps::default()).expect("settles");
            assert_eq!(leftovers(&scene), Vec::<PathBuf>::new());
            if !was_stopped {
                break;
            }
        }
    }
}

#[test]
fn a_settling_stopped_anywhere_keeps_what_is_in_place() {
    for kind in [SwapKind::Rename, SwapKind::Entries] {
        for count in 1.. {
            let mut scene = scene(kind, true);
            swap(&scene.state, &mut scene.record, &Steps::default()).expect("swaps");
            let was_stopped = is_interrupted(settle(&scene.state, &mut scene.record, &Steps::stop_after(count)));
            recover(&scene.state, &Steps::default()).expect("recovers");
            assert_eq!(read(&scene.record.directory), new(), "{kind:?} {count}");
            assert_eq!(leftovers(&scene), Vec::<PathBuf>::new(), "{kind:?} {count}");
            if !was_stopped {
                break;
            }
        }
    }
}

#[test]
fn where_nothing_was_a_rollback_leaves_nothing() {
    let mut scene = scene(SwapKind::Rename, false);
    swap(&scene.state, &mut scene.record, &Steps::default()).expect("swaps");
    assert_eq!(read(&scene.record.directory), new());
    swap_back(&scene.state, &mut scene.record, &Steps::default()).expect("rolls back");
    assert!(!scene.record.directory.exists());
}

#[test]
fn a_directory_that_somebody_else_replaced_is_left_alone() {
    let mut scene = scene(SwapKind::Rename, true);
    swap(&scene.state, &mut scene.record, &Steps::default()).expect("swaps");
    let directory = &scene.record.directory;
    std::fs::rename(directory, directory.with_extension("mine")).expect("moves");
    write(directory, &new());
    assert!(matches!(swap_back(&scene.state, &mut scene.record, &Steps::default()), Err(RestoreError::Refused { .. })));
    assert!(scene.record.before.exists());
}

#[test]
fn a_restore_that_is_under_way_is_not_recovered() {
    let scene = scene(SwapKind::Rename, true);
    let lock = scene.state.lock(&scene.record.directory, Duration::ZERO).expect("locks");
    assert!(scene.state.lock(&scene.record.directory, Duration::ZERO).is_err());
    assert_eq!(recover(&scene.state, &Steps::default()).expect("recovers"), []);
    drop(lock);
    assert_eq!(recover(&scene.state, &Steps::default()).expect("recovers").len(), 1);
}
