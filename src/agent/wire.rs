//! What travels between a coordinator and an agent: addresses, bodies and errors of the REST interface.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Ticket;
use super::orders::Order;
use super::restore_orders::{RestoreOrder, RestoreTicket, Subject};
use crate::model::names::{ClusterName, NodeName};

/// An agent keeps nobody longer than this, whatever is asked.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(20);
/// Nobody may hold writes back for longer through an agent.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Nor keep it waiting for running saves.
const PATIENCE_MAX: Duration = Duration::from_secs(24 * 3600);
/// The verb that is no order: everything is given back.
pub(super) const ABANDON: &str = "abandon";

/// The body of an order. What it is about and what is to be done stand in the address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OrderBody {
    /// The repository into which the snapshot goes: the agent's must be the same.
    pub repository: Uuid,
    /// The coordinator's.
    pub epoch: u64,
    /// To `prepare` and `freeze`: the longest pause of writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u64>,
    /// To `prepare`: how long to wait for running saves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience_us: Option<u64>,
    /// How long to wait for the outcome.
    #[serde(default)]
    pub wait_us: u64,
}

/// The body of an order of a restore. Which node's and which restore's it is stands in the address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RestoreBody {
    /// The snapshot; absent for a rollback or a settling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
    /// What is to be done; absent: what is being placed is to end soon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<RestoreOrder>,
    /// How long to wait for the outcome.
    #[serde(default)]
    pub wait_us: u64,
}

impl RestoreBody {
    pub fn new(ticket: &RestoreTicket, order: Option<&RestoreOrder>, wait: Duration) -> Self {
        Self { subject: ticket.subject.clone(), order: order.cloned(), wait_us: micros(wait) }
    }

    pub fn wait(&self) -> Duration {
        Duration::from_micros(self.wait_us).min(WAIT_MAX)
    }
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ErrorBody {
    pub error: ErrorText,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ErrorText {
    pub code: String,
    pub message: String,
    #[serde(default)]
    pub hint: Option<String>,
}

/// The path of an order.
pub(super) fn path(ticket: &Ticket, verb: &str) -> String {
    format!("/v1/clusters/{}/nodes/{}/snapshots/{}/{verb}", ticket.cluster, ticket.node, ticket.snapshot)
}

/// The path of a restore's orders.
pub(super) fn restore_path(ticket: &RestoreTicket) -> String {
    format!("/v1/clusters/{}/nodes/{}/restores/{}", ticket.cluster, ticket.node, ticket.restore)
}

/// The path of what an agent does for a node.
pub(super) fn standing(cluster: &ClusterName, node: &NodeName) -> String {
    format!("/v1/clusters/{cluster}/nodes/{node}")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl OrderBody {
    pub fn new(ticket: &Ticket, order: Option<Order>, wait: Duration) -> Self {
        let (pause, patience) = match order {
            Some(Order::Prepare(pause, patience)) => (Some(pause), Some(patience)),
            Some(Order::Freeze(pause)) => (Some(pause), None),
            _ => (None, None),
        };
        Self {
            repository: ticket.repository,
            epoch: ticket.epoch,
            pause_us: pause.map(micros),
            patience_us: patience.map(micros),
            wait_us: micros(wait),
        }
    }

    /// The order of that name; the error says what is missing or too much.
    pub fn order(&self, verb: &str) -> Result<Order, String> {
        let bounded = |micros: Option<u64>, max: Duration, name: &str| match micros.map(Duration::from_micros) {
            Some(duration) if duration <= max => Ok(duration),
            Some(_) => Err(format!("{name} is more than {max:?}")),
            None => Err(format!("{name} is missing")),
        };
        let pause = || bounded(self.pause_us, PAUSE_MAX, "pause_us");
        Ok(match verb {
            "describe" => Order::Describe(self.epoch),
            "prepare" => Order::Prepare(pause()?, bounded(self.patience_us, PATIENCE_MAX, "patience_us")?),
            "freeze" => Order::Freeze(pause()?),
            "capture" => Order::Capture,
            "thaw" => Order::Thaw,
            "upload" => Order::Upload,
            other => return Err(format!("{other:?} is no order")),
        })
    }

    pub fn wait(&self) -> Duration {
        Duration::from_micros(self.wait_us).min(WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_arrives_as_it_was_given_and_nobody_waits_for_ever() {
        let ticket = Ticket {
            repository: Uuid::from_u128(1),
            cluster: ClusterName::new("prod").expect("legal"),
            node: NodeName::new("10.0.0.1_6379").expect("legal"),
            snapshot: Uuid::from_u128(2),
            epoch: 7,
        };
        let (pause, patience) = (Duration::from_millis(1500), Duration::from_secs(300));
        let orders = [
            Order::Describe(7),
            Order::Prepare(pause, patience),
            Order::Freeze(pause),
            Order::Capture,
            Order::Thaw,
            Order::Upload,
        ];
        for order in orders {
            let text = serde_json::to_string(&OrderBody::new(&ticket, Some(order), Duration::MAX)).expect("writes");
            let body: OrderBody = serde_json::from_str(&text).expect("reads");
            assert_eq!((body.order(order.verb()), body.wait()), (Ok(order), WAIT_MAX));
        }
        let body = OrderBody::new(&ticket, Some(Order::Freeze(Duration::from_secs(61))), Duration::ZERO);
        assert_eq!(body.order("freeze"), Err("pause_us is more than 60s".to_owned()));
        assert_eq!(body.order("prepare"), Err("pause_us is more than 60s".to_owned()));
        assert_eq!(OrderBody { pause_us: None, ..body.clone() }.order("freeze"), Err("pause_us is missing".to_owned()));
        assert_eq!(body.order("melt"), Err("\"melt\" is no order".to_owned()));
        assert_eq!(
            path(&ticket, "thaw"),
            "/v1/clusters/prod/nodes/10.0.0.1_6379/snapshots/00000000-0000-0000-0000-000000000002/thaw"
        );
    }
}
