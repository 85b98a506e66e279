//! What hyper would let pass and the edge does not: each is answered, the connection is closed, and
//! nothing of it reaches an upstream.

use qtunnel::{Carrier, Event};

use crate::lab::{Lab, Server, Wire};

on_each_carrier!(each_violation_is_answered_and_ends_the_connection);
async fn each_violation_is_answered_and_ends_the_connection(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for (status, code, request) in VIOLATIONS {
        // What follows on the connection is not read as a request either.
        let request = format!("{request}GET /smuggled HTTP/1.1\r\nhost: blog.localhost\r\n\r\n");

        let answer = lab.visitor("blog").raw(&request).await;

        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {answer}"
        );
        assert!(
            answer.contains(&format!("\r\nx-qtunnel-error: {code}\r\n")),
            "{request:?}: {answer}"
        );
        assert!(
            answer.contains("\r\nconnection: close\r\n"),
            "{request:?}: {answer}"
        );
        assert_eq!(
            answer.matches("x-qtunnel-error").count(),
            1,
            "{request:?}: {answer}"
        );
        assert!(wires.is_empty(), "{request:?} reached the upstream");
    }
}

on_each_carrier!(a_body_that_ends_early_or_late_smuggles_nothing);
async fn a_body_that_ends_early_or_late_smuggles_nothing(carrier: Carrier) {
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: blog.localhost\r\n\r\n";
    for malformed in [
        "zz\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "-1\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n",
    ] {
        let lab = Lab::start().await.over(carrier);
        let (upstream, mut wires) = Server::by_hand().await;
        let _agent = lab.agent("blog", &upstream).await;
        let mut visitor = lab.visitor("blog").wire().await;
        let head = "POST / HTTP/1.1\r\nhost: blog.localhost\r\ntransfer-encoding: chunked\r\n\r\n";
        visitor.send(head).await;
        let mut wire = wires.next().await;
        wire.head().await;

        visitor.send(format!("{malformed}{smuggled}")).await;

        let seen = wire.rest().await;
        let seen = String::from_utf8_lossy(&seen);
        assert!(
            !seen.contains("smuggled") && !seen.ends_with("0\r\n\r\n"),
            "{malformed:?}: {seen}"
        );
        let answer = visitor.rest().await;
        assert!(
            !answer.starts_with(b"HTTP/1.1 2"),
            "{malformed:?}: {}",
            String::from_utf8_lossy(&answer)
        );
        assert!(wires.is_empty(), "{malformed:?}: a second request");
    }
}

on_each_carrier!(a_request_inside_a_body_stays_inside_the_body);
async fn a_request_inside_a_body_stays_inside_the_body(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::echo().await;
    let _agent = lab.agent("blog", &upstream).await;
    let inner = "GET /smuggled HTTP/1.1\r\nhost: blog.localhost\r\n\r\n";
    let length = inner.len();
    for framed in [
        format!("content-length: {length}\r\n\r\n{inner}"),
        format!("transfer-encoding: chunked\r\n\r\n{length:x}\r\n{inner}\r\n0\r\n\r\n"),
    ] {
        let request = format!(
            "POST /outer HTTP/1.1\r\nhost: blog.localhost\r\nconnection: close\r\n{framed}"
        );

        let answer = lab.visitor("blog").raw(request).await;

        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.contains("\r\nx-target: /outer\r\n") && answer.contains(inner),
            "{answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer}");
    }
}

on_each_carrier!(heads_pass_up_to_each_limit_and_not_one_byte_or_field_further);
async fn heads_pass_up_to_each_limit_and_not_one_byte_or_field_further(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::raw(|stream| async move {
        // No HTTP library: theirs have limits of their own, and the edge adds fields.
        let mut wire = Wire::new(stream);
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
    })
    .await;
    let _agent = lab.agent("blog", &upstream).await;
    let fixed = "GET / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: close\r\n";
    let filled = |size: usize| {
        let padding = "x".repeat(size - fixed.len() - "x-fill: \r\n\r\n".len());
        format!("{fixed}x-fill: {padding}\r\n\r\n")
    };
    let fields = |count: usize| format!("{fixed}{}\r\n", "x-many: 1\r\n".repeat(count - 2));
    let target =
        |size: usize| fixed.replacen("/ ", &format!("/{} ", "x".repeat(size - 1)), 1) + "\r\n";
    for (request, status) in [
        (filled(16 << 10), 200),
        (filled((16 << 10) + 1), 431),
        (fields(100), 200),
        (fields(101), 431),
        (target(8 << 10), 200),
        (target((8 << 10) + 1), 414),
    ] {
        let size = request.len();

        let answer = lab.visitor("blog").raw(request).await;

        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{size} bytes: {answer}"
        );
    }
}

on_each_carrier!(the_rules_hold_over_http2_too);
async fn the_rules_hold_over_http2_too(carrier: Carrier) {
    let lab = Lab::public().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let visitor = lab.http2("blog").await;
    let get = || hyper::Request::get(visitor.uri("/"));
    for (request, status) in [
        (get().header("host", "other.tunnel.test"), 400),
        (get().header("content_length", "5"), 400),
        (
            get()
                .header("x-large", "x".repeat(12 << 10))
                .header("x-larger", "x".repeat(5 << 10)),
            431,
        ),
        (
            (0..101).fold(get(), |get, at| get.header(format!("x-{at}"), "1")),
            431,
        ),
        (hyper::Request::connect(visitor.uri("/")), 400),
    ] {
        let reply = visitor.send(request).await;

        assert_eq!(reply.status, status);
        assert!(wires.is_empty());
    }
}

#[tokio::test]
async fn no_request_makes_the_edge_violate_the_protocol_with_an_agent() {
    let lab = Lab::start().await;
    let upstream = Server::echo().await;
    let agent = lab.agent("blog", &upstream).await;
    let (method, zeros, version) = ("M".repeat(257), "0".repeat(300), "1".repeat(128));
    let upgrade = |protocol: &str| {
        format!(
            "GET / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: upgrade, close\r\nupgrade: {protocol}\r\n\r\n"
        )
    };
    for (request, status) in [
        (
            format!("{method} / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: close\r\n\r\n"),
            501,
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nhost: blog.localhost:{zeros}80\r\nconnection: close\r\n\r\n"
            ),
            400,
        ),
        // As if no upgrade had been requested.
        (upgrade("websocket/;"), 200),
        (upgrade(&format!("websocket/{version}")), 200),
    ] {
        // Often enough for the agent to close the session.
        for _ in 0..20 {
            let response = lab.visitor("blog").raw(&request).await;

            let response = String::from_utf8_lossy(&response).into_owned();
            let expected = format!("HTTP/1.1 {status} ");
            assert!(response.starts_with(&expected), "{request:?}: {response}");
        }
    }
    assert_eq!(
        agent.count(|event| matches!(event, Event::Reconnecting { .. })),
        0
    );
}

const VIOLATIONS: &[(u16, &str, &str)] = &[
    (400, "bad_request", "GET / HTTP/1.1\r\n\r\n"),
    (
        400,
        "bad_request",
        "GET / HTTP/1.1\r\nhost: blog.localhost\r\nhost: blog.localhost\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "GET / HTTP/1.1\r\nhost: blog.localhost/x\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "GET / HTTP/1.1\r\nhost: u@blog.localhost\r\n\r\n",
    ),
    (400, "bad_request", "GET / HTTP/1.1\r\nhost:\r\n\r\n"),
    (
        400,
        "bad_request",
        "GET http://other.localhost/ HTTP/1.1\r\nhost: blog.localhost\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ntransfer-encoding: identity\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ntransfer-encoding: chunked, identity\r\n\r\n",
    ),
    (
        501,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ntransfer_encoding: chunked\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ncontent_length: 4\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ncontent-length: +4\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ncontent-length: 4, 4\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "CONNECT blog.localhost:443 HTTP/1.1\r\nhost: blog.localhost:443\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "GET * HTTP/1.1\r\nhost: blog.localhost\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "GET / HTTP/1.1\nhost: blog.localhost\n\n",
    ),
    (
        400,
        "bad_request",
        "GET / HTTP/1.1\r\nhost: blog.localhost\nx: y\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "GET / HTTP/1.1\r\nhost: blog.localhost\r\nx: y\r\n folded\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "GET / HTTP/1.1\r\nhost: blog.localhost\r\nx: a\0b\r\n\r\n",
    ),
    (
        400,
        "bad_request",
        "GET  / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n",
    ),
    (
        505,
        "bad_request",
        "GET / HTTP/2.0\r\nhost: blog.localhost\r\n\r\n",
    ),
];
