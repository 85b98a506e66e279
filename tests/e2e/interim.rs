//! What comes before the answer: `100 Continue` and its kin.

use std::time::Duration;

use qtunnel::Carrier;

use crate::lab::head::{field, text};
use crate::lab::{Lab, Server, Wire, way, within};

on_each_carrier!(a_body_is_asked_for_only_when_the_upstream_asks);
async fn a_body_is_asked_for_only_when_the_upstream_asks(carrier: Carrier) {
    let lab = Lab::with(|config| config.limits.continue_timeout = way::patience() * 10)
        .await
        .over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;

    visitor.send(EXPECTING).await;
    let mut wire = wires.next().await;
    let head = wire.head().await;
    assert!(!visitor.has_more() && !wire.has_more());
    wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(visitor.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    visitor.send("hello").await;
    assert_eq!(wire.bytes(5).await, b"hello");
    wire.send("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")
        .await;

    assert_eq!(field(&head, "expect"), Some("100-continue"));
    assert!(visitor.head().await.starts_with("HTTP/1.1 201 Created\r\n"));
}

on_each_carrier!(an_upstream_that_wants_no_body_says_so_at_once);
async fn an_upstream_that_wants_no_body_says_so_at_once(carrier: Carrier) {
    for status in ["417 Expectation Failed", "413 Payload Too Large"] {
        for body in ["", "sorry"] {
            let lab = Lab::with(|config| config.limits.continue_timeout = way::patience() * 10)
                .await
                .over(carrier);
            let (upstream, mut wires) = Server::by_hand().await;
            let _agent = lab.agent("blog", &upstream).await;
            let mut visitor = lab.visitor("blog").wire().await;

            visitor.send(EXPECTING).await;
            let mut wire = wires.next().await;
            wire.head().await;
            let length = body.len();
            wire.send(format!(
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .await;

            let answer = text(&visitor.rest().await);
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
                "{answer}"
            );
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
            assert_eq!(wire.rest().await, b"", "a body that nobody sent");
        }
    }
}

on_each_carrier!(an_upstream_that_ignores_the_expectation_gets_the_body_all_the_same);
async fn an_upstream_that_ignores_the_expectation_gets_the_body_all_the_same(carrier: Carrier) {
    let lab = Lab::with(|config| config.limits.continue_timeout = Duration::ZERO)
        .await
        .over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;

    visitor.send(EXPECTING).await;
    let mut wire = wires.next().await;
    wire.head().await;
    assert_eq!(visitor.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    visitor.send("hello").await;

    assert_eq!(wire.bytes(5).await, b"hello");
    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert!(visitor.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
}

on_each_carrier!(early_hints_arrive_before_the_answer_exists);
async fn early_hints_arrive_before_the_answer_exists(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;

    visitor.send([GET, "\r\n"].concat()).await;
    let mut wire = wires.next().await;
    wire.head().await;
    for sheet in ["/a.css", "/b.css"] {
        wire.send(format!(
            "HTTP/1.1 103 Early Hints\r\nlink: <{sheet}>\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\n"
        ))
        .await;
        assert_eq!(
            visitor.head().await,
            format!("HTTP/1.1 103 Early Hints\r\nlink: <{sheet}>\r\n\r\n")
        );
    }
    wire.send(OK).await;

    assert!(visitor.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
}

on_each_carrier!(early_hints_do_not_disturb_visitors_that_cannot_have_them);
async fn early_hints_do_not_disturb_visitors_that_cannot_have_them(carrier: Carrier) {
    // hyper's HTTP/2 server has no way to send them; HTTP/1.0 has no such thing.
    let lab = Lab::public().await.over(carrier);
    let upstream = Server::raw(|stream| async move {
        let mut wire = Wire::new(stream);
        wire.head().await;
        wire.send("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    })
    .await;
    let _agent = lab.agent("blog", &upstream).await;

    let reply = within("the answer", async {
        lab.http2("blog").await.get("/").await
    })
    .await;
    let old = lab
        .visitor("blog")
        .raw("GET / HTTP/1.0\r\nhost: blog.tunnel.test\r\n\r\n")
        .await;

    assert_eq!((reply.status, reply.text()), (200, "ok"));
    assert!(
        text(&old).starts_with("HTTP/1.0 200 OK\r\n"),
        "{}",
        text(&old)
    );
}

const GET: &str = "GET / HTTP/1.1\r\nhost: blog.localhost\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const EXPECTING: &str =
    "POST / HTTP/1.1\r\nhost: blog.localhost\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
