//! The Dynomite of this host, as the interface of Dynomite-manager tells of it.

use serde_json::{Value, json};

use crate::agent::dynomite_manager::ask_dynomite;
use crate::driver::DriverError;
use crate::driver::dynomite::{ADMIN_PORT, Admin, Ring};

const CLIENT_PORT: u16 = 8102;

/// Its admin port.
#[derive(Debug)]
pub(super) struct Dynomite(Admin);

impl Dynomite {
    /// At `base`, or else where it listens by default. Nobody is asked yet.
    pub fn new(node: &str, base: Option<&str>) -> Result<Self, DriverError> {
        let default = || format!("http://127.0.0.1:{ADMIN_PORT}");
        Admin::new(node, &base.map_or_else(default, str::to_owned)).map(Self)
    }

    /// It is seen to be up, or to be gone: one that does not answer is neither.
    pub async fn is_up(&self, is_up: bool) -> bool {
        self.0.state().await.is_ok_and(|state| state.is_some() == is_up)
    }

    /// The ring as it sees it.
    pub async fn ring(&self) -> Result<Ring, DriverError> {
        self.0.ring().await
    }

    /// Read and write.
    pub async fn consistency(&self) -> Result<(String, String), String> {
        let text = ask_dynomite(self.0.base(), "/get_consistency").await?;
        consistency(&text).ok_or_else(|| format!("Dynomite's answer is not understood: {text:?}"))
    }
}

/// Of `Read Consistency: DC_ONE` and the like.
fn consistency(text: &str) -> Option<(String, String)> {
    let value = |word: &str| {
        let lower = text.to_ascii_lowercase();
        let rest = &text[lower.find(word)? + word.len()..];
        let rest = &rest[rest.find(':')? + 1..];
        let level: String =
            rest.trim_start().chars().take_while(|character| character.is_ascii_alphanumeric() || *character == '_').collect();
        (!level.is_empty()).then_some(level)
    };
    Some((value("read")?, value("write")?))
}

/// A ring in the form of Dynomite-manager. What Dynomite does not tell (ports with TLS) is left out.
pub(super) fn described(ring: &Ring, client_port: Option<u16>, hashtag: Option<&str>) -> Value {
    let node = |server: &crate::driver::dynomite::RingServer| {
        let host = server.host.trim_start_matches('[').trim_end_matches(']');
        let mut node = json!({
            "token": server.place.token.to_string(),
            "hostname": host,
            "port": client_port.unwrap_or(CLIENT_PORT).to_string(),
            "peer_port": server.peer_port.to_string(),
            "rack": server.place.rack,
            "zone": server.place.rack,
            "dc": server.place.datacenter,
        });
        if host.parse::<std::net::IpAddr>().is_ok() {
            node["ip"] = json!(host);
        }
        if let Some(hashtag) = hashtag {
            node["hashtag"] = json!(hashtag);
        }
        node
    };
    ring.servers.iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dynomite_tells_is_told_in_the_old_form() {
        let ring = json!({"dcs": [{"name": "us-east-1", "racks": [{"name": "us-east-1c", "servers": [
            {"name": "ec2-1", "host": "10.0.0.1", "port": 8101, "token": 1_383_429_731_u64},
            {"name": "ec2-2", "host": "ec2-2.example", "port": 8101, "token": 4_000_000_000_u64},
        ]}]}]});
        let ring = Ring::parse(&ring.to_string(), "10.0.0.1").expect("a ring");
        let nodes = described(&ring, None, Some("{}"));
        let expected = json!({"token": "1383429731", "hostname": "10.0.0.1", "port": "8102", "peer_port": "8101", "rack": "us-east-1c", "ip": "10.0.0.1", "zone": "us-east-1c", "dc": "us-east-1", "hashtag": "{}"});
        assert_eq!(nodes[0], expected);
        assert_eq!((&nodes[1]["hostname"], nodes[1].get("ip")), (&json!("ec2-2.example"), None));
        assert_eq!(described(&ring, Some(7), None)[0].get("hashtag"), None);
        let levels = |text| consistency(text).map(|(read, write)| format!("{read} {write}"));
        assert_eq!(levels("Read Consistency: DC_ONE\r\nWrite Consistency: DC_QUORUM\r\n").as_deref(), Some("DC_ONE DC_QUORUM"));
        assert_eq!(levels("OK"), None);
    }
}
