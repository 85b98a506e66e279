//! A UDP socket that the processes of an edge share while one takes over from the other (hot restart).
//!
//! All processes have the same kernel socket. All send on it; only the newest one reads it. Each process
//! generates connection ids with a key of its own, by which the newest one recognises packets of the
//! others' connections, and passes them on.
//!
//! ```text
//!                       ┌───────────────── successor ─────────────────┐
//!  network ──▶ socket ──┤ its own and unknown ids ────────▶ quinn     │
//!                 ▲     │ ids of the predecessor ──▶ pipe ─┐          │
//!                 │     └──────────────────────────────────│──────────┘
//!                 │     ┌──────────────── predecessor ─────▼──────────┐
//!                 └─────┤ quinn ◀───────────────────────── pipe       │
//!                       └─────────────────────────────────────────────┘
//! ```
//!
//! A connection thus stays with the process that accepted it until it ends, and neither the agent nor
//! anything on the path notices. The pipe is a Unix socket that preserves message boundaries.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::task::AtomicWaker;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio_util::sync::CancellationToken;

use super::predecessors::Predecessors;
use super::successor::Successor;

/// One process's view of the shared socket.
pub struct SharedUdp {
    udp: Arc<dyn AsyncUdpSocket>,
    role: Mutex<Role>,
    predecessors: Predecessors,
    /// The task that polls for packets.
    reader: AtomicWaker,
    orphaned: CancellationToken,
}

/// The reader of the socket.
enum Role {
    /// The predecessor reads it, until it hands over.
    Waiting,
    /// This process reads it.
    Reading,
    /// The successor reads it.
    Succeeded(Successor),
}

impl SharedUdp {
    /// Share a socket that no other process reads.
    pub fn reading(udp: Arc<dyn AsyncUdpSocket>) -> Arc<Self> {
        Self::new(udp, Role::Reading, Predecessors::default())
    }

    /// Share a socket that the predecessors still read.
    pub fn waiting(udp: Arc<dyn AsyncUdpSocket>, predecessors: Predecessors) -> Arc<Self> {
        Self::new(udp, Role::Waiting, predecessors)
    }

    fn new(udp: Arc<dyn AsyncUdpSocket>, role: Role, predecessors: Predecessors) -> Arc<Self> {
        Arc::new(Self {
            udp,
            role: Mutex::new(role),
            predecessors,
            reader: AtomicWaker::new(),
            orphaned: CancellationToken::new(),
        })
    }

    /// Start reading the socket.
    pub fn read(&self) {
        self.set_role(Role::Reading);
    }

    /// Stop reading the socket, and receive packets from the successor instead.
    pub fn hand_over(&self, successor: Successor) {
        self.set_role(Role::Succeeded(successor));
    }

    /// Wait until the successor and all later processes are gone: then nobody reads the socket any more.
    pub async fn orphaned(&self) {
        self.orphaned.cancelled().await;
    }

    fn set_role(&self, role: Role) {
        *lock(&self.role) = role;
        self.reader.wake();
    }
}

impl AsyncUdpSocket for SharedUdp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.udp.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.udp.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.reader.register(cx.waker());
        let filled = match &*lock(&self.role) {
            Role::Waiting => return Poll::Pending,
            Role::Reading => ready!(self.udp.poll_recv(cx, bufs, meta))?,
            Role::Succeeded(successor) => match ready!(successor.poll_recv(cx, bufs, meta)) {
                Some(filled) => filled,
                None => {
                    self.orphaned.cancel();
                    return Poll::Pending;
                }
            },
        };
        self.predecessors.pass_on_packets(bufs, &mut meta[..filled]);
        Poll::Ready(Ok(filled))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.udp.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.udp.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.udp.may_fragment()
    }
}

impl fmt::Debug for SharedUdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedUdp")
            .field("udp", &self.udp)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::UdpSocket;

    use quinn::{Runtime, TokioRuntime};
    use quinn_proto::{ConnectionIdGenerator, HashedConnectionIdGenerator};

    use super::*;
    use crate::carrier::handover::passed_websocket::PassedWebSockets;
    use crate::carrier::handover::predecessor::Predecessor;

    /// The first of two processes.
    struct First {
        udp: Arc<SharedUdp>,
        /// Not read; keeps the process recognisable as running.
        _websockets: PassedWebSockets,
    }

    /// Return two processes' views of one socket, and its address.
    fn shared(key: u64) -> (First, Arc<SharedUdp>, SocketAddr) {
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = ours.local_addr().unwrap();
        let wrap = |socket| TokioRuntime.wrap_udp_socket(socket).unwrap();
        let theirs = wrap(ours.try_clone().unwrap());
        let before = SharedUdp::reading(wrap(ours));
        let (successor, packets) = Successor::new().unwrap();
        let (passed, websockets) = PassedWebSockets::new().unwrap();
        let predecessor = Predecessor::new(key, [packets, websockets]);
        let after = SharedUdp::waiting(theirs, [predecessor].into_iter().collect());
        before.hand_over(successor);
        after.read();
        let first = First {
            udp: before,
            _websockets: passed,
        };
        (first, after, addr)
    }

    /// Receive packets, skipping empty ones.
    async fn receive(socket: &SharedUdp) -> (Vec<u8>, RecvMeta) {
        let mut memory = [0; 2048];
        loop {
            let mut meta = [RecvMeta::default()];
            let filled =
                poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut memory)], &mut meta));
            filled.await.unwrap();
            if meta[0].len > 0 {
                return (memory[..meta[0].len].to_vec(), meta[0]);
            }
        }
    }

    #[tokio::test]
    async fn packets_go_to_the_process_that_has_their_connection() {
        let (before, after, addr) = shared(1);
        let id = |key| HashedConnectionIdGenerator::from_key(key).generate_cid();
        let agent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let old = [&[0x40][..], &id(1), b"old"].concat();
        let new = [&[0x40][..], &id(2), b"new"].concat();

        agent.send_to(&old, addr).unwrap();
        agent.send_to(&new, addr).unwrap();

        let (received, meta) = receive(&after).await;
        assert_eq!((received, meta.addr), (new, agent.local_addr().unwrap()));
        let (received, meta) = receive(&before.udp).await;
        assert_eq!((received, meta.addr), (old, agent.local_addr().unwrap()));
        assert_eq!(meta.dst_ip, Some(addr.ip()));
    }

    #[tokio::test]
    async fn a_process_notices_that_its_successor_is_gone() {
        let (before, after, _) = shared(1);

        drop(after);

        tokio::select! {
            received = receive(&before.udp) => panic!("{received:?}"),
            () = before.udp.orphaned() => {}
        }
    }

    #[tokio::test]
    async fn a_predecessor_that_is_gone_is_removed() {
        let (before, after, addr) = shared(1);
        let agent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let id = HashedConnectionIdGenerator::from_key(1).generate_cid();

        drop(before);
        agent.send_to(&[&[0x40][..], &id].concat(), addr).unwrap();
        agent.send_to(b"new", addr).unwrap();

        assert_eq!(receive(&after).await.0, b"new");
        assert!(after.predecessors.alive().is_empty());
    }
}
