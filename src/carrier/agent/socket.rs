//! The agent's socket: quinn sees one edge at one address, whichever carrier moves the packets.
//!
//! It is a thin handle to the [`Switch`]. quinn is given a new one each time that it should notice a
//! change of path: it then sends a PING and switches to another connection id (RFC 9000 §9.5).

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

/// The socket that quinn holds.
pub(crate) struct AgentSocket {
    switch: Arc<Switch>,
    /// Set once quinn has a successor of this socket, so that quinn stops reading this one.
    retired: AtomicBool,
    /// Set while quinn is about to get a successor: until then, it reads nothing more.
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

    /// Create another socket of the same switch.
    pub(crate) fn successor(&self) -> Arc<Self> {
        Self::new(self.switch.clone())
    }

    /// Stop quinn from reading through this socket until it has a successor.
    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    /// Make quinn drop this socket. Call it only after quinn has been given a successor: an error from
    /// the socket in use ends the endpoint.
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
            // Not `ConnectionReset`: quinn would retry it in an endless loop.
            return Poll::Ready(Err(io::Error::other("another socket has taken over")));
        }
        if self.paused.load(Ordering::Relaxed) {
            // Rebinding quinn to the successor wakes it.
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
