//! Messages between two processes of an edge during a handover.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::carrier::handover::descriptors;

/// A message. The first is a [`Request`](Self::Request) in every version.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// The successor asks to take over.
    Request {
        /// The successor's [`VERSION`].
        version: u32,
    },
    /// The running edge refuses.
    Refused {
        /// The reason.
        reason: String,
    },
    /// The running edge offers its sockets. The message carries descriptors in this order: the
    /// listening sockets, then for each of `ids` two Unix sockets, for packets and for WebSockets.
    Offer {
        /// Number of listening sockets among the descriptors.
        sockets: u32,
        /// Keys that mark the connection ids of the running edge, and of those before it that still
        /// drain.
        ids: Vec<u64>,
    },
    /// The successor is ready to take over.
    Ready,
    /// The running edge has stopped reading the UDP socket: the successor is in charge.
    Granted,
}

/// A connection between two processes of an edge. Both belong to the same user.
#[derive(Debug)]
pub struct Channel(UnixStream);

impl Channel {
    /// Use a connected socket that preserves message boundaries, if the process at the other end
    /// belongs to the same user or to root.
    ///
    /// # Errors
    /// [`HandoverError::Foreign`] if it belongs to another user.
    pub fn new(socket: UnixStream) -> Result<Self, HandoverError> {
        let (peer, us) = (socket.peer_cred()?.uid(), rustix::process::geteuid());
        if peer != us.as_raw() && peer != 0 {
            return Err(HandoverError::Foreign(peer));
        }
        Ok(Self(socket))
    }

    /// Send a message, with descriptors.
    ///
    /// # Errors
    /// If it cannot be sent within [`REPLY_TIMEOUT`].
    pub async fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), HandoverError> {
        let bytes = postcard::to_stdvec(message).expect("memory takes any message");
        let write = || {
            let mut space = [MaybeUninit::uninit(); CONTROL_MESSAGE_SIZE];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty()
                && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(io::Error::other("too many sockets"));
            }
            let message = [IoSlice::new(&bytes)];
            sendmsg(&self.0, &message, &mut ancillary, descriptors::SEND)?;
            Ok(())
        };
        timeout(REPLY_TIMEOUT, self.0.async_io(Interest::WRITABLE, write))
            .await
            .map_err(|_| HandoverError::Silent)??;
        Ok(())
    }

    /// Receive the next message.
    ///
    /// # Errors
    /// If none arrives within `limit`, or the other end is gone or sends something else.
    pub async fn receive(&self, limit: Duration) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
        let read = || {
            let mut bytes = [0; MAX_MESSAGE];
            let mut space = [MaybeUninit::uninit(); CONTROL_MESSAGE_SIZE];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut buffer = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg(&self.0, &mut buffer, &mut ancillary, descriptors::RECEIVE)?;
            let descriptors = ancillary
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                    _ => None,
                })
                .flatten()
                .map(descriptors::received)
                .collect::<io::Result<Vec<_>>>()?;
            let whole = !received
                .flags
                .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
            let message = whole.then(|| postcard::from_bytes(&bytes[..received.bytes]).ok());
            Ok((received.bytes, message.flatten(), descriptors))
        };
        let received = timeout(limit, self.0.async_io(Interest::READABLE, read));
        match received.await.map_err(|_| HandoverError::Silent)?? {
            (0, ..) => Err(HandoverError::Gone),
            (_, Some(message), descriptors) => Ok((message, descriptors)),
            (_, None, _) => Err(HandoverError::NotUnderstood),
        }
    }
}

/// Version of the handover protocol; both processes must have the same.
pub const VERSION: u32 = 2;

/// Timeout of a reply that needs no work.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Most descriptors in one message; the kernel takes 253. Enough for eight listeners and more than
/// twenty draining processes.
pub const MAX_DESCRIPTORS: usize = 64;

/// Size of the control message that carries them, in bytes.
const CONTROL_MESSAGE_SIZE: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Largest message in bytes: an offer with the keys of as many processes.
const MAX_MESSAGE: usize = 4 << 10;

/// Reason why one process of an edge cannot take over from another.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// This system lacks Unix sockets that preserve message boundaries.
    #[error(
        "an edge cannot take over from another one on this system, only on Linux: stop the running one, then \
         start this one without --take-over"
    )]
    Unsupported,
    /// No edge runs with this state directory.
    #[error(
        "no edge runs with this state directory: nothing answers at {}; start without --take-over, or name \
         the directory of the running edge with --state-dir", .0.display()
    )]
    NoEdge(PathBuf),
    /// The running edge refuses.
    #[error("the running edge does not hand over: {0}")]
    Refused(String),
    /// The running edge listens for agents at another address, where they would look for the
    /// successor.
    #[error(
        "the running edge listens for agents at {running} (UDP) and this one would at {wanted}: a successor \
         keeps that address (--quic)"
    )]
    Elsewhere {
        /// Address at which the running edge listens.
        running: String,
        /// Address at which the successor would listen.
        wanted: String,
    },
    /// The process at the other end belongs to another user.
    #[error("the process at the other end belongs to user {0}, not to ours")]
    Foreign(u32),
    /// The other end does not respond in time.
    #[error("the process at the other end does not respond")]
    Silent,
    /// The other end has closed the connection.
    #[error("the process at the other end closed the connection")]
    Gone,
    /// The other end is another program, or of another version.
    #[error("the process at the other end is not an edge of this version")]
    NotUnderstood,
    /// A system call failed.
    #[error("the handover failed")]
    System(#[from] io::Error),
}
