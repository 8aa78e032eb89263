//! Writers whose counters show whether several dumps are of one instant.
//!
//! Each writer has one key on every shard and goes round them in an order of its own: it sets round `n` on a shard only
//! after round `n` was acknowledged on the one before. At any instant its counters therefore descend along the chain, by
//! one at most from first to last.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::effort::Random;
use super::redis::Server;

/// Between two writes of one writer: a dozen of them leave something of two cores to the servers.
const PACE: Duration = Duration::from_micros(200);

/// Writers at work; dropping them stops them.
pub struct Chains {
    /// For each writer its keys in the order of its chain.
    pub keys: Vec<Vec<String>>,
    rounds: Arc<Vec<AtomicU64>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Chains {
    /// Starts so many writers and returns when each has gone round.
    pub fn start(shards: &[Server], writers: usize, random: &mut Random) -> Self {
        let rounds: Arc<Vec<AtomicU64>> = Arc::new((0..writers).map(|_| AtomicU64::new(0)).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let (mut keys, mut threads) = (Vec::new(), Vec::new());
        for writer in 0..writers {
            let order = random.order(shards.len());
            let chain: Vec<String> = order.iter().map(|shard| key_on(&shards[*shard], writer)).collect();
            let mut links: Vec<(String, redis::Connection)> =
                chain.iter().zip(&order).map(|(key, shard)| (key.clone(), shards[*shard].connection())).collect();
            keys.push(chain);
            let (stop, rounds) = (stop.clone(), rounds.clone());
            threads.push(std::thread::spawn(move || {
                for round in 1u64.. {
                    for (key, connection) in &mut links {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        redis::cmd("SET").arg(&*key).arg(round).query::<()>(connection).expect("a write is acknowledged");
                        std::thread::sleep(PACE);
                    }
                    rounds[writer].store(round, Ordering::SeqCst);
                }
            }));
        }
        let chains = Self { keys, rounds, stop, threads };
        shards[0].wait_for("round of all writers", |_| chains.rounds.iter().all(|round| round.load(Ordering::SeqCst) > 0));
        chains
    }

    /// Writers whose counters no instant explains, with their counters.
    pub fn violations(&self, counters: &HashMap<String, u64>) -> Vec<String> {
        let of = |key: &String| counters.get(key).copied().unwrap_or(0);
        let chains = self.keys.iter().map(|chain| chain.iter().map(of).collect::<Vec<u64>>());
        let is_one_instant = |chain: &[u64]| {
            chain.is_sorted_by(|earlier, later| earlier >= later)
                && chain.first().zip(chain.last()).is_none_or(|(first, last)| *first <= last + 1)
        };
        chains
            .enumerate()
            .filter(|(_, chain)| !is_one_instant(chain))
            .map(|(writer, chain)| format!("writer {writer}: {chain:?}"))
            .collect()
    }
}

impl Drop for Chains {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a writer panicked");
        }
    }
}

/// A key of this writer that the shard accepts.
fn key_on(shard: &Server, writer: usize) -> String {
    let mut connection = shard.connection();
    (0u32..)
        .map(|number| format!("writer:{writer}:{number}:{}", shard.port))
        .find(|key| redis::cmd("SET").arg(key).arg(0).query::<()>(&mut connection).is_ok())
        .expect("one in a few keys belongs to a shard")
}

/// The integers among the values of an RDB of strings.
pub fn counters(dump: &[u8]) -> HashMap<String, u64> {
    assert!(dump.starts_with(b"REDIS"), "a dump begins with its magic");
    let mut reader = DumpReader { rest: &dump[9..] };
    let mut found = HashMap::new();
    loop {
        match reader.byte() {
            // Auxiliary field, function, database, sizes, expiry, idle time, frequency.
            0xfa => drop((reader.string(), reader.string())),
            0xf5 => drop(reader.string()),
            0xfe => drop(reader.length()),
            0xfb => drop((reader.length(), reader.length())),
            0xfc => drop(reader.take(8)),
            0xfd => drop(reader.take(4)),
            0xf8 => drop(reader.length()),
            0xf9 => drop(reader.byte()),
            0xff => return found,
            0 => {
                let (key, value) = (reader.string(), reader.string());
                if let Ok(number) = value.parse() {
                    found.insert(key, number);
                }
            }
            other => panic!("type or opcode {other:#x} was not written by this test"),
        }
    }
}

struct DumpReader<'a> {
    rest: &'a [u8],
}

impl<'a> DumpReader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    /// A length, or the number of a special encoding.
    fn length(&mut self) -> Result<usize, u8> {
        let first = self.byte();
        match first >> 6 {
            0 => Ok(usize::from(first & 0x3f)),
            1 => Ok(usize::from(first & 0x3f) << 8 | usize::from(self.byte())),
            3 => Err(first & 0x3f),
            _ if first == 0x80 => Ok(u32::from_be_bytes(self.take(4).try_into().expect("four")) as usize),
            _ => Ok(u64::from_be_bytes(self.take(8).try_into().expect("eight")) as usize),
        }
    }

    fn string(&mut self) -> String {
        match self.length() {
            Ok(length) => String::from_utf8_lossy(self.take(length)).into_owned(),
            Err(0) => self.byte().cast_signed().to_string(),
            Err(1) => i16::from_le_bytes(self.take(2).try_into().expect("two")).to_string(),
            Err(2) => i32::from_le_bytes(self.take(4).try_into().expect("four")).to_string(),
            Err(3) => {
                let (packed, _) = (self.length().expect("a length"), self.length());
                // No counter is long enough to be compressed.
                self.take(packed);
                String::new()
            }
            Err(other) => panic!("string encoding {other}"),
        }
    }
}
