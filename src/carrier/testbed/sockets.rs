//! Tests on real sockets: moving between carriers, and misbehaving peers.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use quinn::{AsyncUdpSocket, EndpointConfig, udp::Transmit};
use tokio::{io::DuplexStream, net::TcpStream, task::JoinSet, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};

use super::certificate;
use super::lab::{converse, serve};
use super::real::{RealEdge, WEBSOCKETS, relay, relay_udp};
use crate::carrier::agent::dial::{DialConfig, race_for};
use crate::carrier::congestion::CongestionOwner;
use crate::carrier::edge::socket::{EdgeSocket, TooManyWebSockets, edge_endpoint_over};
use crate::carrier::websocket::{Ended, PeerInfo};
use crate::carrier::{Carrier, Transport, WEBSOCKET_PATH};
use crate::net::path_kind::PathKind;
use crate::proto::{DATAGRAMS_HEADER, DATAGRAMS_LIMIT, Datagrams};

/// Longer than anything here takes on a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_download_is_exact_while_it_changes_carriers_every_few_megabytes() {
    const DOWNLOAD: usize = 64 << 20;
    const LEG: u64 = 3 << 20;
    const LEGS: usize = 15;
    let mut edge = RealEdge::start().await;
    let config = edge.config(Transport::Auto);
    let race = race_for(&config, vec![edge.udp]);
    let endpoint = edge.endpoint.clone();
    let accepted = tokio::spawn(async move { endpoint.accept().await.unwrap().await.unwrap() });
    let mut agent = race.run(Transport::Quic, &mut Vec::new()).await.unwrap();
    let inside = accepted.await.unwrap();
    let upgraded = race.factory.dial().await.unwrap();
    let line = agent
        .websocket_tasks
        .carry(upgraded, agent.switch.packet_sender());
    agent.switch.set_websocket(Some(line));
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(agent.connection.clone()));

    let download = tokio::spawn(converse(inside.clone(), 1, 1000, DOWNLOAD));
    for leg in 0..LEGS {
        let arrived = inside.stats().udp_rx.bytes;
        while inside.stats().udp_rx.bytes < arrived + LEG {
            assert!(!download.is_finished(), "finished on leg {leg}");
            tokio::task::yield_now().await;
        }
        agent.send_over(match leg % 2 {
            0 => Carrier::WebSocket,
            _ => Carrier::Udp,
        });
    }

    download.await.unwrap().unwrap();
    assert_eq!(edge.socket.websockets(), 1);
    agent.connection.close(0_u32.into(), b"");
    agent.endpoint.wait_idle().await;
    drop(agent);
    assert!(edge.ended.recv().await.is_some());
}

#[tokio::test]
async fn a_real_download_goes_on_when_udp_stops_and_comes_back_when_it_starts() {
    let mut edge = RealEdge::start().await;
    let (front, udp) = relay_udp(edge.udp).await;
    let config = DialConfig {
        port: front.port(),
        ..edge.config(Transport::Auto)
    };
    let (mut dialed, inside) = edge.agent(config).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(dialed.driver.run());
    assert_eq!(dialed.carrier.borrow_and_update().carrier, Carrier::Udp);
    let transfer = tokio::spawn(converse(inside.clone(), 1, 32 << 20, 32 << 20));
    while inside.stats().udp_rx.bytes < 1 << 20 {
        tokio::task::yield_now().await;
    }

    drop(udp);
    timeout(TEST_TIMEOUT, dialed.carrier.changed())
        .await
        .unwrap()
        .unwrap();

    let moved = dialed.carrier.borrow().clone();
    assert_eq!(moved.carrier, Carrier::WebSocket);
    assert!(
        moved.reason.starts_with("udp silent for"),
        "{}",
        moved.reason
    );
    transfer.await.unwrap().unwrap();
    assert_eq!(
        edge.socket
            .carrier(inside.remote_address())
            .unwrap()
            .carrier,
        Carrier::WebSocket
    );
    dialed.connection.close(0_u32.into(), b"");
    while tasks.join_next().await.is_some() {}
}

#[tokio::test]
async fn a_websocket_that_is_cut_does_not_affect_others() {
    let mut edge = RealEdge::start().await;
    let (front, cut) = relay(edge.http).await;
    let victim = DialConfig {
        websocket: format!("ws://{front}").parse().unwrap(),
        ..edge.config(Transport::Websocket)
    };
    let other = edge.config(Transport::Websocket);
    let third = edge.config(Transport::Quic);
    let victim = edge.connect_agent(victim).await;
    let other = edge.connect_agent(other).await;
    let third = edge.connect_agent(third).await;
    let stuck = tokio::spawn(converse(victim, 1, 64 << 20, 64 << 20));

    drop(cut);
    let ended = timeout(TEST_TIMEOUT, edge.ended.recv())
        .await
        .unwrap()
        .unwrap();

    assert!(matches!(ended, Ended::Closed | Ended::Lost(_)), "{ended}");
    converse(other, 2, 1 << 20, 1 << 20).await.unwrap();
    converse(third, 3, 1 << 20, 1 << 20).await.unwrap();
    stuck.abort();
}

async fn stranger(edge: &RealEdge) -> WebSocketStream<TcpStream> {
    let tcp = TcpStream::connect(edge.http).await.unwrap();
    let url = format!("ws://{}{WEBSOCKET_PATH}", edge.http);
    client_async(url, tcp).await.unwrap().0
}

#[tokio::test]
async fn a_ping_is_answered_and_a_close_too() {
    let edge = RealEdge::start().await;
    let mut stranger = stranger(&edge).await;

    stranger
        .send(Message::Ping(Bytes::from_static(b"there?")))
        .await
        .unwrap();

    let answer = timeout(TEST_TIMEOUT, stranger.next()).await.unwrap();
    assert_eq!(
        answer.unwrap().unwrap(),
        Message::Pong(Bytes::from_static(b"there?"))
    );
    stranger.close(None).await.unwrap();
    let answer = timeout(TEST_TIMEOUT, stranger.next()).await.unwrap();
    assert!(matches!(&answer, Some(Ok(Message::Close(_)))), "{answer:?}");
}

/// Send a message as a stranger and return the edge's close code, while an agent is unaffected.
async fn answer_to(message: Message) -> CloseCode {
    let mut edge = RealEdge::start().await;
    let config = edge.config(Transport::Websocket);
    let agent = edge.connect_agent(config).await;
    let transfer = tokio::spawn(converse(agent, 1, 1 << 20, 1 << 20));
    let mut stranger = stranger(&edge).await;

    stranger.send(message).await.unwrap();

    let code = loop {
        match timeout(TEST_TIMEOUT, stranger.next()).await.unwrap() {
            Some(Ok(Message::Close(Some(CloseFrame { code, .. })))) => break code,
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    transfer.await.unwrap().unwrap();
    assert_eq!(edge.socket.websockets(), 1);
    code
}

#[tokio::test]
async fn a_text_message_closes_the_websocket_and_no_other() {
    assert_eq!(answer_to("hello".into()).await, CloseCode::Unsupported);
}

#[tokio::test]
async fn an_empty_message_closes_the_websocket_and_no_other() {
    assert_eq!(
        answer_to(Message::Binary(Bytes::new())).await,
        CloseCode::Policy
    );
}

#[tokio::test]
async fn a_message_that_is_too_long_closes_the_websocket_and_no_other() {
    let long = vec![7; DATAGRAMS_HEADER + DATAGRAMS_LIMIT + 1];

    assert_eq!(
        answer_to(Message::Binary(long.into())).await,
        CloseCode::Size
    );
}

#[tokio::test]
async fn a_malformed_message_closes_the_websocket_and_no_other() {
    let malformed = Bytes::from_static(b"\xff\xffpacket");

    assert_eq!(
        answer_to(Message::Binary(malformed)).await,
        CloseCode::Policy
    );
}

/// Start an edge without UDP, on paused time.
fn quiet_edge(limit: usize) -> (quinn::Endpoint, EdgeSocket) {
    edge_endpoint_over(None, EndpointConfig::default(), certificate().server, limit).unwrap()
}

/// Accept a WebSocket from a stranger, at one of many addresses.
fn accept_stranger(
    socket: &EdgeSocket,
    far: DuplexStream,
    number: u16,
) -> Result<impl Future<Output = Ended> + Send + use<>, TooManyWebSockets> {
    let [high, low] = number.to_be_bytes();
    let peer = PeerInfo {
        address: ([198, 18, high, low], 4000).into(),
        path_kind: PathKind::Network,
        congestion: CongestionOwner::Quic,
    };
    socket.accept(far, peer)
}

#[tokio::test(start_paused = true)]
async fn a_thousand_websockets_without_quic_are_closed() {
    let (endpoint, socket) = quiet_edge(1000);
    let mut strangers = Vec::new();
    let mut websockets = JoinSet::new();
    for i in 0..1000 {
        let (near, far) = tokio::io::duplex(4096);
        websockets.spawn(accept_stranger(&socket, far, i).unwrap());
        let mut near = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        // Half send nothing, half send packets that are not QUIC.
        if i % 2 == 0 {
            near.send(Message::Binary(Bytes::from_static(b"\x00\x04\x40123")))
                .await
                .unwrap();
        }
        strangers.push(near);
    }
    assert_eq!(socket.websockets(), 1000);
    let (_, far) = tokio::io::duplex(4096);
    assert!(accept_stranger(&socket, far, 1000).is_err());

    while let Some(ended) = websockets.join_next().await {
        assert!(matches!(ended.unwrap(), Ended::NeverSpokeQuic));
    }

    assert_eq!(socket.websockets(), 0);
    assert_eq!(endpoint.open_connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn unused_websockets_of_one_address_leave_room_for_others() {
    let (_endpoint, socket) = quiet_edge(1000);
    let mut places = Vec::new();
    let mut open = |number| {
        let (near, far) = tokio::io::duplex(64);
        let place = accept_stranger(&socket, far, number).map(|websocket| (near, websocket));
        place.map(|place| places.push(place))
    };

    let of_one = (0..1000).filter(|_| open(1).is_ok()).count();

    assert_eq!(of_one, 256);
    assert!(open(2).is_ok());
    socket.all_sessions_started();
    assert!(open(1).is_ok(), "those of sessions do not count");
}

#[tokio::test(start_paused = true)]
async fn a_websocket_with_quic_but_without_a_session_is_closed() {
    let (_endpoint, socket) = quiet_edge(1);
    let (_near, far) = tokio::io::duplex(4096);
    let websocket = tokio::spawn(accept_stranger(&socket, far, 0).unwrap());

    // Something is sent to it: it may be one that never completes its handshake.
    let initial = [0xc0; 64];
    let remote = socket.addresses().pop().unwrap();
    let sent = socket.try_send(&Transmit {
        destination: remote,
        ecn: None,
        contents: &initial,
        segment_size: None,
        src_ip: None,
    });

    assert!(sent.is_ok());
    assert!(matches!(websocket.await.unwrap(), Ended::NoSession));
}

#[tokio::test(start_paused = true)]
async fn a_probe_does_not_count_as_speaking_quic() {
    let (_endpoint, socket) = quiet_edge(WEBSOCKETS);
    let (near, far) = tokio::io::duplex(4096);
    let websocket = tokio::spawn(accept_stranger(&socket, far, 0).unwrap());
    let mut near: WebSocketStream<DuplexStream> =
        WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    let probe = crate::carrier::selection::probe::Probe::new()
        .unwrap()
        .datagram();
    let message = Datagrams::encode(None, &probe).unwrap();

    near.send(Message::Binary(message)).await.unwrap();

    let answer = near.next().await.unwrap().unwrap();
    assert!(matches!(answer, Message::Binary(_)));
    assert!(matches!(websocket.await.unwrap(), Ended::NeverSpokeQuic));
}
