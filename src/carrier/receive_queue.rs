//! The receive queue below quinn, in which packets from WebSockets and from UDP are merged.

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

/// Packets received over one WebSocket.
#[derive(Debug)]
pub(crate) struct ReceivedPackets {
    /// The address by which quinn knows the WebSocket.
    pub(crate) from: SocketAddr,
    pub(crate) datagrams: Datagrams,
}

/// Merges the packets of all WebSockets and of the UDP socket for quinn.
#[derive(Debug)]
pub(crate) struct ReceiveQueue(Mutex<State>);

#[derive(Debug)]
struct State {
    rx: mpsc::Receiver<ReceivedPackets>,
    /// The packets that did not fit into the last buffer.
    rest: Option<ReceivedPackets>,
}

/// The numbers of buffers filled, by carrier. Those from WebSockets come first, those from UDP follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) websocket: usize,
    pub(crate) udp: usize,
}

impl ReceiveQueue {
    /// Create a queue, and the sender of which every WebSocket gets a clone.
    pub(crate) fn new() -> (mpsc::Sender<ReceivedPackets>, Self) {
        let (tx, rx) = mpsc::channel(QUEUE_CAPACITY);
        (tx, Self(Mutex::new(State { rx, rest: None })))
    }

    /// Fill buffers from both carriers, or register to be woken by either.
    ///
    /// WebSockets get at most half of the buffers, so that neither carrier can starve the other. Of the rest, UDP
    /// gets half and leaves the other half for splitting coalesced packets.
    /// An error of the UDP socket is only logged: quinn would end every connection.
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
            Some(Poll::Ready(Ok(filled))) => split_messages(filled, bufs, meta),
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
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filled = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let received = match state.rest.take() {
                Some(rest) => rest,
                None => match state.rx.poll_recv(cx) {
                    Poll::Ready(Some(received)) => received,
                    Poll::Ready(None) | Poll::Pending => break,
                },
            };
            let (written, rest) = copy(received, buf);
            *meta = written;
            state.rest = rest;
            filled += 1;
        }
        filled
    }
}

/// Split coalesced packets (GRO) over the free buffers, and return the number of buffers that are filled then.
///
/// quinn copies every buffer into one allocation, which lives until the last of its packets has been read: with
/// slow readers, one unread packet keeps sixty packets in memory.
fn split_messages(filled: usize, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
    let mut free = bufs.len() - filled;
    let mut splits = [Split::default(); BATCH_SIZE];
    for (nth, (split, meta)) in splits.iter_mut().zip(&meta[..filled]).enumerate() {
        *split = Split::of(meta, 1 + free / (filled - nth));
        free -= split.count - 1;
    }
    let all = splits[..filled].iter().map(|split| split.count).sum();
    // Backwards, so that nothing is overwritten before it has been moved.
    let mut to = all;
    for nth in (0..filled).rev() {
        let whole = meta[nth];
        for at in (0..splits[nth].count).rev() {
            to -= 1;
            let from = at * splits[nth].len;
            let bytes = from..whole.len.min(from + splits[nth].len);
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

/// The division of a message over several buffers.
#[derive(Clone, Copy, Default)]
struct Split {
    /// The number of parts.
    count: usize,
    /// The length of each part but the last, in bytes.
    len: usize,
}

impl Split {
    /// Divide a message into at most `max` equal parts of whole packets.
    fn of(message: &RecvMeta, max: usize) -> Self {
        let stride = message.stride.max(1);
        let packets = message.len.div_ceil(stride).max(1);
        let each = packets.div_ceil(max);
        Self {
            count: packets.div_ceil(each),
            len: each * stride,
        }
    }
}

/// Copy as many whole packets as fit, and return the rest. A packet that is longer than the buffer is dropped.
fn copy(mut received: ReceivedPackets, buf: &mut [u8]) -> (RecvMeta, Option<ReceivedPackets>) {
    let stride = received.datagrams.stride;
    let fits = match received.datagrams.bytes.len() {
        all if all <= buf.len() => all,
        _ => buf.len() / stride * stride,
    };
    let packets = received.datagrams.bytes.split_to(fits);
    buf[..fits].copy_from_slice(&packets);
    let meta = RecvMeta {
        addr: received.from,
        len: fits,
        stride,
        ecn: None,
        dst_ip: None,
    };
    let more = fits > 0 && !received.datagrams.bytes.is_empty();
    (meta, more.then_some(received))
}

/// Messages of all WebSockets that may wait for quinn. When the queue is full, WebSockets are not read
/// (backpressure).
///
/// quinn takes messages within microseconds, so the queue only covers the time of its other work. At worst
/// it holds 64 × 64 KiB.
const QUEUE_CAPACITY: usize = 64;

/// Packets of the largest size that one receive buffer must hold (`max_receive_segments`): a whole message,
/// or as much as the kernel coalesces. The kernel's own count of 64 assumes small packets: with it, quinn would
/// zero 13 MB for every endpoint, which would then be most of the cost of a dial.
pub(crate) const RECEIVE_SEGMENTS: usize = DATAGRAMS_LIMIT.div_ceil(LARGEST_PACKET as usize);

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn received(stride: usize, bytes: &'static [u8]) -> ReceivedPackets {
        ReceivedPackets {
            from: ([192, 0, 2, 1], 7).into(),
            datagrams: Datagrams {
                stride,
                bytes: Bytes::from_static(bytes),
            },
        }
    }

    fn receive(receive_queue: &ReceiveQueue, buffer: usize) -> Vec<Vec<u8>> {
        let mut memory = vec![0; buffer * 4];
        let mut bufs: Vec<_> = memory.chunks_mut(buffer).map(IoSliceMut::new).collect();
        let mut meta = [RecvMeta::default(); 4];
        let cx = &mut Context::from_waker(Waker::noop());
        match receive_queue.poll_both(None, cx, &mut bufs, &mut meta) {
            Poll::Pending => Vec::new(),
            Poll::Ready(filled) => bufs[..filled.websocket]
                .iter()
                .zip(meta)
                .map(|(buf, meta)| buf[..meta.len].to_vec())
                .collect(),
        }
    }

    #[test]
    fn a_message_longer_than_the_buffer_is_delivered_in_whole_packets() {
        let (tx, receive_queue) = ReceiveQueue::new();
        tx.try_send(received(4, b"aaaabbbbccccdd")).unwrap();

        assert_eq!(
            receive(&receive_queue, 9),
            [b"aaaabbbb".to_vec(), b"ccccdd".to_vec()]
        );
        assert!(receive(&receive_queue, 9).is_empty());
    }

    #[test]
    fn a_packet_longer_than_the_buffer_is_dropped_and_the_next_message_arrives() {
        let (tx, receive_queue) = ReceiveQueue::new();
        tx.try_send(received(12, b"longer than 9")).unwrap();
        tx.try_send(received(4, b"next")).unwrap();

        assert_eq!(receive(&receive_queue, 9), [b"".to_vec(), b"next".to_vec()]);
    }

    /// Fill buffers with messages, each given as its length and its packets' length, and return the result of
    /// [`split_messages`].
    fn split_up(messages: &[(usize, usize)], buffers: usize) -> Vec<(RecvMeta, Vec<u8>)> {
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
        let filled = split_messages(messages.len(), &mut bufs, &mut metas);
        let splits = bufs[..filled].iter().zip(metas);
        splits
            .map(|(buf, meta)| (meta, buf[..meta.len].to_vec()))
            .collect()
    }

    fn message(nth: usize, len: usize) -> Vec<u8> {
        (0..len).map(|at| (nth * 31 + at) as u8).collect()
    }

    #[test]
    fn coalesced_packets_get_a_buffer_each() {
        let splits = split_up(&[(10, 4), (3, 3)], 8);

        let lengths: Vec<_> = splits.iter().map(|(meta, _)| meta.len).collect();
        assert_eq!(lengths, [4, 4, 2, 3]);
    }

    #[test]
    fn packets_share_buffers_when_there_are_few() {
        let splits = split_up(&[(40, 4), (3, 3)], 4);

        let lengths: Vec<_> = splits.iter().map(|(meta, _)| meta.len).collect();
        assert_eq!(lengths, [20, 20, 3]);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_when_messages_are_split(
            messages in vec((0_usize..200, 1_usize..50), 1..8),
            free in 0_usize..24,
        ) {
            let splits = split_up(&messages, messages.len() + free);

            for (nth, (len, stride)) in messages.iter().enumerate() {
                let of_it = || splits.iter().filter(|(meta, _)| meta.addr.port() == nth as u16);
                let bytes: Vec<_> = of_it().flat_map(|(_, bytes)| bytes).copied().collect();
                prop_assert_eq!(bytes, message(nth, *len));
                prop_assert!(of_it().rev().skip(1).all(|(meta, _)| meta.len % stride == 0));
            }
        }
    }

    #[test]
    fn websockets_leave_half_of_the_buffers_to_udp() {
        let (tx, receive_queue) = ReceiveQueue::new();
        for _ in 0..4 {
            tx.try_send(received(4, b"next")).unwrap();
        }

        assert_eq!(receive(&receive_queue, 9).len(), 2);
        assert_eq!(receive(&receive_queue, 9).len(), 2);
    }
}
