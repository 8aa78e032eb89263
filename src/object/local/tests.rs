//! What only a directory store promises.

use super::super::conformance;
use super::*;

#[tokio::test]
async fn a_directory_keeps_every_promise() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let capabilities = super::super::Capabilities { checks_uploads: false, ..conformance::EVERYTHING };
    let store = LocalStore::new(folder.path());
    conformance::all(&store, &capabilities).await;
    conformance::strict(&store).await;
}

fn folder_and_store() -> (tempfile::TempDir, LocalStore) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let store = LocalStore::new(folder.path());
    (folder, store)
}

fn body() -> Bytes {
    Bytes::from_static(b"some bytes")
}

#[tokio::test]
async fn links_are_not_followed_out_of_the_root() {
    let (folder, store) = folder_and_store();
    let outside = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(outside.path().join("secret"), b"secret").expect("write");
    std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).expect("link");
    std::os::unix::fs::symlink(outside.path().join("secret"), folder.path().join("file")).expect("link");
    for key in ["link/secret", "file"] {
        assert!(store.get(key, None).await.is_err(), "{key}");
        assert!(!store.head(key).await.is_ok_and(|entry| entry.size_bytes > 0), "{key}");
    }
    store.put("link/new", body(), PutMode::Replace).await.expect_err("a folder is a link");
    store.put("link/new", body(), PutMode::Create).await.expect_err("a folder is a link");
    let _ = store.delete("link/secret").await;
    let found: Vec<_> = std::fs::read_dir(outside.path()).expect("read").map(|entry| entry.expect("entry").path()).collect();
    assert_eq!(found, [outside.path().join("secret")]);
    assert_eq!(store.list("", None, 10).await.expect("list").objects, []);
    assert_eq!(store.list_folders("").await.expect("folders"), Vec::<String>::new());
}

#[tokio::test]
async fn a_fifo_is_no_object_and_nobody_waits_for_it() {
    let (folder, store) = folder_and_store();
    let path = std::ffi::CString::new(folder.path().join("fifo").into_os_string().into_encoded_bytes()).expect("no NUL");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
        .expect("a fifo");
    assert!(matches!(store.get("fifo", None).await, Err(ObjectError::NotFound { .. })));
    assert!(matches!(store.head("fifo").await, Err(ObjectError::NotFound { .. })));
}

#[tokio::test]
async fn what_a_dead_writer_left_is_removed_and_what_a_living_one_writes_is_not() {
    let (folder, store) = folder_and_store();
    store.put("a", body(), PutMode::Replace).await.expect("put");
    let own = folder.path().join(temporary::path());
    let foreign = folder.path().join(".tmp/elsewhere.1-1-x.writing");
    let old = folder.path().join(".tmp/elsewhere.1-2-x.writing");
    for path in [&own, &foreign, &old] {
        std::fs::write(path, b"half").expect("write");
    }
    let two_days_ago = std::time::SystemTime::now() - Duration::from_secs(48 * 3600);
    std::fs::File::options().write(true).open(&old).and_then(|file| file.set_modified(two_days_ago)).expect("set time");
    LocalStore::new(folder.path()).put("b", body(), PutMode::Replace).await.expect("put");
    assert!(own.exists() && foreign.exists() && !old.exists());
}

#[tokio::test]
async fn a_listing_of_ten_thousand_objects_is_paged_in_order() {
    let (folder, store) = folder_and_store();
    std::fs::create_dir(folder.path().join("many")).expect("a folder");
    for index in 0..10_000 {
        std::fs::File::create(folder.path().join(format!("many/{index:05}"))).expect("a file");
    }
    let all = super::super::list_all(&store, "many/").await.expect("list");
    assert_eq!(all.len(), 10_000);
    assert!(all.is_sorted_by_key(|entry| entry.key.clone()));
}

#[tokio::test]
async fn a_new_root_is_its_owner_s_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let root = folder.path().join("some/where");
    for _ in 0..2 {
        LocalStore::create(&root).expect("made once, found twice");
    }
    let mode = std::fs::metadata(&root).expect("the root is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
