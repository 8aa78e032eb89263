//! `tintype import-config`: another program's configuration, written anew as ours.

use std::path::Path;

use serde_json::json;

use super::super::control_args::{ForeignConfig, ImportConfigArgs};
use super::super::failure::{Exit, Failure};
use super::super::foreign_config::dynomite_manager::{self, Imported};
use super::super::wiring::Session;
use super::setup;
use crate::base::process::host_name;
use crate::model::names::NodeName;

/// Reads, translates, and writes the file or standard output.
pub fn run(session: &Session, args: &ImportConfigArgs) -> Result<Exit, Failure> {
    let wrong = |reason: &dyn std::fmt::Display| Failure::usage(format!("{}: {reason}", args.file.display()));
    let text = std::fs::read_to_string(&args.file).map_err(|error| wrong(&error).hint("name a file of properties"))?;
    let node = match &args.node {
        Some(node) => NodeName::new(node.clone())?,
        None => {
            NodeName::new(host_name()).map_err(|error| Failure::usage(error.to_string()).hint("name the node: --node NAME"))?
        }
    };
    let ForeignConfig::DynomiteManager = args.kind;
    let imported =
        dynomite_manager::import(&text, &node, args.token).map_err(|reason| wrong(&reason).hint("correct that property"))?;
    // What we wrote we must be able to read.
    super::super::config::parse(&imported.text, args.output.as_deref().unwrap_or(Path::new("the configuration")))?;
    tell(session, &imported);
    let Imported { cluster, unknown, foreign, unneeded, notes, .. } = &imported;
    let unneeded: Vec<_> = unneeded.iter().map(|(name, _)| name).collect();
    let mut value =
        json!({"cluster": cluster, "unknown": unknown, "foreign_lines": foreign, "unneeded": unneeded, "notes": notes});
    match &args.output {
        Some(path) => {
            setup::write(path, &imported.text)?;
            value["path"] = json!(path);
            let (path, next) = (path.display(), format!("tintype --config {}", path.display()));
            session.output.result(
                &format!("wrote {path} for {cluster}\nnext: {next} doctor; {next} init; {next} snapshot {cluster}\n"),
                &value,
            );
        }
        None => {
            value["text"] = json!(imported.text);
            session.output.result(&imported.text, &value);
        }
    }
    Ok(Exit::Done)
}

/// What was passed over, and what has to be known.
fn tell(session: &Session, imported: &Imported) {
    for (name, reason) in &imported.unneeded {
        session.output.note(&format!("{name} has no counterpart: {reason}"));
    }
    for name in &imported.unknown {
        session.output.note(&format!("{name} is not known, and was passed over"));
    }
    for line in &imported.foreign {
        session.output.note(&format!("line {line} is not understood, and was passed over"));
    }
    for note in &imported.notes {
        session.output.note(note);
    }
}
