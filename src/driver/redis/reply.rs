//! What a server says of itself, taken apart: `INFO`, `CLUSTER NODES`, `CLIENT LIST`. Pure.

use std::collections::BTreeMap;

/// Fields of one or more `INFO` (or `CLUSTER INFO`) answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(BTreeMap<String, String>);

impl Fields {
    /// Takes `name:value` lines; everything else is passed over.
    pub fn parse(text: &str) -> Self {
        let mut fields = Self::default();
        fields.add(text);
        fields
    }

    /// Adds the lines of a further answer; later values replace earlier ones.
    pub fn add(&mut self, text: &str) {
        for line in text.lines() {
            if let Some((name, value)) = line.trim_end().split_once(':')
                && !name.starts_with('#')
            {
                self.0.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    /// The value of a field; `None` where the server does not know it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A field that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// Whether a field is there and not zero.
    pub fn flag(&self, name: &str) -> bool {
        self.number(name).is_some_and(|number| number != 0)
    }

    /// The command set, as `redis_version` says: Valkey names the Redis that it is compatible with there.
    pub fn compatible_version(&self) -> (u32, u32) {
        let mut parts = self.get("redis_version").unwrap_or("0.0").split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    /// `redis` or `valkey`, and its own version.
    pub fn store(&self) -> (&'static str, String) {
        match self.get("valkey_version") {
            Some(version) => ("valkey", version.to_owned()),
            None => ("redis", self.get("redis_version").unwrap_or_default().to_owned()),
        }
    }

    /// Replicas that are in the middle of a full synchronisation.
    pub fn replicas_synchronising(&self) -> usize {
        self.0
            .iter()
            .filter(|(name, _)| name.strip_prefix("slave").is_some_and(|rest| rest.parse::<u32>().is_ok()))
            .filter(|(_, value)| value.split(',').any(|part| part.starts_with("state=") && part != "state=online"))
            .count()
    }
}

/// What must not change between freeze and thaw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// `master` or `slave`.
    pub role: String,
    /// Identity of the replication stream.
    pub replication_id: String,
    /// Bytes of the replication stream so far.
    pub offset: u64,
    /// Without a backlog and replicas the offset stands still while keys are written.
    pub has_backlog: bool,
    /// Writes since the last save; it also drops, when a save completes.
    pub changes: u64,
    /// A child is saving, for a file or for a replica.
    pub saving: bool,
    /// The last save was no success.
    pub save_failed: bool,
    /// Configuration epochs, own and the cluster's; `None` outside of a cluster.
    pub epochs: Option<(u64, u64)>,
    /// Forks since the server started; `None` before Redis 6.2.
    pub forks: Option<u64>,
    /// Microseconds that the last fork took.
    pub fork_us: Option<u64>,
}

impl Reading {
    /// From `INFO replication`, `INFO persistence`, `INFO stats` and, in a cluster, `CLUSTER INFO`.
    pub fn from_fields(fields: &Fields) -> Self {
        Self {
            role: fields.get("role").unwrap_or_default().to_owned(),
            replication_id: fields.get("master_replid").unwrap_or_default().to_owned(),
            offset: fields.number("master_repl_offset").unwrap_or(0),
            has_backlog: fields.flag("repl_backlog_active"),
            changes: fields.number("rdb_changes_since_last_save").unwrap_or(0),
            saving: fields.flag("rdb_bgsave_in_progress"),
            save_failed: fields.get("rdb_last_bgsave_status").is_some_and(|status| status != "ok"),
            epochs: fields.number("cluster_my_epoch").zip(fields.number("cluster_current_epoch")),
            forks: fields.number("total_forks"),
            fork_us: fields.number("latest_fork_usec"),
        }
    }
}

/// One line of `CLUSTER NODES`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterNode {
    /// 40 hexadecimal digits.
    pub id: String,
    /// Where clients reach it, without the bus port; empty where the node does not know its own address yet.
    pub host: String,
    /// Port for clients.
    pub port: u16,
    /// `myself`, `master`, `slave`, `fail`, `fail?`, `noaddr`, …
    pub flags: Vec<String>,
    /// Configuration epoch.
    pub epoch: u64,
    /// Inclusive ranges.
    pub slots: Vec<(u16, u16)>,
    /// Slots on their way to or from this node; only told of `myself`.
    pub moving: Vec<String>,
}

impl ClusterNode {
    /// Whether a flag is set.
    pub fn is(&self, flag: &str) -> bool {
        self.flags.iter().any(|own| own == flag)
    }
}

/// The nodes of `CLUSTER NODES`; lines that are not understood are passed over.
pub fn cluster_nodes(text: &str) -> Vec<ClusterNode> {
    text.lines().filter_map(cluster_node).collect()
}

fn cluster_node(line: &str) -> Option<ClusterNode> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [id, address, flags, _master, _ping, _pong, epoch, _link, slots @ ..] = words.as_slice() else { return None };
    // `host:port@busport,hostname`; an IPv6 host has colons of its own.
    let address = address.split(['@', ',']).next()?;
    let (host, port) = address.rsplit_once(':')?;
    let mut node = ClusterNode {
        id: (*id).to_owned(),
        host: host.to_owned(),
        port: port.parse().ok()?,
        flags: flags.split(',').map(str::to_owned).collect(),
        epoch: epoch.parse().ok()?,
        ..ClusterNode::default()
    };
    for slot in slots {
        if slot.starts_with('[') {
            node.moving.push((*slot).to_owned());
        } else {
            let (first, last) = slot.split_once('-').unwrap_or((slot, slot));
            node.slots.push((first.parse().ok()?, last.parse().ok()?));
        }
    }
    Some(node)
}

/// Clients of `CLIENT LIST` whose name begins with `prefix`, as `name at address`.
pub fn clients_named(list: &str, prefix: &str) -> Vec<String> {
    let field = |line: &str, name: &str| {
        line.split(' ')
            .find_map(|part| part.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')))
            .unwrap_or_default()
            .to_owned()
    };
    list.lines()
        .filter(|line| field(line, "name").starts_with(prefix))
        .map(|line| format!("{} at {}", field(line, "name"), field(line, "addr")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_nodes_are_taken_apart() {
        let text = "07c37dfeb235213a872192d90877d0cd55635b91 127.0.0.1:30004@31004,host slave e7d1eec 0 1426238317239 4 connected\n\
            67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1 ::1:30002@31002 myself,master - 0 1426238316232 2 connected 5461-10922 7 [93-<-292f8b36] [77->-e7d1eecc]\n";
        let nodes = cluster_nodes(text);
        assert_eq!((nodes[0].host.as_str(), nodes[0].port), ("127.0.0.1", 30004));
        assert!(nodes[0].is("slave") && nodes[1].is("myself"));
        assert_eq!(nodes[1].host, "::1");
        assert_eq!(nodes[1].slots, [(5461, 10922), (7, 7)]);
        assert_eq!(nodes[1].moving.len(), 2);
    }

    #[test]
    fn a_valkey_says_what_it_is_compatible_with() {
        let fields = Fields::parse("# Server\r\nredis_version:7.2.4\r\nvalkey_version:8.0.1\r\n");
        assert_eq!(fields.compatible_version(), (7, 2));
        assert_eq!(fields.store(), ("valkey", "8.0.1".to_owned()));
    }

    #[test]
    fn replicas_in_a_full_synchronisation_are_counted() {
        let fields = Fields::parse(
            "slave0:ip=1,port=2,state=online,offset=1\r\nslave1:ip=1,port=2,state=wait_bgsave,offset=0\r\nslave_expires_tracked_keys:0\r\n",
        );
        assert_eq!(fields.replicas_synchronising(), 1);
    }

    #[test]
    fn our_clients_are_found_by_name() {
        let list = "id=3 addr=127.0.0.1:5 laddr=x name=tintype-frozen age=1\nid=4 addr=127.0.0.1:6 name= age=1\n";
        assert_eq!(clients_named(list, "tintype-"), ["tintype-frozen at 127.0.0.1:5"]);
    }
}
