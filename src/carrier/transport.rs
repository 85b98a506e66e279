//! QUIC's settings at both ends, each with its reason.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use quinn::{AckFrequencyConfig, Connection, MtuDiscoveryConfig, TransportConfig, VarInt};
use serde::{Deserialize, Serialize};

use super::congestion;
use super::congestion::{PathMemory, SharedCongestionOwner};
use crate::proto::LEAST_WINDOW;

/// How far it is to the other end, as far as packets' sizes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathKind {
    /// Any network. It may change under the connection, and the next one need not carry what this
    /// one does: nothing larger than what Ethernet carries is tried.
    Network,
    /// This machine, whose loopback carries packets of 64 KiB.
    Loopback,
}

impl PathKind {
    /// Tell it from the address that packets go to, which must be the other end's own and not that of a
    /// proxy on the way.
    pub fn of(peer: SocketAddr) -> Self {
        match peer.ip().to_canonical().is_loopback() {
            true => Self::Loopback,
            false => Self::Network,
        }
    }
}

/// Settings of the edge, which opens streams and whose agents open one. Congestion is for whoever is said to
/// be in control of the path to that agent.
pub fn edge_transport(
    reach: PathKind,
    congestion_owner: &SharedCongestionOwner,
    memory: &PathMemory,
) -> Arc<TransportConfig> {
    let mut config = common(reach, congestion_owner, memory);
    // quinn spends memory up front on every stream that the peer may open: 37 KiB per idle
    // connection at its default of 100. The control stream is one.
    config.max_concurrent_bidi_streams(VarInt::from_u32(CONTROL_STREAMS));
    // What a peer may make us hold before it has shown its token; raised then.
    config.receive_window(VarInt::from_u32(UNAUTHENTICATED_WINDOW));
    config.keep_alive_interval(Some(EDGE_KEEP_ALIVE));
    Arc::new(config)
}

/// Settings of the agent, to which the edge opens a stream for every conversation.
pub fn agent_transport(
    reach: PathKind,
    congestion_owner: &SharedCongestionOwner,
    memory: &PathMemory,
) -> Arc<TransportConfig> {
    let mut config = common(reach, congestion_owner, memory);
    // quinn gives credit for more only once an eighth has ended: without these, the edge would wait for it.
    config.max_concurrent_bidi_streams(VarInt::from_u32(AGENT_STREAMS + AGENT_STREAMS / 8));
    config.receive_window(session_window(SESSION_BUFFER));
    config.keep_alive_interval(Some(AGENT_KEEP_ALIVE));
    Arc::new(config)
}

/// What QUIC lets the other end of a session send, if that many bytes of bodies may wait: what the windows
/// of all conversations may come to, and no more if they are not kept.
pub fn session_window(buffer: u64) -> VarInt {
    let window = buffer.saturating_add(u64::from(AGENT_STREAMS) * LEAST_WINDOW);
    VarInt::from_u64(window).unwrap_or(VarInt::MAX)
}

fn common(
    reach: PathKind,
    congestion_owner: &SharedCongestionOwner,
    memory: &PathMemory,
) -> TransportConfig {
    let mut config = TransportConfig::default();
    let (largest, congestion) = match reach {
        PathKind::Network => {
            let on_a_network = congestion::Config {
                memory: Some(memory.clone()),
                congestion_owner: congestion_owner.clone(),
                ..congestion::Config::default()
            };
            config.ack_frequency_config(Some(prompt_acknowledgements()));
            (ETHERNET_PACKET, on_a_network)
        }
        PathKind::Loopback => (LARGEST_PACKET, congestion::Config::loopback()),
    };
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(largest);
    config
        .congestion_controller_factory(Arc::new(congestion))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(u64::from(SEND_WINDOW))
        // The default of 333 ms makes the first retransmission of a handshake wait a second.
        .initial_rtt(Duration::from_millis(100))
        .mtu_discovery_config(Some(mtu))
        // Nothing travels in datagrams: no peer may make us keep any.
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()));
    config
}

fn prompt_acknowledgements() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config
        .max_ack_delay(Some(ACK_DELAY))
        // At once when a packet is missing, as without the extension.
        .reordering_threshold(VarInt::from_u32(1));
    config
}

/// The protocol that both ends have chosen (ALPN, RFC 7301), once the handshake is through.
pub fn alpn(connection: &Connection) -> Option<Vec<u8>> {
    connection
        .handshake_data()?
        .downcast::<HandshakeData>()
        .ok()?
        .protocol
}

/// The largest payload of a UDP packet over IPv6 over Ethernet: 1500 - 40 - 8.
pub const ETHERNET_PACKET: u16 = 1_452;

/// The largest packet that either end takes. quinn sends ten with one system call, which is as much as
/// the kernel takes with one (64 KiB).
pub(crate) const LARGEST_PACKET: u16 = 6_500;

/// The control stream and room for another that a future version might want.
const CONTROL_STREAMS: u32 = 2;

/// What an agent that has not shown its token can make the edge hold.
const UNAUTHENTICATED_WINDOW: u32 = 16 << 10;

/// Conversations of one session at the same time. What an open idle stream costs (0.9 KiB) makes
/// this about a megabyte.
pub const AGENT_STREAMS: u32 = 1024;

/// No conversation may have more than this on its way, 100 Mbit/s at 300 ms of round trip. Most may
/// have less: QUIC gives all streams the same, so `http::flow` counts for each.
const STREAM_WINDOW: u32 = 4 << 20;

/// Bytes of bodies that may wait for an agent's upstreams, beyond what each conversation has in any
/// case. What slow readers pin is not there for the others.
pub const SESSION_BUFFER: u64 = 24 << 20;

/// What all conversations of a session may have sent and not acknowledged: 500 Mbit/s at 250 ms.
const SEND_WINDOW: u32 = 16 << 20;

/// How long the other end may keep an acknowledgement back (draft-ietf-quic-ack-frequency). When the
/// last packet of an answer is lost, it is sent again a round trip and this much later (RFC 9002 §6.2.1);
/// QUIC's 25 ms are most of what that costs a short answer on a short path.
const ACK_DELAY: Duration = Duration::from_millis(5);

/// How soon an idle agent finds out that its edge was killed and restarted: only an agent's packet
/// makes the new process send the stateless reset. With the new handshake that is within the second
/// that is promised. The price is a packet of some 60 bytes each way per interval, less than 1 kbit/s
/// in each direction; an edge with 10,000 idle agents handles 14,000 packets a second more, and a
/// laptop's radio does not sleep, which with any interval below 10 s it hardly would. (The UDP flow
/// alone needs one every 15 to 30 s, RFC 9308 §3.2.)
const AGENT_KEEP_ALIVE: Duration = Duration::from_millis(700);

/// A keep-alive answers to silence, so this one is only sent to an agent whose own have stopped.
const EDGE_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Three of the edge's keep-alives unanswered.
const IDLE_TIMEOUT_MS: u32 = 15_000;
