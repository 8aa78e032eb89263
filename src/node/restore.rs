//! One node of a restore on this host, step by step: inspect, stage, stop, swap, start, check, and the ways back.
//!
//! **Invariants.** Until the swap the old directory is not touched; after it either the old or the restored one is in
//! place whole. A step writes its record before it begins. Nothing is deleted but what a restore made or set aside.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Mutex, watch};

use super::journal::{RestoreRecord, StateDirectory, Step, TargetLock};
use super::mount_host::MountHost;
use super::place_file::{PlaceProgress, RunLimit};
use super::proxy::{Proxy, ProxyStep, answers};
use super::restore_error::{RestoreError, blocking};
use super::servers::{Server, ServerLimits};
use super::site::{carry_over, inspect_directory, used_bytes};
use super::swap::{Steps, note, settle, swap};
use crate::driver::NodeSite;
use crate::driver::control::StoreControl;
use crate::model::manifest::KeyCounts;
use crate::model::restore_plan::{Content, DirectoryFacts, Guard, NodePlan, ProxyFacts, ServerFacts, StoreLayout, TargetFacts};

/// What was compared after the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReceipt {
    /// Keys that the server loaded, those that it passed over as expired included; `None` where it was not started.
    pub keys: Option<u64>,
    /// Whether they were compared with the snapshot's count.
    pub is_compared: bool,
}

/// A node whose files are on this host.
#[derive(Debug)]
pub struct LocalRestore {
    pub(super) cluster: String,
    pub(super) node: String,
    pub(super) site: NodeSite,
    pub(super) server: Option<Server>,
    pub(super) proxy: Option<Proxy>,
    pub(super) state: StateDirectory,
    pub(super) host: Option<Arc<dyn MountHost>>,
    pub(super) steps: Arc<Steps>,
    pub(super) progress: Arc<PlaceProgress>,
    pub(super) runs: RunLimit,
    given_up: watch::Sender<bool>,
    pub(super) working: Mutex<Option<Working>>,
}

#[derive(Debug)]
pub(super) struct Working {
    pub(super) record: RestoreRecord,
    pub(super) _lock: TargetLock,
    /// What became of the Dynomite in front of it.
    pub(super) proxy: ProxyStep,
}

impl LocalRestore {
    /// A configured node. `control` is absent for stores that are no servers (plain directories), `host` where nothing is
    /// served on this host.
    pub fn new(
        cluster: &str,
        node: &str,
        site: NodeSite,
        control: Option<Arc<dyn StoreControl>>,
        state: StateDirectory,
        host: Option<Arc<dyn MountHost>>,
        limits: ServerLimits,
    ) -> Self {
        let proxy = site.proxy.as_ref().and_then(|proxy| Proxy::of(node, proxy, &limits));
        let server = control.map(|control| Server {
            node: node.to_owned(),
            control,
            stop: site.stop.clone(),
            start: site.start.clone(),
            limits,
        });
        Self {
            cluster: cluster.to_owned(),
            node: node.to_owned(),
            site,
            server,
            proxy,
            state,
            host,
            steps: Arc::default(),
            progress: Arc::default(),
            runs: RunLimit::default(),
            given_up: watch::Sender::default(),
            working: Mutex::new(None),
        }
    }

    /// With runs that it shares with other nodes.
    pub fn sharing(self, runs: RunLimit) -> Self {
        Self { runs, ..self }
    }

    /// Its name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Counts while [`Self::stage`] runs.
    pub fn progress(&self) -> Arc<PlaceProgress> {
        self.progress.clone()
    }

    /// Ends [`Self::stage`], now or later, with [`RestoreError::GivenUp`], also while the snapshot's store does not answer.
    pub fn give_up(&self) {
        self.given_up.send_replace(true);
    }

    pub(super) async fn until_given_up(&self) -> RestoreError {
        let mut given_up = self.given_up.subscribe();
        let _always_open = given_up.wait_for(|is_given_up| *is_given_up).await;
        RestoreError::GivenUp
    }

    /// Looks, and touches nothing. `stored` is the layout of what is to be restored, for servers that cannot tell theirs.
    pub async fn inspect(&self, stored: Option<StoreLayout>) -> TargetFacts {
        let mut facts = TargetFacts {
            node: self.node.clone(),
            has_stop: !self.site.stop.is_empty(),
            has_start: !self.site.start.is_empty(),
            guard: Guard::of_start(&self.site.start, self.site.data_directory.as_deref()),
            ..TargetFacts::default()
        };
        if let Some(proxy) = &self.site.proxy {
            facts.proxy = Some(ProxyFacts {
                place: proxy.place.clone(),
                has_stop: !proxy.stop.is_empty(),
                has_start: !proxy.start.is_empty(),
                answers: answers(&self.node, proxy).await,
            });
        }
        if let Some(server) = &self.server {
            match server.control.look().await {
                Ok(seen) => facts.server = seen,
                Err(error) => facts.server_fault = Some(error.to_string()),
            }
        }
        if let Some(seen) = &mut facts.server
            && let Some(directory) = &seen.directory
        {
            // Its own spelling may lead through links.
            seen.directory = Some(directory.canonicalize().unwrap_or_else(|_| directory.clone()));
        }
        if let Some(path) = self.site.data_directory.clone() {
            let layout = facts
                .server
                .as_ref()
                .filter(|server| !server.is_loading)
                .map(ServerFacts::layout)
                .or(stored)
                .filter(|_| self.server.is_some());
            let (looked, state) = (path.clone(), self.state.clone());
            let is_clone = self.clone_at(&path).is_some();
            let look = move || {
                let mut seen = inspect_directory(&looked, layout.as_ref(), is_clone)?;
                for left in state.records()?.into_iter().filter(|left| left.is_begun() && left.directory == seen.resolved) {
                    seen.begun_bytes += if left.clone.is_some() { 0 } else { used_bytes(&left.fresh) };
                }
                seen.free_bytes = seen.free_bytes.saturating_add(seen.begun_bytes);
                Ok(seen)
            };
            facts.directory = Some(match blocking("restore", look).await {
                Ok(seen) => seen,
                // A refusal of the plan, told with all others.
                Err(error) => {
                    DirectoryFacts { resolved: path.clone(), path, fault: Some(error.to_string()), ..DirectoryFacts::default() }
                }
            });
        }
        // It works where the link leads to, which is the same.
        if let (Some(seen), Some(directory)) = (&mut facts.server, &facts.directory)
            && seen.directory.is_some()
            && seen.directory == directory.resolved.canonicalize().ok()
        {
            seen.directory = Some(directory.resolved.clone());
        }
        facts
    }

    /// The clone that a link at `path` leads to.
    fn clone_at(&self, path: &Path) -> Option<PathBuf> {
        let host = self.host.as_ref()?;
        std::fs::read_link(path).ok().filter(|target| host.is_clone(target))
    }

    /// Deletes what is aside, clones that are not in place among it, and forgets the restore.
    pub(super) async fn let_go(&self, record: &mut RestoreRecord) -> Result<(), RestoreError> {
        if !matches!(record.step, Step::Swapping | Step::RollingBack) {
            // Said before anything is gone: it can only be settled from now on.
            note(&self.state, record, Step::Settling, &self.steps)?;
        }
        let in_place = self.clone_at(&record.directory);
        let aside = [record.clone.clone(), self.clone_at(&record.fresh), self.clone_at(&record.before)];
        let is_settling = record.step == Step::Settling;
        for place in aside.into_iter().flatten().filter(|place| is_settling && in_place.as_ref() != Some(place)) {
            self.host()?.remove_clone(&place).await?;
        }
        let (state, steps, mut now) = (self.state.clone(), self.steps.clone(), record.clone());
        *record = blocking("restore", move || settle(&state, &mut now, &steps).map(|()| now)).await?;
        Ok(())
    }

    pub(super) fn host(&self) -> Result<&Arc<dyn MountHost>, RestoreError> {
        self.host.as_ref().ok_or_else(|| RestoreError::refused(&self.node, "nobody serves snapshots on this host"))
    }

    /// Stops the server, saving into the directory that is set aside where the plan says so; before it the Dynomite that
    /// writes to it.
    pub async fn stop(&self, plan: &NodePlan) -> Result<(), RestoreError> {
        if let Some(proxy) = &self.proxy {
            self.note_proxy(ProxyStep::Stopped).await;
            proxy.stop().await?;
        }
        let Some(server) = &self.server else { return Ok(()) };
        match server.running(&plan.directory).await? {
            None => Ok(()),
            Some(now) => {
                let before = plan
                    .before
                    .as_ref()
                    .ok_or_else(|| RestoreError::refused(&self.node, "it was started since the plan was made"))?;
                if now.role != before.role || now.slots != before.slots {
                    return Err(RestoreError::refused(&self.node, "its role or its slots changed since the plan was made"));
                }
                // Said before it is tried: a stop that timed out may still happen, and who tried it may die.
                let state = self.state.clone();
                let noted = self.with_record(move |record| {
                    record.was_stopped = true;
                    state.write(record)
                });
                noted.await?;
                server.stop(&now, plan.save_first).await
            }
        }
    }

    /// Said before it is tried: what timed out may still happen.
    async fn note_proxy(&self, step: ProxyStep) {
        if let Some(working) = self.working.lock().await.as_mut() {
            working.proxy = step;
        }
    }

    /// In front of a store that runs on as it did: what fails is told, and the cause of all this comes first.
    pub(super) async fn start_proxy(&self) {
        if let Some(proxy) = &self.proxy
            && let Err(error) = proxy.start().await
        {
            tracing::error!(node = %self.node, %error, "its Dynomite is down");
        }
    }

    /// Puts the restored directory in place. The server must be down, and is looked for again right before.
    pub async fn swap(&self, plan: &NodePlan) -> Result<(), RestoreError> {
        if let Some(server) = &self.server {
            server.is_still_stopped().await?;
        }
        let (state, steps, plan) = (self.state.clone(), self.steps.clone(), plan.clone());
        self.with_record(move |record| {
            carry_over(&plan.directory, &record.fresh, &plan.carried)?;
            // Between this and the next lies no step that could be mistaken: both records say which inode is which.
            swap(&state, record, &steps)
        })
        .await
    }

    async fn with_record<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut RestoreRecord) -> Result<T, RestoreError> + Send + 'static,
    ) -> Result<T, RestoreError> {
        let mut working = self.working.lock().await;
        let current = working.as_mut().ok_or_else(|| RestoreError::refused(&self.node, "nothing was staged"))?;
        let mut record = current.record.clone();
        let (done, record) = tokio::task::spawn_blocking(move || (work(&mut record), record))
            .await
            .map_err(|error| RestoreError::refused(&self.node, error.to_string()))?;
        current.record = record;
        done
    }

    /// Starts the server and waits until it has loaded; `None` where it is left to the operator.
    pub async fn start(&self, plan: &NodePlan) -> Result<Option<ServerFacts>, RestoreError> {
        let Some(server) = self.server.as_ref().filter(|_| plan.start) else { return Ok(None) };
        server.is_still_stopped().await?;
        server.start(&plan.directory).await.map(Some)
    }

    /// Compares what was loaded with what was stored.
    pub async fn check(&self, plan: &NodePlan) -> Result<CheckReceipt, RestoreError> {
        let Some(server) = self.server.as_ref().filter(|_| plan.start) else { return Ok(CheckReceipt::default()) };
        let wrong = |reason: String| RestoreError::Wrong { node: self.node.clone(), reason };
        let mut now = server.wait_loaded(&plan.directory).await?;
        if plan.content == Content::Emptied {
            let now = server.wait_synchronised(&plan.directory).await?;
            return Ok(CheckReceipt { keys: Some(now.keys), is_compared: false });
        }
        if now.role != "master" {
            return Err(wrong("it came back as a replica: its master overwrites what was restored".to_owned()));
        }
        if let Some(directory) = &now.directory
            && directory.canonicalize().ok() != plan.directory.canonicalize().ok()
        {
            return Err(wrong(format!("it was started on {}, not on {}", directory.display(), plan.directory.display())));
        }
        let receipt = compare(plan.keys, &now).map_err(wrong)?;
        if let Some(before) = plan.before.as_ref().filter(|before| before.in_cluster && before.cluster_ok) {
            now = server.wait_cluster(&before.slots).await?;
            tracing::info!(node = %self.node, keys = now.keys, "the cluster is well again");
        }
        Ok(receipt)
    }

    /// Looks again after twice the time in which a cluster fails a master over. Now that all nodes have loaded and were
    /// compared, clients may come again: the Dynomite in front of it is started.
    pub async fn confirm(&self, plan: &NodePlan) -> Result<(), RestoreError> {
        let before = plan.before.as_ref().filter(|before| before.in_cluster && plan.content == Content::Restored);
        if let (Some(server), Some(before)) = (self.server.as_ref().filter(|_| plan.start), before) {
            tokio::time::sleep(before.node_timeout() * 2).await;
            server.is_still_master(before).await?;
        }
        if let Some(proxy) = self.proxy.as_ref().filter(|_| plan.start) {
            self.note_proxy(ProxyStep::Started).await;
            proxy.start().await?;
        }
        Ok(())
    }

    /// Ends the restore: there is no [`Self::undo`] after it.
    pub async fn finish(&self) -> Result<(), RestoreError> {
        let (state, steps) = (self.state.clone(), self.steps.clone());
        let noted = self.with_record(move |record| {
            record.was_stopped = false;
            note(&state, record, Step::Checked, &steps)
        });
        noted.await?;
        *self.working.lock().await = None;
        Ok(())
    }
}

/// Whether what was loaded can be what was stored.
fn compare(stored: Option<KeyCounts>, now: &ServerFacts) -> Result<CheckReceipt, String> {
    let loaded = now.loaded_keys.map(|keys| keys + now.loaded_expired.unwrap_or(0));
    let Some(stored) = stored else {
        // With append-only files the server counts those of the base alone.
        let keys = loaded.filter(|_| !now.layout().has_append_only).unwrap_or(now.keys);
        return Ok(CheckReceipt { keys: Some(keys), is_compared: false });
    };
    if loaded == Some(stored.total) {
        return Ok(CheckReceipt { keys: loaded, is_compared: true });
    }
    // Append-only files, and servers before 7.0: what is there, with room for keys whose time has come since.
    let tells = loaded.is_some() && !now.layout().has_append_only;
    let least = stored.total.saturating_sub(stored.volatile.max(stored.expired));
    if !tells && (least..=stored.total).contains(&now.keys) {
        return Ok(CheckReceipt { keys: Some(now.keys), is_compared: true });
    }
    let found = if tells { loaded.unwrap_or(now.keys) } else { now.keys };
    Err(format!("it loaded {found} keys, and the snapshot holds {}", stored.total))
}
