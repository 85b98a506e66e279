//! The edge behind proxies that terminate TLS, set up by the recipes of `examples/`: what agents and
//! visitors do passes through them.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, Response};
use qtunnel::{Address, AgentConfig, Carrier, Event, Transport, Upstream};
use tokio::join;

use crate::lab::front::{Front, Fronted};
use crate::lab::head::values;
use crate::lab::process::{Process, succeed};
use crate::lab::{Lab, Running, Server, tools, way, within};

/// Run a test behind each proxy: as `name::nginx`, `name::caddy` and `name::haproxy`.
macro_rules! behind_each_front {
    ($test:ident) => {
        mod $test {
            use crate::lab::front::{Front, Program};

            #[tokio::test]
            async fn nginx() {
                super::$test(Front::of(Program::Nginx)).await;
            }

            #[tokio::test]
            async fn caddy() {
                super::$test(Front::of(Program::Caddy)).await;
            }

            #[tokio::test]
            async fn haproxy() {
                super::$test(Front::of(Program::Haproxy)).await;
            }
        }
    };
}

behind_each_front!(an_agent_finds_the_edge_where_visitors_do);
async fn an_agent_finds_the_edge_where_visitors_do(front: Front) {
    let lab = behind().await;
    let Some(front) = front.start(lab.http).await else {
        return;
    };
    let upstream = Server::echo().await;
    let mut agent = lab
        .agent_with("blog", &upstream, |config| {
            // As with `qtunnel connect --server`: nothing says that only WebSockets get through.
            config.server.host = way::host().into();
            config.server.port = front.addr.port();
            config.transport = Transport::Auto;
            config.websocket = None;
        })
        .await;

    let reply = front.http2("blog").await.get("/a?b").await;

    assert_eq!((reply.status, reply.header("x-target")), (200, "/a?b"));
    let carrier = agent.event(|event| match event {
        Event::Ready { transport, .. } => Some(transport.carrier),
        _ => None,
    });
    assert_eq!(carrier.await, Carrier::WebSocket);
    assert_eq!(agent.urls, ["https://blog.localhost"]);
}

behind_each_front!(upstreams_learn_who_the_visitor_is_and_no_lies);
async fn upstreams_learn_who_the_visitor_is_and_no_lies(front: Front) {
    let lab = behind().await;
    let Some(front) = front.start(lab.http).await else {
        return;
    };
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = connect(&lab, &front, "blog", &upstream).await;
    let visitor = front.http2("blog").await;
    let request = Request::get(visitor.uri("/"))
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-forwarded-proto", "gopher")
        .header("x-forwarded-host", "evil.test")
        .header("forwarded", "for=6.6.6.6");
    let answer = async {
        let mut wire = wires.next().await;
        let head = wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        head
    };

    let (reply, head) = join!(visitor.send(request), answer);

    assert_eq!(reply.status, 204);
    let value = |name: &str| values(&head, name);
    let host = format!("blog.localhost:{}", front.addr.port()).into_bytes();
    assert_eq!(value("x-forwarded-for"), [b"127.0.0.1, 127.0.0.1"]);
    assert_eq!(value("x-forwarded-proto"), [b"https"]);
    assert_eq!(value("x-forwarded-host"), [&host[..]]);
    assert_eq!(value("host"), [&host[..]]);
    let forwarded = String::from_utf8(value("forwarded").concat()).unwrap();
    let host = String::from_utf8(host).unwrap();
    let truth = format!("for=127.0.0.1;proto=https;host=\"{host}\", for=127.0.0.1");
    assert_eq!(forwarded, truth);
    // Rack prefers this field, and of each word in it the last.
    let seen = ["proto", "host"].map(|word| last_of(&forwarded, word));
    assert_eq!(seen, ["https", &*host].map(|said| Some(said.to_owned())));
}

behind_each_front!(each_event_of_a_stream_arrives_before_the_next_is_sent);
async fn each_event_of_a_stream_arrives_before_the_next_is_sent(front: Front) {
    let lab = behind().await;
    let Some(front) = front.start(lab.http).await else {
        return;
    };
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = connect(&lab, &front, "blog", &upstream).await;
    let visitor = front.http2("blog").await;
    for head in [
        "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        "content-type: text/plain\r\ncontent-length: 3\r\n\r\n",
    ] {
        let piece = |byte: &str| match head.contains("chunked") {
            true => format!("1\r\n{byte}\r\n"),
            false => byte.to_owned(),
        };
        let accept = async {
            let mut wire = wires.next().await;
            wire.head().await;
            // nginx keeps the head of an answer over HTTP/2 until there is a first byte.
            let first = piece("1");
            wire.send(format!("HTTP/1.1 200 OK\r\n{head}{first}")).await;
            wire
        };
        let request = Request::get(visitor.uri("/"));
        let (response, mut wire) = join!(visitor.begin(request, Empty::new()), accept);
        let mut response = response.unwrap();

        for (byte, next) in [("1", Some("2")), ("2", Some("3")), ("3", None)] {
            let frame = within("the event", response.frame()).await;
            let data = frame.unwrap().unwrap().into_data().unwrap();
            assert_eq!(data, byte);
            if let Some(next) = next {
                wire.send(piece(next)).await;
            }
        }
        if head.contains("chunked") {
            wire.send("0\r\n\r\n").await;
        }
        let rest = within("the end", response.collect()).await.unwrap();
        assert!(rest.to_bytes().is_empty());
    }
}

behind_each_front!(a_visitor_that_leaves_aborts_the_upstream_request);
async fn a_visitor_that_leaves_aborts_the_upstream_request(front: Front) {
    let lab = behind().await;
    let Some(front) = front.start(lab.http).await else {
        return;
    };
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = connect(&lab, &front, "blog", &upstream).await;
    let visitor = front.http2("blog").await;
    let accept = async {
        let mut wire = wires.next().await;
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            .await;
        wire
    };
    let request = Request::get(visitor.uri("/"));
    let (response, mut wire) = join!(visitor.begin(request, Empty::<Bytes>::new()), accept);
    let mut response = response.unwrap();
    within("a piece", response.frame()).await.unwrap().unwrap();

    drop(response);

    assert_eq!(wire.rest().await, b"");
}

behind_each_front!(large_bodies_pass_both_ways);
async fn large_bodies_pass_both_ways(front: Front) {
    let lab = behind().await;
    let Some(front) = front.start(lab.http).await else {
        return;
    };
    let upstream = Server::http(|request| async {
        let body = request.into_body().collect().await.expect("a whole body");
        Response::new(Full::new(body.to_bytes()))
    })
    .await;
    let _agent = connect(&lab, &front, "blog", &upstream).await;
    let visitor = front.http2("blog").await;
    let body: Bytes = (0..LARGE)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();

    let request = Request::post(visitor.uri("/"));
    let mut response = visitor.deliver(request, body.clone()).await.unwrap();
    let mut back = Vec::new();
    while let Some(frame) = within("more of the body", response.frame()).await {
        back.extend(frame.unwrap().into_data().expect("data"));
    }

    assert!(back == body, "{} bytes came back", back.len());
}

behind_each_front!(a_websocket_client_and_server_understand_each_other);
async fn a_websocket_client_and_server_understand_each_other(front: Front) {
    let Some(python) = tools::python() else {
        return;
    };
    let lab = behind().await;
    let Some(front) = front.start(lab.http).await else {
        return;
    };
    let mut server = Process::spawn(python.script("websocket_server.py"));
    let upstream: Address = format!("127.0.0.1:{}", server.port().await)
        .parse()
        .unwrap();
    let _agent = connect(&lab, &front, "chat", upstream).await;
    let port = front.addr.port().to_string();
    let mut client = python.script("websocket_client.py");
    client
        .arg(format!("wss://chat.localhost:{port}/"))
        .arg(port)
        .arg(&front.ca);

    assert_eq!(succeed(client).await, "all well\n");
    server.line("closed 4002 the client has enough").await;
    server.line("closed 4001 the server has enough").await;
}

/// Read a word of `Forwarded` as Rack 3 does: from all elements together, the last.
fn last_of(forwarded: &str, word: &str) -> Option<String> {
    let pairs = forwarded.split([';', ',']).map(str::trim);
    let mut values = pairs.filter_map(|pair| pair.strip_prefix(word)?.strip_prefix('='));
    values
        .next_back()
        .map(|value| value.trim_matches('"').to_owned())
}

/// Start an edge as the recipes want it.
async fn behind() -> Lab {
    Lab::with(|config| {
        config.https = Vec::new();
        config.quic = None;
        config.public_url = Some("https://localhost".parse().unwrap());
        config.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await
}

/// Connect an agent through a proxy.
async fn connect(lab: &Lab, front: &Fronted, name: &str, to: impl Into<Upstream>) -> Running {
    let set = |config: &mut AgentConfig| {
        config.transport = Transport::Websocket;
        config.websocket = Some(front.websocket());
    };
    lab.agent_with(name, to, set).await
}

/// More than any buffer on the way.
const LARGE: u32 = 16 << 20;
