//! The wire: `qtunnel/1`. These module docs are its specification.
//!
//! # Roles
//! The *agent* opens one QUIC connection to the *edge* (ALPN [`ALPN`]) and authenticates on it; the
//! edge carries visitors' conversations to the agent over it. The ALPN is the version: messages have
//! neither version fields nor reserved fields. Both ends also offer [`ALPN_ANY`]. It is chosen only
//! when the versions differ, and then the edge closes at once with [`Close::Version`] and its own
//! version as the reason, so that the agent can say which end to upgrade.
//!
//! # Streams
//! 1. The agent opens the **control stream** (its first and only bidirectional stream) and sends
//!    [`AgentMessage::Hello`]. The edge answers [`EdgeMessage::Welcome`] or [`EdgeMessage::Refused`],
//!    the latter followed by a close. Later messages go both ways until the connection ends.
//! 2. For every visitor conversation the **edge opens a bidirectional stream** and writes one
//!    [`StreamHead`]. What follows depends on its kind.
//!
//! An agent has one session with an edge. It has two for a while when the edge says
//! [`EdgeMessage::Moving`]: it opens a second connection, with a higher epoch, which reaches another
//! process of the same edge, and goes on serving streams on the first until the edge closes that.
//!
//! # Whose a name is
//! A name belongs to the agent (token and [`Hello::agent`]) that got it first, for as long as it is
//! connected and a grace period beyond; one that said [`AgentMessage::Draining`] has left it to whoever
//! asks. Sessions of one agent follow each other: those of one [`Hello::run`] by their epoch, and a
//! run that begins follows an earlier one. The older session is closed with [`Close::Superseded`]. If its
//! run is alive nevertheless, two agents have the same identity: it comes back once with
//! [`ClaimMode::Superseded`] and gets the names if the other is silent, or is refused for good.
//! Another agent with the same token gets a name that is held only with [`ClaimMode::TakeOver`]; the
//! session that had it is closed with [`Close::TakenOver`]. A name that was taken over from a session
//! that lived, or for which two have been fighting, passes on only from one that is silent for a while.
//!
//! # Messages and heads
//! Each is a length (a QUIC variable-length integer, RFC 9000 §16) and that many bytes of
//! [postcard](https://postcard.jamesmunns.com/wire-format), with nothing left over. The length is
//! checked against the limit below before anything is allocated. New kinds of message and of head
//! are appended to their enums; an unknown one closes the connection with [`Close::Protocol`].
//!
//! # HTTP on a stream
//! ```text
//! edge  → agent   StreamHead::Http(RequestHead)   body frames…   FIN
//! agent → edge    ResponseHead (1xx)…  ResponseHead (final)   body frames…   FIN
//! ```
//! A **body frame** is a variable-length integer `n > 0` and `n` bytes of data; `n = 0` announces
//! trailers (a length-prefixed postcard list of fields), which must be the last. FIN at a frame
//! boundary ends a complete message. RESET_STREAM, or FIN inside a frame, is an aborted one, and
//! whoever forwards it makes that visible: a truncated body is never presented as complete.
//! A receiver passes on what has arrived of a frame without waiting for the rest.
//!
//! After a final head with status 101 (the answer to a request with [`RequestHead::upgrade`]) both
//! directions are raw bytes, and FIN is a half-close.
//!
//! A visitor who goes away becomes STOP_SENDING on the response and RESET_STREAM on the request,
//! both with [`Reset::Gone`]; the agent then aborts the upstream request.
//!
//! # Flow control
//! QUIC's windows are the same for every stream; above them, each direction of a conversation has one
//! of its own, so that slow readers cannot pin what all others need. A sender stops after
//! [`RequestHead::window`] bytes of data (what body frames contain, or raw bytes) until its reader has
//! told a higher limit in a [`Window`] on the control stream. No window is smaller than [`LEAST_WINDOW`],
//! and readers tell no limit before they have read a quarter of that. Whoever sends more breaks the protocol.
//!
//! # Losses
//! Behind the end of a message either end may send [`AgentMessage::Nothing`] or
//! [`EdgeMessage::Nothing`]: once that is acknowledged, QUIC knows whether the end arrived.
//!
//! # Packets in a WebSocket
//! Where UDP does not pass, the packets of the same QUIC connection travel in the binary messages of
//! a WebSocket (RFC 6455) that the agent opens. A message is one [`Datagrams`]: a run of packets,
//! equally long except for the last.
//! ```text
//!  0       2                                                           2 + n
//!  ├───────┼──────────────┬──────────────┬─────────────┬───────────────┤
//!  │ size  │ size bytes   │ size bytes   │      …      │ 1..=size bytes │
//!  └───────┴──────────────┴──────────────┴─────────────┴───────────────┘
//! ```
//! `size` is a big-endian `u16`, at least 1 and at most `n`. There are at most [`DATAGRAMS_COUNT`]
//! packets. Either end closes a WebSocket that brings anything else: 1003 for text, 1009 for a
//! message that is too long, 1008 for a malformed one or if nothing it brings is QUIC.
//!
//! # Checks
//! Each end treats the other as hostile. A message or head that is well-formed and still wrong ([`Check`]) is
//! [`WireError::Invalid`]: on the control stream it closes the connection with [`Close::Protocol`], on a
//! conversation's stream it resets that with [`Reset::Protocol`], and whoever does it too often loses the
//! connection. Either is logged with what was wrong. Heads are made of what strangers say, so each end also checks
//! its own before it sends them: no visitor and no upstream can make it break the protocol. Text is made safe to show as it is decoded ([`Text`]).
//!
#![doc = include_str!("fields.md")]
//!
//! # Close codes
//! See [`Close`] for connections and [`Reset`] for streams.
//!
//! # Limits
//! | what | bytes |
//! | --- | --- |
//! | first control message | [`HELLO_LIMIT`] |
//! | control message | [`CONTROL_LIMIT`] |
//! | head of a conversation | [`HEAD_LIMIT`] |
//! | head of an answer | [`RESPONSE_HEAD_LIMIT`] |
//! | trailers | [`TRAILERS_LIMIT`] |
//! | packets in a WebSocket message | [`DATAGRAMS_LIMIT`] |
//! | a text in a message | [`TEXT_LIMIT`] |
//! | a request's method | [`METHOD_LIMIT`] |
//! | a request's target | [`TARGET_LIMIT`] |
//! | a body | [`BODY_LIMIT`] |
//! | a reason phrase | [`REASON_LIMIT`] |
//! | what a window begins with | [`FIRST_WINDOW_LIMIT`] |

mod check;
mod close;
mod codec;
mod control;
mod datagrams;
mod escape;
mod fields;
mod frame;
#[cfg(test)]
mod golden;
mod head;
#[cfg(test)]
mod properties;
mod text;

pub use self::check::{
    BODY_LIMIT, Check, METHOD_LIMIT, decimal, is_bodiless, is_protocol, is_reason,
};
pub use self::close::{Close, Reset, close_text};
pub use self::codec::{Splitter, WireError, decode, encode, put_varint};
pub use self::control::{
    AgentId, AgentMessage, ClaimMode, EdgeMessage, Hello, Limits, LostSession, Refusal, RunId,
    Secret, TunnelGrant, TunnelRequest, Welcome, Window,
};
pub use self::datagrams::{
    DATAGRAMS_COUNT, DATAGRAMS_HEADER, DATAGRAMS_LIMIT, Datagrams, DatagramsError,
};
pub use self::escape::escape;
pub use self::fields::Fields;
pub use self::frame::{BodyDecoder, Frame, data_header, trailers};
pub use self::head::{
    BodyLength, Failure, Head, HttpVersion, RequestHead, ResponseHead, Scheme, StreamHead,
};
pub use self::text::{TEXT_LIMIT, Text};

/// What both ends speak; a different wire gets a different name.
pub const ALPN: &[u8] = b"qtunnel/1";

/// Offered beside [`ALPN`] so that ends of different versions can tell each other.
pub const ALPN_ANY: &[u8] = b"qtunnel";

/// An unauthenticated agent may make the edge hold this much, and no more.
pub const HELLO_LIMIT: usize = 4 << 10;

/// A hundred tunnels in one message fit well; nothing legitimate comes near.
pub const CONTROL_LIMIT: usize = 64 << 10;

/// Twice what the edge accepts from a visitor (16 KiB), for what the edge adds.
pub const HEAD_LIMIT: usize = 32 << 10;

/// What browsers read of an answer (256 KiB), and what is written beside its fields. A receiver has no memory for more
/// of it than has come.
pub const RESPONSE_HEAD_LIMIT: usize = (256 << 10) + 1024;

/// The smallest window of a body, which every direction of every conversation may have whatever else
/// there is.
pub const LEAST_WINDOW: u64 = 16 << 10;

/// 32 fields of decent size.
pub const TRAILERS_LIMIT: usize = 8 << 10;

/// The largest window that a body may begin with. A larger one would let an end that does not read be sent that much.
pub const FIRST_WINDOW_LIMIT: u64 = 512 << 10;

/// A reader tells a limit no more often than once in so many bytes: a quarter of the smallest window.
pub const WINDOW_STEP: u64 = LEAST_WINDOW / 4;

/// What nginx and Apache take, and the edge from visitors.
pub const TARGET_LIMIT: usize = 8 << 10;

/// A hundred of the visitor's, and what the edge adds.
pub const REQUEST_FIELDS_LIMIT: usize = 128;

/// Nobody reads more, and HTTP/2 has none.
pub const REASON_LIMIT: usize = 256;

/// A few protocols with their versions.
pub const UPGRADE_LIMIT: usize = 128;

/// Informational answers to one request. A server that says every ten seconds that it is still at work has
/// three quarters of an hour.
pub const INFORMATIONAL_LIMIT: usize = 256;

/// A tunnel has one for each of the edge's listeners for visitors.
pub const URLS_LIMIT: usize = 16;

/// How many sessions a hello reports: those whose requests may still wait.
pub const LOST_LIMIT: usize = 4;

/// Streams of one such session, so that a hello with all of them stays well below its limit.
pub const UNREAD_LIMIT: usize = 128;

/// The statuses of informational answers, and of the one that switches protocols.
const INFORMATIONAL: std::ops::Range<u16> = 100..200;
