//! The edge's live table: which name is whose.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::Connection;

use crate::auth::{Name, TokenId};
use crate::proto::{AgentId, Close, Refusal};

/// Who holds a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The token that was shown.
    pub token: TokenId,
    /// The agent that showed it.
    pub agent: AgentId,
}

/// One public name and the session that serves it.
#[derive(Debug)]
pub struct Tunnel {
    /// Who holds the name.
    pub owner: Owner,
    /// Which of the owner's sessions this is; a higher one supersedes a lower one.
    pub epoch: u64,
    /// The number that the agent gave the tunnel.
    pub number: u32,
    /// The session's connection.
    pub connection: Connection,
}

/// All tunnels of an edge.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<HashMap<Name, Arc<Tunnel>>>>);

impl Registry {
    /// Find the tunnel of that name.
    pub fn find(&self, name: &str) -> Option<Arc<Tunnel>> {
        self.lock().get(name).cloned()
    }

    /// Claim a name until the returned value is dropped. The owner's newer session takes its own
    /// names over at once, and the older session is closed.
    ///
    /// # Errors
    /// [`Refusal::NameTaken`] if somebody else has it.
    pub fn claim(&self, name: Name, tunnel: Tunnel) -> Result<Claim, Refusal> {
        let tunnel = Arc::new(tunnel);
        match self.lock().entry(name.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(tunnel.clone());
            }
            Entry::Occupied(mut entry) => {
                let held = entry.get();
                if held.owner != tunnel.owner || held.epoch > tunnel.epoch {
                    return Err(Refusal::NameTaken {
                        name: name.to_string(),
                        holder: format!(
                            "agent {} for as long as it is connected",
                            held.owner.agent
                        ),
                    });
                }
                let ghost = entry.insert(tunnel.clone());
                if ghost.connection.stable_id() != tunnel.connection.stable_id() {
                    ghost
                        .connection
                        .close(Close::Superseded.code(), b"superseded");
                }
            }
        }
        Ok(Claim {
            registry: self.clone(),
            name,
            tunnel,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Name, Arc<Tunnel>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that is held. Dropping it frees the name, unless a newer session has taken it over.
#[derive(Debug)]
pub struct Claim {
    registry: Registry,
    name: Name,
    tunnel: Arc<Tunnel>,
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
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut names = self.registry.lock();
        if names
            .get(&self.name)
            .is_some_and(|held| Arc::ptr_eq(held, &self.tunnel))
        {
            names.remove(&self.name);
        }
    }
}
