//! What two processes of an edge say to each other.

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

/// One message. The first is a [`Request`](Self::Request) in every version.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// A successor asks to take over.
    Request {
        /// [`VERSION`]
        version: u32,
    },
    /// The running edge will not have it.
    Refused {
        /// Why.
        why: String,
    },
    /// The running edge offers what it has. The message bears descriptors, in this order: the
    /// listening sockets, then two lines for each of `ids`, for packets and for WebSockets.
    Offer {
        /// How many of the descriptors are listening sockets.
        sockets: u32,
        /// What marks the connection ids of the running edge, and of those before it that still drain.
        ids: Vec<u64>,
    },
    /// The successor has all it needs.
    Ready,
    /// The running edge has let go.
    Granted,
}

/// What is said to an edge, and by it. Both ends are processes of the same user.
#[derive(Debug)]
pub struct Channel(UnixStream);

impl Channel {
    /// Talk through a connected socket that keeps the bounds of messages, if the same user is at the
    /// other end, or root.
    ///
    /// # Errors
    /// [`HandoverError::Foreign`] if not.
    pub fn new(socket: UnixStream) -> Result<Self, HandoverError> {
        let (peer, us) = (socket.peer_cred()?.uid(), rustix::process::geteuid());
        if peer != us.as_raw() && peer != 0 {
            return Err(HandoverError::Foreign(peer));
        }
        Ok(Self(socket))
    }

    /// Say something, with descriptors.
    ///
    /// # Errors
    /// If the other end does not listen.
    pub async fn say(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), HandoverError> {
        let bytes = postcard::to_stdvec(message).expect("memory takes any message");
        let send = || {
            let mut space = [MaybeUninit::uninit(); SPACE];
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
        timeout(ANSWER, self.0.async_io(Interest::WRITABLE, send))
            .await
            .map_err(|_| HandoverError::Silent)??;
        Ok(())
    }

    /// Hear what is said next.
    ///
    /// # Errors
    /// If nothing comes in time, or the other end is gone or not understood.
    pub async fn hear(&self, patience: Duration) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
        let receive = || {
            let mut bytes = [0; LONGEST];
            let mut space = [MaybeUninit::uninit(); SPACE];
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
        let received = timeout(patience, self.0.async_io(Interest::READABLE, receive));
        match received.await.map_err(|_| HandoverError::Silent)?? {
            (0, ..) => Err(HandoverError::Gone),
            (_, Some(message), descriptors) => Ok((message, descriptors)),
            (_, None, _) => Err(HandoverError::NotUnderstood),
        }
    }
}

/// Both processes must have the same.
pub const VERSION: u32 = 2;

/// How long an answer may take that needs no work.
pub const ANSWER: Duration = Duration::from_secs(5);

/// Descriptors in one message: the kernel takes 253. Eight listeners, and three times as many processes.
pub const DESCRIPTORS: usize = 64;

/// Room for them.
const SPACE: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS));

/// Bytes of a message: an offer with keys for as many processes.
const LONGEST: usize = 4 << 10;

/// One process of an edge cannot take over from another.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// It needs what this system does not have: Unix sockets that keep the bounds of messages.
    #[error(
        "an edge cannot take over from another one on this system, only on Linux: stop the running one, then \
         start this one without --take-over"
    )]
    Unsupported,
    /// There is nobody to take over from.
    #[error(
        "no edge runs with this state directory: nobody answers at {}; start without --take-over, or say \
         which edge is meant with --state-dir", .0.display()
    )]
    NoEdge(PathBuf),
    /// The running edge will not have it.
    #[error("the running edge does not hand over: {0}")]
    Refused(String),
    /// The running edge listens for agents elsewhere, where they will look for the successor.
    #[error(
        "the running edge listens for agents at {running} (UDP) and this one would at {wanted}: a successor \
         keeps that address (--quic)"
    )]
    Elsewhere {
        /// Where the running edge listens.
        running: String,
        /// Where the successor would.
        wanted: String,
    },
    /// Another user's process is at the other end.
    #[error("the process at the other end belongs to user {0}, not to ours")]
    Foreign(u32),
    /// The other end takes too long.
    #[error("the process at the other end does not answer")]
    Silent,
    /// The other end has ended.
    #[error("the process at the other end broke off")]
    Gone,
    /// The other end is of another kind, or another version.
    #[error("the process at the other end is not understood")]
    NotUnderstood,
    /// The system does not go along.
    #[error("the handover failed")]
    System(#[from] io::Error),
}
