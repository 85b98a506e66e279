//! The successor: the newer process of this edge, which reads the UDP socket for both.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use quinn::udp::RecvMeta;
use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recvmsg};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tracing::debug;

use super::packet_header;
use super::packet_header::PACKET_HEADER;

/// Receives our connections' packets from the newer process.
#[derive(Debug)]
pub struct Successor {
    socket: UnixDatagram,
}

impl Successor {
    /// Create a receiver, and the descriptor to which the successor sends. Needs a runtime.
    ///
    /// # Errors
    /// If the system has no descriptors left, or no such sockets.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (socket, theirs) = socket_pair()?;
        if let Err(err) = SockRef::from(&theirs).set_send_buffer_size(SEND_BUFFER) {
            debug!(%err, "the socket to the successor keeps its buffer");
        }
        Ok((Self { socket }, theirs))
    }

    /// Receive packets as from a UDP socket. Return `None` once the successor and all later processes
    /// are gone.
    pub(crate) fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<Option<usize>> {
        let mut filled = 0;
        while filled < bufs.len() {
            if self.socket.poll_recv_ready(cx).is_pending() {
                break;
            }
            let buf = &mut bufs[filled];
            let received = self
                .socket
                .try_io(Interest::READABLE, || receive(&self.socket, buf));
            match received {
                Ok(Some(received)) => {
                    meta[filled] = received;
                    filled += 1;
                }
                // Nothing to read: the next `poll_recv_ready` registers the waker.
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) | Err(_) if filled == 0 => return Poll::Ready(None),
                Ok(None) | Err(_) => break,
            }
        }
        match filled {
            0 => Poll::Pending,
            filled => Poll::Ready(Some(filled)),
        }
    }
}

/// Create a pair of Unix sockets that preserve message boundaries, and report the end once nobody holds
/// the other side any more (`SOCK_SEQPACKET`). The first is ours, the second is for the successor.
pub(crate) fn socket_pair() -> io::Result<(UnixDatagram, OwnedFd)> {
    let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let ours = OwnedFd::from(ours);
    Ok((UnixDatagram::from_std(ours.into())?, theirs.into()))
}

/// Receive one run of packets, or `None` at the end. A malformed run is returned as empty.
fn receive(socket: &UnixDatagram, buf: &mut [u8]) -> io::Result<Option<RecvMeta>> {
    let mut header = [0; PACKET_HEADER];
    let received = retry_on_intr(|| {
        let mut message = [IoSliceMut::new(&mut header), IoSliceMut::new(buf)];
        let mut ancillary = RecvAncillaryBuffer::default();
        recvmsg(socket, &mut message, &mut ancillary, RecvFlags::DONTWAIT)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let whole = received.bytes >= PACKET_HEADER && !received.flags.contains(ReturnFlags::TRUNC);
    let meta = whole.then(|| packet_header::read(&header, received.bytes - PACKET_HEADER));
    Ok(Some(meta.flatten().unwrap_or_default()))
}

/// The requested buffer size in bytes, for packets that wait while this process is busy: as much as a UDP
/// socket's. The kernel may grant less.
const SEND_BUFFER: usize = 4 << 20;
