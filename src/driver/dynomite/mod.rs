//! Dynomite: one token of a ring, captured from the Redis behind one of the nodes that hold it.
//!
//! How it works: each rack of a ring holds every token, so one good copy of each token is the whole ring. Dynomite
//! hangs up on whoever sends it `CLIENT PAUSE`, `BGSAVE` and the like, so everything is asked of the backend itself:
//! [`RedisDriver`] does all of it. The preferred rack's node is taken where it is well: its Dynomite says
//! `State: NORMAL` (else it may have missed writes) and its Redis can be captured; otherwise the next node of the token.
//!
//! **The pause.** Writes wait at the paused backend, and Dynomite answers them with an error after its `timeout` (5 s unless its
//! dynomite.yml says otherwise; no admin command tells it, and the factor that one does tell only lengthens it). So a pause
//! of more than four fifths of it is refused.
//!
//! **What is proved.** The backends of the copy stand still together: what they hold is of one instant, and the Redis driver
//! proves it. But racks write to one another without waiting: a write that another rack has acknowledged may still be on
//! its way to this one, while a later one has arrived. Only when nothing was on its way does the copy hold
//! everything that was acknowledged before the instant (but what Dynomite had given up long before, which is told). So each driver looks, inside the pause, when all backends stand still,
//! at the queues of every Dynomite that has its token, in whichever rack; together the drivers look at the whole ring (a
//! snapshot that lacks a token proves nothing, which `cluster` sees to). A message that was written before the pause stands in its sender's queue until it is answered; so where all queues were
//! empty at some instant inside the pause, it was applied before it. How an answer is known to be of the pause, see `queues`.
//! Anything else, a queue in use, a Dynomite that does not answer, statistics that may be old, makes the cut `timed` with
//! scope `rack`: one copy at one instant, to which another rack's last writes may be missing. So does a second data center:
//! what comes from there is passed on by whoever gets it first, and may be between two looks.
//!
//! **Not here**: which nodes there are (`app`), stopping and starting Dynomite (`node`).

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::time::Instant;

use super::redis::{RedisDriver, RedisOptions};
use super::served::ServedNode;
use super::{CaptureReceipt, CapturedEntry, DriverError, FreezeReceipt, StoreDriver, ThawReceipt};
use crate::model::manifest::{CaptureProof, Consistency, NodeDescription, RingPlace};
use crate::model::names::NodeName;

pub mod admin;
mod queues;
pub mod ring;

pub use admin::{ADMIN_PORT, Admin, NORMAL};
use queues::{Queues, Witness};
pub use ring::{Ring, RingServer};

/// Where Redis listens behind Dynomite unless told otherwise.
pub const BACKEND_PORT: u16 = 22122;
/// Dynomite's own `timeout` unless its dynomite.yml says otherwise.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The most that the look at the queues may add to the pause: at 20 ms for the way there and back it takes 160 ms.
const LOOK_LIMIT: Duration = Duration::from_millis(300);
/// What a node may take for saves that run before another of its token is taken instead.
const CHOICE_PATIENCE: Duration = Duration::from_secs(1);
/// The scope of what is not proved of the whole ring.
const SCOPE: &str = "rack";

/// One token and the nodes that hold it.
#[derive(Debug, Clone)]
pub struct DynomiteOptions {
    /// The name of the token in snapshots.
    pub node: NodeName,
    /// The nodes that hold it, the best first; at least one.
    pub members: Vec<RingMember>,
    /// Dynomite's own `timeout`.
    pub request_timeout: Duration,
}

impl DynomiteOptions {
    /// The same where restores by links have `served` on this host.
    pub fn serving(mut self, served: &[ServedNode]) -> Self {
        self.members.iter_mut().for_each(|member| member.redis.served = served.to_vec());
        self
    }
}

/// A node of a ring.
#[derive(Debug, Clone)]
pub struct RingMember {
    /// Where it stands.
    pub place: RingPlace,
    /// `http://host:port` of its admin port.
    pub admin: String,
    /// How its backend is reached.
    pub redis: RedisOptions,
}

#[derive(Debug)]
struct Member {
    place: RingPlace,
    admin: Admin,
    redis: RedisOptions,
}

/// The member that is captured.
#[derive(Debug)]
struct Chosen {
    index: usize,
    redis: Box<RedisDriver>,
}

/// One token of a ring.
#[derive(Debug)]
pub struct DynomiteDriver {
    node: NodeName,
    members: Vec<Member>,
    request_timeout: Duration,
    chosen: Option<Chosen>,
    /// Whose queues are looked at, and those that cannot be.
    witnesses: Vec<Witness>,
    hidden: Vec<String>,
    frozen: Option<(Instant, Duration)>,
    seen: Option<Vec<Queues>>,
}

impl DynomiteDriver {
    /// A driver that has not connected yet; addresses that are not understood are refused.
    pub fn new(options: DynomiteOptions) -> Result<Self, DriverError> {
        let node = options.node.to_string();
        let mut members = Vec::new();
        for member in options.members {
            RedisDriver::new(member.redis.clone())?;
            members.push(Member { admin: Admin::new(&node, &member.admin)?, place: member.place, redis: member.redis });
        }
        Ok(Self {
            node: options.node,
            members,
            request_timeout: options.request_timeout,
            chosen: None,
            witnesses: Vec::new(),
            hidden: Vec::new(),
            frozen: None,
            seen: None,
        })
    }

    fn refused(&self, reason: impl Into<String>) -> DriverError {
        DriverError::Refused { node: self.node.to_string(), reason: reason.into() }
    }

    /// The longest pause that leaves Dynomite time to answer what waited.
    fn pause_limit(&self) -> Duration {
        self.request_timeout * 4 / 5
    }

    /// The first member that can be captured now; where each is busy, the first that can be asked, which is waited for.
    async fn choose(&mut self) -> Result<NodeDescription, DriverError> {
        let mut busy = None;
        let mut faults = Vec::new();
        for (index, member) in self.members.iter().enumerate() {
            let mut redis = Box::new(RedisDriver::new(member.redis.clone())?);
            let described = match is_well(&self.node, member).await {
                Ok(()) => redis.describe().await,
                Err(error) => Err(error),
            };
            let description = match described {
                Ok(description) => description,
                Err(error) => {
                    faults.push((member, error));
                    continue;
                }
            };
            let prepared = redis.prepare(self.pause_limit(), CHOICE_PATIENCE).await;
            redis.abandon().await;
            match prepared {
                Ok(()) => {
                    for (member, error) in &faults {
                        tracing::warn!(node = %self.node, rack = member.place.rack, %error, "another rack's node is captured");
                    }
                    self.chosen = Some(Chosen { index, redis });
                    return Ok(description);
                }
                Err(error) => {
                    faults.push((member, error));
                    busy.get_or_insert((Chosen { index, redis }, description));
                }
            }
        }
        if let Some((chosen, description)) = busy {
            self.chosen = Some(chosen);
            return Ok(description);
        }
        Err(no_copy(&self.node, faults))
    }

    async fn describe_chosen(&mut self) -> Result<NodeDescription, DriverError> {
        let description = match &mut self.chosen {
            Some(chosen) => chosen.redis.describe().await?,
            None => self.choose().await?,
        };
        let Some(chosen) = &self.chosen else { return Err(self.refused("no node of it was chosen")) };
        let member = &self.members[chosen.index];
        let ring_tokens = match member.admin.ring().await {
            Ok(ring) => tokens_beside(&ring, &member.place),
            // Then nothing is proved of its queues either.
            Err(error) => {
                tracing::warn!(node = %self.node, %error, "which tokens the ring has is not known");
                Vec::new()
            }
        };
        let mut description = NodeDescription { ring: Some(member.place.clone()), ring_tokens, ..description };
        // Whichever of them is captured next time, it is the same ring.
        for other in &self.members {
            let address = format!("address:{}", other.redis.place()?);
            if !description.identity.contains(&address) {
                description.identity.push(address);
            }
        }
        description.notes.insert("dynomite".to_owned(), member.admin.base().to_owned());
        Ok(description)
    }

    /// Who has this token, by the ring's own word, and where its peers reach it.
    async fn find_witnesses(&mut self) {
        (self.witnesses, self.hidden) = (Vec::new(), Vec::new());
        let Some(chosen) = &self.chosen else { return };
        let own = &self.members[chosen.index];
        let ring = match own.admin.ring().await {
            Ok(ring) => ring,
            Err(error) => return self.hidden.push(error.to_string()),
        };
        if ring.servers.iter().any(|server| server.place.datacenter != own.place.datacenter) {
            self.hidden.push("data centers pass writes on to one another".to_owned());
        }
        if !ring.has_equal_racks() {
            self.hidden.push("the racks have different tokens, and not all of them are looked at".to_owned());
        }
        for server in ring.servers.into_iter().filter(|server| server.place.token == own.place.token) {
            let known = self.members.iter().find(|member| member.place == server.place);
            // One that nobody told us of has the same port, as all of a ring.
            let url = format!("http://{}:{}", server.host, own.admin.port());
            let admin = match known {
                Some(member) => member.admin.clone(),
                None => match Admin::new(self.node.as_str(), &url) {
                    Ok(admin) => admin,
                    Err(error) => {
                        self.hidden.push(error.to_string());
                        continue;
                    }
                },
            };
            self.witnesses.push(Witness {
                name: format!("rack {}, {}", server.place.rack, admin.base()),
                peers: format!("{}:{}", admin.host(), server.peer_port),
                admin,
            });
        }
        if !self.witnesses.iter().any(|witness| witness.admin.base() == own.admin.base()) {
            self.hidden.push(format!("{} does not show itself in the ring at its place", own.admin.base()));
        }
    }

    /// What the queues leave of a proof.
    fn judge(&self, proof: CaptureProof, seen: &[Queues]) -> CaptureProof {
        let faults: Vec<&str> = self
            .hidden
            .iter()
            .map(String::as_str)
            .chain(seen.iter().filter_map(|queues| match queues {
                Queues::Empty(_) => None,
                Queues::Busy(fault) | Queues::Unknown(fault) => Some(fault.as_str()),
            }))
            .collect();
        let mut checks = proof.checks;
        if faults.is_empty() {
            let lost: u64 = seen.iter().map(|queues| if let Queues::Empty(lost) = queues { *lost } else { 0 }).sum();
            let lost =
                if lost > 0 { format!("; they gave up {lost} requests before, so racks may differ") } else { String::new() };
            checks.push(format!("queues of {} Dynomites empty in the pause{lost}", seen.len()));
            return CaptureProof { checks, ..proof };
        }
        checks.extend(faults.iter().map(|fault| format!("queues not known to be empty: {fault}")));
        let consistent = proof.consistent.min(Consistency::Timed);
        CaptureProof { consistent, checks, scope: Some(SCOPE.to_owned()), ..proof }
    }
}

/// All tokens of a rack. Of one that the configuration calls otherwise than the ring does: those that all racks have.
fn tokens_beside(ring: &Ring, place: &RingPlace) -> Vec<u64> {
    let is_beside = |server: &&RingServer| (&server.place.datacenter, &server.place.rack) == (&place.datacenter, &place.rack);
    let own: BTreeSet<u64> = ring.servers.iter().filter(is_beside).map(|server| server.place.token).collect();
    let of_each = || ring.servers.iter().filter(|_| ring.has_equal_racks()).map(|server| server.place.token).collect();
    Vec::from_iter(if own.is_empty() { of_each() } else { own })
}

/// Whether its Dynomite takes everything that its peers send.
async fn is_well(node: &NodeName, member: &Member) -> Result<(), DriverError> {
    let node = node.to_string();
    match member.admin.state().await? {
        Some(state) if state == NORMAL => Ok(()),
        Some(state) => Err(DriverError::Refused {
            node,
            reason: format!("its Dynomite, {}, is in state {state}: it may have missed writes", member.admin.base()),
        }),
        None => Err(DriverError::Unreachable {
            node,
            reason: format!("its Dynomite does not listen at {}: its Redis may have missed writes", member.admin.base()),
        }),
    }
}

/// Nobody who has the token can be captured: the first fault, with those of the others.
fn no_copy(node: &NodeName, faults: Vec<(&Member, DriverError)>) -> DriverError {
    let node = node.to_string();
    let is_unreachable =
        |error: &DriverError| matches!(error, DriverError::Unreachable { .. } | DriverError::DeadlineExceeded { .. });
    let all_away = faults.iter().all(|(_, error)| is_unreachable(error));
    let said = |(member, error): (&Member, DriverError)| {
        let text = error.to_string();
        let text = text.strip_prefix(&format!("{node}: ")).unwrap_or(&text);
        format!("rack {}: {text}", member.place.rack)
    };
    match faults.len() {
        0 => DriverError::Refused { node, reason: "no node of it is configured".to_owned() },
        1 => faults.into_iter().next().map(|(_, error)| error).unwrap_or_else(|| unreachable!("there is one")),
        _ => {
            let reason = format!(
                "no node that has its token can be captured: {}",
                faults.into_iter().map(said).collect::<Vec<_>>().join("; ")
            );
            if all_away { DriverError::Unreachable { node, reason } } else { DriverError::Refused { node, reason } }
        }
    }
}

#[async_trait]
impl StoreDriver for DynomiteDriver {
    async fn describe(&mut self) -> Result<NodeDescription, DriverError> {
        self.describe_chosen().await
    }

    async fn prepare(&mut self, max_pause: Duration, patience: Duration) -> Result<(), DriverError> {
        self.abandon().await;
        let limit = self.pause_limit();
        if max_pause > limit {
            return Err(self.refused(format!(
                "max_pause ({max_pause:?}) is too long: Dynomite fails what waits for {:?}; say max_pause = \"{}ms\" or less, or set \
                 request_timeout where its `timeout` is another",
                self.request_timeout,
                limit.as_millis()
            )));
        }
        if self.chosen.is_none() {
            self.choose().await?;
        }
        self.find_witnesses().await;
        match &mut self.chosen {
            Some(chosen) => chosen.redis.prepare(max_pause, patience).await,
            None => Err(self.refused("no node of it was chosen")),
        }
    }

    async fn freeze(&mut self, pause: Duration) -> Result<FreezeReceipt, DriverError> {
        let limit = self.pause_limit();
        if pause > limit {
            return Err(self.refused(format!("a pause of {pause:?} is longer than {limit:?}, in which Dynomite waits")));
        }
        let Some(chosen) = &mut self.chosen else { return Err(self.refused("it was not prepared")) };
        (self.frozen, self.seen) = (None, None);
        let began = Instant::now();
        let receipt = chosen.redis.freeze(pause).await?;
        self.frozen = Some((began, pause));
        Ok(receipt)
    }

    async fn capture(&mut self) -> Result<CaptureReceipt, DriverError> {
        let (Some(chosen), Some((began, pause))) = (&mut self.chosen, self.frozen) else {
            return Err(self.refused("it is not frozen"));
        };
        // All nodes stand still: what the queues show from now on is of the pause. The fork goes on meanwhile.
        let limit = LOOK_LIMIT.min(pause.saturating_sub(began.elapsed()) / 4);
        let looking = join_all(self.witnesses.iter().map(|witness| queues::look(witness, limit)));
        let (captured, seen) = tokio::join!(chosen.redis.capture(), looking);
        let receipt = captured?;
        self.seen = Some(seen);
        Ok(receipt)
    }

    async fn thaw(&mut self) -> Result<ThawReceipt, DriverError> {
        let Some(chosen) = &mut self.chosen else { return Ok(ThawReceipt { proof: CaptureProof::none() }) };
        let receipt = chosen.redis.thaw().await?;
        Ok(match &self.seen {
            Some(seen) => ThawReceipt { proof: self.judge(receipt.proof, seen) },
            None => receipt,
        })
    }

    async fn collect(&mut self) -> Result<Vec<CapturedEntry>, DriverError> {
        match &mut self.chosen {
            Some(chosen) => chosen.redis.collect().await,
            None => Err(self.refused("there is no capture to collect")),
        }
    }

    async fn abandon(&mut self) {
        if let Some(chosen) = &mut self.chosen {
            chosen.redis.abandon().await;
        }
        (self.frozen, self.seen) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(rack: &str, token: u64) -> RingPlace {
        RingPlace { token, datacenter: "dc".to_owned(), rack: rack.to_owned() }
    }

    #[test]
    fn the_tokens_of_a_whole_snapshot_are_those_of_the_rack() {
        let ring = |places: &[(&str, u64)]| Ring {
            servers: places
                .iter()
                .map(|(rack, token)| RingServer { place: place(rack, *token), host: "h".to_owned(), peer_port: 8101 })
                .collect(),
        };
        let unequal = ring(&[("a", 0), ("a", 7), ("b", 0), ("b", 7), ("b", 14)]);
        assert_eq!(tokens_beside(&unequal, &place("a", 0)), [0, 7]);
        assert_eq!(tokens_beside(&unequal, &place("b", 0)), [0, 7, 14]);
        // Which of them it is nobody can say.
        assert_eq!(tokens_beside(&unequal, &place("localrack", 0)), [0u64; 0]);
        let equal = ring(&[("a", 0), ("a", 14), ("b", 0), ("b", 14)]);
        assert_eq!(tokens_beside(&equal, &place("localrack", 0)), [0, 14]);
    }
}
