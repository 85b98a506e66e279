//! Backpressure: waiting until a socket or queue that was full is writable again.
//!
//! A socket that routes packets has several places that can be full, and quinn does not tell its
//! poller which of them blocked the send. [`note_blocked`] records that; [`Poller`] waits for it.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::task;

use super::websocket::send_queue::SendQueue;

/// The place that was full when a transmit was sent.
#[derive(Debug)]
pub(crate) enum WriteGate {
    /// The kernel's send buffer of this UDP socket.
    Udp(Arc<dyn AsyncUdpSocket>),
    /// The send queue of one WebSocket.
    WebSocket(Arc<SendQueue>),
}

thread_local! {
    static BLOCKED: Cell<Option<(Option<task::Id>, WriteGate)>> = const { Cell::new(None) };
}

/// Record what blocked the current task, for its [`Poller`], and return a `WouldBlock` error.
///
/// quinn polls a connection's poller right after `try_send` has returned `WouldBlock`, in the same
/// task and without yielding, so a thread-local record reaches the right poller. The task id guards
/// it against sends that are never polled for (stateless responses of the endpoint).
pub(crate) fn note_blocked(gate: WriteGate) -> io::Error {
    BLOCKED.set(Some((task::try_id(), gate)));
    io::ErrorKind::WouldBlock.into()
}

/// Wakes one connection when the gate that blocked it has room again.
#[derive(Debug, Default)]
pub(crate) struct Poller {
    waiting: Option<WriteGate>,
    /// The poller of the UDP socket that was full last. An agent gets a new socket when its network changes;
    /// waiting for the old one, which has room, would make the connection spin.
    udp: Option<UdpSocketPoller>,
}

/// A UDP socket and its poller.
type UdpSocketPoller = (Arc<dyn AsyncUdpSocket>, Pin<Box<dyn UdpPoller>>);

impl Poller {
    fn poll_udp(
        &mut self,
        socket: &Arc<dyn AsyncUdpSocket>,
        cx: &mut Context,
    ) -> Poll<io::Result<()>> {
        if !matches!(&self.udp, Some((known, _)) if Arc::ptr_eq(known, socket)) {
            self.udp = None;
        }
        let (_, poller) = self
            .udp
            .get_or_insert_with(|| (socket.clone(), socket.clone().create_io_poller()));
        poller.as_mut().poll_writable(cx)
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        if let Some((task, gate)) = BLOCKED.take()
            && task == task::try_id()
        {
            self.waiting = Some(gate);
        }
        let Some(gate) = self.waiting.take() else {
            return Poll::Ready(Ok(()));
        };
        let polled = match &gate {
            WriteGate::WebSocket(queue) => queue.poll_ready(cx).map(Ok),
            WriteGate::Udp(socket) => self.poll_udp(socket, cx),
        };
        if polled.is_pending() {
            self.waiting = Some(gate);
        }
        polled
    }
}
