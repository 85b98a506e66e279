//! Bodies that flow: byte by byte, both ways at once, larger than any memory, and no faster than they
//! are read.

use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response};
use qtunnel::Carrier;
use tokio::join;
use tokio::sync::watch;

use crate::lab::process::Process;
use crate::lab::{Lab, Server, Visitor, Wire, way, within};

on_each_carrier!(each_byte_of_an_event_stream_arrives_before_the_next_is_sent);
async fn each_byte_of_an_event_stream_arrives_before_the_next_is_sent(carrier: Carrier) {
    let lab = Lab::public().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("events", &upstream).await;
    let (visitor, http2) = (lab.visitor("events"), lab.http2("events").await);

    for over_http2 in [false, true] {
        let begin = async {
            if over_http2 {
                http2
                    .begin(Request::get(http2.uri("/")), Empty::new())
                    .await
                    .unwrap()
            } else {
                visitor
                    .begin(Request::get("/"), Empty::<Bytes>::new())
                    .await
            }
        };
        let accept = async {
            let mut wire = wires.next().await;
            wire.head().await;
            wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
                .await;
            wire
        };
        let (mut response, mut wire) = join!(begin, accept);
        for byte in "data: 1\n\n".chars() {
            wire.send(format!("1\r\n{byte}\r\n")).await;
            assert_eq!(next(&mut response).await, byte.to_string());
        }
        wire.send("0\r\n\r\n").await;
        assert_eq!(end(response).await, "");
    }
}

on_each_carrier!(each_byte_of_an_upload_arrives_before_the_next_is_sent_and_answers_come_meanwhile);
async fn each_byte_of_an_upload_arrives_before_the_next_is_sent_and_answers_come_meanwhile(
    carrier: Carrier,
) {
    let lab = Lab::public().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("chat", &upstream).await;
    let (visitor, http2) = (lab.visitor("chat"), lab.http2("chat").await);

    for over_http2 in [false, true] {
        let (mut upload, body) = Channel::<Bytes>::new(1);
        let begin = async {
            if over_http2 {
                http2
                    .begin(Request::post(http2.uri("/")), body)
                    .await
                    .unwrap()
            } else {
                visitor.begin(Request::post("/"), body).await
            }
        };
        let accept = async {
            let mut wire = wires.next().await;
            wire.head().await;
            wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                .await;
            wire
        };
        let (mut response, mut wire) = join!(begin, accept);
        for said in ["a", "b", "c"] {
            upload.send_data(said.into()).await.unwrap();
            assert_eq!(wire.until(said).await, format!("1\r\n{said}").into_bytes());
            assert_eq!(wire.bytes(2).await, b"\r\n");
            wire.send(format!("1\r\n{said}\r\n")).await;
            assert_eq!(next(&mut response).await, said);
        }
        drop(upload);
        assert_eq!(wire.bytes(5).await, b"0\r\n\r\n");
        wire.send("0\r\n\r\n").await;
        assert_eq!(end(response).await, "");
    }
}

on_each_carrier!(an_upload_goes_on_while_its_response_waits_to_be_read);
async fn an_upload_goes_on_while_its_response_waits_to_be_read(carrier: Carrier) {
    let large = way::large(LARGE);
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("both", &upstream).await;
    let mut visitor = lab.visitor("both").wire().await;
    let head =
        format!("POST / HTTP/1.1\r\nhost: both.localhost\r\ncontent-length: {large}\r\n\r\n");
    visitor.send(head).await;
    let mut wire = wires.next().await;
    wire.head().await;
    wire.send(format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {large}\r\n\r\n"
    ))
    .await;

    // The visitor reads nothing before all is sent; the upstream reads and writes independently.
    let upstream = tokio::spawn(async move { wire.exchange(large).await });
    visitor.deliver(large).await;

    visitor.head().await;
    assert_eq!(visitor.skip(large).await, large);
    within("the upstream's end", upstream).await.unwrap();
}

on_each_carrier!(slow_readers_stop_their_upstreams_and_nobody_else);
async fn slow_readers_stop_their_upstreams_and_nobody_else(carrier: Carrier) {
    let large = way::large(LARGE);
    let lab = Lab::start().await.over(carrier);
    let (poured, mut pouring) = watch::channel(0);
    let upstream = Server::raw(move |stream| {
        let poured = poured.clone();
        async move {
            let mut wire = Wire::new(stream);
            if wire.head().await.starts_with("GET /large ") {
                wire.send(format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {large}\r\n\r\n"
                ))
                .await;
                wire.pour(large, |more| poured.send_modify(|all| *all += more))
                    .await;
            } else {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
                    .await;
            }
        }
    })
    .await;
    let _agent = lab.agent("slow", &upstream).await;
    let mut slow = Vec::new();
    for _ in 0..SLOW_READERS {
        let mut visitor = lab.visitor("slow").wire().await;
        visitor
            .send("GET /large HTTP/1.1\r\nhost: slow.localhost\r\n\r\n")
            .await;
        visitor.head().await;
        slow.push(visitor);
    }

    // Others are served all the while, until nothing more is poured between two of their rounds.
    let mut before = u64::MAX;
    while before != *pouring.borrow_and_update() {
        before = *pouring.borrow();
        for _ in 0..20 {
            assert_eq!(lab.visitor("slow").get("/small").await.text(), "ok");
        }
    }
    assert!(
        before < SLOW_READERS * large,
        "{before} bytes poured out for nobody"
    );

    for mut visitor in slow.into_iter().take(PATIENT_READERS) {
        assert_eq!(visitor.skip(large).await, large);
    }
}

on_each_carrier!(
    huge_bodies_pass_both_ways_with_memory_flat,
    flavor = "multi_thread",
    worker_threads = 2
);
async fn huge_bodies_pass_both_ways_with_memory_flat(carrier: Carrier) {
    let huge = way::large(HUGE);
    let upstream = Server::raw(move |stream| async move {
        let mut wire = Wire::new(stream);
        if wire.head().await.starts_with("GET ") {
            wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {huge}\r\n\r\n"))
                .await;
            wire.pour(huge, |_| {}).await;
        } else {
            let length = wire.skip(huge).await.to_string();
            wire.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{length}",
                length.len()
            ))
            .await;
        }
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0";
    let serve = [
        "serve",
        "--http",
        any,
        "--https",
        any,
        "--quic",
        any,
        "--state-dir",
        "edge",
    ];
    let mut edge = Process::qtunnel(home.path(), serve);
    let https = edge.line("https").await;
    let quic = edge.line("quic").await;
    let [https, quic] = [&https, &quic].map(|line| {
        let (_, port) = line.rsplit_once(':').unwrap();
        format!("{}:{port}", way::host())
    });
    let port = upstream.addr.port().to_string();
    let websocket = format!("wss://{https}");
    let connect = [
        "connect",
        &port,
        "--server",
        &quic,
        "--websocket-url",
        &websocket,
        "--transport",
        match carrier {
            Carrier::Udp => "quic",
            Carrier::WebSocket => "websocket",
        },
        "--ca",
        "edge/ca.pem",
        "--subdomain",
        "huge",
    ];
    let mut agent = Process::qtunnel(home.path(), connect);
    let url = agent.line("http://huge.localhost:").await;
    let url = url
        .split_whitespace()
        .find(|word| word.starts_with("http://"))
        .unwrap();
    let addr = (
        [127, 0, 0, 1],
        url.parse::<hyper::Uri>().unwrap().port_u16().unwrap(),
    )
        .into();
    let visitor = Visitor::new(addr, "huge.localhost".into());

    let mut download = visitor.wire().await;
    download
        .send("GET / HTTP/1.1\r\nhost: huge.localhost\r\n\r\n")
        .await;
    download.head().await;
    let downloaded = download.skip(huge).await;
    let mut upload = visitor.wire().await;
    upload
        .send(format!(
            "POST / HTTP/1.1\r\nhost: huge.localhost\r\ncontent-length: {huge}\r\n\r\n"
        ))
        .await;
    upload.pour(huge, |_| {}).await;
    upload.head().await;
    let uploaded = upload.bytes(huge.to_string().len()).await;

    assert_eq!(downloaded, huge);
    assert_eq!(String::from_utf8(uploaded).unwrap(), huge.to_string());
    let peaks = [edge.peak_memory(), agent.peak_memory()].map(|kib| kib >> 10);
    println!(
        "peak memory in MiB for {} MiB each way: edge {}, agent {}",
        huge >> 20,
        peaks[0],
        peaks[1]
    );
    assert!(peaks.iter().all(|peak| *peak < 64), "{peaks:?} MiB");
}

async fn next(response: &mut Response<Incoming>) -> String {
    let frame = within("the next piece", response.frame()).await;
    let data = frame
        .expect("more")
        .expect("sound")
        .into_data()
        .expect("data");
    String::from_utf8(data.to_vec()).expect("text")
}

async fn end(response: Response<Incoming>) -> Bytes {
    let rest = within("the end", response.collect()).await;
    rest.expect("a sound end").to_bytes()
}

/// Far more than all buffers on the way hold together.
const LARGE: u64 = 96 << 20;

/// As many as one visitor may have connections, but for those of the others: more than fit into any
/// session's window, were each allowed to fill a stream's.
const SLOW_READERS: u64 = 60;

/// Those who get all of it in the end.
const PATIENT_READERS: usize = 4;

/// What the memory of both ends is measured with, each way.
const HUGE: u64 = 2 << 30;
