//! `tintype verify`: prove that snapshots are whole, and remember it.

use serde_json::json;

use super::super::control_args::{Depth, VerifyArgs};
use super::super::failure::{Exit, Failure};
use super::super::output::size;
use super::super::wiring::Session;
use crate::model::snapshot_name::SnapshotName;
use crate::repo::verify::VerifyDepth;
use crate::repo::{ListedSnapshot, Repository, SnapshotSource};

/// Verifies one snapshot, all of a cluster, or all.
pub async fn run(session: &Session, args: VerifyArgs) -> Result<Exit, Failure> {
    let repository = session.repository().await?;
    let depth = match args.depth {
        Depth::Listed => VerifyDepth::Listed,
        Depth::Hashed => VerifyDepth::Hashed,
    };
    let chosen = chosen(session, &repository, args.source.as_deref()).await?;
    if chosen.is_empty() {
        session.output.result("nothing is stored yet\n", &json!({"snapshots": []}));
        return Ok(Exit::Nothing);
    }
    let (mut values, mut damaged, mut text) = (Vec::new(), 0, String::new());
    for listed in &chosen {
        let bar = session.output.bar(&format!("{}/{}", listed.cluster, listed.date));
        let report = repository.verify(listed, depth, &|bytes| bar.inc(bytes)).await?;
        bar.finish_and_clear();
        repository.mark_verified(listed, depth, &report, session.now()).await?;
        let verdict = if report.problems.is_empty() { "whole" } else { "DAMAGED" };
        let line = format!(
            "{}/{}  {verdict}: {} files, {} blocks, {} packs, {} compared\n",
            listed.cluster,
            listed.date,
            report.files,
            report.blocks,
            report.packs,
            size(report.hashed_bytes)
        );
        text.push_str(&line);
        for problem in &report.problems {
            text.push_str(&format!("  {}: {}\n", problem.what, problem.reason));
        }
        damaged += usize::from(!report.problems.is_empty());
        values.push(json!({"cluster": listed.cluster, "date": listed.date, "uuid": listed.uuid, "report": report}));
    }
    session.output.result(&text, &json!({"depth": depth, "damaged": damaged, "snapshots": values}));
    if damaged == 0 {
        return Ok(Exit::Done);
    }
    // The result is printed already; scripts get it as one object, so only the exit code is left to say.
    session.output.note(&format!("tintype: {damaged} of {} snapshots are damaged\n  next: take a new snapshot; files that are not named above can still be restored", chosen.len()));
    Ok(Exit::Failed)
}

async fn chosen(session: &Session, repository: &Repository, source: Option<&str>) -> Result<Vec<ListedSnapshot>, Failure> {
    let Some(text) = source else {
        let mut all = Vec::new();
        for cluster in repository.clusters().await? {
            all.extend(repository.snapshots(&cluster).await?);
        }
        return Ok(all);
    };
    let name = SnapshotName::parse(text, session.now())?;
    if name.date.is_some() {
        return Ok(vec![session.choose(repository, &name).await?]);
    }
    let all = repository.snapshots(&name.cluster).await?;
    if all.is_empty() {
        // Says which clusters there are.
        session.choose(repository, &name).await?;
    }
    Ok(all)
}
