//! Objects of each kind that are missing, truncated, changed or exchanged: named by `verify`, never served as data.

use std::path::{Path, PathBuf};

use super::{Home, files_below};

/// Two snapshots whose nodes share nothing, so that every kind of object is there twice.
fn two_snapshots() -> Home {
    let home = Home::with_snapshot();
    home.data("data/a", 300_000, 7);
    home.data("data/sub/b", 1000, 8);
    home.snapshot(&[]);
    home
}

/// Objects of one kind, by the folder that is in their path.
fn objects(home: &Home, kind: &str) -> Vec<PathBuf> {
    let all = files_below(&home.path("repository"));
    all.into_iter().filter(|path| path.display().to_string().contains(&format!("/{kind}/"))).collect()
}

fn name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

#[test]
fn each_damage_to_each_kind_of_object_is_found_and_named() {
    let home = two_snapshots();
    home.run(&["verify"]).done();
    for kind in ["packs", "pages", "manifests", "_snapshots"] {
        let found = objects(&home, kind);
        assert!(found.len() >= 2, "{kind}: {found:?}");
        let whole: Vec<_> = found.iter().map(|path| std::fs::read(path).expect("readable")).collect();
        let mut flipped = whole[0].clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        let (cut, shorter) = (&whole[0][..middle], &whole[0][..whole[0].len() - 1]);
        for (what, bytes) in [
            ("missing", None),
            ("cut", Some(cut)),
            ("shorter", Some(shorter)),
            ("flipped", Some(&flipped[..])),
            ("exchanged", Some(&whole[1][..])),
        ] {
            match bytes {
                None => std::fs::remove_file(&found[0]).expect("removed"),
                Some(bytes) => std::fs::write(&found[0], bytes).expect("written"),
            }
            let ran = home.run(&["verify"]);
            if (kind, what) == ("_snapshots", "missing") {
                // A snapshot exists when its manifest does: the other one is still whole.
                ran.done();
                assert_eq!(home.dates("demo").len(), 1);
            } else {
                ran.refused(1, &["damaged"]);
                assert!(ran.text().contains(&name(&found[0])), "{kind} {what} is not named: {}", ran.text());
                let value = home.run(&["verify", "--json"]).object();
                assert_eq!(value["damaged"], 1, "{kind} {what}: {value}");
            }
            std::fs::write(&found[0], &whole[0]).expect("mended");
        }
        home.run(&["verify"]).done();
    }
}

#[test]
fn a_listed_verification_sees_what_is_missing_or_short() {
    let home = Home::with_snapshot();
    for kind in ["packs", "pages", "manifests"] {
        let path = &objects(&home, kind)[0];
        let whole = std::fs::read(path).expect("readable");
        std::fs::write(path, &whole[..whole.len() / 2]).expect("written");
        let ran = home.run(&["verify", "--depth", "listed"]);
        assert!(ran.refused(1, &["damaged"]).text().contains(&name(path)), "{ran:?}");
        std::fs::remove_file(path).expect("removed");
        let ran = home.run(&["verify", "--depth", "listed"]);
        assert!(ran.refused(1, &["damaged"]).text().contains(&name(path)), "{ran:?}");
        std::fs::write(path, &whole).expect("mended");
    }
}

#[test]
fn a_damaged_descriptor_or_key_box_opens_nothing() {
    let home = Home::with_snapshot();
    let keys = objects(&home, "keys");
    let whole = std::fs::read(&keys[0]).expect("readable");
    for bytes in [&whole[..whole.len() / 2], b""] {
        std::fs::write(&keys[0], bytes).expect("written");
        home.run(&["list"]).refused(1, &[&name(&keys[0])]);
    }
    std::fs::remove_file(&keys[0]).expect("removed");
    home.run(&["list"]).refused(1, &["key"]);
    std::fs::write(&keys[0], &whole).expect("mended");
    home.run(&["list"]).done();
    std::fs::remove_file(home.path("repository/tintype.json")).expect("removed");
    home.run(&["list"]).refused(1, &["repository"]);
}

#[test]
fn an_export_of_damaged_data_fails_and_the_next_snapshot_stores_it_again() {
    let home = Home::with_snapshot();
    let pack = &objects(&home, "packs")[0];
    let mut bytes = std::fs::read(pack).expect("readable");
    bytes[1000] ^= 1;
    std::fs::write(pack, bytes).expect("written");
    home.run(&["export", "demo/latest/data"]).refused(1, &[&name(pack)]);
    // Not even the manifest of the earlier snapshot can keep the next one from being taken.
    let manifest = &objects(&home, "manifests")[0];
    std::fs::write(manifest, b"x").expect("written");
    home.snapshot(&[]);
    assert_eq!(home.dates("demo").len(), 2);
}

#[test]
fn an_intent_that_cannot_be_read_does_not_keep_backups_from_being_taken() {
    let home = Home::with_snapshot();
    let intents = home.path("repository/clusters/demo/_intents");
    std::fs::create_dir_all(&intents).expect("a folder");
    std::fs::write(intents.join("0190a2b4-0000-7000-8000-000000000000"), b"not an intent").expect("written");
    let ran = home.run(&["snapshot", "demo", "--files", "data"]);
    assert!(ran.done().err.contains("passed over"), "{ran:?}");
}
