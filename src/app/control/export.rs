//! `tintype export`: a node of a snapshot as a tar on standard output.

use std::io::IsTerminal;

use super::super::control_args::ExportArgs;
use super::super::export::write_tar;
use super::super::failure::{Exit, Failure};
use super::super::wiring::Session;
use super::browse::open_node;
use crate::repo::SnapshotSource;

/// Writes the tar.
pub async fn run(session: &Session, args: ExportArgs) -> Result<Exit, Failure> {
    if std::io::stdout().is_terminal() {
        return Err(Failure::usage("a tar is not for a terminal").hint(format!("tintype export {} > node.tar", args.source)));
    }
    let repository = session.repository().await?;
    let (name, listed) = session.find(repository.as_ref(), &args.source).await?;
    let node = name.node.as_ref().ok_or_else(|| {
        Failure::usage("no node was named").hint("say CLUSTER/DATE/NODE; `tintype list CLUSTER/DATE` shows the nodes")
    })?;
    let manifest = repository.manifest(&listed).await?;
    let tree = open_node(&repository, &manifest, node).await?;
    write_tar(&repository, &tree, name.path.clone(), std::io::stdout().lock()).await?;
    Ok(Exit::Done)
}
