//! How many sessions there are, and whose: those of agents whose token was accepted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::edge::limits::EdgeLimits;
use crate::edge::names::registry::Owner;
use crate::proto::Refusal;

/// The sessions that are authenticated.
#[derive(Clone)]
pub struct Sessions(Arc<Shared>);

struct Shared {
    most: usize,
    most_per_agent: usize,
    count: Mutex<Count>,
}

#[derive(Default)]
struct Count {
    all: usize,
    agents: HashMap<Owner, usize>,
}

impl Sessions {
    /// Begin with none.
    pub fn new(limits: &EdgeLimits) -> Self {
        Self(Arc::new(Shared {
            most: limits.sessions,
            most_per_agent: limits.sessions_per_agent,
            count: Mutex::default(),
        }))
    }

    /// Count one more, until the returned value is dropped.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if there are too many, of this agent or of all.
    pub fn enter(&self, owner: Owner) -> Result<CountedSession, Refusal> {
        let mut count = self.0.count.lock().unwrap_or_else(PoisonError::into_inner);
        let own = count.agents.get(&owner).copied().unwrap_or(0);
        if own >= self.0.most_per_agent {
            let reason = format!(
                "this agent has {own} sessions (each process with its state directory has one)"
            );
            return Err(Refusal::Busy {
                reason: reason.into(),
            });
        }
        if count.all >= self.0.most {
            let reason = format!("{} agents are connected", count.all);
            return Err(Refusal::Busy {
                reason: reason.into(),
            });
        }
        count.all += 1;
        *count.agents.entry(owner).or_default() += 1;
        Ok(CountedSession {
            sessions: self.clone(),
            owner,
        })
    }

    /// Count them.
    pub fn len(&self) -> usize {
        let count = self.0.count.lock();
        count.unwrap_or_else(PoisonError::into_inner).all
    }
}

/// A session that is counted.
pub struct CountedSession {
    sessions: Sessions,
    owner: Owner,
}

impl Drop for CountedSession {
    fn drop(&mut self) {
        let count = self.sessions.0.count.lock();
        let mut count = count.unwrap_or_else(PoisonError::into_inner);
        count.all -= 1;
        if let Some(own) = count.agents.get_mut(&self.owner) {
            *own -= 1;
            if *own == 0 {
                count.agents.remove(&self.owner);
            }
        }
    }
}
