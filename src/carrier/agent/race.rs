//! The race of the carriers at the start: the first that brings a QUIC connection wins.
//!
//! Each attempt is a QUIC handshake of its own, because a server answers a handshake to where it
//! began. After it the connection may use either carrier.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use quinn::{ClientConfig, ConnectError, Connecting, ConnectionError, Endpoint, EndpointConfig};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::dial_error::AttemptError;
use super::driver::{CarrierFactory, CarrierState, Driver, Established, Watch};
use super::rebind::Rebinding;
use super::socket::AgentSocket;
use super::switch::{EDGE, Switch};
use super::udp_route::UdpRoute;
use super::websocket_tasks::WebSocketTasks;
use crate::carrier::duplicate::transmitter::Transmitter;
use crate::carrier::tcp::happy_eyeballs::STAGGER;
use crate::carrier::transport::agent_transport;
use crate::carrier::{Carrier, PathKind, PathMemory, Transport};

/// Handshakes over all carriers.
pub(crate) struct Race {
    /// TLS; the transport's settings are those of each handshake.
    pub(crate) quic: ClientConfig,
    /// How far it is to the edge.
    pub(crate) reach: PathKind,
    /// What earlier connections to the same edge have found out about the way.
    pub(crate) memory: PathMemory,
    pub(crate) endpoint: EndpointConfig,
    pub(crate) server_name: String,
    /// The edge's UDP addresses.
    pub(crate) edge: Vec<SocketAddr>,
    pub(crate) ways: Arc<dyn CarrierFactory>,
}

impl Race {
    /// Run the race; the losers' failures are added to `failed`.
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

    /// Watch over the winner.
    pub(crate) fn drive(
        &self,
        established: Established,
        transport: Transport,
        network: Watch,
    ) -> (Driver, watch::Receiver<CarrierState>) {
        // Without an address for UDP there is one carrier, whatever was asked for.
        let transport = match self.edge.is_empty() {
            true => Transport::Websocket,
            false => transport,
        };
        let reason = format!("reached over {}", established.switch.current());
        Driver::new(established, transport, self.ways.clone(), network, &reason)
    }

    async fn over_udp(&self) -> Result<Established, Vec<AttemptError>> {
        let mut attempts = FuturesUnordered::new();
        for (i, to) in self.edge.iter().enumerate() {
            attempts.push(async move {
                sleep(STAGGER * i as u32).await;
                tokio::select! {
                    outcome = self.in_rounds(*to) => outcome,
                    err = self.ways.refused(*to) => Err(AttemptError::Refused { to: *to, err }),
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

    /// Ask one address again and again, until it answers or the time is over.
    async fn in_rounds(&self, to: SocketAddr) -> Result<Established, AttemptError> {
        let mut rounds = FuturesUnordered::new();
        for round in 0..ROUNDS {
            rounds.push(async move {
                sleep(ROUND * round).await;
                let left = HANDSHAKE.saturating_sub(ROUND * round);
                self.over_udp_to(to, left).await
            });
        }
        while let Some(outcome) = rounds.next().await {
            match outcome {
                Err(AttemptError::NoAnswer { .. }) => {}
                // Or somebody is there and says no: asking again would not help.
                outcome => return outcome,
            }
        }
        Err(AttemptError::NoAnswer { to })
    }

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
        let handshake = self.shake_hands(&switch)?;
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
            transmitter: handshake.transmitter,
            lines: WebSocketTasks::default(),
        })
    }

    async fn over_websocket(&self, transport: Transport) -> Result<Established, AttemptError> {
        let carrier = Carrier::WebSocket;
        let upgraded = self
            .ways
            .dial()
            .await
            .map_err(|hop| AttemptError::Peer { carrier, hop })?;
        let route = match transport {
            Transport::Auto if !self.edge.is_empty() => self.udp_route(self.edge.clone()).ok(),
            _ => None,
        };
        let switch = Arc::new(Switch::new(carrier, route, None));
        let mut lines = WebSocketTasks::default();
        let line = lines.carry(upgraded, switch.arrivals());
        switch.set_websocket(Some(line));
        let handshake = self.shake_hands(&switch)?;
        let connection = tokio::select! {
            outcome = timeout(HANDSHAKE, handshake.connecting) => outcome
                .map_err(|_| AttemptError::NoQuic)?
                .map_err(|err| AttemptError::Quic { carrier, err })?,
            ended = lines.ended() => return Err(AttemptError::Ended(ended.to_string())),
        };
        // The connection's controller, which is younger than the WebSocket, has not heard of it.
        switch.select(carrier);
        Ok(Established {
            connection,
            endpoint: handshake.endpoint,
            switch,
            rebinding: handshake.rebinding,
            transmitter: handshake.transmitter,
            lines,
        })
    }

    fn udp_route(&self, edge: Vec<SocketAddr>) -> Result<UdpRoute, AttemptError> {
        let socket = self.ways.bind().map_err(AttemptError::Socket)?;
        Ok(UdpRoute::new(socket, None, edge))
    }

    fn shake_hands(&self, switch: &Arc<Switch>) -> Result<Handshake, AttemptError> {
        let face = AgentSocket::new(switch.clone());
        let rebinding = Rebinding::new(face.clone());
        let endpoint = Endpoint::new_with_abstract_socket(
            self.endpoint.clone(),
            None,
            face,
            rebinding.clone(),
        )
        .map_err(AttemptError::Socket)?;
        let mut quic = self.quic.clone();
        quic.transport_config(agent_transport(
            self.reach,
            switch.congestion_owner(),
            &self.memory,
        ));
        let (connecting, transmitter) =
            Transmitter::of(|| endpoint.connect_with(quic, EDGE, &self.server_name));
        let connecting = connecting.map_err(|err| match err {
            ConnectError::InvalidServerName(name) => AttemptError::ServerName(name),
            err => AttemptError::Configuration(err),
        })?;
        Ok(Handshake {
            endpoint,
            connecting,
            rebinding,
            transmitter,
        })
    }
}

/// A handshake that has begun.
struct Handshake {
    endpoint: Endpoint,
    connecting: Connecting,
    rebinding: Arc<Rebinding>,
    transmitter: Transmitter,
}

/// UDP's advantage in the race: a handshake on a 100 ms path with a round trip to spare. Where UDP
/// is blocked it is the price of every start.
const HEAD_START: Duration = Duration::from_millis(250);

/// How long a QUIC handshake may take: it repeats lost packets after 1, 2 and 4 s.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long an edge that was asked may stay silent before it is asked anew: QUIC's own repetitions
/// come at intervals that double, and an edge that is just starting is found sooner so (RFC 6298
/// §2.1 gives the same time).
const ROUND: Duration = Duration::from_secs(1);

/// As many as there is time for.
const ROUNDS: u32 = (HANDSHAKE.as_secs() / ROUND.as_secs()) as u32;
