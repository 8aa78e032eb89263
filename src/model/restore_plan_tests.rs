//! Every refusal of a restore plan, from facts alone.

use super::*;
use crate::model::manifest::{
    CaptureProof, Consistency, CutKind, CutRecord, NodeDescription, NodeRecord, NodeStatus, NodeTotals, RingPlace, SnapshotStatus,
};
use crate::model::restore_facts::RestoreSpeeds;

const CUT: i64 = 1_700_000_000_000_000;

fn name(text: &str) -> NodeName {
    NodeName::new(text).expect("legal")
}

/// Name, how it fared, slots.
type Sample<'a> = (&'a str, NodeStatus, Vec<(u16, u16)>);

fn snapshot(nodes: &[Sample<'_>]) -> ClusterManifest {
    let record = |(node, status, slots): &Sample<'_>| NodeRecord {
        name: name(node),
        status: *status,
        reason: None,
        manifest: None,
        description: NodeDescription {
            store: "redis".to_owned(),
            version: "7.0.15".to_owned(),
            slots: slots.clone(),
            ..NodeDescription::default()
        },
        proof: CaptureProof::none(),
        keys: None,
        totals: NodeTotals { files: 1, total_bytes: 1000, ..NodeTotals::default() },
    };
    ClusterManifest {
        format: 1,
        uuid: Uuid::nil(),
        cluster: ClusterName::new("prod").expect("legal"),
        date: SnapshotDate::from_seconds(CUT / 1_000_000).expect("in range"),
        cut_at: Timestamp(CUT),
        published_at: Timestamp(CUT),
        predecessor: None,
        status: SnapshotStatus::Completed,
        store: "redis".to_owned(),
        cut: CutRecord {
            kind: CutKind::Frozen,
            consistent: Consistency::Proved,
            scope: "cluster".to_owned(),
            pause_us: 0,
            capture_us: 0,
            skew_us: 0,
        },
        nodes: nodes.iter().map(record).collect(),
        tags: Default::default(),
        writer: String::new(),
    }
}

fn target(node: &str) -> TargetFacts {
    TargetFacts {
        node: node.to_owned(),
        directory: Some(DirectoryFacts {
            resolved: format!("/data/{node}").into(),
            exists: true,
            free_bytes: 1 << 30,
            ..DirectoryFacts::default()
        }),
        server: Some(ServerFacts {
            store: "redis".to_owned(),
            version: "7.0.15".to_owned(),
            role: "master".to_owned(),
            pid: 7,
            directory: Some(format!("/data/{node}").into()),
            ..ServerFacts::default()
        }),
        replica_of: None,
        agent: None,
        agent_fault: None,
        server_fault: None,
        has_stop: true,
        has_start: true,
        guard: Guard::None,
        proxy: None,
    }
}

fn plan_of(snapshot: &ClusterManifest, targets: &[TargetFacts], request: &RestoreRequest) -> RestorePlan {
    let mut sources = SourceFacts::of_snapshot(snapshot);
    sources.iter_mut().for_each(|source| source.names = vec!["dump.rdb".to_owned()]);
    RestorePlan::new(Uuid::nil(), snapshot, &sources, targets, request)
}

fn request() -> RestoreRequest {
    RestoreRequest { target_cluster: "prod".to_owned(), ..RestoreRequest::default() }
}

fn codes(plan: &RestorePlan) -> Vec<RefusalCode> {
    plan.refusals.iter().map(|refusal| refusal.code).collect()
}

/// The refusals of one good node after `change`.
fn refused(change: impl FnOnce(&mut ServerFacts, &mut DirectoryFacts)) -> Vec<RefusalCode> {
    let mut target = target("a");
    change(target.server.as_mut().expect("is set"), target.directory.as_mut().expect("is set"));
    codes(&plan_of(&snapshot(&[("a", NodeStatus::Completed, vec![])]), &[target], &request()))
}

#[test]
fn a_good_target_is_allowed_and_shown() {
    let plan = plan_of(&snapshot(&[("a", NodeStatus::Completed, vec![])]), &[target("a")], &request());
    assert!(plan.is_allowed(), "{plan}");
    assert!(plan.to_string().contains("a -> a in /data/a"), "{plan}");
    let json = serde_json::to_string(&plan).expect("serializes");
    assert_eq!(serde_json::from_str::<RestorePlan>(&json).expect("reads back"), plan);
}

#[test]
fn every_unsafe_target_is_refused_with_its_reason() {
    use RefusalCode::*;
    assert_eq!(refused(|server, _| server.role = "slave".to_owned()), [Replica]);
    assert_eq!(refused(|server, _| server.is_loading = true), [Loading]);
    assert_eq!(refused(|server, _| server.version = "6.2.14".to_owned()), [DumpTooNew]);
    assert_eq!(refused(|server, _| server.directory = Some("/other".into())), [OtherDirectory]);
    assert_eq!(refused(|server, _| (server.in_cluster, server.slots) = (true, vec![(0, 5)])), [SlotsDiffer]);
    assert_eq!(refused(|server, _| (server.in_cluster, server.replicas) = (true, 1)), [HasReplicas]);
    assert_eq!(refused(|server, _| (server.is_watched, server.replicas) = (Some(true), 1)), [HasReplicas]);
    assert_eq!(refused(|server, _| server.replicas = 1), []);
    assert_eq!(refused(|server, _| (server.keys, server.changes) = (1, 1)), [NewerData]);
    assert_eq!(refused(|server, _| (server.keys, server.saved_at) = (1, CUT / 1_000_000 + 1)), [NewerData]);
    assert_eq!(
        refused(|_, directory| directory.fault = Some("it belongs to user 1, and we are user 2".to_owned())),
        [ForeignDirectory]
    );
    assert_eq!(refused(|_, directory| directory.free_bytes = 1000), [TooLittleSpace]);
    assert_eq!(refused(|server, _| server.version = "7.4.1".to_owned()), []);
}

#[test]
fn nodes_are_found_by_name_by_slots_or_as_told() {
    use NodeStatus::Completed;
    let stored = snapshot(&[("a", Completed, vec![(0, 99)]), ("b", Completed, vec![(100, 16383)])]);
    let shard = |node: &str, slots| {
        let mut target = target(node);
        let server = target.server.as_mut().expect("is set");
        (server.in_cluster, server.slots) = (true, vec![slots]);
        target
    };
    let by_slots = plan_of(&stored, &[shard("y", (100, 16383)), shard("x", (0, 99))], &request());
    assert!(by_slots.is_allowed(), "{by_slots}");
    assert_eq!(
        by_slots.nodes.iter().map(|node| (node.source.as_str(), node.target.as_str())).collect::<Vec<_>>(),
        [("a", "x"), ("b", "y")]
    );
    let lost = plan_of(&stored, &[shard("y", (100, 16383)), shard("x", (0, 98))], &request());
    assert_eq!(codes(&lost), [RefusalCode::UnknownMapping]);
    let crossed = RestoreRequest { map: vec![(name("a"), name("y")), (name("b"), name("x"))], ..request() };
    let crossed = plan_of(&stored, &[shard("y", (100, 16383)), shard("x", (0, 99))], &crossed);
    assert_eq!(codes(&crossed), [RefusalCode::SlotsDiffer, RefusalCode::SlotsDiffer]);
}

#[test]
fn nodes_that_are_not_stored_are_refused() {
    let stored = snapshot(&[("a", NodeStatus::Failed, vec![])]);
    assert_eq!(codes(&plan_of(&stored, &[target("a")], &request())), [RefusalCode::MissingInSnapshot]);
    let other = RestoreRequest { nodes: vec![name("z")], ..request() };
    assert_eq!(codes(&plan_of(&stored, &[target("a")], &other)), [RefusalCode::MissingInSnapshot]);
}

#[test]
fn targets_on_one_file_system_need_their_space_together() {
    let mut stored = snapshot(&[("a", NodeStatus::Completed, vec![]), ("b", NodeStatus::Completed, vec![])]);
    stored.nodes.iter_mut().for_each(|node| node.totals.total_bytes = 700 << 20);
    assert_eq!(codes(&plan_of(&stored, &[target("a"), target("b")], &request())), [RefusalCode::TooLittleSpace]);
}

#[test]
fn an_append_only_target_gets_files_that_it_reads() {
    let mut target = target("a");
    target.server.as_mut().expect("is set").settings.insert("appendonly".to_owned(), "yes".to_owned());
    let plan = plan_of(&snapshot(&[("a", NodeStatus::Completed, vec![])]), &[target], &request());
    let made = plan.nodes[0].fit.append_only.as_ref().expect("is made");
    assert_eq!(
        (made.dump_file.as_str(), made.directory.as_deref(), made.file.as_str()),
        ("dump.rdb", Some("appendonlydir"), "appendonly.aof")
    );
}

#[test]
fn a_start_command_tells_what_guards_it() {
    let guard =
        |words: &[&str]| Guard::of_start(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>(), Some("/data".as_ref()));
    assert_eq!(guard(&[]), Guard::None);
    assert_eq!(guard(&["/etc/init.d/redis", "start"]), Guard::None);
    assert_eq!(guard(&["systemctl", "start", "redis"]), Guard::Unit("redis.service".to_owned()));
    assert_eq!(
        guard(&["sudo", "/bin/systemctl", "--quiet", "restart", "--no-block", "redis@1.service"]),
        Guard::Unit("redis@1.service".to_owned())
    );
    assert_eq!(guard(&["systemctl", "start"]), Guard::None);
    assert_eq!(guard(&["systemctl", "start", "redis-6.2"]), Guard::Unit("redis-6.2.service".to_owned()));
    assert_eq!(guard(&["systemctl", "--user", "start", "redis"]), Guard::None);
    assert_eq!(guard(&["systemctl", "-H", "other", "start", "redis"]), Guard::None);
    assert_eq!(guard(&["tintype", "guard", "/other", "--", "redis-server"]), Guard::None);
    assert_eq!(guard(&["/usr/local/bin/tintype", "guard", "/data", "--", "redis-server"]), Guard::Command);
}

#[test]
fn links_need_a_guard_and_a_store_that_does_not_start_empty() {
    let snapshot = snapshot(&[("a", NodeStatus::Completed, vec![])]);
    let request = RestoreRequest { method: Method::Link, ..request() };
    let codes_of = |has_append_only: bool, version: &str, guard: Guard| {
        let mut target = target("a");
        target.guard = guard;
        let server = target.server.as_mut().expect("is set");
        server.version = version.to_owned();
        server.settings.insert("appendonly".to_owned(), if has_append_only { "yes" } else { "no" }.to_owned());
        codes(&plan_of(&snapshot, &[target], &request))
    };
    assert_eq!(codes_of(true, "7.0.15", Guard::Command), []);
    assert_eq!(codes_of(true, "7.0.15", Guard::Unit("redis.service".to_owned())), []);
    assert_eq!(codes_of(true, "7.0.15", Guard::None), [RefusalCode::NoGuard]);
    // It reads its dump alone, or one file that it also writes.
    assert_eq!(codes_of(false, "7.0.15", Guard::Command), [RefusalCode::StartsEmpty]);
    assert_eq!(codes_of(true, "6.2.14", Guard::Command), [RefusalCode::DumpTooNew, RefusalCode::StartsEmpty]);
}

#[test]
fn how_long_it_takes_follows_from_the_last_restore() {
    let mut snapshot = snapshot(&[("a", NodeStatus::Completed, vec![])]);
    snapshot.nodes[0].totals.total_bytes = 100 << 20;
    let with = |placing| {
        let speeds = RestoreSpeeds { placing, away: placing.map(|speed| 2 * speed) };
        plan_of(&snapshot, &[target("a")], &RestoreRequest { speeds, ..request() })
    };
    assert_eq!((with(None).placing_seconds, with(None).away_seconds), (None, None));
    assert!(with(None).to_string().contains("not known before the first restore"));
    assert_eq!((with(Some(1 << 20)).placing_seconds, with(Some(1 << 20)).away_seconds), (Some(100), Some(50)));
    assert!(with(Some(1 << 20)).to_string().contains("away for about 50 s"));
    assert!(with(Some(1 << 20)).to_string().contains("placing takes about 100 s"));
    assert!(with(Some(10_000)).to_string().contains("2 h 54 min"));
}

/// A target at a place of a ring, whose Dynomite can be stopped and started.
fn of_ring(node: &str, rack: &str, token: u64) -> TargetFacts {
    let place = RingPlace { token, datacenter: "dc".to_owned(), rack: rack.to_owned() };
    TargetFacts { proxy: Some(ProxyFacts { place, has_stop: true, has_start: true, answers: true }), ..target(node) }
}

/// A snapshot with these tokens, each under its own name.
fn ring(tokens: &[u64]) -> ClusterManifest {
    let names: Vec<_> = tokens.iter().map(|token| format!("token-{token}")).collect();
    let samples: Vec<Sample<'_>> = names.iter().map(|name| (name.as_str(), NodeStatus::Completed, vec![])).collect();
    let mut ring = snapshot(&samples);
    for (node, token) in ring.nodes.iter_mut().zip(tokens) {
        node.description.ring = Some(RingPlace { token: *token, datacenter: "dc".to_owned(), rack: "a".to_owned() });
    }
    ring
}

#[test]
fn every_rack_of_another_ring_is_restored_by_token() {
    let targets = [of_ring("x", "a", 7), of_ring("y", "a", 0), of_ring("z", "b", 0), of_ring("token-0", "b", 7)];
    let plan = plan_of(&ring(&[0, 7]), &targets, &request());
    assert!(plan.is_allowed(), "{plan}");
    let pairs: Vec<_> = plan.nodes.iter().map(|node| (node.target.as_str(), node.source.as_str(), node.has_proxy)).collect();
    assert_eq!(
        pairs,
        [("token-0", "token-7", true), ("x", "token-7", true), ("y", "token-0", true), ("z", "token-0", true)],
        "the name says nothing"
    );
    assert!(plan.to_string().contains("proxy    its Dynomite is stopped before it"), "{plan}");

    let map = |source: &str, target: &str| (name(source), name(target));
    let one = RestoreRequest { nodes: vec![name("token-0")], map: vec![map("token-0", "z")], ..request() };
    let plan = plan_of(&ring(&[0, 7]), &targets, &one);
    assert_eq!(plan.nodes.iter().map(|node| node.target.as_str()).collect::<Vec<_>>(), ["z"]);
    assert!(plan.is_allowed() && plan.warnings.iter().any(|text| text.starts_with("y: it has token 0 too, in rack a")), "{plan}");
    let both = RestoreRequest { map: vec![map("token-0", "z"), map("token-0", "y")], ..one };
    let plan = plan_of(&ring(&[0, 7]), &targets, &both);
    assert!(plan.nodes.len() == 2 && plan.warnings.is_empty() && plan.is_allowed(), "{plan}");
}

#[test]
fn tokens_that_do_not_match_are_refused() {
    let whole = |stored: &[u64], targets: &[TargetFacts]| codes(&plan_of(&ring(stored), targets, &request()));
    assert_eq!(whole(&[0, 7], &[of_ring("x", "a", 0)]), [RefusalCode::UnknownMapping], "a token would be left out");
    let more = whole(&[0], &[of_ring("x", "a", 0), of_ring("y", "a", 7)]);
    assert_eq!(more, [RefusalCode::TokensDiffer], "the ring looks for some of the keys elsewhere");
    let mapped = RestoreRequest { map: vec![(name("token-0"), name("y")), (name("token-7"), name("x"))], ..request() };
    let plan = plan_of(&ring(&[0, 7]), &[of_ring("x", "a", 0), of_ring("y", "a", 7)], &mapped);
    assert_eq!(codes(&plan), [RefusalCode::TokensDiffer, RefusalCode::TokensDiffer]);
    let plain = plan_of(&snapshot(&[("x", NodeStatus::Completed, vec![])]), &[of_ring("x", "a", 0)], &request());
    assert_eq!(codes(&plain), [RefusalCode::TokensDiffer], "{plain}");
    // Out of a ring into a server of its own: it gets the keys of the token.
    assert!(plan_of(&ring(&[0]), &[target("alone")], &request()).is_allowed());
}

#[test]
fn a_dynomite_that_cannot_be_stopped_and_started_is_refused_unless_it_is_down() {
    let plan = |change: fn(&mut ProxyFacts)| {
        let mut target = of_ring("x", "a", 0);
        change(target.proxy.as_mut().expect("is set"));
        plan_of(&ring(&[0]), &[target], &request())
    };
    assert_eq!(codes(&plan(|proxy| proxy.has_start = false)), [RefusalCode::CannotStart]);
    assert_eq!(codes(&plan(|proxy| (proxy.has_stop, proxy.has_start) = (false, false))), [RefusalCode::CannotStop]);
    let down = plan(|proxy| (proxy.has_stop, proxy.has_start, proxy.answers) = (false, false, false));
    assert!(down.is_allowed() && down.warnings.iter().any(|text| text.contains("keep it down")), "{down}");
}
