//! The messages of the control stream.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Text;

/// What an agent tells the edge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// The first message: who I am, what proves it, and what I would like to publish.
    Hello(Hello),
    /// Publish one more tunnel. Answered by [`EdgeMessage::Opened`] or [`EdgeMessage::NotOpened`].
    Open(TunnelRequest),
    /// Stop publishing the tunnel of that number. Conversations under way go on.
    Shut(u32),
    /// The agent is about to go: send no new conversations, and close when the old ones are done.
    Draining {
        /// How long the agent will wait for them.
        deadline_ms: u64,
    },
    /// More of a request's body may come.
    Window(Window),
    /// Nothing: a packet that follows the end of an answer, so that the loss of that is noticed, or the
    /// first over another carrier.
    Nothing,
}

/// What the edge tells an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EdgeMessage {
    /// The answer to a hello that was accepted.
    Welcome(Welcome),
    /// The answer to one that was not. The edge closes with [`Close::Refused`](super::Close::Refused)
    /// once the agent has read it.
    Refused(Refusal),
    /// A later tunnel is open.
    Opened(TunnelGrant),
    /// A later tunnel is not open.
    NotOpened {
        /// The number that the agent gave it.
        tunnel: u32,
        /// Why.
        refusal: Refusal,
    },
    /// The edge is about to go: it accepts no new conversations and closes when the old ones are done.
    Draining {
        /// How long the edge will wait for them.
        deadline_ms: u64,
    },
    /// Something that the person at the agent should read.
    Notice(Text),
    /// Another process of this edge has taken over: the agent opens a new session at once, which
    /// reaches that one. This session goes on beside it, also with new conversations, for visitors
    /// who are still connected to the old process, until the edge closes it.
    Moving {
        /// How long the edge will wait for what is under way.
        deadline_ms: u64,
    },
    /// More of an answer's body may come.
    Window(Window),
    /// Nothing: a packet that follows the end of a request, so that the loss of that is noticed.
    Nothing,
}

/// How much of a body its reader takes. It begins with [`RequestHead::window`](super::RequestHead::window)
/// and is told anew whenever much of it has been read; a lower limit than an earlier one means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The index of the stream that carries the body.
    pub stream: u64,
    /// Bytes of data frames' contents (after an upgrade, of raw bytes) that may be sent in all.
    pub limit: u64,
}

/// The agent's first message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// What authenticates the agent; empty where the edge needs none.
    pub token: Secret,
    /// Who the agent is, across restarts and networks.
    pub agent: AgentId,
    /// Which run of the agent this is: its sessions are ordered by `epoch`, those of different runs by
    /// when they come.
    pub run: RunId,
    /// Counts the sessions of a run, so that a newer one supersedes its own ghost, and one that is
    /// late does not supersede a newer one. No clock has a part in it.
    pub epoch: u64,
    /// What to do where a name is held.
    pub claim: ClaimMode,
    /// Name and version of the program, for the edge's log.
    pub software: Text,
    /// What to publish from the start.
    pub tunnels: Vec<TunnelRequest>,
    /// What became of earlier sessions, the latest first. A process that has just started knows
    /// of none.
    pub lost: Vec<LostSession>,
}

/// What an agent that says hello expects of names that are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClaimMode {
    /// It gets those that its own agent id holds, and none of others.
    #[default]
    Own,
    /// The same, but its last session was closed with [`Close::Superseded`](super::Close::Superseded)
    /// although it is alive: there are two with this agent id. It gets the names only if the other is
    /// silent.
    Superseded,
    /// Somebody wants it to have the names even if another agent with the same token holds them.
    TakeOver,
}

/// What an agent knows about a session of its own that broke: with it the edge can tell a request
/// that never arrived, and may be sent again, from one that may have been processed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostSession {
    /// The session's [`Hello::epoch`]. It was of the same [`Hello::run`].
    pub epoch: u64,
    /// How many streams of the edge the agent had accepted. QUIC opens them in order (RFC 9000
    /// §2.1): those with this index and above never arrived.
    pub accepted: u64,
    /// The indices of accepted streams whose head the agent had not read.
    pub unread: Vec<u64>,
}

impl LostSession {
    /// Report whether the agent had read the head of the stream with that index.
    pub fn had_read(&self, stream: u64) -> bool {
        stream < self.accepted && !self.unread.contains(&stream)
    }
}

/// A tunnel that an agent would like to publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelRequest {
    /// A number of the agent's choice, which every [`StreamHead`](super::StreamHead) repeats.
    pub tunnel: u32,
    /// The label in front of the edge's domain.
    pub name: Text,
    /// Protocols besides `websocket` that visitors may switch to, by name. The edge passes over what is
    /// HTTP in another form, such as `h2c`, and over more than eight.
    pub upgrades: Vec<String>,
}

/// The edge's answer to a hello.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// A number for logs at both ends.
    pub session: u64,
    /// Name and version of the program, for the agent's log.
    pub software: Text,
    /// One for every tunnel asked for, in the same order.
    pub tunnels: Vec<TunnelGrant>,
    /// What the edge will not go beyond.
    pub limits: Limits,
}

/// A tunnel that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelGrant {
    /// The number that the agent gave it.
    pub tunnel: u32,
    /// The label in front of the edge's domain.
    pub name: Text,
    /// Where visitors reach it, best first.
    pub urls: Vec<Text>,
}

/// The edge's limits, as far as an agent can use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Tunnels of one agent.
    pub tunnels: u32,
    /// Conversations of one session at the same time.
    pub streams: u32,
}

/// Why a hello or a tunnel was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The token is missing or wrong. Permanent.
    #[error("the edge refused the token")]
    Unauthorized,
    /// Somebody else holds the name. An agent that has just started gives up; one that had the name
    /// before tries again now and then.
    #[error("the name \"{name}\" is held by {holder}")]
    NameTaken {
        /// The name.
        name: Text,
        /// Who holds it and until when, without any secret.
        holder: Text,
        /// Whether [`ClaimMode::TakeOver`] would have helped.
        may_take_over: bool,
    },
    /// The name cannot be one, or is reserved. Permanent.
    #[error("the name \"{name}\" cannot be used: {reason}")]
    NameInvalid {
        /// The name.
        name: Text,
        /// What is wrong with it.
        reason: Text,
    },
    /// The agent asks for more tunnels than the edge allows. Permanent.
    #[error("at most {limit} tunnels are allowed for one agent")]
    TooManyTunnels {
        /// [`Limits::tunnels`].
        limit: u32,
    },
    /// The edge is full or about to stop. Try again later.
    #[error("the edge is busy: {reason}")]
    Busy {
        /// What it is busy with.
        reason: Text,
    },
}

/// A string that is never shown, also not by `Debug`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wrap a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// Look at it, to compare it or to send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// An agent's persistent random identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AgentId(pub [u8; 16]);

impl AgentId {
    /// Make an identity.
    pub fn random() -> Self {
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id).expect("the operating system has random numbers");
        Self(id)
    }

    /// Write the whole identity, as it is kept in a file.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Read what [`to_hex`](Self::to_hex) wrote.
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

/// One run of an agent, from its start to its end: a random number that it makes as it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunId(pub u64);

impl RunId {
    /// Make one for a run that begins.
    pub fn random() -> Self {
        let mut id = [0; 8];
        aws_lc_rs::rand::fill(&mut id).expect("the operating system has random numbers");
        Self(u64::from_be_bytes(id))
    }
}

impl fmt::Display for AgentId {
    /// The first four bytes: enough to tell agents apart in a log.
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
