//! The wire protocol `qtunnel/1`. These module docs are its specification.
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
//! An agent has one session with an edge. It has two for a while after [`EdgeMessage::Moving`]: it
//! opens a second connection, with a higher epoch, which reaches another process of the same edge,
//! and goes on serving streams on the first until the edge closes that.
//!
//! # Ownership of names
//! A name belongs to the agent (token and [`Hello::agent`]) that got it first, for as long as it is
//! connected and a grace period beyond; one that sent [`AgentMessage::Draining`] has released it.
//! Sessions of one agent succeed each other: those of one [`Hello::run`] by their epoch, and a new
//! run succeeds an earlier one. The older session is closed with [`Close::Superseded`]. If its run
//! is alive nevertheless, two agents have the same identity: it comes back once with
//! [`ClaimMode::Superseded`] and gets the names if the other is silent, or is refused for good.
//! Another agent with the same token gets a name that is held only with [`ClaimMode::TakeOver`];
//! the session that had it is closed with [`Close::TakenOver`]. A name that was taken over from a
//! live session, or that two agents contest, passes on only from one that is silent for a while.
//!
//! # Messages and heads
//! Each is a length (a QUIC variable-length integer, RFC 9000 §16) and that many bytes of
//! [postcard](https://postcard.jamesmunns.com/wire-format). The length is checked against the limit
//! below before anything is allocated.
//!
//! # Later versions
//! Ends of different ages understand each other by four rules:
//! - Variants are appended to enums, and fields to the end of messages, heads and what has a length of
//!   its own in them ([`Extensible`], [`Policy`], [`Limits`]). Nothing is removed or reordered.
//! - [`Hello::features`] and [`Welcome::features`] say what an end can do. What needs a feature that
//!   the other end has not offered is never sent to it. Bits that are not known are ignored.
//! - A receiver skips fields after those it knows, and control messages of a kind it does not know. A
//!   head of such a kind resets its stream with [`Reset::Unsupported`] and nothing else.
//! - A request for an address of an unknown kind is answered with [`Refusal::Unsupported`]. A refusal
//!   or failure that is not known is treated by what stands beside it: [`Refused`], or 502.
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
//! QUIC's windows are the same for every stream; above them, each direction of a conversation has
//! one of its own, so that slow readers cannot use up what all others need. A sender stops after
//! [`RequestHead::window`] bytes of data (contents of body frames, or raw bytes) until its reader
//! has sent a higher limit in a [`Window`] on the control stream. No window is smaller than
//! [`MIN_WINDOW`], and readers send no update before they have read a quarter of that. Sending more
//! violates the protocol.
//!
//! # Losses
//! After the end of a message either end may send [`AgentMessage::Ping`] or [`EdgeMessage::Ping`]:
//! once that is acknowledged, QUIC knows whether the end arrived (compare the tail loss probe of
//! RFC 8985).
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
//! Each end treats the other as hostile. A message or head that is well-formed and still invalid
//! ([`Check`]) is [`WireError::Invalid`]: on the control stream it closes the connection with
//! [`Close::Protocol`], on a conversation's stream it resets that with [`Reset::Protocol`], and an
//! end that does it too often loses the connection. Either is logged with the violation. Visitors
//! and upstreams determine what heads contain, so each end also checks its own heads before it
//! sends them: neither can make it violate the protocol. Text is made safe to show as it is
//! decoded ([`Text`]).
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
mod extensible;
mod features;
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
    Address, AgentId, AgentMessage, ClaimMode, EdgeMessage, Hello, Limits, LostSession, Policy,
    Refusal, Refused, RunId, Secret, TunnelGrant, TunnelRequest, Welcome, Window,
};
pub use self::datagrams::{
    DATAGRAMS_COUNT, DATAGRAMS_HEADER, DATAGRAMS_LIMIT, Datagrams, DatagramsError,
};
pub use self::escape::escape;
pub use self::extensible::{Extensible, Variants, decode_known};
pub use self::features::Features;
pub use self::fields::Fields;
pub use self::frame::{BodyDecoder, Frame, data_header, trailers};
pub use self::head::{
    BodyLength, Failure, Head, HttpVersion, RequestHead, ResponseHead, Scheme, StreamHead,
};
pub use self::text::{TEXT_LIMIT, Text};

/// ALPN protocol name, which is the protocol's version; a different wire gets a different name.
pub const ALPN: &[u8] = b"qtunnel/1";

/// ALPN protocol name offered beside [`ALPN`], so that ends of different versions can tell each
/// other.
pub const ALPN_ANY: &[u8] = b"qtunnel";

/// Longest first message, in bytes: what an unauthenticated agent may make the edge hold.
pub const HELLO_LIMIT: usize = 32 << 10;

/// Longest control message, in bytes: a hundred tunnels in one fit well.
pub const CONTROL_LIMIT: usize = 64 << 10;

/// Longest head of a conversation, in bytes: twice what the edge accepts from a visitor (16 KiB),
/// for what the edge adds.
pub const HEAD_LIMIT: usize = 32 << 10;

/// Longest head of a response, in bytes: what browsers accept (256 KiB), and what is encoded beside
/// its fields. A receiver allocates memory only for what has arrived.
pub const RESPONSE_HEAD_LIMIT: usize = (256 << 10) + 1024;

/// Smallest window of a body, in bytes, to which every direction of every conversation is entitled
/// however scarce memory is.
pub const MIN_WINDOW: u64 = 16 << 10;

/// Longest encoding of trailers, in bytes: 32 fields of decent size.
pub const TRAILERS_LIMIT: usize = 8 << 10;

/// Largest initial window of a body, in bytes. A larger one would let an end that does not read be
/// sent that much.
pub const FIRST_WINDOW_LIMIT: u64 = 512 << 10;

/// Bytes between two updates of a window at least: a quarter of the smallest window.
pub const WINDOW_STEP: u64 = MIN_WINDOW / 4;

/// Longest request target, in bytes: what nginx and Apache accept, and the edge from visitors.
pub const TARGET_LIMIT: usize = 8 << 10;

/// Most fields of a request: a hundred of the visitor's, and what the edge adds.
pub const REQUEST_FIELDS_LIMIT: usize = 128;

/// Longest reason phrase, in bytes. Nobody reads more, and HTTP/2 has none.
pub const REASON_LIMIT: usize = 256;

/// Longest list of protocols to switch to, in bytes: a few with their versions.
pub const UPGRADE_LIMIT: usize = 128;

/// Most informational responses to one request. For a server that sends one every ten seconds while
/// it works, that is three quarters of an hour.
pub const INFORMATIONAL_LIMIT: usize = 256;

/// Most URLs of a tunnel, which has one for each of the edge's listeners for visitors.
pub const URLS_LIMIT: usize = 16;

/// Most lost sessions that a hello reports: those whose requests may still be waiting.
pub const LOST_LIMIT: usize = 4;

/// Most unread streams of one lost session, so that a hello with all of them stays well below its
/// limit.
pub const UNREAD_LIMIT: usize = 128;

/// Statuses of informational responses, and of the one that switches protocols.
const INFORMATIONAL: std::ops::Range<u16> = 100..200;
