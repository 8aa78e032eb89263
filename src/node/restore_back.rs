//! The ways back from a node's restore: undone while it runs, by who comes after one that died, rolled back later, or settled.

use std::path::Path;

use uuid::Uuid;

use super::journal::{RestoreRecord, Step};
use super::proxy::ProxyStep;
use super::restore::LocalRestore;
use super::restore_error::{RestoreError, blocking};
use super::servers::working_inode;
use super::swap::{note, swap_back};
use crate::model::restore_plan::NodePlan;

impl LocalRestore {
    /// Gives up, at any point before [`Self::finish`]: the old directory is in place again, and the server runs
    /// again if it ran before. What was placed is deleted once a store may have seen it; until then it is kept for the next
    /// attempt. Fine when nothing was begun; after an error it may be tried again.
    pub async fn undo(&self, plan: &NodePlan) -> Result<(), RestoreError> {
        let mut working = self.working.lock().await;
        let Some(current) = working.as_mut() else { return Ok(()) };
        if let Some(proxy) = self.proxy.as_ref().filter(|_| current.proxy == ProxyStep::Started)
            && let Err(error) = proxy.stop().await
        {
            tracing::warn!(node = %self.node, %error, "its Dynomite stays while the directories change back");
        }
        let was_begun = current.record.is_begun();
        if !was_begun
            && let Some(server) = &self.server
            && let Some(now) = server.control.look().await?
        {
            // What runs on the restored data is given up; what a supervisor started on the old data is kept.
            let is_old = current.record.old.is_some() && working_inode(now.pid) == current.record.old;
            if let Err(error) = server.stop(&now, is_old).await {
                tracing::warn!(node = %self.node, %error, "it does not stay down while the directories change back");
            }
        }
        let (state, steps, mut record) = (self.state.clone(), self.steps.clone(), current.record.clone());
        current.record = blocking("restore", move || swap_back(&state, &mut record, &steps).map(|()| record)).await?;
        if let Some(server) = self.server.as_ref().filter(|_| !was_begun) {
            // Before the restored directory is deleted: nobody may go on in it.
            server.leave_other_directories(&plan.directory).await?;
        }
        let is_touched = current.proxy != ProxyStep::Untouched;
        let mut runs = false;
        if let Some(server) = &self.server {
            if current.record.was_stopped && plan.start {
                match server.control.look().await {
                    Ok(Some(_)) => {
                        server.resume().await;
                        server.wait_loaded(&plan.directory).await?
                    }
                    _ => server.start(&plan.directory).await?,
                };
                runs = true;
            } else if is_touched {
                runs = server.running(&plan.directory).await?.is_some();
            }
        }
        // Only in front of what has loaded.
        if let Some(proxy) = self.proxy.as_ref().filter(|_| is_touched && runs)
            && !proxy.answers().await
        {
            proxy.start().await?;
        }
        current.record.was_stopped = false;
        let mut record = current.record.clone();
        *working = None;
        // Nobody waits for that any more.
        let cleared = if was_begun { self.state.write(&record) } else { self.let_go(&mut record).await };
        if let Err(error) = cleared {
            tracing::warn!(node = %self.node, %error, "what was restored is still set aside: `tintype settle` deletes it");
        }
        Ok(())
    }

    /// The same for who comes after a process that died in the restore `id`: what that has written down tells how far it was.
    /// `was_stopped`: the server ran before, and may have been stopped for it.
    pub async fn undo_of_another(&self, id: Uuid, was_stopped: bool) -> Result<(), RestoreError> {
        let found = self.records()?.into_iter().find(|record| record.is_of(id));
        let was_stopped = was_stopped || found.as_ref().is_some_and(|record| record.was_stopped);
        if let Some(found) = found.as_ref().filter(|record| record.step == Step::Swapped) {
            self.back(found.clone(), was_stopped).await?;
            return Ok(());
        }
        let directory = found.as_ref().map(|record| record.directory.clone()).or_else(|| self.site.data_directory.clone());
        if let Some(directory) = directory.filter(|_| was_stopped) {
            self.start_what_is_down(&directory).await?;
        }
        if let Some(found) = found.filter(|record| record.was_stopped) {
            self.state.write(&RestoreRecord { was_stopped: false, ..found })?;
        }
        Ok(())
    }

    /// The server, and then the Dynomite in front of it, where they ran before and do not now.
    async fn start_what_is_down(&self, directory: &Path) -> Result<(), RestoreError> {
        let Some(server) = self.server.as_ref().filter(|_| !self.site.start.is_empty()) else { return Ok(()) };
        if server.running(directory).await?.is_none() {
            server.start(directory).await?;
        }
        if let Some(proxy) = &self.proxy
            && !proxy.answers().await
        {
            proxy.start().await?;
        }
        Ok(())
    }

    /// What a process that died has left in place counts as restored: it was decided so for all nodes.
    pub async fn finish_of_another(&self, id: Uuid) -> Result<(), RestoreError> {
        let found = self.records()?.into_iter().find(|record| record.is_of(id) && record.step == Step::Swapped);
        let Some(mut record) = found else { return Ok(()) };
        let _lock = self.state.lock_soon(&record.directory).await?;
        let was_stopped = std::mem::take(&mut record.was_stopped);
        let (state, steps, directory) = (self.state.clone(), self.steps.clone(), record.directory.clone());
        blocking("restore", move || note(&state, &mut record, Step::Checked, &steps)).await?;
        if was_stopped { self.start_what_is_down(&directory).await } else { Ok(()) }
    }

    /// The restores of this node that can be rolled back or settled, the oldest first.
    pub fn records(&self) -> Result<Vec<RestoreRecord>, RestoreError> {
        let mut records = self.state.records()?;
        records.retain(|record| record.cluster == self.cluster && record.node == self.node);
        Ok(records)
    }

    /// Stops a replica that is about to be rolled back, before its master is; whether it ran.
    pub async fn halt(&self) -> Result<bool, RestoreError> {
        let Some(found) = self.state.in_place(&self.cluster, &self.node)? else { return Ok(false) };
        let Some(server) = self.server.as_ref().filter(|_| !self.site.start.is_empty()) else { return Ok(false) };
        let Some(now) = server.running(&found.directory).await? else { return Ok(false) };
        self.state.write(&RestoreRecord { was_stopped: true, ..found })?;
        server.stop(&now, false).await.map(|()| true)
    }

    /// Starts again what [`Self::halt`] has stopped, where nothing is rolled back after all.
    pub async fn go_on(&self) -> Result<(), RestoreError> {
        match self.state.in_place(&self.cluster, &self.node)? {
            Some(found) if found.was_stopped => {
                self.start_what_is_down(&found.directory).await?;
                self.state.write(&RestoreRecord { was_stopped: false, ..found })
            }
            _ => Ok(()),
        }
    }

    /// Puts the directory from before the restore `id` back, where that is the newest in place; the restored one is kept aside
    /// until it is settled. `None` when there is nothing to go back to. The server runs afterwards if it ran before and can be
    /// started, also where an attempt that died had stopped it.
    pub async fn roll_back(&self, id: Uuid) -> Result<Option<RestoreRecord>, RestoreError> {
        let records = self.records()?;
        if let Some(found) = records.iter().rfind(|record| record.is_in_place()).filter(|record| record.is_of(id)) {
            return self.back(found.clone(), found.was_stopped).await.map(Some);
        }
        // It is back already, by one who died before the server ran again.
        let Some(done) = records.into_iter().find(|record| record.is_of(id) && record.step == Step::RolledBack) else {
            return Ok(None);
        };
        if done.was_stopped {
            self.start_what_is_down(&done.directory).await?;
            self.state.write(&RestoreRecord { was_stopped: false, ..done.clone() })?;
        }
        Ok(Some(done))
    }

    /// Puts the directory from before a restore that is in place back.
    async fn back(&self, mut found: RestoreRecord, mut was_stopped: bool) -> Result<RestoreRecord, RestoreError> {
        let _lock = self.state.lock_soon(&found.directory).await?;
        let running = match &self.server {
            Some(server) => server.running(&found.directory).await?,
            None => None,
        };
        if running.is_some() && self.site.start.is_empty() {
            return Err(RestoreError::refused(
                &self.node,
                "it runs, and no start command is known; set it in the configuration, or stop it first",
            ));
        }
        was_stopped |= running.is_some();
        if found.was_stopped != was_stopped {
            // Said before it is tried: who tried it may die.
            found.was_stopped = was_stopped;
            self.state.write(&found)?;
        }
        let stopped = async {
            if let Some(proxy) = &self.proxy {
                proxy.stop().await?;
            }
            match (&self.server, &running) {
                (Some(server), Some(now)) => server.stop(now, true).await,
                _ => Ok(()),
            }
        };
        if let Err(error) = stopped.await {
            if running.is_some() {
                self.start_proxy().await;
            }
            return Err(error);
        }
        let directory = found.directory.clone();
        let (state, steps) = (self.state.clone(), self.steps.clone());
        let record = blocking("restore", move || swap_back(&state, &mut found, &steps).map(|()| found)).await;
        if let Some(server) = self.server.as_ref().filter(|_| was_stopped) {
            // Also when the swap was refused: then it runs on as it did.
            server.start(&directory).await?;
            if let Some(proxy) = &self.proxy {
                proxy.start().await?;
            }
        }
        let record = RestoreRecord { was_stopped: false, ..record? };
        self.state.write(&record)?;
        Ok(record)
    }

    /// Deletes what restores of this node have set aside. Returns how many were let go.
    pub async fn settle(&self) -> Result<usize, RestoreError> {
        let records = self.records()?;
        let count = records.len();
        for mut record in records {
            let _lock = self.state.lock_soon(&record.directory).await?;
            self.let_go(&mut record).await?;
        }
        Ok(count)
    }
}
