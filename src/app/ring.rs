//! A ring of Dynomite as the configuration and the ring itself tell it: the nodes that hold each token, and what a restore may
//! stop and start.
//!
//! A token is a node of the snapshot, `token-N`, whichever rack's node is captured: so its directory has the same name each time.
//! What the configuration calls a node is the name of a restore's target.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::Uri;

use super::config::{ClusterConfig, NodeConfig};
use super::control_args::SourceArgs;
use super::failure::Failure;
use super::wiring::{ClusterNode, redis_options, redis_url};
use crate::driver::ProxySite;
use crate::driver::dynomite::{ADMIN_PORT, Admin, BACKEND_PORT, DynomiteOptions, REQUEST_TIMEOUT, Ring, RingMember, RingServer};
use crate::driver::redis::{CaptureMode, RedisOptions};
use crate::model::manifest::RingPlace;
use crate::model::names::{ClusterName, NodeName};

/// What Dynomite calls a rack and a data center that its configuration does not name.
const DEFAULT_RACK: &str = "localrack";
const DEFAULT_DATACENTER: &str = "localdc";

/// Every token of the ring with the nodes that hold it, as nodes of a snapshot.
pub(super) async fn tokens(
    cluster: &ClusterName,
    config: &ClusterConfig,
    capture: Option<&str>,
) -> Result<Vec<ClusterNode>, Failure> {
    let ring = RingConfig { cluster, config, capture: config.capture_mode(cluster, capture)? };
    let mut members: BTreeMap<u64, Vec<Option<Member>>> = BTreeMap::new();
    if config.discover.is_some() {
        let described = ring.described().await?;
        ring.check_named(&described)?;
        let copies = described.copies(config.datacenter.as_deref(), config.rack.as_deref());
        let copies = copies.map_err(|reason| {
            Failure::usage(format!("[clusters.{cluster}] {reason}")).hint("correct rack and datacenter, or leave them out")
        })?;
        for (token, servers) in copies {
            let found = servers.into_iter().map(|server| ring.discovered(server).map(Some)).collect::<Result<_, _>>()?;
            members.insert(token, found);
        }
    } else {
        let is_preferred = |node: &NodeConfig| {
            let place = place(node, 0);
            let is_wanted = |wanted: &Option<String>, own: &str| wanted.as_deref().is_none_or(|wanted| wanted == own);
            is_wanted(&config.rack, &place.rack) && is_wanted(&config.datacenter, &place.datacenter)
        };
        let mut named: Vec<_> = config.nodes.iter().collect();
        // As they are sorted by name, the order is the same each time.
        named.sort_by_key(|(_, node)| !is_preferred(node));
        for (name, node) in named {
            let token = ring.token(name, node)?;
            members.entry(token).or_default().push(ring.named(name, node, place(node, token))?);
        }
    }
    if members.is_empty() {
        return Err(Failure::usage(format!("cluster {cluster} has no nodes")).hint(format!(
            "write discover = \"http://ANY-NODE:{ADMIN_PORT}\", or nodes with token, under [clusters.{cluster}]"
        )));
    }
    members.into_iter().map(|(token, members)| ring.node(token, members)).collect()
}

/// Who takes a snapshot of a list of nodes has all tokens in it: one that nobody named would be missed by nobody. Where no
/// Dynomite of the list answers nothing is known here, and those who capture its nodes say what is wrong.
pub(super) async fn check_whole(cluster: &ClusterName, config: &ClusterConfig, nodes: &[ClusterNode]) -> Result<(), Failure> {
    if config.discover.is_some() {
        return Ok(());
    }
    let listed: BTreeSet<u64> = config.nodes.values().filter_map(|node| node.token).collect();
    for member in nodes.iter().filter_map(|node| node.ring.as_ref()).flat_map(|ring| &ring.members) {
        let Ok(ring) = Admin::new(cluster.as_str(), &member.admin)?.ring().await else { continue };
        let is_beside = |place: &RingPlace| (&place.datacenter, &place.rack) == (&member.place.datacenter, &member.place.rack);
        let missing = ring.servers.iter().find(|server| is_beside(&server.place) && !listed.contains(&server.place.token));
        return match missing {
            None => Ok(()),
            Some(server) => Err(Failure::usage(format!(
                "[clusters.{cluster}] the ring has token {} too, at {}, and no node with it is named",
                server.place.token, server.host
            ))
            .hint(format!("name it as well, or say discover = {:?} under [clusters.{cluster}]", member.admin))),
        };
    }
    Ok(())
}

/// The nodes of the ring that the configuration names, as targets of a restore. Nobody is asked.
pub(super) fn members(cluster: &ClusterName, config: &ClusterConfig) -> Result<Vec<ClusterNode>, Failure> {
    let ring = RingConfig { cluster, config, capture: CaptureMode::default() };
    let node = |(name, node): (&NodeName, &NodeConfig)| {
        let token = ring.token(name, node)?;
        let known = ring.named(name, node, place(node, token))?;
        Ok(ClusterNode {
            directory: node.data_directory.clone(),
            config: node.clone(),
            proxy: Some(ProxySite {
                place: place(node, token),
                admin: known.as_ref().map_or_else(String::new, |known| known.member.admin.clone()),
                stop: node.stop_proxy.clone().unwrap_or_default(),
                start: node.start_proxy.clone().unwrap_or_default(),
            }),
            redis: known.map(|known| RedisOptions { node: name.clone(), ..known.member.redis }),
            ..ClusterNode::new(name.clone())
        })
    };
    config.nodes.iter().map(node).collect()
}

/// A node that holds a token, and what the configuration says of it.
struct Member {
    member: RingMember,
    config: NodeConfig,
}

fn place(node: &NodeConfig, token: u64) -> RingPlace {
    let or = |said: &Option<String>, default: &str| said.clone().unwrap_or_else(|| default.to_owned());
    RingPlace { token, datacenter: or(&node.datacenter, DEFAULT_DATACENTER), rack: or(&node.rack, DEFAULT_RACK) }
}

/// The name of a token's node in snapshots.
pub(super) fn token_name(token: u64) -> Result<NodeName, Failure> {
    Ok(NodeName::new(format!("token-{token}"))?)
}

/// A ring's part of the configuration.
struct RingConfig<'a> {
    cluster: &'a ClusterName,
    config: &'a ClusterConfig,
    capture: CaptureMode,
}

impl RingConfig<'_> {
    fn token(&self, name: &NodeName, node: &NodeConfig) -> Result<u64, Failure> {
        node.token.ok_or_else(|| {
            Failure::usage(format!("[clusters.{}.nodes.{name}] has no token", self.cluster))
                .hint("say the one that stands under tokens in its dynomite.yml")
        })
    }

    /// The ring's own word: of the node under `discover`, or else of one that is named.
    async fn described(&self) -> Result<Ring, Failure> {
        let discover = self.config.discover.iter();
        let seeds = discover.chain(self.config.nodes.values().filter_map(|node| node.admin.as_ref()));
        let mut first = None;
        for seed in seeds {
            match Admin::new(self.cluster.as_str(), seed)?.ring().await {
                Ok(ring) => return Ok(ring),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        Err(first.map_or_else(|| Failure::usage(format!("[clusters.{}] has no discover", self.cluster)), Failure::from))
    }

    /// Every named node is in the ring, at one place.
    fn check_named(&self, ring: &Ring) -> Result<(), Failure> {
        for (name, node) in &self.config.nodes {
            let token = self.token(name, node)?;
            let table = format!("[clusters.{}.nodes.{name}]", self.cluster);
            let racks: Vec<_> =
                ring.servers.iter().filter(|server| is_it(node, server)).map(|server| &server.place.rack).collect();
            match racks.as_slice() {
                [_] => {}
                [] => {
                    let known: Vec<_> = ring
                        .servers
                        .iter()
                        .map(|server| format!("{} in {} of {}", server.place.token, server.place.rack, server.place.datacenter))
                        .collect();
                    return Err(Failure::usage(format!("{table} the ring has no such node with token {token}"))
                        .hint(format!("correct token, rack and datacenter; the ring has {}", known.join(", "))));
                }
                several => {
                    let several: Vec<_> = several.iter().map(|rack| rack.as_str()).collect();
                    return Err(Failure::usage(format!("{table} several nodes have token {token}"))
                        .hint(format!("say its rack, one of {}, and its datacenter", several.join(", "))));
                }
            }
        }
        Ok(())
    }

    /// A node of the ring, with what the configuration says of it.
    fn discovered(&self, server: &RingServer) -> Result<Member, Failure> {
        let named = self.config.nodes.values().find(|node| is_it(node, server));
        let node = named.cloned().unwrap_or_default();
        let admin = node.admin.clone().unwrap_or_else(|| format!("http://{}:{}", server.host, self.admin_port()));
        self.member(node, server.place.clone(), &server.host, admin)
    }

    /// A node that is only named; `None` where its agent alone knows where it is.
    fn named(&self, name: &NodeName, node: &NodeConfig, place: RingPlace) -> Result<Option<Member>, Failure> {
        let host = match (&node.address, &node.admin) {
            (Some(address), _) => host_of(&redis_url(address)),
            (None, Some(admin)) => host_of(admin),
            (None, None) if node.agent.is_some() => return Ok(None),
            (None, None) => None,
        };
        let Some(host) = host else {
            return Err(Failure::usage(format!("[clusters.{}.nodes.{name}] has no address", self.cluster))
                .hint("say address = \"redis://HOST:PORT\" of its Redis, or admin = \"http://HOST:PORT\" of its Dynomite"));
        };
        let admin = node.admin.clone().unwrap_or_else(|| format!("http://{host}:{}", self.admin_port()));
        self.member(node.clone(), place, &host, admin).map(Some)
    }

    fn member(&self, node: NodeConfig, place: RingPlace, host: &str, admin: String) -> Result<Member, Failure> {
        let port = self.config.backend_port.unwrap_or(BACKEND_PORT);
        let address = node.address.clone().unwrap_or_else(|| format!("redis://{host}:{port}"));
        let name = token_name(place.token)?;
        // What a restore could not reach it could not wait for.
        Admin::new(name.as_str(), &admin)?;
        let redis = redis_options(self.config, &SourceArgs::default(), self.capture, &name, &address, &node)?;
        Ok(Member { member: RingMember { place, admin, redis }, config: node })
    }

    /// A token as a node of a snapshot; without a member its agent captures it.
    fn node(&self, token: u64, members: Vec<Option<Member>>) -> Result<ClusterNode, Failure> {
        let name = token_name(token)?;
        let known: Vec<Member> = members.into_iter().flatten().collect();
        let Some(first) = known.first() else {
            let agent = |(_, node): &(&NodeName, &NodeConfig)| node.token == Some(token);
            let config = self.config.nodes.iter().find(agent).map(|(_, node)| node.clone()).unwrap_or_default();
            return Ok(ClusterNode { config, ..ClusterNode::new(name) });
        };
        let timeout = self.config.request_timeout.map_or(REQUEST_TIMEOUT, |timeout| timeout.0);
        if timeout < Duration::from_millis(100) {
            return Err(Failure::usage(format!(
                "[clusters.{}] request_timeout: {timeout:?} leaves no time for a pause",
                self.cluster
            ))
            .hint("say what stands under timeout in dynomite.yml, with its unit, for example \"5s\""));
        }
        Ok(ClusterNode {
            redis: Some(first.member.redis.clone()),
            directory: first.config.data_directory.clone(),
            config: first.config.clone(),
            ring: Some(DynomiteOptions {
                node: name.clone(),
                members: known.into_iter().map(|known| known.member).collect(),
                request_timeout: timeout,
            }),
            ..ClusterNode::new(name)
        })
    }

    /// All nodes of a ring have the same.
    fn admin_port(&self) -> u16 {
        let seed: Option<Uri> = self.config.discover.as_ref().and_then(|seed| seed.parse().ok());
        seed.and_then(|seed| seed.port_u16()).unwrap_or(ADMIN_PORT)
    }
}

/// The configuration means this node of the ring.
fn is_it(node: &NodeConfig, server: &RingServer) -> bool {
    let is = |said: &Option<String>, own: &str| said.as_deref().is_none_or(|said| said == own);
    node.token == Some(server.place.token) && is(&node.rack, &server.place.rack) && is(&node.datacenter, &server.place.datacenter)
}

fn host_of(url: &str) -> Option<String> {
    url.parse::<Uri>().ok()?.host().map(str::to_owned)
}
