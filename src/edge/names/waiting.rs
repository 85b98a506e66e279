//! Requests that wait for an agent to come back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::registry::{LiveTunnel, Registry};
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::client::Client;
use crate::edge::visitors::fair_share::FairShare;
use crate::edge::visitors::http::error_page::Fault;

/// Holds requests, for so long and so many of them.
pub struct Hold {
    registry: Registry,
    time: Duration,
    requests: Semaphore,
    bytes: Semaphore,
    per_tunnel: usize,
    /// Places of clients among the requests.
    share: Mutex<FairShare>,
}

/// A client's place among the held requests, until it is dropped.
struct Held<'a> {
    share: &'a Mutex<FairShare>,
    client: Client,
}

impl Hold {
    /// Hold requests to these names.
    pub fn new(registry: Registry, time: Duration, limits: &EdgeLimits) -> Self {
        Self {
            registry,
            time,
            requests: Semaphore::new(limits.held_requests),
            bytes: Semaphore::new(limits.held_bytes.min(Semaphore::MAX_PERMITS)),
            per_tunnel: limits.held_per_tunnel,
            share: Mutex::new(FairShare::new(limits.held_requests)),
        }
    }

    /// Find the session that serves a name now.
    pub fn present(&self, name: &str) -> Option<Arc<LiveTunnel>> {
        self.registry.serving(name)
    }

    /// Find the session that serves a name, or wait for one. `size` tells how much memory the request
    /// takes; only one that has to wait is asked.
    ///
    /// # Errors
    /// [`Fault::NoSuchTunnel`] if nobody holds the name, [`Fault::AgentOffline`] if its agent does not
    /// come in time, [`Fault::Busy`] if too much is held already, [`Fault::TooManyConversations`] if the client has
    /// more places than it leaves free.
    pub async fn serving(
        &self,
        name: &str,
        client: Client,
        size: impl Fn() -> usize,
    ) -> Result<Arc<LiveTunnel>, Fault> {
        match self.registry.serving(name) {
            Some(tunnel) => Ok(tunnel),
            None => {
                let size = size();
                self.wait(name, client, size, self.deadline(), |_| true)
                    .await
            }
        }
    }

    /// Wait for a session that serves a name in the place of one that broke.
    ///
    /// # Errors
    /// As for [`serving`](Self::serving).
    pub async fn successor(
        &self,
        name: &str,
        client: Client,
        size: usize,
        deadline: Instant,
        broken: &LiveTunnel,
    ) -> Result<Arc<LiveTunnel>, Fault> {
        let other = |tunnel: &LiveTunnel| !tunnel.is_of_session(broken);
        self.wait(name, client, size, deadline, other).await
    }

    /// Return how long a request that arrives now may be held.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.time
    }

    /// Take a place for a client, of so many that are free.
    fn share(&self, client: Client, free: usize) -> Result<Held<'_>, Fault> {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        share.take_of(free, client.holders())?;
        Ok(Held {
            share: &self.share,
            client,
        })
    }

    async fn wait(
        &self,
        name: &str,
        client: Client,
        size: usize,
        deadline: Instant,
        wanted: impl Fn(&LiveTunnel) -> bool,
    ) -> Result<Arc<LiveTunnel>, Fault> {
        let (mut presence, others) = self
            .registry
            .watch(name, self.per_tunnel)
            .ok_or(Fault::NoSuchTunnel)??;
        // A client leaves the other visitors of this tunnel as many places as it has.
        let _share = self.share(client, self.per_tunnel.saturating_sub(others))?;
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let _place = self.requests.try_acquire().map_err(|_| Fault::Busy)?;
        let _room = self.bytes.try_acquire_many(size).map_err(|_| Fault::Busy)?;
        let there = presence.wait_for(|now| now.as_deref().is_some_and(&wanted));
        match timeout_at(deadline, there).await {
            Ok(Ok(tunnel)) => tunnel.clone().ok_or(Fault::Internal),
            // The lease has ended, or the time is over.
            Ok(Err(_)) | Err(_) => Err(Fault::AgentOffline),
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        share.give_back(self.client.holders());
    }
}
