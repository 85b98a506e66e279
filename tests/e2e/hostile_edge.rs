//! An edge that lies to an agent: nothing of it reaches the upstream or the terminal, and it costs the agent nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Empty};
use qtunnel::proto::{
    Address, AgentMessage, BodyLength, CONTROL_LIMIT, EdgeMessage, FIRST_WINDOW_LIMIT, MIN_WINDOW,
    REQUEST_FIELDS_LIMIT, Refusal, RequestHead, TARGET_LIMIT, TunnelGrant, Window, data_header,
    encode, put_varint,
};
use qtunnel::{Event, Service, Upstream, UpstreamBody};
use quinn::{ReadError, RecvStream, VarInt};
use tokio::sync::{Notify, mpsc};

use crate::lab::fake_edge::{FakeEdge, Greeted, forge, request, welcome};
use crate::lab::peer::flood;
use crate::lab::process::Process;
use crate::lab::{Running, Server, within};

const CLOSE_PROTOCOL: u64 = 1;
const RESET_PROTOCOL: u32 = 2;

/// Connect an agent, welcome it, and send it one head.
async fn told(edge: &mut FakeEdge, upstream: &Server) -> (Running, Greeted) {
    let config = edge.agent_config("blog", upstream);
    tokio::join!(Running::start(config), edge.welcomed())
}

/// Wait for a stream's reset.
async fn reset(receive: &mut RecvStream) -> Option<VarInt> {
    match within("the stream's end", receive.read_to_end(1 << 20)).await {
        Err(quinn::ReadToEndError::Read(ReadError::Reset(code))) => Some(code),
        _ => None,
    }
}

fn get(change: impl FnOnce(&mut RequestHead)) -> RequestHead {
    let mut head = request(Method::GET, "/", &[("host", "blog.example.com")]);
    change(&mut head);
    head
}

fn with(name: &'static str, value: &'static str) -> RequestHead {
    get(|head| {
        let value = http::HeaderValue::from_static(value);
        _ = head.fields.0.append(name, value);
    })
}

fn hostile_heads() -> Vec<(&'static str, RequestHead)> {
    let target = |target: &str| get(|head| head.target = target.into());
    let host = |host: &'static str| request(Method::GET, "/", &[("host", host)]);
    vec![
        ("absolute", target("http://other.example/")),
        ("authority", target("other.example:80")),
        ("empty", target("")),
        ("blank", target("/ HTTP/1.1\r\nx: y\r\n\r\nGET /")),
        ("space", target("/a b")),
        ("fragment", target("/a#b")),
        ("asterisk", target("*")),
        ("long", target(&format!("/{}", "a".repeat(TARGET_LIMIT)))),
        ("connect", get(|head| head.method = Method::CONNECT)),
        ("no host", request(Method::GET, "/", &[])),
        ("two hosts", with("host", "other.example")),
        ("user", host("user@blog.example.com")),
        ("list", host("a.example, b.example")),
        ("path", host("a.example/path")),
        ("connection", with("connection", "x-secret")),
        ("keep-alive", with("keep-alive", "timeout=5")),
        ("proxy", with("proxy-connection", "close")),
        ("coding", with("transfer-encoding", "chunked")),
        ("te", with("te", "gzip")),
        ("upgrade", with("upgrade", "h2c")),
        ("settings", with("http2-settings", "AAMAAABk")),
        ("underscore", with("content_length", "5")),
        ("minus", with("content-length", "-1")),
        (
            "two lengths",
            request(
                Method::POST,
                "/",
                &[
                    ("host", "a"),
                    ("content-length", "5"),
                    ("content-length", "6"),
                ],
            ),
        ),
        (
            "another length",
            get(|head| {
                head.body = BodyLength::Known(5);
                head.fields.0.insert("content-length", 6.into());
            }),
        ),
        (
            "endless",
            get(|head| head.body = BodyLength::Known(u64::MAX)),
        ),
        (
            "many fields",
            get(|head| {
                for at in 0..REQUEST_FIELDS_LIMIT {
                    let name = http::HeaderName::try_from(format!("x-{at}")).unwrap();
                    head.fields.0.insert(name, 1.into());
                }
            }),
        ),
        (
            "protocol",
            get(|head| head.upgrade = Some("x\r\ny: z".into())),
        ),
        ("no protocol", get(|head| head.upgrade = Some("".into()))),
        ("no window", get(|head| head.window = 0)),
        (
            "small window",
            get(|head| head.window = MIN_WINDOW as u32 - 1),
        ),
        (
            "large window",
            get(|head| head.window = FIRST_WINDOW_LIMIT as u32 + 1),
        ),
    ]
}

#[tokio::test]
async fn heads_that_no_edge_may_send_never_reach_the_upstream() {
    let (upstream, mut wires) = Server::by_hand().await;
    // A session bears a few of them.
    for heads in hostile_heads().chunks(8) {
        let mut edge = FakeEdge::start();
        let (_agent, session) = told(&mut edge, &upstream).await;
        for (what, head) in heads {
            let (_send, mut receive) = session.ask(head.clone()).await;

            let code = reset(&mut receive).await;

            assert_eq!(code, Some(RESET_PROTOCOL.into()), "{what}");
            assert!(wires.is_empty(), "{what} reached the upstream");
        }

        let (_send, _receive) = session.ask(get(|_| ())).await;
        let head = wires.next().await.head().await;

        assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
    }
}

#[tokio::test]
async fn an_edge_that_breaks_the_protocol_again_and_again_loses_the_session() {
    let upstream = Server::text("fine").await;
    let mut edge = FakeEdge::start();
    let (_agent, session) = told(&mut edge, &upstream).await;

    for _ in 0..16 {
        let (_send, mut receive) = session.ask(get(|head| head.window = 0)).await;
        reset(&mut receive).await;
    }

    assert_eq!(session.closed().await.0, CLOSE_PROTOCOL);
}

#[tokio::test]
async fn more_or_less_body_than_announced_is_never_a_whole_request() {
    for sent in [6, 4] {
        let (upstream, mut wires) = Server::by_hand().await;
        let mut edge = FakeEdge::start();
        let (_agent, session) = told(&mut edge, &upstream).await;
        let mut head = request(Method::POST, "/", &[("host", "blog.example.com")]);
        head.body = BodyLength::Known(5);
        let (mut send, _receive) = session.ask(head).await;
        let mut wire = wires.next().await;
        wire.head().await;

        let data = Bytes::from(vec![b'x'; sent]);
        let mut frame = [data_header(data.len()), data];
        send.write_all_chunks(&mut frame).await.unwrap();
        let _ = send.finish();

        let got = wire.rest().await;
        assert!(got.len() < 5, "{sent}: {}", got.len());
    }
}

#[tokio::test]
async fn an_edge_that_sent_more_than_its_window_is_caught_when_the_upstream_reads_on() {
    let may_read = Arc::new(Notify::new());
    let reading = may_read.clone();
    let (tell, mut told) = mpsc::unbounded_channel();
    let service = Service::new(move |request: http::Request<UpstreamBody>| {
        let (reading, tell) = (reading.clone(), tell.clone());
        async move {
            reading.notified().await;
            let _ = tell.send(request.into_body().collect().await.is_ok());
            Ok(http::Response::new(
                UpstreamBody::new(Empty::<Bytes>::new()),
            ))
        }
    });
    let mut edge = FakeEdge::start();
    let config = edge.agent_config("blog", Upstream::Service(service));
    let (_agent, session) = tokio::join!(Running::start(config), edge.welcomed());
    let mut head = request(Method::POST, "/", &[("host", "blog.example.com")]);
    head.body = BodyLength::Unknown;
    let (mut send, _receive) = session.ask(head).await;

    flood(&mut send).await;
    may_read.notify_one();

    let is_whole = within("the upstream's word on the body", told.recv()).await;
    assert_eq!(is_whole, Some(false));
    let stopped = within("the agent's word on it", send.stopped()).await;
    assert_eq!(stopped.unwrap(), Some(RESET_PROTOCOL.into()));
}

#[tokio::test]
async fn messages_without_end_close_the_session_and_take_no_memory() {
    let grant = TunnelGrant {
        tunnel: 0,
        address: Address::Name("blog".into()).into(),
        urls: Vec::new(),
    };
    let refusal = Refusal::Unauthorized;
    let window = |stream| Window {
        stream,
        limit: 1 << 40,
    };
    for (what, message, most) in [
        ("windows", EdgeMessage::Window(window(1 << 40)), 100),
        ("windows", EdgeMessage::Window(window(0)), 100),
        ("notices", EdgeMessage::Notice("n".repeat(1000).into()), 100),
        (
            "drainings",
            EdgeMessage::Draining {
                deadline_ms: u64::MAX,
            },
            100,
        ),
        ("opened", EdgeMessage::Opened(grant), 1),
        (
            "not opened",
            EdgeMessage::NotOpened {
                tunnel: 7,
                refused: refusal.clone().into(),
            },
            1,
        ),
        ("refused", EdgeMessage::Refused(refusal.into()), 1),
    ] {
        let upstream = Server::text("fine").await;
        let mut edge = FakeEdge::start();
        let (agent, mut session) = told(&mut edge, &upstream).await;

        for _ in 0..most {
            session.say(&message).await;
        }

        assert_eq!(session.closed().await.0, CLOSE_PROTOCOL, "{what}");
        let notices = agent.count(|event| matches!(event, Event::Notice(_)));
        assert!(notices <= 40, "{what}: {notices}");
    }
}

#[tokio::test]
async fn a_flood_of_long_notices_ends_where_it_begins() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = FakeEdge::start();
    let mut agent = connect(&edge, home.path(), &[]);
    let mut session = edge.welcomed().await;
    agent.line("connected over").await;
    // As long as a message may be, and longer than a text may be.
    let mut payload = vec![5];
    let text = vec![0x1b; CONTROL_LIMIT - 4];
    payload.extend([
        (text.len() % 128) as u8 | 0x80,
        (text.len() / 128 % 128) as u8 | 0x80,
        (text.len() >> 14) as u8,
    ]);
    payload.extend(text);
    let mut message = Vec::new();
    put_varint(payload.len() as u64, &mut message);
    message.extend(payload);

    for _ in 0..400 {
        session.raw(message.clone().into()).await;
    }

    assert_eq!(session.closed().await.0, CLOSE_PROTOCOL);
    let again = edge.greeted().await;
    assert!(
        agent.peak_memory() < 100 << 10,
        "{} KiB",
        agent.peak_memory()
    );
    drop(again);
}

#[tokio::test]
async fn an_edge_that_sends_the_agent_on_and_on_is_not_asked_in_a_tight_loop() {
    let upstream = Server::text("fine").await;
    let mut edge = FakeEdge::start();
    let (_agent, mut session) = told(&mut edge, &upstream).await;
    for _ in 0..10 {
        session.say(&EdgeMessage::Moving { deadline_ms: 0 }).await;
        session = edge.welcomed().await;
    }
    let begun = Instant::now();

    for _ in 0..5 {
        session.say(&EdgeMessage::Moving { deadline_ms: 0 }).await;
        session = edge.welcomed().await;
    }

    assert!(
        begun.elapsed() > Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_welcome_that_does_not_answer_the_hello_is_refused() {
    type Change = fn(&mut qtunnel::proto::Welcome);
    let changes: [(&str, Change); 8] = [
        ("no tunnel", |welcome| welcome.tunnels.clear()),
        ("one more", |welcome| {
            welcome.tunnels.push(welcome.tunnels[0].clone())
        }),
        ("another number", |welcome| welcome.tunnels[0].tunnel = 1),
        ("another name", |welcome| {
            welcome.tunnels[0].address = Address::Name("shop".into()).into()
        }),
        ("a script", |welcome| {
            welcome.tunnels[0].urls = vec!["javascript:alert(1)".into()]
        }),
        ("no host", |welcome| {
            welcome.tunnels[0].urls = vec!["https://".into()]
        }),
        ("a blank", |welcome| {
            welcome.tunnels[0].urls = vec!["https://a b".into()]
        }),
        ("many URLs", |welcome| {
            welcome.tunnels[0].urls = vec!["https://a".into(); 17]
        }),
    ];
    for (what, change) in changes {
        let upstream = Server::text("fine").await;
        let mut edge = FakeEdge::start();
        let mut config = edge.agent_config("blog", &upstream);
        config.exit_on_failure = true;

        let (ended, code) = tokio::join!(qtunnel::Agent::connect(config), async {
            let mut agent = edge.greeted().await;
            let mut welcome = welcome(&agent.hello);
            change(&mut welcome);
            agent.say(&EdgeMessage::Welcome(welcome)).await;
            agent.closed().await.0
        });

        assert_eq!(code, CLOSE_PROTOCOL, "{what}");
        assert!(ended.is_err(), "{what}");
    }
}

#[tokio::test]
async fn an_agent_offers_no_room_for_what_the_protocol_does_not_have() {
    let upstream = Server::text("fine").await;
    let mut edge = FakeEdge::start();
    let (_agent, session) = told(&mut edge, &upstream).await;

    let one_way = tokio::time::timeout(Duration::from_millis(200), session.connection.open_uni());

    assert!(one_way.await.is_err(), "a unidirectional stream");
    assert_eq!(session.connection.max_datagram_size(), None);
}

/// Text that is no text to a terminal: a colour, a new line, a title, C1 and a change of direction.
const EVIL: &[u8] = b"\x1b[31m\r\nINFO forged\x07\xc2\x9b\xe2\x80\xae";
const PLACE: &str = "abcdefghijklmnopqrstuvwx";

fn connect(edge: &FakeEdge, home: &std::path::Path, more: &[&str]) -> Process {
    let (server, pin) = (edge.addr().to_string(), edge.pin().to_string());
    let args = ["connect", "9", "--subdomain", "blog", "--transport", "quic"];
    let args = args.into_iter().chain(["--server", &server, "--pin", &pin]);
    Process::qtunnel(home, args.chain(more.iter().copied()))
}

fn assert_harmless(lines: &[String]) {
    for line in lines {
        let harmful = |c: char| c.is_control() || c == '\u{202e}';
        assert!(!line.contains(harmful), "{line:?}");
        assert!(!line.starts_with("INFO forged"), "{line:?}");
    }
}

#[tokio::test]
async fn what_an_edge_says_reaches_no_terminal_raw() {
    for json in [false, true] {
        for ending in ["close", "refuse"] {
            let home = tempfile::tempdir().unwrap();
            let mut edge = FakeEdge::start();
            let more: &[&str] = match json {
                true => &["--exit-on-failure", "--json"],
                false => &["--exit-on-failure"],
            };
            let mut agent = connect(&edge, home.path(), more);
            let mut session = edge.welcomed().await;
            let notice = EdgeMessage::Notice(PLACE.into());
            session.raw(forge(&notice, PLACE, EVIL)).await;
            agent.line("forged").await;
            session.connection.close(77u32.into(), EVIL);
            let reason = agent.line("code 77").await;
            assert!(reason.contains("forged"), "{reason}");

            let mut session = edge.greeted().await;
            match ending {
                "close" => session.connection.close(78u32.into(), EVIL),
                _ => {
                    let holder = PLACE.into();
                    let name = "blog".into();
                    let taken = Refusal::NameTaken {
                        name,
                        holder,
                        may_take_over: false,
                    };
                    let refused = EdgeMessage::Refused(taken.into());
                    session.raw(forge(&refused, PLACE, EVIL)).await;
                }
            }
            agent.ended().await;

            assert_harmless(&agent.seen);
            assert!(agent.seen.join("\n").matches("forged").count() >= 3);
            if json {
                let of_json = agent.seen.iter().filter(|line| line.starts_with('{'));
                for line in of_json {
                    let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
                    assert!(parsed.is_ok(), "{line}");
                }
            }
        }
    }
}

#[tokio::test]
async fn an_agent_says_hello_with_nothing_that_an_edge_would_refuse() {
    let upstream = Server::text("fine").await;
    let mut edge = FakeEdge::start();

    let (_agent, session) = told(&mut edge, &upstream).await;

    let hello = AgentMessage::Hello(session.hello.clone());
    assert!(encode(&hello, qtunnel::proto::HELLO_LIMIT).is_ok());
    assert!(qtunnel::proto::Check::check(&hello).is_ok());
}
