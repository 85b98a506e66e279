//! Hot restart: a newer process of the edge takes over from an older one, on the same machine and
//! the same addresses, with zero downtime for visitors.
//!
//! The running edge listens on a Unix socket in its state directory ([`SOCKET`], accessible to its
//! own user alone). A successor (`qtunnel serve --take-over`) connects there. The order of events:
//!
//! 1. The successor has read its flags and asks to take over: *request*.
//! 2. The running edge sends its TCP listeners and its UDP socket (`SCM_RIGHTS`), the key that marks
//!    the ids of its connections, and the ends of two Unix sockets, for packets and for WebSockets:
//!    *offer*. It keeps serving.
//! 3. The successor does everything that can fail (certificates, further addresses): *ready*.
//!    Until here either may fail or die, and the running edge has given up nothing.
//! 4. The running edge stops reading the UDP socket: *granted*. From here on the successor
//!    reads it, accepts visitors and agents, and opens the socket for a successor of its own.
//!    What arrives between these moments waits in the kernel's queues, which both processes share: no
//!    connection is refused or lost.
//! 5. The old process accepts nobody any more and tells its agents to move
//!    ([`EdgeMessage::Moving`](crate::proto::EdgeMessage::Moving)). Each opens a second session, which
//!    reaches the successor, and serves both. Visitors of the successor who are faster than their agent
//!    are held until it has connected.
//! 6. The old process drains, for as long as its grace period. Requests that arrive on its visitors'
//!    connections are served, over the old sessions; HTTP/1.1 connections end with the next response
//!    (`Connection: close`) or after a few idle seconds, HTTP/2 connections with GOAWAY; downloads and
//!    WebSockets go on. Then it closes its agents' old sessions and ends.
//!
//! # The UDP socket
//! Packets of the old sessions still arrive on the one UDP socket, which only the successor reads.
//! It recognises them by their connection ids and passes them on through the Unix socket; the old
//! process sends its own packets directly on the shared socket. (`carrier::handover::shared_udp`
//! has the picture.) The alternative would have been to ask agents to continue over WebSockets.
//! That would cut off those whose network allows none, slow every download down to what TCP makes
//! of the path, and be a race between moving the agents and giving up the socket. Here the change
//! is one moment, and agents need do nothing for what is under way.
//!
//! Both processes have the same key for stateless resets, but different ones for connection ids:
//! the successor ignores packets of the old process once that is gone, and never resets what it
//! does not know. [`quic.keys`](super::listen::reset_keys) then has the successor's.
//!
//! # WebSockets
//! An agent on a WebSocket keeps it, since its TCP connection stays with the old process. If that
//! connection breaks, or UDP does, the old session needs a new one, which leads to the successor,
//! since that has the listeners. The successor recognises a WebSocket of an old session by its
//! first packet, makes a pair of Unix sockets and sends one of them to the old process, which
//! carries the WebSocket as if it had accepted it; the successor only relays its bytes.
//! (`carrier::handover::websocket_relay` has the picture.) Nothing of this needs UDP.
//!
//! # More than two
//! A successor may be replaced in turn while its predecessor still drains. It then hands on the
//! ends of that one's Unix sockets, too, and the newest process passes packets and WebSockets to
//! each. A WebSocket that is relayed by a process which ends before the one that carries it is
//! lost: the agent dials again, and comes through the newest. A process with a UDP socket whose
//! successors have all died ends at once, and with it what it was draining, so that the UDP address
//! is free for an edge that is started afresh.

pub(crate) mod listener;
mod message;
pub(crate) mod takeover;

pub use self::listener::{HandoverListener, HandoverState};
pub use self::message::HandoverError;
#[cfg(all(unix, any(test, fuzzing)))]
pub(crate) use self::message::Message;
pub use self::takeover::Takeover;

/// Support for a handover on this system: Unix sockets that preserve message boundaries
/// (`SOCK_SEQPACKET`), and on which the end of the other process is noticed.
pub const SUPPORTED: bool = cfg!(target_os = "linux");

/// Name of the Unix socket in the state directory.
const SOCKET: &str = "handover.sock";
