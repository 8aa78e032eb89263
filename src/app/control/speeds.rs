//! How fast restores on this host were, so that the next plan can say how long it will take.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::super::wiring::Session;
use crate::agent::restore::RestoreStep;
use crate::model::restore_facts::RestoreSpeeds;
use crate::model::restore_plan::{Method, RestorePlan, RestoreRequest};

/// Shorter ones say more of the machine's first steps than of its speed.
const TELLING_BYTES: u64 = 64 << 20;

fn place(session: &Session) -> PathBuf {
    session.state_directory().join("restore-speeds.json")
}

/// Those of the last restores that were long enough to tell.
pub(super) fn last(session: &Session) -> RestoreSpeeds {
    std::fs::read(place(session)).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

/// Watches the steps of one restore.
#[derive(Debug)]
pub(super) struct StopWatch {
    began: Instant,
    /// Everything was placed, the stores are about to be stopped.
    placed: OnceLock<Duration>,
    /// All have loaded and were checked.
    checked: OnceLock<Duration>,
}

impl StopWatch {
    pub fn start() -> Self {
        Self { began: Instant::now(), placed: OnceLock::new(), checked: OnceLock::new() }
    }

    pub fn note(&self, step: RestoreStep) {
        let mark = match step {
            RestoreStep::Stop => &self.placed,
            RestoreStep::Confirm => &self.checked,
            _ => return,
        };
        // A step may come twice, for masters and for replicas: the first one counts.
        let _first = mark.set(self.began.elapsed());
    }

    /// Keeps what this restore has shown. `fetched` bytes were placed that had not been there. How fast stores load says
    /// nothing of links and clones, which are fetched meanwhile.
    pub fn remember(&self, session: &Session, request: &RestoreRequest, plan: &RestorePlan, fetched: u64) {
        let before = last(session);
        let speed = |bytes: u64, took: Option<Duration>| {
            took.filter(|_| bytes >= TELLING_BYTES).map(|took| (bytes as f64 / took.as_secs_f64().max(0.001)) as u64)
        };
        let away = self.checked.get().zip(self.placed.get()).map(|(checked, placed)| checked.saturating_sub(*placed));
        let is_telling = request.method == Method::Copy && plan.nodes.iter().any(|node| node.start);
        let speeds = RestoreSpeeds {
            placing: speed(fetched, self.placed.get().copied()).or(before.placing),
            away: speed(plan.largest_bytes(), away.filter(|_| is_telling)).or(before.away),
        };
        let json = serde_json::to_vec(&speeds).unwrap_or_default();
        if let Err(error) = std::fs::write(place(session), json) {
            tracing::debug!(%error, "the speed of this restore is not remembered");
        }
    }
}
