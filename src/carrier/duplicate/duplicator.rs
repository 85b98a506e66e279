//! Sending a short message twice, where packets are lost.
//!
//! A lost packet costs a round trip at least, which is as long as a short answer takes in all. Where the path has
//! room, what ends a message is sent a second time a little later, as it is: to QUIC that is a duplicate, which
//! the other end discards if it has the first (RFC 9000 §12.3), and which neither end counts. Flach et al.,
//! "Reducing Web Latency: the Virtue of Gentle Aggression" (SIGCOMM 2013), do so with TCP.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Connection;
use tokio::time::Instant;

use super::send_logs::Remembering;
use crate::carrier::agent::switch::Switch;
use crate::carrier::edge::socket::EdgeSocket;

/// Sends again what a connection has sent.
pub struct Duplicator {
    connection: Connection,
    socket: Socket,
}

enum Socket {
    OfAgent(Arc<Switch>),
    OfEdge(EdgeSocket, Mutex<ToAgent>),
}

/// The way from the edge to an agent, whose address may change.
#[derive(Default)]
struct ToAgent {
    remote: Option<SocketAddr>,
    /// Until when the address may not be the agent's.
    unproven: Option<Instant>,
    remembering: Option<Remembering>,
}

impl Duplicator {
    pub(crate) fn of_agent(connection: &Connection, switch: &Arc<Switch>) -> Self {
        Self {
            connection: connection.clone(),
            socket: Socket::OfAgent(switch.clone()),
        }
    }

    /// For an edge's connection to an agent, over the socket underneath its endpoint.
    pub fn of_edge(connection: &Connection, socket: &EdgeSocket) -> Self {
        Self {
            connection: connection.clone(),
            socket: Socket::OfEdge(socket.clone(), Mutex::default()),
        }
    }

    /// Note that a message is about to be sent, with a body of that many bytes. If it is so short that it takes
    /// one packet, and much else is sent, it goes twice among that.
    pub fn message_written(&self, bytes: u64) {
        if bytes > ONE_PACKET {
            return;
        }
        match &self.socket {
            Socket::OfAgent(switch) => switch.message_written(),
            Socket::OfEdge(_, to_agent) => {
                if let Some(remembering) = &lock(to_agent).remembering {
                    remembering.message_written();
                }
            }
        }
    }

    /// Send the message again that ended an eighth of a round trip ago, if it was a short one and nothing else
    /// was sent. Over UDP alone: TCP repeats by itself.
    ///
    /// Nothing is sent the first time on a path: packets are kept from then on.
    pub fn repeat(&self) {
        let path = self.connection.stats().path;
        let (within, most) = (path.rtt / 4, path.cwnd / 3);
        match &self.socket {
            Socket::OfAgent(switch) => switch.send_again(within, most),
            Socket::OfEdge(socket, to_agent) => {
                let mut to_agent = lock(to_agent);
                to_agent.look_at(self.connection.remote_address(), path.rtt, socket);
                if let Some(remembering) = &to_agent.remembering {
                    socket.send_again(remembering, within, most);
                }
            }
        }
    }
}

impl ToAgent {
    /// Begin anew if the agent has another address. One that it has moved to may be somebody else's, who must not
    /// get twice what QUIC sends there before it has asked (RFC 9000 §8.1, §9.3).
    fn look_at(&mut self, remote: SocketAddr, rtt: Duration, socket: &EdgeSocket) {
        if self.remote != Some(remote) {
            let moved = self.remote.replace(remote).is_some();
            self.unproven = moved.then(|| Instant::now() + UNPROVEN.0 + UNPROVEN.1 * rtt);
            self.remembering = None;
        }
        if self.remembering.is_none() && self.unproven.is_none_or(|until| until <= Instant::now()) {
            self.remembering = socket.remember(remote);
        }
    }
}

fn lock(to_agent: &Mutex<ToAgent>) -> MutexGuard<'_, ToAgent> {
    to_agent.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Duplicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Duplicator").finish_non_exhaustive()
    }
}

/// Of the least packet that QUIC knows, what a head leaves to a body.
const ONE_PACKET: u64 = 1_000;

/// Longer than QUIC takes to find out that an address is not the agent's, and to return to the one before: a time,
/// and so many round trips.
const UNPROVEN: (Duration, u32) = (Duration::from_secs(2), 10);
