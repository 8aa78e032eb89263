//! `tintype warm`: with and without a mount, what it says, and what it cannot do.

use super::Home;
use super::mount::{Mountpoint, look};

#[test]
fn a_node_is_fetched_into_the_cache_and_a_later_mount_has_it() {
    let home = Home::with_repository();
    home.data("data/a", 5_000_000, 1);
    home.data("data/sub/b", 70_000, 2);
    home.data("data/sub/tiny", 10, 3);
    home.snapshot(&[]);
    let (cache, size) = (home.text("cache"), "64MiB");
    let said = home.run(&["warm", "demo/latest/data/sub", "--cache-dir", &cache, "--cache-size", size, "--json"]).json();
    assert_eq!((&said["files"], &said["whole_files"], &said["bytes"]), (&2.into(), &2.into(), &70_010.into()));
    let said = home.run(&["warm", "demo/latest/data", "--cache-dir", &cache, "--cache-size", size]);
    assert!(said.done().text().contains("3 of 3 files whole"), "{said:?}");

    let place = Mountpoint::new(&home, "mount");
    home.run(&["mount", &place.text(), "--cache-dir", &cache, "--cache-size", size]).done();
    let attribute =
        look(&["getfattr", "--only-values", "-n", "user.tintype.cached_bytes", &home.text("mount/demo/latest/data/a")]);
    assert_eq!(attribute.done().text(), "5000000");
    home.run(&["unmount", &place.text()]).done();
}

#[test]
fn a_mount_that_has_the_cache_fetches_and_status_and_doctor_show_it() {
    let home = Home::with_repository();
    home.data("data/a", 5_000_000, 1);
    home.data("data/b", 600_000, 2);
    home.snapshot(&[]);
    let place = Mountpoint::new(&home, "mount");
    home.run(&["mount", &place.text(), "--cache-dir", &home.text("cache"), "--cache-size", "64MiB"]).done();
    let said = home.run(&["warm", "demo/latest/data", "--json"]).json();
    assert_eq!((&said["whole_files"], &said["cached_bytes"]), (&2.into(), &5_600_000.into()));
    assert_eq!(
        said["mountpoint"],
        home.text("mount/demo/").as_str().to_owned() + said["date"].as_str().expect("a date") + "/data"
    );
    look(&["cmp", &home.text("data/a"), &home.text("mount/demo/latest/data/a")]).done();

    let status = home.run(&["status", "--json"]).json();
    let mount = status["mounts"].as_array().expect("a list").iter().find(|mount| mount["mountpoint"] == place.text());
    let mount = mount.expect("it is mounted");
    assert!(mount["cache_used_bytes"].as_u64().is_some_and(|used| used >= 5_600_000), "{mount}");
    assert_eq!((&mount["store"], &mount["answers"]), (&"answers".into(), &true.into()));
    for verb in ["status", "doctor"] {
        let said = home.run(&[verb]);
        let line = said.text().lines().find(|line| line.contains(&place.text())).map(str::to_owned).unwrap_or_default();
        assert!(line.contains("passthrough ") && line.contains("cached in "), "{verb}: {said:?}");
    }
    home.run(&["unmount", &place.text()]).done();
}

#[test]
fn what_does_not_fit_is_said_and_what_is_not_there_is_named() {
    let home = Home::with_repository();
    home.data("data/a", 6_000_000, 1);
    home.snapshot(&[]);
    let (cache, small) = (home.text("cache"), "2MiB");
    let ran = home.run(&["warm", "demo/latest/data", "--cache-dir", &cache, "--cache-size", small]);
    ran.refused(3, &["not all of it", "raise [cache] size"]);
    home.run(&["warm", "demo/latest/data"]).refused(2, &["which cache", "--cache-dir"]);
    home.run(&["warm", "demo/latest", "--cache-dir", &cache]).refused(2, &["no node was named"]);
    home.run(&["warm", "demo/latest/data/none", "--cache-dir", &cache, "--cache-size", small]).refused(1, &["has no none"]);
    let inside = home.text("repository/cache");
    home.run(&["warm", "demo/latest/data", "--cache-dir", &inside, "--cache-size", small]).refused(1, &["cannot be a cache"]);
}
