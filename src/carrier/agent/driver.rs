//! Keeping one connection alive on whatever the network offers, for as long as it lives.
//!
//! [`Driver`] shows the evidence to the [`Selector`], does what it says and tells the world about it.
//! It owns the WebSocket tasks. How carriers are made is told by [`CarrierFactory`].

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use quinn::{AsyncUdpSocket, Connection, Endpoint};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info};

use super::network_watch::NetworkChange;
use super::rebind::Rebinding;
use super::switch::Switch;
use super::udp_route::UdpRoute;
use super::websocket_tasks::{WebSocketEvent, Upgraded, WebSocketTasks};
use crate::carrier::duplicate::transmitter::Transmitter;
use crate::carrier::selection::progress::Progress;
use crate::carrier::selection::{Action, Observation, Selector};
use crate::carrier::tcp::connect::TcpConnectError;
use crate::carrier::{Carrier, Transport};

/// How an agent's carriers are made.
pub(crate) trait CarrierFactory: Send + Sync + 'static {
    /// Bind a UDP socket on the present network.
    fn bind(&self) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// Dial a WebSocket.
    fn dial(&self) -> BoxFuture<'static, Result<Upgraded, TcpConnectError>>;

    /// Wait until an address says that nobody listens there, which most networks never do.
    fn refused(&self, _to: SocketAddr) -> BoxFuture<'static, io::Error> {
        Box::pin(std::future::pending())
    }
}

/// Which carrier is in use, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarrierState {
    pub carrier: Carrier,
    /// For people: `udp silent for 1.2 s, moved to websocket`.
    pub reason: Arc<str>,
}

/// Watches and moves one connection. Does nothing unless [`run`](Self::run) is polled.
pub struct Driver {
    on: Established,
    transport: Transport,
    factory: Arc<dyn CarrierFactory>,
    selector: Selector,
    progress: Progress,
    changes: mpsc::Receiver<NetworkChange>,
    /// Reports changes of the network.
    watcher: Option<BoxFuture<'static, ()>>,
    state: watch::Sender<CarrierState>,
    refreshed: Instant,
}

/// Where reports of the network's changes come from, and what has to be polled for them.
pub(crate) struct NetworkWatch {
    pub(crate) changes: mpsc::Receiver<NetworkChange>,
    pub(crate) watcher: Option<BoxFuture<'static, ()>>,
}

/// What a connection and its carriers are when the handshake is done.
pub(crate) struct Established {
    pub(crate) connection: Connection,
    pub(crate) endpoint: Endpoint,
    pub(crate) switch: Arc<Switch>,
    pub(crate) rebinding: Arc<Rebinding>,
    pub(crate) transmitter: Transmitter,
    pub(crate) websocket_tasks: WebSocketTasks,
}

impl Established {
    /// Send over this carrier from now on, and let the edge know.
    pub(crate) fn send_over(&self, carrier: Carrier) {
        self.switch.select(carrier);
        self.announce_carrier();
    }

    /// Have something sent over the current carrier now, so that the edge learns of it.
    ///
    /// quinn pings when its socket has changed, unless too much is in flight; then what was sent
    /// last is sent again.
    fn announce_carrier(&self) {
        self.switch.resend_last();
        self.rebinding.rebind(&self.endpoint);
    }
}

/// Wait until it is time to look again: soon, or when something happens if nothing does.
async fn pause(switch: &Switch, idle: Option<Duration>) {
    let soon = sleep(Selector::busy_interval());
    if let Some(idle) = idle {
        // From now on, so that nothing is missed; but traffic is not looked at with every packet.
        let _ = timeout(idle, switch.activity()).await;
    }
    soon.await;
}

impl Driver {
    pub(crate) fn new(
        on: Established,
        transport: Transport,
        factory: Arc<dyn CarrierFactory>,
        network: NetworkWatch,
        reason: &str,
    ) -> (Self, watch::Receiver<CarrierState>) {
        let carrier = on.switch.current();
        let (state, watched) = watch::channel(CarrierState {
            carrier,
            reason: reason.into(),
        });
        let now = Instant::now();
        let driver = Self {
            progress: Progress::new(&on.connection),
            on,
            transport,
            factory,
            selector: Selector::new(transport, carrier, now),
            changes: network.changes,
            watcher: network.watcher,
            state,
            refreshed: now,
        };
        (driver, watched)
    }

    /// Keep the connection going until it is closed, by either end or for lack of any network.
    ///
    /// Returns when the farewell is sent, or not possible. Dropped, it leaves the connection on
    /// the carrier it is on, and closes its WebSocket. It keeps the connection open by itself:
    /// close it, dropping it is not enough.
    pub async fn run(mut self) {
        let mut watcher = self.watcher.take();
        let connection = self.on.connection.clone();
        let mut closed = pin!(connection.closed());
        loop {
            let observation = self.observe();
            let actions = self.selector.decide(&observation);
            self.perform(actions);
            let idle = self.selector.idle_interval(&observation);
            let switch = self.on.switch.clone();
            tokio::select! {
                biased;
                _ = &mut closed => break,
                event = self.on.websocket_tasks.next() => self.websocket_event(event),
                Some(change) = self.changes.recv() => self.network_changed(&change),
                () = async { watcher.as_mut().expect("is some").await }, if watcher.is_some() => watcher = None,
                () = pause(&switch, idle) => {}
            }
            for edge in self.on.switch.take_answers() {
                self.prefer(edge);
                self.selector.probe_answered();
            }
            self.close_previous_udp();
        }
        let _ = timeout(CLOSE_TIMEOUT, self.on.endpoint.wait_idle()).await;
    }

    fn observe(&mut self) -> Observation {
        let now = Instant::now();
        let more_to_send = self.on.switch.is_full();
        self.progress.update(&self.on.connection, more_to_send, now);
        Observation {
            now,
            udp: self.on.switch.udp_activity(),
            websocket: self.on.switch.websocket_activity(),
            unacked: self.progress.unacked(),
            last_acked: self.progress.last_acked(),
            rtt: self.on.connection.rtt(),
        }
    }

    fn websocket_event(&mut self, event: WebSocketEvent) {
        let now = Instant::now();
        let actions = match event {
            WebSocketEvent::Dialled(Ok(_)) if !self.selector.wants_websocket() => Vec::new(),
            WebSocketEvent::Dialled(Ok(upgraded)) => {
                let link = self.on.websocket_tasks.carry(upgraded, self.on.switch.arrivals());
                self.on.switch.set_websocket(Some(link));
                if self.on.switch.current() == Carrier::WebSocket {
                    // Whoever tells the edge of another carrier must tell it of another WebSocket too.
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
                self.on.switch.set_websocket(None);
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
                Action::Probe => self.on.switch.probe_udp(),
                Action::Dial => self.on.websocket_tasks.dial(&*self.factory),
                Action::CloseWebSocket => {
                    self.on.websocket_tasks.close();
                    self.on.switch.set_websocket(None);
                }
                Action::SwitchTo { to, reason } => self.move_to(to, reason),
                Action::Announce => self.on.announce_carrier(),
                Action::Rebind => self.refresh(),
            }
        }
        self.on.switch.set_suspicion(self.selector.sends_on_both());
    }

    fn move_to(&mut self, carrier: Carrier, reason: String) {
        if carrier != self.on.switch.current() {
            // The agent's observer is told, who tells the people.
            debug!(%carrier, reason, "carrier changed");
            self.state.send_replace(CarrierState {
                carrier,
                reason: reason.into(),
            });
        }
        self.on.send_over(carrier);
        // What was owed was sent over another carrier.
        self.progress = Progress::new(&self.on.connection);
    }

    /// Use a new UDP port: a NAT may have forgotten the old one, and a change of address makes the
    /// edge start again at once instead of waiting for a timeout that has grown long.
    fn refresh(&mut self) {
        let now = Instant::now();
        if self.transport != Transport::Websocket && now >= self.refreshed + MIN_REFRESH_INTERVAL {
            self.refreshed = now;
            match (self.factory.bind(), self.on.switch.udp_route()) {
                (Ok(socket), Some(before)) => {
                    let (previous, edge) = (before.socket.clone(), before.edge.clone());
                    let route = UdpRoute::new(socket, Some(previous), edge);
                    self.on.switch.set_udp(route);
                }
                (Err(err), _) => debug!(%err, carrier = "udp", "no new socket"),
                (Ok(_), None) => {}
            }
        }
        self.on.announce_carrier();
    }

    /// Send to the address that answers, if the one in use may not.
    fn prefer(&self, edge: SocketAddr) {
        let Some(route) = self.on.switch.udp_route() else {
            return;
        };
        let in_use = self.on.switch.current() == Carrier::Udp && !self.selector.sends_on_both();
        if in_use || route.edge.first() == Some(&edge) {
            return;
        }
        if let Some(at) = route.edge.iter().position(|known| *known == edge) {
            let mut route = UdpRoute::clone(&route);
            route.edge.swap(0, at);
            self.on.switch.set_udp(route);
        }
    }

    fn close_previous_udp(&self) {
        if Instant::now() < self.refreshed + OLD_SOCKET_LIFETIME {
            return;
        }
        if let Some(route) = self.on.switch.udp_route()
            && route.previous.is_some()
        {
            let mut route = UdpRoute::clone(&route);
            route.previous = None;
            self.on.switch.set_udp(route);
        }
    }
}

/// How long a closed connection may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the UDP socket before the present one is read: several round trips.
const OLD_SOCKET_LIFETIME: Duration = Duration::from_secs(3);

/// Between two new UDP sockets: a storm of network events is one change.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(250);
