//! Agents' sessions: the handshake on the control stream, and what follows on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming, ServerConfig};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument, debug, error, info, info_span, warn};

use super::control::{Control, SessionError};
use super::session_limit::{CountedSession, Sessions};
use super::unauthenticated::{Admission, Attempt, Place, Unauthenticated};
use crate::auth::{Name, NameError, Tokens};
use crate::carrier::{
    AGENT_STREAMS, Carrier, Duplicator, EdgeSocket, PathKind, PathMemory, PathCache,
    SharedCongestionOwner, Transmitter, alpn, edge_transport, session_window,
};
use crate::edge::limits::EdgeLimits;
use crate::edge::listen::urls::Urls;
use crate::edge::names::registry::{Claim, LiveTunnel, Owner, Registry, Unclaimed};
use crate::edge::shutdown::Draining;
use crate::edge::visitors::conversations::Conversations;
use crate::edge::workers::{WorkerSlot, Workers};
use crate::http::Upgrades;
use crate::proto::{
    ALPN, AgentMessage, CONTROL_LIMIT, ClaimMode, Close, EdgeMessage, Hello, Limits, LostSession,
    Refusal, RunId, TunnelGrant, TunnelRequest, Welcome, WireError, close_text,
};
use crate::stream::{Budget, BufferTotal, FlowControl, Quota};

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
    pub paths: PathCache,
    pub tokens: Tokens,
    pub limits: EdgeLimits,
    pub unauthenticated: Unauthenticated,
    pub sessions: Sessions,
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
                    Some(incoming) => match self.admit_connection(&incoming, &endpoint) {
                        Admission::Place(place) => {
                            let span = info_span!("agent", addr = %incoming.remote_address());
                            let slot = self.workers.slot();
                            let runtime = slot.runtime().clone();
                            let session = self.clone().serve(incoming, slot, place);
                            sessions.spawn_on(session.instrument(span), &runtime);
                        }
                        Admission::Retry => {
                            let _ = incoming.retry();
                        }
                        Admission::Ignore => incoming.ignore(),
                    },
                    None => break,
                },
            }
        }
        sessions.shutdown().await;
    }

    fn admit_connection(&self, incoming: &Incoming, endpoint: &Endpoint) -> Admission {
        let remote = incoming.remote_address();
        let Some(way) = self.socket.carrier(remote) else {
            return Admission::Ignore;
        };
        let attempt = Attempt {
            from: way.peer.address.ip(),
            remote,
            id: incoming.orig_dst_cid(),
            // TCP has asked for a proof, too.
            is_validated: incoming.remote_address_validated() || way.carrier == Carrier::WebSocket,
        };
        let known = self.sessions.len() + self.unauthenticated.len();
        let lingering = endpoint.open_connections().saturating_sub(known);
        self.unauthenticated.admit(&attempt, lingering)
    }

    async fn serve(self: Arc<Self>, incoming: Incoming, slot: WorkerSlot, place: Place) {
        let way = self.socket.carrier(incoming.remote_address());
        let is_near = way.is_some_and(|way| way.peer.path_kind == PathKind::Loopback);
        let congestion_owner = SharedCongestionOwner::default();
        let agent = self.socket.udp_address(incoming.remote_address());
        let path = agent
            .map(|agent| self.paths.recall(agent))
            .unwrap_or_default();
        let config = match is_near {
            true => self.nearby.clone(),
            false => self.quic_for(&congestion_owner, &path),
        };
        let (accepted, transmitter) = Transmitter::capture(|| incoming.accept_with(config));
        let connecting = match accepted {
            Ok(connecting) => connecting,
            Err(err) => return debug!(%err, "no handshake"),
        };
        let handshake = place.keep(timeout(self.limits.handshake, connecting));
        let connection = match handshake.await {
            Ok(Ok(Ok(connection))) => connection,
            Ok(Ok(Err(err))) => return debug!(%err, "no handshake"),
            Ok(Err(_)) => return debug!("the handshake took too long"),
            Err(err) => return debug!(%err, "no handshake"),
        };
        let budget = Budget::new(self.limits.session_buffer, self.buffer.clone());
        let duplicator = Arc::new(Duplicator::of_edge(&connection, &self.socket));
        let ending = duplicator.clone();
        let flow = FlowControl::on(&connection, budget, move |bytes| {
            ending.message_written(bytes);
            transmitter.message_written();
        });
        let way = SessionContext {
            connection: &connection,
            congestion_owner: &congestion_owner,
            flow: &flow,
            conversations: &Conversations::new(AGENT_STREAMS as usize),
            duplicator: &duplicator,
            path: &path,
            worker: slot.worker,
        };
        if let Err(err) = self.session(way, place).await {
            match &err {
                SessionError::Wire(err) => {
                    warn!(%err, "the agent breaks the protocol, the session is closed");
                }
                err => debug!(%err, "the session ended early"),
            }
            connection.close(err.close().code(), err.reason().as_bytes());
        }
    }

    async fn session(&self, way: SessionContext<'_>, place: Place) -> Result<(), SessionError> {
        let connection = way.connection;
        if alpn(connection).as_deref() != Some(ALPN) {
            return Err(SessionError::Version);
        }
        let greeting = timeout(self.limits.hello, Control::greet(connection));
        let greeting = place.keep(greeting).await?;
        let (mut control, hello) = greeting.map_err(|_| SessionError::Slow)??;
        let (owner, counted) = match self.authenticate(&hello) {
            Ok(authenticated) => authenticated,
            Err(refusal) => {
                let refused = place.keep(self.refuse(control, connection, refusal));
                return refused.await?;
            }
        };
        // From here on it is no stranger's any more.
        drop(place);
        self.socket.session_started(connection.remote_address());
        let claims = match self.admit(&hello, owner, way).await {
            Ok(claims) => claims,
            Err(refusal) => return self.refuse(control, connection, refusal).await,
        };
        if let Some(agent) = self.socket.udp_address(connection.remote_address()) {
            self.paths.store(agent, way.path);
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
        let software = SOFTWARE.into();
        control
            .send(&EdgeMessage::Welcome(Welcome {
                session,
                software,
                tunnels,
                limits,
            }))
            .await?;
        self.tell_of_takeovers(&mut control, owner, &claims).await?;

        let names: Vec<_> = claims.iter().map(|claim| claim.name().as_str()).collect();
        let arrival = self.socket.carrier(connection.remote_address());
        info!(
            agent = %owner.agent,
            session,
            tunnels = names.join(","),
            software = %hello.software,
            carrier = arrival.map(|way| way.carrier.to_string()),
            peer = arrival.map(|way| way.peer.address.to_string()),
            "agent came"
        );
        let session = Session {
            agents: self,
            owner,
            run: hello.run,
            epoch: hello.epoch,
            way,
            claims,
        };
        let ended = session.run(&mut control).await;
        info!(agent = %owner.agent, reason = %describe(connection), "agent left");
        drop(counted);
        ended
    }

    /// Check the token, and count the session.
    fn authenticate(&self, hello: &Hello) -> Result<(Owner, CountedSession), Refusal> {
        let token = self
            .tokens
            .accepts(&hello.token)
            .ok_or(Refusal::Unauthorized)?;
        let owner = Owner {
            token,
            agent: hello.agent,
        };
        Ok((owner, self.sessions.enter(owner)?))
    }

    /// Claim the names, all or none.
    async fn admit(
        &self,
        hello: &Hello,
        owner: Owner,
        way: SessionContext<'_>,
    ) -> Result<Vec<Claim>, Refusal> {
        if hello.tunnels.len() > self.limits.tunnels_per_agent as usize {
            return Err(Refusal::TooManyTunnels {
                limit: self.limits.tunnels_per_agent,
            });
        }
        let claimant = Claimant {
            owner,
            run: hello.run,
            epoch: hello.epoch,
            mode: hello.claim,
        };
        let lost = hello.lost.clone().into();
        let claim = || self.claim(&hello.tunnels, claimant, &lost, way);
        let contested = match claim() {
            Ok(claims) => return Ok(claims),
            Err(Unclaimed::Refused(refusal)) => return Err(refusal),
            Err(Unclaimed::Contested(contested)) => contested,
        };
        if let Some((name, rival)) = first_sign_of_life(&contested).await {
            return Err(self.contested(name, rival, owner));
        }
        for (name, rival) in contested {
            info!(%name, agent = %rival.owner.agent, "a silent session is closed for another");
            let code = match rival.owner == owner {
                true => Close::Superseded.code(),
                false => Close::TakenOver.code(),
            };
            rival
                .connection
                .close(code, b"silent, and another wants its name");
        }
        claim().map_err(|unclaimed| match unclaimed {
            Unclaimed::Refused(refusal) => refusal,
            // Somebody was faster.
            Unclaimed::Contested(contested) => match contested.first() {
                Some((name, rival)) => self.contested(name, rival, owner),
                None => Refusal::Busy {
                    reason: "others want the same names".into(),
                },
            },
        })
    }

    /// Refuse a name that two want who are both alive.
    fn contested(&self, name: &Name, rival: &LiveTunnel, owner: Owner) -> Refusal {
        self.registry.contest(name);
        let agent = rival.owner.agent;
        let holder = match rival.owner == owner {
            true => format!("another process with the same identity ({agent}), which is connected"),
            false => format!("agent {agent}, which is connected and wants to keep it"),
        };
        Refusal::NameTaken {
            name: name.as_str().into(),
            holder: holder.into(),
            may_take_over: false,
        }
    }

    /// Say on both sides of a session whose names were taken over from others.
    async fn tell_of_takeovers(
        &self,
        control: &mut Control,
        owner: Owner,
        claims: &[Claim],
    ) -> Result<(), SessionError> {
        for claim in claims {
            let Some(from) = claim.taken_from() else {
                continue;
            };
            let name = claim.name();
            info!(%name, %from, to = %owner.agent, "a name was taken over, as asked");
            let notice = format!("the name {name} was held by agent {from}, and was taken over");
            control.send(&EdgeMessage::Notice(notice.into())).await?;
        }
        Ok(())
    }

    /// QUIC's settings for one agent on a network.
    fn quic_for(
        &self,
        congestion_owner: &SharedCongestionOwner,
        path: &PathMemory,
    ) -> Arc<ServerConfig> {
        let mut config = self.quic.clone();
        config.transport_config(edge_transport(PathKind::Network, congestion_owner, path));
        Arc::new(config)
    }

    fn claim(
        &self,
        requests: &[TunnelRequest],
        claimant: Claimant,
        lost: &Arc<[LostSession]>,
        way: SessionContext<'_>,
    ) -> Result<Vec<Claim>, Unclaimed> {
        let wanted = requests.iter().map(|request| {
            let name: Name = request.name.parse().map_err(|err: NameError| {
                let (name, reason) = (request.name.clone(), err.to_string().into());
                Unclaimed::Refused(Refusal::NameInvalid { name, reason })
            })?;
            let tunnel = LiveTunnel {
                owner: claimant.owner,
                run: claimant.run,
                epoch: claimant.epoch,
                number: request.tunnel,
                connection: way.connection.clone(),
                flow: way.flow.clone(),
                conversations: way.conversations.publish(request.tunnel),
                worker: way.worker,
                upgrades: Upgrades::granted(&request.upgrades),
                lost: lost.clone(),
            };
            Ok((name, tunnel))
        });
        let wanted = wanted.collect::<Result<_, _>>()?;
        self.registry.claim(wanted, claimant.mode)
    }

    fn grant(&self, claim: &Claim) -> TunnelGrant {
        let name = claim.name().to_string();
        TunnelGrant {
            tunnel: claim.number(),
            urls: self.urls.of(&name).into_iter().map(Into::into).collect(),
            name: name.into(),
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
struct SessionContext<'a> {
    connection: &'a Connection,
    /// Whether congestion is for us to control on the path to the agent.
    congestion_owner: &'a SharedCongestionOwner,
    flow: &'a Arc<FlowControl>,
    conversations: &'a Arc<Conversations>,
    duplicator: &'a Duplicator,
    /// What is known of the path to the agent.
    path: &'a PathMemory,
    /// The number of the worker that the session is on.
    worker: usize,
}

/// Who claims names, and with what right.
#[derive(Clone, Copy)]
struct Claimant {
    owner: Owner,
    run: RunId,
    epoch: u64,
    mode: ClaimMode,
}

/// A session that was accepted.
struct Session<'a> {
    agents: &'a Agents,
    owner: Owner,
    run: RunId,
    epoch: u64,
    way: SessionContext<'a>,
    claims: Vec<Claim>,
}

impl Session<'_> {
    async fn run(mut self, control: &mut Control) -> Result<(), SessionError> {
        let mut told = false;
        let mut rare = Quota::new(RARE_AT_ONCE, RARE_EVERY);
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
                () = self.way.flow.tail_probe_due() => {
                    self.way.duplicator.resend_tail();
                    control.send(&EdgeMessage::Nothing).await?;
                    continue;
                }
                message = control.receive(CONTROL_LIMIT) => message?,
            };
            let is_rare = !matches!(
                message,
                None | Some(AgentMessage::Window(_) | AgentMessage::Nothing)
            );
            if is_rare && !rare.take() {
                return Err(WireError::Invalid("the agent says too much").into());
            }
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
                Some(AgentMessage::Window(window)) => self.way.flow.raise(window)?,
                Some(AgentMessage::Nothing) => {}
                Some(AgentMessage::Hello(_)) => {
                    return Err(WireError::Invalid("a second hello").into());
                }
                None => return Ok(()),
            }
        }
    }

    /// See who controls congestion on the carrier that the agent uses now. After it has moved to another,
    /// it says something.
    fn look_at_carrier(&self) {
        let (socket, remote) = (&self.agents.socket, self.way.connection.remote_address());
        socket.session_started(remote);
        let carrier = socket.carrier(remote);
        let congestion = carrier.map(|way| way.peer.congestion);
        self.way
            .congestion_owner
            .set(congestion.unwrap_or_default());
    }

    fn open(&mut self, request: &TunnelRequest) -> EdgeMessage {
        let limit = self.agents.limits.tunnels_per_agent;
        let claims = if self.claims.len() >= limit as usize {
            Err(Refusal::TooManyTunnels { limit })
        } else {
            let requests = std::slice::from_ref(request);
            let claimant = Claimant {
                owner: self.owner,
                run: self.run,
                epoch: self.epoch,
                mode: ClaimMode::Own,
            };
            let claims = self.agents.claim(requests, claimant, &[].into(), self.way);
            claims.map_err(|unclaimed| match unclaimed {
                Unclaimed::Refused(refusal) => refusal,
                // Only sessions that begin wait for another's silence.
                Unclaimed::Contested(_) => Refusal::NameTaken {
                    name: request.name.clone(),
                    holder: "another process with the same identity".into(),
                    may_take_over: false,
                },
            })
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

/// Wait for a sign of life of one of these sessions, but not for long.
async fn first_sign_of_life(
    sessions: &[(Name, Arc<LiveTunnel>)],
) -> Option<&(Name, Arc<LiveTunnel>)> {
    let heard = |session: &LiveTunnel| session.connection.stats().udp_rx.datagrams;
    let is_open = |session: &LiveTunnel| session.connection.close_reason().is_none();
    let before: Vec<_> = sessions.iter().map(|(_, session)| heard(session)).collect();
    let end = Instant::now() + SIGN_OF_LIFE;
    while Instant::now() < end {
        sleep(LOOK).await;
        let mut with_before = sessions.iter().zip(&before);
        let alive = with_before
            .find(|((_, session), before)| is_open(session) && heard(session) != **before);
        if let Some((session, _)) = alive {
            return Some(session);
        }
    }
    None
}

fn describe(connection: &Connection) -> String {
    connection.close_reason().map_or_else(
        || "it said goodbye".to_owned(),
        |reason| close_text(&reason).to_string(),
    )
}

/// Name and version of this program.
const SOFTWARE: &str = concat!("qtunnel/", env!("CARGO_PKG_VERSION"));

static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// Tunnels that an agent may open, shut and so on at once, and how often later: each is written to the file of leases.
const RARE_AT_ONCE: u32 = 256;
const RARE_EVERY: Duration = Duration::from_millis(250);

/// How long an agent that was refused may take to read why.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a session whose name another wants must be silent before it is given up: two keep-alives of
/// an agent, and time for one to be lost and repeated.
const SIGN_OF_LIFE: Duration = Duration::from_millis(2_500);

/// Between looks at whether a session shows life: an agent that is alive soon does.
const LOOK: Duration = Duration::from_millis(100);
