//! Where packets from WebSockets and from UDP come together for quinn.

use std::{
    io::IoSliceMut,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

use quinn::{AsyncUdpSocket, udp::RecvMeta};
use tokio::sync::mpsc;
use tracing::debug;

use super::transport::LARGEST_PACKET;
use crate::proto::{DATAGRAMS_LIMIT, Datagrams};

/// Messages from all WebSockets that wait for quinn; after that they are not read any more.
///
/// quinn takes them within microseconds, so this only bridges its other work. At worst it holds
/// 64 × 64 KiB.
const WAITING: usize = 64;

/// Packets of the largest size that one receive buffer must hold (`max_receive_segments`): a whole message,
/// or as much as the kernel coalesces. Its own count, 64, is one of small packets: quinn would clear 13 MB for
/// every endpoint, which is most of what a dial then costs.
pub(super) const RECEIVE_SEGMENTS: usize = DATAGRAMS_LIMIT.div_ceil(LARGEST_PACKET as usize);

/// Packets that came through a WebSocket, under the address that quinn knows it by.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) from: SocketAddr,
    pub(super) datagrams: Datagrams,
}

/// The receiving end for quinn.
#[derive(Debug)]
pub(super) struct Inbox(Mutex<Arrivals>);

#[derive(Debug)]
struct Arrivals {
    rx: mpsc::Receiver<Arrival>,
    /// What did not fit into the last buffer.
    rest: Option<Arrival>,
}

/// How many of the buffers were filled, and from where: first the WebSockets', then UDP's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) websocket: usize,
    pub(super) udp: usize,
}

impl Inbox {
    /// Make an inbox and the sender that every WebSocket gets a clone of.
    pub(super) fn new() -> (mpsc::Sender<Arrival>, Self) {
        let (tx, rx) = mpsc::channel(WAITING);
        (tx, Self(Mutex::new(Arrivals { rx, rest: None })))
    }

    /// Fill buffers from both carriers, or register to be woken by either.
    ///
    /// WebSockets get at most half of the buffers: neither carrier can keep out the other.
    /// An error of the UDP socket is not passed on, since quinn would end every connection.
    pub(super) fn poll_both(
        &self,
        udp: Option<&dyn AsyncUdpSocket>,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<Filled> {
        let share = bufs.len().div_ceil(2);
        let websocket = self.poll_websockets(cx, &mut bufs[..share], &mut meta[..share]);
        let udp = match udp
            .map(|udp| udp.poll_recv(cx, &mut bufs[websocket..], &mut meta[websocket..]))
        {
            Some(Poll::Ready(Ok(filled))) => filled,
            Some(Poll::Ready(Err(err))) => {
                debug!(%err, carrier = "udp", "receiving failed");
                0
            }
            Some(Poll::Pending) | None => 0,
        };
        match (Filled { websocket, udp }) {
            Filled {
                websocket: 0,
                udp: 0,
            } => Poll::Pending,
            filled => Poll::Ready(filled),
        }
    }

    fn poll_websockets(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> usize {
        let mut arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filled = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let arrival = match arrivals.rest.take() {
                Some(rest) => rest,
                None => match arrivals.rx.poll_recv(cx) {
                    Poll::Ready(Some(arrival)) => arrival,
                    Poll::Ready(None) | Poll::Pending => break,
                },
            };
            let (written, rest) = copy(arrival, buf);
            *meta = written;
            arrivals.rest = rest;
            filled += 1;
        }
        filled
    }
}

/// Copy as many whole packets as fit; the rest waits. A packet that could never fit is dropped.
fn copy(mut arrival: Arrival, buf: &mut [u8]) -> (RecvMeta, Option<Arrival>) {
    let stride = arrival.datagrams.stride;
    let fits = match arrival.datagrams.bytes.len() {
        all if all <= buf.len() => all,
        _ => buf.len() / stride * stride,
    };
    let packets = arrival.datagrams.bytes.split_to(fits);
    buf[..fits].copy_from_slice(&packets);
    let meta = RecvMeta {
        addr: arrival.from,
        len: fits,
        stride,
        ecn: None,
        dst_ip: None,
    };
    let more = fits > 0 && !arrival.datagrams.bytes.is_empty();
    (meta, more.then_some(arrival))
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Bytes;

    use super::*;

    fn arrival(stride: usize, bytes: &'static [u8]) -> Arrival {
        Arrival {
            from: ([192, 0, 2, 1], 7).into(),
            datagrams: Datagrams {
                stride,
                bytes: Bytes::from_static(bytes),
            },
        }
    }

    fn receive(inbox: &Inbox, buffer: usize) -> Vec<Vec<u8>> {
        let mut memory = vec![0; buffer * 4];
        let mut bufs: Vec<_> = memory.chunks_mut(buffer).map(IoSliceMut::new).collect();
        let mut meta = [RecvMeta::default(); 4];
        let cx = &mut Context::from_waker(Waker::noop());
        match inbox.poll_both(None, cx, &mut bufs, &mut meta) {
            Poll::Pending => Vec::new(),
            Poll::Ready(filled) => bufs[..filled.websocket]
                .iter()
                .zip(meta)
                .map(|(buf, meta)| buf[..meta.len].to_vec())
                .collect(),
        }
    }

    #[test]
    fn a_message_longer_than_the_buffer_arrives_in_whole_packets() {
        let (tx, inbox) = Inbox::new();
        tx.try_send(arrival(4, b"aaaabbbbccccdd")).unwrap();

        assert_eq!(
            receive(&inbox, 9),
            [b"aaaabbbb".to_vec(), b"ccccdd".to_vec()]
        );
        assert!(receive(&inbox, 9).is_empty());
    }

    #[test]
    fn a_packet_longer_than_the_buffer_is_dropped_and_the_next_message_arrives() {
        let (tx, inbox) = Inbox::new();
        tx.try_send(arrival(12, b"longer than 9")).unwrap();
        tx.try_send(arrival(4, b"next")).unwrap();

        assert_eq!(receive(&inbox, 9), [b"".to_vec(), b"next".to_vec()]);
    }

    #[test]
    fn websockets_leave_half_of_the_buffers_to_udp() {
        let (tx, inbox) = Inbox::new();
        for _ in 0..4 {
            tx.try_send(arrival(4, b"next")).unwrap();
        }

        assert_eq!(receive(&inbox, 9).len(), 2);
        assert_eq!(receive(&inbox, 9).len(), 2);
    }
}
