//! What many threads and tasks share, under schedules drawn at random: a scheduler of `shuttle` decides at every lock and
//! every wait who goes on.
//!
//! The modules are included from their sources, below the names that they have there, with locks of the scheduler's for those
//! of `base::sync`; what else they import is the library's. A failure names the seed, and the same seed fails again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, future, thread};

use base::single_flight::SingleFlight;
use cache::BlockCache;
use cache::memory::{ENTRY_BYTES, MemoryCache};
use effort::{Random, effort};
use fs::error::FsError;
use fs::handle_table::HandleTable;
use model::ids::BlockId;
use read::flights::{Claim, Flights, Joined, Waiting};

#[path = "it/support/effort.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod effort;

#[path = "../src/base"]
mod base {
    pub mod single_flight;
    pub mod sync {
        pub use shuttle::sync::{Mutex, MutexGuard};
    }
}

#[path = "../src/cache"]
mod cache {
    pub mod memory;
    pub use tintype::cache::BlockCache;
}

#[path = "../src/fs"]
mod fs {
    pub mod handle_table;
    pub mod error {
        pub use tintype::fs::FsError;
    }
}

#[path = "../src/read"]
mod read {
    pub mod flights;
}

mod model {
    pub use tintype::model::ids;
}

/// Tries a scenario under schedules that choose at every step, and under as many that keep to priorities and break with them
/// a few times: these find what needs one thread to stand still for long.
fn under_schedules(what: &str, scenario: impl Fn() + Send + Sync + 'static) {
    const BREAKS: usize = 4;
    let count = effort(300, 10_000);
    let mut random = Random::begin(what);
    let scenario = Arc::new(scenario);
    let (at_random, by_priority) = (scenario.clone(), scenario);
    Runner::new(RandomScheduler::new_from_seed(random.next(), count), Config::new()).run(move || at_random());
    Runner::new(PctScheduler::new_from_seed(random.next(), BREAKS, count), Config::new()).run(move || by_priority());
}

fn id(number: usize) -> BlockId {
    BlockId([number as u8; 32])
}

fn block(number: usize) -> Bytes {
    Bytes::from(vec![number as u8; 100 + number])
}

fn cost(number: usize) -> u64 {
    block(number).len() as u64 + ENTRY_BYTES
}

#[test]
fn the_cache_in_memory_keeps_to_its_limit_and_counts_what_it_holds() {
    const BLOCKS: usize = 4;
    under_schedules("memory cache", || {
        // Two of the four find room.
        let cache = Arc::new(MemoryCache::new(cost(0) + cost(BLOCKS)));
        let users = (0..3).map(|_| {
            let cache = cache.clone();
            thread::spawn(move || {
                for _ in 0..4 {
                    let number = thread_rng().gen_range(0..BLOCKS);
                    match cache.get(&id(number)) {
                        Some(found) => assert_eq!(found, block(number)),
                        None => cache.put(id(number), block(number)),
                    }
                    assert!(cache.used_bytes() <= cache.limit_bytes());
                }
            })
        });
        users.collect::<Vec<_>>().into_iter().for_each(|user| user.join().expect("no user panics"));
        let held: u64 = (0..BLOCKS).filter(|number| cache.get(&id(*number)).is_some()).map(cost).sum();
        assert_eq!(cache.used_bytes(), held);
        assert!(held > 0);
    });
}

#[test]
fn handles_are_given_once_and_never_more_than_the_limit() {
    const LIMIT: usize = 2;
    under_schedules("handles", || {
        let table = Arc::new(HandleTable::<usize>::new(LIMIT));
        let users = (0..3).map(|user| {
            let table = table.clone();
            thread::spawn(move || {
                let mut given = Vec::new();
                for _ in 0..3 {
                    let number = match table.insert(Arc::new(user)) {
                        Ok(number) => number,
                        Err(error) => {
                            assert!(matches!(error, FsError::TooManyOpen), "{error}");
                            continue;
                        }
                    };
                    given.push(number);
                    assert!(table.count() <= LIMIT);
                    assert_eq!(*table.get(number).expect("is open"), user);
                    // Released twice at the same time: one of the two had it.
                    let other = thread::spawn({
                        let table = table.clone();
                        move || table.remove(number).is_some()
                    });
                    let own = table.remove(number).is_some();
                    assert!(own != other.join().expect("does not panic"));
                    assert!(matches!(table.get(number), Err(FsError::BadHandle)));
                }
                given
            })
        });
        let users: Vec<_> = users.collect();
        let given: Vec<u64> = users.into_iter().flat_map(|user| user.join().expect("no user panics")).collect();
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), given.len(), "{given:?}");
        assert_eq!(table.count(), 0);
    });
}

/// One at a time, until it is dropped.
struct Alone<'a>(&'a AtomicUsize);

impl<'a> Alone<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        assert_eq!(count.fetch_add(1, Ordering::SeqCst), 0, "two at a time");
        Self(count)
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn one_computation_for_a_key_at_a_time_and_none_is_served_later() {
    const KEYS: usize = 2;
    #[derive(Default)]
    struct World {
        flights: SingleFlight<usize, u64>,
        working: [AtomicUsize; KEYS],
        runs: AtomicU64,
        newest: [AtomicU64; KEYS],
    }
    async fn ask(world: Arc<World>) {
        let key = thread_rng().gen_range(0..KEYS);
        let before = world.newest[key].load(Ordering::SeqCst);
        let work = || async {
            let _alone = Alone::new(&world.working[key]);
            let run = 1 + world.runs.fetch_add(1, Ordering::SeqCst);
            for _ in 0..thread_rng().gen_range(0..3) {
                future::yield_now().await;
            }
            run
        };
        let run = world.flights.run(key, work).await;
        // Somebody had returned with the earlier one before this was asked for.
        assert!(run > before, "{run} is not newer than {before}");
        world.newest[key].fetch_max(run, Ordering::SeqCst);
    }
    under_schedules("single flight", || {
        let world = Arc::new(World::default());
        let askers: Vec<_> = (0..5).map(|_| future::spawn(ask(world.clone()))).collect();
        // Two give up somewhere on their way: one may be working for all the others.
        askers[..2].iter().for_each(future::JoinHandle::abort);
        future::block_on(async {
            for (number, asker) in askers.into_iter().enumerate() {
                assert!(asker.await.is_ok() || number < 2);
            }
        });
        assert_eq!(world.flights.count(), 0, "something is left");
    });
}

/// Blocks as `read::blocks` gets them: from the cache, from a fetch under way, or from one more.
struct Blocks {
    cache: MemoryCache,
    flights: Arc<Flights<BlockId, Landed>>,
    fetching: [AtomicUsize; Self::COUNT],
    fetched: [AtomicUsize; Self::COUNT],
}

type Landed = Result<Bytes, &'static str>;

impl Blocks {
    const COUNT: usize = 2;

    fn new() -> Arc<Self> {
        let (fetching, fetched) = Default::default();
        Arc::new(Self { cache: MemoryCache::new(1 << 20), flights: Flights::new(), fetching, fetched })
    }

    fn wait(self: &Arc<Self>, number: usize, is_reliable: bool) -> Result<Waiting<Landed>, Landed> {
        if let Some(block) = self.cache.get(&id(number)) {
            return Err(Ok(block));
        }
        match self.flights.join(id(number), || self.cache.get(&id(number)).map(Ok)) {
            Joined::Ready(landed) => Err(landed),
            Joined::Waiting(waiting) => Ok(waiting),
            Joined::Claimed(claim, waiting) => {
                future::spawn(self.clone().fetch(number, claim, is_reliable));
                Ok(waiting)
            }
        }
    }

    async fn fetch(self: Arc<Self>, number: usize, claim: Claim<BlockId, Landed>, is_reliable: bool) {
        let alone = Alone::new(&self.fetching[number]);
        self.fetched[number].fetch_add(1, Ordering::SeqCst);
        future::yield_now().await;
        drop(alone);
        match thread_rng().gen_range(0..4) {
            0 if !is_reliable => claim.land(Err("told to"), |_| {}),
            1 if !is_reliable => drop(claim),
            _ => claim.land(Ok(block(number)), |landed| self.cache.put(id(number), landed.clone().expect("is a block"))),
        }
    }

    async fn read(self: Arc<Self>, number: usize, is_reliable: bool) -> Option<Landed> {
        match self.wait(number, is_reliable) {
            Err(landed) => Some(landed),
            Ok(waiting) => waiting.landed().await,
        }
    }
}

#[test]
fn a_block_is_fetched_once_by_all_who_miss_it() {
    under_schedules("blocks", || {
        let blocks = Blocks::new();
        let readers: Vec<_> = (0..4)
            .map(|reader| {
                let blocks = blocks.clone();
                // Threads, as those of the kernel's requests are: nothing but the locks keeps them apart.
                thread::spawn(move || {
                    for step in 0..2 {
                        let number = (reader + step) % Blocks::COUNT;
                        let landed = future::block_on(blocks.clone().read(number, true));
                        assert_eq!(landed, Some(Ok(block(number))));
                    }
                })
            })
            .collect();
        readers.into_iter().for_each(|reader| reader.join().expect("no reader panics"));
        for fetched in &blocks.fetched {
            assert_eq!(fetched.load(Ordering::SeqCst), 1, "missed in the cache and among those under way");
        }
        assert!(blocks.flights.count() == 0 && !blocks.flights.has(&id(0)));
    });
}

#[test]
fn whatever_becomes_of_a_fetch_or_a_reader_the_others_are_told_and_go_on() {
    under_schedules("blocks that fail", || {
        let blocks = Blocks::new();
        let readers: Vec<_> = (0..4)
            .map(|reader| {
                let blocks = blocks.clone();
                future::spawn(async move {
                    let number = reader % Blocks::COUNT;
                    // Nobody waits for ever, and what failed may be asked for again.
                    for attempt in 0.. {
                        match blocks.clone().read(number, attempt > 2).await {
                            Some(Ok(found)) => {
                                assert_eq!(found, block(number));
                                break;
                            }
                            Some(Err(reason)) => assert_eq!(reason, "told to"),
                            None => {}
                        }
                    }
                })
            })
            .collect();
        readers[..2].iter().for_each(future::JoinHandle::abort);
        future::block_on(async {
            for (number, reader) in readers.into_iter().enumerate() {
                assert!(reader.await.is_ok() || number < 2);
            }
            // Fetches outlive those who began them.
            while blocks.flights.count() > 0 {
                future::yield_now().await;
            }
        });
    });
}
