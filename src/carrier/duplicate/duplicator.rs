//! Sending the end of a short message twice, so that a lost packet need not be retransmitted.
//!
//! A retransmission costs at least a round trip, which is as long as a short response takes altogether. Where the
//! path has capacity to spare, the packets at the end of a message are sent a second time a little later,
//! unchanged. To QUIC the copy is a duplicate, which the peer discards if it has the first (RFC 9000 §12.3) and
//! which neither end counts. It acts like a tail loss probe (RFC 8985 §7) that does not wait for a timeout. Flach
//! et al., "Reducing Web Latency: the Virtue of Gentle Aggression" (SIGCOMM 2013), do the same with TCP.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Connection;
use tokio::time::Instant;

use super::send_logs::SendLogHandle;
use crate::carrier::agent::switch::Switch;
use crate::carrier::edge::socket::EdgeSocket;

/// Resends the latest packets of one connection.
pub struct Duplicator {
    connection: Connection,
    socket: Socket,
}

enum Socket {
    Agent(Arc<Switch>),
    Edge(EdgeSocket, Mutex<AgentPath>),
}

/// The path from the edge to an agent, whose address may change.
#[derive(Default)]
struct AgentPath {
    remote: Option<SocketAddr>,
    /// The end of the period in which the address may not be the agent's.
    unproven_until: Option<Instant>,
    log: Option<SendLogHandle>,
}

impl Duplicator {
    /// Create a duplicator for an agent's connection.
    pub(crate) fn for_agent(connection: &Connection, switch: &Arc<Switch>) -> Self {
        Self {
            connection: connection.clone(),
            socket: Socket::Agent(switch.clone()),
        }
    }

    /// Create a duplicator for an edge's connection to an agent. `socket` is the one below its endpoint.
    pub fn for_edge(connection: &Connection, socket: &EdgeSocket) -> Self {
        Self {
            connection: connection.clone(),
            socket: Socket::Edge(socket.clone(), Mutex::default()),
        }
    }

    /// Note that a message with a body of `bytes` bytes is about to be sent. If it fits into one packet and the
    /// connection is busy, it is duplicated among the other packets.
    pub fn message_written(&self, bytes: u64) {
        if bytes > MAX_SINGLE_PACKET_BODY {
            return;
        }
        match &self.socket {
            Socket::Agent(switch) => switch.message_written(),
            Socket::Edge(_, agent_path) => {
                if let Some(log) = &lock(agent_path).log {
                    log.message_written();
                }
            }
        }
    }

    /// Resend the packets of the last quarter of a round trip, if they are few enough to be a short message on an
    /// otherwise idle connection. Only over UDP: TCP retransmits by itself. Call it an eighth of a round trip
    /// after the message ended.
    ///
    /// The first call on a path sends nothing: it starts the recording of packets.
    pub fn resend_tail(&self) {
        let path = self.connection.stats().path;
        let (within, max_bytes) = (path.rtt / 4, path.cwnd / 3);
        match &self.socket {
            Socket::Agent(switch) => switch.resend_recent(within, max_bytes),
            Socket::Edge(socket, agent_path) => {
                let mut agent_path = lock(agent_path);
                agent_path.update(self.connection.remote_address(), path.rtt, socket);
                if let Some(log) = &agent_path.log {
                    socket.resend_recent(log, within, max_bytes);
                }
            }
        }
    }
}

impl AgentPath {
    /// Start a new log if the agent's address has changed. A new address may be spoofed: until QUIC has validated
    /// it, its owner must not get twice as much as QUIC sends there (RFC 9000 §8.1, §9.3).
    fn update(&mut self, remote: SocketAddr, rtt: Duration, socket: &EdgeSocket) {
        if self.remote != Some(remote) {
            let moved = self.remote.replace(remote).is_some();
            self.unproven_until =
                moved.then(|| Instant::now() + UNPROVEN_PERIOD.0 + UNPROVEN_PERIOD.1 * rtt);
            self.log = None;
        }
        if self.log.is_none()
            && self
                .unproven_until
                .is_none_or(|until| until <= Instant::now())
        {
            self.log = socket.start_log(remote);
        }
    }
}

fn lock(agent_path: &Mutex<AgentPath>) -> MutexGuard<'_, AgentPath> {
    agent_path.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Duplicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Duplicator").finish_non_exhaustive()
    }
}

/// The largest body that fits into one packet together with its head, in bytes, at QUIC's smallest packet size.
const MAX_SINGLE_PACKET_BODY: u64 = 1_000;

/// The time for which a new address counts as unproven: a fixed time, plus a number of round trips. Longer than
/// QUIC takes to find out that an address is not the agent's, and to return to the previous one.
const UNPROVEN_PERIOD: (Duration, u32) = (Duration::from_secs(2), 10);
