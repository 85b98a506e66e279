//! The predecessor: an older process of this edge that still has connections.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use quinn::udp::RecvMeta;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, recv, sendmsg};
use socket2::SockRef;
use tokio::net::UnixStream;

use super::{descriptors, packet_header, passed_websocket};
use crate::carrier::websocket::PeerInfo;
use crate::net::path_kind::PathKind;

/// An older process, to which the packets and WebSockets of its connections are passed on.
#[derive(Debug)]
pub struct Predecessor {
    /// The key of its connection ids: [`EdgeKeys`](crate::carrier::EdgeKeys).
    id_key: u64,
    /// The socket for packets. Its [`Successor`](super::successor::Successor) receives at the other end.
    packets: OwnedFd,
    /// The socket for WebSockets. Its [`PassedWebSockets`](super::passed_websocket::PassedWebSockets) receives at the other
    /// end.
    websockets: OwnedFd,
}

impl Predecessor {
    /// Describe a process by the key of its connection ids and the sockets to it, for packets and for
    /// WebSockets.
    pub fn new(id_key: u64, [packets, websockets]: [OwnedFd; 2]) -> Self {
        Self {
            id_key,
            packets,
            websockets,
        }
    }

    /// Return the key and the sockets, with which a third process can create the same `Predecessor`.
    pub fn handover_parts(&self) -> (u64, [BorrowedFd<'_>; 2]) {
        (self.id_key, [self.packets.as_fd(), self.websockets.as_fd()])
    }

    /// Report whether the process has ended.
    pub(crate) fn is_gone(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        // The process never sends anything on this socket, so data or an end means that it is gone.
        match recv(&self.websockets, &mut [0; 1][..], flags) {
            Err(err) => !matches!(err, Errno::AGAIN | Errno::INTR),
            Ok(_) => true,
        }
    }

    /// Report whether a packet belongs to one of its connections. A false positive, once in 2⁴⁰, costs
    /// one packet.
    pub(crate) fn owns(&self, packet: &[u8]) -> bool {
        let ids = HashedConnectionIdGenerator::from_key(self.id_key);
        destination(packet).is_some_and(|id| ids.validate(&ConnectionId::new(id)).is_ok())
    }

    /// Pass on a WebSocket. The caller must relay its bytes over the returned stream.
    pub(crate) fn pass_on_websocket(&self, peer: &PeerInfo) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        if peer.path_kind == PathKind::Network {
            SockRef::from(&ours).set_send_buffer_size(RELAY_BUFFER)?;
            SockRef::from(&theirs).set_send_buffer_size(RELAY_BUFFER)?;
        }
        passed_websocket::send(&self.websockets, peer, theirs.as_fd())?;
        Ok(ours)
    }

    /// Pass on packets. If the process does not keep up, they are dropped, as in a network.
    ///
    /// # Errors
    /// If the process does not receive packets, usually because it is gone.
    pub(crate) fn pass_on(&self, meta: &RecvMeta, packets: &[u8]) -> io::Result<()> {
        let header = packet_header::write(meta);
        let message = [IoSlice::new(&header), IoSlice::new(packets)];
        match sendmsg(
            &self.packets,
            &message,
            &mut SendAncillaryBuffer::default(),
            descriptors::SEND,
        ) {
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }
}

/// Return the destination connection id of a packet, if it may be one of an edge's: the first packets of
/// a connection have longer ids (RFC 8999 §5, RFC 9000 §17).
fn destination(packet: &[u8]) -> Option<&[u8]> {
    let long = packet.first()? & 0x80 != 0;
    let at = match long {
        true if usize::from(*packet.get(LONG_HEADER_ID_OFFSET - 1)?) == CONNECTION_ID => {
            LONG_HEADER_ID_OFFSET
        }
        true => return None,
        false => 1,
    };
    packet.get(at..at + CONNECTION_ID)
}

/// The length of an edge's connection ids, in bytes.
const CONNECTION_ID: usize = 8;

/// The offset of the destination connection id in a packet with a long header (RFC 8999 §5.1).
const LONG_HEADER_ID_OFFSET: usize = 6;

/// The bytes at the start of a packet that suffice to find its connection id.
pub(crate) const ID_PREFIX: usize = LONG_HEADER_ID_OFFSET + CONNECTION_ID;

/// Bytes of a WebSocket that may wait between the processes, in each direction: as many as may wait in
/// front of the network, since queueing delay is as harmful here as there.
const RELAY_BUFFER: usize = 16 * 1024;

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
    fn packets_with_its_connection_ids_are_recognised() {
        let short = [&[0x40][..], &id(1), b"payload"].concat();
        let long = [&[0xe0, 0, 0, 0, 1, 8][..], &id(1), b"payload"].concat();

        assert!(predecessor(1).owns(&short));
        assert!(predecessor(1).owns(&long));
        assert!(!predecessor(2).owns(&short));
        assert!(!predecessor(2).owns(&long));
    }

    #[test]
    fn a_first_packet_belongs_to_no_process() {
        let first = [&[0xc0, 0, 0, 0, 1, 20][..], &id(1), &[0; 12], b"payload"].concat();

        assert!(!predecessor(1).owns(&first));
    }

    #[test]
    fn a_truncated_packet_belongs_to_no_process() {
        let long = [&[0xe0, 0, 0, 0, 1, 8][..], &id(1)].concat();

        assert!((0..long.len()).all(|end| !predecessor(1).owns(&long[..end])));
    }
}
