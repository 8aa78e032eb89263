//! `tintype status`: how one snapshot fared, or the newest good one of every cluster.

use serde_json::{Map, Value, json};

use super::super::control_args::StatusArgs;
use super::super::disk_cache;
use super::super::failure::{Exit, Failure};
use super::super::output::age;
use super::super::served;
use super::super::wiring::Session;
use crate::model::ids::SnapshotId;
use crate::model::names::ClusterName;
use crate::model::time::Timestamp;
use crate::repo::{Repository, RunStatus, SnapshotSource};

/// Shows the status.
pub async fn run(session: &Session, args: StatusArgs) -> Result<Exit, Failure> {
    let repository = session.repository().await?;
    match args.snapshot {
        None => fleet(session, &repository).await,
        Some(text) => match SnapshotId::try_parse(&text) {
            Ok(uuid) => one(session, &repository, uuid).await,
            Err(_) => {
                let (_, listed) = session.find(repository.as_ref(), &text).await?;
                one(session, &repository, listed.uuid).await
            }
        },
    }
}

async fn one(session: &Session, repository: &Repository, uuid: SnapshotId) -> Result<Exit, Failure> {
    let Some(run) = repository.run(uuid).await? else { return unfinished(session, repository, uuid).await };
    let mut text = format!("{} {}  {:?}\n", run.cluster, uuid, run.status).to_lowercase();
    if let Some(date) = run.date {
        text.push_str(&format!("  published as {}/{date}\n", run.cluster));
    }
    if let Some(reason) = &run.reason {
        text.push_str(&format!("  {reason}\n"));
    }
    let mut nodes = Map::new();
    for (name, node) in &run.nodes {
        text.push_str(&format!("  {name}  {}", format!("{:?}", node.status).to_lowercase()));
        text.push_str(&node.reason.as_ref().map_or("\n".to_owned(), |reason| format!(": {reason}\n")));
        nodes.insert(name.to_string(), json!(node));
    }
    let value = json!({"uuid": uuid, "cluster": run.cluster, "date": run.date, "status": run.status, "reason": run.reason, "nodes": nodes});
    session.output.result(&text, &value);
    Ok(match run.status {
        RunStatus::Completed => Exit::Done,
        RunStatus::Partial => Exit::Partly,
        RunStatus::Failed => Exit::Failed,
    })
}

/// A run without a record is under way, died, or was never begun: its intent and its manifest tell.
async fn unfinished(session: &Session, repository: &Repository, uuid: SnapshotId) -> Result<Exit, Failure> {
    for cluster in repository.clusters().await?.into_iter().chain(session.config.clusters.keys().cloned()) {
        if let Some(listed) = repository.snapshots(&cluster).await?.into_iter().find(|listed| listed.uuid == uuid) {
            let text = format!("{cluster} {uuid}  completed\n  published as {cluster}/{}\n", listed.date);
            session.output.result(
                &text,
                &json!({"uuid": uuid, "cluster": cluster, "date": listed.date, "status": "completed", "nodes": {}}),
            );
            return Ok(Exit::Done);
        }
        if let Some(intent) = repository.intents(&cluster).await?.into_iter().find(|intent| intent.uuid == uuid) {
            let is_alive = intent.is_alive(session.now());
            let status = if is_alive { "processing" } else { "failed" };
            let reason = (!is_alive).then(|| format!("{} died", intent.writer));
            let text = format!("{cluster} {uuid}  {status}\n  since {} by {}\n", intent.started_at, intent.writer);
            session
                .output
                .result(&text, &json!({"uuid": uuid, "cluster": cluster, "status": status, "reason": reason, "nodes": {}}));
            return Ok(if is_alive { Exit::Done } else { Exit::Failed });
        }
    }
    Err(Failure::new("not_found", format!("nothing is known of snapshot {uuid}")).hint("see `tintype status` for all clusters"))
}

async fn fleet(session: &Session, repository: &Repository) -> Result<Exit, Failure> {
    let mut names = repository.clusters().await?;
    // A configured cluster that was never stored is the worst of all states, and must not be silent.
    names.extend(session.config.clusters.keys().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
    let (mut text, mut clusters) = (String::new(), Vec::new());
    for name in names {
        let (line, value) = cluster(session, repository, &name).await?;
        text.push_str(&line);
        clusters.push(value);
    }
    if clusters.is_empty() {
        text.push_str("no cluster is stored yet\nnext: tintype snapshot NAME --redis HOST:PORT\n");
    }
    let mut value = json!({"clusters": clusters});
    if let Some(options) = disk_cache::merge(None, None, &session.config.cache)? {
        // A cache that cannot be looked at is the doctor's business, and takes nothing away from what is stored.
        match disk_cache::seen(&options) {
            Ok((line, seen)) => {
                text.push_str(&format!("cache  {line}\n"));
                value["cache"] = seen;
            }
            Err(failure) => text.push_str(&format!("cache  WRONG {}\n", failure.message)),
        }
    }
    // Each says how much it has cached, and how it reads it.
    let mounts = tokio::task::spawn_blocking(served::mounts).await.unwrap_or_default();
    mounts.iter().for_each(|mount| text.push_str(&format!("mount  {}\n", mount.line())));
    value["mounts"] = mounts.iter().map(served::Served::value).collect();
    session.output.result(&text, &value);
    Ok(Exit::Done)
}

async fn cluster(session: &Session, repository: &Repository, name: &ClusterName) -> Result<(String, Value), Failure> {
    let now: Timestamp = session.now();
    let good = repository.snapshots(name).await?.into_iter().find(|listed| listed.is_complete);
    let running = repository.intents(name).await?.into_iter().find(|intent| intent.is_alive(now));
    let mut line = match &good {
        None => format!("{name}  no good snapshot"),
        Some(listed) => format!("{name}  {}  {} old", listed.date, age(now.seconds() - listed.date.seconds())),
    };
    let mut verified = None;
    if let Some(listed) = &good {
        verified = repository.verifications(name, listed.uuid).await?.pop();
        line.push_str(match &verified {
            None => ", not verified",
            Some(mark) if mark.problems == 0 => ", verified",
            Some(_) => ", DAMAGED",
        });
    }
    if let Some(intent) = &running {
        line.push_str(&format!(", {} under way since {}", intent.uuid, intent.started_at));
    }
    line.push('\n');
    let value = json!({
        "cluster": name,
        "newest": good.as_ref().map(|listed| listed.date),
        "uuid": good.as_ref().map(|listed| listed.uuid),
        "age_seconds": good.as_ref().map(|listed| now.seconds() - listed.date.seconds()),
        "verified": verified,
        "processing": running.map(|intent| intent.uuid),
    });
    Ok((line, value))
}
