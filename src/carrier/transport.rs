//! QUIC's transport settings at both ends, each with its reason.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use quinn::{AckFrequencyConfig, Connection, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::congestion;
use super::congestion::{PathMemory, SharedCongestionOwner};
use crate::net::path_kind::PathKind;
use crate::proto::MIN_WINDOW;

/// Return the edge's settings. The edge opens streams; an agent opens only the control stream.
/// `congestion_owner` says who controls congestion on the path to that agent.
pub fn edge_transport(
    path_kind: PathKind,
    congestion_owner: &SharedCongestionOwner,
    memory: &PathMemory,
) -> Arc<TransportConfig> {
    let mut config = common(path_kind, congestion_owner, memory);
    // quinn spends memory up front on every stream that the peer may open: 37 KiB per idle
    // connection at its default of 100. The control stream is one.
    config.max_concurrent_bidi_streams(VarInt::from_u32(CONTROL_STREAMS));
    // Limits what an agent can make us buffer before it is authenticated; raised then.
    config.receive_window(VarInt::from_u32(UNAUTHENTICATED_WINDOW));
    config.keep_alive_interval(Some(EDGE_KEEP_ALIVE));
    Arc::new(config)
}

/// Return the agent's settings. The edge opens a stream to the agent for every conversation.
pub fn agent_transport(
    path_kind: PathKind,
    congestion_owner: &SharedCongestionOwner,
    memory: &PathMemory,
) -> Arc<TransportConfig> {
    let mut config = common(path_kind, congestion_owner, memory);
    // quinn sends MAX_STREAMS only once an eighth of the streams have ended: without the extra eighth, the edge
    // would wait for it.
    config.max_concurrent_bidi_streams(VarInt::from_u32(AGENT_STREAMS + AGENT_STREAMS / 8));
    config.receive_window(session_window(SESSION_BUFFER));
    config.keep_alive_interval(Some(AGENT_KEEP_ALIVE));
    Arc::new(config)
}

/// Return the connection's receive window if `buffer` bytes of bodies may wait: the sum of the windows of all
/// conversations. It bounds a peer that exceeds those.
pub fn session_window(buffer: u64) -> VarInt {
    let window = buffer.saturating_add(u64::from(AGENT_STREAMS) * MIN_WINDOW);
    VarInt::from_u64(window).unwrap_or(VarInt::MAX)
}

fn common(
    path_kind: PathKind,
    congestion_owner: &SharedCongestionOwner,
    memory: &PathMemory,
) -> TransportConfig {
    let mut config = TransportConfig::default();
    let (largest, congestion) = match path_kind {
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
        // DATAGRAM frames (RFC 9221) are not used: no peer may make us buffer any.
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()));
    config
}

fn prompt_acknowledgements() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config
        .max_ack_delay(Some(MAX_ACK_DELAY))
        // Immediately when a packet is missing, as without the extension.
        .reordering_threshold(VarInt::from_u32(1));
    config
}

/// Return the negotiated protocol (ALPN, RFC 7301), once the handshake is complete.
pub fn alpn(connection: &Connection) -> Option<Vec<u8>> {
    connection
        .handshake_data()?
        .downcast::<HandshakeData>()
        .ok()?
        .protocol
}

/// The largest payload of a UDP packet over IPv6 over Ethernet, in bytes: 1500 - 40 - 8.
pub const ETHERNET_PACKET: u16 = 1_452;

/// The largest packet that either end accepts, in bytes. quinn sends ten with one system call, which is
/// as much as the kernel accepts in one (64 KiB).
pub(crate) const LARGEST_PACKET: u16 = 6_500;

/// Streams that an agent may open: the control stream, and a spare one for a future version.
const CONTROL_STREAMS: u32 = 2;

/// Bytes that an agent can make the edge buffer before it is authenticated.
const UNAUTHENTICATED_WINDOW: u32 = 16 << 10;

/// Concurrent conversations of one session. At 0.9 KiB per open idle stream they cost about a
/// megabyte.
pub const AGENT_STREAMS: u32 = 1024;

/// The receive window of a stream, in bytes: 100 Mbit/s at a round trip of 300 ms. Most conversations
/// get less: QUIC gives all streams the same window, so `stream::flow` limits each of them.
const STREAM_WINDOW: u32 = 4 << 20;

/// Bytes of bodies that may wait for an agent's upstreams, beyond the minimum window of each
/// conversation. Slow readers take from this budget what the others then lack.
pub const SESSION_BUFFER: u64 = 24 << 20;

/// Unacknowledged bytes that all conversations of a session may have sent: 500 Mbit/s at 250 ms.
const SEND_WINDOW: u32 = 16 << 20;

/// The longest time that the peer may delay an acknowledgement (draft-ietf-quic-ack-frequency). When
/// the last packet of a response is lost, it is retransmitted a round trip and this delay later
/// (RFC 9002 §6.2.1); QUIC's default of 25 ms is most of what that costs a short response on a short
/// path.
const MAX_ACK_DELAY: Duration = Duration::from_millis(5);

/// An agent's time limit for a QUIC handshake: lost packets are retransmitted after 1, 2 and 4 s.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The agent's keep-alive interval. It determines how soon an idle agent finds out that its edge was
/// killed and restarted: only a packet from the agent makes the new process send the stateless reset.
/// Together with the new handshake that takes less than the promised second. The price is a packet of
/// some 60 bytes each way per interval, less than 1 kbit/s in each direction; an edge with 10,000 idle
/// agents handles 14,000 more packets a second, and a laptop's radio does not sleep, which it hardly
/// would with any interval below 10 s. (Keeping the UDP flow alive in NATs takes only one packet every
/// 15 to 30 s, RFC 9308 §3.2.)
const AGENT_KEEP_ALIVE: Duration = Duration::from_millis(700);

/// The edge's keep-alive interval. Keep-alives are sent only after silence, so this one is sent only
/// to an agent whose own keep-alives have stopped.
const EDGE_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The idle timeout of a connection, in milliseconds: three of the edge's keep-alives unanswered.
const IDLE_TIMEOUT_MS: u32 = 15_000;
