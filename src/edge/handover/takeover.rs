//! The successor's side of a handover.

use std::io;
use std::net::SocketAddr;

use super::listener::connect;
use super::message::{Channel, HandoverError, Message, REPLY_TIMEOUT, VERSION};
use super::{SOCKET, SUPPORTED};
use crate::carrier::handover::predecessor::Predecessor;
use crate::carrier::handover::predecessors::Predecessors;
use crate::edge::listen::sockets::Sockets;
use crate::state::StateDir;

/// An offer of the running edge, which keeps serving until [`accept`](Self::accept).
#[derive(Debug)]
pub struct Takeover {
    channel: Channel,
    /// The running edge's listening sockets.
    pub sockets: Sockets,
    /// The running edge, and those before it that still drain.
    pub predecessors: Predecessors,
}

impl Takeover {
    /// Ask the edge that runs with this state directory to hand over.
    ///
    /// # Errors
    /// If no edge runs, or it refuses to hand over.
    pub async fn ask(state: &StateDir) -> Result<Self, HandoverError> {
        if !SUPPORTED {
            return Err(HandoverError::Unsupported);
        }
        let path = state.path(SOCKET);
        let channel = match connect(&path) {
            Ok(socket) => Channel::new(socket)?,
            Err(err) if is_absent(&err) => return Err(HandoverError::NoEdge(path)),
            Err(err) => return Err(err.into()),
        };
        let request = Message::Request { version: VERSION };
        channel.send(&request, &[]).await?;
        let (count, ids, mut descriptors) = match channel.receive(OFFER_TIMEOUT).await? {
            (Message::Offer { sockets, ids }, descriptors) => (sockets as usize, ids, descriptors),
            (Message::Refused { reason }, _) => return Err(HandoverError::Refused(reason)),
            _ => return Err(HandoverError::NotUnderstood),
        };
        if descriptors.len() != count + 2 * ids.len() {
            return Err(HandoverError::NotUnderstood);
        }
        let mut pipes = descriptors.split_off(count).into_iter();
        let pairs = std::iter::from_fn(|| Some([pipes.next()?, pipes.next()?]));
        let mut sockets = Sockets::default();
        for descriptor in descriptors {
            sockets.add(descriptor)?;
        }
        let predecessors = ids.into_iter().zip(pairs);
        Ok(Self {
            channel,
            sockets,
            predecessors: predecessors
                .map(|(ids, pipes)| Predecessor::new(ids, pipes))
                .collect(),
        })
    }

    /// Check that the running edge listens for agents on the address that this edge is configured for, which
    /// agents could not follow otherwise.
    ///
    /// # Errors
    /// [`HandoverError::Elsewhere`] if it does not.
    pub fn check_quic(&self, configured: Option<SocketAddr>) -> Result<(), HandoverError> {
        match self.sockets.udp_addr() {
            Some(running) if configured != Some(running) => Err(HandoverError::Elsewhere {
                running: running.to_string(),
                wanted: configured.map_or_else(|| "off".to_owned(), |addr| addr.to_string()),
            }),
            _ => Ok(()),
        }
    }

    /// Take over, now that everything that can fail is done.
    ///
    /// # Errors
    /// If the running edge is gone, or does not let go.
    pub async fn accept(self) -> Result<(), HandoverError> {
        self.channel.send(&Message::Ready, &[]).await?;
        match self.channel.receive(REPLY_TIMEOUT).await?.0 {
            Message::Granted => Ok(()),
            _ => Err(HandoverError::NotUnderstood),
        }
    }
}

fn is_absent(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// Timeout of the running edge's offer: it may be busy with another successor.
const OFFER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);
