//! The daemon: what `tintyped` does. So far: a mount.

use std::path::PathBuf;

use clap::Parser;

use super::config::{Bytes, Span};
use super::control_args::{CommonArgs, MountArgs};
use super::disk_cache;
use super::failure::{Exit, Failure};
use super::mount::{self, MountOptions, Readiness};
use super::wiring::{Session, parse_owner};
use crate::cache::DiskOptions;

/// Serves a repository's snapshots as a read-only tree.
#[derive(Debug, Parser)]
#[command(name = "tintyped", version, max_term_width = 120)]
pub struct DaemonArgs {
    /// What everything shares.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where to mount [default: the configuration's]
    pub mountpoint: Option<PathBuf>,
    /// Let other users look, as far as owners and modes allow
    #[arg(long)]
    pub allow_other: bool,
    /// Show USER:GROUP as the owner of everything
    #[arg(long, value_name = "USER:GROUP")]
    pub owner: Option<String>,
    /// Memory for blocks [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Keep blocks in this directory of the host, also over restarts [default: the configuration's]
    #[arg(long, value_name = "DIRECTORY")]
    pub cache_dir: Option<PathBuf>,
    /// The most that the cache directory takes on the disk
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<Bytes>,
    /// No call on the tree takes longer [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub deadline: Option<Span>,
    /// Leave the terminal, and write `served` or `error: …` to standard output once
    #[arg(long)]
    pub ready: bool,
}

/// A mount as it will be: command line before configuration before defaults.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// Where.
    pub mountpoint: PathBuf,
    allow_other: bool,
    owner: Option<(u32, u32)>,
    memory: Option<Bytes>,
    deadline: Option<Span>,
    cache: Option<DiskOptions>,
}

impl MountRequest {
    /// Joins the command line with the configuration.
    pub fn merge(session: &Session, args: &MountArgs) -> Result<Self, Failure> {
        let config = &session.config.mount;
        let mountpoint = args.mountpoint.as_ref().or(config.mountpoint.as_ref());
        let mountpoint = mountpoint.ok_or_else(|| {
            Failure::usage("no mountpoint is named")
                .hint("say tintype mount MOUNTPOINT, or write mountpoint under [mount] into the configuration")
        })?;
        let owner = args.owner.as_ref().or(config.owner.as_ref()).map(|owner| parse_owner(owner)).transpose()?;
        Ok(Self {
            mountpoint: std::path::absolute(mountpoint)
                .map_err(|error| Failure::usage(format!("{}: {error}", mountpoint.display())))?,
            allow_other: args.allow_other || config.allow_other,
            owner,
            memory: args.memory.or(config.memory),
            deadline: args.deadline.or(config.deadline),
            cache: disk_cache::merge(args.cache_dir.as_ref(), args.cache_size, &session.config.cache)?,
        })
    }
}

/// Serves until it is unmounted or told to stop.
pub async fn serve_mount(session: &Session, request: &MountRequest, ready: Readiness) -> Result<(), Failure> {
    let repository = match session.repository().await {
        Ok(repository) => repository,
        Err(failure) => {
            // Who started us waits for a word.
            ready.tell(Err(&failure));
            return Err(failure);
        }
    };
    let mut options = MountOptions::new(&request.mountpoint);
    options.allow_other = request.allow_other;
    options.owner = request.owner;
    if let Some(memory) = request.memory {
        options.cache_bytes = memory.0;
    }
    if let Some(deadline) = request.deadline {
        options.deadline = deadline.0;
    }
    options.cache.clone_from(&request.cache);
    options.forbidden.extend(session.repository_directory()?);
    mount::serve(repository, options, ready, mount::stop_signal()).await?;
    Ok(())
}

/// What `tintyped` was told to do.
pub async fn run(session: &Session, args: DaemonArgs) -> Result<Exit, Failure> {
    let mount_args = MountArgs {
        mountpoint: args.mountpoint,
        allow_other: args.allow_other,
        owner: args.owner,
        foreground: true,
        memory: args.memory,
        cache_dir: args.cache_dir,
        cache_size: args.cache_size,
        deadline: args.deadline,
    };
    let request = MountRequest::merge(session, &mount_args)?;
    let ready = if args.ready {
        // A terminal that is closed must not take the mount with it. Failing means that we lead a session already.
        let _leads_already = rustix::process::setsid();
        let stdout = std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned();
        Readiness::Pipe(stdout.map_err(|error| Failure::new("system", format!("standard output: {error}")))?)
    } else {
        Readiness::Silent
    };
    serve_mount(session, &request, ready).await?;
    Ok(Exit::Done)
}
