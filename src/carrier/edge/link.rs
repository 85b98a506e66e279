//! The edge's end of a session's connection.

use std::ops::Deref;
use std::sync::Arc;

use super::socket::{CarrierInfo, EdgeSocket};
use crate::carrier::congestion::{PathCache, PathMemory, SharedCongestionOwner};
use crate::carrier::link::Link;
use crate::carrier::transport::{AGENT_STREAMS, session_window};

/// The edge's connection to an agent, which can move between carriers.
pub struct EdgeLink {
    pub(super) link: Link,
    pub(super) socket: EdgeSocket,
    /// The owner of congestion control on the path to the agent: QUIC, or the kernel's TCP.
    pub(super) congestion_owner: SharedCongestionOwner,
    /// Congestion estimates of the path to the agent.
    pub(super) path: PathMemory,
    pub(super) paths: Arc<PathCache>,
}

impl EdgeLink {
    /// The most concurrent streams to an agent.
    pub const MAX_STREAMS: u32 = AGENT_STREAMS;

    /// Return the carrier of the agent's packets, or `None` for a WebSocket that has closed.
    pub fn carrier(&self) -> Option<CarrierInfo> {
        self.socket.carrier(self.connection().remote_address())
    }

    /// Note that the agent is authenticated: its WebSocket is in use.
    pub fn authenticated(&self) {
        let remote = self.connection().remote_address();
        self.socket.session_started(remote);
    }

    /// Share the estimates of the path with the agent's next connections.
    pub fn share_path(&self) {
        let remote = self.connection().remote_address();
        if let Some(agent) = self.socket.udp_address(remote) {
            self.paths.store(agent, &self.path);
        }
    }

    /// Grant the agent the full window of a session, in which `buffer` bytes of bodies may wait.
    pub fn grant_window(&self, buffer: u64) {
        self.connection().set_receive_window(session_window(buffer));
    }

    /// Update who controls congestion on the carrier that the agent uses now. An agent that has moved to
    /// another carrier sends a message afterwards.
    pub fn update_congestion_owner(&self) {
        self.authenticated();
        let congestion = self.carrier().map(|carrier| carrier.peer.congestion);
        self.congestion_owner.set(congestion.unwrap_or_default());
    }
}

impl Deref for EdgeLink {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.link
    }
}
