//! Agents' sessions: the QUIC handshake, the hello on the control stream, and the messages that
//! follow on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::{Connection, Incoming};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument, debug, error, info, info_span, warn};

use super::control::{Control, SessionError};
use super::session_limit::{SessionLimit, SessionPermit};
use super::unauthenticated::{Admission, Attempt, HandshakePermit, Unauthenticated};
use crate::auth::{Name, NameError, Tokens};
use crate::carrier::{Carrier, EdgeEndpoint, EdgeLink};
use crate::edge::limits::EdgeLimits;
use crate::edge::listen::urls::Urls;
use crate::edge::names::registry::{Claim, Registry, Unclaimed};
use crate::edge::names::tunnel::{LiveTunnel, Owner};
use crate::edge::shutdown::Draining;
use crate::edge::visitors::conversations::Conversations;
use crate::edge::workers::{WorkerSlot, Workers};
use crate::http::Upgrades;
use crate::proto::{
    ALPN, Address, AgentMessage, CONTROL_LIMIT, ClaimMode, Close, EdgeMessage, Features, Hello,
    Limits, LostSession, Refusal, RunId, Text, TunnelGrant, TunnelRequest, Welcome, WireError,
    close_text,
};
use crate::stream::{Budget, BufferTotal, FlowControl, RateLimit};

/// State shared by all agents' sessions.
pub struct Agents {
    pub registry: Registry,
    /// The QUIC endpoint, which knows the carrier of each agent's packets.
    pub endpoint: EdgeEndpoint,
    pub tokens: Tokens,
    pub limits: EdgeLimits,
    pub unauthenticated: Unauthenticated,
    pub sessions: SessionLimit,
    pub workers: Workers,
    /// Budget for the flow-control windows of all sessions.
    pub buffer: Arc<BufferTotal>,
    pub urls: Urls,
    pub draining: Draining,
    pub grace_period: Duration,
}

impl Agents {
    /// Accept agents until the endpoint is closed.
    pub async fn accept(self: Arc<Self>) {
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                Some(ended) = sessions.join_next() => {
                    if let Err(err) = ended && err.is_panic() {
                        error!(%err, "a session panicked");
                    }
                }
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) if self.draining.has_started() => incoming.refuse(),
                    Some(incoming) => match self.admit_connection(&incoming) {
                        Admission::Accept(permit) => {
                            let span = info_span!("agent", addr = %incoming.remote_address());
                            let slot = self.workers.slot();
                            let runtime = slot.runtime().clone();
                            let session = self.clone().serve(incoming, slot, permit);
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

    /// Decide whether to accept a QUIC connection, whose agent is not authenticated yet.
    fn admit_connection(&self, incoming: &Incoming) -> Admission {
        let Some(carrier) = self.endpoint.carrier(incoming) else {
            return Admission::Ignore;
        };
        let attempt = Attempt {
            from: carrier.peer.address.ip(),
            remote: incoming.remote_address(),
            id: incoming.orig_dst_cid(),
            // A TCP handshake has validated the address.
            is_validated: incoming.remote_address_validated()
                || carrier.carrier == Carrier::WebSocket,
        };
        let known = self.sessions.len() + self.unauthenticated.len();
        let lingering = self.endpoint.open_connections().saturating_sub(known);
        self.unauthenticated.admit(&attempt, lingering)
    }

    /// Complete the QUIC handshake and serve the session on the connection until it ends.
    async fn serve(self: Arc<Self>, incoming: Incoming, slot: WorkerSlot, permit: HandshakePermit) {
        let connecting = self.endpoint.handshake(incoming);
        let handshake = permit.run(timeout(self.limits.handshake, connecting));
        let link = match handshake.await {
            Ok(Ok(Ok(link))) => link,
            Ok(Ok(Err(err))) => return debug!(%err, "the QUIC handshake failed"),
            Ok(Err(_)) => return debug!("the QUIC handshake timed out"),
            Err(err) => return debug!(%err, "the QUIC handshake failed"),
        };
        let budget = Budget::new(self.limits.session_buffer, self.buffer.clone());
        let flow = FlowControl::for_connection(link.connection(), budget, link.on_message());
        let context = SessionContext {
            link: &link,
            flow: &flow,
            conversations: &Conversations::new(EdgeLink::MAX_STREAMS as usize),
            worker: slot.worker,
        };
        if let Err(err) = self.session(context, permit).await {
            match &err {
                SessionError::Wire(err) => {
                    warn!(%err, "the agent violates the protocol, closing the session");
                }
                err => debug!(%err, "the session failed"),
            }
            let connection = link.connection();
            connection.close(err.close().code(), err.reason().as_bytes());
        }
    }

    /// Receive the hello, authenticate the agent, claim its names, and serve the session.
    async fn session(
        &self,
        context: SessionContext<'_>,
        permit: HandshakePermit,
    ) -> Result<(), SessionError> {
        let (link, connection) = (context.link, context.link.connection());
        if link.alpn().as_deref() != Some(ALPN) {
            return Err(SessionError::Version);
        }
        let hello = timeout(self.limits.hello, Control::accept(connection));
        let hello = permit.run(hello).await?;
        let (mut control, hello) = hello.map_err(|_| SessionError::Slow)??;
        let (owner, counted) = match self.authenticate(&hello) {
            Ok(authenticated) => authenticated,
            Err(refusal) => {
                let refused = permit.run(self.refuse(control, connection, refusal));
                return refused.await?;
            }
        };
        // The agent is authenticated: free its place among those that are not.
        drop(permit);
        link.authenticated();
        let claims = match self.admit(&hello, owner, context).await {
            Ok(claims) => claims,
            Err(refusal) => return self.refuse(control, connection, refusal).await,
        };
        link.share_path();
        self.registry.flushed().await;
        link.grant_window(self.limits.session_buffer);

        let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let limits = Limits {
            tunnels: self.limits.tunnels_per_agent,
            streams: EdgeLink::MAX_STREAMS,
        };
        let tunnels = claims.iter().map(|claim| self.grant(claim)).collect();
        let software = SOFTWARE.into();
        control
            .send(&EdgeMessage::Welcome(Welcome {
                session,
                software,
                tunnels,
                limits,
                features: Features::ALL,
            }))
            .await?;
        self.send_takeover_notices(&mut control, owner, &claims)
            .await?;

        let names: Vec<_> = claims.iter().map(|claim| claim.name().as_str()).collect();
        let carrier = link.carrier();
        info!(
            agent = %owner.agent,
            session,
            tunnels = names.join(","),
            software = %hello.software,
            carrier = carrier.map(|carrier| carrier.carrier.to_string()),
            peer = carrier.map(|carrier| carrier.peer.address.to_string()),
            "agent connected"
        );
        let session = Session {
            agents: self,
            owner,
            run: hello.run,
            epoch: hello.epoch,
            context,
            claims,
        };
        let ended = session.run(&mut control).await;
        info!(agent = %owner.agent, reason = %describe(connection), "agent disconnected");
        drop(counted);
        ended
    }

    /// Check the token, and count the session.
    fn authenticate(&self, hello: &Hello) -> Result<(Owner, SessionPermit), Refusal> {
        let token = self
            .tokens
            .accepts(&hello.token)
            .ok_or(Refusal::Unauthorized)?;
        let owner = Owner {
            token,
            agent: hello.agent,
        };
        Ok((owner, self.sessions.acquire(owner)?))
    }

    /// Claim the names of the hello, all or none. A name whose holder is alive may take
    /// [`SIGN_OF_LIFE_TIMEOUT`].
    async fn admit(
        &self,
        hello: &Hello,
        owner: Owner,
        context: SessionContext<'_>,
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
        let claim = || self.claim(&hello.tunnels, claimant, &lost, context);
        let contested = match claim() {
            Ok(claims) => return Ok(claims),
            Err(Unclaimed::Refused(refusal)) => return Err(refusal),
            Err(Unclaimed::Contested(contested)) => contested,
        };
        if let Some((name, rival)) = first_sign_of_life(&contested).await {
            return Err(self.contested(name, rival, owner));
        }
        for (name, rival) in contested {
            info!(%name, agent = %rival.owner.agent, "closing a silent session, another agent wants its name");
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
            // Another session claimed a name in the meantime.
            Unclaimed::Contested(contested) => match contested.first() {
                Some((name, rival)) => self.contested(name, rival, owner),
                None => Refusal::Busy {
                    reason: "others want the same names".into(),
                },
            },
        })
    }

    /// Record that two live agents compete for a name, and refuse it to this one.
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

    /// Notify the agent, and the log, of names that were taken over from other agents.
    async fn send_takeover_notices(
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

    /// Claim the names of these requests, all or none.
    fn claim(
        &self,
        requests: &[TunnelRequest],
        claimant: Claimant,
        lost: &Arc<[LostSession]>,
        context: SessionContext<'_>,
    ) -> Result<Vec<Claim>, Unclaimed> {
        let wanted = requests.iter().map(|request| {
            let Some(Address::Name(wanted)) = request.address.known() else {
                return Err(Unclaimed::Refused(Refusal::Unsupported));
            };
            let name: Name = wanted.parse().map_err(|err: NameError| {
                let (name, reason) = (wanted.clone(), err.to_string().into());
                Unclaimed::Refused(Refusal::NameInvalid { name, reason })
            })?;
            let tunnel = LiveTunnel {
                owner: claimant.owner,
                run: claimant.run,
                epoch: claimant.epoch,
                number: request.tunnel,
                connection: context.link.connection().clone(),
                flow: context.flow.clone(),
                conversations: context.conversations.publish(request.tunnel),
                worker: context.worker,
                upgrades: Upgrades::granted(&request.policy.upgrades),
                lost: lost.clone(),
            };
            Ok((name, tunnel))
        });
        let wanted = wanted.collect::<Result<_, _>>()?;
        self.registry.claim(wanted, claimant.mode)
    }

    /// Return the grant that is sent for a claim, with the tunnel's URLs.
    fn grant(&self, claim: &Claim) -> TunnelGrant {
        let name = claim.name().to_string();
        TunnelGrant {
            tunnel: claim.number(),
            urls: self.urls.of(&name).into_iter().map(Into::into).collect(),
            address: Address::Name(name.into()).into(),
        }
    }

    /// Send the refusal, and give the agent time to read it before the connection is closed.
    async fn refuse(
        &self,
        mut control: Control,
        connection: &Connection,
        refusal: Refusal,
    ) -> Result<(), SessionError> {
        info!(%refusal, "agent refused");
        control.send(&EdgeMessage::Refused(refusal.into())).await?;
        let _ = timeout(REFUSAL_TIMEOUT, connection.closed()).await;
        Err(SessionError::Refused)
    }
}

/// The connection of one session, and what is shared by its conversations.
#[derive(Clone, Copy)]
struct SessionContext<'a> {
    link: &'a EdgeLink,
    flow: &'a Arc<FlowControl>,
    conversations: &'a Arc<Conversations>,
    /// Index of the worker that the session runs on.
    worker: usize,
}

/// The session that claims names, and the right by which it does.
#[derive(Clone, Copy)]
struct Claimant {
    owner: Owner,
    run: RunId,
    epoch: u64,
    mode: ClaimMode,
}

/// An accepted session.
struct Session<'a> {
    agents: &'a Agents,
    owner: Owner,
    run: RunId,
    epoch: u64,
    context: SessionContext<'a>,
    claims: Vec<Claim>,
}

impl Session<'_> {
    /// Send and receive control messages until the connection ends.
    async fn run(mut self, control: &mut Control) -> Result<(), SessionError> {
        let mut announced = false;
        let mut quota = RateLimit::new(CONTROL_BURST, CONTROL_INTERVAL);
        loop {
            self.context.link.update_congestion_owner();
            let message = tokio::select! {
                () = self.agents.draining.started(), if !announced => {
                    announced = true;
                    let deadline_ms = self.agents.grace_period.as_millis() as u64;
                    let message = match self.agents.draining.has_successor() {
                        true => EdgeMessage::Moving { deadline_ms },
                        false => EdgeMessage::Draining { deadline_ms },
                    };
                    control.send(&message).await?;
                    continue;
                }
                windows = self.context.flow.window_updates() => {
                    for window in windows {
                        control.send(&EdgeMessage::Window(window)).await?;
                    }
                    continue;
                }
                () = self.context.flow.tail_probe_due() => {
                    self.context.link.resend_tail();
                    control.send(&EdgeMessage::Ping).await?;
                    continue;
                }
                message = control.receive(CONTROL_LIMIT) => message?,
            };
            let is_limited = !matches!(
                message,
                None | Some(AgentMessage::Window(_) | AgentMessage::Ping)
            );
            if is_limited && !quota.take() {
                return Err(WireError::Invalid("the agent sends too many control messages").into());
            }
            match message {
                Some(AgentMessage::Open(request)) => {
                    let reply = self.open(&request);
                    control.send(&reply).await?;
                }
                Some(AgentMessage::Close(number)) => {
                    let shut = self.claims.extract_if(.., |claim| claim.number() == number);
                    shut.for_each(Claim::free);
                }
                Some(AgentMessage::Draining { deadline_ms }) => {
                    debug!(deadline_ms, "agent is draining");
                    self.claims.drain(..).for_each(Claim::release);
                }
                Some(AgentMessage::Window(window)) => self.context.flow.raise(window)?,
                Some(AgentMessage::Ping) => {}
                Some(AgentMessage::Hello(_)) => {
                    return Err(WireError::Invalid("a second hello").into());
                }
                None => return Ok(()),
            }
        }
    }

    /// Open one more tunnel, and return the reply.
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
            let claims = self
                .agents
                .claim(requests, claimant, &[].into(), self.context);
            claims.map_err(|unclaimed| match unclaimed {
                Unclaimed::Refused(refusal) => refusal,
                // Only a new session waits for another's silence.
                Unclaimed::Contested(contested) => Refusal::NameTaken {
                    name: contested
                        .first()
                        .map_or_else(Text::default, |(name, _)| name.as_str().into()),
                    holder: "another process with the same identity".into(),
                    may_take_over: false,
                },
            })
        };
        match claims {
            Ok(claims) => {
                // One request yields one claim.
                let grant = self.agents.grant(&claims[0]);
                self.claims.extend(claims);
                EdgeMessage::Opened(grant)
            }
            Err(refusal) => EdgeMessage::NotOpened {
                tunnel: request.tunnel,
                refused: refusal.into(),
            },
        }
    }
}

/// Wait up to [`SIGN_OF_LIFE_TIMEOUT`] for a packet of one of these sessions, and return the first
/// session that sent one.
async fn first_sign_of_life(
    sessions: &[(Name, Arc<LiveTunnel>)],
) -> Option<&(Name, Arc<LiveTunnel>)> {
    let datagrams_received = |session: &LiveTunnel| session.connection.stats().udp_rx.datagrams;
    let is_open = |session: &LiveTunnel| session.connection.close_reason().is_none();
    let before: Vec<_> = sessions
        .iter()
        .map(|(_, session)| datagrams_received(session))
        .collect();
    let end = Instant::now() + SIGN_OF_LIFE_TIMEOUT;
    while Instant::now() < end {
        sleep(SIGN_OF_LIFE_INTERVAL).await;
        let mut with_before = sessions.iter().zip(&before);
        let alive = with_before.find(|((_, session), before)| {
            is_open(session) && datagrams_received(session) != **before
        });
        if let Some((session, _)) = alive {
            return Some(session);
        }
    }
    None
}

/// Describe why a connection ended.
fn describe(connection: &Connection) -> String {
    connection.close_reason().map_or_else(
        || "closed by the agent".to_owned(),
        |reason| close_text(&reason).to_string(),
    )
}

/// Name and version of this program.
const SOFTWARE: &str = concat!("qtunnel/", env!("CARGO_PKG_VERSION"));

/// Number of the next session, for the log.
static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// Control messages, other than window updates, that an agent may send at once. Opening and closing
/// a tunnel is written to the lease file.
const CONTROL_BURST: u32 = 256;
/// Interval at which an agent may send one more.
const CONTROL_INTERVAL: Duration = Duration::from_millis(250);

/// Time for a refused agent to read the reason.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Silence after which a session loses a name that another agent wants: two keep-alive intervals of
/// an agent, and time for one packet to be lost and retransmitted.
const SIGN_OF_LIFE_TIMEOUT: Duration = Duration::from_millis(2_500);

/// Interval at which sessions are checked for signs of life: an agent that is alive soon shows one.
const SIGN_OF_LIFE_INTERVAL: Duration = Duration::from_millis(100);
