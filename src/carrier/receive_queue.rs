//! Where packets from WebSockets and from UDP come together for quinn.

use std::{
    io::IoSliceMut,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket,
    udp::{BATCH_SIZE, RecvMeta},
};
use tokio::sync::mpsc;
use tracing::debug;

use super::transport::LARGEST_PACKET;
use crate::proto::{DATAGRAMS_LIMIT, Datagrams};

/// Packets that came through a WebSocket, under the address that quinn knows it by.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) from: SocketAddr,
    pub(crate) datagrams: Datagrams,
}

/// The receiving end for quinn.
#[derive(Debug)]
pub(crate) struct Inbox(Mutex<Arrivals>);

#[derive(Debug)]
struct Arrivals {
    rx: mpsc::Receiver<Arrival>,
    /// What did not fit into the last buffer.
    rest: Option<Arrival>,
}

/// How many of the buffers were filled, and from where: first the WebSockets', then UDP's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) websocket: usize,
    pub(crate) udp: usize,
}

impl Inbox {
    /// Make an inbox and the sender that every WebSocket gets a clone of.
    pub(crate) fn new() -> (mpsc::Sender<Arrival>, Self) {
        let (tx, rx) = mpsc::channel(WAITING);
        (tx, Self(Mutex::new(Arrivals { rx, rest: None })))
    }

    /// Fill buffers from both carriers, or register to be woken by either.
    ///
    /// WebSockets get at most half of the buffers: neither carrier can keep out the other. Of the rest, UDP
    /// gets half and leaves the other for packets that came together.
    /// An error of the UDP socket is not passed on, since quinn would end every connection.
    pub(crate) fn poll_both(
        &self,
        udp: Option<&dyn AsyncUdpSocket>,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<Filled> {
        let share = bufs.len().div_ceil(2);
        let websocket = self.poll_websockets(cx, &mut bufs[..share], &mut meta[..share]);
        let (bufs, meta) = (&mut bufs[websocket..], &mut meta[websocket..]);
        let share = bufs.len().div_ceil(2);
        let udp = match udp.map(|udp| udp.poll_recv(cx, &mut bufs[..share], &mut meta[..share])) {
            Some(Poll::Ready(Ok(filled))) => part(filled, bufs, meta),
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

/// Give packets that came in one message buffers of their own, as far as there are free ones, and return how
/// many are filled then.
///
/// quinn copies every buffer into one piece of memory, and all of it stays until the last of its packets has
/// been read: among slow readers, sixty packets wait for one.
fn part(filled: usize, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
    let mut free = bufs.len() - filled;
    let mut parts = [Part::default(); BATCH_SIZE];
    for (nth, (part, meta)) in parts.iter_mut().zip(&meta[..filled]).enumerate() {
        *part = Part::of(meta, 1 + free / (filled - nth));
        free -= part.count - 1;
    }
    let all = parts[..filled].iter().map(|part| part.count).sum();
    // From the end on, so that nothing is overwritten that has not been moved.
    let mut to = all;
    for nth in (0..filled).rev() {
        let whole = meta[nth];
        for at in (0..parts[nth].count).rev() {
            to -= 1;
            let from = at * parts[nth].len;
            let bytes = from..whole.len.min(from + parts[nth].len);
            meta[to] = RecvMeta {
                len: bytes.len(),
                ..whole
            };
            if let (source, [target, ..]) = bufs.split_at_mut(to)
                && to > nth
            {
                target[..bytes.len()].copy_from_slice(&source[nth][bytes]);
            }
        }
    }
    all
}

/// How a message is taken apart.
#[derive(Clone, Copy, Default)]
struct Part {
    /// How many parts it has.
    count: usize,
    /// How long each but the last is, in bytes.
    len: usize,
}

impl Part {
    /// Parts of a message, at most so many, that are alike and of whole packets.
    fn of(message: &RecvMeta, most: usize) -> Self {
        let stride = message.stride.max(1);
        let packets = message.len.div_ceil(stride).max(1);
        let each = packets.div_ceil(most);
        Self {
            count: packets.div_ceil(each),
            len: each * stride,
        }
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

/// Messages from all WebSockets that wait for quinn; after that they are not read any more.
///
/// quinn takes them within microseconds, so this only bridges its other work. At worst it holds
/// 64 × 64 KiB.
const WAITING: usize = 64;

/// Packets of the largest size that one receive buffer must hold (`max_receive_segments`): a whole message,
/// or as much as the kernel coalesces. Its own count, 64, is one of small packets: quinn would clear 13 MB for
/// every endpoint, which is most of what a dial then costs.
pub(crate) const RECEIVE_SEGMENTS: usize = DATAGRAMS_LIMIT.div_ceil(LARGEST_PACKET as usize);

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;

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

    /// Messages of so many bytes, in packets of so many, in a number of buffers; and what `part` makes of them.
    fn parted(messages: &[(usize, usize)], buffers: usize) -> Vec<(RecvMeta, Vec<u8>)> {
        let longest = messages.iter().map(|(len, _)| *len).max().unwrap();
        let mut memory = vec![0; longest.max(1) * buffers];
        let mut bufs: Vec<_> = memory
            .chunks_mut(longest.max(1))
            .map(IoSliceMut::new)
            .collect();
        let mut metas = vec![RecvMeta::default(); buffers];
        for (nth, (len, stride)) in messages.iter().enumerate() {
            bufs[nth][..*len].copy_from_slice(&message(nth, *len));
            (metas[nth].len, metas[nth].stride) = (*len, *stride);
            metas[nth].addr.set_port(nth as u16);
        }
        let filled = part(messages.len(), &mut bufs, &mut metas);
        let parts = bufs[..filled].iter().zip(metas);
        parts
            .map(|(buf, meta)| (meta, buf[..meta.len].to_vec()))
            .collect()
    }

    fn message(nth: usize, len: usize) -> Vec<u8> {
        (0..len).map(|at| (nth * 31 + at) as u8).collect()
    }

    #[test]
    fn packets_that_came_together_get_buffers_of_their_own() {
        let parts = parted(&[(10, 4), (3, 3)], 8);

        let lengths: Vec<_> = parts.iter().map(|(meta, _)| meta.len).collect();
        assert_eq!(lengths, [4, 4, 2, 3]);
    }

    #[test]
    fn packets_share_buffers_when_there_are_few() {
        let parts = parted(&[(40, 4), (3, 3)], 4);

        let lengths: Vec<_> = parts.iter().map(|(meta, _)| meta.len).collect();
        assert_eq!(lengths, [20, 20, 3]);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_when_messages_are_taken_apart(
            messages in vec((0_usize..200, 1_usize..50), 1..8),
            free in 0_usize..24,
        ) {
            let parts = parted(&messages, messages.len() + free);

            for (nth, (len, stride)) in messages.iter().enumerate() {
                let of_it = || parts.iter().filter(|(meta, _)| meta.addr.port() == nth as u16);
                let bytes: Vec<_> = of_it().flat_map(|(_, bytes)| bytes).copied().collect();
                prop_assert_eq!(bytes, message(nth, *len));
                prop_assert!(of_it().rev().skip(1).all(|(meta, _)| meta.len % stride == 0));
            }
        }
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
