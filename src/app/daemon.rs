//! The daemon: what `tintyped` does. It mounts, acts for the nodes of its host ([`agent`]), or both, as the configuration says.
//!
//! SIGTERM and SIGINT unmount and end it; SIGHUP reads the configuration again, see [`renewal`].
//!
//! [`agent`]: super::agent
//! [`renewal`]: super::renewal

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::agent::host::HostAgent;
use super::config::{Bytes, Span};
use super::control::helper::parse_kernel_option;
use super::control_args::{CommonArgs, MountArgs};
use super::disk_cache;
use super::failure::{Exit, Failure};
use super::mount::{self, MountOptions, Readiness};
use super::notify::Supervisor;
use super::renewal::{Renewable, Renewal};
use super::restore_on_start;
use super::wiring::{Session, parse_owner};
use crate::cache::DiskOptions;

/// No call on the tree takes longer where nothing is said.
const DEADLINE: Duration = Duration::from_secs(30);

/// Serves a repository's snapshots as a read-only tree, and takes the orders of snapshots for the nodes of this host.
///
/// With a mountpoint it does the first alone; without one it does what mount and agent of the configuration say.
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
    /// What the table of mounts shows as the source
    #[arg(long, hide = true, value_name = "NAME")]
    pub source_name: Option<String>,
    /// A security context for the kernel
    #[arg(long, hide = true, value_name = "OPTION", value_parser = parse_kernel_option)]
    pub kernel_option: Vec<String>,
    /// Serve this clone instead of the snapshots
    #[arg(long, hide = true, value_name = "ID", conflicts_with = "mountpoint")]
    pub clone: Option<uuid::Uuid>,
    /// Restore what `restore_on_start` names, and end
    #[arg(long, conflicts_with_all = ["mountpoint", "clone"])]
    pub restore_only: bool,
    /// Leave the terminal, and write `served` or `error: …` to standard output once
    #[arg(long)]
    pub ready: bool,
}

/// A mount as it will be: command line before configuration before defaults.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// Where.
    pub mountpoint: PathBuf,
    args: MountArgs,
    allow_other: bool,
    passthrough: bool,
    owner: Option<(u32, u32)>,
    memory: Option<Bytes>,
    deadline: Option<Span>,
    source_name: Option<String>,
    kernel_options: Vec<String>,
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
            args: args.clone(),
            allow_other: args.allow_other || config.allow_other,
            passthrough: config.passthrough.unwrap_or(true),
            owner,
            memory: args.memory.or(config.memory),
            deadline: args.deadline.or(config.deadline),
            source_name: args.source_name.clone(),
            kernel_options: security_contexts(&args.kernel_option),
            cache: disk_cache::merge(args.cache_dir.as_ref(), args.cache_size, &session.config.cache)?,
        })
    }

    /// The same command line over another state of the configuration.
    pub fn renewed(&self, session: &Session) -> Result<Self, Failure> {
        Self::merge(session, &self.args)
    }

    /// No call on the tree takes longer.
    pub fn deadline(&self) -> Duration {
        self.deadline.map_or(DEADLINE, |deadline| deadline.0)
    }

    /// Keys of the configuration that differ and cannot change while it is mounted.
    pub fn needs_restart(&self, other: &Self) -> Vec<&'static str> {
        let differs = [
            ("mountpoint", self.mountpoint != other.mountpoint),
            ("allow_other", self.allow_other != other.allow_other),
            ("owner", self.owner != other.owner),
            ("memory", self.memory != other.memory),
            ("passthrough", self.passthrough != other.passthrough),
        ];
        differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }

    /// For the supervisor's list of units.
    pub fn status(&self) -> String {
        format!("serving {}", self.mountpoint.display())
    }
}

/// As mount(8) does it: a kernel without SELinux is not told of its contexts, which it would refuse.
fn security_contexts(options: &[String]) -> Vec<String> {
    if options.is_empty() || Path::new("/sys/fs/selinux/enforce").exists() {
        return options.to_vec();
    }
    tracing::warn!(?options, "SELinux is not enabled here: its options are passed over");
    Vec::new()
}

/// Serves until it is unmounted or told to stop.
pub async fn serve_mount(session: &Session, request: &MountRequest, ready: Readiness) -> Result<(), Failure> {
    let stopped = mount::stop_signal();
    tokio::pin!(stopped);
    let opened = tokio::select! {
        opened = session.lasting_repository(request.deadline()) => opened,
        () = &mut stopped => Err(Failure::new("interrupted", "it was told to stop before anything was served")),
    };
    let (repository, store) = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            // Who started us waits for a word.
            ready.tell(Err(&failure));
            return Err(failure);
        }
    };
    let mut options = MountOptions::new(&request.mountpoint);
    options.repository = Some(repository.descriptor().repository.to_string());
    options.allow_other = request.allow_other;
    options.owner = request.owner;
    options.passthrough = request.passthrough;
    options.source_name.clone_from(&request.source_name);
    options.kernel_options.clone_from(&request.kernel_options);
    if let Some(memory) = request.memory {
        options.cache_bytes = memory.0;
    }
    options.deadline = request.deadline();
    options.cache.clone_from(&request.cache);
    options.forbidden.extend(session.repository_directory()?);
    let supervisor = Supervisor::from_environment();
    let ready = match ready {
        Readiness::Silent => {
            let (supervisor, status) = (supervisor.clone(), request.status());
            Readiness::Call(Box::new(move |served| {
                if served.is_ok() {
                    supervisor.ready(&status);
                }
            }))
        }
        told => told,
    };
    let source = Renewable::new(repository, store);
    options.store = Some(source.clone());
    let (deadline, changed) = watch::channel(options.deadline);
    options.deadline_changes = Some(changed);
    let renewal = Renewal { source: source.clone(), request: request.clone(), deadline, supervisor: supervisor.clone() };
    // A terminal that is closed ends what runs on it.
    let is_on_terminal = std::io::stdin().is_terminal();
    let closed = if is_on_terminal { signal(SignalKind::hangup()).ok() } else { None };
    let renewal = (!is_on_terminal).then(|| tokio::spawn(renewal.at_every_signal(session)));
    let stop = async move {
        let closed = async {
            match closed {
                Some(mut closed) => drop(closed.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stopped => {}
            () = closed => {}
        }
        supervisor.stopping();
    };
    let served = mount::serve(source, options, ready, stop).await;
    if let Some(renewal) = renewal {
        renewal.abort();
    }
    Ok(served?)
}

/// What `tintyped` was told to do.
pub async fn run(session: &Session, args: DaemonArgs) -> Result<Exit, Failure> {
    let ready = readiness(args.ready)?;
    if let Some(id) = args.clone {
        super::clone::serve(session, id, ready).await?;
        return Ok(Exit::Done);
    }
    let mount_args = MountArgs {
        mountpoint: args.mountpoint,
        allow_other: args.allow_other,
        owner: args.owner,
        foreground: true,
        memory: args.memory,
        cache_dir: args.cache_dir,
        cache_size: args.cache_size,
        deadline: args.deadline,
        source_name: args.source_name,
        kernel_option: args.kernel_option,
    };
    if mount_args.mountpoint.is_none() && restore_on_start::is_configured(session) {
        // Whoever waits for us to be ready may start a store then.
        let supervisor = Supervisor::from_environment();
        if let Err(failure) = Box::pin(restore_on_start::run(session, &supervisor)).await {
            ready.tell(Err(&failure));
            return Err(failure);
        }
        // There may be nothing else to do on this host.
        if args.restore_only || (session.config.agent.listen.is_none() && session.config.mount.mountpoint.is_none()) {
            supervisor.ready("restored what was empty");
            ready.tell(Ok(()));
            return Ok(Exit::Done);
        }
    }
    if args.restore_only {
        return Err(Failure::usage("no cluster has restore_on_start").hint("write restore_on_start = true under [clusters.NAME]"));
    }
    // Who names a mountpoint wants that and nothing else; otherwise the configuration says what is served.
    let listen = session.config.agent.listen.as_ref().filter(|_| mount_args.mountpoint.is_none());
    let Some(listen) = listen else {
        if session.config.agent.dynomite_manager.is_some() && mount_args.mountpoint.is_none() {
            let failure = Failure::usage("[agent.dynomite_manager] wants an agent").hint("write listen under [agent]");
            ready.tell(Err(&failure));
            return Err(failure);
        }
        serve_mount(session, &MountRequest::merge(session, &mount_args)?, ready).await?;
        return Ok(Exit::Done);
    };
    let agent = match HostAgent::bind(session, listen) {
        Ok(agent) => agent,
        Err(failure) => {
            ready.tell(Err(&failure));
            return Err(failure);
        }
    };
    if session.config.mount.mountpoint.is_none() {
        serve_agent(agent, ready).await?;
        return Ok(Exit::Done);
    }
    let request = MountRequest::merge(session, &mount_args)?;
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let stop = mount::stop_signal();
    let agent = tokio::spawn(agent.serve(async move {
        tokio::select! {
            () = stop => {}
            _failed = ended => {}
        }
    }));
    let served = serve_mount(session, &request, ready).await;
    if served.is_ok() {
        // Whoever unmounts the tree has not ended the agent.
        agent.await.map_err(|error| Failure::new("internal", error.to_string()))??;
    } else {
        drop(end);
        let _the_mount_failed_first = agent.await;
    }
    served.map(|()| Exit::Done)
}

/// Serves the agent alone until it is told to stop.
async fn serve_agent(agent: HostAgent, ready: Readiness) -> Result<(), Failure> {
    let (supervisor, status) = (Supervisor::from_environment(), agent.status());
    let stopped = mount::stop_signal();
    let mut hangups =
        signal(SignalKind::hangup()).map_err(|error| Failure::new("system", format!("signals cannot be caught: {error}")))?;
    supervisor.ready(&status);
    ready.tell(Ok(()));
    let stop = async move {
        tokio::pin!(stopped);
        loop {
            tokio::select! {
                () = &mut stopped => break,
                _hangup = hangups.recv() => {
                    // A terminal that is closed ends what runs on it.
                    if std::io::stdin().is_terminal() {
                        break;
                    }
                    supervisor.reloading();
                    supervisor.ready(&status);
                }
            }
        }
        supervisor.stopping();
    };
    agent.serve(stop).await
}

/// Who is told: the pipe of who started us in the background, or nobody.
fn readiness(is_in_background: bool) -> Result<Readiness, Failure> {
    if !is_in_background {
        return Ok(Readiness::Silent);
    }
    // A terminal that is closed must not take the mount with it. Failing means that we lead a session already.
    let _leads_already = rustix::process::setsid();
    let stdout = std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned();
    Ok(Readiness::Pipe(stdout.map_err(|error| Failure::new("system", format!("standard output: {error}")))?))
}
