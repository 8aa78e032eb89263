//! `restore_on_start`: a node of this host whose data directory is empty gets its data back before its store is started, so
//! that a host that was replaced comes back by itself.
//!
//! How it works: `tintyped` does it before it says that it is ready; whoever starts the store waits for that. The planning
//! and the placing are those of every restore, with one difference: nothing is stopped or started.
//!
//! **Invariants.** A directory that holds anything is not touched, nor is one whose store runs. The data is in place whole, or
//! not at all, also after a crash in the middle: the next start goes on. Where it cannot be restored the daemon ends badly, so
//! that no store is started on an empty directory as if that were all there is; also where nobody can say yet whether the node is
//! of this host. A cluster without any snapshot is a first start.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::Instant;

use super::agent as agents;
use super::config::ClusterConfig;
use super::control::restore::{self, RestoreTarget};
use super::failure::Failure;
use super::mount::stop_signal;
use super::notify::Supervisor;
use super::output::size;
use super::wiring::{ClusterNode, Session};
use crate::cluster::restore::RestoreOutcome;
use crate::driver::NodeSite;
use crate::driver::control::StoreControl;
use crate::driver::redis::RedisControl;
use crate::model::manifest::{ClusterManifest, NodeStatus};
use crate::model::names::{ClusterName, NodeName};
use crate::model::restore_plan::{MadeAppendOnly, Method, NodePlan, RestoreRequest, StoreLayout};
use crate::model::snapshot_name::SnapshotName;
use crate::node::{StateDirectory, stays};
use crate::repo::{ListedSnapshot, Repository, SnapshotSource};

/// Which snapshot, where nothing is said.
const LATEST: &str = "latest";
/// A supervisor is told as often that it goes on, and to wait for longer than that.
const EXTEND_EVERY: Duration = Duration::from_secs(10);
const EXTEND_BY: Duration = Duration::from_secs(60);
/// At boot the name server may come up after us: a node's name is looked up for so long, and this often.
const LOOKUP_LIMIT: Duration = Duration::from_secs(20);
const LOOKUP_EVERY: Duration = Duration::from_millis(500);
/// What a store leaves that was started once on nothing is smaller; each name counts as so much.
const NEXT_TO_NOTHING: u64 = 16 << 10;
const PER_NAME: u64 = 1 << 10;
/// Whether there are snapshots of a node that is not restored is worth so much time.
const GLANCE: Duration = Duration::from_secs(10);

/// A node that is to be restored, should its directory be empty.
#[derive(Debug)]
struct Wanted {
    cluster: ClusterName,
    date: String,
    /// Its name in snapshots.
    stored: NodeName,
    directory: PathBuf,
    target: RestoreTarget,
    /// Why it could not be found out whether it is of this host.
    unplaced: Option<String>,
}

impl Wanted {
    fn failed(&self, reason: impl Display) -> Failure {
        let Self { cluster, target, .. } = self;
        Failure::new("restore_on_start", format!("{cluster}/{}: {reason}", target.node)).hint(format!(
            "nothing was replaced, and its store must not be started; mend that, or say restore_on_start = false under [clusters.{cluster}.nodes.{}] to start it empty",
            target.node
        ))
    }

    fn is_unplaced(&self, reason: &str) -> Failure {
        let Self { cluster, directory, target, .. } = self;
        let message = format!(
            "{cluster}/{}: where it is could not be found out, and {} holds nothing: {reason}",
            target.node,
            directory.display()
        );
        Failure::new("restore_on_start", message).hint(format!(
            "its store must not be started; mend that, or say restore_on_start = true or false under [clusters.{cluster}.nodes.{}]",
            target.node
        ))
    }
}

/// Whether the configuration asks for it at all.
pub fn is_configured(session: &Session) -> bool {
    let asks =
        |config: &ClusterConfig| config.restore_on_start || config.nodes.values().any(|node| node.restore_on_start == Some(true));
    session.config.clusters.values().any(asks)
}

/// Restores what is empty. When it returns well, no configured store of this host would start without its data.
/// Told to stop, it ends badly: nobody is to start a store because of it.
pub async fn run(session: &Session, supervisor: &Supervisor) -> Result<(), Failure> {
    let (raise, stop) = watch::channel(false);
    let signal = stop_signal();
    let watching = tokio::spawn(async move {
        signal.await;
        raise.send_replace(true);
    });
    let done = bring_all_back(session, supervisor, &stop).await;
    watching.abort();
    done.and_then(|()| if *stop.borrow() { Err(interrupted()) } else { Ok(()) })
}

fn interrupted() -> Failure {
    Failure::new("interrupted", "restore_on_start: it was told to stop")
        .hint("no store of this host must be started; start it again")
}

/// What may be given up at any instant, until it is over or we are told to stop.
async fn unless_stopped<T>(stop: &watch::Receiver<bool>, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut stop = stop.clone();
    tokio::select! {
        done = work => done,
        _ = stop.wait_for(|raised| *raised) => Err(interrupted()),
    }
}

async fn bring_all_back(session: &Session, supervisor: &Supervisor, stop: &watch::Receiver<bool>) -> Result<(), Failure> {
    let wanted = unless_stopped(stop, wanted(session, supervisor)).await?;
    if wanted.is_empty() {
        return Ok(());
    }
    let state = StateDirectory::open(&session.state_directory()).map_err(|error| {
        Failure::new("state", error.to_string())
            .hint("set state_directory in the configuration to a directory that you can write")
    })?;
    // One that was killed in the middle of the exchange has left it half-way: that comes first.
    let recovered = restore::recover_interrupted(&state).await;
    for recovered in recovered.map_err(|error| Failure::new("restore_on_start", format!("{error:#}")))? {
        let record = recovered.record;
        tracing::warn!(cluster = record.cluster, node = record.node, outcome = ?recovered.outcome, "an interrupted restore was found");
    }
    let mut repository: Option<Arc<Repository>> = None;
    for node in &wanted {
        let Some(name) = found_in(node)? else {
            if let Some(reason) = &node.unplaced {
                return Err(node.is_unplaced(reason));
            }
            bring_back(session, node, &mut repository, &state, supervisor, stop).await?;
            continue;
        };
        if holds_next_to_nothing(&node.directory) {
            let looked = tokio::time::timeout(GLANCE, tell_of_snapshots(session, node, &name, &mut repository));
            // It is a help, and nothing depends on it.
            unless_stopped(stop, async { Ok(looked.await) }).await?.unwrap_or_default();
        }
    }
    Ok(())
}

/// The nodes that are asked for and are of this host, or may be.
async fn wanted(session: &Session, supervisor: &Supervisor) -> Result<Vec<Wanted>, Failure> {
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut places: BTreeMap<PathBuf, String> = BTreeMap::new();
    let until = Instant::now() + LOOKUP_LIMIT;
    for (cluster, config) in &session.config.clusters {
        let asks = |node: &ClusterNode| node.config.restore_on_start.unwrap_or(config.restore_on_start);
        if !config.restore_on_start && !config.nodes.values().any(|node| node.restore_on_start == Some(true)) {
            continue;
        }
        // A replica gets everything from its master.
        for node in session.configured_nodes(cluster)?.into_iter().filter(|node| node.config.replica_of.is_none() && asks(node)) {
            let said = node.config.restore_on_start.is_some();
            let Some(directory) = node.directory.clone() else {
                if said {
                    let message = format!("[clusters.{cluster}.nodes.{}] restore_on_start wants a data_directory", node.name);
                    return Err(Failure::usage(message).hint("name the directory, if it is on this host"));
                }
                continue;
            };
            // One configuration may lie on all hosts.
            // What is not restored either way need not be waited for.
            let until = if matches!(first_name(&directory), Ok(Some(_))) { Instant::now() } else { until };
            let is_here = if said { Ok(true) } else { is_here(config, &node, supervisor, until).await };
            if is_here == Ok(false) {
                tracing::info!(%cluster, node = %node.name, "is no node of this host, and is not restored here");
                continue;
            }
            let unplaced = is_here.err();
            if node.redis.is_none() && config.store.as_deref() != Some("files") {
                let message = format!("[clusters.{cluster}.nodes.{}] restore_on_start wants an address", node.name);
                return Err(Failure::usage(message).hint("nothing is restored under a store that runs, so it has to be asked"));
            }
            let shown = format!("{cluster}/{}", node.name);
            if let Some(reason) = &unplaced {
                let config = session.config_path.as_ref().map(|path| path.display().to_string());
                tracing::warn!(node = shown, reason, config, "where a node is could not be found out");
            } else if let Some(other) = places.insert(directory.clone(), shown.clone()) {
                let message = format!("{other} and {shown} have one data_directory, {}", directory.display());
                return Err(Failure::usage(message).hint("say restore_on_start = true under the node of this host alone"));
            }
            let date = node.config.restore_date.clone().or_else(|| config.restore_date.clone());
            wanted.push(Wanted {
                cluster: cluster.clone(),
                date: date.unwrap_or_else(|| LATEST.to_owned()),
                stored: node.stored_name()?,
                directory,
                target: RestoreTarget {
                    node: node.name,
                    // Whoever starts the store waits for us: to start it from here would wait for ever.
                    site: NodeSite { data_directory: node.directory, ..NodeSite::default() },
                    replica_of: None,
                    host: None,
                    server: node.redis,
                    // It is what acts here.
                    agent: None,
                },
                unplaced,
            });
        }
    }
    // A directory is one node's: where that is known, another one of which nothing is known is elsewhere.
    wanted.retain(|node| node.unplaced.is_none() || !places.contains_key(&node.directory));
    Ok(wanted)
}

/// Whether a node's store, or the agent that acts for it, has an address of this host. A store without an address is here. A
/// name that leads nowhere is looked up again until then: it says nothing of where the node is.
async fn is_here(config: &ClusterConfig, node: &ClusterNode, supervisor: &Supervisor, until: Instant) -> Result<bool, String> {
    let url = agents::address(config, node).or_else(|| node.redis.as_ref().map(|redis| redis.url.clone()));
    let Some(url) = url else { return Ok(true) };
    let host = url.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    let host = host.ok_or_else(|| "its address names no host".to_owned())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_own = |address: IpAddr| address.is_loopback() || UdpSocket::bind((address, 0)).is_ok();
    loop {
        supervisor.extend(EXTEND_BY, &format!("looking {host} up"));
        // A name server that does not answer takes its time; one look at least is taken to its end.
        let reason = match lookup_host((host, 0)).await {
            Ok(found) => return Ok(found.map(|address| address.ip()).any(is_own)),
            Err(error) => format!("{host}: {error}"),
        };
        if Instant::now() + LOOKUP_EVERY >= until {
            return Err(reason);
        }
        tokio::time::sleep(LOOKUP_EVERY).await;
    }
}

/// The first name in a directory that is there, but for what a file system and our own restores put there.
fn first_name(directory: &Path) -> std::io::Result<Option<OsString>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound && directory.symlink_metadata().is_err() => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        if !stays(name.as_bytes()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn found_in(node: &Wanted) -> Result<Option<OsString>, Failure> {
    first_name(&node.directory).map_err(|error| node.failed(format!("{}: {error}", node.directory.display())))
}

/// As after a start on nothing: an empty dump, or append-only files without a command.
fn holds_next_to_nothing(directory: &Path) -> bool {
    let (mut directories, mut left) = (vec![directory.to_owned()], NEXT_TO_NOTHING);
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(directory) else { return false };
        for entry in entries {
            let Ok((path, meta)) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) else { return false };
            let bytes = if meta.is_dir() { 0 } else { meta.len() };
            let Some(rest) = left.checked_sub(bytes + PER_NAME) else { return false };
            left = rest;
            if meta.is_dir() {
                directories.push(path);
            }
        }
    }
    true
}

/// A package that starts its server once after it is installed leaves files in the directory of a host that was replaced.
async fn tell_of_snapshots(session: &Session, node: &Wanted, name: &OsString, repository: &mut Option<Arc<Repository>>) {
    let opened = match repository {
        Some(repository) => repository.clone(),
        None => match session.repository().await {
            Ok(opened) => repository.insert(opened).clone(),
            Err(failure) => {
                tracing::info!(%failure, "whether there are snapshots of a node with next to no data is not known");
                return;
            }
        },
    };
    let newest = match opened.snapshots(&node.cluster).await {
        Ok(listed) => newest_of(&opened, &listed, &node.stored).await,
        Err(error) => Err(error),
    };
    match newest {
        Ok(Some(newest)) => tracing::warn!(
            cluster = %node.cluster, node = %node.target.node, directory = %node.directory.display(), name = %name.display(), date = %newest.date,
            "nothing is restored: its directory holds next to nothing, and is not empty; if the host was replaced, stop the store, empty the directory and start this again"
        ),
        Ok(None) => {}
        Err(error) => tracing::info!(%error, "whether there are snapshots of a node with next to no data is not known"),
    }
}

/// The snapshots of a cluster, and the one of them that a node comes back from.
type Found = (Arc<Repository>, Vec<ListedSnapshot>, ListedSnapshot);

/// What a node is to get; `None` where nothing is restored, for a reason that is told.
async fn find(session: &Session, node: &Wanted, repository: &mut Option<Arc<Repository>>) -> Result<Option<Found>, Failure> {
    let (cluster, name) = (&node.cluster, &node.target.node);
    if let Some(options) = &node.target.server {
        let control = RedisControl::new(options.clone()).map_err(|error| node.failed(error))?;
        if control.look().await.map_err(|error| node.failed(error))?.is_some() {
            tracing::warn!(%cluster, node = %name, "its data directory is empty and its store runs: nothing is restored under it");
            return Ok(None);
        }
    }
    let repository = match repository {
        Some(repository) => repository.clone(),
        None => repository.insert(session.repository().await.map_err(|failure| node.failed(failure))?).clone(),
    };
    let listed = repository.snapshots(cluster).await.map_err(|error| node.failed(error))?;
    if listed.is_empty() {
        tracing::warn!(%cluster, node = %name, "no snapshot of this cluster was ever taken: its store starts empty, for the first time");
        return Ok(None);
    }
    let query = SnapshotName::parse(&format!("{cluster}/{}", node.date), session.now())?;
    let chosen = session.choose(repository.as_ref(), &query).await.map_err(|failure| {
        let hint = failure.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        node.failed(format!("restore_date = {:?}: {failure}{hint}", node.date))
    })?;
    Ok(Some((repository, listed, chosen)))
}

async fn bring_back(
    session: &Session,
    node: &Wanted,
    repository: &mut Option<Arc<Repository>>,
    state: &StateDirectory,
    supervisor: &Supervisor,
    stop: &watch::Receiver<bool>,
) -> Result<(), Failure> {
    let (cluster, name) = (&node.cluster, &node.target.node);
    let found = unless_stopped(stop, find(session, node, repository)).await?;
    let Some((repository, listed, chosen)) = found else { return Ok(()) };
    tracing::warn!(%cluster, node = %name, date = %chosen.date, directory = %node.directory.display(), "its data directory is empty: it is restored");
    let kept_before = restore::kept(cluster.as_str(), std::slice::from_ref(&node.target), state).await;
    let has_kept = !kept_before.map_err(|error| node.failed(format!("{error:#}")))?.is_empty();
    place(session, node, repository, (&listed, &chosen), state, supervisor, stop).await?;
    if !has_kept {
        // What was set aside is an empty directory: a rollback must not find it.
        let settled = restore::settle(cluster.as_str(), std::slice::from_ref(&node.target), state).await;
        let settled = settled.map_err(|error| node.failed(format!("{error:#}")))?;
        for error in settled.into_iter().filter_map(|change| change.result.err()) {
            tracing::warn!(%cluster, node = %name, %error, "the empty directory that was replaced is still set aside");
        }
    }
    Ok(())
}

/// Plans and carries out, as every restore does.
async fn place(
    session: &Session,
    node: &Wanted,
    repository: Arc<Repository>,
    (listed, chosen): (&[ListedSnapshot], &ListedSnapshot),
    state: &StateDirectory,
    supervisor: &Supervisor,
    stop: &watch::Receiver<bool>,
) -> Result<(), Failure> {
    let wrong = |error: anyhow::Error| node.failed(format!("{error:#}"));
    let request = RestoreRequest {
        target_cluster: node.cluster.to_string(),
        nodes: vec![node.stored.clone()],
        map: Vec::new(),
        method: Method::Copy,
        speeds: Default::default(),
        discard_current: false,
        confirm: None,
    };
    let (targets, clock) = (std::slice::from_ref(&node.target), session.clock.clone());
    let mut prepared = restore::prepare(repository.clone(), chosen, targets, &request, state, clock).await.map_err(wrong)?;
    if !prepared.plan.is_allowed() {
        let reasons: Vec<_> =
            prepared.plan.refusals.iter().map(|refusal| format!("{} ({})", refusal.reason, refusal.next)).collect();
        return Err(node.failed(reasons.join("; ")));
    }
    if let Some(plan) = prepared.plan.nodes.first_mut() {
        let chosen = repository.manifest(chosen).await.map_err(|error| node.failed(error))?;
        let newest = newest_of(&repository, listed, &node.stored).await.map_err(|error| node.failed(error))?;
        fit_newest(plan, &chosen, newest.as_deref());
    }
    let total = prepared.plan.nodes.iter().map(|plan| plan.bytes).sum();
    let (placed, shown) = (prepared.placed(), format!("{}/{}", node.cluster, node.target.node));
    let on_step = |step| tracing::info!(node = shown, ?step, "a restore at the start goes on");
    let is_cancelled = || *stop.borrow();
    let running = Box::pin(prepared.run(&on_step, &is_cancelled));
    tokio::pin!(running);
    let report = loop {
        supervisor.extend(EXTEND_BY, &format!("restoring {shown}: {} of {}", size(placed().bytes), size(total)));
        tokio::select! {
            report = &mut running => break report.map_err(wrong)?,
            () = tokio::time::sleep(EXTEND_EVERY) => {}
        }
    };
    if report.outcome != RestoreOutcome::Restored {
        let reasons: Vec<_> = report.failures.iter().map(ToString::to_string).collect();
        let reason = if reasons.is_empty() { "it was interrupted".to_owned() } else { reasons.join("; ") };
        return Err(node.failed(reason));
    }
    for (name, restored) in &report.nodes {
        tracing::warn!(cluster = %node.cluster, node = %name, files = restored.files, bytes = restored.bytes, "restored: its store may start");
    }
    Ok(())
}

/// The newest snapshot that has the node, whatever it says of others.
async fn newest_of(
    repository: &Repository,
    listed: &[ListedSnapshot],
    node: &NodeName,
) -> Result<Option<Arc<ClusterManifest>>, crate::repo::RepoError> {
    for snapshot in listed {
        let manifest = repository.manifest(snapshot).await?;
        if manifest.node(node).is_some_and(|record| record.status == NodeStatus::Completed) {
            return Ok(Some(manifest));
        }
    }
    Ok(None)
}

/// A server that is down cannot say whether it has `appendonly yes`; the newest snapshot says what it had last. One that has gets
/// append-only files over the dump, without which it would start empty. Where they are not read they do no harm.
fn fit_newest(plan: &mut NodePlan, chosen: &ClusterManifest, newest: Option<&ClusterManifest>) {
    let layout = |manifest: &ClusterManifest| {
        let description = &manifest.node(&plan.source)?.description;
        (description.store != "files").then(|| StoreLayout::from_settings(&description.settings, &description.version))
    };
    let (Some(from), Some(to)) = (layout(chosen), newest.and_then(layout)) else { return };
    if to.has_append_only && !from.has_append_only && plan.fit.append_only.is_none() && plan.fit.append_manifest.is_none() {
        plan.fit.append_only =
            Some(MadeAppendOnly { dump_file: from.dump_file, directory: to.append_directory, file: to.append_file });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_file_system_puts_there_counts_as_nothing() {
        let root = tempfile::tempdir().expect("a directory");
        let node = |name: &str| Wanted {
            cluster: ClusterName::new("prod").expect("legal"),
            date: LATEST.to_owned(),
            stored: NodeName::new("node-1").expect("legal"),
            directory: root.path().join(name),
            target: RestoreTarget {
                node: NodeName::new("node-1").expect("legal"),
                site: NodeSite::default(),
                replica_of: None,
                host: None,
                server: None,
                agent: None,
            },
            unplaced: None,
        };
        assert_eq!(found_in(&node("absent")).expect("looks"), None);
        let data = root.path().join("data");
        std::fs::create_dir_all(data.join("lost+found")).expect("makes");
        assert_eq!(found_in(&node("data")).expect("looks"), None);
        std::fs::write(data.join("dump.rdb"), "").expect("writes");
        assert_eq!(found_in(&node("data")).expect("looks"), Some("dump.rdb".into()), "an empty file is one");
        assert!(holds_next_to_nothing(&data));
        std::fs::create_dir(data.join("appendonlydir")).expect("makes");
        std::fs::write(data.join("appendonlydir/base.rdb"), [0; NEXT_TO_NOTHING as usize]).expect("writes");
        assert!(!holds_next_to_nothing(&data), "somebody's data");
        std::os::unix::fs::symlink(root.path().join("nowhere"), root.path().join("link")).expect("links");
        assert!(found_in(&node("link")).is_err(), "what it should lead to is away, and not empty");
        assert!(found_in(&node("data/dump.rdb")).is_err(), "it is no directory");
    }
}
