//! `tintype restore`, `rollback` and `settle`: plans shown, then carried out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::super::agent::{self as agents, Couriers};
use super::super::clone::CloneRecords;
use super::super::control_args::{self as args, RestoreArgs, RollbackArgs};
use super::super::failure::{Exit, Failure};
use super::super::output::size;
use super::super::wiring::Session;
use super::browse::open_node;
use super::clones;
use super::linking::{self, Hydration, LinkHost};
use super::restore::{self, Change, NodeChange, RestoreTarget};
use super::speeds::{self, StopWatch};
use crate::agent::restore::{Placed, RestoreStep};
use crate::agent::restore_orders::RestoreCourier;
use crate::cluster::restore::RestoreOutcome;
use crate::model::manifest::{ClusterManifest, NodeStatus};
use crate::model::names::{ClusterName, NodeName};
use crate::model::restore_pairs::why_missing;
use crate::model::restore_plan::{Method, RestoreRequest};
use crate::node::{MountHost, PlaceProgress, RecoveredTo, RestoreRecord, RunLimit, StateDirectory};
use crate::repo::{ListedSnapshot, RepoError, Repository, SnapshotSource};

impl From<args::Method> for Method {
    fn from(method: args::Method) -> Self {
        match method {
            args::Method::Copy => Self::Copy,
            args::Method::Link => Self::Link,
            args::Method::Clone => Self::Clone,
        }
    }
}

fn failure(error: anyhow::Error) -> Failure {
    match error.downcast::<RepoError>() {
        Ok(error) => error.into(),
        Err(error) => Failure::new("restore", format!("{error:#}"))
            .hint("nothing was replaced; mend what it names and run the command again"),
    }
}

/// Plans a restore; carries it out with `--yes`.
pub async fn restore(session: &Session, args: RestoreArgs) -> Result<Exit, Failure> {
    let repository = session.repository().await?;
    let (name, listed) = session.find(repository.as_ref(), &args.source).await?;
    if !name.path.is_root() {
        return Err(Failure::usage("a restore takes whole nodes").hint("copy single files from a mount"));
    }
    let mut wanted: Vec<NodeName> = args.node.iter().map(|node| NodeName::new(node.clone())).collect::<Result<_, _>>()?;
    wanted.extend(name.node.clone().filter(|node| !wanted.contains(node)));
    if let Some(directory) = &args.directory {
        return place(session, &args, repository, &listed, &wanted, directory.clone()).await;
    }
    let target_cluster = args.to.clone().map_or(Ok(name.cluster.clone()), ClusterName::new)?;
    let targets = targets(session, &target_cluster, None, hydration(&args))?;
    let by_agents: Vec<_> = targets.iter().filter(|target| target.agent.is_some()).map(|target| target.node.as_str()).collect();
    if (args.no_hydrate || args.hydrate_rate.is_some()) && !by_agents.is_empty() {
        return Err(Failure::usage(format!("--no-hydrate, --hydrate-rate: agents act for {}", by_agents.join(", ")))
            .hint("leave them out: an agent makes local files of links as fast as it can"));
    }
    let state = state(session)?;
    tell_recovered(session, &state).await?;
    let request = RestoreRequest {
        target_cluster: target_cluster.to_string(),
        nodes: wanted,
        map: parse_map(&args.map)?,
        method: args.method.into(),
        speeds: speeds::last(session),
        discard_current: args.discard_current,
        confirm: args.confirm.clone(),
    };
    see_to_what_was_left(session, &repository, &targets, &state).await?;
    let prepared =
        restore::prepare(repository, &listed, &targets, &request, &state, session.clock.clone()).await.map_err(failure)?;
    let plan = prepared.plan.clone();
    if args.dry_run || !args.yes || !plan.is_allowed() {
        let mut text = plan.to_string();
        if plan.is_allowed() {
            text.push_str("\nnext: say it again with --yes\n");
        }
        session.output.result(&text, &json!({"plan": plan, "allowed": plan.is_allowed()}));
        return match plan.refusals.first() {
            None if args.dry_run => Ok(Exit::Done),
            None => Ok(Exit::Nothing),
            Some(_) => {
                session.output.note("tintype: the restore is refused; nothing was touched\n  next: mend what the plan names");
                Ok(Exit::Failed)
            }
        };
    }
    session.output.note(&plan.to_string());
    let placed = prepared.placed();
    let bar = session.output.bar("placing");
    let steps_bar = bar.clone();
    let output = session.output;
    let watch = StopWatch::start();
    let on_step = |step: RestoreStep| {
        watch.note(step);
        steps_bar.set_prefix(format!("{step:?}").to_lowercase());
        if steps_bar.is_hidden() {
            output.note(&format!("{step:?}").to_lowercase());
        }
    };
    let is_interrupted = Arc::new(AtomicBool::new(false));
    let raise = is_interrupted.clone();
    tokio::spawn(async move {
        super::super::mount::stop_signal().await;
        raise.store(true, Ordering::Relaxed);
    });
    let is_cancelled = || is_interrupted.load(Ordering::Relaxed);
    let running = prepared.run(&on_step, &is_cancelled);
    tokio::pin!(running);
    let report = loop {
        tokio::select! {
            report = &mut running => break report.map_err(failure)?,
            () = tokio::time::sleep(Duration::from_millis(200)) => bar.set_position(placed().bytes),
        }
    };
    bar.finish_and_clear();
    watch.remember(session, &request, &plan, fetched(placed()));
    let mut text = String::new();
    for (node, restored) in &report.nodes {
        let keys = restored
            .keys
            .map_or(String::new(), |keys| format!(", {keys} keys{}", if restored.is_compared { " as in the dump" } else { "" }));
        text.push_str(&format!("{node}: {} files, {}{keys}\n", restored.files, size(restored.bytes)));
        for note in &restored.notes {
            text.push_str(&format!("  {note}\n"));
        }
    }
    for failure in &report.failures {
        text.push_str(&format!("{}: {:?}: {}\n", failure.node, failure.step, failure.reason));
    }
    let (line, exit) = match report.outcome {
        RestoreOutcome::Restored => (
            format!(
                "restored {}/{}\nnext: tintype settle {target_cluster} --yes lets the replaced data go; tintype rollback {target_cluster} --yes puts it back\n",
                listed.cluster, listed.date
            ),
            Exit::Done,
        ),
        RestoreOutcome::Undone => {
            let is_begun =
                // Whoever is away may have something too; what is said of it is only advice.
                restore::kept(target_cluster.as_str(), &targets, &state).await.is_ok_and(|kept| kept.iter().any(|kept| kept.is_begun));
            let kept = if is_begun {
                format!(": it goes on from what was placed, which tintype settle {target_cluster} --yes deletes")
            } else {
                String::new()
            };
            let text = format!(
                "nothing was restored: every node is as it was\nnext: mend what failed and run the command again{kept}\n"
            );
            (text, Exit::Failed)
        }
        RestoreOutcome::Undecided => (
            format!(
                "whether all nodes stay restored is not decided yet\nnext: when the object store answers again, tintype status {} says so, and each agent sees to its nodes; tintype rollback {target_cluster} sees to those of this host\n",
                plan.id
            ),
            Exit::Partly,
        ),
        RestoreOutcome::Stuck => {
            (format!("some nodes could not be brought back\nnext: tintype rollback {target_cluster} --yes\n"), Exit::Partly)
        }
    };
    text.push_str(&line);
    session.output.result(&text, &json!({"plan": plan, "report": report}));
    Ok(exit)
}

fn fetched(placed: Placed) -> u64 {
    placed.bytes.saturating_sub(placed.found_bytes)
}

/// `--directory`: one node's files, placed and nothing else.
async fn place(
    session: &Session,
    args: &RestoreArgs,
    repository: Arc<Repository>,
    listed: &ListedSnapshot,
    wanted: &[NodeName],
    directory: PathBuf,
) -> Result<Exit, Failure> {
    let manifest = repository.manifest(listed).await?;
    let nodes: Vec<NodeName> =
        if wanted.is_empty() { manifest.nodes.iter().map(|node| node.name.clone()).collect() } else { wanted.to_vec() };
    for node in &nodes {
        if manifest.node(node).is_some_and(|record| record.status != NodeStatus::Completed) {
            let (reason, next) = why_missing(&manifest, node);
            return Err(Failure::new("not_found", format!("{node}: {reason}")).hint(next));
        }
        open_node(&repository, &manifest, node).await?;
    }
    // One node's files go right into the directory, those of several each into a directory of its own, as in the tree.
    let place_of = |node: &NodeName| if nodes.len() == 1 { directory.clone() } else { directory.join(node.as_str()) };
    if args.dry_run {
        let text: String = nodes.iter().map(|node| format!("would place {node} in {}\n", place_of(node).display())).collect();
        session.output.result(&text, &json!({"nodes": nodes, "directory": directory}));
        return Ok(Exit::Done);
    }
    if nodes.len() > 1 {
        std::fs::create_dir_all(&directory)
            .map_err(|error| Failure::new("restore", format!("{}: {error}", directory.display())))?;
    }
    let (mut text, mut values) = (String::new(), Vec::new());
    let state = state(session)?;
    if args.method == args::Method::Link {
        linking::sweep(session, &state).await?;
    }
    for node in &nodes {
        // Nobody takes what is served for its links away meanwhile.
        let _lock =
            state.lock_soon(&clones::place(&place_of(node))?).await.map_err(|error| Failure::new("busy", error.to_string()))?;
        let progress = Arc::new(PlaceProgress::default());
        let bar = session.output.bar(node.as_str());
        let served = match args.method {
            args::Method::Copy => None,
            args::Method::Clone => {
                let hint = format!("tintype clone {}/{}/{node} {}", listed.cluster, listed.date, directory.display());
                return Err(Failure::usage("--method clone makes no directory of files").hint(hint));
            }
            args::Method::Link => {
                Some(serve_links(session, args, &repository, &manifest, node, &clones::place(&place_of(node))?).await?)
            }
        };
        let placing = restore::place_files(repository.clone(), listed, node, place_of(node), served.as_deref(), progress.clone());
        tokio::pin!(placing);
        let receipt = loop {
            tokio::select! {
                receipt = &mut placing => break receipt.map_err(failure),
                () = tokio::time::sleep(Duration::from_millis(200)) => bar.set_position(progress.bytes.load(Ordering::Relaxed)),
            }
        };
        bar.finish_and_clear();
        if let Some(served) = &served {
            let records = CloneRecords::open(session)?;
            match &receipt {
                Ok(_) => linking::placed(&records, served)?,
                Err(_) => linking::release(session, &records, &records.at(served)?).await?,
            }
        }
        let receipt = receipt?;
        text.push_str(&format!("{node}: {} files, {} in {}\n", receipt.files, size(receipt.bytes), place_of(node).display()));
        if receipt.linked_files > 0 {
            let (links, bytes, place) = (receipt.linked_files, size(receipt.linked_bytes), place_of(node));
            text.push_str(&format!(
                "  {links} links to {bytes}, fetched as they are read\nnext: tintype guard {} -- START COMMAND, which refuses while they lead nowhere\n",
                place.display()
            ));
        }
        values.push(json!({"node": node, "files": receipt.files, "bytes": receipt.bytes, "linked_files": receipt.linked_files, "linked_bytes": receipt.linked_bytes, "directory": place_of(node), "outward_links": receipt.outward_links}));
    }
    session.output.result(&text, &json!({"nodes": values}));
    Ok(Exit::Done)
}

fn hydration(args: &RestoreArgs) -> Hydration {
    Hydration { is_wanted: !args.no_hydrate, bytes_per_second: args.hydrate_rate.map(|rate| rate.0) }
}

/// What links of a directory that only gets files would lead to. A Redis server is not started by us here, so nothing could be
/// said of how it starts.
async fn serve_links(
    session: &Session,
    args: &RestoreArgs,
    repository: &Repository,
    manifest: &Arc<ClusterManifest>,
    node: &NodeName,
    directory: &Path,
) -> Result<PathBuf, Failure> {
    let store = manifest.node(node).map_or("", |record| record.description.store.as_str());
    if store != "files" {
        return Err(Failure::usage(format!("{node} is of {store}: links alone could make it start empty"))
            .hint("restore it without --directory, by --method copy, or make a clone"));
    }
    let tree = repository.open_node(manifest, node).await?;
    linking::serve(session, directory, None, &tree, hydration(args)).await
}

fn parse_map(map: &[String]) -> Result<Vec<(NodeName, NodeName)>, Failure> {
    map.iter()
        .map(|pair| {
            let (source, target) =
                pair.split_once('=').ok_or_else(|| Failure::usage(format!("--map {pair:?} is not SOURCE=TARGET")))?;
            Ok((NodeName::new(source)?, NodeName::new(target)?))
        })
        .collect()
}

fn state(session: &Session) -> Result<StateDirectory, Failure> {
    StateDirectory::open(&session.state_directory()).map_err(|error| {
        Failure::new("state", error.to_string())
            .hint("set state_directory in the configuration to a directory that you can write")
    })
}

/// Finishes or undoes what an interrupted restore left, and says so.
async fn tell_recovered(session: &Session, state: &StateDirectory) -> Result<(), Failure> {
    linking::sweep(session, state).await?;
    for recovered in restore::recover_interrupted(state).await.map_err(failure)? {
        let RestoreRecord { cluster, node, .. } = &recovered.record;
        session.output.note(&format!("an interrupted restore of {cluster}/{node} was found: {}", in_words(recovered.outcome)));
    }
    Ok(())
}

/// What a restore over several hosts has left of nodes of this host in doubt is brought to the end that was decided for all.
async fn see_to_what_was_left(
    session: &Session,
    repository: &Arc<Repository>,
    targets: &[RestoreTarget],
    state: &StateDirectory,
) -> Result<(), Failure> {
    for record in state.records().map_err(|error| Failure::new("state", error.to_string()))? {
        let of_record = |target: &&RestoreTarget| target.agent.is_none() && target.node.as_str() == record.node;
        let Some(target) = targets.iter().find(of_record).filter(|_| record.is_over_hosts) else { continue };
        let node =
            restore::local(&record.cluster, target, state, RunLimit::default(), None, session.clock.clone()).map_err(failure)?;
        let became = restore::see_to(repository.clone(), session.clock.clone(), &record, &node).await.map_err(failure)?;
        if let Some(became) = became {
            session.output.note(&format!("an interrupted restore of {}/{}: {became}", record.cluster, record.node));
        }
    }
    Ok(())
}

/// What is in place after a recovery, and what to do.
pub fn in_words(outcome: RecoveredTo) -> &'static str {
    match outcome {
        RecoveredTo::Old => "the data from before it is in place; start its store where it does not run",
        RecoveredTo::Begun => {
            "the data from before it is in place; start its store where it does not run; the same restore goes on from what was placed, settle deletes it"
        }
        RecoveredTo::RolledBack => "its rollback was finished; start its store where it does not run",
        RecoveredTo::Unchecked => {
            "the restored data is in place, and was not checked; a rollback puts back what was there before"
        }
        RecoveredTo::Settled => "what it had set aside is deleted",
    }
}

/// The configured nodes of a cluster, or one of them.
fn targets(
    session: &Session,
    cluster: &ClusterName,
    only: Option<&NodeName>,
    hydration: Hydration,
) -> Result<Vec<RestoreTarget>, Failure> {
    let host: Arc<dyn MountHost> = LinkHost::new(session, hydration);
    let nodes = session.configured_nodes(cluster)?;
    if let Some(unknown) = only.filter(|only| !nodes.iter().any(|node| node.name == **only)) {
        let known: Vec<_> = nodes.iter().map(|node| node.name.to_string()).collect();
        return Err(Failure::new("not_found", format!("{cluster} has no node {unknown}"))
            .hint(format!("its nodes: {}", known.join(", "))));
    }
    let config = session.config.clusters.get(cluster);
    let mut couriers = Couriers::new(session);
    let mut targets = Vec::new();
    for node in nodes.into_iter().filter(|node| only.is_none_or(|only| node.name == *only)) {
        let agent = match config.and_then(|config| agents::address(config, &node)) {
            Some(url) => Some((url.clone(), couriers.to(&url)? as Arc<dyn RestoreCourier>)),
            None => None,
        };
        targets.push(RestoreTarget { agent, ..RestoreTarget::here(node, host.clone()) });
    }
    Ok(targets)
}

/// Cluster and node of `CLUSTER[/NODE]`.
fn parse_target(text: &str) -> Result<(ClusterName, Option<NodeName>), Failure> {
    match text.trim_end_matches('/').split_once('/') {
        None => Ok((ClusterName::new(text.trim_end_matches('/'))?, None)),
        Some((cluster, node)) => Ok((ClusterName::new(cluster)?, Some(NodeName::new(node)?))),
    }
}

/// Puts the directories from before the newest restore back.
pub async fn rollback(session: &Session, args: RollbackArgs) -> Result<Exit, Failure> {
    change(session, &args, "put back what was there before the restore of", async |cluster, targets, state| {
        restore::roll_back(cluster, targets, state).await
    })
    .await
}

/// Lets the directories from before restores go.
pub async fn settle(session: &Session, args: RollbackArgs) -> Result<Exit, Failure> {
    change(session, &args, "delete what was there before the restore of", async |cluster, targets, state| {
        restore::settle(cluster, targets, state).await
    })
    .await
}

async fn change(
    session: &Session,
    args: &RollbackArgs,
    what: &str,
    act: impl AsyncFnOnce(&str, &[RestoreTarget], &StateDirectory) -> anyhow::Result<Vec<NodeChange>>,
) -> Result<Exit, Failure> {
    let (cluster, node) = parse_target(&args.target)?;
    let targets = targets(session, &cluster, node.as_ref(), Hydration::default())?;
    let state = state(session)?;
    tell_recovered(session, &state).await?;
    let kept = restore::kept(cluster.as_str(), &targets, &state).await.map_err(failure)?;
    if kept.is_empty() {
        session.output.result(&format!("nothing is kept for {}\n", args.target), &json!({"nodes": []}));
        return Ok(Exit::Nothing);
    }
    if !args.yes {
        let text: String = kept
            .iter()
            .map(|record| format!("would {what} {} on {} ({})\n", record.source, record.node, record.directory))
            .collect();
        session.output.result(&format!("{text}next: say it again with --yes\n"), &json!({"kept": kept}));
        return Ok(Exit::Nothing);
    }
    let changes = act(cluster.as_str(), &targets, &state).await.map_err(failure)?;
    let (mut text, mut failed, mut values) = (String::new(), 0, Vec::new());
    for change in &changes {
        let line = match &change.result {
            Ok(None) => "nothing to do".to_owned(),
            Ok(Some(Change::RolledBack(record))) => format!("the data from before {} is in place again", record.source),
            Ok(Some(Change::Settled(count))) => format!("{count} kept directories were deleted"),
            Err(error) => {
                failed += 1;
                error.to_string()
            }
        };
        text.push_str(&format!("{}: {line}\n", change.node));
        values.push(json!({"node": change.node, "done": change.result.is_ok(), "message": line}));
    }
    session.output.result(&text, &json!({"nodes": values}));
    match failed {
        0 => Ok(Exit::Done),
        _ if failed == changes.len() => Err(Failure::new("restore", format!("none of {failed} nodes was changed"))
            .hint("mend what is said above and run the command again")),
        _ => Ok(Exit::Partly),
    }
}
