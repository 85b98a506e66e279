//! Both carriers of an agent's connection behind one address.
//!
//! Packets are accepted from both and sent over the current one, and what is seen of them is noted.
//! Which one is current, is decided by `path`.

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
use crate::carrier::duplicate::saved_transmit::SavedTransmit;
use crate::carrier::duplicate::send_log::SendLog;
use crate::carrier::gso_limit::send_over_udp;
use crate::carrier::receive_queue::{ReceivedPackets, ReceiveQueue};
use crate::carrier::selection::receive_monitor::{ReceiveActivity, ReceiveMonitor};
use crate::carrier::selection::probe::Probe;
use crate::carrier::websocket::WebSocketLink;
use crate::carrier::writable::{WriteGate, note_blocked};
use crate::carrier::{Carrier, CongestionOwner, SharedCongestionOwner};
use crate::proto::DATAGRAMS_COUNT;

/// Both carriers of one connection.
pub(crate) struct Switch {
    routes: RwLock<Routes>,
    receive_queue: ReceiveQueue,
    arrivals: mpsc::Sender<ReceivedPackets>,
    udp: ReceiveMonitor,
    websocket: ReceiveMonitor,
    /// Who controls congestion on the current carrier.
    congestion_owner: SharedCongestionOwner,
    /// The end of the latest transmit, to be sent again over another carrier.
    last: Mutex<Option<SavedTransmit>>,
    /// What was sent over UDP.
    send_log: SendLog,
    probes: Mutex<Vec<(Probe, SocketAddr)>>,
    /// The addresses that have answered a probe since someone last asked.
    answers: Mutex<Vec<SocketAddr>>,
    /// Whether the one who watches the carriers sleeps until something happens.
    watcher_waits: AtomicBool,
    active: Notify,
}

struct Routes {
    current: Carrier,
    udp: Option<Arc<UdpRoute>>,
    websocket: Option<Arc<WebSocketLink>>,
    /// Send over the WebSocket too: UDP is the current carrier but may be dead.
    suspicion: bool,
}

/// Packets that are sent again: two make the edge acknowledge at once (RFC 9000 §13.2.2).
const TAIL_PACKETS: usize = 2;

impl Switch {
    /// Start on `current`, with the carriers there are.
    pub(crate) fn new(
        current: Carrier,
        udp: Option<UdpRoute>,
        websocket: Option<Arc<WebSocketLink>>,
    ) -> Self {
        let (arrivals, receive_queue) = ReceiveQueue::new();
        Self {
            routes: RwLock::new(Routes {
                current,
                udp: udp.map(Arc::new),
                websocket,
                suspicion: false,
            }),
            receive_queue,
            arrivals,
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

    /// Where a WebSocket of this agent delivers its packets.
    pub(crate) fn arrivals(&self) -> mpsc::Sender<ReceivedPackets> {
        self.arrivals.clone()
    }

    pub(crate) fn current(&self) -> Carrier {
        self.routes().current
    }

    /// What the connection's congestion controller looks at.
    pub(crate) fn congestion_owner(&self) -> &SharedCongestionOwner {
        &self.congestion_owner
    }

    pub(crate) fn udp_activity(&self) -> ReceiveActivity {
        self.udp.activity()
    }

    pub(crate) fn websocket_activity(&self) -> ReceiveActivity {
        self.websocket.activity()
    }

    pub(crate) fn udp_route(&self) -> Option<Arc<UdpRoute>> {
        self.routes().udp.clone()
    }

    /// Report whether there is more to send than the current carrier takes, and so maybe nothing is sent at all.
    pub(crate) fn is_full(&self) -> bool {
        let routes = self.routes();
        match (routes.current, &routes.websocket) {
            (Carrier::WebSocket, Some(link)) => link.queue.is_full(),
            _ => false,
        }
    }

    /// Send over the current carrier.
    ///
    /// The only error is `WouldBlock`; what a network refuses is lost, and repeated by QUIC.
    pub(crate) fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let routes = self.routes();
        match routes.current {
            Carrier::WebSocket => {
                routes.send_to_websocket(transmit)?;
            }
            Carrier::Udp => {
                routes.send_to_udp(transmit)?;
                self.send_log.sent(transmit, |again| {
                    let _ = routes.send_to_udp(&again);
                });
                if routes.suspicion
                    && let Some(link) = &routes.websocket
                {
                    // A copy: nobody waits for room on its behalf.
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

    /// Receive from both carriers, under the address that quinn knows.
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

    /// Packets that one transmit may have.
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
        routes.suspicion = false;
        self.congestion_owner.set(routes.congestion());
    }

    pub(crate) fn set_suspicion(&self, suspicion: bool) {
        if self.routes().suspicion != suspicion {
            self.routes_mut().suspicion = suspicion;
        }
    }

    /// Replace the WebSocket. The connection no longer waits for the one that was there.
    pub(crate) fn set_websocket(&self, link: Option<Arc<WebSocketLink>>) {
        let mut routes = self.routes_mut();
        let gone = std::mem::replace(&mut routes.websocket, link);
        self.congestion_owner.set(routes.congestion());
        drop(routes);
        if let Some(gone) = gone {
            gone.queue.start_discarding();
        }
    }

    pub(crate) fn set_udp(&self, route: UdpRoute) {
        self.routes_mut().udp = Some(Arc::new(route));
    }

    /// Ask all addresses of the edge for a sign of life over UDP.
    ///
    /// Best effort: a probe that cannot be sent is one that is not answered.
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

    /// Take the addresses that have answered a probe.
    pub(crate) fn take_answers(&self) -> Vec<SocketAddr> {
        std::mem::take(&mut *lock(&self.answers))
    }

    /// Send the latest packets again over the current carrier, and in suspicion over both.
    ///
    /// They are the newest that quinn has made, so the edge moves to the carrier that brings them
    /// and acknowledges them, and the sender learns what was lost without waiting for a timeout.
    /// If they had arrived after all, the edge discards them as duplicates.
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
        if routes.current == Carrier::WebSocket || routes.suspicion {
            let _ = routes.send_to_websocket(&transmit);
        }
    }

    /// Note that a message is about to be sent that takes one packet.
    pub(crate) fn message_written(&self) {
        self.send_log.message_written();
    }

    /// Send a short message over UDP again that was sent within this time: see [`SendLog::again`].
    pub(crate) fn resend_recent(&self, within: Duration, most: u64) {
        let routes = self.routes();
        if routes.current == Carrier::Udp {
            self.send_log.resend_within(within, most, |transmit| {
                let _ = routes.send_to_udp(&transmit);
            });
        }
    }

    /// Wait until packets are sent or received again after a pause. For one watcher.
    pub(crate) async fn activity(&self) {
        self.watcher_waits.store(true, Ordering::Relaxed);
        self.active.notified().await;
    }

    fn note_activity(&self) {
        if self.watcher_waits.load(Ordering::Relaxed) {
            self.watcher_waits.store(false, Ordering::Relaxed);
            self.active.notify_one();
        }
    }

    fn store_last(&self, transmit: &Transmit) {
        let mut last = lock(&self.last);
        let buffer = last
            .take()
            .map_or_else(Vec::new, SavedTransmit::into_buffer);
        *last = Some(SavedTransmit::last(transmit, TAIL_PACKETS, buffer));
    }

    /// Look at what came over UDP and give it the address that quinn knows.
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

    /// Whether a lone datagram answers a probe. An answer never shares a buffer with others that
    /// it should be told from: it counts as received packets then, which it is.
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
            // No route, no such interface, refused: the network of the next second may differ.
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

/// The edge's address as quinn knows it, from the range for local use (RFC 4193) so that it never
/// is the address of a real one.
pub(crate) const EDGE: SocketAddr = SocketAddr::V6(SocketAddrV6::new(
    Ipv6Addr::new(0xfd71, 0x7475, 0x6e6e, 0x656c, 0, 0, 0, 1),
    1,
    0,
    0,
));

/// Questions that may be waiting for an answer: two seconds of the fastest probing to four
/// addresses. Older ones are forgotten.
const MAX_OPEN_PROBES: usize = 40;
