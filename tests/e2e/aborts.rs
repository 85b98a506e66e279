//! Conversations that break: whoever is left learns of it, and nobody takes a part for the whole.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response};
use qtunnel::Carrier;
use tokio::join;

use crate::lab::{Http2, Lab, Server, within};

on_each_carrier!(a_visitor_that_leaves_before_the_answer_aborts_the_upstream_request);
async fn a_visitor_that_leaves_before_the_answer_aborts_the_upstream_request(carrier: Carrier) {
    let lab = lab().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;

    let mut visitor = lab.visitor("blog").wire().await;
    visitor
        .send("GET / HTTP/1.1\r\nhost: blog.tunnel.test\r\n\r\n")
        .await;
    let mut wire = wires.next().await;
    wire.head().await;
    drop(visitor);
    assert_eq!(wire.rest().await, b"");

    let visitor = lab.http2("blog").await;
    let asking = tokio::spawn({
        let visitor = visitor.clone();
        async move { visitor.begin(get(&visitor), Empty::<Bytes>::new()).await }
    });
    let mut wire = wires.next().await;
    wire.head().await;
    asking.abort();
    assert_eq!(wire.rest().await, b"");
}

on_each_carrier!(a_visitor_that_leaves_in_the_middle_of_the_answer_aborts_the_upstream_request);
async fn a_visitor_that_leaves_in_the_middle_of_the_answer_aborts_the_upstream_request(
    carrier: Carrier,
) {
    let lab = lab().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for framing in [CHUNKED, SIZED] {
        let mut visitor = lab.visitor("blog").wire().await;
        visitor
            .send("GET / HTTP/1.1\r\nhost: blog.tunnel.test\r\n\r\n")
            .await;
        let mut wire = wires.next().await;
        wire.head().await;
        wire.send(framing).await;
        visitor.until("hello").await;
        drop(visitor);
        assert_eq!(wire.rest().await, b"");

        let visitor = lab.http2("blog").await;
        let (mut response, mut wire) = {
            let answer = async {
                let mut wire = wires.next().await;
                wire.head().await;
                wire.send(framing).await;
                wire
            };
            join!(begin(&visitor), answer)
        };
        within("a piece", response.frame()).await.unwrap().unwrap();
        drop(response);
        assert_eq!(wire.rest().await, b"");
    }
}

on_each_carrier!(a_visitor_that_leaves_in_the_middle_of_an_upload_aborts_the_upstream_request);
async fn a_visitor_that_leaves_in_the_middle_of_an_upload_aborts_the_upstream_request(
    carrier: Carrier,
) {
    let lab = lab().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for (framing, sent) in [
        ("content-length: 10", "hello"),
        ("transfer-encoding: chunked", "5\r\nhello\r\n"),
    ] {
        let mut visitor = lab.visitor("blog").wire().await;
        visitor
            .send(format!(
                "POST / HTTP/1.1\r\nhost: blog.tunnel.test\r\n{framing}\r\n\r\n{sent}"
            ))
            .await;
        let mut wire = wires.next().await;
        wire.until("hello").await;
        drop(visitor);
        let rest = String::from_utf8(wire.rest().await).unwrap();
        assert!(!rest.contains('0'), "the upload seems complete: {rest:?}");
    }

    let visitor = lab.http2("blog").await;
    let (mut upload, body) = Channel::<Bytes>::new(1);
    let asking =
        tokio::spawn(async move { visitor.begin(Request::post(visitor.uri("/")), body).await });
    upload.send_data("hello".into()).await.unwrap();
    let mut wire = wires.next().await;
    wire.until("hello").await;
    asking.abort();
    let rest = String::from_utf8(wire.rest().await).unwrap();
    assert!(!rest.contains('0'), "the upload seems complete: {rest:?}");
}

on_each_carrier!(an_upstream_that_dies_in_the_middle_leaves_a_visibly_broken_answer);
async fn an_upstream_that_dies_in_the_middle_leaves_a_visibly_broken_answer(carrier: Carrier) {
    let lab = lab().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let mut agent = lab.agent("blog", &upstream).await;
    for framing in [CHUNKED, SIZED] {
        let mut visitor = lab.visitor("blog").wire().await;
        visitor
            .send("GET / HTTP/1.1\r\nhost: blog.tunnel.test\r\n\r\n")
            .await;
        let mut wire = wires.next().await;
        wire.head().await;
        wire.send(framing).await;
        visitor.until("hello").await;
        drop(wire);
        assert_broken(&visitor.rest().await);

        let visitor = lab.http2("blog").await;
        let answer = async {
            let mut wire = wires.next().await;
            wire.head().await;
            wire.send(framing).await;
            wire
        };
        let (response, wire) = join!(begin(&visitor), answer);
        assert_reset(response, wire).await;
    }
    let problem = agent.event(|event| match event {
        qtunnel::Event::Request(log) => log.problem.clone(),
        _ => None,
    });
    assert!(problem.await.contains("body broke off"));
}

on_each_carrier!(an_agent_that_dies_in_the_middle_leaves_a_visibly_broken_answer);
async fn an_agent_that_dies_in_the_middle_leaves_a_visibly_broken_answer(carrier: Carrier) {
    for framing in [CHUNKED, SIZED] {
        let lab = lab().await.over(carrier);
        let (upstream, mut wires) = Server::by_hand().await;
        let agent = lab.agent("blog", &upstream).await;
        let mut visitor = lab.visitor("blog").wire().await;
        visitor
            .send("GET / HTTP/1.1\r\nhost: blog.tunnel.test\r\n\r\n")
            .await;
        let mut first = wires.next().await;
        first.head().await;
        first.send(framing).await;
        visitor.until("hello").await;
        let http2 = lab.http2("blog").await;
        let answer = async {
            let mut wire = wires.next().await;
            wire.head().await;
            wire.send(framing).await;
            wire
        };
        let (response, _second) = join!(begin(&http2), answer);

        agent.kill();

        assert_broken(&visitor.rest().await);
        assert_reset(response, ()).await;
    }
}

on_each_carrier!(an_upstream_that_dies_before_its_answer_is_reported);
async fn an_upstream_that_dies_before_its_answer_is_reported(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let visitor = lab.visitor("blog");
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-", "SSH-2.0-OpenSSH_9.2\r\n"] {
        let die = async {
            let mut wire = wires.next().await;
            wire.head().await;
            wire.send(answer).await;
        };
        let (reply, ()) = join!(visitor.get("/"), die);

        assert_eq!(
            (reply.status, reply.header("x-qtunnel-error")),
            (502, "upstream_invalid"),
            "{answer:?}"
        );
    }
}

on_each_carrier!(an_answer_in_the_middle_of_an_upload_reaches_the_visitor);
async fn an_answer_in_the_middle_of_an_upload_reaches_the_visitor(carrier: Carrier) {
    let lab = lab().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for upstream_stays in [true, false] {
        let mut visitor = lab.visitor("blog").wire().await;
        visitor
            .send("POST / HTTP/1.1\r\nhost: blog.tunnel.test\r\ncontent-length: 100000000\r\n\r\nhello")
            .await;
        let mut wire = wires.next().await;
        wire.until("hello").await;
        wire.send("HTTP/1.1 413 Payload Too Large\r\ncontent-length: 4\r\n\r\nmuch")
            .await;
        let mut upstream = Some(wire).filter(|_| upstream_stays);
        let head = visitor.head().await;
        assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
        assert_eq!(visitor.bytes(4).await, b"much");
        // Neither end waits for the rest, which nobody will read.
        visitor.rest().await;
        if let Some(wire) = &mut upstream {
            wire.rest().await;
        }

        let visitor = lab.http2("blog").await;
        let (mut upload, body) = Channel::<Bytes>::new(1);
        upload.send_data("hello".into()).await.unwrap();
        let answer = async {
            let mut wire = wires.next().await;
            wire.until("hello").await;
            wire.send("HTTP/1.1 413 Payload Too Large\r\ncontent-length: 4\r\n\r\nmuch")
                .await;
            wire
        };
        let (response, _wire) = join!(visitor.begin(Request::post(visitor.uri("/")), body), answer);
        let response = response.unwrap();
        assert_eq!(response.status(), 413);
        let body = within("the answer's body", response.collect())
            .await
            .unwrap();
        assert_eq!(body.to_bytes(), "much");
        drop(upload);
    }
}

/// Start an edge that does not wait for long for a visitor that has only shut down its sending side: one
/// that leaves looks the same.
async fn lab() -> Lab {
    Lab::with(|config| {
        config.domain = "tunnel.test".into();
        config.limits.half_closed = Duration::from_millis(500);
    })
    .await
}

fn get(visitor: &Http2) -> hyper::http::request::Builder {
    Request::get(visitor.uri("/"))
}

async fn begin(visitor: &Http2) -> Response<Incoming> {
    let response = visitor.begin(get(visitor), Empty::<Bytes>::new()).await;
    response.expect("a response")
}

/// Check what an HTTP/1.1 visitor got behind a part of the answer before its connection was closed.
fn assert_broken(rest: &[u8]) {
    assert!(
        rest.is_empty() || rest == b"\r\n",
        "{:?}",
        String::from_utf8_lossy(rest)
    );
}

/// Check that an HTTP/2 stream is reset once what keeps it alive is dropped.
async fn assert_reset<T>(mut response: Response<Incoming>, alive: T) {
    within("a piece", response.frame()).await.unwrap().unwrap();
    drop(alive);
    let err = within("the end", response.frame())
        .await
        .unwrap()
        .unwrap_err();
    let source = err.source().expect("a cause").downcast_ref::<h2::Error>();
    assert!(source.is_some_and(h2::Error::is_reset), "{err:?}");
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
const SIZED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello";
