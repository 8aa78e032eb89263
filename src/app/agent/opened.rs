//! The repository that a daemon has opened last: a passphrase takes a second of a core, and not at every request.

use std::sync::Arc;

use tokio::sync::Mutex;
use uuid::Uuid;

use super::super::failure::Failure;
use super::super::wiring::Session;
use crate::repo::Repository;

/// Opened at first use, and anew when the configuration says another place or another way to it.
#[derive(Debug, Default)]
pub struct OpenedRepository(Mutex<Option<(String, Arc<Repository>)>>);

impl OpenedRepository {
    /// As the configuration has it now. Where another identity than `wanted` is open, the place is looked at again: somebody may
    /// have made a new repository there.
    pub async fn get(&self, session: &Session, wanted: Option<Uuid>) -> Result<Arc<Repository>, Failure> {
        let mut opened = self.0.lock().await;
        // However it is reached: another endpoint or passphrase is to hold from the next snapshot on.
        let place = format!("{} {:?}", session.url()?, session.config.repository);
        let is_wanted = |known: &str, repository: &Repository| {
            known == place && wanted.is_none_or(|wanted| repository.descriptor().repository == wanted)
        };
        if let Some((_, repository)) = opened.as_ref().filter(|(known, repository)| is_wanted(known, repository)) {
            return Ok(repository.clone());
        }
        let repository = session.repository().await?;
        *opened = Some((place, repository.clone()));
        Ok(repository)
    }
}
