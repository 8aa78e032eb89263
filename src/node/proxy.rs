//! The Dynomite in front of a store: down before it, up when everything has loaded, and believed only when seen.

use std::time::Duration;

use tokio::time::Instant;

use super::restore_error::RestoreError;
use super::servers::{ServerLimits, run};
use crate::driver::dynomite::Admin;
use crate::driver::{DriverError, ProxySite};

/// How often its state is looked at.
const POLL: Duration = Duration::from_millis(100);

/// A Dynomite of this host and its commands.
#[derive(Debug)]
pub(super) struct Proxy {
    node: String,
    stop: Vec<String>,
    start: Vec<String>,
    admin: Admin,
    limits: ServerLimits,
}

/// What a restore has done with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum ProxyStep {
    /// It is as it was found.
    #[default]
    Untouched,
    /// Its stop was tried.
    Stopped,
    /// Its start was tried.
    Started,
}

impl Proxy {
    /// One that can be stopped and started; without both commands it is left alone, as the plan says.
    pub fn of(node: &str, site: &ProxySite, limits: &ServerLimits) -> Option<Self> {
        let admin = admin(node, site).filter(|_| !site.stop.is_empty() && !site.start.is_empty())?;
        Some(Self { node: node.to_owned(), stop: site.stop.clone(), start: site.start.clone(), admin, limits: limits.clone() })
    }

    /// Runs its stop command, also where it may be down already, and returns when nobody listens any more.
    pub async fn stop(&self) -> Result<(), RestoreError> {
        if let Err(error) = run(&self.node, "stop_proxy command", &self.stop, self.limits.command).await {
            // Many a script fails where there is nothing to stop, as after a disaster.
            if !matches!(self.admin.state().await, Ok(None)) {
                return Err(error);
            }
            tracing::info!(node = self.node, %error, "its Dynomite is down, whatever its stop_proxy command says");
        }
        let what = format!("its Dynomite did not end: somebody listens at {}", self.admin.base());
        self.wait(|state| matches!(state, Ok(None)), what, self.limits.gone).await
    }

    /// Runs its start command and waits until it answers.
    pub async fn start(&self) -> Result<(), RestoreError> {
        run(&self.node, "start_proxy command", &self.start, self.limits.command).await?;
        let what = format!("its Dynomite did not answer at {} after its start; look at its log and at admin", self.admin.base());
        self.wait(|state| matches!(state, Ok(Some(_))), what, self.limits.answer).await
    }

    /// It answers at its admin port.
    pub async fn answers(&self) -> bool {
        self.admin.state().await.is_ok_and(|state| state.is_some())
    }

    async fn wait(
        &self,
        is_so: impl Fn(&Result<Option<String>, DriverError>) -> bool,
        what: String,
        limit: Duration,
    ) -> Result<(), RestoreError> {
        let until = Instant::now() + limit;
        while !is_so(&self.admin.state().await) {
            if Instant::now() >= until {
                return Err(RestoreError::DeadlineExceeded { node: self.node.clone(), what, limit });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

/// Whether the Dynomite of a site answers at its admin port.
pub(super) async fn answers(node: &str, site: &ProxySite) -> bool {
    match admin(node, site) {
        Some(admin) => admin.state().await.is_ok_and(|state| state.is_some()),
        None => false,
    }
}

fn admin(node: &str, site: &ProxySite) -> Option<Admin> {
    let made = Admin::new(node, &site.admin);
    made.inspect_err(|error| tracing::warn!(node, %error, "whether its Dynomite runs is not seen")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_that_fails_is_fine_where_nobody_listens_and_only_there() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let site = ProxySite {
            admin: format!("http://{}", listener.local_addr().expect("an address")),
            stop: vec!["false".to_owned()],
            start: vec!["true".to_owned()],
            ..ProxySite::default()
        };
        let proxy = Proxy::of("n", &site, &ServerLimits::default()).expect("has both commands");
        // It hangs up on everybody, and listens.
        let answering = std::thread::spawn(move || drop(listener.accept()));
        let error = proxy.stop().await.expect_err("it listens").to_string();
        assert!(error.contains("stop_proxy command"), "{error}");
        answering.join().expect("ends");
        proxy.stop().await.expect("nobody listens");
    }
}
