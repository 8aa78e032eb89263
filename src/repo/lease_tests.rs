//! Who has a lease, and who learns that it has not.

use super::super::tests::{capabilities, cluster, secret};
use super::super::writer::LIFETIME;
use super::*;
use crate::base::{ManualClock, SystemClock};
use crate::object::faulty::{Fault, FaultyStore, Operation, Rule};
use crate::object::memory::MemoryStore;
use crate::object::{Capabilities, ObjectStore};

const NOW: i64 = 1_700_000_000_000_000;

async fn repository(store: Arc<dyn ObjectStore>) -> Arc<Repository> {
    Arc::new(Repository::init(store, Some(&secret()), capabilities(), NOW).await.expect("inits"))
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(NOW))
}

/// What is stored becomes another host's, which nobody here can look at.
async fn move_elsewhere(repository: &Repository) {
    let (lease, version) = repository.read_lease(&cluster()).await.expect("reads").expect("is there");
    let writer = Writer { host: "elsewhere".to_owned(), boot: "another".to_owned(), ..lease.writer.clone() };
    repository.put_lease(&cluster(), &Lease { writer, ..lease }, PutMode::IfMatch(version)).await.expect("puts");
}

#[tokio::test]
async fn one_has_it_and_the_next_one_counts_on() {
    let repository = repository(Arc::new(MemoryStore::new())).await;
    let first = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock()).await.expect("is free");
    assert_eq!((first.epoch(), first.predecessor()), (1, None));
    let error = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock()).await.expect_err("is taken");
    assert!(error.to_string().contains("cluster prod: a snapshot of it is being made by process"), "{error}");
    first.confirm().await.expect("it is ours");
    first.release().await;
    let second = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock()).await.expect("was given back");
    assert_eq!((second.epoch(), second.predecessor()), (2, None));
}

#[tokio::test]
async fn the_lease_of_a_dead_holder_ends_by_itself_and_says_whose_it_was() {
    let repository = repository(Arc::new(MemoryStore::new())).await;
    let (clock, uuid) = (clock(), SnapshotId::new_v4());
    // Dropped and not given back: as after kill -9.
    drop(repository.take_lease(&cluster(), uuid, clock.clone()).await.expect("is free"));
    move_elsewhere(&repository).await;
    clock.advance(LIFETIME - Duration::from_secs(1));
    repository.take_lease(&cluster(), SnapshotId::new_v4(), clock.clone()).await.expect_err("it may be alive");
    clock.advance(Duration::from_secs(1));
    let next = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock.clone()).await.expect("it is over");
    assert_eq!((next.epoch(), next.predecessor().map(|lease| lease.uuid)), (2, Some(uuid)));
}

#[tokio::test]
async fn a_holder_that_was_too_slow_learns_it_before_it_publishes() {
    let repository = repository(Arc::new(MemoryStore::new())).await;
    let clock = clock();
    let slow = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock.clone()).await.expect("is free");
    move_elsewhere(&repository).await;
    // What moved is not the version that it holds, but it is its lease: as after an answer that was lost.
    slow.confirm().await.expect("still its own");
    move_elsewhere(&repository).await;
    let other = other_process(&repository, &clock).await;
    let error = slow.confirm().await.expect_err("another one has it");
    assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
    slow.release().await;
    other.confirm().await.expect("giving back what is lost takes nothing from who has it");
}

/// Takes a lease that is over.
async fn other_process(repository: &Arc<Repository>, clock: &Arc<ManualClock>) -> LeaseGuard {
    let later = Arc::new(ManualClock::at(clock.wall_us() + 2 * LIFETIME.as_micros() as i64));
    repository.take_lease(&cluster(), SnapshotId::new_v4(), later).await.expect("it is over")
}

#[tokio::test]
async fn renewals_keep_it_alive_through_faults_and_end_when_it_is_lost() {
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let repository = repository(store.clone()).await;
    let clock = clock();
    let held = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock.clone()).await.expect("is free");
    let expiry = || async { repository.read_lease(&cluster()).await.expect("reads").expect("is there").0.expires_at };
    let before = expiry().await;
    let away = ObjectError::Unavailable { key: "lease".to_owned(), reason: "503".to_owned() };
    store.add(Rule::nth(Operation::Put, 1, Fault::Fail(away)).on_key("_lease"));
    until(&clock, || async { expiry().await > before }).await;
    assert!(!*held.lost().borrow(), "one renewal that failed is none that is lost");
    move_elsewhere(&repository).await;
    let _other = other_process(&repository, &clock).await;
    let lost = held.lost();
    until(&clock, || async { *lost.borrow() }).await;
}

/// Moves the clock on until something has come true.
async fn until<F: Future<Output = bool>>(clock: &ManualClock, is_true: impl Fn() -> F) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !is_true().await {
        assert!(std::time::Instant::now() < deadline, "it never came true");
        clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_take_it_at_the_same_time_one_has_it() {
    let store: Arc<MemoryStore> = Arc::new(MemoryStore::new());
    let repository = repository(store).await;
    for round in 1..=20 {
        let tries = (0..8).map(|_| {
            let repository = repository.clone();
            tokio::spawn(async move {
                repository.take_lease(&cluster(), SnapshotId::new_v4(), Arc::new(SystemClock::default())).await
            })
        });
        let results = futures::future::join_all(tries).await;
        let mut guards: Vec<_> = results.into_iter().filter_map(|taken| taken.expect("no panic").ok()).collect();
        assert_eq!(guards.len(), 1);
        let guard = guards.pop().expect("one");
        assert_eq!(guard.epoch(), round, "no epoch comes twice");
        guard.release().await;
    }
}

#[tokio::test]
async fn an_answer_that_was_lost_is_no_stranger() {
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let repository = repository(store.clone()).await;
    // The store carries the put out and says that there was a conflict: its client has tried twice.
    let conflict = ObjectError::Conflict { key: "lease".to_owned() };
    store.add(Rule::nth(Operation::Put, 1, Fault::DoneButFails(conflict.clone())).on_key("_lease"));
    let held = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock()).await.expect("it is ours");
    store.add(Rule::nth(Operation::Put, 1, Fault::DoneButFails(conflict)).on_key("_lease"));
    held.confirm().await.expect("it is ours");
    held.confirm().await.expect("and stays so");
}

#[tokio::test]
async fn one_that_cannot_be_read_keeps_nobody_from_backups() {
    let store = Arc::new(MemoryStore::new());
    let repository = repository(store.clone()).await;
    repository.take_lease(&cluster(), SnapshotId::new_v4(), clock()).await.expect("is free").release().await;
    store.put(&layout::lease(&cluster()), "damaged".into(), PutMode::Replace).await.expect("puts");
    let held = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock()).await.expect("nobody can hold that");
    assert!(held.epoch() > 1_000_000, "{} is no epoch that was counted up to", held.epoch());
    repository.take_lease(&cluster(), SnapshotId::new_v4(), clock()).await.expect_err("this one is held");
    held.release().await;
}

#[tokio::test]
async fn without_conditions_there_are_no_leases() {
    let without = Capabilities { refuses_stale_replace: false, ..capabilities() };
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
    let repository = Repository::init(store, Some(&secret()), without, NOW).await.expect("inits");
    assert!(!repository.keeps_conditions());
}
