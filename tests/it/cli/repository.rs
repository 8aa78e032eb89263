//! A repository that is not there, not ours to open, or of another time; configurations and secrets that are wrong.

use super::{Home, run};
use std::os::unix::fs::{PermissionsExt, chown};

fn mode(home: &Home, name: &str, mode: u32) {
    std::fs::set_permissions(home.path(name), PermissionsExt::from_mode(mode)).expect("a mode");
}

#[test]
fn a_wrong_or_missing_key_opens_nothing() {
    let home = Home::with_snapshot();
    let other = home.private("other", "another key file of at least thirty-two bytes");
    for arguments in
        [&["list"][..], &["show", "demo/latest"], &["verify"], &["snapshot", "demo", "--files", "data"], &["key", "list"]]
    {
        let arguments = |more: &[&'static str]| [more, arguments].concat();
        home.run_without_key(&arguments(&[])).refused(1, &["is encrypted", "password_file"]);
        run(home.command(&arguments(&[])).env("TINTYPE_KEY_FILE", &other)).refused(1, &["fits none of the key boxes"]);
    }
    assert_eq!(home.dates("demo").len(), 1);
}

#[test]
fn a_wrong_passphrase_is_told_from_a_right_one() {
    let home = Home::new();
    let (right, wrong) = (home.private("right", "correct horse\nsecond line\n"), home.private("wrong", "battery staple\n"));
    home.run_without_key(&["--password-file", &right, "init"]).done();
    home.run_without_key(&["--password-file", &wrong, "list"]).refused(1, &["passphrase", "--password-file"]);
    run(home.command(&["list"]).env_remove("TINTYPE_KEY_FILE").env("TINTYPE_PASSWORD_FILE", &right)).done();
}

#[test]
fn a_place_without_a_repository_says_so() {
    let home = Home::new();
    for verb in [&["list"][..], &["snapshot", "demo", "--files", "."], &["verify"], &["mount", "."]] {
        home.run(verb).refused(1, &["repository", "init"]);
    }
    assert!(!home.path("repository").exists(), "nothing is made by looking");
    std::fs::create_dir(home.path("repository")).expect("a directory");
    home.run(&["list"]).refused(1, &["repository", "tintype init"]);
    run(home.command(&["list"]).env_remove("TINTYPE_REPOSITORY")).refused(2, &["no repository", "--repository"]);
    home.run(&["--repository", "ftp://x/y", "list"]).refused(1, &["ftp"]);
    home.private("file", "x");
    home.run(&["--repository", "file", "init"]).refused(1, &["file"]);
}

#[test]
fn a_newer_format_is_left_alone() {
    let home = Home::with_snapshot();
    let descriptor = home.path("repository/tintype.json");
    let text = std::fs::read_to_string(&descriptor).expect("it is there");
    assert!(text.contains("\"version\": 1"), "{text}");
    std::fs::write(&descriptor, text.replace("\"version\": 1", "\"version\": 2")).expect("it is ours");
    home.run(&["list"]).refused(1, &["version 2", "newer", "install a newer tintype"]);
    home.run(&["snapshot", "demo", "--files", "data"]).refused(1, &["version 2"]);
    for text in ["", "{}", "[", "{\"format\": \"other\", \"version\": 1}"] {
        std::fs::write(&descriptor, text).expect("it is ours");
        home.run(&["list"]).refused(1, &["tintype.json"]);
    }
}

#[test]
fn an_unknown_key_of_the_configuration_names_the_nearest() {
    let home = Home::with_repository();
    for (text, nearest) in [("[repository]\nurll = \"x\"\n", "url"), ("[mount]\nowners = \"a:b\"\n", "owner")] {
        home.private("tintype.toml", text);
        home.run(&["list"]).refused(2, &["tintype.toml", "line 2", &format!("did you mean {nearest}?")]);
    }
    home.private("tintype.toml", "[mount\n");
    home.run(&["list"]).refused(2, &["tintype.toml"]);
    home.run(&["--config", "none.toml", "list"]).refused(2, &["none.toml"]);
}

#[test]
fn what_others_could_write_or_read_is_not_used() {
    let home = Home::with_repository();
    mode(&home, "tintype.toml", 0o666);
    home.run(&["list"]).refused(2, &["tintype.toml", "chmod go-w"]);
    mode(&home, "tintype.toml", 0o600);
    mode(&home, "key", 0o644);
    home.run(&["list"]).refused(2, &["key", "chmod 600"]);
    mode(&home, "key", 0o600);
    home.run(&["list"]).done();
    chown(home.path("tintype.toml"), Some(65534), None).expect("these tests run as root");
    home.run(&["list"]).refused(2, &["tintype.toml", "belongs to another user"]);
    chown(home.path("tintype.toml"), Some(0), None).expect("root");
    chown(home.path("key"), Some(65534), None).expect("root");
    home.run(&["list"]).refused(2, &["key", "belongs to another user"]);
}

#[test]
fn secrets_that_are_none_are_refused() {
    let home = Home::with_repository();
    home.private("empty", "");
    home.private("short", "x");
    home.run_without_key(&["--password-file", "empty", "list"]).refused(2, &["empty"]);
    home.run_without_key(&["--key-file", "short", "list"]).refused(2, &["short", "32"]);
    home.run_without_key(&["--key-file", "none", "list"]).refused(2, &["none"]);
    home.private("tintype.toml", "[repository]\npassword_command = [\"false\"]\n");
    home.run_without_key(&["list"]).refused(2, &["password_command false"]);
}
