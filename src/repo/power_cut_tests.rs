//! The power fails after every step of an `init` and two snapshots: nothing is listed that is not whole, and nothing is lost
//! that was published.

use std::sync::Arc;

use super::tests::{capabilities, cluster, meta, node, noise, publication, secret};
use super::verify::VerifyDepth;
use super::*;
use crate::model::extent::SEQUENTIAL_BLOCK_BYTES;
use crate::model::manifest::FileClass;
use crate::model::time::Timestamp;
use crate::object::ObjectStore;
use crate::object::local::power_cut::{SimulatedDisk, WORLDS};

/// Far more than it takes; a run that never ends is a bug of the test.
const STEPS_MAX: u64 = 2000;

async fn init(store: Arc<dyn ObjectStore>) -> Result<Arc<Repository>, RepoError> {
    Ok(Arc::new(Repository::init(store, Some(&secret()), capabilities(), 0).await?))
}

/// A snapshot that shares a block with all others and has one of its own, made as the snapshot command makes it.
async fn snapshot(repository: &Arc<Repository>, seed: u8) -> Result<ListedSnapshot, RepoError> {
    let parent = match repository.newest(&cluster(), 1).await?.first() {
        None => None,
        Some(newest) => Some(repository.open_node(&repository.manifest(newest).await?, &node()).await?),
    };
    let uuid = SnapshotId::new_v4();
    let options = WriterOptions::new(Some(-1), 2);
    let mut writer = NodeWriter::begin(repository.clone(), cluster(), node(), uuid, parent, options).await?;
    writer.add_directory(meta(""))?;
    for (name, content) in [("common", noise(0, 5000)), ("own", noise(seed, 9000)), ("small", vec![seed; 10])] {
        writer.add_stream(meta(name), FileClass::Immutable, SEQUENTIAL_BLOCK_BYTES, &mut &content[..]).await?;
    }
    let receipt = writer.finish().await?;
    let now = Timestamp(super::tests::NOW + i64::from(seed));
    Ok(repository.publish(publication(uuid, &receipt), now).await?.0)
}

/// All of it, and what had been published when the power failed.
async fn run(store: Arc<dyn ObjectStore>) -> (Vec<ListedSnapshot>, Result<(), RepoError>) {
    let mut published = Vec::new();
    let repository = match init(store).await {
        Ok(repository) => repository,
        Err(error) => return (published, Err(error)),
    };
    for seed in 1..=2 {
        match snapshot(&repository, seed).await {
            Ok(listed) => published.push(listed),
            Err(error) => return (published, Err(error)),
        }
    }
    (published, Ok(()))
}

async fn all_is_whole(repository: &Repository, place: &str) -> Vec<ListedSnapshot> {
    let listed = repository.snapshots(&cluster()).await.expect("it is listed");
    for snapshot in &listed {
        let report = repository.verify(snapshot, VerifyDepth::Hashed, &|_| {}).await.expect("it can be verified");
        assert!(report.problems.is_empty(), "{place}: {} is listed: {:?}", snapshot.date, report.problems);
    }
    listed
}

#[tokio::test]
async fn whatever_is_listed_is_whole_after_any_power_cut_and_what_was_published_stays() {
    for step in 0..STEPS_MAX {
        let disk = SimulatedDisk::new();
        disk.cut_after(step);
        let (published, outcome) = run(Arc::new(disk.store())).await;
        for world in WORLDS {
            let place = format!("{world:?} after step {step}, {}", disk.last_step());
            let store: Arc<dyn ObjectStore> = Arc::new(disk.left(world).store());
            let repository = match Repository::open(store.clone(), Some(&secret())).await {
                Ok(repository) => Arc::new(repository),
                Err(RepoError::NotFound { .. }) => {
                    assert!(published.is_empty(), "{place}: the repository is lost");
                    init(store.clone()).await.unwrap_or_else(|error| panic!("{place}: init again: {error}"))
                }
                Err(error) => panic!("{place}: {error}"),
            };
            let listed = all_is_whole(&repository, &place).await;
            assert!(published.iter().all(|snapshot| listed.contains(snapshot)), "{place}: a published snapshot is lost");
            let next = snapshot(&repository, 3).await.unwrap_or_else(|error| panic!("{place}: the next snapshot: {error}"));
            // As another process sees it, that remembers nothing.
            let again = Repository::open(store, Some(&secret())).await.expect("opens again");
            assert_eq!(all_is_whole(&again, &place).await.first(), Some(&next), "{place}");
        }
        if outcome.is_ok() {
            assert!(published.len() == 2 && step > 50, "{step} steps are too few to be all");
            return;
        }
    }
    panic!("not done after {STEPS_MAX} steps");
}
