//! Every state of a visitor's connection has a limit, at which it is still served and behind which it is
//! not; what is slow but alive has none.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use qtunnel::{Carrier, EdgeLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};

use crate::lab::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, frame,
};
use crate::lab::{Lab, Server, Wire, Wires, way, within};

/// Long enough for what shall happen before it, on a busy machine.
const LIMIT: Duration = Duration::from_millis(1_000);

async fn lab(change: impl FnOnce(&mut EdgeLimits)) -> Lab {
    Lab::with(|config| change(&mut config.limits)).await
}

#[tokio::test]
async fn an_http2_connection_without_its_preface_is_closed_and_one_with_it_is_not() {
    let lab = lab(|limits| limits.preface = LIMIT).await;
    let mut whole = lab.frames("nobody").await;
    whole.begin(&[]).await;
    let mut silent = lab.frames("nobody").await;
    let mut half = lab.frames("nobody").await;
    half.send(b"PRI * HTTP/2.0\r\n").await;

    silent.rest().await;
    half.rest().await;

    whole.get(1).await;
    assert_eq!(whole.next_of(1).await.kind, HEADERS);
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed_although_it_pings() {
    let lab = lab(|limits| limits.idle = LIMIT).await;
    let mut visitor = lab.frames("nobody").await;
    visitor.begin(&[]).await;
    visitor.get(1).await;
    visitor.body(1).await;
    let answered = Instant::now();

    let mut rest = Vec::new();
    loop {
        visitor.try_send(&frame(PING, 0, 0, &[7; 8])).await;
        match tokio::time::timeout(LIMIT / 10, visitor.next()).await {
            Ok(Some(frame)) => rest.push(frame.kind),
            Ok(None) => break,
            Err(_) => assert!(answered.elapsed() < way::patience(), "it is never closed"),
        }
    }

    assert!(answered.elapsed() >= LIMIT - LIMIT / 10);
    assert!(rest.contains(&GOAWAY), "{rest:?}");
}

#[tokio::test]
async fn an_http2_connection_is_not_idle_while_a_stream_is_open_nor_between_requests() {
    let lab = lab(|limits| limits.idle = LIMIT).await;
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.frames("blog").await;
    visitor.begin(&[]).await;

    visitor.get(1).await;
    let mut wire = wires.next().await;
    wire.head().await;
    // A long poll, and then an event stream that is silent.
    sleep(2 * LIMIT).await;
    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        .await;
    assert_eq!(visitor.next_of(1).await.kind, HEADERS);
    assert_eq!(visitor.next_of(1).await.payload, b"hello");
    sleep(2 * LIMIT).await;
    wire.send("world").await;
    assert_eq!(visitor.body(1).await, b"world");
    sleep(LIMIT / 2).await;

    visitor.get(3).await;
    wire.head().await;
    wire.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(visitor.body(3).await, b"");
}

#[tokio::test]
async fn half_a_head_over_http2_ends_the_connection_and_a_whole_one_in_time_does_not() {
    let lab = lab(|limits| limits.head = LIMIT).await;
    let mut half = lab.frames("nobody").await;
    half.begin(&[]).await;
    let mut whole = lab.frames("nobody").await;
    whole.begin(&[]).await;
    for visitor in [&mut half, &mut whole] {
        // Its settings are acknowledged by the way: within a head, nothing may come between.
        visitor.get(1).await;
        visitor.body(1).await;
    }
    let fields = half.request("GET", &[]);
    let head = frame(HEADERS, END_STREAM, 3, &fields[..20]);
    let began = Instant::now();

    half.send(&head).await;
    whole.send(&head).await;
    sleep(LIMIT / 2).await;
    whole
        .send(&frame(CONTINUATION, END_HEADERS, 3, &fields[20..]))
        .await;

    assert_eq!(whole.next_of(3).await.kind, HEADERS);
    half.rest().await;
    assert!(began.elapsed() >= LIMIT);
}

#[tokio::test]
async fn an_idle_http1_connection_is_closed_and_one_in_use_is_not() {
    let lab = lab(|limits| limits.idle = LIMIT).await;
    let upstream = Server::text("fine").await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;
    let ask = "GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n";

    for _ in 0..4 {
        visitor.send(ask).await;
        visitor.until("fine").await;
        sleep(LIMIT / 2).await;
    }
    visitor.send(ask).await;
    visitor.until("fine").await;
    let answered = Instant::now();

    assert_eq!(visitor.rest().await, b"");
    let took = answered.elapsed();
    // Not that of hyper, which is longer by that of a head.
    assert!(
        took >= LIMIT - LIMIT / 10 && took < EdgeLimits::default().head,
        "{took:?}"
    );
}

on_each_carrier!(an_answer_that_is_never_read_is_cut_and_one_that_is_read_slowly_is_not);
async fn an_answer_that_is_never_read_is_cut_and_one_that_is_read_slowly_is_not(carrier: Carrier) {
    let lab = lab(|limits| limits.write_stall = LIMIT).await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut silent = connect_narrow(&lab).await;
    let endless = endless(&mut wires).await;
    let mut slow = connect_narrow(&lab).await;
    let mut read = 0;
    let started = Instant::now();

    let reading = async {
        let _endless = self::endless(&mut wires).await;
        while started.elapsed() < 4 * LIMIT {
            sleep(LIMIT / 4).await;
            read += within("a slow read", slow.read(&mut [0; 2048]))
                .await
                .unwrap();
        }
    };
    reading.await;

    assert!(read > 0);
    // The other end of it, behind the tunnel, is free again.
    within("the upstream's end", endless).await.unwrap();
    let rest = within("the end", silent.read_to_end(&mut Vec::new())).await;
    assert!(
        rest.is_err(),
        "the kernel keeps an answer that nobody reads"
    );
}

on_each_carrier!(a_stream_whose_window_stays_shut_is_reset_and_its_neighbours_are_not);
async fn a_stream_whose_window_stays_shut_is_reset_and_its_neighbours_are_not(carrier: Carrier) {
    let lab = lab(|limits| limits.write_stall = LIMIT).await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.frames("blog").await;
    // SETTINGS_INITIAL_WINDOW_SIZE: nothing, until a stream is opened by hand.
    visitor.begin(&[(4, 0)]).await;

    let started = Instant::now();
    visitor.get(1).await;
    let shut = endless(&mut wires).await;
    visitor.get(3).await;
    let _open = endless(&mut wires).await;
    let (mut received, mut reset) = (0, None);
    while started.elapsed() < 3 * LIMIT || reset.is_none() {
        visitor.open(3, 100).await;
        loop {
            let frame = visitor.next().await.expect("a sound connection");
            match (frame.kind, frame.stream) {
                (DATA, 3) => received += frame.payload.len(),
                (RST_STREAM, 1) => reset = Some((frame.payload, started.elapsed())),
                (HEADERS, _) => continue,
                other => panic!("{other:?}"),
            }
            if frame.stream == 3 {
                break;
            }
        }
        sleep(LIMIT / 10).await;
    }

    let (code, after) = reset.unwrap();
    assert_eq!(code, [0, 0, 0, 8], "CANCEL");
    assert!(after >= LIMIT, "{after:?}");
    assert!(received >= 300, "{received}");
    within("the upstream's end", shut).await.unwrap();
}

#[tokio::test]
async fn an_http2_connection_that_reads_nothing_at_all_is_closed() {
    let lab = lab(|limits| {
        limits.write_stall = LIMIT;
        limits.idle = LIMIT / 2;
    })
    .await;
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    // The second window is smaller than a piece of the answer.
    for window in [0, 10, 65_535] {
        let mut visitor = lab.frames("blog").await;
        visitor.begin(&[(4, window)]).await;

        visitor.get(1).await;
        let endless = endless(&mut wires).await;
        let frames = visitor.rest().await;

        within("the upstream's end", endless).await.unwrap();
        assert!(
            frames.iter().any(|frame| frame.kind == RST_STREAM),
            "{window}: {:?}",
            frames.iter().map(|frame| frame.kind).collect::<Vec<_>>()
        );
    }
}

on_each_carrier!(a_body_that_does_not_come_is_408_and_one_that_begins_in_time_is_delivered);
async fn a_body_that_does_not_come_is_408_and_one_that_begins_in_time_is_delivered(
    carrier: Carrier,
) {
    let lab = lab(|limits| limits.body_grace = LIMIT).await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for late in [false, true] {
        let mut visitor = lab.visitor("blog").wire().await;
        visitor
            .send("POST / HTTP/1.1\r\nhost: blog.localhost\r\ncontent-length: 4\r\n\r\n")
            .await;
        let mut wire = wires.next().await;
        wire.head().await;
        if late {
            assert!(visitor.head().await.starts_with("HTTP/1.1 408 "));
        } else {
            sleep(LIMIT / 2).await;
            visitor.send("body").await;
            wire.until("body").await;
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")
                .await;
            visitor.until("fine").await;
        }
        // An upload that has been given up does not look complete.
        assert_eq!(late, ends_without_more(wire, late).await);

        let mut visitor = lab.frames("blog").await;
        visitor.begin(&[]).await;
        visitor.post(1, &[]).await;
        let mut wire = wires.next().await;
        wire.head().await;
        if late {
            assert_eq!(visitor.next_of(1).await.kind, HEADERS);
            let body = String::from_utf8(visitor.body(1).await).unwrap();
            assert!(body.starts_with("408 body_too_slow"), "{body}");
        } else {
            sleep(LIMIT / 2).await;
            visitor.send(&frame(DATA, END_STREAM, 1, b"body")).await;
            wire.until("body").await;
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")
                .await;
            assert_eq!(visitor.body(1).await, b"fine");
        }
    }
}

/// Wait for the end of an upstream's connection if it shall end, and tell whether it has, without a byte.
async fn ends_without_more(mut wire: Wire, shall_end: bool) -> bool {
    shall_end && wire.rest().await.is_empty()
}

on_each_carrier!(an_upload_that_waits_for_its_upstream_has_no_limit);
async fn an_upload_that_waits_for_its_upstream_has_no_limit(carrier: Carrier) {
    let lab = lab(|limits| {
        limits.body_grace = LIMIT / 4;
        limits.body_pause = LIMIT / 4;
    })
    .await
    .over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let length = way::large(64 << 20);
    let mut visitor = lab.visitor("blog").wire().await;
    visitor
        .send(format!(
            "POST / HTTP/1.1\r\nhost: blog.localhost\r\ncontent-length: {length}\r\n\r\n"
        ))
        .await;
    let upload = tokio::spawn(async move {
        visitor.pour(length, |_| {}).await;
        visitor
    });
    let mut wire = wires.next().await;
    wire.head().await;

    sleep(2 * LIMIT).await;
    assert!(!upload.is_finished(), "it is not large enough");
    assert_eq!(wire.skip(length).await, length);
    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")
        .await;

    let mut visitor = within("the upload's end", upload).await.unwrap();
    visitor.until("fine").await;
}

#[tokio::test]
async fn an_upload_whose_answer_has_begun_may_pause_and_so_may_a_call_of_grpc() {
    let lab = lab(|limits| limits.body_grace = LIMIT / 4).await;
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("chat", &upstream).await;
    let visitor = lab.http2("chat").await;
    let (mut upload, body) = Channel::<Bytes>::new(1);
    let answer = async {
        let mut wire = wires.next().await;
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        wire
    };
    let request = Request::post(visitor.uri("/"));
    let (response, mut wire) = tokio::join!(visitor.begin(request, body), answer);

    sleep(LIMIT).await;
    upload.send_data("late".into()).await.unwrap();
    wire.until("late").await;
    drop(response);

    let (mut upload, body) = Channel::<Bytes>::new(1);
    let request = Request::post(visitor.uri("/")).header("content-type", "application/grpc+proto");
    let asking = tokio::spawn({
        let visitor = visitor.clone();
        async move { visitor.begin(request, body).await }
    });
    let mut wire = wires.next().await;
    wire.head().await;
    sleep(LIMIT).await;
    upload.send_data("late".into()).await.unwrap();
    wire.until("late").await;
    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(asking.await.unwrap().unwrap().status(), 200);
}

on_each_carrier!(conversations_that_are_silent_outlive_every_limit);
async fn conversations_that_are_silent_outlive_every_limit(carrier: Carrier) {
    let lab = lab(|limits| {
        for limit in [
            &mut limits.preface,
            &mut limits.head,
            &mut limits.idle,
            &mut limits.body_grace,
            &mut limits.body_pause,
            &mut limits.write_stall,
            &mut limits.half_closed,
            &mut limits.linger,
            &mut limits.discard,
            &mut limits.close_timeout,
        ] {
            *limit = LIMIT / 2;
        }
    })
    .await
    .over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut events = lab.visitor("blog").wire().await;
    events
        .send("GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n")
        .await;
    let mut event_source = wires.next().await;
    event_source
        .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        .await;
    events.until("first").await;
    let mut socket = lab.visitor("blog").wire().await;
    socket
        .send("GET / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await;
    let mut socket_server = wires.next().await;
    socket_server
        .send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello")
        .await;
    socket.until("hello").await;
    let http2 = lab.http2("blog").await;
    let begin = http2.begin(Request::get(http2.uri("/")), Empty::<Bytes>::new());
    let accept = async {
        let mut wire = wires.next().await;
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            .await;
        wire
    };
    let (response, mut http2_source) = tokio::join!(begin, accept);
    let mut response = response.unwrap();
    within("an event", response.frame()).await.unwrap().unwrap();

    sleep(3 * LIMIT).await;

    event_source.send("6\r\nsecond\r\n").await;
    events.until("second").await;
    socket_server.send("to the visitor").await;
    socket.until("to the visitor").await;
    socket.send("to the server").await;
    socket_server.until("to the server").await;
    http2_source.send("6\r\nsecond\r\n").await;
    let event = within("an event", response.frame()).await.unwrap().unwrap();
    assert_eq!(event.into_data().unwrap(), "second");
}

#[tokio::test]
async fn a_refused_connection_that_says_nothing_is_closed() {
    let lab = lab(|limits| {
        limits.connections = 1;
        limits.close_timeout = LIMIT;
    })
    .await;
    let _first = lab.visitor("nobody").connect().await;
    let refused = lab.visitor("nobody");
    crate::lab::eventually("a refusal", || async {
        refused.get("/").await.status == 503
    })
    .await;

    let mut silent = refused.wire().await;
    let answered = refused.get("/").await;

    assert_eq!(answered.status, 503);
    assert_eq!(silent.rest().await, b"");
}

/// Connect a visitor that can take little ahead, and ask for an answer.
async fn connect_narrow(lab: &Lab) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(lab.http).await.unwrap();
    let ask = "GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    stream
}

/// Answer the next request without an end, until the connection ends.
async fn endless(wires: &mut Wires) -> tokio::task::JoinHandle<()> {
    let mut wire = wires.next().await;
    wire.head().await;
    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100000000000\r\n\r\n")
        .await;
    tokio::spawn(async move { wire.pour(100_000_000_000, |_| {}).await })
}
