//! Agents' sessions: the handshake on the control stream, and what follows on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming, ServerConfig};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{Instrument, debug, error, info, info_span};

use super::config::EdgeLimits;
use super::control::{Control, SessionError};
use super::conversations::Conversations;
use super::draining::Draining;
use super::registry::{Claim, Owner, Registry, Tunnel};
use super::urls::Urls;
use super::workers::{Seat, Workers};
use crate::auth::{Name, NameError, Tokens};
use crate::carrier::{
    AGENT_STREAMS, EdgeSocket, InControl, PathMemory, Paths, Reach, Repeater, Transmitter, alpn,
    edge_transport, session_window,
};
use crate::http::{Budget, BufferTotal, FlowControl};
use crate::proto::{
    ALPN, AgentMessage, CONTROL_LIMIT, Close, EdgeMessage, Hello, Limits, LostSession, Refusal,
    TunnelGrant, TunnelRequest, Welcome, WireError,
};

/// What all agents' sessions share.
pub struct Agents {
    pub registry: Registry,
    /// What tells how an agent's packets come.
    pub socket: EdgeSocket,
    /// QUIC's settings for agents in general.
    pub quic: ServerConfig,
    /// QUIC's settings for agents on this machine.
    pub nearby: Arc<ServerConfig>,
    /// What is known of the ways to agents.
    pub paths: Paths,
    pub tokens: Tokens,
    pub limits: EdgeLimits,
    pub workers: Workers,
    /// What all sessions may have in windows.
    pub buffer: Arc<BufferTotal>,
    pub urls: Urls,
    pub draining: Draining,
    pub grace_period: Duration,
}

impl Agents {
    /// Accept agents until the endpoint is closed.
    pub async fn accept(self: Arc<Self>, endpoint: Endpoint) {
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                Some(ended) = sessions.join_next() => {
                    if let Err(err) = ended && err.is_panic() {
                        error!(%err, "a session panicked");
                    }
                }
                incoming = endpoint.accept() => match incoming {
                    Some(incoming) if self.draining.has_begun() => incoming.refuse(),
                    Some(incoming) if sessions.len() >= self.limits.sessions => incoming.refuse(),
                    // Under load, agents first prove that their address is theirs (RFC 9000 §8.1.2).
                    Some(incoming) if sessions.len() > CALM && !incoming.remote_address_validated() => {
                        let _ = incoming.retry();
                    }
                    Some(incoming) => {
                        let span = info_span!("agent", addr = %incoming.remote_address());
                        let seat = self.workers.seat();
                        let runtime = seat.runtime().clone();
                        let session = self.clone().serve(incoming, seat);
                        sessions.spawn_on(session.instrument(span), &runtime);
                    }
                    None => break,
                },
            }
        }
        sessions.shutdown().await;
    }

    async fn serve(self: Arc<Self>, incoming: Incoming, seat: Seat) {
        let way = self.socket.carrier(incoming.remote_address());
        let is_near = way.is_some_and(|way| way.far_end.reach == Reach::Loopback);
        let in_control = InControl::default();
        let agent = self.socket.udp_address(incoming.remote_address());
        let path = agent
            .map(|agent| self.paths.recall(agent))
            .unwrap_or_default();
        let config = match is_near {
            true => self.nearby.clone(),
            false => self.quic_for(&in_control, &path),
        };
        let (accepted, transmitter) = Transmitter::of(|| incoming.accept_with(config));
        let connecting = match accepted {
            Ok(connecting) => connecting,
            Err(err) => return debug!(%err, "no handshake"),
        };
        let connection = match timeout(self.limits.handshake, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(err)) => return debug!(%err, "no handshake"),
            Err(_) => return debug!("the handshake took too long"),
        };
        let budget = Budget::new(self.limits.session_buffer, self.buffer.clone());
        let repeater = Arc::new(Repeater::of_edge(&connection, &self.socket));
        let ending = repeater.clone();
        let flow = FlowControl::on(&connection, budget, move |bytes| {
            ending.message_ended(bytes);
            transmitter.message_ended();
        });
        let way = Way {
            connection: &connection,
            in_control: &in_control,
            flow: &flow,
            conversations: &Conversations::new(AGENT_STREAMS as usize),
            repeater: &repeater,
            path: &path,
            worker: seat.worker,
        };
        if let Err(err) = self.session(way).await {
            debug!(%err, "the session ended early");
            connection.close(err.close().code(), err.reason().as_bytes());
        }
    }

    async fn session(&self, way: Way<'_>) -> Result<(), SessionError> {
        let connection = way.connection;
        if alpn(connection).as_deref() != Some(ALPN) {
            return Err(SessionError::Version);
        }
        let greeting = timeout(self.limits.hello, Control::greet(connection));
        let (mut control, hello) = greeting.await.map_err(|_| SessionError::Slow)??;
        let (owner, claims) = match self.admit(&hello, way).await {
            Ok(admitted) => admitted,
            Err(refusal) => return self.refuse(control, connection, refusal).await,
        };
        if let Some(agent) = self.socket.udp_address(connection.remote_address()) {
            self.paths.keep(agent, way.path);
        }
        self.registry.saved().await;
        // From here on the agent may use what a session may.
        connection.set_receive_window(session_window(self.limits.session_buffer));

        let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let limits = Limits {
            tunnels: self.limits.tunnels_per_agent,
            streams: AGENT_STREAMS,
        };
        let tunnels = claims.iter().map(|claim| self.grant(claim)).collect();
        let software = SOFTWARE.to_owned();
        control
            .send(&EdgeMessage::Welcome(Welcome {
                session,
                software,
                tunnels,
                limits,
            }))
            .await?;

        let names: Vec<_> = claims.iter().map(|claim| claim.name().as_str()).collect();
        let arrival = self.socket.carrier(connection.remote_address());
        info!(
            agent = %owner.agent,
            session,
            tunnels = names.join(","),
            software = ?hello.software,
            carrier = arrival.map(|way| way.carrier.to_string()),
            peer = arrival.map(|way| way.far_end.peer.to_string()),
            "agent came"
        );
        let session = Session {
            agents: self,
            owner,
            epoch: hello.epoch,
            way,
            claims,
        };
        let ended = session.run(&mut control).await;
        info!(agent = %owner.agent, reason = %describe(connection), "agent left");
        ended
    }

    /// Check the token and claim the names, all or none.
    async fn admit(&self, hello: &Hello, way: Way<'_>) -> Result<(Owner, Vec<Claim>), Refusal> {
        let token = self
            .tokens
            .accepts(&hello.token)
            .ok_or(Refusal::Unauthorized)?;
        let owner = Owner {
            token,
            agent: hello.agent,
        };
        if hello.tunnels.len() > self.limits.tunnels_per_agent as usize {
            return Err(Refusal::TooManyTunnels {
                limit: self.limits.tunnels_per_agent,
            });
        }
        let lost = hello.lost.clone().into();
        let claim = || self.claim(&hello.tunnels, owner, hello.epoch, &lost, way);
        let claims = match claim() {
            Err(Refusal::NameTaken { .. }) if self.bury_ghosts(hello, owner).await => claim()?,
            claims => claims?,
        };
        Ok((owner, claims))
    }

    /// Close sessions that show no sign of life and hold a name that an agent with the same token asks
    /// for: most likely it is the same one, which has lost its identity in a restart.
    async fn bury_ghosts(&self, hello: &Hello, owner: Owner) -> bool {
        let names = hello.tunnels.iter().map(|request| request.name.as_str());
        let rivals = self.registry.rivals(names, owner);
        let heard = |rival: &Connection| rival.stats().udp_rx.datagrams;
        let before: Vec<_> = rivals.iter().map(heard).collect();
        if rivals.is_empty() {
            return false;
        }
        tokio::time::sleep(SIGN_OF_LIFE).await;
        let mut buried = false;
        for (rival, before) in rivals.iter().zip(before) {
            if heard(rival) == before {
                rival.close(Close::Superseded.code(), b"silent");
                buried = true;
            }
        }
        buried
    }

    /// QUIC's settings for one agent on a network.
    fn quic_for(&self, in_control: &InControl, path: &PathMemory) -> Arc<ServerConfig> {
        let mut config = self.quic.clone();
        config.transport_config(edge_transport(Reach::Network, in_control, path));
        Arc::new(config)
    }

    fn claim(
        &self,
        requests: &[TunnelRequest],
        owner: Owner,
        epoch: u64,
        lost: &Arc<[LostSession]>,
        way: Way<'_>,
    ) -> Result<Vec<Claim>, Refusal> {
        let wanted = requests.iter().map(|request| {
            let name: Name = request.name.parse().map_err(|err: NameError| {
                let (name, reason) = (request.name.clone(), err.to_string());
                Refusal::NameInvalid { name, reason }
            })?;
            let tunnel = Tunnel {
                owner,
                epoch,
                number: request.tunnel,
                connection: way.connection.clone(),
                flow: way.flow.clone(),
                conversations: way.conversations.publish(request.tunnel),
                worker: way.worker,
                lost: lost.clone(),
            };
            Ok((name, tunnel))
        });
        self.registry.claim(wanted.collect::<Result<_, _>>()?)
    }

    fn grant(&self, claim: &Claim) -> TunnelGrant {
        let name = claim.name().to_string();
        TunnelGrant {
            tunnel: claim.number(),
            urls: self.urls.of(&name),
            name,
        }
    }

    /// Tell the agent why, and give it time to read that before the connection is closed.
    async fn refuse(
        &self,
        mut control: Control,
        connection: &Connection,
        refusal: Refusal,
    ) -> Result<(), SessionError> {
        info!(%refusal, "agent refused");
        control.send(&EdgeMessage::Refused(refusal)).await?;
        let _ = timeout(FAREWELL, connection.closed()).await;
        Err(SessionError::Refused)
    }
}

/// How a session's conversations go.
#[derive(Clone, Copy)]
struct Way<'a> {
    connection: &'a Connection,
    /// Whether congestion is for us to control on the path to the agent.
    in_control: &'a InControl,
    flow: &'a Arc<FlowControl>,
    conversations: &'a Arc<Conversations>,
    repeater: &'a Repeater,
    /// What is known of the path to the agent.
    path: &'a PathMemory,
    /// The number of the worker that the session is on.
    worker: usize,
}

/// A session that was accepted.
struct Session<'a> {
    agents: &'a Agents,
    owner: Owner,
    epoch: u64,
    way: Way<'a>,
    claims: Vec<Claim>,
}

impl Session<'_> {
    async fn run(mut self, control: &mut Control) -> Result<(), SessionError> {
        let mut told = false;
        loop {
            self.look_at_carrier();
            let message = tokio::select! {
                () = self.agents.draining.begun(), if !told => {
                    told = true;
                    let deadline_ms = self.agents.grace_period.as_millis() as u64;
                    let message = match self.agents.draining.is_succeeded() {
                        true => EdgeMessage::Moving { deadline_ms },
                        false => EdgeMessage::Draining { deadline_ms },
                    };
                    control.send(&message).await?;
                    continue;
                }
                windows = self.way.flow.untold() => {
                    for window in windows {
                        control.send(&EdgeMessage::Window(window)).await?;
                    }
                    continue;
                }
                () = self.way.flow.bare_tail() => {
                    self.way.repeater.repeat();
                    control.send(&EdgeMessage::Nothing).await?;
                    continue;
                }
                message = control.receive(CONTROL_LIMIT) => message?,
            };
            match message {
                Some(AgentMessage::Open(request)) => {
                    let answer = self.open(&request);
                    control.send(&answer).await?;
                }
                Some(AgentMessage::Shut(number)) => {
                    let shut = self.claims.extract_if(.., |claim| claim.number() == number);
                    shut.for_each(Claim::free);
                }
                Some(AgentMessage::Draining { deadline_ms }) => {
                    debug!(deadline_ms, "agent drains");
                    self.claims.drain(..).for_each(Claim::leave);
                }
                Some(AgentMessage::Window(window)) => self.way.flow.raise(window),
                Some(AgentMessage::Nothing) => {}
                Some(AgentMessage::Hello(_)) => return Err(WireError::Malformed.into()),
                None => return Ok(()),
            }
        }
    }

    /// See who controls congestion on the carrier that the agent uses now. After it has moved to another,
    /// it says something.
    fn look_at_carrier(&self) {
        let carrier = self
            .agents
            .socket
            .carrier(self.way.connection.remote_address());
        let congestion = carrier.map(|way| way.far_end.congestion);
        self.way.in_control.set(congestion.unwrap_or_default());
    }

    fn open(&mut self, request: &TunnelRequest) -> EdgeMessage {
        let limit = self.agents.limits.tunnels_per_agent;
        let claims = if self.claims.len() >= limit as usize {
            Err(Refusal::TooManyTunnels { limit })
        } else {
            let requests = std::slice::from_ref(request);
            let earlier = [].into();
            self.agents
                .claim(requests, self.owner, self.epoch, &earlier, self.way)
        };
        match claims {
            Ok(claims) => {
                // One request, one claim.
                let grant = self.agents.grant(&claims[0]);
                self.claims.extend(claims);
                EdgeMessage::Opened(grant)
            }
            Err(refusal) => EdgeMessage::NotOpened {
                tunnel: request.tunnel,
                refusal,
            },
        }
    }
}

fn describe(connection: &Connection) -> String {
    connection
        .close_reason()
        .map_or_else(|| "it said goodbye".to_owned(), |reason| reason.to_string())
}

/// Name and version of this program.
const SOFTWARE: &str = concat!("qtunnel/", env!("CARGO_PKG_VERSION"));

static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// Sessions up to which an edge takes handshakes without asking for proof of address.
const CALM: usize = 1_000;

/// How long an agent that was refused may take to read why.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a session may be silent before another agent with the same token may have its names: two
/// keep-alives of an agent, and time for one to be lost and repeated.
const SIGN_OF_LIFE: Duration = Duration::from_millis(2_500);
