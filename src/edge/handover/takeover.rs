//! The successor's side of a handover.

use std::io;

use super::listener::connect;
use super::message::{ANSWER, Channel, HandoverError, Message, VERSION};
use super::{SOCKET, SUPPORTED};
use crate::carrier::{Predecessor, Predecessors};
use crate::edge::listen::sockets::Sockets;
use crate::state::StateDir;

/// What the running edge has offered. It serves on until [`accept`](Self::accept).
#[derive(Debug)]
pub struct Takeover {
    channel: Channel,
    /// Its listening sockets.
    pub sockets: Sockets,
    /// It, and those before it that still drain.
    pub predecessors: Predecessors,
}

impl Takeover {
    /// Ask the edge that runs with this state directory.
    ///
    /// # Errors
    /// If there is none, or it does not hand over.
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
        let question = Message::Request { version: VERSION };
        channel.say(&question, &[]).await?;
        let (count, ids, mut descriptors) = match channel.hear(PATIENCE).await? {
            (Message::Offer { sockets, ids }, descriptors) => (sockets as usize, ids, descriptors),
            (Message::Refused { why }, _) => return Err(HandoverError::Refused(why)),
            _ => return Err(HandoverError::NotUnderstood),
        };
        if descriptors.len() != count + 2 * ids.len() {
            return Err(HandoverError::NotUnderstood);
        }
        let mut lines = descriptors.split_off(count).into_iter();
        let pairs = std::iter::from_fn(|| Some([lines.next()?, lines.next()?]));
        let mut sockets = Sockets::default();
        for descriptor in descriptors {
            sockets.add(descriptor)?;
        }
        let predecessors = ids.into_iter().zip(pairs);
        Ok(Self {
            channel,
            sockets,
            predecessors: predecessors
                .map(|(ids, lines)| Predecessor::new(ids, lines))
                .collect(),
        })
    }

    /// Take over: all that can fail is done.
    ///
    /// # Errors
    /// If the running edge has changed its mind, or is gone.
    pub async fn accept(self) -> Result<(), HandoverError> {
        self.channel.say(&Message::Ready, &[]).await?;
        match self.channel.hear(ANSWER).await?.0 {
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

/// How long the running edge may take for its offer: another successor may be at the door.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);
