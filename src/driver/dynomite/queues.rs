//! Whether the queues of a Dynomite were empty at an instant inside the pause, from its statistics.
//!
//! Dynomite counts in one place and shows another. Its main loop adds to counters of its own; at the end of a turn it hands
//! them over, if it has counted anything and the last ones were taken; they are taken, and added to what is shown, by
//! each request to the admin port and else every `stats_interval` (30 s). So what one request shows may be as old as the last
//! request, and while nothing happens in the main loop it stays so: **one answer of zero proves nothing.** What is
//! proved: when two answers differ, the later one holds everything that was counted up to a hand-over between the two.
//!
//! So we ask again until the answer has changed twice (the first hand-over may have begun before we asked), all
//! inside the pause. An idle main loop counts nothing: a connection to the port for its peers, closed at once, is counted, and
//! wakes it. What did not change in time is not known, and what is not known is not empty.
//!
//! The gauges are of messages: those on their way to the peers of this data center and of others, those that peers wait for,
//! and those at the backend. A sender has a message in its gauges until the answer is there, and a gauge that lost
//! count is not zero either.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::admin::Admin;

/// Messages to peers and from them; they stand in the object of the pool.
const PEER_QUEUES: [&str; 5] =
    ["peer_in_queue", "peer_out_queue", "remote_peer_in_queue", "remote_peer_out_queue", "dnode_client_out_queue"];
/// Messages to the backend and from it; they stand in an object of the backend's inside that.
const BACKEND_QUEUES: [&str; 2] = ["in_queue", "out_queue"];
/// Counters of messages that were given up: a rack that should have got one has not.
const LOSSES: [&str; 7] = [
    "client_dropped_requests",
    "peer_dropped_requests",
    "peer_timedout_requests",
    "remote_peer_dropped_requests",
    "remote_peer_timedout_requests",
    "server_dropped_requests",
    "server_timedout_requests",
];
/// Changes of the answer after which it is of the pause.
const CHANGES: u32 = 2;
/// Between two requests: a turn of the main loop takes microseconds.
const POLL: Duration = Duration::from_millis(2);

/// A Dynomite whose queues are read.
#[derive(Debug, Clone)]
pub(super) struct Witness {
    /// For messages: rack and address.
    pub name: String,
    pub admin: Admin,
    /// `host:port` where its peers reach it.
    pub peers: String,
}

/// What was seen of one Dynomite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Queues {
    /// Nothing was on its way; so many messages were given up since it was started.
    Empty(u64),
    /// Something was, or was given up.
    Busy(String),
    /// It could not be seen.
    Unknown(String),
}

/// The numbers of one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counters(Vec<(String, i64)>);

impl Counters {
    /// Those of the pool and its backend; what stands beside them (age, latencies) changes by itself.
    fn of(statistics: &Map<String, Value>) -> Result<Self, String> {
        let pool = statistics.values().find_map(Value::as_object).ok_or("they hold no pool")?;
        let numbers = |object: &Map<String, Value>| -> Vec<(String, i64)> {
            object.iter().filter_map(|(name, value)| Some((name.clone(), value.as_i64()?))).collect()
        };
        let mut all = numbers(pool);
        all.extend(pool.values().find_map(Value::as_object).map(numbers).ok_or("they hold no backend")?);
        match PEER_QUEUES.iter().chain(&BACKEND_QUEUES).find(|name| !all.iter().any(|(known, _)| known == **name)) {
            Some(missing) => Err(format!("they lack {missing}")),
            None => Ok(Self(all)),
        }
    }

    fn get(&self, name: &str) -> i64 {
        self.0.iter().find(|(known, _)| known == name).map_or(0, |(_, value)| *value)
    }

    /// Messages that were given up.
    fn lost(&self) -> u64 {
        LOSSES.iter().map(|name| u64::try_from(self.get(name)).unwrap_or(0)).sum()
    }

    /// What keeps this answer, later than `before`, from showing that nothing is missing.
    fn fault(&self, before: &Self) -> Option<String> {
        let queue = PEER_QUEUES.iter().chain(&BACKEND_QUEUES).find(|name| self.get(name) != 0);
        let lost = || LOSSES.iter().find(|name| self.get(name) != before.get(name));
        queue.map(|name| format!("{name} is {}", self.get(name))).or_else(|| lost().map(|name| format!("{name} rose")))
    }
}

/// The queues of one Dynomite at an instant after this was called.
pub(super) async fn look(witness: &Witness, limit: Duration) -> Queues {
    let until = Instant::now() + limit;
    let unknown = |reason: String| Queues::Unknown(format!("{}: {reason}", witness.name));
    let read = async || {
        let left = until.saturating_duration_since(Instant::now());
        let statistics = witness.admin.statistics(left).await.map_err(|error| error.to_string())?;
        Counters::of(&statistics).map_err(|reason| format!("its statistics are not understood: {reason}"))
    };
    let first = match read().await {
        Ok(first) => first,
        Err(reason) => return unknown(reason),
    };
    let (mut last, mut changes) = (first.clone(), 0);
    while changes < CHANGES {
        if Instant::now() >= until {
            return unknown(format!("its statistics were not renewed within {limit:?}"));
        }
        knock(&witness.peers, until).await;
        tokio::time::sleep(POLL).await;
        match read().await {
            Ok(now) if now == last => {}
            Ok(now) => (last, changes) = (now, changes + 1),
            Err(reason) => return unknown(reason),
        }
    }
    last.fault(&first).map_or(Queues::Empty(last.lost()), |fault| Queues::Busy(format!("{}: {fault}", witness.name)))
}

/// Wakes the main loop, which counts the connection. Whether that worked is seen by what it counts.
async fn knock(peers: &str, until: Instant) {
    if let Ok(Err(error)) = tokio::time::timeout_at(until, tokio::net::TcpStream::connect(peers)).await {
        tracing::debug!(peers, %error, "the port for peers takes no connection");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(change: impl FnOnce(&mut Map<String, Value>)) -> Result<Counters, String> {
        let mut backend: Map<String, Value> = BACKEND_QUEUES.iter().map(|name| ((*name).to_owned(), 0.into())).collect();
        backend.insert("server_dropped_requests".to_owned(), 4.into());
        let mut pool: Map<String, Value> = PEER_QUEUES.iter().map(|name| ((*name).to_owned(), 0.into())).collect();
        pool.insert("peer_requests".to_owned(), 9.into());
        pool.insert("127.0.0.1:22122".to_owned(), backend.into());
        change(&mut pool);
        let statistics = [("uptime".to_owned(), 7.into()), ("dyn_o_mite".to_owned(), pool.into())].into_iter().collect();
        Counters::of(&statistics)
    }

    #[test]
    fn every_queue_and_every_loss_speaks_against_a_proof() {
        let quiet = counters(|_| {}).expect("understood");
        assert_eq!((quiet.fault(&quiet), quiet.lost()), (None, 4), "what was lost long ago is told, and no fault");
        for queue in PEER_QUEUES {
            let busy = counters(|pool| drop(pool.insert(queue.to_owned(), 3.into()))).expect("understood");
            assert_eq!(busy.fault(&quiet), Some(format!("{queue} is 3")));
        }
        let backend = |name: &'static str, value: i64| {
            counters(move |pool| {
                let backend = pool.get_mut("127.0.0.1:22122").and_then(Value::as_object_mut).expect("is there");
                backend.insert(name.to_owned(), value.into());
            })
        };
        assert_eq!(backend("out_queue", -1).expect("understood").fault(&quiet), Some("out_queue is -1".to_owned()));
        let lost = backend("server_dropped_requests", 5).expect("understood");
        assert_eq!(lost.fault(&quiet), Some("server_dropped_requests rose".to_owned()));
    }

    #[test]
    fn statistics_without_a_gauge_are_not_understood() {
        let missing = counters(|pool| drop(pool.remove("peer_out_queue")));
        assert_eq!(missing, Err("they lack peer_out_queue".to_owned()));
        let no_backend = counters(|pool| drop(pool.remove("127.0.0.1:22122")));
        assert_eq!(no_backend, Err("they hold no backend".to_owned()));
        assert!(Counters::of(&Map::new()).is_err());
    }
}
