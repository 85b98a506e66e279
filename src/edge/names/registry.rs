//! The registry of names: which agent holds a name, and which session serves it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lease::{AwayReason, Decision, Lease};
use super::lease_file::LeaseFile;
use super::tunnel::{LiveTunnel, Owner};
use crate::auth::Name;
use crate::edge::fault::Fault;
use crate::proto::{AgentId, ClaimMode, Refusal};

/// Watch on the session that serves a name: `None` while the agent is away.
pub type Presence = watch::Receiver<Option<Arc<LiveTunnel>>>;

/// The registry of all names that are held, whether their agents are connected or away.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    leases: Mutex<HashMap<Name, Lease>>,
    /// Time for which a name stays reserved for an agent that is away.
    grace: Duration,
    lease_file: LeaseFile,
}

impl Registry {
    /// Create a registry with the names that an earlier edge held: their agents count as away from
    /// now on.
    pub fn new(grace: Duration, lease_file: LeaseFile, restored: Vec<(Name, Owner)>) -> Self {
        let expires = Instant::now() + grace;
        let leases = restored
            .into_iter()
            .map(|(name, owner)| (name, Lease::reserved(owner, expires)))
            .collect();
        Self(Arc::new(Shared {
            leases: Mutex::new(leases),
            grace,
            lease_file,
        }))
    }

    /// Return the session that serves a name at the moment, if any.
    pub fn serving(&self, name: &str) -> Option<Arc<LiveTunnel>> {
        self.lock().get(name)?.presence.borrow().clone()
    }

    /// Watch which session serves a name; the value is `None` while the agent is away, and the
    /// sender is dropped when the lease ends. Returned with the number of other watchers; `None` if
    /// nobody holds the name.
    ///
    /// # Errors
    /// [`Fault::Busy`] if it has `max_watchers` already.
    pub fn watch(
        &self,
        name: &str,
        max_watchers: usize,
    ) -> Option<Result<(Presence, usize), Fault>> {
        let leases = self.lock();
        let lease = leases.get(name).filter(|lease| !lease.has_expired())?;
        Some(match lease.presence.receiver_count() {
            watching if watching >= max_watchers => Err(Fault::Busy),
            watching => Ok((lease.presence.subscribe(), watching)),
        })
    }

    /// Claim names until the returned values are dropped: all of them or none. A newer session of
    /// an owner takes that owner's names over at once, and the older session is closed.
    ///
    /// # Errors
    /// [`Unclaimed`] if another agent holds one of them, or has it reserved.
    pub fn claim(
        &self,
        wanted: Vec<(Name, LiveTunnel)>,
        mode: ClaimMode,
    ) -> Result<Vec<Claim>, Unclaimed> {
        let mut leases = self.lock();
        let mut competing_sessions = Vec::new();
        for (name, tunnel) in &wanted {
            let Some(lease) = leases.get(name).filter(|lease| !lease.has_expired()) else {
                continue;
            };
            match lease.decide(tunnel, mode, self.0.grace) {
                Decision::Granted => {}
                Decision::IfSilent(rival) => competing_sessions.push((name.clone(), rival)),
                Decision::Refused {
                    holder,
                    may_take_over,
                } => {
                    return Err(Unclaimed::Refused(Refusal::NameTaken {
                        name: name.as_str().into(),
                        holder: holder.into(),
                        may_take_over,
                    }));
                }
            }
        }
        if !competing_sessions.is_empty() {
            return Err(Unclaimed::Contested(competing_sessions));
        }
        let mut changed = false;
        let mut claim = |(name, tunnel): (Name, LiveTunnel)| {
            let (tunnel, mut taken_from) = (Arc::new(tunnel), None);
            changed |= match leases.get_mut(&name) {
                Some(lease) => {
                    let is_other_owner = lease.owner != tunnel.owner;
                    if is_other_owner && !lease.has_expired() && !lease.has_left() {
                        taken_from = Some(lease.owner.agent);
                    }
                    lease.transfer_to(&name, tunnel.clone())
                }
                None => {
                    leases.insert(name.clone(), Lease::live(tunnel.clone()));
                    true
                }
            };
            Claim {
                registry: self.clone(),
                name,
                tunnel,
                taken_from,
                away_reason: Some(AwayReason::Lost),
            }
        };
        let claims = wanted.into_iter().map(&mut claim).collect();
        if changed {
            self.0.lease_file.changed();
        }
        Ok(claims)
    }

    /// Record that another live agent wants a name whose session is alive.
    pub fn contest(&self, name: &Name) {
        if let Some(lease) = self.lock().get_mut(name) {
            lease.contest();
        }
    }

    /// Wait until the names claimed so far would survive a crash.
    pub async fn flushed(&self) {
        self.0.lease_file.flushed().await;
    }

    /// Remove expired leases and keep the lease file up to date, until `end` is cancelled. The file
    /// is written once more after that.
    pub async fn write_loop(self, end: CancellationToken) {
        while !end.is_cancelled() {
            let next = self.expire();
            let expiry = async {
                match next {
                    Some(expiry) => tokio::time::sleep_until(expiry).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = expiry => {}
                () = self.0.lease_file.woken() => {}
                () = end.cancelled() => {}
            }
            self.save().await;
        }
    }

    /// Bring the lease file up to date and stop writing it: it is a successor's from then on.
    #[cfg(unix)]
    pub async fn retire(&self) {
        self.save().await;
        self.0.lease_file.retire(true).await;
    }

    /// Write the lease file again: the successor did not take over.
    #[cfg(unix)]
    pub async fn resume(&self) {
        self.0.lease_file.retire(false).await;
        self.0.lease_file.changed();
    }

    /// Write the lease file, unless it is up to date. Names that agents have left are not included.
    async fn save(&self) {
        let snapshot = || {
            let leases = self.lock();
            let held = leases
                .iter()
                .filter(|(_, lease)| !lease.has_expired() && !lease.has_left());
            held.map(|(name, lease)| (name.clone(), lease.owner))
                .collect()
        };
        self.0.lease_file.save(snapshot).await;
    }

    /// Remove expired leases, and return when the next one expires.
    fn expire(&self) -> Option<Instant> {
        let mut leases = self.lock();
        let before = leases.len();
        leases.retain(|_, lease| !lease.has_expired());
        if leases.len() < before {
            self.0.lease_file.changed();
        }
        leases.values().filter_map(Lease::expires).min()
    }

    /// Record that a session no longer serves a name.
    fn release(&self, name: &Name, tunnel: &Arc<LiveTunnel>, away_reason: Option<AwayReason>) {
        let mut leases = self.lock();
        let Some(lease) = leases.get_mut(name) else {
            return;
        };
        let is_current =
            matches!(&*lease.presence.borrow(), Some(held) if Arc::ptr_eq(held, tunnel));
        if !is_current {
            return;
        }
        match away_reason {
            Some(reason) => lease.set_away(reason, Instant::now() + self.0.grace),
            None => {
                leases.remove(name);
            }
        }
        drop(leases);
        match away_reason {
            // The file contains the lease already, but the writer must learn when it expires.
            Some(AwayReason::Lost) => self.0.lease_file.wake(),
            Some(AwayReason::Left) | None => self.0.lease_file.changed(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Lease>> {
        self.0.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reason why names were not claimed.
pub enum Unclaimed {
    /// The agent must be refused.
    Refused(Refusal),
    /// Live sessions hold these names, and may lose them only if they are silent.
    Contested(Vec<(Name, Arc<LiveTunnel>)>),
}

/// A session's claim on a name. When dropped, the name stays reserved until the agent reconnects,
/// unless a newer session has taken it over.
pub struct Claim {
    registry: Registry,
    name: Name,
    tunnel: Arc<LiveTunnel>,
    /// The other agent that held the name until it was claimed.
    taken_from: Option<AgentId>,
    /// Meaning of the agent's absence once the claim is dropped; `None` frees the name.
    away_reason: Option<AwayReason>,
}

impl Claim {
    /// Return the name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Return the tunnel's number, chosen by the agent.
    pub fn number(&self) -> u32 {
        self.tunnel.number
    }

    /// Return the other agent that held the name until it was claimed.
    pub fn taken_from(&self) -> Option<AgentId> {
        self.taken_from
    }

    /// Release the name because the agent shuts down: any agent may claim it, and requests wait for
    /// this one.
    pub fn release(mut self) {
        self.away_reason = Some(AwayReason::Left);
    }

    /// Free the name because the agent closed the tunnel.
    pub fn free(mut self) {
        self.away_reason = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.registry
            .release(&self.name, &self.tunnel, self.away_reason);
    }
}
