//! `tintype mount` and `unmount`: starts a daemon for a mount alone, and takes it away.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::super::control_args::{MountArgs, UnmountArgs};
use super::super::daemon::{self, MountRequest};
use super::super::failure::{Exit, Failure};
use super::super::mount::{self, Readiness};
use super::super::wiring::{Session, absolute_url};

/// The daemons' log in the state directory.
const LOG: &str = "mount.log";

/// Mounts; returns when the tree is served.
pub async fn mount(session: &Session, args: MountArgs) -> Result<Exit, Failure> {
    let request = MountRequest::merge(session, &args)?;
    if args.foreground {
        daemon::serve_mount(session, &request, Readiness::Silent).await?;
        return Ok(Exit::Done);
    }
    let mountpoint = request.mountpoint.clone();
    let process = start(session, daemon_command(session, &args, &mountpoint)?).await?;
    let text = format!("{} is served by process {process}\nnext: ls {0}; tintype unmount {0}\n", mountpoint.display());
    session.output.result(&text, &json!({"mountpoint": mountpoint, "process": process}));
    Ok(Exit::Done)
}

/// Starts a daemon in the background; returns its process once it serves.
pub(super) async fn start(session: &Session, mut command: Command) -> Result<u32, Failure> {
    let (reader, writer) = std::io::pipe().map_err(|error| Failure::new("system", format!("a pipe: {error}")))?;
    // The daemon says on its standard output, once, whether it serves.
    command.stdin(Stdio::null()).stdout(OwnedFd::from(writer)).stderr(log_file(session));
    let child = command.spawn().map_err(|error| {
        Failure::new("system", format!("{}: {error}", command.get_program().to_string_lossy()))
            .hint("is tintyped installed beside tintype?")
    })?;
    let process = child.id();
    // Our copy of the writing end must go, or a dead daemon would never be noticed.
    drop(command);
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).map(|_| line)
    });
    let line = line.await.map_err(|error| Failure::new("internal", error.to_string()))?.unwrap_or_default();
    match line.trim_end() {
        "served" => Ok(process),
        "" => Err(Failure::new("mount", "the daemon ended without a word")
            .hint(format!("its log says why: {}", session.state_directory().join(LOG).display()))),
        said => Err(said.strip_prefix("error: ").and_then(Failure::from_json).unwrap_or_else(|| {
            Failure::new("mount", format!("the daemon said {said:?}")).hint("are both programs of one version?")
        })),
    }
}

/// `tintyped` beside this program.
pub(super) fn daemon() -> Result<Command, Failure> {
    let own = std::env::current_exe().map_err(|error| Failure::new("system", format!("this program's own path: {error}")))?;
    let mut command = Command::new(own.with_file_name("tintyped"));
    // Who supervises this program has not asked for that one.
    command.arg("--ready").env_remove("NOTIFY_SOCKET").current_dir("/");
    Ok(command)
}

/// The same with what this command line said.
fn daemon_command(session: &Session, args: &MountArgs, mountpoint: &Path) -> Result<Command, Failure> {
    let mut command = daemon()?;
    command.arg(mountpoint);
    if let Some(path) = &session.config_path {
        command.arg("--config").arg(path);
    }
    command.arg("--repository").arg(absolute_url(session.url()?));
    let common = &session.common;
    for (option, path) in [("--password-file", &common.password_file), ("--key-file", &common.key_file)] {
        if let Some(path) = path {
            command.arg(option).arg(std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        }
    }
    for _ in 0..common.verbose {
        command.arg("-v");
    }
    if args.allow_other {
        command.arg("--allow-other");
    }
    if let Some(owner) = &args.owner {
        command.arg("--owner").arg(owner);
    }
    if let Some(memory) = args.memory {
        command.arg("--memory").arg(memory.0.to_string());
    }
    if let Some(directory) = &args.cache_dir {
        command.arg("--cache-dir").arg(std::path::absolute(directory).unwrap_or_else(|_| directory.clone()));
    }
    if let Some(size) = args.cache_size {
        command.arg("--cache-size").arg(size.0.to_string());
    }
    if let Some(deadline) = args.deadline {
        command.arg("--deadline").arg(format!("{}ms", deadline.0.as_millis()));
    }
    if let Some(name) = &args.source_name {
        command.arg("--source-name").arg(name);
    }
    for option in &args.kernel_option {
        command.arg("--kernel-option").arg(option);
    }
    Ok(command)
}

/// Where the daemon logs to: a file in the state directory, or nowhere when that cannot be written.
fn log_file(session: &Session) -> Stdio {
    let directory: PathBuf = session.state_directory();
    let open = || {
        std::fs::create_dir_all(&directory)?;
        std::fs::File::options().create(true).append(true).open(directory.join(LOG))
    };
    open().map_or_else(|_| Stdio::null(), Stdio::from)
}

/// Unmounts, whatever is stuck.
pub async fn unmount(session: &Session, args: UnmountArgs) -> Result<Exit, Failure> {
    let mountpoint = args.mountpoint.clone();
    let done = tokio::task::spawn_blocking(move || mount::unmount(&mountpoint))
        .await
        .map_err(|error| Failure::new("internal", error.to_string()))??;
    let text = match done.was_forced {
        false => format!("{} is unmounted\n", args.mountpoint.display()),
        true => format!("{} is unmounted; it was in use, and what was open in it fails\n", args.mountpoint.display()),
    };
    session.output.result(&text, &json!({"mountpoint": args.mountpoint, "forced": done.was_forced}));
    Ok(Exit::Done)
}
