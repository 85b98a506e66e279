//! The driver keeps one connection alive by moving it between carriers as the network changes.
//!
//! [`Driver`] passes observations to the [`Selector`], performs the actions that it decides on, and
//! publishes the current carrier. It owns the WebSocket tasks. A [`CarrierFactory`] creates carriers.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use quinn::{Connection, Endpoint};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info};

use super::factory::CarrierFactory;
use super::network_watch::NetworkChange;
use super::rebind::Rebinding;
use super::switch::Switch;
use super::udp_route::UdpRoute;
use super::websocket_tasks::{WebSocketEvent, WebSocketTasks};
use crate::carrier::selection::progress::Progress;
use crate::carrier::selection::{Action, Observation, Selector};
use crate::carrier::{Carrier, Transport};

/// The carrier in use, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarrierState {
    pub carrier: Carrier,
    /// The reason, for people: `udp silent for 1.2 s, moved to websocket`.
    pub reason: Arc<str>,
}

/// Monitors one connection and moves it between carriers. Does nothing unless [`run`](Self::run) is polled.
pub struct Driver {
    established: Established,
    transport: Transport,
    factory: Arc<dyn CarrierFactory>,
    selector: Selector,
    progress: Progress,
    changes: mpsc::Receiver<NetworkChange>,
    /// The future that reports network changes to `changes`.
    watcher: Option<BoxFuture<'static, ()>>,
    state: watch::Sender<CarrierState>,
    /// The time of the last [`rebind_udp`](Self::rebind_udp) with a new UDP socket.
    rebound_at: Instant,
}

/// A receiver of network changes, and the future that must be polled for them, if any.
pub(crate) struct NetworkWatch {
    pub(crate) changes: mpsc::Receiver<NetworkChange>,
    pub(crate) watcher: Option<BoxFuture<'static, ()>>,
}

/// A connection and its carriers, once the handshake is complete.
pub(crate) struct Established {
    pub(crate) connection: Connection,
    pub(crate) endpoint: Endpoint,
    pub(crate) switch: Arc<Switch>,
    pub(crate) rebinding: Arc<Rebinding>,
    pub(crate) websocket_tasks: WebSocketTasks,
}

impl Established {
    /// Send over this carrier from now on, and make the edge notice.
    pub(crate) fn send_over(&self, carrier: Carrier) {
        self.switch.select(carrier);
        self.announce_carrier();
    }

    /// Send something over the current carrier now, so that the edge learns of it.
    ///
    /// quinn sends a PING when its socket changes, unless too much is in flight. For that case, the last
    /// packets are resent.
    fn announce_carrier(&self) {
        self.switch.resend_last();
        self.rebinding.rebind(&self.endpoint);
    }
}

/// Wait until the next observation is due: after [`Selector::busy_interval`], and with `idle` only once packets
/// are sent or received or that time has passed.
async fn pause(switch: &Switch, idle: Option<Duration>) {
    let soon = sleep(Selector::busy_interval());
    if let Some(idle) = idle {
        // `soon` runs from now on, so that nothing is missed; but not every packet leads to an observation.
        let _ = timeout(idle, switch.activity()).await;
    }
    soon.await;
}

impl Driver {
    /// Create a driver, and a receiver of the carrier in use.
    pub(crate) fn new(
        established: Established,
        transport: Transport,
        factory: Arc<dyn CarrierFactory>,
        network: NetworkWatch,
        reason: &str,
    ) -> (Self, watch::Receiver<CarrierState>) {
        let carrier = established.switch.current();
        let (state, watched) = watch::channel(CarrierState {
            carrier,
            reason: reason.into(),
        });
        let now = Instant::now();
        let driver = Self {
            progress: Progress::new(&established.connection),
            established,
            transport,
            factory,
            selector: Selector::new(transport, carrier, now),
            changes: network.changes,
            watcher: network.watcher,
            state,
            rebound_at: now,
        };
        (driver, watched)
    }

    /// Keep the connection alive until it is closed by either end, or times out because no carrier works.
    ///
    /// Returns once CONNECTION_CLOSE has been sent, or cannot be sent. If this future is dropped, the
    /// connection stays on its current carrier, and its WebSocket is closed. The driver holds a handle
    /// to the connection: close the connection explicitly, dropping other handles is not enough.
    pub async fn run(mut self) {
        let mut watcher = self.watcher.take();
        let connection = self.established.connection.clone();
        let mut closed = pin!(connection.closed());
        loop {
            let observation = self.observe();
            let actions = self.selector.decide(&observation);
            self.perform(actions);
            let idle = self.selector.idle_interval(&observation);
            let switch = self.established.switch.clone();
            tokio::select! {
                biased;
                _ = &mut closed => break,
                event = self.established.websocket_tasks.next() => self.websocket_event(event),
                Some(change) = self.changes.recv() => self.network_changed(&change),
                () = async { watcher.as_mut().expect("is some").await }, if watcher.is_some() => watcher = None,
                () = pause(&switch, idle) => {}
            }
            for edge in self.established.switch.take_answers() {
                self.prefer(edge);
                self.selector.probe_answered();
            }
            self.close_previous_udp();
        }
        let _ = timeout(CLOSE_TIMEOUT, self.established.endpoint.wait_idle()).await;
    }

    /// Collect the evidence for the selector.
    fn observe(&mut self) -> Observation {
        let now = Instant::now();
        let more_to_send = self.established.switch.is_full();
        self.progress
            .update(&self.established.connection, more_to_send, now);
        Observation {
            now,
            udp: self.established.switch.udp_activity(),
            websocket: self.established.switch.websocket_activity(),
            unacked: self.progress.unacked(),
            last_acked: self.progress.last_acked(),
            rtt: self.established.connection.rtt(),
        }
    }

    fn websocket_event(&mut self, event: WebSocketEvent) {
        let now = Instant::now();
        let actions = match event {
            WebSocketEvent::Dialled(Ok(_)) if !self.selector.wants_websocket() => Vec::new(),
            WebSocketEvent::Dialled(Ok(upgraded)) => {
                let link = self
                    .established
                    .websocket_tasks
                    .carry(upgraded, self.established.switch.packet_sender());
                self.established.switch.set_websocket(Some(link));
                if self.established.switch.current() == Carrier::WebSocket {
                    // The session reports a changed carrier to the edge, and must report a new WebSocket, too.
                    self.state.send_modify(|_| {});
                }
                self.selector.websocket_up(now)
            }
            WebSocketEvent::Dialled(Err(err)) => {
                debug!(%err, carrier = "websocket", "dialling failed");
                self.selector.websocket_failed(now);
                Vec::new()
            }
            WebSocketEvent::Ended(_, ended) => {
                self.established.switch.set_websocket(None);
                self.selector.websocket_lost(now, &ended.to_string())
            }
        };
        self.perform(actions);
    }

    fn network_changed(&mut self, change: &NetworkChange) {
        info!(%change, "network changed");
        let actions = self
            .selector
            .network_changed(Instant::now(), &change.to_string());
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Probe => self.established.switch.probe_udp(),
                Action::Dial => self.established.websocket_tasks.dial(&*self.factory),
                Action::CloseWebSocket => {
                    self.established.websocket_tasks.close();
                    self.established.switch.set_websocket(None);
                }
                Action::SwitchTo { to, reason } => self.switch_to(to, reason),
                Action::Announce => self.established.announce_carrier(),
                Action::Rebind => self.rebind_udp(),
            }
        }
        self.established
            .switch
            .set_send_on_both(self.selector.sends_on_both());
    }

    /// Send over another carrier, and publish it. For the current carrier, only announce it again.
    fn switch_to(&mut self, carrier: Carrier, reason: String) {
        if carrier != self.established.switch.current() {
            // At debug level: the agent's observer reports it to people.
            debug!(%carrier, reason, "carrier changed");
            self.state.send_replace(CarrierState {
                carrier,
                reason: reason.into(),
            });
        }
        self.established.send_over(carrier);
        // The unacknowledged data was sent over the previous carrier.
        self.progress = Progress::new(&self.established.connection);
    }

    /// Switch to a new UDP port: a NAT may have dropped the old mapping, and a change of address makes the
    /// edge start over at once, instead of waiting for a retransmission timeout that has backed off.
    fn rebind_udp(&mut self) {
        let now = Instant::now();
        if self.transport != Transport::Websocket && now >= self.rebound_at + MIN_REBIND_INTERVAL {
            self.rebound_at = now;
            match (self.factory.bind(), self.established.switch.udp_route()) {
                (Ok(socket), Some(before)) => {
                    let (previous, edge) = (before.socket.clone(), before.edge.clone());
                    let route = UdpRoute::new(socket, Some(previous), edge);
                    self.established.switch.set_udp(route);
                }
                (Err(err), _) => debug!(%err, carrier = "udp", "no new socket"),
                (Ok(_), None) => {}
            }
        }
        self.established.announce_carrier();
    }

    /// Switch to the edge address that has answered a probe, unless the current one is in use and known to work.
    fn prefer(&self, edge: SocketAddr) {
        let Some(route) = self.established.switch.udp_route() else {
            return;
        };
        let in_use =
            self.established.switch.current() == Carrier::Udp && !self.selector.sends_on_both();
        if in_use || route.edge.first() == Some(&edge) {
            return;
        }
        if let Some(at) = route.edge.iter().position(|known| *known == edge) {
            let mut route = UdpRoute::clone(&route);
            route.edge.swap(0, at);
            self.established.switch.set_udp(route);
        }
    }

    /// Close the UDP socket before the current one after [`OLD_SOCKET_LIFETIME`].
    fn close_previous_udp(&self) {
        if Instant::now() < self.rebound_at + OLD_SOCKET_LIFETIME {
            return;
        }
        if let Some(route) = self.established.switch.udp_route()
            && route.previous.is_some()
        {
            let mut route = UdpRoute::clone(&route);
            route.previous = None;
            self.established.switch.set_udp(route);
        }
    }
}

/// The time limit for sending CONNECTION_CLOSE.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The time for which the previous UDP socket is still read after a rebind: several round trips.
const OLD_SOCKET_LIFETIME: Duration = Duration::from_secs(3);

/// The shortest time between two new UDP sockets: a burst of network events counts as one change.
const MIN_REBIND_INTERVAL: Duration = Duration::from_millis(250);
