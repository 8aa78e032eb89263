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

/// Another host's, which nobody here can look at.
fn elsewhere(lease: &mut Lease) {
    lease.writer.host = "elsewhere".to_owned();
}

/// Of a process of this host that is gone.
fn dead(lease: &mut Lease) {
    lease.writer.process_started += 1;
}

async fn stored(repository: &Repository) -> Lease {
    repository.read_lease(&cluster()).await.expect("reads").expect("is there").lease.expect("is whole")
}

/// Takes it while the clock goes on, as long as that takes.
async fn take(repository: &Arc<Repository>, clock: &Arc<ManualClock>) -> Result<LeaseGuard, RepoError> {
    let (repository, own) = (repository.clone(), clock.clone());
    let taking = tokio::spawn(async move { repository.take_lease(&cluster(), SnapshotId::new_v4(), own).await });
    until(clock, || async { taking.is_finished() }).await;
    taking.await.expect("no panic")
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
async fn a_process_that_is_gone_holds_nothing_and_the_next_one_knows_whose_it_was() {
    let repository = repository(Arc::new(MemoryStore::new())).await;
    let (clock, uuid) = (clock(), SnapshotId::new_v4());
    // Dropped and not given back: as after kill -9.
    drop(repository.take_lease(&cluster(), uuid, clock.clone()).await.expect("is free"));
    repository.take_lease(&cluster(), SnapshotId::new_v4(), clock.clone()).await.expect_err("it may be at work");
    repository.move_lease(&cluster(), dead).await;
    let next = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock).await.expect("it is over");
    assert_eq!((next.epoch(), next.predecessor().map(|lease| lease.uuid)), (2, Some(uuid)));
}

#[tokio::test]
async fn what_a_process_that_runs_has_given_up_is_watched_and_another_s() {
    let repository = repository(Arc::new(MemoryStore::new())).await;
    let (clock, uuid) = (clock(), SnapshotId::new_v4());
    // Dropped in a process that goes on, as after a panic: that it is seen to run must hold nobody up until it ends.
    drop(repository.take_lease(&cluster(), uuid, clock.clone()).await.expect("is free"));
    clock.advance(10 * LIFETIME);
    let began = clock.monotonic();
    let next = take(&repository, &clock).await.expect("nobody renews it");
    assert!(clock.monotonic() - began >= WATCH, "it was not watched");
    assert_eq!((next.epoch(), next.predecessor().map(|lease| lease.uuid)), (2, Some(uuid)));
}

#[tokio::test]
async fn a_process_that_runs_and_renews_keeps_it_far_beyond_its_first_end() {
    let repository = repository(Arc::new(MemoryStore::new())).await;
    let clock = clock();
    let held = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock.clone()).await.expect("is free");
    for _ in 0..3 {
        let before = stored(&repository).await.expires_at;
        until(&clock, || async { stored(&repository).await.expires_at > before }).await;
        let error = take(&repository, &clock).await.expect_err("it is renewed");
        assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
    }
    held.confirm().await.expect("nobody took it");
}

#[tokio::test]
async fn what_a_store_that_was_away_did_not_take_back_is_given_back_when_it_answers() {
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let repository = repository(store.clone()).await;
    let clock = clock();
    let held = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock.clone()).await.expect("is free");
    let away = ObjectError::Unavailable { key: "lease".to_owned(), reason: "503".to_owned() };
    store.add(Rule::nth(Operation::Put, 1, Fault::Fail(away.clone())).on_key("_lease"));
    store.add(Rule::nth(Operation::Put, 2, Fault::Fail(away)).on_key("_lease"));
    let began = clock.monotonic();
    held.release().await;
    assert!(!stored(&repository).await.is_released);
    until(&clock, || async { stored(&repository).await.is_released }).await;
    assert!(clock.monotonic() - began < WATCH, "{:?}", clock.monotonic() - began);
    let next = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock).await.expect("was given back");
    assert_eq!((next.epoch(), next.predecessor()), (2, None));
}

#[tokio::test]
async fn a_holder_elsewhere_is_watched_before_it_counts_as_dead_whatever_the_clocks_say() {
    let hour = 3_600_000_000;
    // In time, past its end, and made by a clock that is ahead by an hour.
    for (ends_after, is_watched) in [(0, false), (-hour, true), (hour, true)] {
        let repository = repository(Arc::new(MemoryStore::new())).await;
        drop(repository.take_lease(&cluster(), SnapshotId::new_v4(), clock()).await.expect("is free"));
        repository.move_lease(&cluster(), elsewhere).await;
        // The same by the other one's clock.
        let here = Arc::new(ManualClock::at(NOW - ends_after));
        if !is_watched {
            repository.take_lease(&cluster(), SnapshotId::new_v4(), here.clone()).await.expect_err("it may be alive");
            here.advance(LIFETIME);
        }
        let began = here.monotonic();
        let next = take(&repository, &here).await.expect("nobody renews it");
        assert!(here.monotonic() - began >= WATCH, "it was not watched");
        assert_eq!(next.epoch(), 2);
    }
}

#[tokio::test]
async fn what_a_holder_elsewhere_left_behind_is_another_s_as_soon_as_it_is_over() {
    let repository = repository(Arc::new(MemoryStore::new())).await;
    let here = clock();
    drop(repository.take_lease(&cluster(), SnapshotId::new_v4(), here.clone()).await.expect("is free"));
    repository.move_lease(&cluster(), elsewhere).await;
    let began = here.monotonic();
    here.advance(LIFETIME - WATCH - Duration::from_secs(1));
    repository.take_lease(&cluster(), SnapshotId::new_v4(), here.clone()).await.expect_err("it may be alive");
    here.advance(Duration::from_secs(1));
    take(&repository, &here).await.expect("nobody renews it");
    let took = here.monotonic() - began;
    assert!(took >= LIFETIME && took < LIFETIME + Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_holder_elsewhere_that_renews_keeps_it_whatever_the_clocks_say() {
    let repository = repository(Arc::new(MemoryStore::new())).await;
    let theirs = clock();
    let held = repository.take_lease(&cluster(), SnapshotId::new_v4(), theirs.clone()).await.expect("is free");
    repository.move_lease(&cluster(), elsewhere).await;
    held.confirm().await.expect("still its own");
    repository.move_lease(&cluster(), elsewhere).await;
    // A day ahead: by this clock it is long over.
    let ours = Arc::new(ManualClock::at(NOW + 86_400_000_000));
    let (trying, own) = (repository.clone(), ours.clone());
    let taking = tokio::spawn(async move { trying.take_lease(&cluster(), SnapshotId::new_v4(), own).await });
    let before = stored(&repository).await;
    until(&theirs, || async { stored(&repository).await != before }).await;
    until(&ours, || async { taking.is_finished() }).await;
    let error = taking.await.expect("no panic").expect_err("it was renewed meanwhile");
    assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
    held.confirm().await.expect("nobody took it");
}

#[tokio::test]
async fn a_holder_that_has_lost_it_learns_so() {
    let repository = repository(Arc::new(MemoryStore::new())).await;
    let clock = clock();
    let slow = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock.clone()).await.expect("is free");
    repository.move_lease(&cluster(), dead).await;
    let other = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock.clone()).await.expect("it is over");
    let error = slow.confirm().await.expect_err("another one has it");
    assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
    let lost = slow.lost();
    until(&clock, || async { *lost.borrow() }).await;
    slow.release().await;
    other.confirm().await.expect("giving back what is lost takes nothing from who has it");
}

#[tokio::test]
async fn a_store_that_is_away_takes_it_from_nobody() {
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let repository = repository(store.clone()).await;
    let clock = clock();
    let held = repository.take_lease(&cluster(), SnapshotId::new_v4(), clock.clone()).await.expect("is free");
    let before = stored(&repository).await.expires_at;
    for nth in 1..=40 {
        let away = ObjectError::Unavailable { key: "lease".to_owned(), reason: "503".to_owned() };
        store.add(Rule::nth(Operation::Put, nth, Fault::Fail(away)).on_key("_lease"));
    }
    // Far longer than it lasts.
    until(&clock, || async { stored(&repository).await.expires_at > before }).await;
    assert!(clock.monotonic() > LIFETIME && !*held.lost().borrow());
    held.confirm().await.expect("it is still its own");
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
