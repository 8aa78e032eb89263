//! Keeping a store from starting while links of its directory lead nowhere: `tintype guard`, and the drop-in that runs it.
//!
//! It works without a configuration and without rights: what it needs to know is in the links themselves, since what they lead
//! to is served in a directory whose name says so.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::control_args::GuardArgs;
use super::failure::{Exit, Failure};
use super::mountpoint::within;
use super::output::Output;
use crate::driver::beneath::open_beneath;
use crate::model::names::TreePath;

/// What is served for links of `/var/lib/redis` is at `/var/lib/.redis.links-` and eight digits.
const LINKS: &str = ".links-";
/// The same of a clone that took its place.
const CLONE: &str = ".clone-";
/// All links together are not waited for longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where drop-ins of this host's units are.
const UNITS: &str = "/etc/systemd/system";
/// The drop-in's own name begins so.
const DROP_IN: &str = "50-tintype-";

/// Where the node is served that links of `directory` lead to.
pub fn place(directory: &Path, id: Uuid) -> Option<PathBuf> {
    beside(directory, LINKS, id)
}

/// Where the clone is that takes the place of `directory`.
pub fn clone_place(directory: &Path, id: Uuid) -> Option<PathBuf> {
    beside(directory, CLONE, id)
}

fn beside(directory: &Path, mark: &str, id: Uuid) -> Option<PathBuf> {
    let name = directory.file_name()?.to_string_lossy();
    // The end of a version 7 identity is random.
    let id = id.simple().to_string();
    Some(directory.parent()?.join(format!(".{name}{mark}{}", &id[24..])))
}

/// A clone that takes the place of a directory has a place like this.
pub fn is_clone(place: &Path) -> bool {
    is_served(place, CLONE)
}

/// A file that a link of `directory` leads to: the place where it is served, beside the directory, and the path there.
fn linked(directory: &Path, target: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut components = target.strip_prefix(directory.parent()?).ok()?.components();
    let served = components.next()?.as_os_str();
    let own = format!(".{}{LINKS}", directory.file_name()?.to_string_lossy());
    let rest = components.as_path();
    let is_plain = rest.components().all(|component| matches!(component, std::path::Component::Normal(_)));
    (is_plain && served.to_string_lossy().starts_with(&own)).then(|| (directory.with_file_name(served), rest.to_owned()))
}

/// Who owns the directory may have made the links, and we may be root: nothing is opened but a file below that place.
fn answers((served, path): &(PathBuf, PathBuf)) -> bool {
    TreePath::new(path.as_os_str().as_bytes().to_vec())
        .is_ok_and(|path| open_beneath(served, Path::new(path.as_os_str())).is_ok())
}

fn is_served(target: &Path, mark: &str) -> bool {
    target.components().any(|component| {
        let name = component.as_os_str().to_string_lossy();
        name.starts_with('.') && name.contains(mark)
    })
}

/// A clone is served: it is the root of a mount, and answers.
fn is_clone_there(directory: PathBuf) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|meta| std::os::unix::fs::MetadataExt::dev(&meta));
    let Ok(place) = directory.canonicalize() else { return false };
    let Some(above) = place.parent() else { return false };
    std::fs::read_dir(&place).is_ok() && matches!((device(&place), device(above)), (Ok(own), Ok(other)) if own != other)
}

/// Refuses while a link leads nowhere; runs the command otherwise, in our place.
pub fn run(output: Output, args: &GuardArgs) -> Result<Exit, Failure> {
    if std::fs::read_link(&args.directory).is_ok_and(|target| is_clone(&target)) {
        let directory = args.directory.clone();
        if !within(PATIENCE, move || is_clone_there(directory)).unwrap_or(false) {
            let message = format!("{}: is a clone, and nobody serves it", args.directory.display());
            return Err(Failure::new("away", message).hint("run `tintype clones --serve`"));
        }
    }
    let (links, broken) = look(&args.directory)?;
    if let Some(first) = broken.first() {
        let shown = args.directory.display();
        let message = format!("{shown}: {} of {links} links lead nowhere, such as {}", broken.len(), first.display());
        return Err(Failure::new("away", message)
            .hint("what they lead to is not served: run `tintype clones --serve`; `tintype status` says more"));
    }
    let Some((program, arguments)) = args.command.split_first() else {
        let text = format!("{}: {links} links lead to a snapshot, and all of them answer\n", args.directory.display());
        output.result(&text, &json!({"directory": args.directory, "links": links}));
        return Ok(Exit::Done);
    };
    let error = Command::new(program).args(arguments).exec();
    Err(Failure::new("system", format!("{program}: {error}")).hint("the command behind -- is the one that starts the store"))
}

/// How many links into what we serve there are, and which of them do not answer.
fn look(directory: &Path) -> Result<(usize, Vec<PathBuf>), Failure> {
    let wrong = |path: &Path, error: std::io::Error| {
        Failure::new("system", format!("{}: {error}", path.display()))
            .hint("name the store's data directory, and run it as somebody who may read all of it")
    };
    let directory = directory.canonicalize().map_err(|error| wrong(directory, error))?;
    let until = Instant::now() + PATIENCE;
    let (mut links, mut broken) = (0, Vec::new());
    let mut waiting = vec![directory.clone()];
    while let Some(inside) = waiting.pop() {
        for entry in std::fs::read_dir(&inside).map_err(|error| wrong(&inside, error))? {
            let entry = entry.map_err(|error| wrong(&inside, error))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(|error| wrong(&inside, error))?);
            if kind.is_dir() {
                waiting.push(path);
            } else if kind.is_symlink()
                && let Some(target) = std::fs::read_link(&path).ok().and_then(|target| linked(&directory, &target))
            {
                links += 1;
                // Opened, since the kernel remembers what a file was also when nobody serves it any more.
                let patience = until.saturating_duration_since(Instant::now());
                if !within(patience, move || answers(&target)).unwrap_or(false) {
                    broken.push(path);
                }
            }
        }
    }
    Ok((links, broken))
}

/// One drop-in for each restore, so that the end of an older one takes nothing away from a newer one.
fn drop_in(unit: &str, served: &Path) -> PathBuf {
    let name = served.file_name().unwrap_or_default().to_string_lossy();
    let id = name.rsplit('-').next().unwrap_or_default().to_owned();
    Path::new(UNITS).join(format!("{unit}.d")).join(format!("{DROP_IN}{id}.conf"))
}

fn drop_in_text(program: &Path, directory: &Path) -> String {
    let quoted = |path: &Path| {
        let text = path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
        format!("\"{text}\"")
    };
    format!(
        "# Made by tintype, and taken away again when it is not needed any more.\n\
         [Unit]\nWants=tintype-clones.service\nAfter=tintype-clones.service\n\n\
         [Service]\nExecStartPre=+{} guard {}\n",
        quoted(program),
        quoted(directory)
    )
}

/// Gives a unit its drop-in.
pub(super) async fn install(unit: &str, directory: &Path, served: &Path) -> Result<(), Failure> {
    let path = drop_in(unit, served);
    let program = std::env::current_exe().map_err(|error| Failure::new("system", format!("this program's own path: {error}")))?;
    // The daemon installs nothing, but is beside the command.
    let text = drop_in_text(&program.with_file_name("tintype"), directory);
    let parent = path.parent().unwrap_or(Path::new(UNITS)).to_owned();
    std::fs::create_dir_all(&parent).and_then(|()| std::fs::write(&path, text)).map_err(|error| {
        Failure::new("system", format!("{}: {error}", path.display()))
            .hint("run it as root, or make `tintype guard DIRECTORY -- COMMAND` its start command")
    })?;
    let reloaded = reload().await;
    if reloaded.is_err() {
        let _taken_back = std::fs::remove_file(&path);
    }
    reloaded
}

/// Takes it away again; one that is gone is fine.
pub(super) async fn remove(unit: &str, served: &Path) -> Result<(), Failure> {
    let path = drop_in(unit, served);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        removed => removed.map_err(|error| Failure::new("system", format!("{}: {error}", path.display())))?,
    }
    if let Some(directory) = path.parent() {
        // Others' drop-ins stay.
        let _not_empty = std::fs::remove_dir(directory);
    }
    reload().await
}

async fn reload() -> Result<(), Failure> {
    let output = tokio::process::Command::new("systemctl").arg("daemon-reload").output().await;
    let said = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Failure::new("system", format!("systemctl daemon-reload: {said}")).hint("is systemd running here?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_for_links_is_known_by_its_name() {
        let place = place(Path::new("/var/lib/redis"), Uuid::now_v7()).expect("has a name");
        assert!(place.to_string_lossy().starts_with("/var/lib/.redis.links-"), "{}", place.display());
        let redis = Path::new("/var/lib/redis");
        let target = |path: &str| linked(redis, Path::new(path)).is_some();
        assert_eq!(linked(redis, &place.join("sub/dump.rdb")), Some((place, "sub/dump.rdb".into())));
        assert!(!target("/var/lib/redis/links-1/dump.rdb") && !target("/tmp/.redis.links-1/x"));
        assert!(!target("/var/lib/.redis.links-1/../../../etc/shadow") && !target("/var/lib/.other.links-1/x"));
    }

    #[test]
    fn a_drop_in_says_a_strange_path_as_systemd_reads_it() {
        let text = drop_in_text(Path::new("/usr/local/bin/tintype"), Path::new("/srv/100% \"mine\""));
        assert!(text.ends_with("ExecStartPre=+\"/usr/local/bin/tintype\" guard \"/srv/100%% \\\"mine\\\"\"\n"), "{text}");
    }

    #[test]
    fn links_that_lead_nowhere_are_counted() {
        let root = tempfile::tempdir().expect("a directory");
        let served = place(&root.path().join("data"), Uuid::now_v7()).expect("has a name");
        std::fs::create_dir_all(root.path().join("data/sub")).expect("makes");
        let link =
            |name: &str, target: &Path| std::os::unix::fs::symlink(target, root.path().join("data").join(name)).expect("links");
        link("a", &served.join("a"));
        link("sub/b", &served.join("b"));
        link("other", Path::new("/nowhere"));
        let data = root.path().join("data");
        assert_eq!(look(&data).map(|(links, broken)| (links, broken.len())).expect("looks"), (2, 2));
        std::fs::create_dir(&served).expect("makes");
        std::fs::write(served.join("a"), "x").expect("writes");
        assert_eq!(look(&data).map(|(links, broken)| (links, broken.len())).expect("looks"), (2, 1));
    }
}
