//! An agent that lies to the edge: its visitors get an error or a visible truncation, and nobody else notices.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use qtunnel::proto::{
    self, Address, AgentMessage, BodyLength, EdgeMessage, Fields, HEAD_LIMIT, INFORMATIONAL_LIMIT,
    LostSession, Policy, REASON_LIMIT, ResponseHead, TunnelRequest, Window, data_header,
};
use quinn::{Connection, RecvStream, SendStream, WriteError};

use crate::lab::edge_process::EdgeProcess;
use crate::lab::fake_edge::close;
use crate::lab::peer::{ALPN, dial, flood, greeting, hear, say};
use crate::lab::{Lab, Server, forge, within};

const CLOSE_PROTOCOL: u64 = 1;
const RESET_PROTOCOL: u32 = 2;

/// An agent in the test's own hands, which was welcomed.
struct Liar {
    connection: Connection,
    send: SendStream,
    /// Kept, as an agent does.
    _receive: RecvStream,
}

impl Liar {
    async fn of(lab: &Lab, name: &str) -> Self {
        Self::on(lab.dial(&ALPN).await, name).await
    }

    async fn on(connection: Connection, name: &str) -> Self {
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        say(&mut send, &greeting(&[name])).await;
        let welcome = hear(&mut receive).await;
        assert!(matches!(welcome, EdgeMessage::Welcome(_)), "{welcome:?}");
        Self {
            connection,
            send,
            _receive: receive,
        }
    }

    /// Send a message, as far as the edge takes it.
    async fn say(&mut self, message: &AgentMessage) {
        let bytes = proto::encode(message, proto::CONTROL_LIMIT).unwrap();
        let _ = within("room on the control stream", self.send.write_chunk(bytes)).await;
    }

    /// Wait for a visitor's request, and answer with these bytes and an end.
    async fn answer(&self, bytes: impl Into<Bytes>) -> Option<u32> {
        let (mut send, _receive) = within("a request", self.connection.accept_bi())
            .await
            .unwrap();
        let sent = within("room for the answer", send.write_chunk(bytes.into())).await;
        if let Err(WriteError::Stopped(code)) = sent {
            return u32::try_from(code.into_inner()).ok();
        }
        let _ = send.finish();
        let stopped = within("the edge's word on it", send.stopped()).await;
        stopped
            .ok()
            .flatten()
            .and_then(|code| u32::try_from(code.into_inner()).ok())
    }
}

fn head(head: &ResponseHead) -> Vec<u8> {
    proto::encode(head, HEAD_LIMIT).unwrap().into()
}

fn fields(list: &[(&'static str, &'static str)]) -> Fields {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(*name, HeaderValue::from_static(value));
    }
    Fields(map)
}

fn status(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap()
}

fn informational(number: u16) -> Vec<u8> {
    head(&ResponseHead::Informational {
        status: status(number),
        fields: fields(&[("x-secret", "1")]),
    })
}

fn answer(number: u16, body: BodyLength, list: &[(&'static str, &'static str)]) -> Vec<u8> {
    head(&ResponseHead::Final {
        status: status(number),
        reason: None,
        body,
        fields: fields(list),
    })
}

fn reason(reason: &[u8]) -> Vec<u8> {
    head(&ResponseHead::Final {
        status: StatusCode::OK,
        reason: Some(reason.into()),
        body: BodyLength::Empty,
        fields: fields(&[]),
    })
}

fn data(data: &[u8]) -> Vec<u8> {
    [&data_header(data.len())[..], data].concat()
}

#[tokio::test]
async fn heads_that_no_agent_may_send_reach_no_visitor() {
    let ok = || answer(200, BodyLength::Empty, &[("x-secret", "1")]);
    let lies: Vec<(&str, Vec<u8>)> = vec![
        ("informational 200", [informational(200), ok()].concat()),
        ("informational 101", [informational(101), ok()].concat()),
        ("informational 999", [informational(999), ok()].concat()),
        ("a final 100", answer(100, BodyLength::Empty, &[])),
        ("a final 103", answer(103, BodyLength::Empty, &[])),
        ("a status of 99", vec![3, 0, 99, 0]),
        ("a status of 1000", vec![4, 0, 0xe8, 0x07, 0]),
        ("204 with a body", answer(204, BodyLength::Known(5), &[])),
        ("304 with a body", answer(304, BodyLength::Unknown, &[])),
        (
            "101 unasked",
            answer(101, BodyLength::Empty, &[("upgrade", "x")]),
        ),
        ("101 with a body", answer(101, BodyLength::Known(5), &[])),
        ("2^62 bytes", answer(200, BodyLength::Known(1 << 62), &[])),
        ("a second line", reason(b"OK\r\nx-secret: 1")),
        ("a long reason", reason(&[b'a'; REASON_LIMIT + 1])),
        ("a field's name", vec![8, 0, 103, 1, 2, b':', b'a', 1, b'v']),
        ("a field's value", vec![7, 0, 103, 1, 1, b'x', 1, b'\n']),
        ("no head", vec![0xff; 64]),
        (
            "1xx without end",
            informational(103).repeat(INFORMATIONAL_LIMIT + 1),
        ),
    ];
    for lies in lies.chunks(8) {
        let lab = Lab::start().await;
        let liar = Liar::of(&lab, "blog").await;
        for (what, bytes) in lies {
            let visitor = lab.visitor("blog");

            let request = "GET / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: close\r\n\r\n";
            let (got, _) = tokio::join!(visitor.raw(request), liar.answer(bytes.clone()));

            let got = String::from_utf8_lossy(&got).into_owned();
            let last = got.rfind("HTTP/1.1 ").map(|at| &got[at..]);
            assert!(
                last.is_some_and(|last| last.starts_with("HTTP/1.1 502 ")),
                "{what}: {got}"
            );
            assert!(
                !got.contains("x-secret") || what.contains("1xx"),
                "{what}: {got}"
            );
        }
        let visitor = lab.visitor("blog");
        let (got, _) = tokio::join!(visitor.get("/"), liar.answer(ok()));
        assert_eq!(got.status, 200);
    }
}

#[tokio::test]
async fn bodies_that_are_not_what_was_announced_are_cut_visibly() {
    for (what, body, sent) in [
        ("more", BodyLength::Known(5), data(b"123456")),
        ("less", BodyLength::Known(5), data(b"1234")),
        ("after trailers", BodyLength::Unknown, {
            let trailers = proto::trailers(HeaderMap::new()).unwrap();
            [&data(b"1")[..], &trailers, &data(b"2")].concat()
        }),
    ] {
        let lab = Lab::start().await;
        let liar = Liar::of(&lab, "blog").await;
        let mut visitor = lab.visitor("blog").wire().await;
        visitor
            .send("GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n")
            .await;
        let answer = [answer(200, body, &[]), sent.clone()].concat();

        let (got, _) = tokio::join!(visitor.rest(), liar.answer(answer));
        let body_at = got.windows(4).position(|at| at == b"\r\n\r\n");
        let got = body_at.map_or(&[][..], |at| &got[at + 4..]);

        let whole = match body {
            BodyLength::Known(length) => what == "less" && got.len() as u64 >= length,
            _ => got.ends_with(b"0\r\n\r\n"),
        };
        assert!(
            !whole && got.len() < sent.len() + 64,
            "{what}: {}",
            got.len()
        );
    }
}

#[tokio::test]
async fn an_agent_that_sent_more_than_its_window_is_caught_when_the_visitor_reads_on() {
    let lab = Lab::with(|edge| {
        edge.limits.buffer = 1 << 20;
        edge.limits.session_buffer = 1 << 20;
    })
    .await;
    let liar = Liar::of(&lab, "blog").await;
    let mut visitor = lab.visitor("blog").wire().await;
    visitor
        .send("GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n")
        .await;
    let (mut send, _receive) = within("a request", liar.connection.accept_bi())
        .await
        .unwrap();
    let answer = answer(200, BodyLength::Unknown, &[]);
    send.write_all(&answer).await.unwrap();

    flood(&mut send).await;
    let got = visitor.rest().await;

    let stopped = within("the edge's word on it", send.stopped()).await;
    assert_eq!(stopped.unwrap(), Some(RESET_PROTOCOL.into()));
    assert!(!got.ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn data_behind_an_answer_without_a_body_reaches_no_visitor() {
    for (method, number) in [("GET", 204), ("GET", 304), ("HEAD", 200), ("GET", 200)] {
        let lab = Lab::start().await;
        let liar = Liar::of(&lab, "blog").await;
        let request =
            format!("{method} / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: close\r\n\r\n");
        let smuggled = data(b"HTTP/1.1 200 OK\r\n\r\nsmuggled");
        let bytes = [answer(number, BodyLength::Empty, &[]), smuggled].concat();

        let visitor = lab.visitor("blog");
        let (got, _) = tokio::join!(visitor.raw(request), liar.answer(bytes));

        let got = String::from_utf8_lossy(&got).into_owned();
        assert!(got.starts_with(&format!("HTTP/1.1 {number} ")), "{got}");
        assert!(!got.contains("smuggled"), "{got}");
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body_and_one_length_or_none() {
    let lab = Lab::start().await;
    let liar = Liar::of(&lab, "blog").await;
    let request = "HEAD / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: close\r\n\r\n";
    for (body, lengths, expected) in [
        (BodyLength::Empty, &[("content-length", "5")][..], Some("5")),
        (
            BodyLength::Empty,
            &[("content-length", "5"), ("content-length", "6")],
            None,
        ),
        (BodyLength::Empty, &[("content-length", "5, 6")], None),
        (BodyLength::Empty, &[("content-length", "x")], None),
    ] {
        let visitor = lab.visitor("blog");
        let (got, _) = tokio::join!(
            visitor.raw(request),
            liar.answer(answer(200, body, lengths))
        );

        let got = String::from_utf8_lossy(&got).into_owned();
        let found: Vec<_> = got
            .lines()
            .filter_map(|line| line.strip_prefix("content-length: "))
            .collect();
        assert_eq!(
            found,
            expected.into_iter().collect::<Vec<_>>(),
            "{lengths:?}: {got}"
        );
    }
    let bytes = [answer(200, BodyLength::Known(5), &[]), data(b"12345")].concat();
    let visitor = lab.visitor("blog");
    let (got, _) = tokio::join!(visitor.raw(request), liar.answer(bytes));
    assert!(
        got.starts_with(b"HTTP/1.1 502 "),
        "{}",
        String::from_utf8_lossy(&got)
    );
}

#[tokio::test]
async fn fields_that_frame_a_message_or_concern_one_hop_are_not_the_agents_to_send() {
    let lab = Lab::start().await;
    let liar = Liar::of(&lab, "blog").await;
    let list = [
        ("connection", "x-secret, keep-alive"),
        ("x-secret", "1"),
        ("transfer-encoding", "chunked"),
        ("content-length", "99"),
        ("keep-alive", "timeout=99"),
        ("upgrade", "h2c"),
        ("trailer", "set-cookie, x-late"),
    ];
    let mut trailing = HeaderMap::new();
    for (name, value) in [
        ("set-cookie", "a=1"),
        ("content-length", "9"),
        ("x-late", "1"),
    ] {
        trailing.insert(name, HeaderValue::from_static(value));
    }
    let bytes = [
        answer(200, BodyLength::Unknown, &list),
        data(b"hello"),
        proto::trailers(trailing).unwrap().into(),
    ]
    .concat();
    let request =
        "GET / HTTP/1.1\r\nhost: blog.localhost\r\nte: trailers\r\nconnection: close, te\r\n\r\n";

    let visitor = lab.visitor("blog");
    let (got, _) = tokio::join!(visitor.raw(request), liar.answer(bytes));

    let got = String::from_utf8_lossy(&got).into_owned();
    for absent in ["x-secret", "99", "h2c", "set-cookie: ", "content-length"] {
        assert!(!got.contains(absent), "{absent}: {got}");
    }
    assert!(got.contains("x-late: 1"), "{got}");
    assert_eq!(got.matches("transfer-encoding").count(), 1, "{got}");
}

#[tokio::test]
async fn an_agent_that_breaks_the_protocol_again_and_again_loses_the_session() {
    let lab = Lab::start().await;
    let liar = Liar::of(&lab, "blog").await;

    for _ in 0..16 {
        let visitor = lab.visitor("blog");
        let (got, _) = tokio::join!(
            visitor.get("/"),
            liar.answer(answer(204, BodyLength::Known(5), &[]))
        );
        assert_eq!(got.status, 502);
    }

    assert_eq!(close(&liar.connection).await.0, CLOSE_PROTOCOL);
}

#[tokio::test]
async fn messages_without_end_close_the_session_and_nobody_elses() {
    let lab = Lab::start().await;
    let upstream = Server::text("fine").await;
    let _honest = lab.agent("shop", &upstream).await;
    let window = |stream| {
        let limit = u64::MAX;
        AgentMessage::Window(Window { stream, limit })
    };
    let open = AgentMessage::Open(TunnelRequest {
        tunnel: 0,
        address: Address::Name("shop".into()).into(),
        policy: Policy::default(),
    });
    for (at, (what, message)) in [
        ("windows", window(0)),
        ("windows of no stream", window(1 << 50)),
        ("openings", open),
        ("shuttings", AgentMessage::Close(99)),
        (
            "drainings",
            AgentMessage::Draining {
                deadline_ms: u64::MAX,
            },
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut liar = Liar::of(&lab, &format!("blog{at}")).await;

        for _ in 0..1000 {
            liar.say(&message).await;
        }

        assert_eq!(close(&liar.connection).await.0, CLOSE_PROTOCOL, "{what}");
        assert_eq!(lab.visitor("shop").get("/").await.text(), "fine", "{what}");
    }
}

#[tokio::test]
async fn a_hello_that_cannot_be_true_is_refused() {
    let lost = |unread: Vec<u64>| LostSession {
        epoch: 1,
        accepted: 5,
        unread,
    };
    type Change = Box<dyn Fn(&mut proto::Hello)>;
    let changes: [(&str, Change); 4] = [
        (
            "a number twice",
            Box::new(|hello| {
                hello.tunnels[1].tunnel = hello.tunnels[0].tunnel;
            }),
        ),
        (
            "many lost sessions",
            Box::new(move |hello| hello.lost = vec![lost(Vec::new()); 5]),
        ),
        (
            "many unread streams",
            Box::new(move |hello| hello.lost = vec![lost(vec![1; 129])]),
        ),
        (
            "an unread stream that was not there",
            Box::new(move |hello| hello.lost = vec![lost(vec![5])]),
        ),
    ];
    for (what, change) in changes {
        let lab = Lab::start().await;
        let connection = lab.dial(&ALPN).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        let AgentMessage::Hello(mut hello) = greeting(&["blog", "shop"]) else {
            unreachable!("a greeting is a hello");
        };
        change(&mut hello);

        say(&mut send, &AgentMessage::Hello(hello)).await;

        assert_eq!(close(&connection).await.0, CLOSE_PROTOCOL, "{what}");
    }
}

/// A colour, a new line, a title, C1 and a change of direction.
const EVIL: &[u8] = b"\x1b[31m\r\nINFO forged\x07\xc2\x9b\xe2\x80\xae";
const PLACE: &str = "abcdefghijklmnopqrstuvwx";

#[tokio::test]
async fn what_an_agent_says_reaches_no_log_raw() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let connection = dial(edge.quic, &edge.ca(), &ALPN).await;
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let AgentMessage::Hello(mut hello) = greeting(&["blog"]) else {
        unreachable!("a greeting is a hello");
    };
    hello.software = PLACE.into();
    let hello = proto::encode(&AgentMessage::Hello(hello), proto::HELLO_LIMIT).unwrap();

    send.write_chunk(forge(hello, PLACE, EVIL)).await.unwrap();
    assert!(matches!(hear(&mut receive).await, EdgeMessage::Welcome(_)));
    let came = edge.process.line("agent connected").await;
    connection.close(99u32.into(), EVIL);
    let left = edge.process.line("agent disconnected").await;

    let refused = dial(edge.quic, &edge.ca(), &ALPN).await;
    let (mut send, mut receive) = refused.open_bi().await.unwrap();
    let hello = proto::encode(&greeting(&[PLACE]), proto::HELLO_LIMIT).unwrap();
    send.write_chunk(forge(hello, PLACE, EVIL)).await.unwrap();
    assert!(matches!(hear(&mut receive).await, EdgeMessage::Refused(_)));
    let refused = edge.process.line("agent refused").await;

    for line in [came, left, refused] {
        assert!(line.contains("forged"), "{line}");
    }
    for line in &edge.process.seen {
        let harmful = |c: char| c.is_control() || c == '\u{202e}';
        assert!(!line.contains(harmful), "{line:?}");
        assert!(!line.starts_with("INFO forged"), "{line:?}");
    }
}
