//! Sending a short message twice, where packets are lost.
//!
//! A lost packet costs a round trip at least, which is as long as a short answer takes in all. Where the path has
//! room, what ends a message is sent a second time a little later, as it is: to QUIC that is a duplicate, which
//! the other end discards if it has the first (RFC 9000 §12.3), and which neither end counts. Flach et al.,
//! "Reducing Web Latency: the Virtue of Gentle Aggression" (SIGCOMM 2013), do so with TCP.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::Connection;

use super::edge_socket::EdgeSocket;
use super::recent_of::Remembering;
use super::switch::Switch;

/// Sends again what a connection has sent.
pub struct Repeater {
    connection: Connection,
    socket: Socket,
}

enum Socket {
    OfAgent(Arc<Switch>),
    OfEdge(EdgeSocket, Mutex<Option<Remembering>>),
}

impl Repeater {
    pub(super) fn of_agent(connection: &Connection, switch: &Arc<Switch>) -> Self {
        Self {
            connection: connection.clone(),
            socket: Socket::OfAgent(switch.clone()),
        }
    }

    pub(super) fn of_edge(connection: &Connection, socket: &EdgeSocket) -> Self {
        Self {
            connection: connection.clone(),
            socket: Socket::OfEdge(socket.clone(), Mutex::default()),
        }
    }

    /// Note that a message is about to be sent, with a body of that many bytes. If it is so short that it takes
    /// one packet, and much else is sent, it goes twice among that.
    pub fn message_ended(&self, bytes: u64) {
        if bytes > ONE_PACKET {
            return;
        }
        match &self.socket {
            Socket::OfAgent(switch) => switch.message_ended(),
            Socket::OfEdge(_, remembering) => {
                let remembering = remembering.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(remembering) = &*remembering {
                    remembering.message_ended();
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
            Socket::OfEdge(socket, remembering) => {
                let remote = self.connection.remote_address();
                let mut remembering = remembering.lock().unwrap_or_else(PoisonError::into_inner);
                if remembering.as_ref().map(Remembering::of) != Some(remote) {
                    *remembering = None;
                    *remembering = socket.remember(remote);
                }
                if let Some(remembering) = &*remembering {
                    socket.send_again(remembering, within, most);
                }
            }
        }
    }
}

impl fmt::Debug for Repeater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repeater").finish_non_exhaustive()
    }
}

/// Of the least packet that QUIC knows, what a head leaves to a body.
const ONE_PACKET: u64 = 1_000;
