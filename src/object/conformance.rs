//! The promises of [`ObjectStore`] as tests that every implementation and wrapper passes.
//!
//! Each promise is a function that panics where it is broken; [`all`] runs them one after the other. They write below
//! `conformance/<uuid>/` and leave nothing, so that they can be run against a store that holds other things.

use bytes::Bytes;
use futures::future::join_all;
use uuid::Uuid;

use super::{Capabilities, ObjectError, ObjectStore, ObjectVersion, PutMode, list_after, list_all};

/// Of a store that keeps the optional promises too.
pub const EVERYTHING: Capabilities =
    Capabilities { refuses_second_create: true, refuses_stale_replace: true, checks_uploads: true, serves_ranges: true };

/// Every promise; those that a store may lack only where `capabilities` says that it has them.
pub async fn all(store: &dyn ObjectStore, capabilities: &Capabilities) {
    what_was_put_is_what_comes_back(store).await;
    replace_replaces(store).await;
    head_tells_size_and_version(store).await;
    what_is_not_there_is_not_found(store).await;
    deleting_nothing_is_fine(store).await;
    a_deleted_object_is_gone(store).await;
    a_range_is_served_exactly(store).await;
    a_range_beyond_the_end_is_an_error(store).await;
    a_listing_is_in_byte_order_of_whole_keys(store).await;
    a_listing_is_paged_without_loss_or_repetition(store).await;
    a_listing_begins_after_any_key(store).await;
    a_prefix_may_end_inside_a_component(store).await;
    folders_are_the_next_components(store).await;
    impossible_keys_are_refused(store).await;
    a_reader_sees_an_old_or_a_new_object_whole(store).await;
    unusual_characters_survive(store).await;
    if capabilities.refuses_second_create {
        a_second_create_is_refused(store).await;
    }
    if capabilities.refuses_stale_replace {
        a_stale_replace_is_refused(store).await;
    }
    if capabilities.checks_uploads {
        a_wrong_checksum_is_refused(store).await;
    }
}

/// What every store that holds real snapshots keeps, and some small servers made for tests do not.
pub async fn strict(store: &dyn ObjectStore) {
    the_path_of_an_object_is_no_object(store).await;
    one_of_racing_creates_wins(store).await;
}

/// A body comes back as it was put, the empty one and a large one too.
pub async fn what_was_put_is_what_comes_back(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    for (name, size_bytes) in [("empty", 0), ("one", 1), ("large", 9 * 1024 * 1024 + 7)] {
        let key = scratch.key(name);
        let body = patterned(size_bytes);
        store.put(&key, body.clone(), PutMode::Create).await.expect("a fresh key takes an object");
        let found = store.get(&key, None).await.expect("what was put can be read");
        assert!(found == body, "{name}: other bytes came back ({} of {size_bytes})", found.len());
    }
    scratch.clear().await;
}

/// Replace takes a free key and one that is taken.
pub async fn replace_replaces(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let key = scratch.key("object");
    let first = store.put(&key, patterned(10), PutMode::Replace).await.expect("replace takes a free key");
    let second = store.put(&key, patterned(20), PutMode::Replace).await.expect("replace takes a taken key");
    assert_ne!(first.version, second.version, "another content is another version");
    assert_eq!(store.get(&key, None).await.expect("the object is there"), patterned(20));
    scratch.clear().await;
}

/// Head agrees with put and get.
pub async fn head_tells_size_and_version(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let key = scratch.key("object");
    let receipt = store.put(&key, patterned(12_345), PutMode::Replace).await.expect("put");
    let entry = store.head(&key).await.expect("head of a present object");
    assert_eq!((entry.key.as_str(), entry.size_bytes), (key.as_str(), 12_345));
    assert_eq!(entry.version, Some(receipt.version), "head and put name the same version");
    scratch.clear().await;
}

/// Get, ranged get and head of a free key are `NotFound`.
pub async fn what_is_not_there_is_not_found(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    for name in ["absent", "absent/deep/er"] {
        scratch.expect_not_found(name).await;
    }
}

/// What is only a part of an object's path, or would lie below an object, is `NotFound`.
pub async fn the_path_of_an_object_is_no_object(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    store.put(&scratch.key("folder/object"), patterned(5), PutMode::Replace).await.expect("put");
    for name in ["folder", "folder/other", "folder/object/below"] {
        scratch.expect_not_found(name).await;
    }
    store.delete(&scratch.key("folder")).await.expect("deleting what is no object is fine");
    scratch.expect_found("folder/object").await;
    scratch.clear().await;
}

/// Deleting twice, and what never was, is fine.
pub async fn deleting_nothing_is_fine(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let key = scratch.key("object");
    store.put(&key, patterned(1), PutMode::Replace).await.expect("put");
    for _ in 0..2 {
        store.delete(&key).await.expect("deleting is fine, twice too");
    }
    store.delete(&scratch.key("never/was")).await.expect("deleting what never was is fine");
}

/// After a delete neither get nor list finds the object, and its key is free again.
pub async fn a_deleted_object_is_gone(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let key = scratch.key("object");
    store.put(&key, patterned(1), PutMode::Create).await.expect("put");
    store.delete(&key).await.expect("delete");
    assert!(matches!(store.get(&key, None).await, Err(ObjectError::NotFound { .. })));
    assert_eq!(scratch.listed().await, Vec::<String>::new());
    store.put(&key, patterned(2), PutMode::Create).await.expect("the key is free again");
    scratch.clear().await;
}

/// Ranges at the beginning, in the middle, up to the end, and the whole.
pub async fn a_range_is_served_exactly(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let key = scratch.key("object");
    let body = patterned(100_000);
    store.put(&key, body.clone(), PutMode::Replace).await.expect("put");
    for range in [0..1, 0..100_000, 1..2, 500..70_000, 99_999..100_000] {
        let found = store.get(&key, Some(range.clone())).await.expect("a range inside the object");
        assert!(found == body[range.start as usize..range.end as usize], "{range:?}: other bytes");
    }
    scratch.clear().await;
}

/// A range that begins or ends beyond the object is `ShortRange`; an empty one makes no sense.
pub async fn a_range_beyond_the_end_is_an_error(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let (key, empty) = (scratch.key("object"), scratch.key("empty"));
    store.put(&key, patterned(100), PutMode::Replace).await.expect("put");
    store.put(&empty, Bytes::new(), PutMode::Replace).await.expect("put");
    for (key, range) in [(&key, 0..101), (&key, 99..101), (&key, 100..101), (&key, 5000..5001), (&empty, 0..1)] {
        let answer = store.get(key, Some(range.clone())).await;
        assert!(matches!(answer, Err(ObjectError::ShortRange { .. })), "{range:?}: {answer:?}");
    }
    let answer = store.get(&key, Some(5..5)).await;
    assert!(matches!(answer, Err(ObjectError::Invalid { .. })), "an empty range: {answer:?}");
    scratch.clear().await;
}

/// The order of whole keys counts, not that of directories: `a-b`, `a.b`, `a/b`, `a0`.
pub async fn a_listing_is_in_byte_order_of_whole_keys(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let names = ["a-b", "a.b", "a/b", "a/b.c", "a0", "aa/x", "b", "a.c/d", "A", "a-/z"];
    for name in names {
        store.put(&scratch.key(name), patterned(name.len()), PutMode::Replace).await.expect("put");
    }
    let mut expected: Vec<String> = names.iter().map(|name| scratch.key(name)).collect();
    expected.sort_unstable();
    let found = list_all(store, &scratch.prefix).await.expect("list");
    assert_eq!(found.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>(), expected);
    for entry in found {
        assert_eq!(entry.size_bytes as usize, entry.key.len() - scratch.prefix.len(), "{}", entry.key);
    }
    scratch.clear().await;
}

/// Pages of any size together give every key once.
pub async fn a_listing_is_paged_without_loss_or_repetition(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let mut expected: Vec<String> = (0..23).map(|index| scratch.key(&format!("{}/{index:03}", index % 3))).collect();
    expected.sort_unstable();
    for key in &expected {
        store.put(key, patterned(3), PutMode::Replace).await.expect("put");
    }
    for limit in [1, 7, 22, 23, 24] {
        let mut found: Vec<String> = Vec::new();
        loop {
            let page = store.list(&scratch.prefix, found.last().map(String::as_str), limit).await.expect("list");
            assert!(page.objects.len() <= limit, "a page of at most {limit}");
            found.extend(page.objects.into_iter().map(|entry| entry.key));
            if !page.has_more {
                break;
            }
            assert!(found.len() < expected.len(), "there is no more, limit {limit}");
        }
        assert_eq!(found, expected, "limit {limit}");
    }
    scratch.clear().await;
}

/// `start_after` need not be a key that is there, and may lie before, inside and behind the prefix.
pub async fn a_listing_begins_after_any_key(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    for name in ["a/1", "a/2", "b", "c/3"] {
        store.put(&scratch.key(name), patterned(1), PutMode::Replace).await.expect("put");
    }
    for (after, expected) in [
        ("a", vec!["a/1", "a/2", "b", "c/3"]),
        ("a/1", vec!["a/2", "b", "c/3"]),
        ("a/11", vec!["a/2", "b", "c/3"]),
        ("a0", vec!["b", "c/3"]),
        ("b", vec!["c/3"]),
        ("c/3", vec![]),
        ("d", vec![]),
    ] {
        let found = list_after(store, &scratch.prefix, Some(&scratch.key(after))).await.expect("list");
        let found: Vec<_> = found.iter().map(|entry| scratch.name(&entry.key)).collect();
        assert_eq!(found, expected, "after {after}");
    }
    scratch.clear().await;
}

/// A prefix is a string, not a folder.
pub async fn a_prefix_may_end_inside_a_component(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    for name in ["2026-10/x", "2026-11-01", "2026-11-20/y", "2027"] {
        store.put(&scratch.key(name), patterned(1), PutMode::Replace).await.expect("put");
    }
    for (prefix, expected) in [
        ("2026-11", vec!["2026-11-01", "2026-11-20/y"]),
        ("2026-11-20", vec!["2026-11-20/y"]),
        ("2026-11-20/", vec!["2026-11-20/y"]),
        ("2026-11-01/", vec![]),
        ("2025", vec![]),
        ("2025/12/", vec![]),
    ] {
        let found = list_all(store, &scratch.key(prefix)).await.expect("list");
        let found: Vec<_> = found.iter().map(|entry| scratch.name(&entry.key)).collect();
        assert_eq!(found, expected, "{prefix}");
    }
    scratch.clear().await;
}

/// Folders are those with objects beneath, ascending, each once; objects beside them are none.
pub async fn folders_are_the_next_components(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    for name in ["b/1", "b/2/3", "a.x/1", "a/1/2/3", "object", "gone/1"] {
        store.put(&scratch.key(name), patterned(1), PutMode::Replace).await.expect("put");
    }
    store.delete(&scratch.key("gone/1")).await.expect("delete");
    assert_eq!(store.list_folders(&scratch.prefix).await.expect("folders"), ["a", "a.x", "b"]);
    assert_eq!(store.list_folders(&scratch.key("b/")).await.expect("folders"), ["2"]);
    assert_eq!(store.list_folders(&scratch.key("absent/")).await.expect("folders"), Vec::<String>::new());
    scratch.clear().await;
}

/// What is no key, or would leave the store as a path, is refused by every verb.
pub async fn impossible_keys_are_refused(store: &dyn ObjectStore) {
    let long_component = "x".repeat(256);
    let long_key = ["y".repeat(200).as_str(); 6].join("/");
    for key in ["", "/", "/a", "a//b", "a/", ".", "..", "../a", "a/../b", "a/./b", "a\0b", ".tmp/x", &long_component, &long_key] {
        for answer in [
            store.put(key, patterned(1), PutMode::Replace).await.map(|_| ()),
            store.get(key, None).await.map(|_| ()),
            store.head(key).await.map(|_| ()),
            store.delete(key).await,
        ] {
            assert!(matches!(answer, Err(ObjectError::Invalid { .. })), "{key:?}: {answer:?}");
        }
    }
}

/// While an object is replaced over and over, a reader sees one of the bodies whole.
pub async fn a_reader_sees_an_old_or_a_new_object_whole(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let key = scratch.key("object");
    let bodies: Vec<Bytes> = (0..4u8).map(|fill| Bytes::from(vec![fill; 200_000 + usize::from(fill)])).collect();
    store.put(&key, bodies[0].clone(), PutMode::Replace).await.expect("put");
    let write = async {
        for round in 0..12 {
            store.put(&key, bodies[round % 4].clone(), PutMode::Replace).await.expect("put");
        }
    };
    let read = async {
        for _ in 0..12 {
            let found = store.get(&key, None).await.expect("the object never vanishes");
            assert!(bodies.contains(&found), "a mixture or a part of {} bytes", found.len());
        }
    };
    futures::future::join(write, read).await;
    scratch.clear().await;
}

/// Keys are bytes to us: blanks, quotes, percent and plus signs, and letters beyond ASCII.
pub async fn unusual_characters_survive(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let mut keys: Vec<String> =
        ["a b", "a+b", "a%20b", "a&b=c?d#e", "ä", "日本/語", "quote\"'", "semi;colon,", "~!@$^*()[]{}|<>`"]
            .map(|name| scratch.key(name))
            .to_vec();
    keys.sort_unstable();
    for key in &keys {
        store.put(key, Bytes::from(key.clone()), PutMode::Replace).await.expect("put");
    }
    assert_eq!(scratch.listed().await, keys);
    for key in &keys {
        assert_eq!(store.get(key, None).await.expect("get"), Bytes::from(key.clone()));
    }
    scratch.clear().await;
}

/// Of writers that create one key one after another the first wins, and its body stays.
pub async fn a_second_create_is_refused(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let key = scratch.key("object");
    store.put(&key, patterned(1), PutMode::Create).await.expect("the key is free");
    let answer = store.put(&key, patterned(2), PutMode::Create).await;
    assert!(matches!(answer, Err(ObjectError::Conflict { .. })), "{answer:?}");
    assert_eq!(store.get(&key, None).await.expect("get"), patterned(1));
    scratch.clear().await;
}

/// Of writers that create one key at once exactly one wins.
pub async fn one_of_racing_creates_wins(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let key = scratch.key("object");
    let answers = join_all((1..=8).map(|size| store.put(&key, patterned(size), PutMode::Create))).await;
    let winners: Vec<_> = answers.iter().enumerate().filter(|(_, answer)| answer.is_ok()).collect();
    assert_eq!(winners.len(), 1, "{answers:?}");
    assert_eq!(store.get(&key, None).await.expect("get"), patterned(winners[0].0 + 1));
    scratch.clear().await;
}

/// `IfMatch` replaces the version that was read, and no other; nothing there is another version.
pub async fn a_stale_replace_is_refused(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let key = scratch.key("object");
    let never = PutMode::IfMatch(ObjectVersion("\"00000000000000000000000000000000\"".to_owned()));
    let answer = store.put(&key, patterned(1), never).await;
    assert!(
        matches!(answer, Err(ObjectError::Conflict { .. } | ObjectError::NotFound { .. })),
        "there is nothing to replace: {answer:?}"
    );
    let first = store.put(&key, patterned(1), PutMode::Create).await.expect("put").version;
    let second = store.put(&key, patterned(2), PutMode::IfMatch(first.clone())).await.expect("the version fits").version;
    let answer = store.put(&key, patterned(3), PutMode::IfMatch(first)).await;
    assert!(matches!(answer, Err(ObjectError::Conflict { .. })), "{answer:?}");
    assert_eq!(store.get(&key, None).await.expect("get"), patterned(2));
    store.put(&key, patterned(4), PutMode::IfMatch(second)).await.expect("the version fits");
    scratch.clear().await;
}

/// A body that does not fit its checksum is refused. That nothing of it is left is more than some servers keep.
pub async fn a_wrong_checksum_is_refused(store: &dyn ObjectStore) {
    let scratch = Scratch::new(store);
    let key = scratch.key("object");
    let answer = store.put_with_wrong_checksum(&key, patterned(1000)).await;
    assert!(matches!(answer, Err(ObjectError::Invalid { .. })), "{answer:?}");
    scratch.clear().await;
}

/// Bytes that differ at every place of a large body, so that a shifted range is noticed.
fn patterned(size_bytes: usize) -> Bytes {
    (0..size_bytes).map(|index| (index.wrapping_mul(31) ^ (index >> 8).wrapping_mul(17)) as u8).collect()
}

/// A corner of the store for one promise.
struct Scratch<'a> {
    store: &'a dyn ObjectStore,
    prefix: String,
}

impl<'a> Scratch<'a> {
    fn new(store: &'a dyn ObjectStore) -> Self {
        Self { store, prefix: format!("conformance/{}/", Uuid::new_v4()) }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn name<'k>(&self, key: &'k str) -> &'k str {
        key.strip_prefix(&self.prefix).expect("a listing holds only keys of its prefix")
    }

    async fn listed(&self) -> Vec<String> {
        let found = list_all(self.store, &self.prefix).await.expect("list");
        found.into_iter().map(|entry| entry.key).collect()
    }

    async fn expect_not_found(&self, name: &str) {
        let key = self.key(name);
        for answer in [
            self.store.get(&key, None).await.map(|_| ()),
            self.store.get(&key, Some(0..1)).await.map(|_| ()),
            self.store.head(&key).await.map(|_| ()),
        ] {
            assert!(matches!(answer, Err(ObjectError::NotFound { .. })), "{name}: {answer:?}");
        }
    }

    async fn expect_found(&self, name: &str) {
        self.store.head(&self.key(name)).await.expect("the object is there");
    }

    async fn clear(&self) {
        for key in self.listed().await {
            self.store.delete(&key).await.expect("delete");
        }
    }
}
