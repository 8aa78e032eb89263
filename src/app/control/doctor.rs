//! `tintype doctor`: one line for each thing that a snapshot or a mount needs, with the fix.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::super::agent::{self as agents, Couriers};
use super::super::control_args::{DoctorArgs, SourceArgs};
use super::super::disk_cache;
use super::super::failure::{Exit, Failure};
use super::super::served;
use super::super::wiring::{ClusterNode, Session};
use crate::agent::remote::CourierError;
use crate::base::Clock;
use crate::driver::redis::RIGHTS;
use crate::model::names::{ClusterName, escape};
use crate::object::probe;
use crate::repo::SnapshotSource;

/// What was looked at and what came of it.
struct Check {
    name: String,
    outcome: Result<String, Failure>,
    /// What to run where it works, and could be better.
    advice: Option<String>,
}

impl Check {
    fn new(name: impl Into<String>, outcome: Result<String, Failure>) -> Self {
        Self { name: name.into(), outcome, advice: None }
    }
}

/// Checks everything that it can; exit 1 when something is wrong.
pub async fn run(session: &Session, args: DoctorArgs) -> Result<Exit, Failure> {
    let place = session.config_path.as_ref().map_or("none, which is fine".to_owned(), |path| path.display().to_string());
    let mut checks = vec![Check::new("configuration", Ok(place))];
    checks.extend(repository(session).await);
    checks.extend(clusters(session, &args.source).await);
    checks.push(fuse());
    let (found, advice) = super::updatedb::look();
    checks.push(Check { advice, ..Check::new("updatedb", Ok(found)) });
    checks.extend(cache(session));
    checks.extend(mounts(session).await);
    let mut text = String::new();
    for check in &checks {
        match &check.outcome {
            Ok(found) => {
                let word = if check.advice.is_some() { "note " } else { "ok   " };
                text.push_str(&format!("{word} {}: {found}\n", check.name));
                text.push_str(&check.advice.as_ref().map_or(String::new(), |advice| format!("      next: {advice}\n")));
            }
            Err(failure) => {
                text.push_str(&format!("WRONG {}: {}\n", check.name, failure.message));
                text.push_str(&failure.hint.as_ref().map_or(String::new(), |hint| format!("      next: {hint}\n")));
            }
        }
    }
    let value: Vec<_> = checks
        .iter()
        .map(|check| match &check.outcome {
            Ok(found) => match &check.advice {
                Some(advice) => json!({"check": check.name, "ok": true, "message": found, "hint": advice}),
                None => json!({"check": check.name, "ok": true, "message": found}),
            },
            Err(failure) => json!({"check": check.name, "ok": false, "message": failure.message, "hint": failure.hint}),
        })
        .collect();
    session.output.result(&text, &json!({"checks": value}));
    Ok(if checks.iter().all(|check| check.outcome.is_ok()) { Exit::Done } else { Exit::Failed })
}

async fn repository(session: &Session) -> Vec<Check> {
    let check = Check::new;
    let opened = match session.repository().await {
        Err(failure) => return vec![check("repository", Err(failure))],
        Ok(opened) => opened,
    };
    let mut checks = vec![check("repository", Ok(opened.location()))];
    let recorded = opened.descriptor().capabilities;
    checks.push(check(
        "object store",
        match probe(opened.store().as_ref()).await {
            Err(error) => Err(error.into()),
            Ok(now) if now == recorded => Ok("can be written, read and listed, and does what it did at init".to_owned()),
            Ok(now) => {
                Err(Failure::new("capabilities", format!("it behaves differently than at init: {recorded:?} became {now:?}"))
                    .hint("find out what changed in the store before the next snapshot"))
            }
        },
    ));
    checks.push(check(
        "snapshots",
        match opened.clusters().await {
            Ok(clusters) => Ok(format!("{} clusters are stored", clusters.len())),
            Err(error) => Err(error.into()),
        },
    ));
    checks
}

async fn clusters(session: &Session, source: &SourceArgs) -> Vec<Check> {
    let mut names: Vec<ClusterName> = session.config.clusters.keys().cloned().collect();
    if !source.redis.is_empty() || !source.files.is_empty() {
        names = ClusterName::new("given").into_iter().collect();
    }
    let mut checks = Vec::new();
    let mut couriers = Couriers::new(session);
    for name in names {
        let config = session.config.clusters.get(&name);
        match session.nodes(&name, source, None).await {
            Err(failure) => checks.push(Check::new(format!("cluster {name}"), Err(failure))),
            Ok((_, nodes)) => {
                for found in nodes {
                    if let Some(url) = config.and_then(|config| agents::address(config, &found)) {
                        checks.push(Check::new(
                            format!("node {}", found.name),
                            agent(&mut couriers, &name, &found, &url, &session.clock).await,
                        ));
                        continue;
                    }
                    checks.push(Check::new(format!("node {}", found.name), node(&found, &session.clock).await));
                }
            }
        }
    }
    checks
}

/// Whether a node's agent would obey, and what can be seen of the node from here, which is not where it is captured.
async fn agent(
    couriers: &mut Couriers<'_>,
    cluster: &ClusterName,
    found: &ClusterNode,
    url: &str,
    clock: &Arc<dyn Clock>,
) -> Result<String, Failure> {
    match couriers.to(url)?.greet(cluster, &found.name).await {
        Ok(()) if found.redis.is_none() && found.directory.is_none() => {
            Ok(format!("its agent obeys, {url}; run doctor on its host for the rest"))
        }
        Ok(()) => Ok(match node(found, clock).await {
            Ok(told) => format!("its agent obeys, {url}; {told}"),
            Err(failure) => format!("its agent obeys, {url}; from here, which need not be so there: {failure}"),
        }),
        Err(error @ CourierError::Denied(_)) => Err(Failure::new("denied", format!("its agent: {error}"))),
        Err(error) => Err(Failure::new("unreachable", format!("its agent: {error}"))
            .hint("start tintyped there, with listen under [agent]; check address, firewall and certificates")),
    }
}

/// Everything that a snapshot does before it pauses anything.
async fn node(node: &ClusterNode, clock: &Arc<dyn Clock>) -> Result<String, Failure> {
    let mut driver = node.driver(clock, &[])?;
    let described = driver.describe().await;
    let prepared = match &described {
        Ok(_) => driver.prepare(Duration::from_secs(2), Duration::from_secs(1)).await,
        Err(_) => Ok(()),
    };
    driver.abandon().await;
    let with_rights = |error: crate::driver::DriverError| {
        let is_denied = matches!(error, crate::driver::DriverError::Denied { .. });
        let failure = Failure::from(error);
        if is_denied && node.redis.is_some() {
            failure.hint(format!("ACL SETUSER tintype on >PASSWORD {RIGHTS}"))
        } else {
            failure
        }
    };
    let description = described.map_err(with_rights)?;
    prepared.map_err(with_rights)?;
    let ring = description.ring.as_ref();
    let ring = ring.map_or(String::new(), |ring| {
        format!("; its Dynomite is well, in rack {} of {}", escape(ring.rack.as_bytes()), escape(ring.datacenter.as_bytes()))
    });
    Ok(format!(
        "{} {} {} at {} can be captured{ring}",
        description.store, description.version, description.role, description.address
    ))
}

fn cache(session: &Session) -> Option<Check> {
    let looked = || -> Result<Option<String>, Failure> {
        let Some(options) = disk_cache::merge(None, None, &session.config.cache)? else { return Ok(None) };
        let mut others: Vec<_> = session.config.mount.mountpoint.iter().cloned().collect();
        // Without a repository another check says so.
        others.extend(session.repository_directory().unwrap_or_default());
        disk_cache::check_place(&options.directory, &others)?;
        Ok(Some(disk_cache::seen(&options)?.0))
    };
    let outcome = looked().transpose()?;
    Some(Check::new("cache", outcome))
}

/// What is mounted now: each says whether its store answers, what it has cached and how it reads it. One that is dead is
/// wrong where the configuration has it; others may be somebody else's business.
async fn mounts(session: &Session) -> Vec<Check> {
    let mounts = tokio::task::spawn_blocking(served::mounts).await.unwrap_or_default();
    let configured = session.config.mount.mountpoint.as_deref();
    let check = |mount: served::Served| {
        let place = mount.mountpoint.display();
        let advice =
            (!mount.answers()).then(|| format!("take it away: tintype unmount {place}; a clone: tintype clones --serve"));
        match advice {
            Some(advice) if configured == Some(&mount.mountpoint) => {
                Check::new("mounted", Err(Failure::new("mount", mount.line()).hint(advice)))
            }
            advice => Check { advice, ..Check::new("mounted", Ok(mount.line())) },
        }
    };
    mounts.into_iter().map(check).collect()
}

fn fuse() -> Check {
    let outcome = match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok("/dev/fuse can be opened".to_owned()),
        Err(error) => Err(Failure::new("fuse", format!("/dev/fuse: {error}")).hint(
            "apt-get install fuse3; modprobe fuse; in a container give it /dev/fuse and CAP_SYS_ADMIN (only the mount needs it)",
        )),
    };
    Check::new("mount", outcome)
}
