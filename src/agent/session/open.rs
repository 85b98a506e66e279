//! One session with the edge, from the hello to the end of the last conversation.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ApplicationClose, Connection, ConnectionError, RecvStream, SendStream};
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
use crate::agent::forward::conversations::{Conversations, Counts};
use crate::carrier::{AgentLink, CarrierState, PathMemory};
use crate::proto::{
    ALPN, Address, AgentMessage, ClaimMode, Close, EdgeMessage, Features, Hello, LostSession,
    Policy, RunId, Text, TunnelRequest, Welcome, Window, WireError, close_text,
};
use crate::stream::{Budget, BufferTotal, FlowControl, RateLimit};

/// The identity of a session, and its claim on the names.
#[derive(Clone, Copy)]
pub struct SessionIdentity {
    /// The run of the agent's process.
    pub run: RunId,
    /// The number of the session within the run, from 1.
    pub epoch: u64,
    /// The mode in which the names are claimed.
    pub claim: ClaimMode,
}

impl SessionIdentity {
    /// Return the identity of the first session of a new run.
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
    link: AgentLink,
    control: Control,
    /// The tasks of the conversations.
    conversations: JoinSet<()>,
    /// Numbers of conversations by kind.
    counts: Conversations,
    /// The streams whose heads have not been read.
    unread: UnreadStreams,
    flow: Arc<FlowControl>,
    /// A successor of the edge's process has taken over: a newer session exists or is being opened.
    is_replaced: bool,
    /// The number of this session within the run.
    epoch: u64,
    /// The rate limit for messages from the edge that cost a log line or a connection.
    message_limit: RateLimit,
    /// The edge's answer to the hello: the tunnels that it granted.
    pub welcome: Welcome,
}

impl Session {
    /// Connect to the edge and request the tunnels. The epoch must be higher than those of the `lost` sessions.
    ///
    /// # Errors
    /// [`ConnectError`] if the edge cannot be reached, is not trusted, does not answer in time or refuses.
    pub async fn open(
        config: &AgentConfig,
        identity: SessionIdentity,
        lost: &[LostSession],
        memory: &PathMemory,
    ) -> Result<Self, ConnectError> {
        let server = &config.server;
        let link = dial(config, memory).await?;
        let connection = link.connection();
        if link.alpn().as_deref() != Some(ALPN) {
            // The edge names its version in the reason of the close.
            let reason = timeout(WELCOME_TIMEOUT, connection.closed()).await;
            return Err(ConnectError::Version {
                server: server.clone(),
                theirs: edge_version(reason.ok()),
            });
        }
        let mut control = Control::open(connection)
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
                .map(|(tunnel, requested)| TunnelRequest {
                    tunnel,
                    address: Address::Name(requested.name.as_str().into()).into(),
                    policy: Policy {
                        upgrades: requested.upgrades.others().to_vec(),
                    },
                })
                .collect(),
            lost: lost.to_vec(),
            features: Features::ALL,
        };
        let answer = async {
            control.hello(hello).await?;
            control.receive().await
        };
        match timeout(WELCOME_TIMEOUT, answer).await {
            Ok(Ok(EdgeMessage::Welcome(welcome))) => {
                if let Err(err) = check_grants(config, &welcome) {
                    let reason = err.to_string();
                    connection.close(Close::Protocol.code(), reason.as_bytes());
                    return Err(ConnectError::lost(server, ControlError::Wire(err)));
                }
                let budget = Budget::new(AgentLink::BUFFER, BufferTotal::new(AgentLink::BUFFER));
                let flow = FlowControl::for_connection(connection, budget, link.on_message());
                Ok(Self {
                    flow,
                    link,
                    control,
                    conversations: JoinSet::new(),
                    counts: Conversations::default(),
                    unread: UnreadStreams::default(),
                    is_replaced: false,
                    epoch: identity.epoch,
                    message_limit: RateLimit::new(MESSAGE_BURST, MESSAGE_INTERVAL),
                    welcome,
                })
            }
            Ok(Ok(EdgeMessage::Refused(refused))) => {
                link.close(Close::Done.code(), b"refused").await;
                Err(ConnectError::Refused(refused.into()))
            }
            Ok(Ok(_)) => {
                let err =
                    WireError::Invalid("the edge answered the hello with an unexpected message");
                connection.close(Close::Protocol.code(), err.to_string().as_bytes());
                Err(ConnectError::lost(server, ControlError::Wire(err)))
            }
            Ok(Err(ControlError::HelloTooLarge(hello))) => {
                connection.close(Close::Done.code(), b"the agent asks for too much at once");
                Err(ConnectError::HelloTooLarge(hello.to_string()))
            }
            Ok(Err(err)) => Err(match connection.close_reason() {
                Some(ConnectionError::ApplicationClosed(close))
                    if close.error_code == Close::HelloTooLarge.code() =>
                {
                    ConnectError::HelloTooLarge(Text::from_bytes(&close.reason).to_string())
                }
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
                limit: WELCOME_TIMEOUT,
            }),
        }
    }

    /// Return the carrier in use, with its statistics.
    pub fn link_stats(&self) -> LinkStats {
        Self::link_stats_of(self.link.connection(), self.link.carrier())
    }

    /// Close a session that serves no conversations.
    pub async fn close(self) {
        self.link
            .close(Close::Done.code(), b"the agent leaves")
            .await;
    }

    /// Combine the state of the carrier with the statistics of the path.
    fn link_stats_of(connection: &Connection, state: CarrierState) -> LinkStats {
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

    /// Serve conversations until the connection is lost, or until `shutdown` resolves; conversations in
    /// progress then have the grace period to end. A session returned in [`SessionEnd::Replaced`] must be
    /// served further, beside a new one.
    pub async fn serve(
        mut self,
        config: &AgentConfig,
        tunnels: &Arc<Vec<Arc<ServedTunnel>>>,
        shutdown: &mut (impl Future<Output = ()> + Unpin),
    ) -> SessionEnd {
        let connection = self.link.connection().clone();
        let mut reported = self.link.carrier();
        loop {
            // Not a branch of the `select!`: each end would wake this task, and the next stream wakes it anyway.
            while let Some(ended) = self.conversations.try_join_next() {
                log_panic(ended);
            }
            tokio::select! {
                biased;
                () = &mut *shutdown => break,
                accepted = connection.accept_bi() => match accepted {
                    Ok(stream) => self.spawn_conversation(stream, tunnels),
                    Err(err) => {
                        // Heads that have not been read by now never will be.
                        self.conversations.shutdown().await;
                        return session_end(err, self.unread.report(self.epoch));
                    }
                },
                Some(state) = self.link.carrier_changed(), if !self.is_replaced => {
                    if state != reported {
                        reported = state.clone();
                        config.observer.emit(Event::Transport(Self::link_stats_of(&connection, state)));
                    }
                    // Its packet shows the edge the new carrier, and so whether QUIC or TCP controls congestion.
                    self.send(&AgentMessage::Ping).await;
                }
                windows = self.flow.window_updates() => self.send_windows(windows).await,
                () = self.flow.tail_probe_due() => self.probe_tail().await,
                message = self.control.receive() => {
                    if self.handle(message, config).is_break() && !self.is_replaced {
                        self.is_replaced = true;
                        return SessionEnd::Replaced(Box::new(self));
                    }
                }
            }
        }

        self.drain(config, tunnels).await;
        SessionEnd::Shutdown
    }

    /// Handle a control message. Break if it asks the agent to move to the edge's successor.
    fn handle(
        &mut self,
        message: Result<EdgeMessage, ControlError>,
        config: &AgentConfig,
    ) -> ControlFlow<()> {
        let message = message.and_then(|message| match message {
            EdgeMessage::Window(window) => Ok(self.flow.raise(window).map(|()| message)?),
            EdgeMessage::Ping => Ok(message),
            _ if self.message_limit.take() => Ok(message),
            _ => Err(WireError::Invalid("the edge sends too many control messages").into()),
        });
        match message {
            Ok(EdgeMessage::Window(_) | EdgeMessage::Ping) => {}
            Ok(EdgeMessage::Draining { .. }) => {
                let notice = Event::Notice("the edge is about to restart".into());
                config.observer.emit(notice);
            }
            Ok(EdgeMessage::Notice(text)) => {
                config.observer.emit(Event::Notice(text.to_string()));
            }
            Ok(EdgeMessage::Moving { .. }) => return ControlFlow::Break(()),
            Ok(EdgeMessage::Welcome(_) | EdgeMessage::Refused(_)) => {
                self.abort(&WireError::Invalid("the edge answered the hello twice").into());
            }
            Ok(EdgeMessage::Opened(_) | EdgeMessage::NotOpened { .. }) => {
                let err = WireError::Invalid(
                    "the edge answered a request for a tunnel that was never made",
                );
                self.abort(&err.into());
            }
            Err(err) => self.abort(&err),
        }
        ControlFlow::Continue(())
    }

    /// Close the connection because its control stream has failed. Accepting streams then fails, which ends the
    /// session with a more precise reason.
    fn abort(&self, err: &ControlError) {
        let reason = match err {
            ControlError::Wire(wire) => {
                warn!(%wire, "the edge violated the protocol, closing the session");
                wire.to_string()
            }
            _ => err.to_string(),
        };
        self.link
            .connection()
            .close(Close::Protocol.code(), reason.as_bytes());
    }

    /// Send the last packets of a finished message again, followed by a new packet: a tail loss probe
    /// (RFC 8985 §7).
    async fn probe_tail(&mut self) {
        self.link.resend_tail();
        self.send(&AgentMessage::Ping).await;
    }

    /// Send the edge the new receive windows of some streams.
    async fn send_windows(&mut self, windows: Vec<Window>) {
        for window in windows {
            self.send(&AgentMessage::Window(window)).await;
        }
    }

    /// Send a control message, and close the connection if that fails.
    async fn send(&mut self, message: &AgentMessage) {
        if let Err(err) = self.control.send(message).await {
            self.abort(&err);
        }
    }

    /// Serve a stream in a task of its own.
    fn spawn_conversation(
        &mut self,
        stream: (SendStream, RecvStream),
        tunnels: &Arc<Vec<Arc<ServedTunnel>>>,
    ) {
        let tunnels = tunnels.clone();
        let find = move |number: u32| tunnels.get(number as usize).cloned();
        self.unread.accepted(stream.0.id().index());
        let (unread, flow) = (self.unread.clone(), self.flow.clone());
        let conversation = forward::serve(find, unread, flow, self.counts.start(), stream);
        // Boxed: unboxed, the large future would be copied several times, also when the task ends.
        self.conversations.spawn(Box::pin(conversation));
    }

    /// Shut down in order: the edge is asked for no new conversations; those in progress end, or are cut after
    /// the grace period; then the connection is closed, and the close is delivered.
    async fn drain(mut self, config: &AgentConfig, tunnels: &Arc<Vec<Arc<ServedTunnel>>>) {
        let connection = self.link.connection().clone();
        let deadline_ms = config.grace_period.as_millis() as u64;
        let _ = self
            .control
            .send(&AgentMessage::Draining { deadline_ms })
            .await;
        let drained = async {
            // Streams that the edge opened before it received the message are still served.
            let late_streams = sleep(LATE_STREAMS);
            tokio::pin!(late_streams);
            let mut idle = IdleTimer::new();
            loop {
                if idle.is_over(&connection, self.counts.now()) {
                    let cut = format!(
                        "cut {}, which were idle",
                        self.counts.now().describe_open_ended()
                    );
                    config.observer.emit(Event::Notice(cut));
                    return;
                }
                tokio::select! {
                    () = sleep(IDLE_CHECK_INTERVAL) => {}
                    accepted = connection.accept_bi() => match accepted {
                        Ok(stream) => self.spawn_conversation(stream, tunnels),
                        Err(_) => break,
                    },
                    Some(ended) = self.conversations.join_next() => log_panic(ended),
                    windows = self.flow.window_updates() => self.send_windows(windows).await,
                    () = self.flow.tail_probe_due() => self.probe_tail().await,
                    message = self.control.receive() => {
                        // An agent that shuts down opens no new session.
                        let _ = self.handle(message, config);
                    }
                    () = &mut late_streams, if self.conversations.is_empty() && !late_streams.is_elapsed() => break,
                }
                if late_streams.is_elapsed() && self.conversations.is_empty() {
                    break;
                }
            }
            // A conversation ends when quinn has buffered its data; megabytes may still be in flight.
            self.link.wait_until_delivered().await;
        };
        let _ = timeout(config.grace_period, drained).await;
        self.conversations.shutdown().await;
        self.link
            .close(Close::Done.code(), b"the agent stops")
            .await;
    }
}

/// Detects, while a session drains, that the conversations that are left are open-ended and idle.
struct IdleTimer {
    /// STREAM frames sent and received so far.
    frames: u64,
    since: Instant,
}

impl IdleTimer {
    fn new() -> Self {
        Self {
            frames: 0,
            since: Instant::now(),
        }
    }

    /// Report whether only open-ended conversations are left, and none has sent or received anything for
    /// [`IDLE_TIMEOUT`].
    fn is_over(&mut self, connection: &Connection, left: Counts) -> bool {
        let stats = connection.stats();
        // PING and ACK frames are not counted.
        let frames = stats.frame_tx.stream + stats.frame_rx.stream;
        if frames != self.frames || !left.are_open_ended() {
            *self = Self {
                frames,
                since: Instant::now(),
            };
        }
        self.since.elapsed() >= IDLE_TIMEOUT
    }
}

/// The reason for the end of a session.
pub enum SessionEnd {
    /// `shutdown` resolved.
    Shutdown,
    /// A session of another process with the same identity has taken the names.
    Superseded,
    /// Another agent was told to take over a name; the text says which.
    TakenOver(String),
    /// The session has not ended, but the edge's successor waits for a new one. Returned once for a session.
    Replaced(Box<Session>),
    /// The connection was lost: reconnect.
    Lost {
        /// The cause.
        reason: String,
        /// The report of unread requests for the next session.
        report: LostSession,
    },
}

/// Translate a connection error.
fn session_end(err: ConnectionError, report: LostSession) -> SessionEnd {
    let reason = match &err {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }) => {
            match Close::from_code(*error_code) {
                Some(Close::Superseded) => return SessionEnd::Superseded,
                Some(Close::TakenOver) => {
                    let reason = String::from_utf8_lossy(reason);
                    return SessionEnd::TakenOver(crate::proto::escape(&reason).into_owned());
                }
                Some(Close::Done) => "the edge stopped".into(),
                Some(close) => close.to_string(),
                None => close_text(&err).to_string(),
            }
        }
        ConnectionError::LocallyClosed => "the edge violated the protocol".into(),
        ConnectionError::Reset => "the edge was restarted".into(),
        ConnectionError::TimedOut => "the edge is silent".into(),
        _ => close_text(&err).to_string(),
    };
    SessionEnd::Lost { reason, report }
}

/// Check that the edge has granted exactly the requested tunnels.
fn check_grants(config: &AgentConfig, welcome: &Welcome) -> Result<(), WireError> {
    let requested = (0..).zip(&config.tunnels);
    let granted = welcome.tunnels.iter();
    let agrees = config.tunnels.len() == welcome.tunnels.len()
        && requested
            .zip(granted)
            .all(|((number, requested), granted)| {
                let address = Address::Name(requested.name.as_str().into());
                granted.tunnel == number && granted.address.known() == Some(&address)
            });
    match agrees {
        true => Ok(()),
        false => Err(WireError::Invalid(
            "the edge opened other tunnels than the agent requested",
        )),
    }
}

/// Extract the protocol version of the edge from its close.
fn edge_version(reason: Option<ConnectionError>) -> String {
    match reason {
        Some(ConnectionError::ApplicationClosed(ApplicationClose { reason, .. })) => {
            Text::from_bytes(&reason).to_string()
        }
        _ => "another version".to_owned(),
    }
}

/// Log a conversation that panicked.
fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(err) = ended
        && err.is_panic()
    {
        error!(%err, "a conversation panicked; the others continue");
    }
}

/// The time without data after which event streams and WebSockets no longer delay a shutdown. It is longer than the
/// usual gap between two messages of chats and games.
const IDLE_TIMEOUT: Duration = Duration::from_millis(1500);

/// The interval of the check for [`IDLE_TIMEOUT`].
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Time that the edge has to answer the hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// Time in which streams may still arrive after the edge was told that the agent drains: about a round trip.
const LATE_STREAMS: Duration = Duration::from_millis(300);

/// Control messages other than windows that the edge may send in a burst. They are rare: the edge drains, a successor
/// takes over, or there is a notice for people to read.
const MESSAGE_BURST: u32 = 32;

/// The interval at which one more of these messages is allowed.
const MESSAGE_INTERVAL: Duration = Duration::from_secs(5);
