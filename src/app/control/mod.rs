//! The verbs of `tintype`, one file each.

use super::control_args::Verb;
use super::failure::{Exit, Failure};
use super::wiring::Session;

pub mod browse;
mod clones;
mod diff;
mod doctor;
mod export;
pub mod helper;
mod import_config;
mod init;
mod key;
pub mod linking;
mod mounting;
pub mod restore;
pub mod restoring;
mod setup;
mod snapshot;
mod speeds;
mod status;
mod updatedb;
mod verify;
mod warm;

/// Runs one verb.
pub async fn run(session: &Session, verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Setup(args) => setup::run(session, args).await,
        Verb::ImportConfig(args) => import_config::run(session, &args),
        Verb::Init(args) => init::run(session, args).await,
        Verb::Snapshot(args) => snapshot::run(session, args).await,
        Verb::Status(args) => status::run(session, args).await,
        Verb::List(args) => browse::list(session, args).await,
        Verb::Show(args) => browse::show(session, args).await,
        Verb::Diff(args) => diff::run(session, args).await,
        Verb::Mount(args) => mounting::mount(session, args).await,
        Verb::Unmount(args) => mounting::unmount(session, args).await,
        Verb::Warm(args) => warm::run(session, args).await,
        Verb::Verify(args) => verify::run(session, args).await,
        Verb::Export(args) => export::run(session, args).await,
        Verb::Key(args) => key::run(session, args).await,
        Verb::Doctor(args) => doctor::run(session, args).await,
        Verb::Completions(args) => super::completions(session.output, args.shell),
        Verb::Man => super::man(session.output),
        Verb::Clone(args) => clones::clone(session, args).await,
        Verb::Clones(args) => clones::list(session, args).await,
        Verb::Unclone(args) => clones::unclone(session, args).await,
        Verb::Hydrate(args) => linking::hydrate(session, args).await,
        Verb::Guard(args) => super::guard::run(session.output, &args),
        Verb::Restore(args) => restoring::restore(session, args).await,
        Verb::Rollback(args) => restoring::rollback(session, args).await,
        Verb::Settle(args) => restoring::settle(session, args).await,
    }
}
