//! What speaks against restoring into a ring of Dynomite, from facts alone: its tokens, its proxies, its other racks.

use std::collections::BTreeSet;

use super::restore_facts::{RestoreRequest, SourceFacts, TargetFacts};
use super::restore_plan::{RefusalCode, Refusals};

fn token_of(source: &SourceFacts) -> Option<u64> {
    source.description.ring.as_ref().map(|ring| ring.token)
}

/// A ring finds a key by all of its tokens: one more, and some of the keys belong to it. The configuration may name fewer
/// than there are, those of this host.
pub(super) fn check_ring(sources: &[SourceFacts], targets: &[TargetFacts], request: &RestoreRequest, refusals: &mut Refusals) {
    let stored: BTreeSet<u64> = sources.iter().filter_map(token_of).collect();
    let more = targets.iter().filter_map(|target| Some((target, target.proxy.as_ref()?.place.token)));
    let more: Vec<_> = more.filter(|(_, token)| !stored.is_empty() && !stored.contains(token)).collect();
    if more.is_empty() {
        return;
    }
    let shown = |tokens: BTreeSet<u64>| tokens.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let reason = format!(
        "it has tokens that the snapshot has not ({}): keys of the stored ones ({}) would not be found",
        shown(more.iter().map(|(_, token)| *token).collect()),
        shown(stored.clone())
    );
    let next = "restore into a ring with the tokens of the snapshot, or correct token in the configuration";
    refusals.add(RefusalCode::TokensDiffer, &request.target_cluster, reason, next);
}

/// What one token holds is looked for under that token alone.
pub(super) fn check_token(source: &SourceFacts, target: &TargetFacts, request: &RestoreRequest, refusals: &mut Refusals) {
    let Some(proxy) = &target.proxy else { return };
    let token = proxy.place.token;
    let stored = match token_of(source) {
        Some(stored) if stored == token => return,
        Some(stored) => format!("with token {stored}"),
        None => "without a token".to_owned(),
    };
    let reason = format!("{} was stored {stored}, and the target has {token}: its keys could not be reached", source.node);
    let next = format!("map it to the node of {} with that token: --map {}=TARGET_NODE", request.target_cluster, source.node);
    refusals.add(RefusalCode::TokensDiffer, &target.node, reason, next);
}

/// Dynomite would serve what is half loaded, and give a supervised Redis no rest.
pub(super) fn check_proxy(target: &TargetFacts, request: &RestoreRequest, refusals: &mut Refusals, warnings: &mut Vec<String>) {
    let name = &target.node;
    let Some(proxy) = &target.proxy else { return };
    if proxy.has_stop && proxy.has_start {
        return;
    }
    if proxy.answers || proxy.has_stop || proxy.has_start {
        let next = format!("set stop_proxy and start_proxy in [clusters.{}.nodes.{name}]", request.target_cluster);
        let code = if proxy.has_stop { RefusalCode::CannotStart } else { RefusalCode::CannotStop };
        refusals.add(code, name, "how its Dynomite is stopped and started is not known", next);
    } else {
        warnings.push(format!("{name}: its Dynomite does not answer: keep it down, and start it when the restore has ended"));
    }
}

/// Racks that stay as they are hold other data afterwards under the same token.
pub(super) fn tell_other_racks<'a>(planned: impl Iterator<Item = &'a str>, targets: &[TargetFacts], warnings: &mut Vec<String>) {
    let planned: BTreeSet<&str> = planned.collect();
    let token = |target: &TargetFacts| target.proxy.as_ref().map(|proxy| proxy.place.token);
    for target in targets.iter().filter(|target| !planned.contains(target.node.as_str())) {
        let Some(proxy) = &target.proxy else { continue };
        let is_restored =
            targets.iter().any(|other| planned.contains(other.node.as_str()) && token(other) == Some(proxy.place.token));
        if is_restored {
            warnings.push(format!(
                "{}: it has token {} too, in rack {}, and keeps what it holds: the racks will differ",
                target.node, proxy.place.token, proxy.place.rack
            ));
        }
    }
}
