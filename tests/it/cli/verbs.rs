//! Every verb does its job, for people and for scripts.

use super::{Home, run};
use std::process::Command;

#[test]
fn a_repository_is_made_once_and_says_what_comes_next() {
    let home = Home::new();
    assert!(home.run(&["init"]).done().text().contains("\nnext: tintype --repository"));
    home.run(&["init"]).refused(1, &["there is a repository already"]);
    let home = Home::new();
    let value = home.run(&["init", "--json"]).json();
    assert_eq!(value["encrypted"], true);
    assert_eq!(value["capabilities"]["refuses_second_create"], true);
}

#[test]
fn a_new_repository_wants_a_decision_about_encryption() {
    let home = Home::new();
    home.run_without_key(&["init"]).refused(2, &["encrypted", "--no-encryption"]);
    assert!(!home.path("repository").exists());
    home.run(&["init", "--no-encryption"]).refused(2, &["--no-encryption"]);
    assert_eq!(home.run_without_key(&["init", "--no-encryption", "--json"]).json()["encrypted"], false);
    home.run_without_key(&["list"]).done();
}

#[test]
fn what_was_stored_is_listed_shown_and_compared() {
    let home = Home::with_repository();
    home.data("data/a", 100_000, 1);
    home.data("data/gone", 10, 2);
    let first = home.snapshot(&["--tag", "why=test"]);
    assert_eq!((first["status"].as_str(), first["nodes"]["data"]["files"].as_u64()), (Some("completed"), Some(2)));
    std::fs::remove_file(home.path("data/gone")).expect("removed");
    home.data("data/new", 20, 3);
    let text = home.run(&["snapshot", "demo", "--files", "data"]);
    let dates = home.dates("demo");
    assert_eq!(dates.len(), 2);
    assert!(text.done().text().starts_with(&format!("demo/{}\n", dates[1])), "{text:?}");

    assert_eq!(home.run(&["list"]).done().text(), "demo\n");
    assert_eq!(home.run(&["list", "--json"]).json()["entries"][0]["cluster"], "demo");
    assert_eq!(home.run(&["list", "-l", "demo", "--json"]).json()["entries"][0]["nodes"], 1);
    assert_eq!(home.run(&["list", "demo/latest"]).done().text(), "data\n");
    assert_eq!(home.run(&["list", "demo/latest/data"]).done().text(), "a\nnew\n");
    assert!(home.run(&["list", "-l", "demo/latest/data/a"]).done().text().contains(" 100000 "));

    assert!(home.run(&["show", "demo/latest"]).done().text().contains("node      data"));
    let shown = home.run(&["show", &format!("demo/{}", dates[0]), "--json"]).json();
    assert_eq!((&shown["uuid"], &shown["tags"]["why"]), (&first["uuid"], &"test".into()));

    let names = [format!("demo/{}", dates[0]), format!("demo/{}", dates[1])];
    assert_eq!(home.run(&["diff", &names[0], &names[1]]).done().text(), "- data/gone  -10 B\n+ data/new  +20 B\n");
    let changes = home.run(&["diff", &names[0], &names[1], "--json"]).json();
    assert_eq!(changes["changes"].as_array().map(Vec::len), Some(2));

    assert!(home.run(&["status"]).done().text().starts_with("demo  "));
    assert_eq!(home.run(&["status", "--json"]).json()["clusters"][0]["newest"], dates[1].as_str());
    let uuid = first["uuid"].as_str().expect("a uuid");
    assert_eq!(home.run(&["status", uuid, "--json"]).json()["nodes"]["data"]["status"], "completed");
    assert!(home.run(&["status", &names[0]]).done().text().contains("completed"));
}

#[test]
fn a_part_of_a_cluster_is_stored_on_request_and_never_the_latest() {
    let home = Home::with_repository();
    home.data("one/a", 1000, 1);
    home.data("two/a", 1000, 2);
    let both = ["--json", "snapshot", "demo", "--files", "one", "--files", "two"];
    // The second one has no node in common with the first, and still is of the same cluster: the third one says so.
    let only = |node| home.run(&[&both[..], &["--node", node]].concat()).json();
    let part = only("one");
    assert_eq!((&part["status"], &part["nodes"]["two"]["status"]), (&"partial".into(), &"missing".into()));
    home.run(&["show", "demo/latest"]).refused(1, &["demo"]);
    let whole = home.run(&both).json();
    assert_eq!(whole["status"], "completed");
    only("one");
    assert_eq!(only("two")["nodes"]["one"]["reason"], "it was not asked for");
    let text = home.run(&["snapshot", "demo", "--files", "one", "--files", "two", "--node", "one"]);
    assert!(text.done().text().contains("  two: it was not asked for\n"), "{text:?}");
    assert_eq!(home.run(&["--json", "show", "demo/latest"]).json()["uuid"], whole["uuid"]);
}

#[test]
fn verify_proves_and_remembers() {
    let home = Home::with_snapshot();
    for depth in ["listed", "hashed"] {
        assert!(home.run(&["verify", "--depth", depth]).done().text().contains("whole"));
        let value = home.run(&["verify", "demo/latest", "--depth", depth, "--json"]).json();
        assert_eq!((&value["depth"], &value["damaged"]), (&depth.into(), &0.into()));
    }
    assert!(home.run(&["status"]).done().text().contains(", verified"));
    let empty = Home::with_repository();
    assert_eq!(empty.run(&["verify", "--json"]).code, Some(4), "nothing to do");
}

#[test]
fn an_exported_tar_unpacks_to_the_same_files() {
    let home = Home::with_snapshot();
    for arguments in [&["export", "demo/latest/data"][..], &["--json", "export", "demo/latest/data"]] {
        let tar = home.run(arguments);
        std::fs::write(home.path("node.tar"), &tar.done().out).expect("a file");
        let place = tempfile::tempdir().expect("a directory");
        run(Command::new("tar").arg("-xf").arg(home.path("node.tar")).arg("-C").arg(place.path())).done();
        run(Command::new("diff").arg("-r").arg(home.path("data")).arg(place.path())).done();
    }
    home.run(&["export", "demo/latest"]).refused(2, &["no node was named"]);
    home.run(&["export", "demo/latest/other"]).refused(1, &["no node other", "its nodes: data"]);
}

#[test]
fn a_second_key_opens_and_a_removed_one_does_not() {
    let home = Home::with_snapshot();
    let second = home.private("second", "another key file of at least thirty-two bytes");
    home.run_without_key(&["--key-file", &second, "list"]).refused(1, &["repository", "key"]);
    let id = home.run(&["--json", "key", "add", "--new-key-file", &second, "--label", "spare"]).json()["id"].clone();
    let id = id.as_str().expect("an id").to_owned();
    home.run_without_key(&["--key-file", &second, "list"]).done();
    assert!(home.run(&["key", "list"]).done().text().contains("spare"));
    assert_eq!(home.run(&["--json", "key", "list"]).json()["keys"].as_array().map(Vec::len), Some(2));

    let plan = home.run(&["key", "remove", &id]);
    assert_eq!(plan.code, Some(4), "{plan:?}");
    home.run_without_key(&["--key-file", &second, "list"]).done();
    home.run(&["key", "remove", &id, "--yes", "--json"]).json();
    home.run_without_key(&["--key-file", &second, "list"]).refused(1, &["key"]);
    home.run(&["key", "remove", &id, "--yes"]).refused(1, &[&id]);

    let left = home.run(&["--json", "key", "list"]).json()["keys"][0]["id"].clone();
    home.run(&["key", "remove", left.as_str().expect("an id"), "--yes"]).refused(1, &["last"]);
    home.run(&["list"]).done();
}

#[test]
fn doctor_says_what_is_right_and_what_is_wrong() {
    let home = Home::with_snapshot();
    let text = home.run(&["doctor", "--files", "data"]);
    assert!(text.done().text().lines().all(|line| line.starts_with("ok ")), "{text:?}");
    let ran = home.run(&["--repository", "nowhere", "doctor", "--json"]);
    assert_eq!(ran.code, Some(1));
    let wrong: Vec<_> =
        ran.object()["checks"].as_array().expect("checks").iter().filter(|check| check["ok"] == false).cloned().collect();
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0]["hint"].is_string() && wrong[0]["message"].as_str().is_some_and(|text| text.contains("nowhere")));
}

#[test]
fn completions_and_the_manual_come_as_text_or_as_one_object() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.run(&["completions", shell]).done().text().contains("snapshot"));
        assert!(home.run(&["completions", shell, "--json"]).json()["text"].is_string());
    }
    assert!(home.run(&["man"]).done().text().contains(".TH tintype"));
    assert!(home.run(&["man", "--json"]).json()["text"].is_string());
    home.run(&["completions", "tcsh-or-so"]).code.filter(|code| *code == 2).expect("a usage error");
}

#[test]
fn a_wrong_command_line_is_a_usage_error_also_for_scripts() {
    let home = Home::new();
    for arguments in
        [&["frob"][..], &["snapshot"], &["snapshot", "demo", "--max-pause", "3"], &["verify", "--depth", "deep"], &[]]
    {
        let ran = home.run(arguments);
        assert_eq!((ran.code, ran.out.len()), (Some(2), 0), "{ran:?}");
        let ran = home.run(&[arguments, &["--json"]].concat());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert_eq!(ran.object()["error"]["code"], "usage");
    }
    assert_eq!(home.run(&["--help"]).done().err, "");
    assert!(home.run(&["--version"]).done().text().starts_with("tintype "));
}

#[test]
fn an_error_for_scripts_is_one_object_with_the_same_words() {
    let home = Home::with_repository();
    let ran = home.run(&["--json", "show", "nothing/latest"]);
    ran.refused(1, &["nothing"]);
    let error = ran.object()["error"].clone();
    assert!(error["code"].is_string() && error["hint"].is_string());
    assert!(ran.err.contains(error["message"].as_str().expect("a message")));
}

#[test]
fn a_configuration_of_dynomite_manager_is_written_anew_and_nothing_secret_is_told() {
    let home = Home::new();
    let properties = "florida.dyno.clustername=ring\ndbsidecar.aws.dyno.backup.bucket.name=backups\ndm.some.password=hunter2\nflorida.dyno.gossip.interval=5\n";
    std::fs::write(home.path("node.properties"), properties).expect("written");
    let ran = home.run(&["import-config", "dynomite-manager", "node.properties", "--node", "host-1"]);
    assert!(ran.done().text().contains("url = \"s3://backups/backup/tintype\""), "{ran:?}");
    for words in ["dm.some.password is not known", "florida.dyno.gossip.interval has no counterpart", "is a new repository"] {
        assert!(ran.err.contains(words), "{words}: {}", ran.err);
    }
    assert!(!ran.err.contains("hunter2") && !ran.text().contains("hunter2"), "{ran:?}");
    let value = home
        .run(&["import-config", "dynomite-manager", "node.properties", "--node", "host-1", "--output", "new.toml", "--json"])
        .json();
    assert_eq!((&value["cluster"], &value["unknown"][0]), (&"ring".into(), &"dm.some.password".into()));
    assert_eq!(std::fs::read_to_string(home.path("new.toml")).expect("written"), ran.text());
    // It is there: nothing is written over.
    home.run(&["import-config", "dynomite-manager", "node.properties", "--output", "new.toml"]).refused(1, &["new.toml"]);
    home.run(&["import-config", "dynomite-manager", "absent"]).refused(2, &["absent"]);
    std::fs::write(home.path("node.properties"), "dm.dyno.stats.port=x").expect("written");
    home.run(&["import-config", "dynomite-manager", "node.properties"]).refused(2, &["stats.port"]);
}
