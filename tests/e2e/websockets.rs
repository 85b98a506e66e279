//! What strangers do with the path where agents' packets come in over HTTP.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper::Request;
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use qtunnel::proto::{DATAGRAMS_HEADER, DATAGRAMS_LIMIT, Datagrams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::lab::{Http2, Lab, Server, within};

#[tokio::test]
async fn frames_that_no_agent_sends_end_their_websocket_and_no_other() {
    let lab = Lab::start().await.over(qtunnel::Carrier::WebSocket);
    let upstream = Server::text("fine").await;
    let _agent = lab.agent("blog", &upstream).await;
    let masked = |opcode: u8, length: usize| {
        let mut frame = vec![opcode, 0xff];
        frame.extend((length as u64).to_be_bytes());
        frame.extend([0; 4]);
        frame
    };
    let longest = DATAGRAMS_HEADER + DATAGRAMS_LIMIT;
    for (what, frame, code) in [
        ("no frame at all", b"GET / HTTP/1.1\r\n\r\n".repeat(9), None),
        ("a frame without a mask", vec![0x82, 1, 0], None),
        (
            "a text",
            vec![0x81, 0x82, 0, 0, 0, 0, b'h', b'i'],
            Some(1003),
        ),
        ("an empty message", vec![0x82, 0x80, 0, 0, 0, 0], Some(1008)),
        (
            "a message of half a header",
            vec![0x82, 0x81, 0, 0, 0, 0, 0],
            Some(1008),
        ),
        (
            "packets of no length",
            vec![0x82, 0x83, 0, 0, 0, 0, 0, 0, 7],
            Some(1008),
        ),
        (
            "a message that is too long",
            masked(0x82, longest + 1),
            Some(1009),
        ),
        ("a message of 2^62 bytes", masked(0x82, 1 << 62), None),
    ] {
        let mut stream = open(lab.http).await;

        stream.write_all(&frame).await.unwrap();

        let mut said = Vec::new();
        // Closed or reset: what was not read of the garbage decides.
        let _ = within("the edge's close", stream.read_to_end(&mut said)).await;
        if let Some(code) = code {
            let close = said
                .get(2..4)
                .map(|code| u16::from_be_bytes([code[0], code[1]]));
            assert_eq!(close, Some(code), "{what}: {said:?}");
        }
        assert_eq!(lab.visitor("blog").get("/").await.text(), "fine", "{what}");
    }
}

/// RFC 8441, as an HTTP/2 proxy in front of the edge would use it.
#[tokio::test]
async fn an_agents_packets_travel_on_an_http2_stream() {
    let lab = Lab::start().await;
    let http2 = lab.http2("anything").await;
    let (relay, at) = Relay::start(stream(&http2).await).await;
    let upstream = Server::echo().await;
    let _agent = lab
        .agent_with("blog", &upstream, |config| config.server.port = at.port())
        .await;
    let body: Vec<u8> = (0..4u32 << 20).map(|at| (at % 251) as u8).collect();

    let reply = lab.visitor("blog").post("/", body.clone()).await;

    assert!(reply.body == body, "{} bytes came back", reply.body.len());
    assert!(!relay.0.is_finished());
}

/// Open a WebSocket on the edge's port for HTTP.
async fn open(edge: SocketAddr) -> TcpStream {
    let mut stream = within("connecting", TcpStream::connect(edge))
        .await
        .unwrap();
    let request = "GET /_qtunnel/connect HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let more = within("the answer", stream.read_buf(&mut head)).await;
        assert!(more.unwrap() > 0, "{}", String::from_utf8_lossy(&head));
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&head)
    );
    stream
}

/// Open a WebSocket on a stream of an HTTP/2 connection.
async fn stream(http2: &Http2) -> TokioIo<Upgraded> {
    // The edge's SETTINGS, which permit it, have arrived with the first answer.
    http2.get("/_qtunnel/none").await;
    let request = Request::connect(http2.uri("/_qtunnel/connect"))
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13");
    let response = http2.begin(request, Empty::<Bytes>::new()).await.unwrap();
    assert_eq!(response.status(), 200);
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

/// A UDP port whose packets go on inside a WebSocket.
struct Relay(JoinHandle<()>);

impl Relay {
    async fn start(io: TokioIo<Upgraded>) -> (Self, SocketAddr) {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = udp.local_addr().unwrap();
        let config = Some(WebSocketConfig::default());
        let websocket = WebSocketStream::from_raw_socket(io, Role::Client, config).await;
        let (mut sink, mut messages) = websocket.split();
        let task = tokio::spawn(async move {
            let mut packet = vec![0; 65536];
            let mut agent = None;
            loop {
                tokio::select! {
                    received = udp.recv_from(&mut packet) => {
                        let (length, from) = received.unwrap();
                        agent = Some(from);
                        let message = Datagrams::encode(None, &packet[..length]).unwrap();
                        sink.send(Message::Binary(message)).await.unwrap();
                    }
                    message = messages.next() => {
                        let Some(Ok(Message::Binary(message))) = message else {
                            return;
                        };
                        let datagrams = Datagrams::decode(message).unwrap();
                        for datagram in datagrams.bytes.chunks(datagrams.stride) {
                            udp.send_to(datagram, agent.unwrap()).await.unwrap();
                        }
                    }
                }
            }
        });
        (Self(task), addr)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.abort();
    }
}
