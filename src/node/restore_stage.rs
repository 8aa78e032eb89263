//! The first step of a node's restore: what will take the directory's place is made beside it, by copy, by links, or as a
//! link to a clone. Nothing of the target is touched.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::fresh_directory::{FreshDirectory, Owner, sync_directory};
use super::journal::{RestoreRecord, Step, inode};
use super::proxy::ProxyStep;
use super::restore::{LocalRestore, Working};
use super::restore_copy::{PlaceOptions, PlaceReceipt, place};
use super::restore_error::{RestoreError, blocking};
use super::restore_link::fit_clone;
use super::swap::note;
use crate::model::names::TreePath;
use crate::model::restore_plan::{Content, Method, NodePlan};
use crate::repo::{NodeTree, RepoError, SnapshotSource};

impl LocalRestore {
    /// Places the files beside the data directory, going on from what an interrupted restore of the same has left.
    ///
    /// When the store of the snapshot broke or it was given up, what was placed is left for the next attempt; on any other
    /// error nothing is.
    pub async fn stage(
        &self,
        plan: &NodePlan,
        source: Arc<dyn SnapshotSource>,
        tree: NodeTree,
        now_us: i64,
    ) -> Result<PlaceReceipt, RestoreError> {
        let lock = self.state.lock_soon(&plan.directory).await?;
        let shown = format!("{}/{}/{}", tree.snapshot.cluster, tree.snapshot.date, tree.manifest.node);
        let mut record = RestoreRecord::new(plan, &self.cluster, shown, tree.snapshot.uuid, now_us)?;
        if self.records()?.iter().any(|left| left.is_of(plan.id) && !left.is_begun()) {
            let reason = format!("restore {} is past placing: the process that carries it out was restarted", plan.id);
            return Err(RestoreError::refused(&self.node, reason));
        }
        for mut left in self.state.records()?.into_iter().filter(|left| left.directory == plan.directory) {
            match left.step {
                Step::Swapped | Step::Checked | Step::RolledBack => {}
                Step::Staging | Step::Staged if left.is_same(&record) && left.method != Method::Clone => {
                    record = RestoreRecord {
                        old: record.old,
                        new: None,
                        begun_at: now_us,
                        restore: record.restore,
                        is_over_hosts: record.is_over_hosts,
                        was_stopped: false,
                        ..left
                    };
                }
                Step::Staging | Step::Staged => self.let_go(&mut left).await?,
                _ => {
                    return Err(RestoreError::refused(
                        plan.directory.display().to_string(),
                        format!("the restore {} of it was interrupted and not recovered", left.id),
                    ));
                }
            }
        }
        note(&self.state, &mut record, Step::Staging, &self.steps)?;
        let mut working = self.working.lock().await;
        let record = &mut working.insert(Working { record, _lock: lock, proxy: ProxyStep::default() }).record;
        let placed = self.serve_and_place(plan, source, tree, record).await;
        match &placed {
            Ok(_) | Err(RestoreError::Interrupted { .. }) => {}
            Err(RestoreError::Repo(RepoError::Object(_)) | RestoreError::GivenUp) => *working = None,
            Err(_) => {
                let cleared = self.let_go(record).await;
                *working = None;
                cleared?;
            }
        }
        placed
    }

    /// What links lead to is served before they are made.
    async fn serve_and_place(
        &self,
        plan: &NodePlan,
        source: Arc<dyn SnapshotSource>,
        tree: NodeTree,
        record: &mut RestoreRecord,
    ) -> Result<PlaceReceipt, RestoreError> {
        match plan.method {
            _ if plan.content == Content::Emptied => self.place(plan, source, tree, None, record).await,
            Method::Copy => self.place(plan, source, tree, None, record).await,
            Method::Link => {
                let host = self.host()?;
                let served = host.serve(plan, &tree).await?;
                let placed = match self.place(plan, source, tree, Some(&served), record).await {
                    Ok(receipt) => host.placed(plan, &served).await.map(|()| receipt),
                    failed => failed,
                };
                if placed.is_err() {
                    host.release(&served).await;
                }
                placed
            }
            Method::Clone => self.place_clone(plan, tree, record).await,
        }
    }

    /// Makes a clone beside the directory, and the link to it that takes the directory's place.
    async fn place_clone(
        &self,
        plan: &NodePlan,
        tree: NodeTree,
        record: &mut RestoreRecord,
    ) -> Result<PlaceReceipt, RestoreError> {
        let host = self.host()?;
        let place = host.clone_place(plan)?;
        // Known before it is there, so that it is taken away whatever happens.
        record.clone = Some(place.clone());
        note(&self.state, record, Step::Staging, &self.steps)?;
        host.make_clone(plan, &tree, &place).await?;
        let totals = tree.manifest.totals;
        let (fit, fresh, owner) = (plan.fit.clone(), record.fresh.clone(), plan.owner);
        blocking("restore", move || {
            let meta = place.metadata().map_err(RestoreError::file("look at", &place))?;
            let owner = owner.unwrap_or((meta.uid(), meta.gid()));
            let is_root = rustix::process::geteuid().is_root();
            let whose = if is_root { Owner::Fixed(owner.0, owner.1) } else { Owner::Ourselves };
            let clone = FreshDirectory::open(&place, whose, None)?;
            let modified_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
            fit_clone(&clone, &fit, (owner, modified_ns))?;
            std::os::unix::fs::symlink(&place, &fresh).map_err(RestoreError::file("link", &fresh))
        })
        .await?;
        if let Some(parent) = record.fresh.parent() {
            sync_directory(parent)?;
        }
        record.new = inode(&record.fresh)?;
        note(&self.state, record, Step::Staged, &self.steps)?;
        Ok(PlaceReceipt { linked_files: totals.files, linked_bytes: totals.total_bytes, ..PlaceReceipt::default() })
    }

    async fn place(
        &self,
        plan: &NodePlan,
        source: Arc<dyn SnapshotSource>,
        tree: NodeTree,
        links: Option<&Path>,
        record: &mut RestoreRecord,
    ) -> Result<PlaceReceipt, RestoreError> {
        let is_root = rustix::process::geteuid().is_root();
        let owner = match plan.owner {
            Some((uid, gid)) if is_root => Owner::Fixed(uid, gid),
            None if is_root => Owner::AsCaptured,
            _ => Owner::Ourselves,
        };
        let like = plan.owner.is_some().then_some(plan.directory.as_path());
        let root_mode = like.and_then(|path| path.metadata().ok()).map(|meta| meta.mode());
        let fresh = Arc::new(match inode(&record.fresh)? {
            Some(_) => FreshDirectory::adopt(&record.fresh, owner, like)?,
            None => FreshDirectory::create(&record.fresh, owner, like)?,
        });
        let options =
            PlaceOptions { fit: Some(&plan.fit), root_mode, old: Some(&plan.directory), links, runs: self.runs.clone() };
        let receipt = match plan.content {
            // What is dropped is at most one call behind, and writes nothing but what belongs where it writes it.
            Content::Restored => tokio::select! {
                placed = place(source, tree, fresh, options, self.progress.clone()) => placed?,
                given_up = self.until_given_up() => return Err(given_up),
            },
            Content::Emptied => place_nothing(&fresh, root_mode)?,
        };
        if let Some(parent) = record.fresh.parent() {
            sync_directory(parent)?;
        }
        record.new = inode(&record.fresh)?;
        note(&self.state, record, Step::Staged, &self.steps)?;
        Ok(receipt)
    }
}

/// A replica's directory: what it carries over comes later, and everything else from its master.
fn place_nothing(fresh: &FreshDirectory, mode: Option<u32>) -> Result<PlaceReceipt, RestoreError> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now_ns = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    fresh.keep_only(&TreePath::root(), &HashSet::new())?;
    fresh.finish_directory(&TreePath::root(), mode.unwrap_or(0o750), (0, 0), now_ns)?;
    Ok(PlaceReceipt::default())
}
