//! UDP sockets of the simulated network.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::time::{Instant, Sleep, sleep_until};

use super::network::Network;

/// Datagrams on their way to one socket.
#[derive(Default)]
pub(crate) struct Mailbox(Mutex<Inner>);

/// Arrival time, sequence number, source, and contents.
type QueuedDatagram = (Instant, u64, SocketAddr, Vec<u8>);

#[derive(Default)]
struct Inner {
    arriving: BinaryHeap<Reverse<QueuedDatagram>>,
    count: u64,
    waker: Option<Waker>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Mailbox {
    pub(crate) fn put(&self, due: Instant, from: SocketAddr, datagram: Vec<u8>) {
        let mut inner = self.0.lock().unwrap();
        inner.count += 1;
        let count = inner.count;
        inner.arriving.push(Reverse((due, count, from, datagram)));
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }
}

/// A simulated socket; it is closed when dropped.
pub(crate) struct MemoryUdp {
    network: Arc<Network>,
    addr: SocketAddr,
    mailbox: Arc<Mailbox>,
}

impl MemoryUdp {
    /// Open a socket at an address, or behind the agent's NAT.
    pub(crate) fn open(network: &Arc<Network>, addr: Option<SocketAddr>) -> Arc<Self> {
        let (addr, mailbox) = network.open(addr);
        Arc::new(Self {
            network: network.clone(),
            addr,
            mailbox,
        })
    }
}

impl Drop for MemoryUdp {
    fn drop(&mut self) {
        self.network.close(self.addr);
    }
}

impl AsyncUdpSocket for MemoryUdp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        for datagram in transmit.contents.chunks(segment) {
            self.network
                .carry(self.addr, transmit.destination, datagram);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.mailbox.0.lock().unwrap();
        let now = Instant::now();
        let mut filled = 0;
        while filled < bufs.len()
            && let Some(Reverse((due, ..))) = inner.arriving.peek()
            && *due <= now
        {
            let Some(Reverse((_, _, from, datagram))) = inner.arriving.pop() else {
                break;
            };
            bufs[filled][..datagram.len()].copy_from_slice(&datagram);
            meta[filled] = RecvMeta {
                addr: from,
                len: datagram.len(),
                stride: datagram.len(),
                ecn: None,
                dst_ip: None,
            };
            filled += 1;
        }
        if filled > 0 {
            return Poll::Ready(Ok(filled));
        }
        inner.waker = Some(cx.waker().clone());
        let next = inner.arriving.peek().map(|Reverse((due, ..))| *due);
        inner.timer = next.map(|due| Box::pin(sleep_until(due)));
        if let Some(timer) = &mut inner.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    fn max_transmit_segments(&self) -> usize {
        10
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl fmt::Debug for MemoryUdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryUdp({})", self.addr)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
