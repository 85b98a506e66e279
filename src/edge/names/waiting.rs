//! Requests that wait for an agent to reconnect.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::registry::Registry;
use super::tunnel::LiveTunnel;
use crate::edge::fault::Fault;
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::client::Client;
use crate::edge::visitors::fair_share::FairShare;

/// Requests whose agent is away, which wait for a limited time, and are limited in number and size.
pub struct WaitingRequests {
    registry: Registry,
    max_wait: Duration,
    requests: Semaphore,
    bytes: Semaphore,
    per_tunnel: usize,
    /// Shares of the clients in the waiting requests.
    share: Mutex<FairShare>,
}

/// A client's share for one waiting request, returned when this is dropped.
struct ClientShare<'a> {
    share: &'a Mutex<FairShare>,
    client: Client,
}

impl WaitingRequests {
    /// Create an empty set of waiting requests for the names of `registry`.
    pub fn new(registry: Registry, max_wait: Duration, limits: &EdgeLimits) -> Self {
        Self {
            registry,
            max_wait,
            requests: Semaphore::new(limits.held_requests),
            bytes: Semaphore::new(limits.held_bytes.min(Semaphore::MAX_PERMITS)),
            per_tunnel: limits.held_per_tunnel,
            share: Mutex::new(FairShare::new(limits.held_requests)),
        }
    }

    /// Return the session that serves a name at the moment, if any.
    pub fn present(&self, name: &str) -> Option<Arc<LiveTunnel>> {
        self.registry.serving(name)
    }

    /// Return the session that serves a name, or wait for one. `size` computes how much memory the
    /// request takes, in bytes; it is called only if the request has to wait.
    ///
    /// # Errors
    /// [`Fault::NoSuchTunnel`] if nobody holds the name, [`Fault::AgentOffline`] if its agent does
    /// not connect in max_wait, [`Fault::Busy`] if too much waits already,
    /// [`Fault::TooManyConversations`] if the client already has as many waiting requests as it
    /// leaves free.
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

    /// Wait for another session that serves a name, after the session `broken` was lost.
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

    /// Return until when a request that arrives now may wait.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.max_wait
    }

    /// Reserve a share for a client, when `free` places are left.
    fn share(&self, client: Client, free: usize) -> Result<ClientShare<'_>, Fault> {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        share.acquire_of(free, client.holders())?;
        Ok(ClientShare {
            share: &self.share,
            client,
        })
    }

    /// Wait until `deadline` for a session that serves a name and is `wanted`.
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
        // A client leaves as many places for this tunnel's other visitors as it has itself.
        let _share = self.share(client, self.per_tunnel.saturating_sub(others))?;
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let _request = self.requests.try_acquire().map_err(|_| Fault::Busy)?;
        let _memory = self.bytes.try_acquire_many(size).map_err(|_| Fault::Busy)?;
        let present = presence.wait_for(|now| now.as_deref().is_some_and(&wanted));
        match timeout_at(deadline, present).await {
            Ok(Ok(tunnel)) => tunnel.clone().ok_or(Fault::Internal),
            // The lease has expired, or the time is over.
            Ok(Err(_)) | Err(_) => Err(Fault::AgentOffline),
        }
    }
}

impl Drop for ClientShare<'_> {
    fn drop(&mut self) {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        share.release(self.client.holders());
    }
}
