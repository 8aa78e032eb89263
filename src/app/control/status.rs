//! `tintype status`: how one snapshot fared, or the newest good one of every cluster.

use serde_json::{Value, json};

use super::super::control_args::StatusArgs;
use super::super::disk_cache;
use super::super::failure::{Exit, Failure};
use super::super::output::age;
use super::super::served;
use super::super::status::{self, ClusterStanding};
use super::super::wiring::Session;
use crate::model::ids::SnapshotId;
use crate::model::names::ClusterName;
use crate::model::time::Timestamp;
use crate::repo::Repository;

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
    let Some(standing) = status::standing(repository, uuid, session.now()).await? else {
        return Err(Failure::new("not_found", format!("nothing is known of snapshot {uuid}"))
            .hint("see `tintype status` for all clusters"));
    };
    session.output.result(&standing.text(), &standing.value());
    Ok(standing.status.exit())
}

async fn fleet(session: &Session, repository: &Repository) -> Result<Exit, Failure> {
    let names = status::clusters(repository, session.config.clusters.keys()).await?;
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
    let ClusterStanding { good, running, value } = status::cluster(repository, name, now).await?;
    let mut line = match &good {
        None => format!("{name}  no good snapshot"),
        Some(listed) => format!("{name}  {}  {} old", listed.date, age(now.seconds() - listed.date.seconds())),
    };
    if good.is_some() {
        line.push_str(match value["verified"]["problems"].as_u64() {
            None => ", not verified",
            Some(0) => ", verified",
            Some(_) => ", DAMAGED",
        });
    }
    if let Some(intent) = &running {
        line.push_str(&format!(", {} under way since {}", intent.uuid, intent.started_at));
    }
    line.push('\n');
    Ok((line, value))
}
