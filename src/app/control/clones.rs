//! `tintype clone`, `clones` and `unclone`: writable copies that cost nothing until they are written.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::super::clone::{CloneRecord, CloneRecords, forget, lock_soon, upper_failure};
use super::super::config::Span;
use super::super::control_args::{CloneArgs, ClonesArgs, UncloneArgs};
use super::super::failure::{Exit, Failure};
use super::super::mount::{self, MountError};
use super::super::output::size;
use super::super::served;
use super::super::wiring::{Session, absolute_url, parse_owner};
use super::browse::open_node;
use super::linking;
use super::mounting::{daemon, start};
use crate::base::process::host_name;
use crate::fs::clone::Upper;
use crate::fuse::mounts::mounted_at;
use crate::model::manifest::ClusterManifest;
use crate::model::names::{NodeName, TreePath};
use crate::node::used_bytes;
use crate::repo::{NodeTree, Pin, Repository, SnapshotSource};

/// How long who served a clone may take to make the last writes durable.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes a clone and serves it.
pub async fn clone(session: &Session, args: CloneArgs) -> Result<Exit, Failure> {
    let records = CloneRecords::open(session)?;
    let repository = session.repository().await?;
    let (name, listed) = session.find(repository.as_ref(), &args.source).await?;
    let node = name.node.filter(|_| name.path.is_root()).ok_or_else(|| {
        Failure::usage("no node was named").hint("say CLUSTER/DATE/NODE; `tintype list CLUSTER/DATE` shows the nodes")
    })?;
    // Whether there is such a node is known before anything is made.
    let tree = open_node(&repository, &repository.manifest(&listed).await?, &node).await?;
    let mountpoint = place(&args.directory)?;
    if let Some(other) = records.all()?.into_iter().find(|record| record.mountpoint == mountpoint) {
        let hint = format!("tintype clones --serve serves it again; tintype unclone {} takes it away", mountpoint.display());
        return Err(Failure::new("exists", format!("{} is a clone of {}", mountpoint.display(), other.source())).hint(hint));
    }
    let id = Uuid::now_v7();
    let upper = match &args.upper {
        None => records.upper(id),
        Some(upper) => new_upper(upper)?,
    };
    let record = CloneRecord {
        allow_other: args.allow_other,
        owner: args.owner.as_deref().map(parse_owner).transpose()?,
        memory_bytes: args.memory.map(|memory| memory.0),
        deadline_ms: deadline_ms(args.deadline.or(session.config.clones.deadline)),
        ..record(session, id, &tree.snapshot, node, &mountpoint, upper)?
    };
    let process = begin(session, &records, &repository, &record, &tree).await?;
    let text = format!(
        "{} is a clone of {}, served by process {process}\nwhat is written goes to {}\nnext: start the store on it; tintype unclone {0} takes it away\n",
        mountpoint.display(),
        record.source(),
        record.upper.display()
    );
    session.output.result(&text, &json!({"clone": record, "process": process}));
    Ok(Exit::Done)
}

fn deadline_ms(deadline: Option<Span>) -> Option<u64> {
    deadline.map(|deadline| u64::try_from(deadline.0.as_millis()).unwrap_or(u64::MAX))
}

/// A record of a clone that nobody but us may use, reached as this command line reaches it.
pub(super) fn record(
    session: &Session,
    id: Uuid,
    snapshot: &ClusterManifest,
    node: NodeName,
    mountpoint: &Path,
    upper: PathBuf,
) -> Result<CloneRecord, Failure> {
    let absolute = |path: &Option<PathBuf>| path.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
    Ok(CloneRecord {
        format: 1,
        id,
        cluster: snapshot.cluster.clone(),
        snapshot: snapshot.uuid,
        date: snapshot.date,
        node,
        mountpoint: mountpoint.to_owned(),
        upper,
        repository: absolute_url(session.url()?),
        config: absolute(&session.config_path),
        password_file: absolute(&session.common.password_file),
        key_file: absolute(&session.common.key_file),
        allow_other: false,
        owner: None,
        memory_bytes: None,
        deadline_ms: deadline_ms(session.config.clones.deadline),
        unit: None,
        links: None,
        made_at: session.now(),
    })
}

/// Makes what a record names, the record first, and serves it; returns the process. On an error nothing of it is left.
pub(super) async fn begin(
    session: &Session,
    records: &CloneRecords,
    repository: &Repository,
    record: &CloneRecord,
    tree: &NodeTree,
) -> Result<u32, Failure> {
    let root = repository.entry(tree, &TreePath::root()).await?;
    let root =
        root.ok_or_else(|| Failure::new("corrupt", format!("{} has no root", record.source())).hint("tintype verify"))?.entry;
    let mountpoint = &record.mountpoint;
    let is_new = !mountpoint.exists();
    if is_new {
        std::fs::create_dir(mountpoint).map_err(|error| {
            Failure::new("system", format!("{}: {error}", mountpoint.display())).hint("make the directory above it first")
        })?;
    }
    records.write(record)?;
    let served = async {
        Upper::create(&record.upper, record.owner, &root).map_err(|error| upper_failure(&record.upper, error))?;
        pin(session, repository, record).await?;
        serve(session, record).await
    };
    let served = served.await;
    if served.is_err() {
        // Nothing can have been written to it.
        let _nothing_left = forget(records, repository, record).await;
        if is_new {
            let _ours = std::fs::remove_dir(mountpoint);
        }
    }
    served
}

async fn pin(session: &Session, repository: &Repository, record: &CloneRecord) -> Result<(), Failure> {
    let pin = Pin::new(record.id, format!("clone {} on {}", record.mountpoint.display(), host_name()), session.now());
    Ok(repository.pin(&record.cluster, record.snapshot, &pin).await?)
}

/// The path of a directory that need not be there, without links.
pub(super) fn place(directory: &Path) -> Result<PathBuf, Failure> {
    let wrong = |error: std::io::Error| {
        Failure::new("system", format!("{}: {error}", directory.display())).hint("name a directory whose parent is there")
    };
    let path = std::path::absolute(directory).map_err(wrong)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path) };
    // The last component may be a mount that hangs, which is not looked at.
    Ok(parent.canonicalize().map_err(wrong)?.join(name))
}

/// A directory for the upper layer, which must not hold anything: what is there could be another clone.
fn new_upper(upper: &Path) -> Result<PathBuf, Failure> {
    let path = place(upper)?;
    match std::fs::read_dir(&path).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            Err(Failure::usage(format!("--upper {}: is not empty", path.display())).hint("name a new directory on a local disk"))
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::usage(format!("--upper {}: {error}", path.display())).hint("name a new directory on a local disk"))
        }
        _ => Ok(path),
    }
}

/// The kernel has it.
pub(super) fn is_mounted(record: &CloneRecord) -> bool {
    mounted_at(&record.mountpoint).is_ok_and(|entry| entry.is_some_and(|entry| entry.is_ours()))
}

/// Somebody serves it, and answers.
pub(super) fn is_served(record: &CloneRecord) -> bool {
    served::mounts().iter().any(|mount| mount.mountpoint == record.mountpoint && mount.answers())
}

/// Lists the clones of this host; with `--serve` those that are not served are served again.
pub async fn list(session: &Session, args: ClonesArgs) -> Result<Exit, Failure> {
    let records = CloneRecords::open(session)?;
    let all = records.all()?;
    let (mut text, mut values, mut failed) = (String::new(), Vec::new(), 0);
    for record in all {
        let mut is_up = is_served(&record);
        let mut reason = None;
        if args.serve && !is_up {
            // What no link leads to is not served again: who served it may be taking it away just now, or died over that.
            let is_over = record.links.as_ref().is_some_and(|links| links.are_gone(&record.mountpoint));
            let served = if is_over {
                linking::release(session, &records, &record).await
            } else {
                serve(session, &record).await.map(drop)
            };
            match served {
                Ok(()) if is_over => continue,
                Ok(()) => is_up = true,
                Err(failure) if is_over && failure.code == "busy" => is_up = true,
                Err(failure) => {
                    failed += 1;
                    reason = Some(failure.to_string());
                }
            }
        }
        let served = if is_up { "served" } else { "not served" };
        let state = match &reason {
            Some(reason) => format!("not served: {reason}"),
            None => served.to_owned(),
        };
        let used = used_bytes(&record.upper);
        let place = record.mountpoint.display();
        let what = match &record.links {
            None => format!("{} written", size(used)),
            Some(links) => format!("for links of {}", links.directory.display()),
        };
        text.push_str(&format!("{place}  {}  {what}  {state}\n", record.source()));
        values.push(json!({"clone": record, "served": is_up, "written_bytes": used, "reason": reason}));
    }
    if !args.serve && values.iter().any(|value| value["served"] == false) {
        text.push_str("next: tintype clones --serve\n");
    }
    session.output.result(&text, &json!({"clones": values}));
    Ok(if failed > 0 { Exit::Partly } else { Exit::Done })
}

/// Starts the process that serves it, with the repository and the keys that it was made with, whatever this command line
/// says; returns its number.
pub(super) async fn serve(session: &Session, record: &CloneRecord) -> Result<u32, Failure> {
    let mut command = daemon()?;
    command.args(["--repository", &record.repository, "--clone", &record.id.to_string()]);
    let options = [("--config", &record.config), ("--password-file", &record.password_file), ("--key-file", &record.key_file)];
    for (option, path) in options {
        if let Some(path) = path {
            command.arg(option).arg(path);
        }
    }
    start(session, command).await
}

/// Takes a clone away. What was written to it is lost, so that is said first.
pub async fn unclone(session: &Session, args: UncloneArgs) -> Result<Exit, Failure> {
    let records = CloneRecords::open(session)?;
    let record = records.at(&place(&args.directory)?)?;
    let (place, used) = (record.mountpoint.display(), used_bytes(&record.upper));
    if let Some(links) = record.links.as_ref().filter(|links| links.directory.exists() && !links.are_gone(&record.mountpoint)) {
        let directory = links.directory.display();
        return Err(Failure::usage(format!("{place} is what links of {directory} lead to"))
            .hint(format!("tintype hydrate {directory} makes files of them; it goes away by itself then")));
    }
    if !args.yes {
        let text = format!(
            "{place} is a clone of {}\nwould be unmounted, and {} that were written to it deleted with {}\nnext: tintype unclone {place} --yes\n",
            record.source(),
            size(used),
            record.upper.display()
        );
        session.output.result(&text, &json!({"clone": record, "written_bytes": used}));
        return Ok(Exit::Nothing);
    }
    if absolute_url(session.url()?) != record.repository {
        return Err(Failure::usage(format!(
            "{place} is of the repository {}, and that one pins its snapshot",
            record.repository
        ))
        .hint(format!("say --repository {}", record.repository)));
    }
    let repository = session.repository().await?;
    unmount(&record).await?;
    let _held = let_go(&record).await?;
    forget(&records, &repository, &record).await?;
    session.output.result(&format!("{place} is no clone any more; {} are free again\n", size(used)), &json!({"clone": record}));
    Ok(Exit::Done)
}

/// Unmounts it; one that is not mounted is fine.
pub(super) async fn unmount(record: &CloneRecord) -> Result<(), Failure> {
    let mountpoint = record.mountpoint.clone();
    let unmounted = tokio::task::spawn_blocking(move || mount::unmount(&mountpoint))
        .await
        .map_err(|error| Failure::new("internal", error.to_string()))?;
    match unmounted {
        Ok(_) | Err(MountError::NotMounted { .. } | MountError::NoDirectory { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until nobody serves it: who did makes the last writes durable first. Nobody else does while the result is held.
pub(super) async fn let_go(record: &CloneRecord) -> Result<Option<File>, Failure> {
    match lock_soon(&record.upper, PATIENCE).await {
        // An unclone that was interrupted got that far.
        Err(failure) if failure.code == "not_found" => Ok(None),
        result => result.map(Some),
    }
}
