//! The edge process before this one, which still has connections.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use quinn::udp::RecvMeta;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, recv, sendmsg};
use socket2::SockRef;
use tokio::net::UnixStream;

use super::{descriptors, packet_header, passed_websocket};
use crate::carrier::PathKind;
use crate::carrier::websocket::PeerInfo;

/// Whom some packets and WebSockets have to be passed on to.
#[derive(Debug)]
pub struct Predecessor {
    /// Marks the connection ids of its connections: [`EdgeKeys`](crate::carrier::EdgeKeys).
    ids: u64,
    /// Its [`Successor`](crate::carrier::Successor) reads at the other end.
    line: OwnedFd,
    /// Its [`PassedWebSockets`](crate::carrier::PassedWebSockets) receives at the other end.
    websockets: OwnedFd,
}

/// Bytes of all connection ids of an edge.
const ID: usize = 8;

/// Bytes of a packet that tell whose it is.
pub(crate) const ENOUGH: usize = LONG + ID;

/// Bytes in front of the id in a packet with a long header.
const LONG: usize = 6;

/// Bytes of a WebSocket that may wait between the processes, each way: as many as in front of the
/// network, since packets grow old here as well as there.
const WAITING: usize = 16 * 1024;

impl Predecessor {
    /// Know a process by the key of its connection ids and the lines to it, for packets and for
    /// WebSockets.
    pub fn new(ids: u64, [line, websockets]: [OwnedFd; 2]) -> Self {
        Self {
            ids,
            line,
            websockets,
        }
    }

    /// Return what a third process needs to know it, too.
    pub fn introduce(&self) -> (u64, [BorrowedFd<'_>; 2]) {
        (self.ids, [self.line.as_fd(), self.websockets.as_fd()])
    }

    /// Report whether it has ended.
    pub(crate) fn is_gone(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        // It says nothing there, as long as it is there.
        match recv(&self.websockets, &mut [0; 1][..], flags) {
            Err(err) => !matches!(err, Errno::AGAIN | Errno::INTR),
            Ok(_) => true,
        }
    }

    /// Report whether a packet belongs to one of its connections. Once in 2⁴⁰ that is a mistake, at
    /// the price of a lost packet.
    pub(crate) fn owns(&self, packet: &[u8]) -> bool {
        let ids = HashedConnectionIdGenerator::from_key(self.ids);
        destination(packet).is_some_and(|id| ids.validate(&ConnectionId::new(id)).is_ok())
    }

    /// Have it carry a WebSocket, whose bytes are to be moved from and to the returned stream.
    pub(crate) fn pass_on_websocket(&self, peer: &PeerInfo) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        if peer.reach == PathKind::Network {
            SockRef::from(&ours).set_send_buffer_size(WAITING)?;
            SockRef::from(&theirs).set_send_buffer_size(WAITING)?;
        }
        passed_websocket::send(&self.websockets, peer, theirs.as_fd())?;
        Ok(ours)
    }

    /// Pass packets on. They are lost if it does not keep up, as they are in a network; the error
    /// says that it is gone.
    pub(crate) fn pass_on(&self, meta: &RecvMeta, packets: &[u8]) -> io::Result<()> {
        let label = packet_header::write(meta);
        let message = [IoSlice::new(&label), IoSlice::new(packets)];
        match sendmsg(
            &self.line,
            &message,
            &mut SendAncillaryBuffer::default(),
            descriptors::SEND,
        ) {
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }
}

/// The id of the connection that a packet is for, if it has the length of ours: the first packets
/// of a connection bear longer ones (RFC 8999 §5, RFC 9000 §17).
fn destination(packet: &[u8]) -> Option<&[u8]> {
    let long = packet.first()? & 0x80 != 0;
    let at = match long {
        true if usize::from(*packet.get(LONG - 1)?) == ID => LONG,
        true => return None,
        false => 1,
    };
    packet.get(at..at + ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(key: u64) -> ConnectionId {
        HashedConnectionIdGenerator::from_key(key).generate_cid()
    }

    fn predecessor(key: u64) -> Predecessor {
        let nowhere = || std::fs::File::open("/dev/null").unwrap().into();
        Predecessor::new(key, [nowhere(), nowhere()])
    }

    #[test]
    fn packets_with_ids_of_its_own_are_recognised() {
        let short = [&[0x40][..], &id(1), b"payload"].concat();
        let long = [&[0xe0, 0, 0, 0, 1, 8][..], &id(1), b"payload"].concat();

        assert!(predecessor(1).owns(&short));
        assert!(predecessor(1).owns(&long));
        assert!(!predecessor(2).owns(&short));
        assert!(!predecessor(2).owns(&long));
    }

    #[test]
    fn a_first_packet_is_nobodys() {
        let first = [&[0xc0, 0, 0, 0, 1, 20][..], &id(1), &[0; 12], b"payload"].concat();

        assert!(!predecessor(1).owns(&first));
    }

    #[test]
    fn a_packet_that_is_cut_is_nobodys() {
        let long = [&[0xe0, 0, 0, 0, 1, 8][..], &id(1)].concat();

        assert!((0..long.len()).all(|end| !predecessor(1).owns(&long[..end])));
    }
}
