//! Data directories that belong to another user than the one who restores.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;

use crate::support::command::{Workplace, succeeded, tintype};
use crate::support::store::Store;

/// Nobody's account, and so neither that of a real server nor the one that the restores run as.
const OWNER: u32 = 64998;
/// `nobody`.
const STRANGER: u32 = 65534;
const RESTORE: [&str; 5] = ["restore", "prod/latest", "--yes", "--confirm", "prod"];

/// A server of [`OWNER`] that holds something newer than what was stored of it by `user`.
fn stored_by(user: u32) -> (Store, Workplace) {
    let store = Store::of_user(OWNER, "save \"\"");
    store.start().command(&["SET", "which", "stored"]);
    let work = Workplace::new();
    work.configure(&store.table());
    // The build directory may be closed to other users.
    std::fs::copy(tintype(), work.path("tintype")).expect("a copy of the program");
    work.give_to(user);
    succeeded("init", &run_as(user, &work, &["init"]));
    succeeded("snapshot", &run_as(user, &work, &["snapshot", "prod"]));
    store.command(&["SET", "which", "live"]);
    (store, work)
}

fn run_as(user: u32, work: &Workplace, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(work.path("tintype"));
    command.args(arguments).uid(user).gid(user);
    work.prepare(&mut command);
    command.output().expect("tintype starts")
}

/// Inode, owner, mode and name of a directory and of all that is in it.
fn seen(root: &Path) -> Vec<(u64, u32, u32, u32, String)> {
    let mut paths = vec![root.to_owned()];
    let mut seen = Vec::new();
    while let Some(path) = paths.pop() {
        let meta = path.symlink_metadata().expect("is there");
        if meta.is_dir() {
            paths.extend(std::fs::read_dir(&path).expect("lists").map(|entry| entry.expect("lists").path()));
        }
        seen.push((meta.ino(), meta.uid(), meta.gid(), meta.mode(), path.display().to_string()));
    }
    seen.sort();
    seen
}

fn process(store: &Store) -> u32 {
    let info: String = redis::cmd("INFO").arg("server").query(&mut store.try_connection().expect("connects")).expect("answers");
    let line = info.lines().find_map(|line| line.strip_prefix("process_id:")).expect("it says");
    line.trim().parse().expect("a number")
}

#[test]
fn what_root_restores_belongs_to_the_owner_of_what_it_replaces() {
    let (store, work) = stored_by(0);
    let mode = 0o750;
    std::fs::set_permissions(&store.data, PermissionsExt::from_mode(mode)).expect("permits");
    std::fs::write(store.data.join("kept.conf"), "mine").expect("writes");
    let other = OWNER + 1;
    chown(store.data.join("kept.conf"), Some(other), Some(other)).expect("these tests run as root");

    work.succeed(&RESTORE);
    assert_eq!(store.get("which").as_deref(), Some("stored"));
    for (_, uid, gid, seen_mode, path) in seen(&store.data) {
        let wanted = if path.ends_with("/kept.conf") { other } else { OWNER };
        assert_eq!((uid, gid), (wanted, wanted), "{path}");
        assert!(path != store.data.display().to_string() || seen_mode & 0o7777 == mode, "{path}: {seen_mode:o}");
    }
    // It is that user's server which runs on them, and may write.
    let status = std::fs::read_to_string(format!("/proc/{}/status", process(&store))).expect("it runs");
    assert!(status.contains(&format!("Uid:\t{OWNER}\t")), "{status}");
    store.command(&["SET", "which", "later"]);
    store.command(&["SAVE"]);

    work.succeed(&["rollback", "prod", "--yes"]);
    assert_eq!(store.get("which").as_deref(), Some("live"));
    assert_eq!(store.data.metadata().expect("is there").uid(), OWNER);
    work.succeed(&["settle", "prod", "--yes"]);
    assert_eq!(store.kept(), Vec::<String>::new());
}

/// The restore is refused for `reason`, `remedy` is the next step, and nothing was stopped or changed.
fn assert_refused(user: u32, store: &Store, work: &Workplace, reason: &str, remedy: &str) {
    let before = (seen(&store.data), process(store));
    let output = run_as(user, work, &RESTORE);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}");
    let refused = said.lines().find(|line| line.starts_with("  refused: node-1: ")).unwrap_or_default();
    assert!(refused.contains(&store.data.display().to_string()), "{said}");
    assert!(refused.contains(reason) && refused.contains(remedy), "{said}");
    assert!(said.contains("nothing was touched\n  next: "), "{said}");
    assert_eq!((seen(&store.data), process(store)), before, "{said}");
    assert_eq!(store.get("which").as_deref(), Some("live"));
    assert_eq!(store.kept(), Vec::<String>::new());
}

#[test]
fn a_directory_of_somebody_else_is_refused_to_who_is_not_root() {
    let (store, work) = stored_by(STRANGER);
    let reason = format!("it belongs to user {OWNER}, and we are user {STRANGER}");
    assert_refused(STRANGER, &store, &work, &reason, "run as root");
    // The same where not even a look is permitted.
    std::fs::set_permissions(&store.data, PermissionsExt::from_mode(0o700)).expect("permits");
    assert_refused(STRANGER, &store, &work, &reason, "run as root");
    std::fs::set_permissions(store.root.path(), PermissionsExt::from_mode(0o700)).expect("permits");
    assert_refused(STRANGER, &store, &work, "Permission denied", "run as root");
}

#[test]
fn an_owner_who_may_not_write_above_the_directory_is_told_so() {
    let (store, work) = stored_by(OWNER);
    let parent = store.root.path().display().to_string();
    assert_refused(OWNER, &store, &work, &format!("{parent} cannot be written by us"), &format!("let us write {parent}"));
}
