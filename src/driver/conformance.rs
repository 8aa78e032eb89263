//! The promises of [`StoreDriver`] as tests, to be run against every driver on a node that is well.
//!
//! They panic where a promise is broken, naming it. **Not here**: what needs another client of the store, such as that
//! no write is accepted inside a freeze: that is tested beside each driver.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::{CapturedContent, CapturedEntry, StoreDriver};
use crate::model::manifest::{Consistency, FileKind};
use crate::model::names::TreePath;

/// The pause of the suite, generous for a busy test machine.
const PAUSE: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(20);

/// Every promise, one after another, on one driver.
pub async fn all(driver: &mut dyn StoreDriver) {
    a_node_says_what_it_is(driver).await;
    thaw_and_abandon_are_always_allowed(driver).await;
    capture_without_freeze_is_refused(driver).await;
    an_abandoned_freeze_leaves_nothing_to_collect(driver).await;
    thaw_is_idempotent(driver).await;
    a_whole_cut_is_proved_and_its_tree_is_in_order(driver).await;
    a_driver_serves_one_cut_after_another(driver).await;
}

/// `describe` names the store, twice alike.
pub async fn a_node_says_what_it_is(driver: &mut dyn StoreDriver) {
    let first = driver.describe().await.expect("a node that is well describes itself");
    let second = driver.describe().await.expect("twice too");
    assert!(!first.store.is_empty(), "the store is named");
    assert_eq!((first.store, first.identity), (second.store, second.identity), "describe says the same twice");
}

/// `thaw` and `abandon` before anything, twice.
pub async fn thaw_and_abandon_are_always_allowed(driver: &mut dyn StoreDriver) {
    for _ in 0..2 {
        let receipt = driver.thaw().await.expect("thaw is always allowed");
        assert_eq!(receipt.proof.consistent, Consistency::No, "nothing was captured, and nothing is proved");
        driver.abandon().await;
    }
}

/// Nothing is marked while writes go on.
pub async fn capture_without_freeze_is_refused(driver: &mut dyn StoreDriver) {
    driver.prepare(PAUSE, PATIENCE).await.expect("prepare");
    assert!(driver.capture().await.is_err(), "capture without a freeze");
    assert!(driver.collect().await.is_err(), "collect without a capture");
    driver.abandon().await;
}

/// After `abandon` the capture is gone.
pub async fn an_abandoned_freeze_leaves_nothing_to_collect(driver: &mut dyn StoreDriver) {
    driver.prepare(PAUSE, PATIENCE).await.expect("prepare");
    driver.freeze(PAUSE).await.expect("freeze");
    driver.capture().await.expect("capture");
    driver.abandon().await;
    driver.abandon().await;
    assert!(driver.collect().await.is_err(), "collect after abandon");
}

/// A second `thaw` answers as the first.
pub async fn thaw_is_idempotent(driver: &mut dyn StoreDriver) {
    driver.prepare(PAUSE, PATIENCE).await.expect("prepare");
    let receipt = driver.freeze(PAUSE).await.expect("freeze");
    assert!(receipt.deadline <= PAUSE, "the deadline is not later than asked for");
    driver.capture().await.expect("capture");
    let first = driver.thaw().await.expect("thaw");
    assert_eq!(driver.thaw().await.expect("thaw again"), first);
    driver.abandon().await;
}

/// A whole cut; returns what [`read`] makes of it.
pub async fn a_whole_cut_is_proved_and_its_tree_is_in_order(driver: &mut dyn StoreDriver) -> Vec<(TreePath, Vec<u8>)> {
    driver.prepare(PAUSE, PATIENCE).await.expect("prepare");
    driver.freeze(PAUSE).await.expect("freeze");
    driver.capture().await.expect("capture");
    let receipt = driver.thaw().await.expect("thaw");
    assert!(receipt.proof.consistent > Consistency::No, "a cut that held says so");
    assert!(!receipt.proof.checks.is_empty(), "and says what was compared");
    let entries = driver.collect().await.expect("collect");
    let files = read(entries).await;
    driver.abandon().await;
    files
}

/// The same driver again.
pub async fn a_driver_serves_one_cut_after_another(driver: &mut dyn StoreDriver) {
    for _ in 0..2 {
        a_whole_cut_is_proved_and_its_tree_is_in_order(driver).await;
    }
}

/// Reads the files of a capture, in its order, and asserts what the port promises of a tree: parents first, no path
/// twice, `SameAs` after what it points to, streams that end well.
pub async fn read(entries: Vec<CapturedEntry>) -> Vec<(TreePath, Vec<u8>)> {
    let mut seen = BTreeSet::from([TreePath::root()]);
    let mut files: Vec<(TreePath, Vec<u8>)> = Vec::new();
    for entry in entries {
        let parent = entry.path.parent().expect("the root is not an entry of a capture");
        assert!(seen.contains(&parent), "{}: its directory comes first", entry.path);
        assert!(seen.insert(entry.path.clone()), "{}: twice", entry.path);
        assert!(entry.mode <= 0o7777, "{}: mode", entry.path);
        let content = match entry.content {
            CapturedContent::Nothing => {
                assert_eq!(entry.kind, FileKind::Directory, "{}", entry.path);
                continue;
            }
            CapturedContent::LinkTarget(_) => {
                assert_eq!(entry.kind, FileKind::Link, "{}", entry.path);
                continue;
            }
            CapturedContent::Stored(stored) => panic!("{}: {stored:?} is in no snapshot of this suite", entry.path),
            CapturedContent::Literal(bytes) => bytes,
            CapturedContent::SameAs(path) => {
                let same = files.iter().find(|(earlier, _)| *earlier == path);
                same.expect("what it points to came before").1.clone()
            }
            CapturedContent::File { file, length_bytes, .. } => {
                let mut bytes = vec![0; usize::try_from(length_bytes).expect("a test's file fits memory")];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).expect("the captured length can be read");
                bytes
            }
            CapturedContent::Stream(mut stream) => {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.expect("the stream ends well");
                stream.finish().await.expect("and what it proved is told");
                bytes
            }
        };
        assert_eq!(entry.kind, FileKind::File, "{}", entry.path);
        files.push((entry.path, content));
    }
    files
}
