//! Codes on the wire that say why a connection or a stream was ended.

use std::fmt;

use quinn::ConnectionError;

use super::Text;

/// Application error code of a QUIC CONNECTION_CLOSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The sender has drained and is stopping; the other end may reconnect.
    Done = 0,
    /// The sender received a protocol violation.
    Protocol = 1,
    /// A time limit was exceeded, such as that for the first message.
    Timeout = 2,
    /// A newer session of the same agent has taken the names of this one. An agent that did not open it
    /// asks for them once more, with [`ClaimMode::Superseded`](super::ClaimMode::Superseded).
    Superseded = 3,
    /// The edge is full.
    Busy = 4,
    /// Another agent has taken over a name of this session, because a person asked for it; the
    /// reason names it.
    TakenOver = 5,
    /// The first message is longer than [`HELLO_LIMIT`](super::HELLO_LIMIT).
    HelloTooLarge = 413,
    /// The token was refused; an [`EdgeMessage::Refused`](super::EdgeMessage::Refused) says why.
    Refused = 401,
    /// The ends speak different versions; the reason is the edge's ALPN.
    Version = 426,
}

impl Close {
    /// Return the code as QUIC carries it.
    pub fn code(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(self as u32)
    }

    /// Return the meaning of a code from the other end, if it is known.
    pub fn from_code(code: quinn::VarInt) -> Option<Self> {
        [
            Self::Done,
            Self::Protocol,
            Self::Timeout,
            Self::Superseded,
            Self::Busy,
            Self::TakenOver,
            Self::HelloTooLarge,
            Self::Refused,
            Self::Version,
        ]
        .into_iter()
        .find(|close| close.code() == code)
    }
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "closed by the other end",
            Self::Protocol => "the other end reported a protocol violation",
            Self::Timeout => "the other end timed out waiting for us",
            Self::Superseded => "a newer session of the same agent took over",
            Self::Busy => "the edge is full",
            Self::TakenOver => "another agent took over",
            Self::HelloTooLarge => {
                "the agent asks for more at once than the edge reads: publish fewer tunnels"
            }
            Self::Refused => "refused by the edge",
            Self::Version => "the edge speaks another version of the protocol",
        })
    }
}

/// Describe why a connection ended. The text may contain the peer's own words.
pub fn close_text(err: &ConnectionError) -> Text {
    match err {
        ConnectionError::ApplicationClosed(close) => {
            let meaning = match Close::from_code(close.error_code) {
                Some(close) => close.to_string(),
                None => format!("closed with code {}", close.error_code),
            };
            match close.reason.is_empty() {
                true => meaning.into(),
                false => format!("{meaning}: {}", Text::from_bytes(&close.reason)).into(),
            }
        }
        // Some of these contain the reason of the peer's QUIC implementation.
        _ => err.to_string().into(),
    }
}

/// Application error code of a RESET_STREAM or STOP_SENDING.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The far side of this conversation (visitor or upstream) has gone away.
    Gone = 1,
    /// The sender received a protocol violation on the stream.
    Protocol = 2,
    /// The receiver needs no more of this direction; the other one goes on.
    Enough = 3,
    /// The sender does not know this kind of conversation.
    Unsupported = 4,
}

impl Reset {
    /// Return the code as QUIC carries it.
    pub fn code(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(self as u32)
    }
}
