//! One visitor against all others: what it holds and does not read is limited, and the others are served.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use h2::client::Connection;
use h2::client::ResponseFuture;
use h2::client::SendRequest;
use http_body_util::StreamBody;
use hyper::Request;
use hyper::Response;
use hyper::body::Frame;
use qtunnel::Service;
use qtunnel::Upstream;
use qtunnel::UpstreamBody;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::lab::EdgeProcess;
use crate::lab::Http2;
use crate::lab::Lab;
use crate::lab::Running;
use crate::lab::Server;
use crate::lab::eventually;
use crate::lab::http2::start_tls;
use crate::lab::within;

/// An HTTP/2 connection whose answers nobody reads.
struct Unread {
    send: SendRequest<Bytes>,
    connection: Connection<TlsStream<TcpStream>, Bytes>,
    uri: String,
}

impl Unread {
    /// Connect with a receive buffer as small as the kernel allows, and streams that may be sent so much.
    async fn connect(lab: &Lab, name: &str, window: u32) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a buffer");
        let tcp = within("connecting", socket.connect(lab.https)).await;
        let host = format!("{name}.{}", lab.domain);
        let tls = start_tls(tcp.expect("the edge listens"), &host, &lab.ca(), b"h2").await;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(window)
            .handshake(tls)
            .await
            .expect("HTTP/2");
        Self {
            send,
            connection,
            uri: format!("https://{host}/"),
        }
    }

    /// Ask so many times, and return without any answer.
    async fn ask(&mut self, times: usize) -> Vec<ResponseFuture> {
        let mut answers = Vec::new();
        for _ in 0..times {
            let send = tokio::select! {
                send = self.send.clone().ready() => send.expect("room for one more"),
                ended = &mut self.connection => panic!("{ended:?}"),
            };
            let request = Request::get(&self.uri).body(()).expect("a valid request");
            let (answer, _) = { send }
                .send_request(request, true)
                .expect("a live connection");
            answers.push(answer);
        }
        answers
    }
}

/// A service that never ends its answers, and counts the bytes that it was able to give.
fn endless() -> (Upstream, Arc<AtomicU64>) {
    let given = Arc::new(AtomicU64::new(0));
    let counted = given.clone();
    let service = Service::new(move |_| {
        let counted = counted.clone();
        let pieces = std::iter::repeat_with(move || {
            counted.fetch_add(PIECE as u64, Relaxed);
            Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[7; PIECE])))
        });
        let body = UpstreamBody::new(StreamBody::new(futures_util::stream::iter(pieces)));
        async move { Ok(Response::new(body)) }
    });
    (Upstream::Service(service), given)
}

const PIECE: usize = 16 << 10;

#[tokio::test]
async fn eleven_connections_of_unread_answers_leave_an_agent_to_the_others() {
    let lab = Lab::start().await;
    let (endless, _) = endless();
    let _agent = lab.agent("blog", endless).await;
    let mut connections = Vec::new();
    let mut answers = JoinSet::new();

    for _ in 0..11 {
        let mut unread = Unread::connect(&lab, "blog", 0).await;
        for answer in unread.ask(100).await {
            answers.spawn(answer);
        }
        let Unread {
            send, connection, ..
        } = unread;
        connections.push(send);
        // It ends with the test.
        tokio::spawn(connection);
    }
    while let Some(answer) = within("an answer to all", answers.join_next()).await {
        let answer = answer.unwrap().expect("an answer, or why there is none");
        if answer.status() != 200 {
            let code = answer.headers()["x-qtunnel-error"].to_str().unwrap();
            assert_eq!(
                (answer.status().as_u16(), code),
                (429, "too_many_conversations")
            );
            assert_eq!(answer.headers()["retry-after"], "1");
        }
    }

    for _ in 0..4 {
        let mut other = lab.visitor("blog").connect().await;
        let request = format!("GET / HTTP/1.1\r\nhost: blog.{}\r\n\r\n", lab.domain);
        other.write_all(request.as_bytes()).await.unwrap();
        let answer = beginning(&mut other).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn a_tunnel_leaves_conversations_to_the_others_of_its_agent() {
    rlimit::increase_nofile_limit(8192).expect("enough descriptors for a thousand visitors");
    let lab = Lab::start().await;
    let arrivals = Arc::new(Semaphore::new(0));
    let arrived = arrivals.clone();
    let service = Service::new(move |_| {
        arrived.add_permits(1);
        pending()
    });
    let upstream = Server::text("fine").await;
    let _agent = lab
        .agent_with("busy", Upstream::Service(service), |agent| {
            agent.tunnels.push(Lab::tunnel("calm", &upstream));
        })
        .await;
    let mut visitors = Vec::new();
    for _ in 0..1024 {
        let mut stream = lab.visitor("busy").connect().await;
        let request = format!("GET / HTTP/1.1\r\nhost: busy.{}\r\n\r\n", lab.domain);
        stream.write_all(request.as_bytes()).await.unwrap();
        visitors.push(stream);
    }
    let most = within("768 conversations", arrivals.acquire_many(768)).await;
    most.unwrap().forget();

    let reply = lab.visitor("calm").get("/").await;
    let busy = lab.visitor("busy").get("/").await;

    assert_eq!((reply.status, reply.text()), (200, "fine"));
    let code = busy.header("x-qtunnel-error");
    assert_eq!((busy.status, code), (503, "busy"));
    assert_eq!(arrivals.available_permits(), 0);
}

#[tokio::test]
async fn answers_that_nobody_reads_make_room_when_all_conversations_are_taken() {
    rlimit::increase_nofile_limit(8192).expect("enough descriptors for a thousand visitors");
    let lab = Lab::start().await;
    let (endless, given) = endless();
    let _agent = lab.agent("blog", endless).await;
    let mut visitors = Vec::new();
    for _ in 0..1024 {
        let mut stream = lab.visitor("blog").connect().await;
        let request = format!("GET / HTTP/1.1\r\nhost: blog.{}\r\n\r\n", lab.domain);
        stream.write_all(request.as_bytes()).await.unwrap();
        visitors.push(stream);
    }
    settled(&given).await;

    for _ in 0..3 {
        let visitor = lab.visitor("blog");
        eventually("an answer to another visitor", || async {
            let mut other = visitor.connect().await;
            let request = format!("GET / HTTP/1.1\r\nhost: blog.{}\r\n\r\n", lab.domain);
            other.write_all(request.as_bytes()).await.unwrap();
            let answer = beginning(&mut other).await;
            answer.starts_with("HTTP/1.1 200 ")
        })
        .await;
    }
}

#[tokio::test]
async fn what_visitors_over_http2_do_not_read_stays_within_the_budget() {
    const MIB: u64 = 1 << 20;
    let lab = Lab::with(|edge| {
        edge.limits.buffer = MIB;
        edge.limits.session_buffer = MIB;
    })
    .await;
    let (endless, given) = endless();
    let _agent = lab.agent("blog", endless).await;
    let mut unread = Unread::connect(&lab, "blog", i32::MAX as u32).await;
    let mut answers = unread.ask(100).await;
    // As long as the connection's window is small, this is all that is read.
    while given.load(Relaxed) < 100 * PIECE as u64 {
        tokio::select! {
            ended = &mut unread.connection => panic!("{ended:?}"),
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
    }
    unread.connection.set_target_window_size(i32::MAX as u32);
    tokio::select! {
        ended = &mut unread.connection => panic!("{ended:?}"),
        answer = answers.remove(0) => assert_eq!(answer.unwrap().status(), 200),
    }

    settled(&given).await;

    // The kernel's buffers, the budget, and what each conversation has in any case.
    let waiting = given.load(Relaxed);
    assert!(
        waiting <= 8 * MIB + MIB + 100 * (32 << 10),
        "{waiting} bytes"
    );
}

#[tokio::test]
async fn what_visitors_send_ahead_over_http2_stays_within_the_budget_and_others_are_served() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start_with_https(home.path(), &["--buffer", "16"]).await;
    let https = edge.https.expect("visitors come over TLS");
    let held = Arc::new(Mutex::new(Vec::new()));
    let holding = held.clone();
    let deaf = Service::new(move |request| {
        // Kept, and never read.
        holding.lock().unwrap().push(request);
        pending()
    });
    let upstream = Server::text("fine").await;
    let mut config = edge.agent_config("deaf", Upstream::Service(deaf));
    config.tunnels.push(Lab::tunnel("calm", &upstream));
    let _agent = Running::start(config).await;
    let before = edge.process.peak_memory();
    let given = Arc::new(AtomicU64::new(0));

    let mut uploads = JoinSet::new();
    for _ in 0..24 {
        let visitor = Http2::connect(https, "deaf.localhost", &edge.ca()).await;
        for _ in 0..4 {
            let (visitor, counted) = (visitor.clone(), given.clone());
            let pieces = std::iter::repeat_with(move || {
                counted.fetch_add(PIECE as u64, Relaxed);
                Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[7; PIECE])))
            });
            let body = StreamBody::new(futures_util::stream::iter(pieces));
            uploads.spawn(async move {
                let request = Request::post(visitor.uri("/"));
                visitor.ask(request, body).await.map(drop)
            });
        }
    }
    settled(&given).await;

    let calm = Http2::connect(https, "calm.localhost", &edge.ca()).await;
    let upload = calm.deliver(Request::post(calm.uri("/")), vec![7; 8 << 20].into());
    assert_eq!(upload.await.unwrap().status(), 200);
    let reply = edge.visitor("calm").get("/").await;
    assert_eq!((reply.status, reply.text()), (200, "fine"));
    let more = (edge.process.peak_memory() - before) >> 10;
    assert!(more < 48, "{more} MiB more");
    assert!(uploads.try_join_next().is_none(), "no upload ends early");
}

/// Wait until nothing more moves.
async fn settled(given: &AtomicU64) {
    let quiet = Duration::from_millis(500);
    within("a standstill", async {
        let mut before = u64::MAX;
        while before != given.load(Relaxed) {
            before = given.load(Relaxed);
            tokio::time::sleep(quiet).await;
        }
    })
    .await;
}

/// Read the beginning of an answer.
async fn beginning(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 4096];
    let read = within("an answer", stream.read(&mut answer)).await;
    answer.truncate(read.unwrap_or(0));
    crate::lab::head::text(&answer)
}

/// A proxy on this machine, which names the visitor's address.
async fn ask_as(edge: SocketAddr, host: &str, visitor: &str) -> TcpStream {
    let mut stream = TcpStream::connect(edge).await.expect("the edge listens");
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nx-forwarded-for: {visitor}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn behind_a_trusted_proxy_an_address_gets_no_more_than_it_leaves_to_others() {
    rlimit::increase_nofile_limit(8192).expect("enough descriptors for a thousand visitors");
    let loopback = "127.0.0.0/8".parse().expect("a network");
    let lab = Lab::with(|edge| edge.trusted_proxies = vec![loopback]).await;
    let arrivals = Arc::new(Semaphore::new(0));
    let arrived = arrivals.clone();
    let service = Service::new(move |_| {
        arrived.add_permits(1);
        pending()
    });
    let _agent = lab.agent("busy", Upstream::Service(service)).await;
    let host = format!("busy.{}", lab.domain);
    let mut greedy = Vec::new();
    for number in 0..600 {
        // All of one subscriber.
        let visitor = format!("2001:db8:1:2::{number:x}");
        greedy.push(ask_as(lab.http, &host, &visitor).await);
    }
    let half = within("512 conversations", arrivals.acquire_many(512)).await;
    half.unwrap().forget();

    let mut refused = ask_as(lab.http, &host, "2001:db8:1:2::ffff").await;
    let answer = beginning(&mut refused).await;

    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("too_many_conversations"), "{answer}");
    assert_eq!(arrivals.available_permits(), 0);
    let _other = ask_as(lab.http, &host, "2001:db8:2::1").await;
    within("another visitor's conversation", arrivals.acquire())
        .await
        .unwrap()
        .forget();
}

#[tokio::test]
async fn a_visitor_has_so_many_conversations_with_all_agents_together() {
    let loopback = "127.0.0.0/8".parse().expect("a network");
    let lab = Lab::with(|edge| {
        edge.trusted_proxies = vec![loopback];
        edge.limits.conversations_per_visitor = 2;
    })
    .await;
    let arrivals = Arc::new(Semaphore::new(0));
    let silent = || {
        let arrived = arrivals.clone();
        Upstream::Service(Service::new(move |_| {
            arrived.add_permits(1);
            pending()
        }))
    };
    let _one = lab.agent("one", silent()).await;
    let _other = lab.agent("other", silent()).await;
    let [one, other] = ["one", "other"].map(|name| format!("{name}.{}", lab.domain));
    let first = ask_as(lab.http, &one, "192.0.2.1").await;
    let _second = ask_as(lab.http, &other, "192.0.2.1").await;
    let both = within("both conversations", arrivals.acquire_many(2)).await;
    both.unwrap().forget();

    for host in [&one, &other] {
        let mut refused = ask_as(lab.http, host, "192.0.2.1").await;
        let response = beginning(&mut refused).await;
        assert!(response.starts_with("HTTP/1.1 429 "), "{response}");
        assert!(response.contains("too_many_conversations"), "{response}");
    }
    let _neighbour = ask_as(lab.http, &one, "192.0.2.2").await;
    let served = within("another visitor's conversation", arrivals.acquire()).await;
    served.unwrap().forget();

    drop(first);
    eventually("room for one more", || async {
        let _again = ask_as(lab.http, &other, "192.0.2.1").await;
        let served = tokio::time::timeout(Duration::from_millis(200), arrivals.acquire());
        served.await.is_ok()
    })
    .await;
}
