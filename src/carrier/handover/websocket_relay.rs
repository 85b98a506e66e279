//! Relaying of WebSockets that this process accepts but whose session belongs to an older process.
//!
//! A session stays with the process of the edge that accepted it, while the newest process has the
//! listeners. A WebSocket that an agent dials for an old session is recognised by its first packet.
//! From then on, this process only relays its bytes to the process that has the session:
//!
//! ```text
//!                          successor                       predecessor
//!  agent ══ TCP, TLS ══ accept_or_relay ── Unix stream ── accept ── websocket ── quinn
//! ```
//!
//! A WebSocket belongs to one connection, so whole WebSockets can be relayed, and no packet after the
//! first is inspected. Backpressure works as on one long TCP connection.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::predecessor::ID_PREFIX;
use super::predecessors::Predecessors;
use crate::carrier::edge::socket::{EdgeSocket, TooManyWebSockets};
use crate::carrier::websocket;
use crate::carrier::websocket::frames;
use crate::carrier::websocket::{Ended, PeerInfo, QUIC_TIMEOUT, WebSocketLink};
use crate::proto::DATAGRAMS_HEADER;

impl EdgeSocket {
    /// Move packets as [`accept`](Self::accept) does, unless they are for a connection of a
    /// predecessor: then the future relays bytes between that process and the agent.
    ///
    /// # Errors
    /// [`TooManyWebSockets`] if no slot is free.
    pub fn accept_or_relay<S>(
        &self,
        predecessors: &Predecessors,
        mut io: S,
        peer: PeerInfo,
    ) -> Result<impl Future<Output = Ended> + Send + use<S>, TooManyWebSockets>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let attached = self.attach(peer)?;
        let predecessors = predecessors.clone();
        Ok(async move {
            let mut early = BytesMut::new();
            let alone = predecessors.alive().is_empty();
            if !alone {
                read_first_packet(&mut io, &mut early).await;
            }
            let packet = first_packet(&early).unwrap_or_default();
            match predecessors.pass_on_websocket(&packet, &peer) {
                Ok(None) => attached.carry(io, early).await,
                Ok(Some(process)) => relay(io, &early, process, attached.link()).await,
                // The agent dials again, which may succeed.
                Err(err) => Ended::Lost(err),
            }
        })
    }
}

/// Read until the connection id of the first packet is known. If that takes too long, or the connection
/// ends, the WebSocket is treated as this process's own, which then reports the problem.
async fn read_first_packet(io: &mut (impl AsyncRead + Unpin), early: &mut BytesMut) {
    let read = async {
        while first_packet(early).is_none() && io.read_buf(early).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = timeout(QUIC_TIMEOUT, read).await;
}

/// Return the start of the first packet, once enough of it has been read.
fn first_packet(early: &[u8]) -> Option<Vec<u8>> {
    let mut message = frames::payload_prefix(early, DATAGRAMS_HEADER + ID_PREFIX)?;
    Some(message.split_off(DATAGRAMS_HEADER.min(message.len())))
}

/// Relay bytes between an agent and the process that has its session until either ends.
async fn relay(
    io: impl AsyncRead + AsyncWrite,
    early: &[u8],
    mut process: UnixStream,
    link: &WebSocketLink,
) -> Ended {
    // The other process checks whether the WebSocket gets a session.
    link.session_started();
    let (mut from_agent, mut to_agent) = tokio::io::split(io);
    let (mut from_process, mut to_process) = process.split();
    let there = async {
        to_process.write_all(early).await?;
        copy(&mut from_agent, &mut to_process, || link.note_received()).await
    };
    let back = copy(&mut from_process, &mut to_agent, || link.quic_answered());
    let ended = tokio::select! {
        ended = there => ended,
        ended = back => ended,
        // The other process enforces timeouts, too, but cannot end the relay while the agent reads nothing.
        ended = websocket::wait_for_timeout(link) => return ended,
    };
    ended.map_or_else(Ended::Lost, |()| Ended::Closed)
}

/// Copy until the end, and call `note` after each read.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    note: impl Fn(),
) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    loop {
        let length = from.read(&mut bytes).await?;
        if length == 0 {
            return Ok(());
        }
        note();
        to.write_all(&bytes[..length]).await?;
        to.flush().await?;
    }
}

/// The size of the copy buffer, in bytes: a TLS record.
const CHUNK: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use quinn::EndpointConfig;
    use quinn_proto::{ConnectionIdGenerator, HashedConnectionIdGenerator};
    use tokio::io::DuplexStream;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::carrier::congestion::CongestionOwner;
    use crate::carrier::edge::socket::edge_endpoint_over;
    use crate::carrier::handover::passed_websocket::PassedWebSockets;
    use crate::carrier::handover::predecessor::Predecessor;
    use crate::carrier::handover::successor::Successor;
    use crate::carrier::testbed::certificate;
    use crate::carrier::websocket::frames::{Encoder, Role};
    use crate::net::path_kind::PathKind;
    use crate::proto::Datagrams;

    /// The newer process, and an agent's WebSocket that it has accepted.
    struct Second {
        agent: DuplexStream,
        accepted: JoinHandle<Ended>,
        predecessors: Predecessors,
        _endpoint: quinn::Endpoint,
    }

    /// The key of the older process's connection ids.
    const FIRST: u64 = 1;

    fn peer() -> PeerInfo {
        PeerInfo {
            address: ([198, 51, 100, 1], 4000).into(),
            path_kind: PathKind::Network,
            congestion: CongestionOwner::Tcp,
        }
    }

    /// Return the older process's receiver, and the newer process.
    fn processes() -> (PassedWebSockets, Second) {
        let (_, packets) = Successor::new().unwrap();
        let (passed, websockets) = PassedWebSockets::new().unwrap();
        let first = Predecessor::new(FIRST, [packets, websockets]);
        let predecessors: Predecessors = [first].into_iter().collect();
        let server = certificate().server;
        let (_endpoint, socket) =
            edge_endpoint_over(None, EndpointConfig::default(), server, 1).unwrap();
        let (agent, io) = tokio::io::duplex(4096);
        let accepting = socket.accept_or_relay(&predecessors, io, peer()).unwrap();
        let second = Second {
            agent,
            accepted: tokio::spawn(accepting),
            predecessors,
            _endpoint,
        };
        (passed, second)
    }

    /// Return a message with a packet for a connection id made with this key, and a close frame.
    fn message(ids: u64) -> Vec<u8> {
        let id = HashedConnectionIdGenerator::from_key(ids).generate_cid();
        let packet = [&[0x40][..], &id, b"payload"].concat();
        let mut client = Encoder::new(Role::Client);
        let header = Datagrams::header(None, &packet).unwrap();
        let message = client.binary(&[&header, &packet]).unwrap();
        [message, client.close(1000, "").unwrap()].concat()
    }

    #[tokio::test]
    async fn a_websocket_goes_to_the_process_that_has_its_connection() {
        let (passed, mut second) = processes();
        let message = message(FIRST);

        for byte in &message {
            second.agent.write_all(&[*byte]).await.unwrap();
        }

        let mut first = passed.next().await.unwrap().unwrap();
        assert_eq!(first.peer, peer());
        let mut received = vec![0; message.len()];
        first.stream.read_exact(&mut received).await.unwrap();
        assert_eq!(received, message);
        first.stream.write_all(b"answer").await.unwrap();
        drop(first);
        let mut answer = Vec::new();
        second.agent.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        assert!(matches!(second.accepted.await.unwrap(), Ended::Closed));
    }

    #[tokio::test]
    async fn a_websocket_of_our_own_is_served_with_the_bytes_already_read() {
        let (_passed, mut second) = processes();

        second.agent.write_all(&message(FIRST + 1)).await.unwrap();

        assert!(matches!(second.accepted.await.unwrap(), Ended::Closed));
        let mut end = [0; 4];
        second.agent.read_exact(&mut end).await.unwrap();
        assert_eq!(end[..1], [0x88], "an answer to the close frame");
    }

    #[tokio::test]
    async fn the_relay_ends_when_the_process_with_the_session_is_gone() {
        let (passed, mut second) = processes();
        second.agent.write_all(&message(FIRST)).await.unwrap();
        let first = passed.next().await.unwrap().unwrap();

        drop((passed, first));

        assert!(matches!(
            second.accepted.await.unwrap(),
            Ended::Closed | Ended::Lost(_)
        ));
        assert!(second.predecessors.alive().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_websocket_is_closed_if_the_other_process_never_answers() {
        let (passed, mut second) = processes();

        second.agent.write_all(&message(FIRST)).await.unwrap();

        let _silent = passed.next().await.unwrap().unwrap();
        let ended = second.accepted.await.unwrap();
        assert!(matches!(ended, Ended::NeverSpokeQuic), "{ended}");
    }
}
