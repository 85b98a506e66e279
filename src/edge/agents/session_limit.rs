//! Limits on the sessions of agents whose token was accepted: in all, and per agent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::edge::limits::EdgeLimits;
use crate::edge::names::tunnel::Owner;
use crate::proto::Refusal;

/// Counter and limit of authenticated sessions.
#[derive(Clone)]
pub struct SessionLimit(Arc<Shared>);

struct Shared {
    max_sessions: usize,
    max_per_agent: usize,
    count: Mutex<Count>,
}

#[derive(Default)]
struct Count {
    all: usize,
    agents: HashMap<Owner, usize>,
}

impl SessionLimit {
    /// Create a count of no sessions.
    pub fn new(limits: &EdgeLimits) -> Self {
        Self(Arc::new(Shared {
            max_sessions: limits.sessions,
            max_per_agent: limits.sessions_per_agent,
            count: Mutex::default(),
        }))
    }

    /// Count one more session, until the returned value is dropped.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if there are too many sessions, of this agent or of all.
    pub fn acquire(&self, owner: Owner) -> Result<SessionPermit, Refusal> {
        let mut count = self.0.count.lock().unwrap_or_else(PoisonError::into_inner);
        let of_agent = count.agents.get(&owner).copied().unwrap_or(0);
        if of_agent >= self.0.max_per_agent {
            let reason = format!(
                "this agent has {of_agent} sessions (each process with its state directory has one)"
            );
            return Err(Refusal::Busy {
                reason: reason.into(),
            });
        }
        if count.all >= self.0.max_sessions {
            let reason = format!("{} agents are connected", count.all);
            return Err(Refusal::Busy {
                reason: reason.into(),
            });
        }
        count.all += 1;
        *count.agents.entry(owner).or_default() += 1;
        Ok(SessionPermit {
            limit: self.clone(),
            owner,
        })
    }

    /// Return the number of sessions.
    pub fn len(&self) -> usize {
        let count = self.0.count.lock();
        count.unwrap_or_else(PoisonError::into_inner).all
    }
}

/// A counted session. It stops counting when this is dropped.
pub struct SessionPermit {
    limit: SessionLimit,
    owner: Owner,
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        let count = self.limit.0.count.lock();
        let mut count = count.unwrap_or_else(PoisonError::into_inner);
        count.all -= 1;
        if let Some(of_agent) = count.agents.get_mut(&self.owner) {
            *of_agent -= 1;
            if *of_agent == 0 {
                count.agents.remove(&self.owner);
            }
        }
    }
}
