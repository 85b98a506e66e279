//! A public name as served by one session, and its holder.

use std::sync::Arc;

use quinn::Connection;

use crate::auth::TokenId;
use crate::edge::visitors::conversations::TunnelConversations;
use crate::http::Upgrades;
use crate::proto::{AgentId, LostSession, RunId};
use crate::stream::FlowControl;

/// The holder of a name: an agent and its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The token that the agent presented.
    pub token: TokenId,
    /// The agent's identity.
    pub agent: AgentId,
}

impl Owner {
    /// Report whether both presented the same token, on an edge that requires tokens.
    pub fn shares_token(self, other: Self) -> bool {
        self.token == other.token && self.token != TokenId::OPEN
    }
}

/// A public name as served by one session.
#[derive(Debug)]
pub struct LiveTunnel {
    /// The holder of the name.
    pub owner: Owner,
    /// The run of the owner's process.
    pub run: RunId,
    /// Number of the session within the run; a higher one supersedes a lower one.
    pub epoch: u64,
    /// The tunnel's number, chosen by the agent.
    pub number: u32,
    /// The session's QUIC connection.
    pub connection: Connection,
    /// The session's flow control.
    pub flow: Arc<FlowControl>,
    /// The session's conversations, of which this tunnel has a share.
    pub conversations: TunnelConversations,
    /// Index of the worker that the session runs on.
    pub worker: usize,
    /// Protocols that visitors may upgrade to.
    pub upgrades: Upgrades,
    /// The agent's reports about its earlier sessions.
    pub lost: Arc<[LostSession]>,
}

impl LiveTunnel {
    /// Report whether the agent has declared that a request never reached it in an earlier session.
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
