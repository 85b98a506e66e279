//! The race between the carriers at the start: the first one to complete a QUIC handshake wins.
//!
//! Each attempt is a QUIC handshake of its own, because a server replies to the address where a
//! handshake started. Afterwards, the connection can use either carrier.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use quinn::{ClientConfig, ConnectError, Connecting, ConnectionError, Endpoint, EndpointConfig};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::dial_error::AttemptError;
use super::driver::{CarrierState, Driver, Established, NetworkWatch};
use super::factory::CarrierFactory;
use super::rebind::Rebinding;
use super::socket::AgentSocket;
use super::switch::{EDGE, Switch};
use super::udp_route::UdpRoute;
use super::websocket_tasks::WebSocketTasks;
use crate::carrier::transport::{HANDSHAKE_TIMEOUT, agent_transport};
use crate::carrier::{Carrier, PathMemory, Transport};
use crate::net::happy_eyeballs::CONNECTION_ATTEMPT_DELAY;
use crate::net::path_kind::PathKind;

/// The parameters of the handshakes over all carriers.
pub(crate) struct Race {
    /// The TLS configuration. The transport settings are set for each handshake.
    pub(crate) quic: ClientConfig,
    /// The kind of path to the edge.
    pub(crate) path_kind: PathKind,
    /// Path measurements of earlier connections to the same edge.
    pub(crate) memory: PathMemory,
    pub(crate) endpoint: EndpointConfig,
    pub(crate) server_name: String,
    /// The edge's UDP addresses.
    pub(crate) edge: Vec<SocketAddr>,
    pub(crate) factory: Arc<dyn CarrierFactory>,
}

impl Race {
    /// Run the race and return the winner. The errors of failed attempts are added to `failed`.
    pub(crate) async fn run(
        &self,
        transport: Transport,
        failed: &mut Vec<AttemptError>,
    ) -> Option<Established> {
        let udp_failed = Notify::new();
        let udp = async {
            let outcome = match transport {
                Transport::Websocket => Err(Vec::new()),
                Transport::Auto | Transport::Quic => self.over_udp().await,
            };
            if outcome.is_err() {
                udp_failed.notify_one();
            }
            outcome
        };
        let websocket = async {
            if transport == Transport::Quic {
                return Err(Vec::new());
            }
            tokio::select! {
                () = sleep(HEAD_START) => {}
                () = udp_failed.notified() => {}
            }
            self.over_websocket(transport)
                .await
                .map_err(|err| vec![err])
        };
        let (mut udp, mut websocket) = (pin!(udp), pin!(websocket));
        let second = tokio::select! {
            biased;
            outcome = &mut udp => match outcome {
                Ok(established) => return Some(established),
                Err(err) => { failed.extend(err); websocket.await }
            },
            outcome = &mut websocket => match outcome {
                Ok(established) => return Some(established),
                Err(err) => { failed.extend(err); udp.await }
            },
        };
        second.map_err(|err| failed.extend(err)).ok()
    }

    /// Create the driver that keeps the winner alive.
    pub(crate) fn drive(
        &self,
        established: Established,
        transport: Transport,
        network: NetworkWatch,
    ) -> (Driver, watch::Receiver<CarrierState>) {
        // Without an address for UDP there is only one carrier, whatever was configured.
        let transport = match self.edge.is_empty() {
            true => Transport::Websocket,
            false => transport,
        };
        let reason = format!("reached over {}", established.switch.current());
        Driver::new(
            established,
            transport,
            self.factory.clone(),
            network,
            &reason,
        )
    }

    /// Race the addresses over UDP; each one after the first starts [`CONNECTION_ATTEMPT_DELAY`] later.
    async fn over_udp(&self) -> Result<Established, Vec<AttemptError>> {
        let mut attempts = FuturesUnordered::new();
        for (i, to) in self.edge.iter().enumerate() {
            attempts.push(async move {
                sleep(CONNECTION_ATTEMPT_DELAY * i as u32).await;
                tokio::select! {
                    outcome = self.over_udp_with_retries(*to) => outcome,
                    err = self.factory.refused(*to) => Err(AttemptError::Refused { to: *to, err }),
                }
            });
        }
        let mut failed = Vec::new();
        while let Some(outcome) = attempts.next().await {
            match outcome {
                Ok(established) => return Ok(established),
                Err(err) => failed.push(err),
            }
        }
        Err(failed)
    }

    /// Start handshakes with one address repeatedly, until one succeeds, fails with an error, or
    /// [`HANDSHAKE_TIMEOUT`] has passed.
    async fn over_udp_with_retries(&self, to: SocketAddr) -> Result<Established, AttemptError> {
        let mut attempts = FuturesUnordered::new();
        for attempt in 0..ATTEMPTS {
            attempts.push(async move {
                sleep(ATTEMPT_INTERVAL * attempt).await;
                let left = HANDSHAKE_TIMEOUT.saturating_sub(ATTEMPT_INTERVAL * attempt);
                self.over_udp_to(to, left).await
            });
        }
        while let Some(outcome) = attempts.next().await {
            match outcome {
                Err(AttemptError::NoAnswer { .. }) => {}
                // Success, or the edge refuses: retrying would not help.
                outcome => return outcome,
            }
        }
        Err(AttemptError::NoAnswer { to })
    }

    /// Perform one handshake with an address, on a socket of its own.
    async fn over_udp_to(
        &self,
        to: SocketAddr,
        limit: Duration,
    ) -> Result<Established, AttemptError> {
        let mut edge = self.edge.clone();
        edge.retain(|addr| *addr != to);
        edge.insert(0, to);
        let route = self.udp_route(edge)?;
        let switch = Arc::new(Switch::new(Carrier::Udp, Some(route), None));
        let handshake = self.start_handshake(&switch)?;
        let connection = timeout(limit, handshake.connecting)
            .await
            .map_err(|_| AttemptError::NoAnswer { to })?
            .map_err(|err| match err {
                ConnectionError::TimedOut => AttemptError::NoAnswer { to },
                err => AttemptError::Quic {
                    carrier: Carrier::Udp,
                    err,
                },
            })?;
        Ok(Established {
            connection,
            endpoint: handshake.endpoint,
            switch,
            rebinding: handshake.rebinding,
            websocket_tasks: WebSocketTasks::default(),
        })
    }

    /// Dial a WebSocket, and perform a handshake over it.
    async fn over_websocket(&self, transport: Transport) -> Result<Established, AttemptError> {
        let carrier = Carrier::WebSocket;
        let upgraded = self
            .factory
            .dial()
            .await
            .map_err(|err| AttemptError::Tcp { carrier, err })?;
        let route = match transport {
            Transport::Auto if !self.edge.is_empty() => self.udp_route(self.edge.clone()).ok(),
            _ => None,
        };
        let switch = Arc::new(Switch::new(carrier, route, None));
        let mut websocket_tasks = WebSocketTasks::default();
        let link = websocket_tasks.carry(upgraded, switch.packet_sender());
        switch.set_websocket(Some(link));
        let handshake = self.start_handshake(&switch)?;
        let connection = tokio::select! {
            outcome = timeout(HANDSHAKE_TIMEOUT, handshake.connecting) => outcome
                .map_err(|_| AttemptError::NoQuic)?
                .map_err(|err| AttemptError::Quic { carrier, err })?,
            ended = websocket_tasks.ended() => return Err(AttemptError::Ended(ended.to_string())),
        };
        // The congestion controller was created after the WebSocket was set, and must learn of it.
        switch.select(carrier);
        Ok(Established {
            connection,
            endpoint: handshake.endpoint,
            switch,
            rebinding: handshake.rebinding,
            websocket_tasks,
        })
    }

    fn udp_route(&self, edge: Vec<SocketAddr>) -> Result<UdpRoute, AttemptError> {
        let socket = self.factory.bind().map_err(AttemptError::Socket)?;
        Ok(UdpRoute::new(socket, None, edge))
    }

    fn start_handshake(&self, switch: &Arc<Switch>) -> Result<Handshake, AttemptError> {
        let socket = AgentSocket::new(switch.clone());
        let rebinding = Rebinding::new(socket.clone());
        let endpoint = Endpoint::new_with_abstract_socket(
            self.endpoint.clone(),
            None,
            socket,
            rebinding.clone(),
        )
        .map_err(AttemptError::Socket)?;
        let mut quic = self.quic.clone();
        quic.transport_config(agent_transport(
            self.path_kind,
            switch.congestion_owner(),
            &self.memory,
        ));
        let connecting = endpoint
            .connect_with(quic, EDGE, &self.server_name)
            .map_err(|err| match err {
                ConnectError::InvalidServerName(name) => AttemptError::ServerName(name),
                err => AttemptError::Configuration(err),
            })?;
        Ok(Handshake {
            endpoint,
            connecting,
            rebinding,
        })
    }
}

/// A handshake that has been started.
struct Handshake {
    endpoint: Endpoint,
    connecting: Connecting,
    rebinding: Arc<Rebinding>,
}

/// The head start of UDP in the race: a handshake on a 100 ms path with a round trip to spare. Where
/// UDP is blocked, every start takes this much longer.
const HEAD_START: Duration = Duration::from_millis(250);

/// The time between the starts of two handshakes with the same address. QUIC's own retransmissions come
/// at doubling intervals; new handshakes find an edge sooner that is just starting (RFC 6298 §2.1 gives
/// the same time).
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(1);

/// Handshake attempts per address: one each [`ATTEMPT_INTERVAL`] until [`HANDSHAKE_TIMEOUT`] has passed.
const ATTEMPTS: u32 = (HANDSHAKE_TIMEOUT.as_secs() / ATTEMPT_INTERVAL.as_secs()) as u32;
