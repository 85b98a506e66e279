//! What strangers may use up, and what happens one past it.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use qtunnel::proto::{AgentMessage, EdgeMessage, Refusal};
use qtunnel::{Carrier, Service, Upstream};
use quinn::{Connection, ConnectionError, SendDatagramError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::lab::peer::{ALPN, greeting, hear, say};
use crate::lab::{Lab, Server, within};

/// Wait until the edge closes a connection, and return its code.
async fn close_code(connection: &Connection) -> u64 {
    match within("the edge's close", connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("{other:?}"),
    }
}

const PROTOCOL: u64 = 1;
const HELLO_TOO_LARGE: u64 = 413;
const TIMEOUT: u64 = 2;

#[tokio::test]
async fn an_agent_that_says_nothing_or_half_of_something_is_closed_in_time() {
    let lab = Lab::with(|edge| edge.limits.hello = Duration::from_millis(100)).await;
    let upstream = Server::text("fine").await;
    let _agent = lab.agent("blog", &upstream).await;

    let silent = lab.dial(&ALPN).await;
    let half = lab.dial(&ALPN).await;
    let (mut send, _receive) = half.open_bi().await.unwrap();
    send.write_all(&[0x40]).await.unwrap();

    assert_eq!(close_code(&silent).await, TIMEOUT);
    assert_eq!(close_code(&half).await, TIMEOUT);
    assert_eq!(lab.visitor("blog").get("/").await.text(), "fine");
}

#[tokio::test]
async fn an_agent_that_is_not_understood_is_closed_at_once() {
    // Longer than any test waits: only the bytes can be the reason.
    let lab = Lab::with(|edge| edge.limits.hello = Duration::from_secs(3600)).await;
    let upstream = Server::text("fine").await;
    let _agent = lab.agent("blog", &upstream).await;

    for (what, bytes) in [
        ("garbage", &[3, 0xff, 0xff, 0xff][..]),
        ("a message of no kind", &[1, 99]),
        ("an empty message", &[0]),
        ("what is announced as longer", &[0x80, 0, 0x80, 1]),
    ] {
        let connection = lab.dial(&ALPN).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();

        let expected = match bytes {
            [0x80, ..] => HELLO_TOO_LARGE,
            _ => PROTOCOL,
        };
        assert_eq!(close_code(&connection).await, expected, "{what}");
    }
    assert_eq!(lab.visitor("blog").get("/").await.text(), "fine");
}

#[tokio::test]
async fn only_a_hello_opens_a_session_and_only_once() {
    let lab = Lab::start().await;
    let draining = AgentMessage::Draining { deadline_ms: 1 };

    let unasked = lab.dial(&ALPN).await;
    let (mut send, _receive) = unasked.open_bi().await.unwrap();
    say(&mut send, &draining).await;
    assert_eq!(close_code(&unasked).await, PROTOCOL);

    let twice = lab.dial(&ALPN).await;
    let (mut send, mut receive) = twice.open_bi().await.unwrap();
    say(&mut send, &greeting(&["blog"])).await;
    assert!(matches!(hear(&mut receive).await, EdgeMessage::Welcome(_)));
    say(&mut send, &greeting(&["blog"])).await;
    assert_eq!(close_code(&twice).await, PROTOCOL);
}

#[tokio::test]
async fn before_its_hello_an_agent_can_open_and_send_hardly_anything() {
    let lab = Lab::with(|edge| edge.limits.hello = Duration::from_millis(500)).await;
    let connection = lab.dial(&ALPN).await;

    let (_control, _) = connection.open_bi().await.unwrap();
    let (mut other, _) = connection.open_bi().await.unwrap();
    let third = timeout(Duration::from_millis(100), connection.open_bi()).await;
    let one_way = timeout(Duration::from_millis(100), connection.open_uni()).await;
    let datagram = connection.send_datagram(vec![0; 8].into());
    let mut sent = 0;
    while let Ok(n) = other.write(&[0; 4096]).await {
        sent += n;
    }

    assert!(third.is_err() && one_way.is_err());
    assert_eq!(datagram, Err(SendDatagramError::UnsupportedByPeer));
    assert!(sent <= 16 << 10, "{sent} bytes");
    assert_eq!(close_code(&connection).await, TIMEOUT);
}

#[tokio::test]
async fn an_agent_has_as_many_tunnels_as_it_may() {
    let lab = Lab::with(|edge| edge.limits.tunnels_per_agent = 2).await;
    let ask = |names: &'static [&str]| {
        let lab = &lab;
        async move {
            let connection = lab.dial(&ALPN).await;
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            say(&mut send, &greeting(names)).await;
            (hear(&mut receive).await, connection)
        }
    };

    let (two, _connection) = ask(&["a1", "a2"]).await;
    let (three, _) = ask(&["b1", "b2", "b3"]).await;

    assert!(matches!(two, EdgeMessage::Welcome(_)), "{two:?}");
    let EdgeMessage::Refused(refused) = three else {
        panic!("{three:?}");
    };
    assert_eq!(Refusal::from(refused), Refusal::TooManyTunnels { limit: 2 });
}

on_each_carrier!(one_session_has_1024_conversations_and_the_next_visitor_is_told_to_come_back);
async fn one_session_has_1024_conversations_and_the_next_visitor_is_told_to_come_back(
    carrier: Carrier,
) {
    rlimit::increase_nofile_limit(8192).expect("enough descriptors for a thousand visitors");
    let lab = Lab::start().await.over(carrier);
    let arrivals = Arc::new(Semaphore::new(0));
    let arrived = arrivals.clone();
    let service = Service::new(move |_| {
        arrived.add_permits(1);
        pending()
    });
    let _agent = lab.agent("busy", Upstream::Service(service)).await;
    let visitor = lab.visitor("busy");
    let mut visitors = Vec::new();
    for _ in 0..1024 {
        let mut stream = visitor.connect().await;
        let request = "GET / HTTP/1.1\r\nhost: busy.localhost\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        visitors.push(stream);
    }
    let all = within("1024 conversations", arrivals.acquire_many(1024)).await;
    all.unwrap().forget();

    let reply = visitor.get("/").await;

    let code = reply.header("x-qtunnel-error");
    assert_eq!((reply.status, code), (503, "busy"));
    assert_eq!(reply.header("retry-after"), "1");
    // QUIC announces room for more once an eighth has become free.
    visitors.truncate(800);
    // Who only stops sending may still read: it is taken for gone after some seconds.
    let _waiting = tokio::spawn(async move {
        loop {
            visitor.get("/").await;
        }
    });
    let next = within("the next conversation", arrivals.acquire()).await;
    next.unwrap().forget();
}

#[tokio::test]
async fn one_connection_too_many_is_told_to_come_back() {
    let lab = Lab::with(|edge| edge.limits.connections = 2).await;
    let visitor = lab.visitor("nobody");
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = visitor.connect().await;
        let request = "GET / HTTP/1.1\r\nhost: nobody.localhost\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(stream.read(&mut [0; 64]).await.unwrap() > 0);
        idle.push(stream);
    }

    let reply = visitor.get("/").await;

    let code = reply.header("x-qtunnel-error");
    assert_eq!((reply.status, code), (503, "busy"));
    assert_eq!(reply.header("retry-after"), "1");
    drop(idle);
    crate::lab::eventually("a free place", || async {
        visitor.get("/").await.status == 404
    })
    .await;
}

#[tokio::test]
async fn a_visitor_that_takes_too_long_for_its_head_is_closed() {
    let lab = Lab::with(|edge| edge.limits.head = Duration::from_millis(100)).await;

    let answer = lab.visitor("blog").raw("GET / HTTP/1.1\r\nhost: bl").await;

    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 408 "),
        "{answer}"
    );
}

#[tokio::test]
async fn a_visitor_that_takes_too_long_for_tls_is_closed() {
    let lab = Lab::with(|edge| edge.limits.handshake = Duration::from_millis(100)).await;
    let mut stream = TcpStream::connect(lab.https).await.unwrap();
    // The header of a TLS record whose content never comes.
    stream.write_all(&[22, 3, 1, 2, 0]).await.unwrap();

    let ended = within("the close", stream.read(&mut [0; 64])).await;

    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
}
