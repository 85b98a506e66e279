//! The edge process after this one, which reads the UDP socket for both.

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
use super::packet_header::LABEL;

/// Whom the packets of our connections come from.
#[derive(Debug)]
pub struct Successor {
    line: UnixDatagram,
}

/// What the line shall hold while we are busy: as much as a UDP socket. The kernel grants less.
const LINE_BUFFER: usize = 4 << 20;

impl Successor {
    /// Make the line, and what the successor writes to. Needs a runtime.
    ///
    /// # Errors
    /// If the system has no descriptors left, or no such lines.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (line, theirs) = line()?;
        if let Err(err) = SockRef::from(&theirs).set_send_buffer_size(LINE_BUFFER) {
            debug!(%err, "the line to the successor keeps its buffer");
        }
        Ok((Self { line }, theirs))
    }

    /// Receive packets as from a UDP socket; `None` once the successor and all that came after it
    /// are gone.
    pub(crate) fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<Option<usize>> {
        let mut filled = 0;
        while filled < bufs.len() {
            if self.line.poll_recv_ready(cx).is_pending() {
                break;
            }
            let buf = &mut bufs[filled];
            let received = self
                .line
                .try_io(Interest::READABLE, || receive(&self.line, buf));
            match received {
                Ok(Some(received)) => {
                    meta[filled] = received;
                    filled += 1;
                }
                // Nothing is there: the next look has us woken when there is.
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

/// Make a line from a successor. Messages keep their bounds on it, and its end is seen once nobody has
/// the other side any more.
pub(crate) fn line() -> io::Result<(UnixDatagram, OwnedFd)> {
    let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let ours = OwnedFd::from(ours);
    Ok((UnixDatagram::from_std(ours.into())?, theirs.into()))
}

/// Receive one run of packets. One that is not understood is empty.
fn receive(line: &UnixDatagram, buf: &mut [u8]) -> io::Result<Option<RecvMeta>> {
    let mut label = [0; LABEL];
    let received = retry_on_intr(|| {
        let mut message = [IoSliceMut::new(&mut label), IoSliceMut::new(buf)];
        let mut ancillary = RecvAncillaryBuffer::default();
        recvmsg(line, &mut message, &mut ancillary, RecvFlags::DONTWAIT)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let whole = received.bytes >= LABEL && !received.flags.contains(ReturnFlags::TRUNC);
    let meta = whole.then(|| packet_header::read(&label, received.bytes - LABEL));
    Ok(Some(meta.flatten().unwrap_or_default()))
}
