//! The agent's socket: quinn sees one edge at one address, whatever carries the packets.
//!
//! It is a face of the [`Switch`]. quinn gets a new one each time that it shall notice a change: it
//! then pings, and uses another connection id (RFC 9000 §9.5).

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::switch::{EDGE, Switch};
use crate::carrier::receive_queue;
use crate::carrier::writable::Poller;

/// What quinn holds.
pub(crate) struct AgentSocket {
    switch: Arc<Switch>,
    /// Set once quinn has another face: quinn then stops reading this one.
    retired: AtomicBool,
    /// Set when quinn is about to have another face: until then it reads nothing more.
    paused: AtomicBool,
}

impl AgentSocket {
    pub(crate) fn new(switch: Arc<Switch>) -> Arc<Self> {
        Arc::new(Self {
            switch,
            retired: AtomicBool::new(false),
            paused: AtomicBool::new(false),
        })
    }

    /// Make another face of the same switch.
    pub(crate) fn successor(&self) -> Arc<Self> {
        Self::new(self.switch.clone())
    }

    /// Have quinn read nothing more through this face, until it has another one.
    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    /// Make quinn let go of this face. Only after it has been given another one: from the socket
    /// in use an error ends the endpoint.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

impl AsyncUdpSocket for AgentSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller::default())
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.switch.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if self.retired.load(Ordering::Relaxed) {
            // Not `ConnectionReset`, which quinn answers by reading again without end.
            return Poll::Ready(Err(io::Error::other("another socket has taken over")));
        }
        if self.paused.load(Ordering::Relaxed) {
            // Who has paused it gives quinn another one, and that wakes it.
            return Poll::Pending;
        }
        self.switch.poll_recv(cx, bufs, meta).map(Ok)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((Ipv6Addr::UNSPECIFIED, EDGE.port()).into())
    }

    fn max_transmit_segments(&self) -> usize {
        self.switch.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        receive_queue::RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        let udp = self.switch.udp_route();
        udp.is_some_and(|udp| udp.socket.may_fragment())
    }
}

impl fmt::Debug for AgentSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentSocket")
            .field("carrier", &self.switch.current())
            .finish_non_exhaustive()
    }
}
