//! Clones and the cache of the host's mounts: what one has read, the others have.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::pread;

use super::Home;
use super::daemon::{configure, key, wait_until};
use super::gate::{Gate, Pass};
use super::mount::{Mountpoint, look};
use crate::support::s3::S3Server;

const LARGE: usize = 24 << 20;

/// What a clone says of its cache.
fn cache_of(home: &Home, place: &str) -> String {
    let said = look(&["getfattr", "--absolute-names", "--only-values", "-n", "user.tintype.cache", &home.text(place)]);
    said.done().text().to_owned()
}

/// Bytes of cached files on the disk.
fn taken(home: &Home) -> u64 {
    let files = std::fs::read_dir(home.path("cache/files")).into_iter().flatten().flatten();
    files.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

fn unclone(home: &Home, place: &str) {
    home.run(&["unclone", place, "--yes"]).done();
}

#[test]
fn what_one_clone_has_read_another_reads_while_the_store_is_away_and_a_mount_takes_over() {
    let (mut home, server) = (Home::new(), S3Server::s3s());
    let options = server.options();
    let endpoint = options.endpoint.expect("it has one");
    let is_away = Arc::new(AtomicBool::new(false));
    let rule = {
        let is_away = is_away.clone();
        move |_: &[u8]| if is_away.load(Ordering::SeqCst) { Pass::Cut } else { Pass::On }
    };
    let gate = Gate::before(endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port"), rule);
    home.url = format!("s3://{}/shared?endpoint=http://127.0.0.1:{}", options.bucket, gate.port);
    let credentials = options.credentials_file.expect("it has some");
    let repository = format!("region = \"us-east-1\"\npath_style = true\ncredentials_file = {credentials:?}\n{}", key(&home));
    let cache = format!("[cache]\ndirectory = {:?}\nsize = \"64MiB\"", home.path("cache"));
    configure(&home, "", &repository, &cache);
    home.data("data/large", LARGE, 1);
    home.run(&["init"]).done();
    home.snapshot(&[]);

    // Whatever happens, they are unmounted.
    let _places = [Mountpoint::new(&home, "one"), Mountpoint::new(&home, "two")];
    let directory = home.path("cache").display().to_string();
    home.run(&["clone", "demo/latest/data", "one"]).done();
    assert_eq!(cache_of(&home, "one"), format!("writes {directory}"));
    look(&["cmp", &home.text("data/large"), &home.text("one/large")]).done();
    wait_until("all of it is cached", Duration::from_secs(20), || taken(&home) >= LARGE as u64);

    home.run(&["clone", "demo/latest/data", "two"]).done();
    assert_eq!(cache_of(&home, "two"), format!("reads {directory}"));
    let listed = home.run(&["status"]);
    assert!(listed.text().contains(&format!("cache: reads {directory}")), "{listed:?}");
    // Which blocks it has is asked of the store, once.
    let file = File::open(home.path("two/large")).expect("opens");
    let mut byte = [0];
    pread(&file, &mut byte, 0).expect("reads");
    drop(file);
    is_away.store(true, Ordering::SeqCst);
    let compared = Command::new("timeout").args(["20", "cmp"]).args([home.path("data/large"), home.path("two/large")]).status();
    assert!(compared.expect("is installed").success(), "the store was needed, or the bytes are others");
    is_away.store(false, Ordering::SeqCst);

    unclone(&home, "one");
    wait_until("the other one writes", Duration::from_secs(20), || cache_of(&home, "two") == format!("writes {directory}"));
    let place = Mountpoint::new(&home, "mount");
    home.run(&["mount", &place.text()]).done();
    assert_eq!(cache_of(&home, "two"), format!("reads {directory}"));
    let attribute = ["getfattr", "--only-values", "-n", "user.tintype.cached_bytes", &home.text("mount/demo/latest/data/large")];
    assert_eq!(look(&attribute).done().text(), &LARGE.to_string());
    home.run(&["unmount", &place.text()]).done();
    unclone(&home, "two");
}

#[test]
fn a_cache_that_cannot_be_used_keeps_no_clone_from_being_served() {
    let home = Home::with_repository();
    home.data("data/a", 300_000, 1);
    home.snapshot(&[]);
    std::fs::create_dir(home.path("cache")).expect("makes");
    std::fs::set_permissions(home.path("cache"), std::fs::Permissions::from_mode(0o777)).expect("chmods");
    let cache = format!("[cache]\ndirectory = {:?}\nsize = \"64MiB\"", home.path("cache"));
    configure(&home, "", &key(&home), &cache);
    let _place = Mountpoint::new(&home, "one");
    home.run(&["clone", "demo/latest/data", "one"]).done();
    assert!(cache_of(&home, "one").starts_with("none: ") && cache_of(&home, "one").contains("others could have written in it"));
    look(&["cmp", &home.text("data/a"), &home.text("one/a")]).done();
    unclone(&home, "one");
}
