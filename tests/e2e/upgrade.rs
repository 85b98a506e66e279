//! WebSocket and every other protocol that begins with an HTTP/1.1 Upgrade or an HTTP/2 extended
//! CONNECT.

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use qtunnel::{AgentConfig, Carrier};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::join;

use crate::lab::visitor::collect;
use crate::lab::{Lab, Server, Visitor, Wires, within};

on_each_carrier!(what_a_visitor_says_early_reaches_the_upstream_only_after_its_101);
async fn what_a_visitor_says_early_reaches_the_upstream_only_after_its_101(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;

    visitor.send([UPGRADE, "early"].concat()).await;
    let mut upgraded = wires.next().await;
    let head = upgraded.head().await;
    round_trip(&lab.visitor("blog"), &mut wires).await;
    assert!(!upgraded.has_more(), "forwarded before the 101");
    upgraded.send([SWITCHED, "eager"].concat()).await;

    assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
    assert!(
        head.contains("\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
        "{head}"
    );
    assert!(visitor.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(visitor.bytes(5).await, b"eager");
    assert_eq!(upgraded.bytes(5).await, b"early");
}

on_each_carrier!(bytes_pass_untouched_in_both_directions_once_the_upstream_agrees);
async fn bytes_pass_untouched_in_both_directions_once_the_upstream_agrees(carrier: Carrier) {
    for protocol in ["websocket", "x-own/2.0"] {
        let lab = Lab::start().await.over(carrier);
        let (upstream, mut wires) = Server::by_hand().await;
        let allow = |config: &mut AgentConfig| {
            let upgrades = &mut config.tunnels[0].upgrades;
            upgrades.allow("X-Own").expect("a protocol's name");
        };
        let _agent = lab.agent_with("blog", &upstream, allow).await;
        let mut visitor = lab.visitor("blog").wire().await;

        visitor
            .send(UPGRADE.replace("websocket\r\n", &format!("{protocol}\r\n")))
            .await;
        let mut upgraded = wires.next().await;
        upgraded.head().await;
        upgraded
            .send(SWITCHED.replace("websocket\r\n", &format!("{protocol}\r\n")))
            .await;
        let head = visitor.head().await;
        visitor.send(b"GET / HTTP/1.1\r\n\r\n\0\xff\n").await;
        upgraded.send(b"HTTP/1.1 200 OK\r\n\r\n\xfe\0").await;

        assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
        assert!(
            head.contains(&format!("\r\nupgrade: {protocol}\r\n")),
            "{head}"
        );
        assert!(head.contains("\r\nsec-websocket-accept: x\r\n"), "{head}");
        assert_eq!(upgraded.bytes(21).await, b"GET / HTTP/1.1\r\n\r\n\0\xff\n");
        assert_eq!(visitor.bytes(21).await, b"HTTP/1.1 200 OK\r\n\r\n\xfe\0");
    }
}

on_each_carrier!(a_half_close_leaves_the_other_direction_open);
async fn a_half_close_leaves_the_other_direction_open(carrier: Carrier) {
    for visitor_first in [true, false] {
        let lab = Lab::start().await.over(carrier);
        let (upstream, mut wires) = Server::by_hand().await;
        let _agent = lab.agent("blog", &upstream).await;
        let mut visitor = lab.visitor("blog").wire().await;
        visitor.send(UPGRADE).await;
        let mut upgraded = wires.next().await;
        upgraded.head().await;
        upgraded.send(SWITCHED).await;
        visitor.head().await;
        let (mut first, mut second) = (upgraded, visitor);
        if visitor_first {
            (first, second) = (second, first);
        }

        first.send("the last word").await;
        first.finish().await;

        assert_eq!(second.rest().await, b"the last word");
        second.send("and").await;
        assert_eq!(first.bytes(3).await, b"and");
        second.send("an answer").await;
        second.finish().await;
        assert_eq!(first.rest().await, b"an answer");
    }
}

on_each_carrier!(an_upgraded_stream_outlives_every_limit_on_time);
async fn an_upgraded_stream_outlives_every_limit_on_time(carrier: Carrier) {
    let short = std::time::Duration::from_millis(50);
    let lab = Lab::with(|config| {
        config.limits.head = short;
        config.limits.idle = short;
    })
    .await
    .over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab
        .agent_with("blog", &upstream, |config| config.upstream_timeout = short)
        .await;
    let mut visitor = lab.visitor("blog").wire().await;
    visitor.send(UPGRADE).await;
    let mut upgraded = wires.next().await;
    upgraded.head().await;
    upgraded.send(SWITCHED).await;
    visitor.head().await;

    // Another visitor is cut for each of the limits, later than this one would have been.
    let mut idle = lab.visitor("blog").wire().await;
    idle.send("GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n")
        .await;
    let _silent = wires.next().await;
    assert!(idle.head().await.starts_with("HTTP/1.1 504 "));
    idle.rest().await;

    upgraded.send("still").await;
    assert_eq!(visitor.bytes(5).await, b"still");
    visitor.send("here").await;
    assert_eq!(upgraded.bytes(4).await, b"here");
}

on_each_carrier!(a_refused_upgrade_is_an_ordinary_answer);
async fn a_refused_upgrade_is_an_ordinary_answer(carrier: Carrier) {
    for status in ["403 Forbidden", "200 OK", "426 Upgrade Required"] {
        let lab = Lab::start().await.over(carrier);
        let (upstream, mut wires) = Server::by_hand().await;
        let _agent = lab.agent("blog", &upstream).await;
        let mut visitor = lab.visitor("blog").wire().await;

        visitor.send(UPGRADE).await;
        let mut refusing = wires.next().await;
        refusing.head().await;
        refusing
            .send(format!(
                "HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\nnone"
            ))
            .await;
        let head = visitor.head().await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{head}"
        );
        assert_eq!(visitor.bytes(4).await, b"none");

        // The visitor's connection goes on, the upstream's does not.
        assert_eq!(refusing.rest().await, b"");
        visitor
            .send("GET /next HTTP/1.1\r\nhost: blog.localhost\r\n\r\n")
            .await;
        let mut next = wires.next().await;
        assert!(next.head().await.starts_with("GET /next HTTP/1.1\r\n"));
        next.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(visitor.head().await.starts_with("HTTP/1.1 204 "));
    }
}

on_each_carrier!(a_switch_that_nobody_asked_for_is_not_passed_on);
async fn a_switch_that_nobody_asked_for_is_not_passed_on(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let visitor = lab.visitor("blog");

    let switch = async {
        let mut wire = wires.next().await;
        wire.head().await;
        wire.send(SWITCHED).await;
        wire.rest().await
    };
    let (reply, rest) = join!(visitor.get("/"), switch);

    assert_eq!(
        (reply.status, reply.header("x-qtunnel-error")),
        (502, "upstream_invalid")
    );
    assert_eq!(rest, b"");
}

on_each_carrier!(a_visitor_that_leaves_ends_the_upgraded_stream);
async fn a_visitor_that_leaves_ends_the_upgraded_stream(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;
    visitor.send(UPGRADE).await;
    let mut upgraded = wires.next().await;
    upgraded.head().await;
    upgraded.send(SWITCHED).await;
    visitor.head().await;

    drop(visitor);

    assert_eq!(upgraded.rest().await, b"");
}

on_each_carrier!(http2_visitors_reach_websockets_by_extended_connect);
async fn http2_visitors_reach_websockets_by_extended_connect(carrier: Carrier) {
    let lab = Lab::public().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let visitor = lab.http2("blog").await;
    // The edge's SETTINGS, which permit it, have arrived with the first answer.
    round_trip(&lab.visitor("blog"), &mut wires).await;
    visitor.get("/_qtunnel/none").await;

    let upstream = async {
        let mut upgraded = wires.next().await;
        let head = upgraded.head().await;
        upgraded.send([SWITCHED, "eager"].concat()).await;
        (upgraded, head)
    };
    let (response, (mut upgraded, head)) = join!(
        visitor.begin(connect(&visitor), Empty::<Bytes>::new()),
        upstream
    );
    let response = response.unwrap();
    assert!(head.starts_with("GET /socket HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
    assert!(head.contains("\r\nsec-websocket-key: "), "{head}");
    assert!(head.contains("\r\nsec-websocket-version: 13\r\n"), "{head}");
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("sec-websocket-accept"));

    let mut visitor = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut eager = [0; 5];
    within("eager bytes", visitor.read_exact(&mut eager))
        .await
        .unwrap();
    assert_eq!(&eager, b"eager");
    visitor.write_all(b"the last word").await.unwrap();
    visitor.shutdown().await.unwrap();
    assert_eq!(upgraded.rest().await, b"the last word");
    upgraded.send("an answer").await;
    upgraded.finish().await;
    let mut answer = String::new();
    within("the answer", visitor.read_to_string(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, "an answer");
}

on_each_carrier!(an_upgrade_refused_over_http2_is_never_taken_for_an_open_websocket);
async fn an_upgrade_refused_over_http2_is_never_taken_for_an_open_websocket(carrier: Carrier) {
    for (upstream_says, visitor_sees) in [("403 Forbidden", 403), ("200 OK", 502)] {
        let lab = Lab::public().await.over(carrier);
        let (upstream, mut wires) = Server::by_hand().await;
        let _agent = lab.agent("blog", &upstream).await;
        let visitor = lab.http2("blog").await;
        visitor.get("/_qtunnel/none").await;

        let upstream = async {
            let mut refusing = wires.next().await;
            refusing.head().await;
            refusing
                .send(format!(
                    "HTTP/1.1 {upstream_says}\r\ncontent-length: 4\r\n\r\nnone"
                ))
                .await;
            refusing.rest().await
        };
        let (response, rest) = join!(
            visitor.begin(connect(&visitor), Empty::<Bytes>::new()),
            upstream
        );

        assert_eq!(collect(response.unwrap()).await.status, visitor_sees);
        assert_eq!(rest, b"");
    }
}

fn connect(visitor: &crate::lab::Http2) -> hyper::http::request::Builder {
    Request::connect(visitor.uri("/socket"))
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
}

/// Let another visitor's request pass the whole way: what was on its way before has arrived since.
async fn round_trip(visitor: &Visitor, wires: &mut Wires) {
    let answer = async {
        let mut wire = wires.next().await;
        wire.head().await;
        wire.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        wire
    };
    let (reply, _wire) = join!(visitor.get("/"), answer);
    assert_eq!(reply.status, 204);
}

const UPGRADE: &str = "GET /socket HTTP/1.1\r\nhost: blog.localhost\r\nconnection: keep-alive, Upgrade\r\n\
     upgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
     sec-websocket-accept: x\r\n\r\n";
