//! WebSockets that the edge process after this one passes on, because they are our agents'.

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

/// Where they come in.
#[derive(Debug)]
pub struct PassedWebSockets(UnixDatagram);

/// A WebSocket whose TCP connection is another process's.
#[derive(Debug)]
pub struct PassedWebSocket {
    /// What it says, after its opening handshake.
    pub stream: UnixStream,
    pub peer: PeerInfo,
}

impl PassedWebSockets {
    /// Make a way in, and what the successor passes them to. Needs a runtime.
    ///
    /// # Errors
    /// If the system has no descriptors left, or no such sockets.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = successor::line()?;
        Ok((Self(ours), theirs))
    }

    /// Wait for the next one; `None` once the successor and all that came after it are gone. Cancel
    /// safe.
    ///
    /// # Errors
    /// If the system has no descriptors left, or the like.
    pub async fn next(&self) -> io::Result<Option<PassedWebSocket>> {
        loop {
            let receive = || receive(&self.0);
            match self.0.async_io(Interest::READABLE, receive).await? {
                Received::Passed(passed) => return Ok(Some(passed)),
                Received::Nonsense => debug!("the successor is not understood"),
                Received::End => return Ok(None),
            }
        }
    }
}

/// Pass on a WebSocket: from now on, what is said on this stream is its own.
pub(crate) fn send(to: &OwnedFd, peer: &PeerInfo, stream: BorrowedFd<'_>) -> io::Result<()> {
    let mut label = [0; LABEL];
    let label = postcard::to_slice(peer, &mut label).expect("there is room for any far end");
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let stream = [stream];
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(&stream));
    debug_assert!(fits, "there is room for one");
    let message = [IoSlice::new(label)];
    sendmsg(to, &message, &mut ancillary, descriptors::SEND)?;
    Ok(())
}

enum Received {
    Passed(PassedWebSocket),
    Nonsense,
    End,
}

fn receive(from: &UnixDatagram) -> io::Result<Received> {
    let mut label = [0; LABEL];
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        let mut message = [IoSliceMut::new(&mut label)];
        recvmsg(from, &mut message, &mut ancillary, descriptors::RECEIVE)
    })?;
    if received.bytes == 0 {
        return Ok(Received::End);
    }
    let stream = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let peer = postcard::from_bytes(&label[..received.bytes]);
    let (Some(stream), Ok(peer)) = (stream, peer) else {
        return Ok(Received::Nonsense);
    };
    let stream = UnixStream::from_std(descriptors::received(stream)?.into())?;
    Ok(Received::Passed(PassedWebSocket { stream, peer }))
}

/// Bytes that say where a WebSocket comes from: what postcard needs at most is 22.
const LABEL: usize = 32;

/// Room for one descriptor.
const SPACE: usize = rustix::cmsg_space!(ScmRights(1));
