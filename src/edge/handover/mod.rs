//! A newer process of the edge takes over from an older one, on the same machine and the same
//! addresses, and no visitor notices.
//!
//! The running edge listens on a Unix socket in its state directory ([`SOCKET`], for its own user
//! alone). A successor (`qtunnel serve --take-over`) asks there. The order:
//!
//! 1. The successor has read its flags and asks: *question*.
//! 2. The running edge sends its TCP listeners and its UDP socket (`SCM_RIGHTS`), the key that marks
//!    the ids of its connections, and the ends of two lines, for packets and for WebSockets: *offer*.
//!    It serves on.
//! 3. The successor does all that can fail (certificates, further addresses) and says so: *ready*.
//!    Until here either may fail or die, and the running edge has given up nothing.
//! 4. The running edge stops reading the UDP socket and says so: *yours*. From here on the successor
//!    reads it, accepts visitors and agents, and opens the socket for a successor of its own.
//!    What comes between these moments waits in the kernel's queues, which both processes share: no
//!    connection is refused or lost.
//! 5. The old process accepts nobody any more and tells its agents that they move
//!    ([`EdgeMessage::Moving`](crate::proto::EdgeMessage::Moving)). Each opens a second session, which
//!    reaches the successor, and serves both. Visitors of the successor who are faster than their agent
//!    are held until it has come.
//! 6. The old process drains, for as long as its grace period. Requests that arrive on its visitors'
//!    connections are served, over the old sessions; HTTP/1.1 connections end with the next answer
//!    (`Connection: close`) or after a few idle seconds, HTTP/2 connections with GOAWAY; downloads and
//!    WebSockets go on. Then it closes its agents' old sessions and ends.
//!
//! # The UDP socket
//! Packets of the old sessions still arrive on the one UDP socket, which only the successor reads. It
//! recognises them by their connection ids and passes them on through the line; the old process sends
//! its own packets on the shared socket by itself. (`carrier::shared_udp` has the picture.) The other
//! way would have been to ask agents to carry on over WebSockets. It would cut off those whose network
//! has no way for one, and would slow every download down to what TCP makes of the path; and it is a
//! race between moving the agents and giving up the socket. Here the change is one moment, and agents
//! need not do anything for what is under way.
//!
//! Both processes have the same key for stateless resets, but different ones for connection ids: the
//! successor takes packets of the old process for noise once that is gone, and never resets what it
//! does not know. [`quic.keys`](super::listen::reset_keys) then has the successor's.
//!
//! # WebSockets
//! An agent on a WebSocket keeps it, since its TCP connection stays with the old process. If that
//! breaks, or UDP does, the old session needs a new one, which leads to the successor: that has the
//! listeners. It recognises a WebSocket of an old session by its first packet, makes a pair of Unix
//! sockets and sends one of them to the old process, which carries the WebSocket as if it had accepted
//! it; the successor only moves its bytes. (`carrier::sorting` has the picture.) Nothing of this needs
//! UDP.
//!
//! # More than two
//! A successor may be succeeded while its predecessor still drains. It then hands on the ends of that
//! one's lines, too, and the newest process passes packets and WebSockets to each. A WebSocket that
//! goes through a process which ends before the one that carries it is a broken one: the agent dials
//! again, and comes through the newest. A process with a UDP socket whose successors have all died ends
//! at once, and with it what it was draining, so that the UDP address is free for an edge that is
//! started anew.

pub(crate) mod listener;
mod message;
pub(crate) mod takeover;

pub use self::listener::{HandoverListener, HandoverState};
pub use self::message::HandoverError;
#[cfg(all(unix, any(test, fuzzing)))]
pub(crate) use self::message::Message;
pub use self::takeover::Takeover;

/// Whether this system has what a handover needs: Unix sockets that keep the bounds of messages
/// (`SOCK_SEQPACKET`), and on which the end of the other process is seen.
pub const SUPPORTED: bool = cfg!(target_os = "linux");

/// The Unix socket's name in the state directory.
const SOCKET: &str = "handover.sock";
