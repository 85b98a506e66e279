//! Which protocols visitors may switch to, and what becomes of those that they may not.

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::ext::Protocol;
use qtunnel::{Address, AgentConfig, Carrier, Upstream};
use tokio::join;

use crate::lab::head::values;
use crate::lab::process::Process;
use crate::lab::visitor::collect;
use crate::lab::{Lab, Server, Wires, tools};

on_each_carrier!(an_upgrade_that_is_not_allowed_is_an_ordinary_request);
async fn an_upgrade_that_is_not_allowed_is_an_ordinary_request(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for fields in [
        "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "connection: upgrade\r\nUpgrade: H2C\r\n",
        "connection: upgrade\r\nupgrade: h2c-14, HTTP/2.0, TLS/1.0\r\n",
        "connection: upgrade\r\nupgrade: echo\r\nupgrade: h2c\r\n",
    ] {
        let (head, answer) = carry(&lab, &mut wires, fields, ORDINARY).await;

        for gone in ["upgrade", "http2-settings", "connection"] {
            assert!(values(head.as_bytes(), gone).is_empty(), "{fields}{head}");
        }
        assert!(answer.starts_with("HTTP/1.1 200 "), "{fields}{answer}");
    }
}

on_each_carrier!(of_a_list_the_upstream_is_asked_for_what_is_allowed);
async fn of_a_list_the_upstream_is_asked_for_what_is_allowed(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let allow = |config: &mut AgentConfig| {
        config.tunnels[0].upgrades.allow("echo").expect("a name");
    };
    let _agent = lab.agent_with("blog", &upstream, allow).await;
    for (asked, sent) in [
        ("websocket, h2c", "websocket"),
        ("h2c, Echo/1, other", "Echo/1"),
        (
            "h2c\r\nupgrade: echo\r\nupgrade: websocket",
            "echo, websocket",
        ),
    ] {
        let fields = format!("connection: upgrade\r\nupgrade: {asked}\r\n");

        let (head, _) = carry(&lab, &mut wires, &fields, ORDINARY).await;

        assert_eq!(
            values(head.as_bytes(), "upgrade"),
            [sent.as_bytes()],
            "{asked}"
        );
    }
}

on_each_carrier!(an_upstream_that_switches_to_something_else_is_refused);
async fn an_upstream_that_switches_to_something_else_is_refused(carrier: Carrier) {
    for answered in [
        "upgrade: h2c\r\n",
        "upgrade: websocket, h2c\r\n",
        "upgrade: echo\r\n",
        "",
    ] {
        let lab = Lab::start().await.over(carrier);
        let (upstream, mut wires) = Server::by_hand().await;
        let _agent = lab.agent("blog", &upstream).await;
        let switched = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n{answered}\r\nbehind it"
        );

        let (_, answer) = carry(&lab, &mut wires, WEBSOCKET, &switched).await;

        assert!(answer.starts_with("HTTP/1.1 502 "), "{answered}{answer}");
        assert!(!answer.contains("behind it"), "{answered}{answer}");
    }
}

on_each_carrier!(over_http2_a_protocol_that_is_not_allowed_is_refused);
/// There the request is nothing without its protocol (RFC 8441 §4).
async fn over_http2_a_protocol_that_is_not_allowed_is_refused(carrier: Carrier) {
    let lab = Lab::public().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let visitor = lab.http2("blog").await;
    // The edge's SETTINGS, which permit extended CONNECT, have arrived with the first answer.
    visitor.get("/_qtunnel/none").await;
    for protocol in ["h2c", "connect-udp", "echo"] {
        let request = Request::connect(visitor.uri("/")).extension(Protocol::from(protocol));

        let response = visitor.begin(request, Empty::<Bytes>::new()).await;

        let reply = collect(response.expect("an answer")).await;
        assert_eq!(reply.status, 501, "{protocol}");
        assert_eq!(reply.header("x-qtunnel-error"), "upgrade_not_allowed");
    }
    assert!(wires.is_empty(), "something reached the upstream");
}

on_each_carrier!(a_server_that_speaks_h2c_is_not_asked_for_it);
/// Hypercorn takes `Upgrade: h2c` even without `HTTP2-Settings`.
async fn a_server_that_speaks_h2c_is_not_asked_for_it(carrier: Carrier) {
    let Some(python) = tools::frameworks() else {
        return;
    };
    let mut server = Process::spawn(python.script("hypercorn_server.py"));
    let address: Address = format!("127.0.0.1:{}", server.port().await)
        .parse()
        .expect("an address");
    let lab = Lab::start().await.over(carrier);
    let _agent = lab.agent("blog", Upstream::from(address)).await;

    let request = "GET /page HTTP/1.1\r\nhost: blog.localhost\r\nconnection: upgrade, http2-settings, close\r\n\
         upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    let answer = lab.visitor("blog").raw(request).await;

    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("1.1 /page"), "{answer}");
}

/// Send fields and an answer through the tunnel, and return what arrived of each at the other end.
async fn carry(lab: &Lab, wires: &mut Wires, fields: &str, response: &str) -> (String, String) {
    let mut visitor = lab.visitor("blog").wire().await;
    visitor
        .send(format!(
            "GET / HTTP/1.1\r\nhost: blog.localhost\r\n{fields}\r\n"
        ))
        .await;
    let answer = async {
        let mut wire = wires.next().await;
        let head = wire.head().await;
        wire.send(response).await;
        wire.finish().await;
        head
    };
    join!(answer, visitor.head())
}

const ORDINARY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

const WEBSOCKET: &str = "connection: upgrade\r\nupgrade: websocket\r\n\
     sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n";
