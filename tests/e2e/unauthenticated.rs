//! Connections whose agents never show a token: what they may cost, and that others get in beside them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use qtunnel::proto::{EdgeMessage, Refusal};
use qtunnel::{Agent, Carrier};
use quinn::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::lab::handshakes::{Handshakes, OnRetry, flood};
use crate::lab::peer::{ALPN, greeting, hear, say};
use crate::lab::{EdgeProcess, Lab, Running, Server, eventually, way, within};

/// Somebody who begins handshakes and finishes none, on a thread of its own.
struct Flood {
    goes_on: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<u64>>,
}

impl Flood {
    /// Begin 2,000 a second from as many addresses.
    fn start(edge: SocketAddr, addresses: u32, on_retry: OnRetry) -> Self {
        let first = u32::from(Ipv4Addr::LOCALHOST);
        let clients = (first..first + addresses).map(|from| {
            Handshakes::new(from.into(), edge, on_retry).expect("an address of this machine")
        });
        let mut clients: Vec<_> = clients.collect();
        let goes_on = Arc::new(AtomicBool::new(true));
        let until = goes_on.clone();
        let thread =
            thread::spawn(move || flood(&mut clients, 2_000, || until.load(Ordering::Relaxed)));
        Self { goes_on, thread }
    }

    /// End it, and return how many there were.
    fn stop(self) -> u64 {
        self.goes_on.store(false, Ordering::Relaxed);
        let begun = self.thread.join().expect("no panic");
        begun.expect("packets can be sent")
    }
}

/// Flood an edge, and have agents connect meanwhile.
async fn agents_get_in_beside(addresses: u32, on_retry: OnRetry) {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &[]).await;
    let upstream = Server::text("here").await;
    let _before = Running::start(edge.agent_config("before", &upstream)).await;
    let memory = edge.process.peak_memory();

    let flood = Flood::start(edge.quic, addresses, on_retry);
    let start = Instant::now();
    let mut agents = Vec::new();
    let mut slowest = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(4) {
        let name = format!("beside-{}", agents.len());
        let asked = Instant::now();
        agents.push(Running::start(edge.agent_config(&name, &upstream)).await);
        slowest = slowest.max(asked.elapsed());
        assert_eq!(edge.visitor(&name).get("/").await.text(), "here");
    }
    let begun = flood.stop();

    assert!(begun > 1_000, "only {begun} handshakes");
    assert!(
        slowest < way::patient(Duration::from_secs(2)),
        "{slowest:?}"
    );
    let more = (edge.process.peak_memory() - memory) >> 10;
    assert!(more <= 100, "{more} MiB more for {begun} handshakes");
    assert_eq!(edge.visitor("before").get("/").await.text(), "here");
}

#[tokio::test]
async fn handshakes_that_never_finish_keep_no_agent_out() {
    agents_get_in_beside(1, OnRetry::Ignore).await;
}

#[tokio::test]
async fn handshakes_from_a_proven_address_that_never_finish_keep_no_agent_of_the_same_address_out()
{
    agents_get_in_beside(1, OnRetry::Follow).await;
}

#[tokio::test]
async fn handshakes_from_many_proven_addresses_that_never_finish_keep_no_agent_out() {
    agents_get_in_beside(500, OnRetry::Follow).await;
}

#[tokio::test]
async fn connections_that_say_no_hello_make_room_for_agents() {
    let lab = Lab::with(|edge| {
        edge.limits.unauthenticated = 8;
        edge.limits.unauthenticated_per_address = 8;
        edge.limits.hello = Duration::from_secs(3600);
    })
    .await;
    let upstream = Server::text("here").await;
    let silent = join_all((0..8).map(|_| lab.dial(&ALPN))).await;

    let _agent = lab.agent("blog", &upstream).await;

    assert_eq!(lab.visitor("blog").get("/").await.text(), "here");
    eventually("the oldest one's end", || async {
        let is_closed = |connection: &Connection| connection.close_reason().is_some();
        silent.iter().any(is_closed)
    })
    .await;
}

#[tokio::test]
async fn a_full_edge_says_so_to_agents_with_a_token() {
    let lab = Lab::with(|edge| edge.limits.sessions = 1).await;
    let upstream = Server::text("here").await;
    let _first = lab.agent("blog", &upstream).await;

    let second = lab.hello("shop").await;

    let refusal = second.unwrap_err();
    assert!(matches!(refusal, Refusal::Busy { .. }), "{refusal:?}");
}

#[tokio::test]
async fn one_agent_has_as_many_sessions_as_it_may() {
    let lab = Lab::with(|edge| edge.limits.sessions_per_agent = 2).await;
    let mut sessions = Vec::new();
    let mut say_hello = async |hello: &_| {
        let connection = lab.dial(&ALPN).await;
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        say(&mut send, hello).await;
        let answer = hear(&mut receive).await;
        // The session ends with any of them.
        sessions.push((connection, send, receive));
        answer
    };

    let hello = greeting(&[]);
    let two = [say_hello(&hello).await, say_hello(&hello).await];
    let third = say_hello(&hello).await;
    let anothers = say_hello(&greeting(&[])).await;

    let is_welcome = |answer: &EdgeMessage| matches!(answer, EdgeMessage::Welcome(_));
    assert!(two.iter().all(is_welcome));
    let EdgeMessage::Refused(refused) = third else {
        panic!("{third:?}");
    };
    assert!(matches!(refused.into(), Refusal::Busy { .. }));
    assert!(is_welcome(&anothers));
}

#[tokio::test]
async fn websockets_of_one_address_that_bring_no_session_keep_no_agent_out() {
    let lab = Lab::with(|edge| edge.limits.websockets = 300).await;
    let upstream = Server::text("here").await;
    let mut open = Vec::new();
    for _ in 0..300 {
        let from = SocketAddr::from(([127, 0, 0, 2], 0));
        open.push(websocket(from, lab.http).await);
    }

    let lab = lab.over(Carrier::WebSocket);
    let agent = within(
        "an agent",
        Agent::connect(lab.agent_config("blog", &upstream)),
    )
    .await;

    assert!(agent.is_ok());
    let mut turned_away = 0;
    for stream in &mut open {
        let mut byte = [0; 1];
        // Those beyond the share of one address were closed.
        let closed = timeout(Duration::from_millis(1), stream.read(&mut byte)).await;
        turned_away += usize::from(closed.is_ok());
    }
    assert!(turned_away >= 300 - 256, "{turned_away}");
}

/// Open a WebSocket as agents do, and bring nothing.
async fn websocket(from: SocketAddr, edge: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(from).unwrap();
    let mut stream = socket.connect(edge).await.unwrap();
    let request = "GET /_qtunnel/connect HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
                   upgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("a head", stream.read_u8()).await.unwrap());
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    stream
}
