//! What visitors and agents may use up.

use std::time::Duration;

/// What visitors and agents may use up.
#[derive(Debug, Clone, Copy)]
pub struct EdgeLimits {
    /// Connections of one visitor (an IPv4 address or an IPv6 /64) at the same time.
    pub connections_per_visitor: usize,
    /// Conversations of one visitor at the same time, with all agents together.
    pub conversations_per_visitor: usize,
    /// Connections of all visitors together.
    pub connections: usize,
    /// Sessions of agents at the same time.
    pub sessions: usize,
    /// Those of the same agent: of all processes that have its identity.
    pub sessions_per_agent: usize,
    /// Connections of agents whose token was not accepted yet, at the same time.
    pub unauthenticated: usize,
    /// Those from the same address (an IPv4 address or an IPv6 /64).
    pub unauthenticated_per_address: usize,
    /// WebSockets of agents at the same time.
    pub websockets: usize,
    /// Tunnels of one agent.
    pub tunnels_per_agent: u32,
    /// Requests that wait for their agents to come back, at the same time.
    pub held_requests: usize,
    /// Those that wait for the same tunnel's agent.
    pub held_per_tunnel: usize,
    /// What all of them may take, in bytes of heads and bodies.
    pub held_bytes: usize,
    /// Bytes of bodies that may wait for their readers in one session, beyond the 16 KiB that each
    /// conversation has in any case.
    pub session_buffer: u64,
    /// The same for all sessions together.
    pub buffer: u64,
    /// How long a visitor's TLS handshake or an agent's QUIC handshake may take.
    pub handshake: Duration,
    /// How long an agent may take to say who it is.
    pub hello: Duration,
    /// How long an HTTP/2 visitor may take for the connection preface: its 24 bytes and the SETTINGS.
    pub preface: Duration,
    /// How long a visitor may take for a head, once it has begun; over HTTP/2 also for any other frame
    /// that is not DATA.
    pub head: Duration,
    /// How long a connection may wait for its next request, over HTTP/2 with no stream open. PINGs and
    /// SETTINGS do not count.
    pub idle: Duration,
    /// How long a visitor may keep us waiting for the first bytes of a request's body.
    pub body_grace: Duration,
    /// What a visitor must send of a body on average while we wait for it, in bytes per second: each
    /// byte buys that much time to wait. What waits for the tunnel or the upstream costs nothing.
    pub body_rate: u64,
    /// The most time that bytes can buy, and so the longest pause in the middle of an upload.
    pub body_pause: Duration,
    /// How long a visitor may take nothing of what is to be written to it: neither acknowledge a byte
    /// over TCP nor open the window of a stream over HTTP/2.
    pub write_stall: Duration,
    /// How long nothing may be written to a visitor that has shut down its sending side. One that has
    /// gone looks the same until something is written.
    pub half_closed: Duration,
    /// How long what a visitor still sends is read and discarded before its HTTP/1.1 connection is
    /// closed, so that it can read the answer first.
    pub linger: Duration,
    /// How long what a visitor still sends on an HTTP/2 stream is read and discarded after the whole
    /// answer, before the stream is reset.
    pub discard: Duration,
    /// How many bytes of it are discarded on one stream. What is more stays in the stream's window.
    pub discard_bytes: u64,
    /// How long a visitor may take to read why its connection is refused, or to close an HTTP/2
    /// connection whose time is over.
    pub farewell: Duration,
    /// How long an upstream may leave `Expect: 100-continue` without an answer before the body is
    /// sent all the same. RFC 9110 §10.1.1 leaves it to clients; curl waits one second.
    pub expectation: Duration,
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
            // A telephone that changes its network in the middle of an upload.
            body_pause: Duration::from_secs(60),
            // Behind a proxy on the same machine a segment has 64 KiB: the window of one that reads
            // 1 KB/s opens once in 64 s.
            write_stall: Duration::from_secs(90),
            // Scripts half-close (`nc -N`), browsers never do; and an upstream should not work for long
            // for nobody.
            half_closed: Duration::from_secs(10),
            // Several round trips on a bad network, and too short to be worth holding connections with.
            linger: Duration::from_secs(5),
            // Nothing is lost by the reset, as long as it comes behind the answer.
            discard: Duration::from_secs(1),
            discard_bytes: 16 << 20,
            farewell: Duration::from_secs(2),
            expectation: Duration::from_secs(1),
        }
    }
}
