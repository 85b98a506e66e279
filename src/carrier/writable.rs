//! What a connection waits for when something on its way is full.
//!
//! [`WriteGate`] and [`Poller`] tell a connection when it may send again: a socket that routes has many
//! places that can be full, and quinn does not say to its poller which of them it ran into.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::task;

use super::websocket::send_queue::Queue;

/// What stood in the way of a transmit.
#[derive(Debug)]
pub(crate) enum WriteGate {
    /// The kernel's send buffer of this UDP socket.
    Udp(Arc<dyn AsyncUdpSocket>),
    /// The queue of one WebSocket.
    WebSocket(Arc<Queue>),
}

thread_local! {
    static BLOCKED: Cell<Option<(Option<task::Id>, WriteGate)>> = const { Cell::new(None) };
}

/// Note what blocked the current task, for its [`Poller`], and answer `WouldBlock`.
///
/// quinn polls a connection's poller right after `try_send` has answered `WouldBlock`, in the same
/// task and without yielding, so a note per thread reaches the right poller. The task's id guards
/// it against the sends that nobody polls for (stateless answers of the endpoint).
pub(crate) fn note_blocked(gate: WriteGate) -> io::Error {
    BLOCKED.set(Some((task::try_id(), gate)));
    io::ErrorKind::WouldBlock.into()
}

/// Wakes one connection when whatever blocked it has room again.
#[derive(Debug, Default)]
pub(crate) struct Poller {
    waiting: Option<WriteGate>,
    /// The poller of the UDP socket that was full last. An agent's is another one in another network, and to
    /// wait for the one before, which has room, would be to try for ever.
    udp: Option<UdpSocketPoller>,
}

/// A UDP socket, and what tells when it has room.
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
            WriteGate::WebSocket(queue) => queue.poll_room(cx).map(Ok),
            WriteGate::Udp(socket) => self.poll_udp(socket, cx),
        };
        if polled.is_pending() {
            self.waiting = Some(gate);
        }
        polled
    }
}
