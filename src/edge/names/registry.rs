//! The edge's live table: which name is whose, and which session serves it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Connection;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lease::{Absence, Decision, Lease};
use super::lease_file::LeaseFile;
use crate::auth::{Name, TokenId};
use crate::edge::visitors::conversations::Published;
use crate::edge::visitors::http::error_page::Fault;
use crate::http::Upgrades;
use crate::proto::{AgentId, ClaimMode, LostSession, Refusal, RunId};
use crate::stream::FlowControl;

/// Who holds a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The token that was shown.
    pub token: TokenId,
    /// The agent that showed it.
    pub agent: AgentId,
}

impl Owner {
    /// Report whether both have shown the same token, and it means something.
    pub fn shares_token(self, other: Self) -> bool {
        self.token == other.token && self.token != TokenId::OPEN
    }
}

/// One public name and the session that serves it.
#[derive(Debug)]
pub struct LiveTunnel {
    /// Who holds the name.
    pub owner: Owner,
    /// Which run of the owner this is.
    pub run: RunId,
    /// Which of the run's sessions this is; a higher one supersedes a lower one.
    pub epoch: u64,
    /// The number that the agent gave the tunnel.
    pub number: u32,
    /// The session's connection.
    pub connection: Connection,
    /// The session's windows.
    pub flow: Arc<FlowControl>,
    /// The session's conversations, of which this tunnel has a share.
    pub conversations: Published,
    /// The number of the worker that the session is on.
    pub worker: usize,
    /// What visitors may switch to.
    pub upgrades: Upgrades,
    /// What the agent says about its earlier sessions.
    pub lost: Arc<[LostSession]>,
}

impl LiveTunnel {
    /// Report whether the agent has said that a request never reached it in an earlier session.
    pub fn never_read(&self, earlier: &LiveTunnel, stream: u64) -> bool {
        let report = self.lost.iter().find(|lost| lost.epoch == earlier.epoch);
        let same_run = self.owner == earlier.owner && self.run == earlier.run;
        same_run && report.is_some_and(|lost| !lost.had_read(stream))
    }

    /// Report whether both belong to the same session.
    pub fn is_of_session(&self, other: &LiveTunnel) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }
}

/// The session that serves a name, or none for as long as the agent is away.
pub type Presence = watch::Receiver<Option<Arc<LiveTunnel>>>;

/// All names that are held, whether their agents are here or away.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    leases: Mutex<HashMap<Name, Lease>>,
    /// How long a name stays reserved for an agent that is away.
    grace: Duration,
    lease_file: LeaseFile,
}

impl Registry {
    /// Begin with the names that an earlier edge held: their agents count as away from now on.
    pub fn new(grace: Duration, lease_file: LeaseFile, kept: Vec<(Name, Owner)>) -> Self {
        let until = Instant::now() + grace;
        let leases = kept
            .into_iter()
            .map(|(name, owner)| (name, Lease::away(owner, until)))
            .collect();
        Self(Arc::new(Shared {
            leases: Mutex::new(leases),
            grace,
            lease_file,
        }))
    }

    /// Return the session that serves a name at the moment, if one does.
    pub fn serving(&self, name: &str) -> Option<Arc<LiveTunnel>> {
        self.lock().get(name)?.presence.borrow().clone()
    }

    /// Follow who serves a name: a session, or none for as long as the agent is away. The sender
    /// goes when the lease ends. Returned with the number of those who follow it already; `None` if nobody holds the
    /// name.
    ///
    /// # Errors
    /// [`Fault::Busy`] if so many follow it already.
    pub fn watch(&self, name: &str, most: usize) -> Option<Result<(Presence, usize), Fault>> {
        let leases = self.lock();
        let lease = leases.get(name).filter(|lease| !lease.is_over())?;
        Some(match lease.presence.receiver_count() {
            watching if watching >= most => Err(Fault::Busy),
            watching => Ok((lease.presence.subscribe(), watching)),
        })
    }

    /// Claim names until the returned values are dropped: all of them or none. The owner's newer
    /// session takes its own names over at once, and the older session is closed.
    ///
    /// # Errors
    /// [`Unclaimed`] if somebody else has one, or is to have it back.
    pub fn claim(
        &self,
        wanted: Vec<(Name, LiveTunnel)>,
        mode: ClaimMode,
    ) -> Result<Vec<Claim>, Unclaimed> {
        let mut leases = self.lock();
        let mut competing_sessions = Vec::new();
        for (name, tunnel) in &wanted {
            let Some(lease) = leases.get(name).filter(|lease| !lease.is_over()) else {
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
                    let is_anothers = lease.owner != tunnel.owner;
                    if is_anothers && !lease.is_over() && !lease.has_left() {
                        taken_from = Some(lease.owner.agent);
                    }
                    lease.pass_to(&name, tunnel.clone())
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
                absence: Some(Absence::Lost),
            }
        };
        let claims = wanted.into_iter().map(&mut claim).collect();
        if changed {
            self.0.lease_file.changed();
        }
        Ok(claims)
    }

    /// Note that somebody wants a name whose session is alive.
    pub fn contest(&self, name: &Name) {
        if let Some(lease) = self.lock().get_mut(name) {
            lease.contest();
        }
    }

    /// Wait until the names that were claimed before will be found again after a crash.
    pub async fn saved(&self) {
        self.0.lease_file.saved().await;
    }

    /// Let go of names whose time is over, and keep the file of the others up to date, until `end`.
    pub async fn keep(self, end: CancellationToken) {
        while !end.is_cancelled() {
            let next = self.expire();
            let due = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.0.lease_file.wanted() => {}
                () = end.cancelled() => {}
            }
            self.save().await;
        }
    }

    /// Bring the file up to date and leave it to a successor from then on.
    #[cfg(unix)]
    pub async fn retire(&self) {
        self.save().await;
        self.0.lease_file.retire(true).await;
    }

    /// Keep the file again: the successor has not come.
    #[cfg(unix)]
    pub async fn resume(&self) {
        self.0.lease_file.retire(false).await;
        self.0.lease_file.changed();
    }

    async fn save(&self) {
        let snapshot = || {
            let leases = self.lock();
            let held = leases
                .iter()
                .filter(|(_, lease)| !lease.is_over() && !lease.has_left());
            held.map(|(name, lease)| (name.clone(), lease.owner))
                .collect()
        };
        self.0.lease_file.save(snapshot).await;
    }

    /// Remove the leases whose time is over, and return when the next one's will be.
    fn expire(&self) -> Option<Instant> {
        let mut leases = self.lock();
        let before = leases.len();
        leases.retain(|_, lease| !lease.is_over());
        if leases.len() < before {
            self.0.lease_file.changed();
        }
        leases.values().filter_map(Lease::until).min()
    }

    /// Note that a session serves a name no longer.
    fn release(&self, name: &Name, tunnel: &Arc<LiveTunnel>, absence: Option<Absence>) {
        let mut leases = self.lock();
        let Some(lease) = leases.get_mut(name) else {
            return;
        };
        let is_ours = matches!(&*lease.presence.borrow(), Some(held) if Arc::ptr_eq(held, tunnel));
        if !is_ours {
            return;
        }
        match absence {
            Some(absence) => lease.leave(absence, Instant::now() + self.0.grace),
            None => {
                leases.remove(name);
            }
        }
        drop(leases);
        match absence {
            // The file has it already; but its end is now to be waited for.
            Some(Absence::Lost) => self.0.lease_file.wake(),
            Some(Absence::Left) | None => self.0.lease_file.changed(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Lease>> {
        self.0.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why names were not claimed.
pub enum Unclaimed {
    Refused(Refusal),
    /// The sessions that have these names must be silent.
    Contested(Vec<(Name, Arc<LiveTunnel>)>),
}

/// A name that a session serves. Dropped, it stays reserved for the agent to come back, unless a
/// newer session has taken it over.
pub struct Claim {
    registry: Registry,
    name: Name,
    tunnel: Arc<LiveTunnel>,
    /// Which other agent held the name until it was claimed.
    taken_from: Option<AgentId>,
    /// What to think of the agent's being away; `None` if the name is free then.
    absence: Option<Absence>,
}

impl Claim {
    /// Return the name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Return the number that the agent gave the tunnel.
    pub fn number(&self) -> u32 {
        self.tunnel.number
    }

    /// Return the other agent that held the name until it was claimed.
    pub fn taken_from(&self) -> Option<AgentId> {
        self.taken_from
    }

    /// Let go of the name because the agent stops.
    pub fn leave(mut self) {
        self.absence = Some(Absence::Left);
    }

    /// Free the name because the agent does not want it any more.
    pub fn free(mut self) {
        self.absence = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.registry
            .release(&self.name, &self.tunnel, self.absence);
    }
}
