//! Messages of the control stream.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Extensible, Features, Text, Variants};

/// Message from an agent to the edge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// First message: the agent's identity, its credentials, and the tunnels it asks for.
    Hello(Hello),
    /// Publish one more tunnel. Answered by [`EdgeMessage::Opened`] or [`EdgeMessage::NotOpened`].
    Open(TunnelRequest),
    /// Close the tunnel with this number. Its conversations in progress continue.
    Close(u32),
    /// The agent is stopping: send no new conversations, and close once the old ones are done.
    Draining {
        /// Time that the agent will wait for them, in milliseconds.
        deadline_ms: u64,
    },
    /// Window update for a request's body.
    Window(Window),
    /// Keep-alive without content: a packet after the end of a response, so that its loss is
    /// detected (a tail probe), or the first packet over another carrier.
    Ping,
}

/// Message from the edge to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EdgeMessage {
    /// Accept a hello.
    Welcome(Welcome),
    /// Refuse a hello. The edge closes with [`Close::Refused`](super::Close::Refused) once the
    /// agent has read it.
    Refused(Refused),
    /// Accept an [`AgentMessage::Open`].
    Opened(TunnelGrant),
    /// Refuse an [`AgentMessage::Open`].
    NotOpened {
        /// Number that the agent gave the tunnel.
        tunnel: u32,
        /// Reason of the refusal.
        refused: Refused,
    },
    /// The edge is stopping: it accepts no new conversations and closes once the old ones are done.
    Draining {
        /// Time that the edge will wait for them, in milliseconds.
        deadline_ms: u64,
    },
    /// Text for the person at the agent to read.
    Notice(Text),
    /// Another process of this edge has taken over: the agent opens a new session at once, which
    /// reaches that one. This session goes on beside it, also with new conversations, for visitors
    /// who are still connected to the old process, until the edge closes it.
    Moving {
        /// Time that the edge will wait for conversations in progress, in milliseconds.
        deadline_ms: u64,
    },
    /// Window update for a response's body.
    Window(Window),
    /// Keep-alive without content: a packet after the end of a request, so that its loss is
    /// detected (a tail probe).
    Ping,
}

/// Flow-control limit of a body. It starts at [`RequestHead::window`](super::RequestHead::window)
/// and is raised whenever much of it has been read; a lower limit than an earlier one is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Index of the stream that carries the body.
    pub stream: u64,
    /// Bytes that may be sent in all: contents of data frames, or raw bytes after an upgrade.
    pub limit: u64,
}

/// The agent's first message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Credential of the agent; empty where the edge needs none.
    pub token: Secret,
    /// Identity of the agent, across restarts and networks.
    pub agent: AgentId,
    /// Run of the agent's process: its sessions are ordered by `epoch`, those of different runs by
    /// their arrival.
    pub run: RunId,
    /// Number of the session within its run, so that a newer session supersedes its own ghost, and
    /// a delayed one does not supersede a newer. It depends on no clock.
    pub epoch: u64,
    /// Claim to names that are already held.
    pub claim: ClaimMode,
    /// Name and version of the program, for the edge's log.
    pub software: Text,
    /// Tunnels to publish from the start.
    pub tunnels: Vec<TunnelRequest>,
    /// State of earlier sessions that were lost, the latest first. Empty for a process that has
    /// just started.
    pub lost: Vec<LostSession>,
    /// Abilities of the agent.
    pub features: Features,
}

/// Claim of an agent's hello to names that are already held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClaimMode {
    /// Get names that its own agent id holds, and none of others.
    #[default]
    Own,
    /// Get them, although its last session was closed with
    /// [`Close::Superseded`](super::Close::Superseded): two agents have this id. It gets the names
    /// only if the other is silent.
    Superseded,
    /// Get names even if another agent with the same token holds them, because a person asked for
    /// it.
    TakeOver,
}

/// State of a lost session at the agent: with it the edge can tell a request that never arrived,
/// and may be retried, from one that may have been processed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostSession {
    /// [`Hello::epoch`] of the session. It was of the same [`Hello::run`].
    pub epoch: u64,
    /// Number of the edge's streams that the agent had accepted. QUIC opens them in order (RFC 9000
    /// §2.1): those with this index and above never arrived.
    pub accepted: u64,
    /// Indices of accepted streams whose head the agent had not read.
    pub unread: Vec<u64>,
}

impl LostSession {
    /// Report whether the agent had read the head of the stream with that index.
    pub fn had_read(&self, stream: u64) -> bool {
        stream < self.accepted && !self.unread.contains(&stream)
    }
}

/// Request of an agent for a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelRequest {
    /// Number of the agent's choice, which every [`StreamHead`](super::StreamHead) repeats.
    pub tunnel: u32,
    /// Wanted address. An edge refuses one of a kind that it does not know with
    /// [`Refusal::Unsupported`].
    pub address: Extensible<Address>,
    /// Rules of the tunnel.
    #[serde(with = "super::extensible::delimited")]
    pub policy: Policy,
}

/// Public address of a tunnel, by kind. Kinds to come (TCP and UDP ports, TLS server names, private
/// names) are appended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Address {
    /// A label in front of the edge's domain, for HTTP.
    Name(Text),
}

impl Variants for Address {
    const VARIANTS: u32 = 1;
}

/// Rules of a tunnel, which the edge applies also while the agent is away. Rules to come are
/// appended; an edge skips those that it does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Protocols besides `websocket` that visitors may switch to, by name. The edge ignores HTTP in
    /// another form, such as `h2c`, and any after the eighth.
    pub upgrades: Vec<String>,
}

/// Response of the edge to an accepted hello.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Number of the session, for logs at both ends.
    pub session: u64,
    /// Name and version of the program, for the agent's log.
    pub software: Text,
    /// One grant per requested tunnel, in the same order.
    pub tunnels: Vec<TunnelGrant>,
    /// Limits that the edge enforces.
    #[serde(with = "super::extensible::delimited")]
    pub limits: Limits,
    /// Abilities of the edge.
    pub features: Features,
}

/// An open tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelGrant {
    /// Number that the agent gave it.
    pub tunnel: u32,
    /// Granted address.
    pub address: Extensible<Address>,
    /// Public URLs, best first.
    pub urls: Vec<Text>,
}

impl TunnelGrant {
    /// Return the label in front of the edge's domain, if the tunnel has one.
    pub fn name(&self) -> Option<&str> {
        match &self.address {
            Extensible::Known(Address::Name(name)) => Some(name.as_str()),
            Extensible::Unknown => None,
        }
    }
}

/// Limits of the edge that matter to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most tunnels of one agent.
    pub tunnels: u32,
    /// Most concurrent conversations of one session.
    pub streams: u32,
}

/// Refusal of a hello or a tunnel, as it is sent: an agent that does not know the reason still
/// knows what to print, and whether to try again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Reason, with its details.
    pub reason: Extensible<Refusal>,
    /// Whether trying again can never help.
    pub is_permanent: bool,
    /// The reason in words.
    pub text: Text,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            is_permanent: refusal.is_permanent(),
            text: refusal.to_string().into(),
            reason: refusal.into(),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused.reason {
            Extensible::Known(refusal) => refusal,
            Extensible::Unknown => Self::Other {
                is_permanent: refused.is_permanent,
                text: refused.text,
            },
        }
    }
}

/// Reason for refusing a hello or a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The token is missing or wrong. Permanent.
    #[error("the edge refused the token")]
    Unauthorized,
    /// Another agent holds the name. An agent that has just started gives up; one that had the name
    /// before retries now and then.
    #[error("the name \"{name}\" is held by {holder}")]
    NameTaken {
        /// The name.
        name: Text,
        /// Description of the holder and until when, without any secret.
        holder: Text,
        /// Set if [`ClaimMode::TakeOver`] would have helped.
        may_take_over: bool,
    },
    /// The name is invalid or reserved. Permanent.
    #[error("the name \"{name}\" cannot be used: {reason}")]
    NameInvalid {
        /// The name.
        name: Text,
        /// Reason why it cannot be used.
        reason: Text,
    },
    /// The agent asks for more tunnels than the edge allows. Permanent.
    #[error("at most {limit} tunnels are allowed for one agent")]
    TooManyTunnels {
        /// [`Limits::tunnels`].
        limit: u32,
    },
    /// The edge is full or about to stop. Temporary.
    #[error("the edge is busy: {reason}")]
    Busy {
        /// Reason, such as that it is draining.
        reason: Text,
    },
    /// The edge has no tunnels of that kind. Permanent.
    #[error("the edge has no tunnels of this kind: upgrade the edge (the server's qtunnel)")]
    Unsupported,
    /// Reason of a later version of the edge. Not on the wire: made from [`Refused::text`].
    #[serde(skip)]
    #[error("the edge refuses: {text}")]
    Other {
        /// [`Refused::is_permanent`].
        is_permanent: bool,
        /// [`Refused::text`].
        text: Text,
    },
}

impl Refusal {
    /// Report whether trying again can never help.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Busy { .. } => false,
            Self::Other { is_permanent, .. } => *is_permanent,
            _ => true,
        }
    }
}

impl Variants for Refusal {
    const VARIANTS: u32 = 6;
}

impl Variants for AgentMessage {
    const VARIANTS: u32 = 6;
}

impl Variants for EdgeMessage {
    const VARIANTS: u32 = 9;
}

/// A string that is never shown, not even by `Debug`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wrap a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// Return the secret, to compare or send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Persistent random identity of an agent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AgentId(pub [u8; 16]);

impl AgentId {
    /// Generate a random identity.
    pub fn random() -> Self {
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id).expect("the operating system has random numbers");
        Self(id)
    }

    /// Format the whole identity in hexadecimal, as it is stored in a file.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Parse the output of [`to_hex`](Self::to_hex).
    pub fn from_hex(text: &str) -> Option<Self> {
        let text = text.trim();
        let valid = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        valid.then(|| {
            u128::from_str_radix(text, 16)
                .ok()
                .map(|id| Self(id.to_be_bytes()))
        })?
    }
}

/// Random number that identifies one run of an agent's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunId(pub u64);

impl RunId {
    /// Generate the number of a run that starts.
    pub fn random() -> Self {
        let mut id = [0; 8];
        aws_lc_rs::rand::fill(&mut id).expect("the operating system has random numbers");
        Self(u64::from_be_bytes(id))
    }
}

impl fmt::Display for AgentId {
    /// Format the first four bytes: enough to tell agents apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentId({self})")
    }
}
