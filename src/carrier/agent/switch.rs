//! The switch: both carriers of an agent's connection behind one address.
//!
//! Packets are received from both carriers and sent over the current one, and the times of both are
//! recorded as evidence. The [`Driver`](super::driver::Driver) decides which carrier is current.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use quinn::udp::{RecvMeta, Transmit};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::udp_route::UdpRoute;
use crate::carrier::Carrier;
use crate::carrier::congestion::CongestionOwner;
use crate::carrier::congestion::SharedCongestionOwner;
use crate::carrier::duplicate::saved_transmit::SavedTransmit;
use crate::carrier::duplicate::send_log::SendLog;
use crate::carrier::gso_limit::send_over_udp;
use crate::carrier::receive_queue::{ReceiveQueue, ReceivedPackets};
use crate::carrier::selection::probe::Probe;
use crate::carrier::selection::receive_monitor::{ReceiveActivity, ReceiveMonitor};
use crate::carrier::websocket::WebSocketLink;
use crate::carrier::writable::{WriteGate, note_blocked};
use crate::proto::DATAGRAMS_COUNT;

/// Both carriers of one connection.
pub(crate) struct Switch {
    routes: RwLock<Routes>,
    receive_queue: ReceiveQueue,
    packet_sender: mpsc::Sender<ReceivedPackets>,
    udp: ReceiveMonitor,
    websocket: ReceiveMonitor,
    /// The owner of congestion control on the current carrier.
    congestion_owner: SharedCongestionOwner,
    /// The last packets of the latest transmit, for resending them over another carrier.
    last: Mutex<Option<SavedTransmit>>,
    /// The packets that were sent over UDP.
    send_log: SendLog,
    /// The unanswered probes, and the addresses that they were sent to.
    probes: Mutex<Vec<(Probe, SocketAddr)>>,
    /// The addresses that have answered a probe since the last [`take_answers`](Self::take_answers).
    answers: Mutex<Vec<SocketAddr>>,
    /// Set while the driver waits in [`activity`](Self::activity).
    watcher_waits: AtomicBool,
    active: Notify,
}

struct Routes {
    current: Carrier,
    udp: Option<Arc<UdpRoute>>,
    websocket: Option<Arc<WebSocketLink>>,
    /// UDP is the current carrier but may be dead: send over the WebSocket, too.
    send_on_both: bool,
}

impl Switch {
    /// Create a switch that sends over `current`.
    pub(crate) fn new(
        current: Carrier,
        udp: Option<UdpRoute>,
        websocket: Option<Arc<WebSocketLink>>,
    ) -> Self {
        let (packet_sender, receive_queue) = ReceiveQueue::new();
        Self {
            routes: RwLock::new(Routes {
                current,
                udp: udp.map(Arc::new),
                websocket,
                send_on_both: false,
            }),
            receive_queue,
            packet_sender,
            udp: ReceiveMonitor::new(),
            websocket: ReceiveMonitor::new(),
            congestion_owner: SharedCongestionOwner::default(),
            last: Mutex::default(),
            send_log: SendLog::default(),
            probes: Mutex::default(),
            answers: Mutex::default(),
            watcher_waits: AtomicBool::new(false),
            active: Notify::new(),
        }
    }

    /// Return a sender into the receive queue, for a WebSocket of this agent.
    pub(crate) fn packet_sender(&self) -> mpsc::Sender<ReceivedPackets> {
        self.packet_sender.clone()
    }

    /// Return the current carrier.
    pub(crate) fn current(&self) -> Carrier {
        self.routes().current
    }

    /// Return the shared owner of congestion control, which the connection's congestion controller reads.
    pub(crate) fn congestion_owner(&self) -> &SharedCongestionOwner {
        &self.congestion_owner
    }

    /// Return the evidence of packets received over UDP.
    pub(crate) fn udp_activity(&self) -> ReceiveActivity {
        self.udp.activity()
    }

    /// Return the evidence of packets received over the WebSocket.
    pub(crate) fn websocket_activity(&self) -> ReceiveActivity {
        self.websocket.activity()
    }

    /// Return the current route over UDP, if there is one.
    pub(crate) fn udp_route(&self) -> Option<Arc<UdpRoute>> {
        self.routes().udp.clone()
    }

    /// Report whether the current carrier's queue is full. If so, silence does not mean that there is nothing to
    /// send.
    pub(crate) fn is_full(&self) -> bool {
        let routes = self.routes();
        match (routes.current, &routes.websocket) {
            (Carrier::WebSocket, Some(link)) => link.queue.is_full(),
            _ => false,
        }
    }

    /// Send over the current carrier.
    ///
    /// The only error is `WouldBlock`. Packets that the network refuses are dropped, and QUIC retransmits them.
    pub(crate) fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let routes = self.routes();
        match routes.current {
            Carrier::WebSocket => {
                routes.send_to_websocket(transmit)?;
            }
            Carrier::Udp => {
                routes.send_to_udp(transmit)?;
                self.send_log.sent(transmit, |duplicate| {
                    let _ = routes.send_to_udp(&duplicate);
                });
                if routes.send_on_both
                    && let Some(link) = &routes.websocket
                {
                    // Only a copy: a full queue does not block the connection.
                    let _ = link
                        .queue
                        .try_push(transmit.segment_size, transmit.contents);
                }
            }
        }
        drop(routes);
        self.store_last(transmit);
        self.note_activity();
        Ok(())
    }

    /// Receive from both carriers. Every packet gets the edge address that quinn knows.
    pub(crate) fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<usize> {
        let udp = self.udp_route();
        if let Some(previous) = udp.as_ref().and_then(|udp| udp.previous.as_deref())
            && let Poll::Ready(Ok(filled)) = previous.poll_recv(cx, bufs, meta)
        {
            self.inspect(bufs, &mut meta[..filled]);
            return Poll::Ready(filled);
        }
        let socket = udp.as_ref().map(|udp| &*udp.socket);
        let filled = ready!(self.receive_queue.poll_both(socket, cx, bufs, meta));
        if filled.websocket > 0 {
            self.websocket.packet_received(Instant::now());
        }
        let all = filled.websocket + filled.udp;
        self.inspect(
            &bufs[filled.websocket..all],
            &mut meta[filled.websocket..all],
        );
        self.note_activity();
        Poll::Ready(all)
    }

    /// Return the largest number of packets that one transmit may have on the current carrier.
    pub(crate) fn max_transmit_segments(&self) -> usize {
        let routes = self.routes();
        match (&routes.current, &routes.udp) {
            (Carrier::Udp, Some(udp)) => udp.socket.max_transmit_segments(),
            _ => DATAGRAMS_COUNT,
        }
    }

    /// Send over another carrier from now on.
    pub(crate) fn select(&self, carrier: Carrier) {
        let mut routes = self.routes_mut();
        routes.current = carrier;
        routes.send_on_both = false;
        self.congestion_owner.set(routes.congestion());
    }

    /// Set whether packets for UDP are also sent over the WebSocket.
    pub(crate) fn set_send_on_both(&self, send_on_both: bool) {
        if self.routes().send_on_both != send_on_both {
            self.routes_mut().send_on_both = send_on_both;
        }
    }

    /// Replace the WebSocket. The connection stops waiting for the previous one.
    pub(crate) fn set_websocket(&self, link: Option<Arc<WebSocketLink>>) {
        let mut routes = self.routes_mut();
        let gone = std::mem::replace(&mut routes.websocket, link);
        self.congestion_owner.set(routes.congestion());
        drop(routes);
        if let Some(gone) = gone {
            gone.queue.start_discarding();
        }
    }

    /// Replace the route over UDP.
    pub(crate) fn set_udp(&self, route: UdpRoute) {
        self.routes_mut().udp = Some(Arc::new(route));
    }

    /// Send a probe over UDP to every address of the edge.
    ///
    /// Best effort: a probe that cannot be sent counts as unanswered.
    pub(crate) fn probe_udp(&self) {
        let Some(udp) = self.udp_route() else { return };
        for edge in udp.edge.iter().copied() {
            let Ok(probe) = Probe::new() else { return };
            {
                let mut open = lock(&self.probes);
                if open.len() >= MAX_OPEN_PROBES {
                    open.remove(0);
                }
                open.push((probe, edge));
            }
            let _ = udp.socket.try_send(&Transmit {
                destination: udp.reachable(edge),
                ecn: None,
                contents: &probe.datagram(),
                segment_size: None,
                src_ip: None,
            });
        }
    }

    /// Return the addresses that have answered a probe since the last call.
    pub(crate) fn take_answers(&self) -> Vec<SocketAddr> {
        std::mem::take(&mut *lock(&self.answers))
    }

    /// Resend the latest packets over the current carrier, or over both while UDP is suspected dead.
    ///
    /// They have the highest packet numbers, so the edge migrates to the carrier that they arrive on
    /// and acknowledges them, and the sender learns what was lost without waiting for a timeout.
    /// If they had arrived before, the edge discards them as duplicates.
    pub(crate) fn resend_last(&self) {
        let last = lock(&self.last);
        let Some(last) = &*last else { return };
        let transmit = Transmit {
            ecn: None,
            src_ip: None,
            ..last.transmit()
        };
        let routes = self.routes();
        if routes.current == Carrier::Udp {
            let _ = routes.send_to_udp(&transmit);
        }
        if routes.current == Carrier::WebSocket || routes.send_on_both {
            let _ = routes.send_to_websocket(&transmit);
        }
    }

    /// Note that a message that fits into one packet is about to be sent.
    pub(crate) fn message_written(&self) {
        self.send_log.message_written();
    }

    /// Resend the packets that were sent over UDP within the given time: see [`SendLog::resend_within`].
    pub(crate) fn resend_recent(&self, within: Duration, max_bytes: u64) {
        let routes = self.routes();
        if routes.current == Carrier::Udp {
            self.send_log.resend_within(within, max_bytes, |transmit| {
                let _ = routes.send_to_udp(&transmit);
            });
        }
    }

    /// Wait until packets are sent or received, or a probe is answered. For one waiter only.
    pub(crate) async fn activity(&self) {
        self.watcher_waits.store(true, Ordering::Relaxed);
        self.active.notified().await;
    }

    /// Wake the task that waits in [`activity`](Self::activity).
    fn note_activity(&self) {
        if self.watcher_waits.load(Ordering::Relaxed) {
            self.watcher_waits.store(false, Ordering::Relaxed);
            self.active.notify_one();
        }
    }

    /// Save the last packets of a transmit for [`resend_last`](Self::resend_last).
    fn store_last(&self, transmit: &Transmit) {
        let mut last = lock(&self.last);
        let buffer = last
            .take()
            .map_or_else(Vec::new, SavedTransmit::into_buffer);
        *last = Some(SavedTransmit::last(transmit, TAIL_PACKETS, buffer));
    }

    /// Inspect packets received over UDP: drop those that are not from the edge, and give the others the address
    /// that quinn knows.
    fn inspect(&self, bufs: &[IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        let routes = self.routes();
        let Some(udp) = &routes.udp else { return };
        let mut received = false;
        for (buf, meta) in bufs.iter().zip(metas) {
            meta.addr.set_ip(meta.addr.ip().to_canonical());
            if !udp.edge.contains(&meta.addr) {
                meta.len = 0;
                continue;
            }
            received |= !self.is_answer(&buf[..meta.len], meta.stride);
            meta.addr = EDGE;
            meta.dst_ip = None;
        }
        if received {
            self.udp.packet_received(Instant::now());
        }
    }

    /// Report whether a single datagram answers a probe. An answer that was coalesced with other packets
    /// is not recognised; the buffer then counts as received packets, which are evidence as well.
    fn is_answer(&self, datagram: &[u8], stride: usize) -> bool {
        if datagram.len() > stride || datagram.first().is_none_or(|first| first & 0x80 == 0) {
            return false;
        }
        let mut open = lock(&self.probes);
        let Some(at) = open
            .iter()
            .position(|(probe, _)| probe.is_answered_by(datagram))
        else {
            return false;
        };
        let (_, edge) = open.swap_remove(at);
        lock(&self.answers).push(edge);
        self.active.notify_one();
        true
    }

    fn routes(&self) -> RwLockReadGuard<'_, Routes> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn routes_mut(&self) -> RwLockWriteGuard<'_, Routes> {
        self.routes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Routes {
    fn congestion(&self) -> CongestionOwner {
        match (self.current, &self.websocket) {
            (Carrier::WebSocket, Some(link)) => link.peer.congestion,
            _ => CongestionOwner::Quic,
        }
    }

    fn send_to_udp(&self, transmit: &Transmit) -> io::Result<()> {
        let Some(udp) = &self.udp else { return Ok(()) };
        let outgoing = Transmit {
            destination: udp.reachable(udp.edge[0]),
            src_ip: None,
            ..transmit.clone()
        };
        match send_over_udp(&*udp.socket, &outgoing) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                Err(note_blocked(WriteGate::Udp(udp.socket.clone())))
            }
            // No route, no such interface, refused: all of these may be over in a second.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn send_to_websocket(&self, transmit: &Transmit) -> io::Result<()> {
        let Some(link) = &self.websocket else {
            return Ok(());
        };
        link.queue
            .try_push(transmit.segment_size, transmit.contents)
            .map_err(|_| note_blocked(WriteGate::WebSocket(link.queue.clone())))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The edge's address as quinn knows it: a unique local address (RFC 4193), so that it never collides
/// with a real one.
pub(crate) const EDGE: SocketAddr = SocketAddr::V6(SocketAddrV6::new(
    Ipv6Addr::new(0xfd71, 0x7475, 0x6e6e, 0x656c, 0, 0, 0, 1),
    1,
    0,
    0,
));

/// The most unanswered probes: two seconds of the fastest probing of four addresses. Older ones are
/// dropped.
const MAX_OPEN_PROBES: usize = 40;

/// Packets that are resent: two make the edge acknowledge at once (RFC 9000 §13.2.2).
const TAIL_PACKETS: usize = 2;
