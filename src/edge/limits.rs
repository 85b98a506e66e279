//! What visitors and agents may use up.

use std::time::Duration;

/// What visitors and agents may use up.
#[derive(Debug, Clone, Copy)]
pub struct EdgeLimits {
    /// Connections of one visitor (an IPv4 address or an IPv6 /64) at the same time.
    pub connections_per_visitor: usize,
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
    /// How long a visitor may take for a head, once it has begun.
    pub head: Duration,
    /// How long a connection may wait for its next request.
    pub idle: Duration,
    /// How long an upstream may leave `Expect: 100-continue` without an answer before the body is
    /// sent all the same. RFC 9110 §10.1.1 leaves it to clients; curl waits one second.
    pub expectation: Duration,
}

impl Default for EdgeLimits {
    fn default() -> Self {
        Self {
            connections_per_visitor: 64,
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
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            expectation: Duration::from_secs(1),
        }
    }
}
