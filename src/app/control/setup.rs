//! `tintype setup`: a configuration from one address, asking what it cannot find out.

use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::config::quoted;
use super::super::control_args::{SetupArgs, SourceArgs};
use super::super::failure::{Exit, Failure};
use super::super::wiring::{ClusterNode, Session, redis_url};
use crate::model::names::ClusterName;

/// Finds the nodes, asks for the rest, writes the file.
pub async fn run(session: &Session, args: SetupArgs) -> Result<Exit, Failure> {
    let cluster = ClusterName::new(args.cluster.clone())?;
    let path = args.output.clone().map_or_else(default_path, Ok)?;
    if path.exists() {
        return Err(Failure::new("conflict", format!("{}: is already there", path.display()))
            .hint("edit it, move it away, or say --output"));
    }
    let source = SourceArgs { redis: vec![args.address.clone()], ..SourceArgs::default() };
    let (_, nodes) = session.nodes(&cluster, &source, None).await?;
    let asks = !args.yes && std::io::stdin().is_terminal();
    let url = match session.common.repository.as_deref() {
        Some(url) => url.to_owned(),
        None => ask(asks, "repository (a directory, or s3://bucket/prefix)", "/srv/backups")?,
    };
    let password_file = match &session.common.password_file {
        Some(path) => path.display().to_string(),
        None => ask(asks, "file with the passphrase (empty: no encryption)", "")?,
    };
    let mut text = String::from("# Written by `tintype setup`; see the README for every key.\n\n[repository]\n");
    text.push_str(&format!("url = {}\n", quoted(&url)));
    if !password_file.is_empty() {
        text.push_str(&format!("password_file = {}\n", quoted(&password_file)));
    }
    text.push_str(&format!("\n[clusters.{cluster}]\nstore = \"redis\"\n"));
    // Whoever was asked told of others: it is asked at every snapshot.
    let asked = redis_url(&args.address);
    let is_it = |node: &ClusterNode| node.redis.as_ref().is_some_and(|redis| redis.url == asked);
    if nodes.len() > 1 || !nodes.iter().all(is_it) {
        text.push_str(&format!("discover = {}\n", quoted(&asked)));
    }
    for node in &nodes {
        let address = node.redis.as_ref().map_or("", |redis| redis.url.as_str());
        text.push_str(&format!("\n[clusters.{cluster}.nodes.{}]\naddress = {}\n", quoted(node.name.as_str()), quoted(address)));
        text.push_str("# For a restore on this host:\n# data_directory = \"/var/lib/redis\"\n# stop = [\"systemctl\", \"stop\", \"redis\"]\n# start = [\"systemctl\", \"start\", \"redis\"]\n");
    }
    // What we wrote we must be able to read.
    super::super::config::parse(&text, &path)?;
    write(&path, &text)?;
    let mut report = format!("wrote {} for {} nodes of {cluster}\n", path.display(), nodes.len());
    let config = if args.output.is_some() { format!(" --config {}", path.display()) } else { String::new() };
    report.push_str(&format!("next: tintype{config} doctor; tintype{config} init; tintype{config} snapshot {cluster}\n"));
    session.output.result(
        &report,
        &json!({"path": path, "cluster": cluster, "nodes": nodes.iter().map(|node| node.name.to_string()).collect::<Vec<_>>()}),
    );
    Ok(Exit::Done)
}

fn default_path() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME").ok_or_else(|| Failure::usage("$HOME is not set").hint("say --output FILE"))?;
    Ok(PathBuf::from(home).join(".config/tintype/tintype.toml"))
}

fn ask(asks: bool, what: &str, default: &str) -> Result<String, Failure> {
    if !asks {
        return Ok(default.to_owned());
    }
    let broken = |error: std::io::Error| Failure::new("system", format!("the terminal: {error}"));
    let mut err = std::io::stderr().lock();
    write!(err, "{what} [{default}]: ").and_then(|()| err.flush()).map_err(broken)?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(broken)?;
    let answer = line.trim();
    Ok(if answer.is_empty() { default.to_owned() } else { answer.to_owned() })
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let wrong = |error: std::io::Error| Failure::new("system", format!("{}: {error}", path.display())).hint("say --output FILE");
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(wrong)?;
    }
    let mut file = std::fs::File::options().create_new(true).write(true).mode(0o600).open(path).map_err(wrong)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(wrong)
}
