//! WebSockets that the successor process passes on, because they belong to sessions of this process.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, SendAncillaryBuffer, SendAncillaryMessage, recvmsg,
    sendmsg,
};
use tokio::io::Interest;
use tokio::net::{UnixDatagram, UnixStream};
use tracing::debug;

use super::descriptors;
use super::successor;
use crate::carrier::websocket::PeerInfo;

/// Receives WebSockets from the successor process.
#[derive(Debug)]
pub struct PassedWebSockets(UnixDatagram);

/// A WebSocket whose TCP connection another process holds.
#[derive(Debug)]
pub struct PassedWebSocket {
    /// The bytes of the WebSocket, after its opening handshake.
    pub stream: UnixStream,
    pub peer: PeerInfo,
}

impl PassedWebSockets {
    /// Create a receiver, and the descriptor to which the successor sends. Needs a runtime.
    ///
    /// # Errors
    /// If the system has no descriptors left, or no such sockets.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = successor::socket_pair()?;
        Ok((Self(ours), theirs))
    }

    /// Wait for the next WebSocket. Return `None` once the successor and all later processes are gone.
    /// Cancel safe.
    ///
    /// # Errors
    /// If receiving fails, for example because the system has no descriptors left.
    pub async fn next(&self) -> io::Result<Option<PassedWebSocket>> {
        loop {
            let receive = || receive(&self.0);
            match self.0.async_io(Interest::READABLE, receive).await? {
                Received::Passed(passed) => return Ok(Some(passed)),
                Received::Malformed => debug!("a message from the successor is malformed"),
                Received::End => return Ok(None),
            }
        }
    }
}

/// Pass on a WebSocket to another process, which then exchanges its bytes over `stream`.
pub(crate) fn send(to: &OwnedFd, peer: &PeerInfo, stream: BorrowedFd<'_>) -> io::Result<()> {
    let mut header = [0; MAX_HEADER];
    let header = postcard::to_slice(peer, &mut header).expect("there is room for any peer");
    let mut space = [MaybeUninit::uninit(); ANCILLARY_SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let stream = [stream];
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(&stream));
    debug_assert!(fits, "there is room for one");
    let message = [IoSlice::new(header)];
    sendmsg(to, &message, &mut ancillary, descriptors::SEND)?;
    Ok(())
}

enum Received {
    Passed(PassedWebSocket),
    Malformed,
    End,
}

/// Receive one message.
fn receive(from: &UnixDatagram) -> io::Result<Received> {
    let mut header = [0; MAX_HEADER];
    let mut space = [MaybeUninit::uninit(); ANCILLARY_SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        let mut message = [IoSliceMut::new(&mut header)];
        recvmsg(from, &mut message, &mut ancillary, descriptors::RECEIVE)
    })?;
    if received.bytes == 0 {
        return Ok(Received::End);
    }
    let stream = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let peer = postcard::from_bytes(&header[..received.bytes]);
    let (Some(stream), Ok(peer)) = (stream, peer) else {
        return Ok(Received::Malformed);
    };
    let stream = UnixStream::from_std(descriptors::received(stream)?.into())?;
    Ok(Received::Passed(PassedWebSocket { stream, peer }))
}

/// The room for the header, in bytes: postcard needs at most 22 for a [`PeerInfo`].
const MAX_HEADER: usize = 32;

/// The room for one descriptor, in bytes.
const ANCILLARY_SPACE: usize = rustix::cmsg_space!(ScmRights(1));
