//! The ring that `/cluster_describe` shows, and which node of each token is to be captured. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Deserialize;

use crate::model::manifest::RingPlace;

/// A node of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingServer {
    /// Its token, data center and rack. Of a node with several tokens Dynomite shows one.
    pub place: RingPlace,
    /// Where it is, as in a URL.
    pub host: String,
    /// Where its peers reach it; what its clients use is not shown.
    pub peer_port: u16,
}

/// All nodes of a ring.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ring {
    /// In the order of data centers, racks and tokens.
    pub servers: Vec<RingServer>,
}

#[derive(Deserialize)]
struct Described {
    dcs: Vec<DescribedDatacenter>,
}

#[derive(Deserialize)]
struct DescribedDatacenter {
    name: String,
    racks: Vec<DescribedRack>,
}

#[derive(Deserialize)]
struct DescribedRack {
    name: String,
    servers: Vec<DescribedServer>,
}

#[derive(Deserialize)]
struct DescribedServer {
    name: String,
    host: String,
    port: u16,
    token: u64,
}

impl Ring {
    /// From the answer of a node that was reached at `asked`: it may know itself as the address that it listens on only.
    pub fn parse(text: &str, asked: &str) -> Result<Self, String> {
        let described: Described = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut servers = Vec::new();
        for datacenter in described.dcs {
            for rack in datacenter.racks {
                for server in rack.servers {
                    let host = [server.host, server.name].into_iter().find(|host| is_place(host));
                    servers.push(RingServer {
                        place: RingPlace { token: server.token, datacenter: datacenter.name.clone(), rack: rack.name.clone() },
                        host: host.map_or_else(|| asked.to_owned(), |host| in_url(&host)),
                        peer_port: server.port,
                    });
                }
            }
        }
        if servers.is_empty() {
            return Err("it shows no servers".to_owned());
        }
        let key = |server: &RingServer| (server.place.datacenter.clone(), server.place.rack.clone(), server.place.token);
        servers.sort_by_key(key);
        if let Some(pair) = servers.windows(2).find(|pair| pair[0].place == pair[1].place) {
            let RingPlace { token, rack, .. } = &pair[0].place;
            return Err(format!("two servers of rack {rack} have token {token}"));
        }
        Ok(Self { servers })
    }

    /// Every rack has the same tokens.
    pub fn has_equal_racks(&self) -> bool {
        let mut racks: BTreeMap<(&str, &str), BTreeSet<u64>> = BTreeMap::new();
        for RingServer { place, .. } in &self.servers {
            racks.entry((&place.datacenter, &place.rack)).or_default().insert(place.token);
        }
        let mut sets = racks.values();
        sets.next().is_none_or(|first| sets.all(|other| other == first))
    }

    /// Every token of the preferred rack with the nodes that hold it, the best first: that rack's own, then those of its
    /// data center, then others. Without a preference the first rack is taken, the same each time.
    pub fn copies(&self, datacenter: Option<&str>, rack: Option<&str>) -> Result<BTreeMap<u64, Vec<&RingServer>>, String> {
        let is_wanted = |place: &RingPlace| {
            datacenter.is_none_or(|wanted| place.datacenter == wanted) && rack.is_none_or(|wanted| place.rack == wanted)
        };
        let Some(preferred) = self.servers.iter().map(|server| &server.place).find(|place| is_wanted(place)) else {
            let racks: BTreeSet<_> =
                self.servers.iter().map(|server| format!("{} in {}", server.place.rack, server.place.datacenter)).collect();
            let wanted = [rack.map(|rack| format!("rack {rack}")), datacenter.map(|name| format!("data center {name}"))];
            let wanted: Vec<_> = wanted.into_iter().flatten().collect();
            return Err(format!("the ring has no {}; its racks: {}", wanted.join(" in "), Vec::from_iter(racks).join(", ")));
        };
        let is_own = |place: &RingPlace| (&place.datacenter, &place.rack) == (&preferred.datacenter, &preferred.rack);
        let mut copies: BTreeMap<u64, Vec<&RingServer>> = BTreeMap::new();
        for server in self.servers.iter().filter(|server| is_own(&server.place)) {
            copies.insert(server.place.token, vec![server]);
        }
        for is_near in [true, false] {
            for server in self.servers.iter().filter(|server| !is_own(&server.place)) {
                if (server.place.datacenter == preferred.datacenter) == is_near
                    && let Some(copies) = copies.get_mut(&server.place.token)
                {
                    copies.push(server);
                }
            }
        }
        Ok(copies)
    }
}

/// Not an address that means "all of mine".
fn is_place(host: &str) -> bool {
    !host.is_empty() && !host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
}

fn in_url(host: &str) -> String {
    if host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(host: &str, token: u64) -> String {
        format!(r#"{{"name":"{host}","host":"{host}","port":8101,"token":{token}}}"#)
    }

    fn rack(name: &str, servers: &[String]) -> String {
        format!(r#"{{"name":"{name}","servers":[{}]}}"#, servers.join(","))
    }

    fn ring(dcs: &[(&str, &[String])]) -> Result<Ring, String> {
        let dcs: Vec<_> =
            dcs.iter().map(|(name, racks)| format!(r#"{{"name":"{name}","racks":[{}]}}"#, racks.join(","))).collect();
        Ring::parse(&format!(r#"{{"dcs":[{}]}}"#, dcs.join(",")), "10.0.0.9")
    }

    fn hosts<'a>(copies: &'a BTreeMap<u64, Vec<&'a RingServer>>) -> Vec<(u64, Vec<&'a str>)> {
        copies.iter().map(|(token, servers)| (*token, servers.iter().map(|server| server.host.as_str()).collect())).collect()
    }

    #[test]
    fn a_token_is_captured_in_the_preferred_rack_and_else_near_it() {
        let east = [
            rack("a", &[server("10.0.0.1", 0), server("10.0.0.2", 7)]),
            rack("b", &[server("10.0.1.1", 0), server("10.0.1.2", 7)]),
        ];
        // Another data center with tokens of its own beside one that it shares.
        let west = [rack("a", &[server("10.1.0.1", 7), server("10.1.0.2", 8)])];
        let ring = ring(&[("west", &west), ("east", &east)]).expect("a ring");
        let preferred = |datacenter, rack| ring.copies(datacenter, rack).map(|copies| format!("{:?}", hosts(&copies)));
        let first = r#"[(0, ["10.0.0.1", "10.0.1.1"]), (7, ["10.0.0.2", "10.0.1.2", "10.1.0.1"])]"#;
        assert_eq!(preferred(None, None).as_deref(), Ok(first));
        assert_eq!(preferred(Some("east"), Some("a")).as_deref(), Ok(first));
        let second = r#"[(0, ["10.0.1.1", "10.0.0.1"]), (7, ["10.0.1.2", "10.0.0.2", "10.1.0.1"])]"#;
        assert_eq!(preferred(None, Some("b")).as_deref(), Ok(second));
        let far = r#"[(7, ["10.1.0.1", "10.0.0.2", "10.0.1.2"]), (8, ["10.1.0.2"])]"#;
        assert_eq!(preferred(Some("west"), None).as_deref(), Ok(far));
        assert!(!ring.has_equal_racks());
        let error = preferred(Some("west"), Some("b")).expect_err("there is none");
        assert!(error.contains("no rack b in data center west; its racks: a in east, a in west, b in east"), "{error}");
    }

    #[test]
    fn a_node_that_knows_its_own_address_not_is_where_it_was_asked() {
        let found = ring(&[("dc", &[rack("a", &[server("0.0.0.0", 0), server("node-2", 1), server("::", 2)])])]);
        let found: Vec<_> = found.expect("a ring").servers.into_iter().map(|server| server.host).collect();
        assert_eq!(found, ["10.0.0.9", "node-2", "10.0.0.9"]);
    }

    #[test]
    fn racks_with_the_same_tokens_are_equal() {
        let racks = |b: u64| [rack("a", &[server("10.0.0.1", 0)]), rack("b", &[server("10.0.1.1", b)])];
        let is_equal = |b| ring(&[("dc", &racks(b))]).expect("a ring").has_equal_racks();
        assert_eq!([is_equal(0), is_equal(1)], [true, false]);
    }

    #[test]
    fn what_is_no_ring_is_an_error() {
        for text in ["OK\r\n", "ERR", "{}", r#"{"dcs":[]}"#, r#"{"dcs":[{"name":"dc","racks":[{"name":"r","servers":[]}]}]}"#] {
            assert!(Ring::parse(text, "a").is_err(), "{text}");
        }
        assert!(ring(&[("dc", &[rack("a", &[server("10.0.0.1", 1), server("10.0.0.2", 1)])])]).is_err());
    }
}
