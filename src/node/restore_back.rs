//! The ways back from a node's restore: undone while it runs, by who comes after one that died, rolled back later, or settled.

use uuid::Uuid;

use super::journal::{RestoreRecord, Step};
use super::proxy::ProxyStep;
use super::restore::LocalRestore;
use super::restore_error::{RestoreError, blocking};
use super::servers::working_inode;
use super::swap::swap_back;
use crate::model::restore_plan::NodePlan;

impl LocalRestore {
    /// Gives up, at any point before [`Self::finish`]: the old directory is in place again, and the server runs
    /// again if it ran before. What was placed is deleted once a store may have seen it; until then it is kept for the next
    /// attempt. Fine when nothing was begun.
    pub async fn undo(&self, plan: &NodePlan) -> Result<(), RestoreError> {
        let mut working = self.working.lock().await;
        let Some(current) = working.take() else { return Ok(()) };
        if let Some(proxy) = self.proxy.as_ref().filter(|_| current.proxy == ProxyStep::Started)
            && let Err(error) = proxy.stop().await
        {
            tracing::warn!(node = %self.node, %error, "its Dynomite stays while the directories change back");
        }
        if current.record.step != Step::Staging
            && current.record.step != Step::Staged
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
        let mut record = blocking("restore", move || swap_back(&state, &mut record, &steps).map(|()| record)).await?;
        if let Some(server) = &self.server {
            // Before the restored directory is deleted: nobody may go on in it.
            server.leave_other_directories(&plan.directory).await?;
        }
        if !current.record.is_begun() {
            self.let_go(&mut record).await?;
        }
        let is_touched = current.proxy != ProxyStep::Untouched;
        let mut runs = false;
        if let Some(server) = &self.server {
            if current.was_stopped && plan.start {
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
        if let Some(proxy) = self.proxy.as_ref().filter(|_| is_touched && runs) {
            proxy.start().await?;
        }
        Ok(())
    }

    /// The same for who comes after a process that died in the restore `id`: what that has written down tells how far it was.
    /// `was_stopped`: the server ran before, and was stopped for it.
    pub async fn undo_of_another(&self, id: Uuid, was_stopped: bool) -> Result<(), RestoreError> {
        let found = self.state.in_place(&self.cluster, &self.node)?;
        if found.is_some_and(|record| record.id == id) {
            return self.roll_back(was_stopped).await.map(drop);
        }
        let (Some(server), Some(directory)) = (&self.server, &self.site.data_directory) else { return Ok(()) };
        if was_stopped && !self.site.start.is_empty() && server.control.look().await?.is_none() {
            server.start(directory).await?;
            if let Some(proxy) = &self.proxy {
                proxy.start().await?;
            }
        }
        Ok(())
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
        server.stop(&now, false).await.map(|()| true)
    }

    /// Puts the directory from before the newest restore back; the restored one is kept aside until it is settled.
    /// `None` when there is nothing to go back to. The server runs afterwards if it ran before and can be started.
    /// `was_halted`: it ran, until [`Self::halt`] was called for this.
    pub async fn roll_back(&self, was_halted: bool) -> Result<Option<RestoreRecord>, RestoreError> {
        let Some(found) = self.state.in_place(&self.cluster, &self.node)? else { return Ok(None) };
        let _lock = self.state.lock_soon(&found.directory).await?;
        let mut was_stopped = was_halted;
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
        let stopped = async {
            if let Some(proxy) = &self.proxy {
                proxy.stop().await?;
            }
            match (&self.server, &running) {
                (Some(server), Some(now)) => server.stop(now, true).await.map(|()| true),
                _ => Ok(false),
            }
        };
        match stopped.await {
            Ok(now_stopped) => was_stopped |= now_stopped,
            Err(error) => {
                if running.is_some() {
                    self.start_proxy().await;
                }
                return Err(error);
            }
        }
        let directory = found.directory.clone();
        let (state, steps, mut record) = (self.state.clone(), self.steps.clone(), found);
        let record = blocking("restore", move || swap_back(&state, &mut record, &steps).map(|()| record)).await;
        if let Some(server) = self.server.as_ref().filter(|_| was_stopped) {
            // Also when the swap was refused: then it runs on as it did.
            server.start(&directory).await?;
            if let Some(proxy) = &self.proxy {
                proxy.start().await?;
            }
        }
        record.map(Some)
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
