//! Restores by links: serving what they lead to, and `tintype hydrate`.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use uuid::Uuid;

use super::super::clone::{CloneRecord, CloneRecords};
use super::super::control_args::{CommonArgs, HydrateArgs};
use super::super::failure::{Exit, Failure};
use super::super::guard;
use super::super::linked::{LinkedRestore, WAITS, held_by, let_go, state_at};
use super::super::mount;
use super::super::wiring::Session;
use super::clones;
use crate::model::restore_plan::{Guard, NodePlan};
use crate::node::{MountHost, RestoreError, StateDirectory, links_in_place};
use crate::repo::NodeTree;

/// Between two looks at what hydrates.
const LOOK: Duration = Duration::from_millis(200);

/// How a restore by links goes on once it is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hydration {
    /// Files are made of the links in the background.
    pub is_wanted: bool,
    /// No faster than this.
    pub bytes_per_second: Option<u64>,
}

impl Hydration {
    /// As `restore` has it where nothing is said.
    pub fn wanted() -> Self {
        Self { is_wanted: true, bytes_per_second: None }
    }
}

/// Serves, for `node`, what this host's restores by links lead to.
#[derive(Debug)]
pub struct LinkHost {
    common: CommonArgs,
    hydration: Hydration,
}

impl LinkHost {
    /// With what the command line said.
    pub fn new(session: &Session, hydration: Hydration) -> Arc<Self> {
        Arc::new(Self { common: session.common.clone(), hydration })
    }

    fn session(&self) -> Result<Session, Failure> {
        Session::begin(self.common.clone())
    }

    async fn served(&self, plan: &NodePlan, tree: &NodeTree) -> Result<PathBuf, Failure> {
        let session = self.session()?;
        serve(&session, &plan.directory, plan.owner, tree, self.hydration).await
    }

    async fn are_placed(&self, plan: &NodePlan, served: &Path) -> Result<(), Failure> {
        let records = CloneRecords::open(&self.session()?)?;
        guard(&records, plan, served).await?;
        placed(&records, served)
    }

    async fn cloned(&self, plan: &NodePlan, tree: &NodeTree, place: &Path) -> Result<(), Failure> {
        let session = self.session()?;
        let (records, repository, id) = (CloneRecords::open(&session)?, session.repository().await?, Uuid::now_v7());
        let record = CloneRecord {
            allow_other: rustix::process::geteuid().is_root(),
            owner: plan.owner,
            ..clones::record(&session, id, &tree.snapshot, tree.manifest.node.clone(), place, records.upper(id))?
        };
        // Who finds it while nobody serves it must not be able to start there, as if it were empty.
        let closed = std::fs::DirBuilder::new().mode(if record.allow_other { 0 } else { 0o700 }).create(place);
        closed.map_err(|error| Failure::new("system", format!("{}: {error}", place.display())))?;
        if let Err(failure) = clones::begin(&session, &records, &repository, &record, tree).await {
            let _ours = std::fs::remove_dir(place);
            return Err(failure);
        }
        guard(&records, plan, place).await
    }

    async fn uncloned(&self, place: &Path) -> Result<(), Failure> {
        let session = self.session()?;
        let records = CloneRecords::open(&session)?;
        match records.all()?.into_iter().find(|record| record.mountpoint == place) {
            Some(record) => release(&session, &records, &record).await,
            None => Ok(()),
        }
    }
}

/// Gives the plan's unit its drop-in, where it has one.
async fn guard(records: &CloneRecords, plan: &NodePlan, served: &Path) -> Result<(), Failure> {
    let Guard::Unit(unit) = &plan.guard else { return Ok(()) };
    // Remembered before it is there, so that it is taken away whatever happens.
    records.write(&CloneRecord { unit: Some(unit.clone()), ..records.at(served)? })?;
    guard::install(unit, &plan.directory, served).await
}

fn failed(served: &Path) -> impl FnOnce(Failure) -> RestoreError {
    move |failure| {
        let hint = failure.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        RestoreError::refused(served.display().to_string(), format!("{failure}{hint}"))
    }
}

#[async_trait]
impl MountHost for LinkHost {
    async fn serve(&self, plan: &NodePlan, tree: &NodeTree) -> Result<PathBuf, RestoreError> {
        self.served(plan, tree).await.map_err(failed(&plan.directory))
    }

    async fn placed(&self, plan: &NodePlan, served: &Path) -> Result<(), RestoreError> {
        self.are_placed(plan, served).await.map_err(failed(&plan.directory))
    }

    async fn release(&self, served: &Path) {
        let released = async {
            let session = self.session()?;
            let records = CloneRecords::open(&session)?;
            release(&session, &records, &records.at(served)?).await
        };
        if let Err(failure) = released.await {
            tracing::warn!(%failure, served = %served.display(), "what was served for links stays; the next restore takes it away");
        }
    }

    fn clone_place(&self, plan: &NodePlan) -> Result<PathBuf, RestoreError> {
        let nowhere =
            || RestoreError::refused(plan.directory.display().to_string(), "it has no directory beside which a clone could be");
        guard::clone_place(&plan.directory, plan.id).ok_or_else(nowhere)
    }

    async fn make_clone(&self, plan: &NodePlan, tree: &NodeTree, place: &Path) -> Result<(), RestoreError> {
        self.cloned(plan, tree, place).await.map_err(failed(&plan.directory))
    }

    fn is_clone(&self, place: &Path) -> bool {
        guard::is_clone(place)
    }

    async fn remove_clone(&self, place: &Path) -> Result<(), RestoreError> {
        self.uncloned(place).await.map_err(failed(place))
    }
}

/// Serves a node, read-only, for links of `directory`; returns where.
pub async fn serve(
    session: &Session,
    directory: &Path,
    owner: Option<(u32, u32)>,
    tree: &NodeTree,
    hydration: Hydration,
) -> Result<PathBuf, Failure> {
    let records = CloneRecords::open(session)?;
    let repository = session.repository().await?;
    let id = Uuid::now_v7();
    let mountpoint = guard::place(directory, id)
        .ok_or_else(|| Failure::usage(format!("{}: has no directory beside which it could be served", directory.display())))?;
    let record = CloneRecord {
        // The store's own user has to read it.
        allow_other: rustix::process::geteuid().is_root(),
        owner,
        links: Some(LinkedRestore {
            directory: directory.to_owned(),
            is_placed: false,
            device: 0,
            is_hydrating: hydration.is_wanted,
            bytes_per_second: hydration.bytes_per_second,
        }),
        ..clones::record(session, id, &tree.snapshot, tree.manifest.node.clone(), &mountpoint, records.upper(id))?
    };
    clones::begin(session, &records, &repository, &record, tree).await?;
    Ok(mountpoint)
}

/// All links were made: it ends when nobody needs it any more.
pub fn placed(records: &CloneRecords, served: &Path) -> Result<(), Failure> {
    let mut record = records.at(served)?;
    if let Some(links) = &mut record.links {
        // What is placed beside a directory is on the same disk; what replaces none is there itself.
        let beside = links.directory.parent().unwrap_or(&links.directory).to_owned();
        let here = if links.directory.exists() { links.directory.clone() } else { beside };
        let meta = std::fs::metadata(&here).map_err(|error| Failure::new("system", format!("{}: {error}", here.display())))?;
        links.device = meta.dev();
        links.is_placed = true;
    }
    records.write(&record)
}

/// Takes away what nobody has linked to.
pub async fn release(session: &Session, records: &CloneRecords, record: &CloneRecord) -> Result<(), Failure> {
    clones::unmount(record).await?;
    let _held = clones::let_go(record).await?;
    let_go(session.repository().await?.as_ref(), records, record).await
}

/// Takes away what restores that died before their links were made have left.
pub async fn sweep(session: &Session, state: &StateDirectory) -> Result<(), Failure> {
    let records = CloneRecords::open(session)?;
    for record in records.all()? {
        let Some(links) = record.links.as_ref().filter(|links| !links.is_placed) else { continue };
        // One that is under way holds its directory.
        let Ok(_held) = state.lock(&links.directory, Duration::ZERO) else { continue };
        if records.get(record.id).is_ok_and(|now| now.links.is_some_and(|links| !links.is_placed)) {
            release(session, &records, &record).await?;
        }
    }
    Ok(())
}

/// Makes files of the links of a restored directory, and waits for it.
pub async fn hydrate(session: &Session, args: HydrateArgs) -> Result<Exit, Failure> {
    let records = CloneRecords::open(session)?;
    let directory = args.directory.canonicalize().map_err(|error| {
        Failure::new("system", format!("{}: {error}", args.directory.display())).hint("name a data directory restored by links")
    })?;
    let shown = directory.display();
    let of_directory = |record: &CloneRecord| record.links.as_ref().is_some_and(|links| links.directory == directory);
    let Some(mut record) = records.all()?.into_iter().rfind(of_directory) else {
        session.output.result(&format!("{shown} has no links to a snapshot\n"), &json!({"directory": directory, "links": 0}));
        return Ok(Exit::Nothing);
    };
    let links = {
        let state = StateDirectory::open(&session.state_directory()).map_err(|error| Failure::new("state", error.to_string()))?;
        let _held = state.lock_soon(&directory).await.map_err(|error| {
            Failure::new("busy", error.to_string()).hint("it hydrates by itself once the restore is done; see tintype status")
        })?;
        record = records.get(record.id)?;
        let Some(links) = &mut record.links else { return Ok(Exit::Nothing) };
        links.is_hydrating = true;
        links.bytes_per_second = args.rate.map(|rate| rate.0);
        let links = links.clone();
        records.write(&record)?;
        links
    };
    if !clones::is_served(&record) && !links.are_gone(&record.mountpoint) {
        clones::serve(session, &record).await?;
    }
    let failed = |error: std::io::Error| {
        Failure::new("system", format!("{shown}: {error}")).hint("mount its disk, then run it again; nothing was lost")
    };
    let count = || links_in_place(&directory, &record.mountpoint).map(|links| links.len()).map_err(failed);
    let total = count()?;
    if total == 0 && !links.are_gone(&record.mountpoint) {
        let aside = links.links(&record.mountpoint).map_err(failed)?.len();
        if aside > 0 {
            let text = format!(
                "{shown} has no links; {aside} are in what a rollback has set aside\nnext: tintype settle CLUSTER --yes lets that go\n"
            );
            session.output.result(&text, &json!({"directory": directory, "links": 0, "aside": aside}));
            return Ok(Exit::Nothing);
        }
    }
    if args.detach {
        let text = format!("{shown}: {total} links become files in the background\nnext: tintype status\n");
        session.output.result(&text, &json!({"directory": directory, "links": total}));
        return Ok(Exit::Done);
    }
    let stop = mount::stop_signal();
    tokio::pin!(stop);
    let (bar, mut state, mut said) = (session.output.bar("hydrating"), None, None);
    loop {
        let left = count()?;
        let is_up = clones::is_mounted(&record);
        let now = state_at(&record.mountpoint).filter(|now| state.as_ref() != Some(now));
        if let Some(now) = now {
            bar.set_prefix(now.clone());
            // Without a terminal only what keeps it waiting is worth a line.
            if bar.is_hidden() && now.starts_with(WAITS) {
                session.output.note(&format!("{shown}: {now}"));
            }
            state = Some(now);
        }
        if left == 0 && !is_up {
            session.output.result(
                &format!("{shown}: every file is local, and the snapshot is not needed any more\n"),
                &json!({"directory": directory, "links": 0, "held_by": null}),
            );
            return Ok(Exit::Done);
        }
        if left == 0 && said.as_ref().is_some_and(|since: &std::time::Instant| since.elapsed() > Duration::from_secs(5)) {
            let holders = held_by(&record.mountpoint);
            let text = format!(
                "{shown}: every file is local; {holders} still reads old ones, and the snapshot stays pinned until it ends\nnext: restart the store when it suits you; the rest happens by itself\n"
            );
            session.output.result(&text, &json!({"directory": directory, "links": 0, "held_by": holders}));
            return Ok(Exit::Done);
        }
        if left == 0 {
            said.get_or_insert_with(std::time::Instant::now);
        } else if !is_up {
            return Err(Failure::new(
                "away",
                format!("{shown}: {left} links are left, and what they lead to is not served any more"),
            )
            .hint("tintype clones --serve; mount.log in the state directory says why it ended"));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = &mut stop => {
                session.output.note("it goes on in the background; tintype status shows how far it is");
                return Ok(Exit::Done);
            }
        }
    }
}
