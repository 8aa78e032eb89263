//! What those who share a computation may rely on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::SingleFlight;

#[tokio::test]
async fn callers_at_the_same_time_share_one_computation() {
    let flights = Arc::new(SingleFlight::<u32, usize>::default());
    let runs = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (flights, runs, gate) = (flights.clone(), runs.clone(), gate.clone());
            tokio::spawn(async move {
                flights
                    .run(7, || async move {
                        let _permit = gate.acquire().await;
                        runs.fetch_add(1, Ordering::SeqCst)
                    })
                    .await
            })
        })
        .collect();
    tokio::task::yield_now().await;
    gate.add_permits(1);
    for caller in callers {
        assert_eq!(caller.await.expect("no caller panics"), 0);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(flights.count(), 0);
}

#[tokio::test]
async fn a_cancelled_worker_hands_over() {
    let flights = Arc::new(SingleFlight::<u32, u32>::default());
    let stuck = tokio::spawn({
        let flights = flights.clone();
        async move { flights.run(1, std::future::pending).await }
    });
    tokio::task::yield_now().await;
    let waiter = tokio::spawn({
        let flights = flights.clone();
        async move { flights.run(1, || async { 5 }).await }
    });
    tokio::task::yield_now().await;
    stuck.abort();
    assert_eq!(waiter.await.expect("the waiter takes over"), 5);
}

#[tokio::test]
async fn a_computation_that_everybody_gave_up_leaves_nothing_behind() {
    let flights = Arc::new(SingleFlight::<u32, u32>::default());
    let both = [(); 2].map(|()| {
        let flights = flights.clone();
        tokio::spawn(async move { flights.run(1, std::future::pending).await })
    });
    tokio::task::yield_now().await;
    assert_eq!(flights.count(), 1);
    for one in both {
        one.abort();
        assert!(one.await.is_err());
    }
    assert_eq!(flights.count(), 0);
}
