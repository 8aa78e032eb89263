//! The independent reader on a bucket: what today's code writes to an S3 server, a stranger reads from it, byte for byte.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use tintype::object::S3Options;
use tintype::object::s3::S3Store;
use tintype::repo::SnapshotSource;

use crate::reader::{
    BLOCK_BYTES, Stored, Tree, assert_same, cluster, command, create_in, extracted, key_file, noise, path, snapshot, walk,
};
use crate::support::s3::{ACCESS_KEY, S3Server, SECRET_KEY};

const KEY: [u8; 40] = [9; 40];

/// The reader as somebody uses it who has the keys of the bucket and of the repository.
struct Stranger {
    options: S3Options,
    directory: tempfile::TempDir,
}

impl Stranger {
    fn run(&self, verb: &str, arguments: &[&str], secret: &str) -> Output {
        let url = format!("s3://{}/{}", self.options.bucket, self.options.prefix);
        let mut command = command([&[verb, &url], arguments].concat());
        command.arg("--endpoint").arg(self.options.endpoint.as_deref().expect("it has one"));
        command.arg("--key-file").arg(self.directory.path().join("key"));
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", secret).env_remove("AWS_SESSION_TOKEN");
        command.output().expect("Python runs: see scripts/install-needs")
    }

    fn read(&self, verb: &str, arguments: &[&str]) -> String {
        let output = self.run(verb, arguments, SECRET_KEY);
        assert!(output.status.success(), "{verb} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn place(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }
}

/// Something of each kind. Small: each block is a request of its own.
fn tree(seed: u64) -> Tree {
    let repeated = [noise(seed, 5 * BLOCK_BYTES as usize), vec![7; 20 * BLOCK_BYTES as usize]].concat();
    Tree::from([
        (path("empty"), Stored::File(Vec::new())),
        (path("few"), Stored::File(b"few".to_vec())),
        (path("large"), Stored::File(repeated)),
        (path("large-again"), Stored::Same(b"large".to_vec())),
        (path("sub"), Stored::Directory),
        (path([b"sub/\xff\n ".as_slice(), "ä+%".as_bytes()].concat()), Stored::File(noise(seed + 1, 10_000))),
        (path("sub/link"), Stored::Link(b"../\xfe".to_vec())),
    ])
}

async fn assert_read_byte_for_byte(server: &S3Server, seed: u64) -> Stranger {
    let stranger = Stranger { options: server.options(), directory: tempfile::tempdir().expect("a directory") };
    std::fs::write(stranger.place("key"), KEY).expect("writes");
    let store = Arc::new(S3Store::new(server.options()).expect("the options are good"));
    let repository = create_in(store, Some(&key_file(&KEY))).await;
    let first = tree(seed);
    let mut second = first.clone();
    second.insert(path("added"), Stored::File(noise(77, 7000)));
    snapshot(&repository, &[("node-1", &first)]).await;
    let newest = snapshot(&repository, &[("node-1", &second)]).await;

    let dates: Vec<_> = repository.snapshots(&cluster()).await.expect("lists").iter().map(|s| s.date.to_string()).collect();
    let listed = stranger.read("list", &[]);
    let names: Vec<_> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, dates.iter().map(|date| format!("prod/{date}")).collect::<Vec<_>>());
    assert!(stranger.read("show", &["prod/latest"]).contains("node-1/added"));
    for (name, wanted, tree) in [("new", "latest".to_owned(), &second), ("old", dates[1].clone(), &first)] {
        let target = stranger.place(name);
        stranger.read("extract", &[&format!("prod/{wanted}/node-1"), &target]);
        assert_same(seed, &walk(Path::new(&target)), &extracted(tree));
    }
    assert!(stranger.read("verify", &[&format!("prod/{}", newest.date)]).contains("all verified"));
    stranger
}

#[tokio::test(flavor = "multi_thread")]
async fn the_independent_reader_extracts_from_a_bucket_what_was_stored_byte_for_byte() {
    assert_read_byte_for_byte(&S3Server::moto(), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_independent_reader_signs_what_it_asks_of_a_bucket() {
    let server = S3Server::s3s();
    let stranger = assert_read_byte_for_byte(&server, 2).await;
    let refused = stranger.run("list", &[], "wrong");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("SignatureDoesNotMatch") && said.lines().count() == 1, "{said}");
}
