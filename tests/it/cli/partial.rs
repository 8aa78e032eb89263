//! Restores from a snapshot that holds a part of its cluster.

use super::{Home, noise};

/// A cluster of the directories `one` and `two`, of which only `one` was stored: its home and the snapshot's name.
fn with_one_of_two() -> (Home, String) {
    let home = Home::with_repository();
    home.data("one/a", 100_000, 1);
    home.data("two/a", 1000, 2);
    let stored = home.run(&["--json", "snapshot", "demo", "--files", "one", "--files", "two", "--node", "one"]).json();
    assert_eq!(stored["status"], "partial");
    let node = |name| format!("[clusters.demo.nodes.{name}]\ndata_directory = {:?}\n", home.path(name));
    let cluster = format!("[clusters.demo]\nstore = \"files\"\n{}{}", node("one"), node("two"));
    home.private("tintype.toml", &format!("state_directory = {:?}\n{cluster}", home.path("state")));
    home.data("one/a", 10, 3);
    home.data("two/a", 10, 4);
    let name = format!("demo/{}", stored["date"].as_str().expect("a date"));
    (home, name)
}

fn is(home: &Home, file: &str, length: usize, seed: u64) -> bool {
    std::fs::read(home.path(file)).expect("readable") == noise(length, seed)
}

#[test]
fn the_node_that_a_partial_snapshot_holds_is_restored_alone() {
    let (home, name) = with_one_of_two();
    home.run(&["restore", &format!("{name}/one"), "--yes", "--confirm", "demo"]).done();
    assert!(is(&home, "one/a", 100_000, 1), "the stored data");
    assert!(is(&home, "two/a", 10, 4), "the other node is not touched");
    home.run(&["rollback", "demo", "--yes"]).done();
    home.run(&["restore", &name, "--node", "one", "--yes", "--confirm", "demo"]).done();
    assert!(is(&home, "one/a", 100_000, 1) && is(&home, "two/a", 10, 4));
    home.run(&["restore", &format!("{name}/one"), "--directory", "placed"]).done();
    assert!(is(&home, "placed/a", 100_000, 1));
}

#[test]
fn what_a_partial_snapshot_lacks_is_refused_with_the_reason_and_nothing_is_touched() {
    let (home, name) = with_one_of_two();
    let missing = format!("{name}/two");
    for arguments in [&[missing.as_str()][..], &[&name], &[&name, "--node", "one", "--node", "two"]] {
        let arguments = [&["restore"], arguments, &["--yes", "--confirm", "demo"]].concat();
        let ran = home.run(&arguments);
        ran.refused(1, &["nothing was touched"]);
        let refused = ran.text().lines().find(|line| line.starts_with("  refused: two: ")).unwrap_or_default();
        assert!(refused.contains("it was not asked for") && refused.contains("--node one"), "{arguments:?}: {ran:?}");
        let plan = home.run(&[&arguments[..], &["--json"]].concat()).object()["plan"].clone();
        let refusal = &plan["refusals"][0];
        assert_eq!((&refusal["code"], &refusal["node"]), (&"missing_in_snapshot".into(), &"two".into()), "{plan}");
    }
    for source in [&missing, &name] {
        home.run(&["restore", source, "--directory", "placed"]).refused(1, &["two", "it was not asked for", "--node one"]);
        assert!(!home.path("placed").exists(), "{source}");
    }
    // It is not the newest good snapshot either.
    home.run(&["restore", "demo/latest", "--yes", "--confirm", "demo"]).refused(1, &["demo"]);
    assert!(is(&home, "one/a", 10, 3) && is(&home, "two/a", 10, 4));
    assert_eq!(home.run(&["rollback", "demo", "--yes"]).code, Some(4), "nothing was begun");
}
