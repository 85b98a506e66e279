//! One session with the edge: from the hello to the last conversation.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ApplicationClose, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, warn};

use super::connect_error::ConnectError;
use super::control::{Control, ControlError};
use super::dial::dial;
use super::unread::UnreadStreams;
use crate::agent::config::AgentConfig;
use crate::agent::event::{Event, LinkStats};
use crate::agent::forward;
use crate::agent::forward::ServedTunnel;
use crate::agent::forward::open_ended::{Conversations, Counts};
use crate::carrier::{
    CarrierState, Dialed, Driver, Duplicator, PathMemory, SESSION_BUFFER, all_delivered, alpn,
};
use crate::proto::{
    ALPN, AgentMessage, ClaimMode, Close, EdgeMessage, Hello, LostSession, RunId, Text,
    TunnelRequest, Welcome, Window, WireError, close_text,
};
use crate::stream::{Budget, BufferTotal, FlowControl, Quota};

/// Which of an agent's sessions one is, and with what right it asks for names.
#[derive(Clone, Copy)]
pub struct SessionIdentity {
    pub run: RunId,
    pub epoch: u64,
    pub claim: ClaimMode,
}

impl SessionIdentity {
    /// The first session of a run that begins.
    pub fn first(claim: ClaimMode) -> Self {
        Self {
            run: RunId::random(),
            epoch: 1,
            claim,
        }
    }
}

/// An authenticated connection to the edge.
pub struct Session {
    endpoint: Endpoint,
    connection: Connection,
    /// On which carrier the packets travel at the moment, and why.
    carrier: watch::Receiver<CarrierState>,
    upkeep: Upkeep,
    control: Control,
    conversations: JoinSet<()>,
    counted: Conversations,
    heads: UnreadStreams,
    flow: Arc<FlowControl>,
    duplicator: Arc<Duplicator>,
    /// Whether another process of the edge has taken over, and a newer session is there or on its way.
    moving: bool,
    /// Which of the agent's sessions this is.
    epoch: u64,
    /// How often the edge may say what costs a line or a connection.
    rare: Quota,
    /// What the edge granted.
    pub welcome: Welcome,
}

impl Session {
    /// Find the edge, connect, and ask for the tunnels. The epoch must be higher than those of the
    /// sessions that were `lost`.
    pub async fn open(
        config: &AgentConfig,
        identity: SessionIdentity,
        lost: &[LostSession],
        memory: &PathMemory,
    ) -> Result<Self, ConnectError> {
        let server = &config.server;
        let Dialed {
            connection,
            endpoint,
            carrier,
            driver,
            transmitter,
            duplicator,
        } = dial(config, memory).await?;
        let upkeep = Upkeep::start(&connection, driver);
        let duplicator = Arc::new(duplicator);
        if alpn(&connection).as_deref() != Some(ALPN) {
            // The edge says which version it speaks as it closes.
            let reason = timeout(WELCOME, connection.closed()).await;
            return Err(ConnectError::Version {
                server: server.clone(),
                theirs: version(reason.ok()),
            });
        }
        let mut control = Control::open(&connection)
            .await
            .map_err(|err| ConnectError::lost(server, err))?;
        let hello = Hello {
            token: config.token.clone(),
            agent: config.id,
            run: identity.run,
            epoch: identity.epoch,
            claim: identity.claim,
            software: concat!("qtunnel/", env!("CARGO_PKG_VERSION")).into(),
            tunnels: (0..)
                .zip(&config.tunnels)
                .map(|(tunnel, wanted)| TunnelRequest {
                    tunnel,
                    name: wanted.name.as_str().into(),
                    upgrades: wanted.upgrades.others().to_vec(),
                })
                .collect(),
            lost: lost.to_vec(),
        };
        let answer = async {
            control.send(&AgentMessage::Hello(hello)).await?;
            control.receive().await
        };
        match timeout(WELCOME, answer).await {
            Ok(Ok(EdgeMessage::Welcome(welcome))) => {
                if let Err(err) = agrees(config, &welcome) {
                    let reason = err.to_string();
                    connection.close(Close::Protocol.code(), reason.as_bytes());
                    return Err(ConnectError::lost(server, ControlError::Wire(err)));
                }
                let budget = Budget::new(SESSION_BUFFER, BufferTotal::new(SESSION_BUFFER));
                let ending = duplicator.clone();
                let flow = FlowControl::on(&connection, budget, move |bytes| {
                    ending.message_written(bytes);
                    transmitter.message_written();
                });
                Ok(Self {
                    endpoint,
                    flow,
                    duplicator,
                    connection,
                    carrier,
                    upkeep,
                    control,
                    conversations: JoinSet::new(),
                    counted: Conversations::default(),
                    heads: UnreadStreams::default(),
                    moving: false,
                    epoch: identity.epoch,
                    rare: Quota::new(RARE_AT_ONCE, RARE_EVERY),
                    welcome,
                })
            }
            Ok(Ok(EdgeMessage::Refused(refusal))) => {
                connection.close(Close::Done.code(), b"refused");
                let _ = timeout(FAREWELL, endpoint.wait_idle()).await;
                Err(ConnectError::Refused(refusal))
            }
            Ok(Ok(_)) => {
                let err = WireError::Invalid("the hello was answered with another message");
                connection.close(Close::Protocol.code(), err.to_string().as_bytes());
                Err(ConnectError::lost(server, ControlError::Wire(err)))
            }
            Ok(Err(err)) => Err(match connection.close_reason() {
                Some(reason) => ConnectError::lost(server, close_text(&reason).as_str()),
                None => {
                    if let ControlError::Wire(wire) = &err {
                        connection.close(Close::Protocol.code(), wire.to_string().as_bytes());
                    }
                    ConnectError::lost(server, err)
                }
            }),
            Err(_) => Err(ConnectError::Silent {
                server: server.clone(),
                limit: WELCOME,
            }),
        }
    }

    /// Describe what the packets travel on, and how well.
    pub fn transport_now(&self) -> LinkStats {
        Self::transport(&self.connection, &self.carrier.borrow())
    }

    /// Close the session, which served nobody.
    pub async fn leave(self) {
        self.connection
            .close(Close::Done.code(), b"the agent leaves");
        let _ = timeout(FAREWELL, self.endpoint.wait_idle()).await;
    }

    fn transport(connection: &Connection, state: &CarrierState) -> LinkStats {
        let path = connection.stats().path;
        LinkStats {
            carrier: state.carrier,
            reason: state.reason.to_string(),
            rtt: path.rtt,
            sent_packets: path.sent_packets,
            lost_packets: path.lost_packets,
            mtu: path.current_mtu,
        }
    }

    /// Serve conversations until the connection is lost, or until `shutdown`, after which those
    /// under way have the grace period to end. Returned as [`Ended::Moving`], the session is to be
    /// served on, beside a new one.
    pub async fn serve(
        mut self,
        config: &AgentConfig,
        tunnels: &Arc<Vec<Arc<ServedTunnel>>>,
        shutdown: &mut (impl Future<Output = ()> + Unpin),
    ) -> Ended {
        let connection = self.connection.clone();
        let mut told = self.carrier.borrow().clone();
        loop {
            // In passing: each that ends would wake this task, and the next stream does so anyway.
            while let Some(ended) = self.conversations.try_join_next() {
                report(ended);
            }
            tokio::select! {
                biased;
                () = &mut *shutdown => break,
                accepted = connection.accept_bi() => match accepted {
                    Ok(stream) => self.converse(stream, tunnels),
                    Err(err) => {
                        // Whatever has not been read by now never will be.
                        self.conversations.shutdown().await;
                        return ended(err, self.heads.report(self.epoch));
                    }
                },
                Ok(()) = self.carrier.changed(), if !self.moving => {
                    let state = self.carrier.borrow_and_update().clone();
                    if state != told {
                        config.observer.tell(Event::Transport(Self::transport(&self.connection, &state)));
                        told = state;
                    }
                    // The edge looks then who controls congestion on the carrier that brings it.
                    self.say(&AgentMessage::Nothing).await;
                }
                windows = self.flow.untold() => self.tell(windows).await,
                () = self.flow.tail_probe_due() => self.follow().await,
                message = self.control.receive() => {
                    if self.hear(message, config).is_break() && !self.moving {
                        self.moving = true;
                        return Ended::Moving(Box::new(self));
                    }
                }
            }
        }

        self.drain(config, tunnels).await;
        Ended::Shutdown
    }

    /// Take in what the edge says. Breaks when it asks us to move to its successor.
    fn hear(
        &mut self,
        message: Result<EdgeMessage, ControlError>,
        config: &AgentConfig,
    ) -> ControlFlow<()> {
        let message = message.and_then(|message| match message {
            EdgeMessage::Window(window) => Ok(self.flow.raise(window).map(|()| message)?),
            EdgeMessage::Nothing => Ok(message),
            _ if self.rare.take() => Ok(message),
            _ => Err(WireError::Invalid("the edge says too much").into()),
        });
        match message {
            Ok(EdgeMessage::Window(_) | EdgeMessage::Nothing) => {}
            Ok(EdgeMessage::Draining { .. }) => {
                let notice = Event::Notice("the edge is about to restart".into());
                config.observer.tell(notice);
            }
            Ok(EdgeMessage::Notice(text)) => {
                config.observer.tell(Event::Notice(text.to_string()));
            }
            Ok(EdgeMessage::Moving { .. }) => return ControlFlow::Break(()),
            Ok(EdgeMessage::Welcome(_) | EdgeMessage::Refused(_)) => {
                self.give_up(&WireError::Invalid("the hello is answered a second time").into());
            }
            Ok(EdgeMessage::Opened(_) | EdgeMessage::NotOpened { .. }) => {
                let err = WireError::Invalid("a tunnel is answered for that was not asked for");
                self.give_up(&err.into());
            }
            Err(err) => self.give_up(&err),
        }
        ControlFlow::Continue(())
    }

    /// Close a connection whose control stream is of no use any more. Whoever accepts streams ends the session
    /// then, and knows better why.
    fn give_up(&self, err: &ControlError) {
        let reason = match err {
            ControlError::Wire(wire) => {
                warn!(%wire, "the edge breaks the protocol, the session is closed");
                wire.to_string()
            }
            _ => err.to_string(),
        };
        self.connection
            .close(Close::Protocol.code(), reason.as_bytes());
    }

    /// Send a message again that ended, and something behind it.
    async fn follow(&mut self) {
        self.duplicator.repeat();
        self.say(&AgentMessage::Nothing).await;
    }

    /// Tell the edge how much more of some bodies may come.
    async fn tell(&mut self, windows: Vec<Window>) {
        for window in windows {
            self.say(&AgentMessage::Window(window)).await;
        }
    }

    async fn say(&mut self, message: &AgentMessage) {
        if let Err(err) = self.control.send(message).await {
            self.give_up(&err);
        }
    }

    fn converse(
        &mut self,
        stream: (SendStream, RecvStream),
        tunnels: &Arc<Vec<Arc<ServedTunnel>>>,
    ) {
        let tunnels = tunnels.clone();
        let find = move |number: u32| tunnels.get(number as usize).cloned();
        self.heads.accepted(stream.0.id().index());
        let (heads, flow) = (self.heads.clone(), self.flow.clone());
        let conversation = forward::serve(find, heads, flow, self.counted.begin(), stream);
        // Boxed: as the task itself it would be copied from place to place, at its end too.
        self.conversations.spawn(Box::pin(conversation));
    }

    /// The order: the edge sends no new conversations; those under way end, or are cut; then the
    /// connection is closed, and the edge hears of it.
    async fn drain(mut self, config: &AgentConfig, tunnels: &Arc<Vec<Arc<ServedTunnel>>>) {
        let connection = self.connection.clone();
        let deadline_ms = config.grace_period.as_millis() as u64;
        let _ = self
            .control
            .send(&AgentMessage::Draining { deadline_ms })
            .await;
        let drained = async {
            // What was opened before the edge heard of it is still served.
            let settled = sleep(SETTLE);
            tokio::pin!(settled);
            let mut quiet = Quiet::new();
            loop {
                if quiet.is_over(&connection, self.counted.now()) {
                    let cut = format!(
                        "cut {}, where nothing moved",
                        self.counted.now().open_ended()
                    );
                    config.observer.tell(Event::Notice(cut));
                    return;
                }
                tokio::select! {
                    () = sleep(LOOK) => {}
                    accepted = connection.accept_bi() => match accepted {
                        Ok(stream) => self.converse(stream, tunnels),
                        Err(_) => break,
                    },
                    Some(ended) = self.conversations.join_next() => report(ended),
                    windows = self.flow.untold() => self.tell(windows).await,
                    () = self.flow.tail_probe_due() => self.follow().await,
                    message = self.control.receive() => {
                        // No new session of an agent that leaves.
                        let _ = self.hear(message, config);
                    }
                    () = &mut settled, if self.conversations.is_empty() && !settled.is_elapsed() => break,
                }
                if settled.is_elapsed() && self.conversations.is_empty() {
                    break;
                }
            }
            // Conversations end when quinn has what they send, which may be megabytes.
            all_delivered(&connection).await;
        };
        let _ = timeout(config.grace_period, drained).await;
        self.conversations.shutdown().await;
        self.connection
            .close(Close::Done.code(), b"the agent stops");
        let _ = timeout(FAREWELL, self.endpoint.wait_idle()).await;
        drop(self.upkeep);
    }
}

/// Watches, while a session drains, for the time in which nothing moves.
struct Quiet {
    frames: u64,
    since: Instant,
}

impl Quiet {
    fn new() -> Self {
        Self {
            frames: 0,
            since: Instant::now(),
        }
    }

    /// Report whether all that is left has no end of its own, and nothing of it has moved for long enough.
    fn is_over(&mut self, connection: &Connection, left: Counts) -> bool {
        let stats = connection.stats();
        // Pings and acknowledgements have no such frames.
        let frames = stats.frame_tx.stream + stats.frame_rx.stream;
        if frames != self.frames || !left.are_open_ended() {
            *self = Self {
                frames,
                since: Instant::now(),
            };
        }
        self.since.elapsed() >= QUIET
    }
}

/// What keeps a connection on a carrier that works, and closes it when it is dropped.
struct Upkeep(Connection);

impl Upkeep {
    fn start(connection: &Connection, driver: Driver) -> Self {
        // It ends soon after the connection is closed: the edge must hear of that first, over the
        // carrier that it keeps.
        tokio::spawn(driver.run());
        Self(connection.clone())
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.close(Close::Done.code(), b"the agent is gone");
    }
}

/// How a session ended.
pub enum Ended {
    /// As we were told.
    Shutdown,
    /// A session that has the same identity, and is not ours, has the names.
    Superseded,
    /// Another agent has a name of ours, as somebody wants; this says which.
    TakenOver(String),
    /// It has not ended, but another process of the edge waits for a new one. Is told once.
    Moving(Box<Session>),
    /// Against our will: try again.
    Lost {
        /// Why.
        reason: String,
        /// What the edge should know about it.
        report: LostSession,
    },
}

fn ended(err: ConnectionError, report: LostSession) -> Ended {
    let reason = match &err {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }) => {
            match Close::from_code(*error_code) {
                Some(Close::Superseded) => return Ended::Superseded,
                Some(Close::TakenOver) => {
                    let reason = String::from_utf8_lossy(reason);
                    return Ended::TakenOver(crate::proto::escape(&reason).into_owned());
                }
                Some(Close::Done) => "the edge stopped".into(),
                Some(close) => close.to_string(),
                None => close_text(&err).to_string(),
            }
        }
        ConnectionError::LocallyClosed => "the edge broke the protocol".into(),
        ConnectionError::Reset => "the edge was restarted".into(),
        ConnectionError::TimedOut => "the edge is silent".into(),
        _ => close_text(&err).to_string(),
    };
    Ended::Lost { reason, report }
}

/// Check that the edge has granted what was asked for, and nothing else.
fn agrees(config: &AgentConfig, welcome: &Welcome) -> Result<(), WireError> {
    let asked = (0..).zip(&config.tunnels);
    let granted = welcome.tunnels.iter();
    let agrees = config.tunnels.len() == welcome.tunnels.len()
        && asked.zip(granted).all(|((number, asked), granted)| {
            granted.tunnel == number && granted.name == *asked.name.as_str()
        });
    match agrees {
        true => Ok(()),
        false => Err(WireError::Invalid(
            "other tunnels are open than those that were asked for",
        )),
    }
}

fn version(reason: Option<ConnectionError>) -> String {
    match reason {
        Some(ConnectionError::ApplicationClosed(ApplicationClose { reason, .. })) => {
            Text::from_bytes(&reason).to_string()
        }
        _ => "another version".to_owned(),
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(err) = ended
        && err.is_panic()
    {
        error!(%err, "a conversation panicked; the others go on");
    }
}

/// How long event streams and WebSockets may rest before they do not keep an agent that stops. It is longer than
/// what most chats and games let pass between two messages.
const QUIET: Duration = Duration::from_millis(1500);

/// How often one looks whether they rest.
const LOOK: Duration = Duration::from_millis(250);

/// How long the edge may take to answer the hello.
const WELCOME: Duration = Duration::from_secs(10);

/// How long the edge may take to acknowledge a close.
const FAREWELL: Duration = Duration::from_secs(1);

/// A round trip in which conversations may still arrive after we said that we drain.
const SETTLE: Duration = Duration::from_millis(300);

/// Notices and other rare messages that the edge may send at once, and how often later. An edge says that it drains,
/// that another one takes over, and a few things that people should read.
const RARE_AT_ONCE: u32 = 32;
const RARE_EVERY: Duration = Duration::from_secs(5);
