//! Resource and time limits for visitors and agents.

use std::time::Duration;

/// Resource and time limits for visitors and agents.
#[derive(Debug, Clone, Copy)]
pub struct EdgeLimits {
    /// Concurrent connections of one visitor (an IPv4 address or an IPv6 /64).
    pub connections_per_visitor: usize,
    /// Concurrent conversations of one visitor, with all agents together.
    pub conversations_per_visitor: usize,
    /// Concurrent connections of all visitors together.
    pub connections: usize,
    /// Concurrent sessions of all agents.
    pub sessions: usize,
    /// Concurrent sessions of one agent, counting all processes that share its identity.
    pub sessions_per_agent: usize,
    /// Concurrent connections of agents whose token has not been accepted yet.
    pub unauthenticated: usize,
    /// Concurrent unauthenticated connections from one address (an IPv4 address or an IPv6 /64).
    pub unauthenticated_per_address: usize,
    /// Concurrent WebSockets of all agents.
    pub websockets: usize,
    /// Tunnels of one agent.
    pub tunnels_per_agent: u32,
    /// Requests that wait for their agents to reconnect, at the same time.
    pub held_requests: usize,
    /// Requests that wait for one tunnel's agent, at the same time.
    pub held_per_tunnel: usize,
    /// Memory of all waiting requests together, in bytes of heads and bodies.
    pub held_bytes: usize,
    /// Bytes of bodies that may wait for their readers in one session, beyond the 16 KiB that each
    /// conversation always has.
    pub session_buffer: u64,
    /// Bytes of bodies that may wait for their readers in all sessions together.
    pub buffer: u64,
    /// Timeout of a visitor's TLS handshake and of an agent's QUIC handshake.
    pub handshake: Duration,
    /// Timeout of an agent's hello, once the QUIC handshake is complete.
    pub hello: Duration,
    /// Timeout of an HTTP/2 visitor's connection preface: its 24 bytes and the SETTINGS.
    pub preface: Duration,
    /// Timeout of a request head, from its first byte; over HTTP/2 also of any other frame but
    /// DATA.
    pub head: Duration,
    /// Idle timeout of a visitor's connection without a request; over HTTP/2, without an open
    /// stream. PINGs and SETTINGS do not count as activity.
    pub idle: Duration,
    /// Timeout of the first bytes of a request's body.
    pub body_grace: Duration,
    /// Lowest average rate of a request's body while the edge waits for it, in bytes per second:
    /// each byte buys that much time to wait. Time spent waiting for the tunnel or the upstream
    /// does not count.
    pub body_rate: u64,
    /// The most time that bytes can buy, and so the longest pause in the middle of an upload.
    pub body_pause: Duration,
    /// Write timeout: how long a visitor may neither acknowledge a byte over TCP nor, over HTTP/2,
    /// open the window of a stream, while something waits to be written to it.
    pub write_stall: Duration,
    /// Timeout of a half-closed connection on which nothing is written. A visitor that has gone
    /// looks like one that only shut down its sending side, until something is written.
    pub half_closed: Duration,
    /// Time for which input is read and discarded before an HTTP/1.1 connection is closed, so that
    /// the visitor can read the response first (lingering close).
    pub linger: Duration,
    /// Time for which input on an HTTP/2 stream is read and discarded after the whole response,
    /// before the stream is reset.
    pub discard: Duration,
    /// Bytes discarded in this way on one HTTP/2 stream. Any more stay in the stream's window.
    pub discard_bytes: u64,
    /// Time for a visitor to read why its connection is refused, or to close an HTTP/2 connection
    /// after GOAWAY.
    pub close_timeout: Duration,
    /// Time that an upstream may leave `Expect: 100-continue` without an answer before the body is
    /// sent anyway. RFC 9110 §10.1.1 leaves it to clients; curl waits one second.
    pub continue_timeout: Duration,
}

impl Default for EdgeLimits {
    fn default() -> Self {
        Self {
            connections_per_visitor: 64,
            // As many as one agent has.
            conversations_per_visitor: 1_024,
            connections: 10_000,
            sessions: 10_000,
            sessions_per_agent: 64,
            unauthenticated: 800,
            unauthenticated_per_address: 400,
            websockets: 10_000,
            tunnels_per_agent: 100,
            held_requests: 4_096,
            held_per_tunnel: 512,
            held_bytes: 32 << 20,
            session_buffer: 24 << 20,
            buffer: 512 << 20,
            handshake: Duration::from_secs(10),
            hello: Duration::from_secs(5),
            preface: Duration::from_secs(10),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            body_grace: Duration::from_secs(10),
            body_rate: 500,
            // Long enough for a phone that changes its network in the middle of an upload.
            body_pause: Duration::from_secs(60),
            // Behind a proxy on the same machine a segment has 64 KiB: a reader at 1 KB/s opens the
            // window once in 64 s.
            write_stall: Duration::from_secs(90),
            // Scripts half-close (`nc -N`), browsers never do; and an upstream should not work for
            // long for a client that is gone.
            half_closed: Duration::from_secs(10),
            // Several round trips on a bad network, and too short to be useful for holding
            // connections open.
            linger: Duration::from_secs(5),
            // The reset loses nothing as long as it follows the response.
            discard: Duration::from_secs(1),
            discard_bytes: 16 << 20,
            close_timeout: Duration::from_secs(2),
            continue_timeout: Duration::from_secs(1),
        }
    }
}
