//! Names of snapshots, clusters, nodes and files that are wrong, unknown or fit too much.

use super::Home;

#[test]
fn what_is_unknown_is_named_with_what_there_is() {
    let home = Home::with_snapshot();
    for verb in ["show", "list", "export", "verify"] {
        let rest = if verb == "export" { "/data" } else { "" };
        home.run(&[verb, &format!("prod/latest{rest}")]).refused(1, &["prod", "stored clusters: demo"]);
        home.run(&[verb, &format!("demo/1999-01-01{rest}")]).refused(1, &["1999-01-01"]);
        home.run(&[verb, &format!("demo/@1999-01-01T00:00:00Z{rest}")]).refused(1, &["1999-01-01"]);
        home.run(&[verb, &format!("demo/7e57ab1e-0000-4000-8000-000000000000{rest}")]).refused(1, &["7e57ab1e"]);
        home.run(&[verb, &format!("demo/yesterday{rest}")]).refused(2, &["yesterday"]);
    }
    home.run(&["list", "demo/latest/other"]).refused(1, &["other", "its nodes: data"]);
    home.run(&["list", "demo/latest/data/none"]).refused(1, &["none"]);
    home.run(&["diff", "demo/latest", "demo/latest/other"]).refused(1, &["other", "its nodes: data"]);
    home.run(&["status", "7e57ab1e-0000-4000-8000-000000000000"]).refused(1, &["7e57ab1e"]);
    home.run(&["status", "demo/1999"]).refused(1, &["1999"]);
}

#[test]
fn an_ambiguous_date_names_the_candidates() {
    let home = Home::with_snapshot();
    home.snapshot(&[]);
    let dates = home.dates("demo");
    let ran = home.run(&["show", &format!("demo/{}", &dates[0][..7])]);
    ran.refused(1, &["ambiguous", &dates[0], &dates[1]]);
    // A day is its newest snapshot; so is any time from then on.
    let newest = home.run(&["show", "--json", &format!("demo/{}", &dates[1][..10])]).json();
    assert_eq!(newest["date"], dates[1].as_str());
    assert_eq!(home.run(&["show", "--json", "demo/@2099-01-01T00:00:00Z"]).json()["date"], dates[1].as_str());
}

#[test]
fn impossible_names_are_usage_errors() {
    let home = Home::with_snapshot();
    let long = "x".repeat(300);
    for name in ["../x", "a b/latest", "_snapshots/latest", "/", "", &long, "demo/latest/..", "demo/latest/data/../../x"] {
        let ran = home.run(&["list", name]);
        ran.refused(2, &[]);
    }
    for cluster in ["a/b", "..", "", "_intents", &long] {
        home.run(&["snapshot", cluster, "--files", "data"]).refused(2, &[]);
    }
    assert_eq!(home.run(&["list"]).done().text(), "demo\n");
}

#[test]
fn a_cluster_of_which_nothing_is_known_cannot_be_stored() {
    let home = Home::with_snapshot();
    home.run(&["snapshot", "prod"]).refused(2, &["prod", "--redis"]);
    home.run(&["snapshot", "demo", "--files", "data", "--node", "other"]).refused(1, &["other", "its nodes: data"]);
    home.run(&["snapshot", "demo", "--files", "data", "--tag", "nothing"]).refused(2, &["nothing", "--tag"]);
    home.run(&["snapshot", "demo", "--files", "none"]).refused(2, &["none"]);
    home.run(&["snapshot", "demo", "--redis", "127.0.0.1:1", "--capture", "magic"]).refused(2, &["magic"]);
    assert_eq!(home.dates("demo").len(), 1);
}

#[test]
fn another_cluster_does_not_get_a_known_name_unless_it_is_adopted() {
    let home = Home::with_snapshot();
    home.data("other/x", 10, 9);
    home.run(&["snapshot", "demo", "--files", "other"]).refused(1, &["demo", "--adopt"]);
    assert_eq!(home.dates("demo").len(), 1);
    home.run(&["snapshot", "demo", "--files", "other", "--adopt"]).done();
    home.run(&["snapshot", "demo", "--files", "other"]).done();
    assert_eq!(home.dates("demo").len(), 3);
}
