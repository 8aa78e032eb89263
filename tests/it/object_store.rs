//! The object stores against real servers and a real file system.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tintype::object::local::LocalStore;
use tintype::object::memory::MemoryStore;
use tintype::object::s3::S3Store;
use tintype::object::{Capabilities, ObjectError, ObjectStore, PutMode, S3Options, conformance, probe};

use crate::support::s3::S3Server;

fn store(options: S3Options) -> S3Store {
    S3Store::new(options).expect("the options are good")
}

fn body() -> Bytes {
    Bytes::from_static(b"some bytes")
}

#[tokio::test]
async fn memory_keeps_every_promise() {
    let store = MemoryStore::new();
    conformance::all(&store, &conformance::EVERYTHING).await;
    conformance::strict(&store).await;
}

#[tokio::test]
async fn a_directory_keeps_every_promise() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let store = LocalStore::new(folder.path());
    let found = probe(&store).await.expect("probe");
    // Nothing travels to a directory that a checksum could be compared with.
    assert_eq!(found, Capabilities { checks_uploads: false, ..conformance::EVERYTHING });
    conformance::all(&store, &found).await;
    conformance::strict(&store).await;
}

#[tokio::test]
async fn a_server_with_conditional_puts_keeps_every_promise() {
    let server = S3Server::moto();
    let store = store(server.options());
    let found = probe(&store).await.expect("probe");
    // It stores any checksum unseen.
    assert_eq!(found, Capabilities { checks_uploads: false, ..conformance::EVERYTHING });
    conformance::all(&store, &found).await;
    conformance::strict(&store).await;
}

#[tokio::test]
async fn a_server_that_checks_signatures_keeps_every_promise() {
    let server = S3Server::s3s();
    let store = store(server.options());
    let found = probe(&store).await.expect("probe");
    assert_eq!(found, conformance::EVERYTHING);
    conformance::all(&store, &found).await;
}

#[tokio::test]
async fn an_upload_is_called_checked_only_by_a_store_that_was_seen_to_check() {
    let server = S3Server::s3s();
    let store = store(server.options());
    let before = store.put("object", body(), PutMode::Replace).await.expect("put");
    store.assume(&probe(&store).await.expect("probe"));
    let after = store.put("object", body(), PutMode::Replace).await.expect("put");
    assert_eq!((before.is_checked_by_store, after.is_checked_by_store), (false, true));
}

#[tokio::test]
async fn credentials_that_are_replaced_in_their_file_are_taken_up() {
    let server = S3Server::s3s();
    let good = store(server.options());
    good.put("object", body(), PutMode::Replace).await.expect("put");
    let options = server.options_with_secret("expired");
    let file = options.credentials_file.clone().expect("it has one");
    let store = store(options);
    store.get("object", None).await.expect_err("refused");
    let text = std::fs::read_to_string(&file).expect("ours");
    std::fs::write(&file, text.replace("expired", crate::support::s3::SECRET_KEY)).expect("ours");
    let began = Instant::now();
    // The file is not read for every refusal.
    while let Err(error) = store.get("object", None).await {
        assert!(matches!(error, ObjectError::Denied { .. }), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(15), "the old secret is still used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_wrong_secret_is_denied_in_the_server_s_words() {
    let server = S3Server::s3s();
    let store = store(server.options_with_secret("wrong"));
    for answer in [
        store.put("object", body(), PutMode::Replace).await.map(|_| ()),
        store.get("object", None).await.map(|_| ()),
        store.list("", None, 10).await.map(|_| ()),
        store.delete("object").await,
    ] {
        let error = answer.expect_err("the secret is wrong");
        assert!(matches!(error, ObjectError::Denied { .. }), "{error:?}");
        assert!(error.to_string().contains("SignatureDoesNotMatch"), "{error}");
    }
    let error = store.head("object").await.expect_err("the secret is wrong");
    assert!(matches!(error, ObjectError::Denied { .. }), "a head has no words: {error:?}");
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_no_store() {
    // s3s-fs makes a missing bucket at the first put.
    let server = S3Server::moto();
    let store = store(S3Options { bucket: "absent".to_owned(), ..server.options() });
    for answer in [
        store.put("object", body(), PutMode::Create).await.map(|_| ()),
        store.get("object", None).await.map(|_| ()),
        store.head("object").await.map(|_| ()),
        store.list("", None, 10).await.map(|_| ()),
        store.list_folders("").await.map(|_| ()),
        probe(&store).await.map(|_| ()),
    ] {
        assert!(matches!(answer, Err(ObjectError::NoStore { .. })), "{answer:?}");
    }
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_no_store() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let store = LocalStore::new(folder.path().join("absent"));
    for answer in [
        store.put("a/object", body(), PutMode::Create).await.map(|_| ()),
        store.get("a/object", None).await.map(|_| ()),
        store.head("a/object").await.map(|_| ()),
        store.list("", None, 10).await.map(|_| ()),
        store.list_folders("a/").await.map(|_| ()),
        probe(&store).await.map(|_| ()),
    ] {
        assert!(matches!(answer, Err(ObjectError::NoStore { .. })), "{answer:?}");
    }
    assert!(!folder.path().join("absent").exists(), "nothing was made on the way");
}

#[tokio::test]
async fn a_server_that_goes_away_is_unavailable_within_the_limits() {
    let mut server = S3Server::s3s();
    let options = server.options();
    // Each try connects or reads, and waits at most two seconds for the next.
    let limit = (options.connect_timeout + options.read_timeout + Duration::from_secs(2)) * options.max_attempts;
    let store = store(options);
    store.put("object", body(), PutMode::Replace).await.expect("put");
    server.kill();
    let start = Instant::now();
    for answer in [
        store.get("object", None).await.map(|_| ()),
        store.put("object", body(), PutMode::Create).await.map(|_| ()),
        store.list("", None, 10).await.map(|_| ()),
    ] {
        assert!(matches!(answer, Err(ObjectError::Unavailable { .. })), "{answer:?}");
    }
    assert!(start.elapsed() < limit * 3, "{:?}", start.elapsed());
}
