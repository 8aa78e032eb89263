//! Plain directories as nodes: what cannot be stored is named and nothing is listed.

use std::os::unix::fs::symlink;
use std::process::Command;

use super::{Home, run};

fn fifo(home: &Home, name: &str) {
    run(Command::new("mkfifo").arg(home.path(name))).done();
}

#[test]
fn a_directory_that_is_a_fifo_or_a_file_is_refused() {
    let home = Home::with_repository();
    fifo(&home, "pipe");
    home.private("file", "x");
    home.run(&["snapshot", "demo", "--files", "pipe"]).refused(1, &["pipe", "FIFO"]);
    home.run(&["snapshot", "demo", "--files", "file"]).refused(1, &["file", "not a directory"]);
    assert!(home.dates("demo").is_empty());
}

#[test]
fn a_fifo_in_the_directory_is_named_and_nothing_hangs() {
    let home = Home::with_repository();
    home.data("data/sub/a", 10, 1);
    fifo(&home, "data/sub/pipe");
    home.run(&["snapshot", "demo", "--files", "data"]).refused(1, &["sub/pipe", "FIFO"]);
    assert!(home.dates("demo").is_empty());
    std::fs::remove_file(home.path("data/sub/pipe")).expect("removed");
    home.snapshot(&[]);
}

#[test]
fn a_link_is_stored_as_a_link_wherever_it_leads() {
    let home = Home::with_repository();
    home.data("data/a", 10, 1);
    home.private("secret", "must not be stored");
    symlink("../secret", home.path("data/out")).expect("a link");
    symlink("/nowhere", home.path("data/nowhere")).expect("a link");
    home.snapshot(&[]);
    let listed = home.run(&["list", "-l", "demo/latest/data"]);
    assert!(listed.done().text().contains("out -> ../secret"), "{listed:?}");
    let tar = home.run(&["export", "demo/latest/data"]);
    assert!(!tar.done().out.windows(18).any(|window| window == b"must not be stored"));
}

#[test]
fn two_directories_of_one_name_are_refused() {
    let home = Home::with_repository();
    home.data("one/data/a", 10, 1);
    home.data("two/data/a", 10, 2);
    home.run(&["snapshot", "demo", "--files", "one/data", "--files", "two/data"]).refused(2, &["two directories", "data"]);
}

#[test]
fn a_file_that_shrinks_under_the_snapshot_fails_it() {
    let home = Home::with_repository();
    home.data("data/a", 60_000_000, 1);
    let mut begun = home.begin(&["snapshot", "demo", "--files", "data"]);
    begun.says("storing");
    std::fs::File::options().write(true).open(home.path("data/a")).and_then(|file| file.set_len(1000)).expect("it is ours");
    begun.ended().refused(1, &["a: it became shorter"]);
    assert!(home.dates("demo").is_empty());
    home.snapshot(&[]);
    home.run(&["verify"]).done();
}

#[test]
fn a_directory_behind_a_link_is_stored() {
    let home = Home::with_repository();
    home.data("data/a", 10, 1);
    symlink("data", home.path("link")).expect("a link");
    home.run(&["snapshot", "demo", "--files", "link"]).done();
    assert_eq!(home.run(&["list", "demo/latest/data"]).done().text(), "a\n");
    symlink("nowhere", home.path("dangling")).expect("a link");
    home.run(&["snapshot", "demo", "--files", "dangling"]).refused(2, &["dangling"]);
}
