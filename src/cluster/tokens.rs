//! Whether the members of a snapshot of a ring have all of its tokens. Pure.

use std::collections::BTreeSet;

use super::coordinator::Member;
use crate::model::names::{BadName, NodeName};

/// How the node of a token is called in snapshots.
pub(super) fn token_node(token: u64) -> Result<NodeName, BadName> {
    NodeName::new(format!("token-{token}"))
}

/// Tokens that the ring has by the word of a member, and no member: by its own word, or by its name where it did not answer.
pub(super) fn missing_tokens(members: &[Member]) -> Vec<u64> {
    let ring: BTreeSet<u64> = members.iter().flat_map(|member| &member.description.ring_tokens).copied().collect();
    let has = |member: &Member, token: u64| match &member.description.ring {
        Some(place) => place.token == token,
        None => token_node(token).is_ok_and(|name| name == member.name),
    };
    ring.into_iter().filter(|token| !members.iter().any(|member| has(member, *token))).collect()
}
