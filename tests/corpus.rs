//! Replays what the fuzz targets start from and have found (`fuzz/corpus`), and keeps the seeds among
//! it up to date with the wire: after a change of it, `UPDATE_CORPUS=1 cargo test --test corpus`.

#[path = "../fuzz/properties.rs"]
mod properties;

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use qtunnel::proto::*;

#[test]
fn control_messages() {
    replay("control", properties::control, &control_seeds());
}

#[test]
fn heads() {
    replay("head", properties::head, &head_seeds());
}

#[test]
fn bodies() {
    replay("body", properties::body, &body_seeds());
}

#[test]
fn packets() {
    replay("datagrams", properties::datagrams, &datagrams_seeds());
}

type Property<E> = fn(&[u8]) -> Result<usize, E>;

/// A file of the corpus, and what it must be: so many messages, or an error.
type Seed<E = WireError> = (&'static str, Vec<u8>, Result<usize, E>);

fn replay<E: Debug + PartialEq>(target: &str, property: Property<E>, seeds: &[Seed<E>]) {
    let corpus = Path::new("fuzz/corpus").join(target);
    for (name, bytes, expected) in seeds {
        let path = corpus.join(name);
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            fs::create_dir_all(&corpus).expect("the source can be written");
            fs::write(&path, bytes).expect("the source can be written");
        }
        let kept = fs::read(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        assert!(
            kept == *bytes,
            "{}: run with UPDATE_CORPUS=1",
            path.display()
        );
        assert_eq!(property(bytes), *expected, "{name}");
    }
    for path in files(&corpus) {
        // What the fuzzer has found need only hold the property.
        let _ = property(&fs::read(path).expect("a file"));
    }
}

fn files(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory");
    entries.map(|entry| entry.expect("an entry").path())
}

fn control_seeds() -> Vec<Seed> {
    let request = |tunnel, name: &str| TunnelRequest {
        tunnel,
        address: Address::Name(name.into()).into(),
        policy: Policy {
            upgrades: vec!["echo".into()],
        },
    };
    let grant = TunnelGrant {
        tunnel: 1,
        address: Address::Name("blog".into()).into(),
        urls: vec!["https://blog.example.com".into()],
    };
    let hello = AgentMessage::Hello(Hello {
        token: Secret::new("token"),
        agent: AgentId([7; 16]),
        run: RunId(1),
        epoch: 1,
        claim: ClaimMode::Own,
        software: "qtunnel/0.1.0".into(),
        tunnels: vec![request(1, "blog"), request(2, "shop")],
        lost: vec![LostSession {
            epoch: 0,
            accepted: 7,
            unread: vec![3, 6],
        }],
        features: Features::ALL,
    });
    let welcome = EdgeMessage::Welcome(Welcome {
        session: 1,
        software: "qtunnel/0.1.0".into(),
        tunnels: vec![grant.clone()],
        limits: Limits {
            tunnels: 100,
            streams: 1000,
        },
        features: Features::ALL,
    });
    let taken = Refusal::NameTaken {
        name: "blog".into(),
        holder: "another agent".into(),
        may_take_over: true,
    };
    let hello = control(&hello);
    let mut later = control(&AgentMessage::Open(request(3, "api")));
    later.extend(control(&AgentMessage::Close(3)));
    later.extend(control(&AgentMessage::Draining {
        deadline_ms: 30_000,
    }));
    let mut answers = control(&EdgeMessage::Opened(grant));
    answers.extend(control(&EdgeMessage::Notice(
        "certificate expires soon".into(),
    )));
    answers.extend(control(&EdgeMessage::NotOpened {
        tunnel: 3,
        refused: taken.clone().into(),
    }));
    vec![
        (
            "cut",
            hello[..hello.len() - 1].into(),
            Err(WireError::Truncated),
        ),
        ("hello", hello, Ok(1)),
        ("welcome", control(&welcome), Ok(1)),
        (
            "refused",
            control(&EdgeMessage::Refused(taken.into())),
            Ok(1),
        ),
        ("later", later, Ok(3)),
        ("answers", answers, Ok(3)),
        ("unknown-kind", vec![2, 99, 0], Ok(1)),
        ("left-over", vec![3, 2, 1, 0], Ok(1)),
        (
            "many-announced",
            // Welcome: session 1, no software, and 2^32 - 1 tunnels of which none is there.
            vec![8, 0, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f],
            Err(WireError::Malformed),
        ),
        (
            "too-long",
            vec![0xff; 8],
            Err(WireError::TooLong {
                length: (1 << 62) - 1,
                limit: CONTROL_LIMIT,
            }),
        ),
    ]
}

fn head_seeds() -> Vec<Seed> {
    let request = |version, method, visitor: &str, upgrade: Option<&str>, body| {
        head(&StreamHead::Http(RequestHead {
            tunnel: 1,
            visitor: visitor.parse().expect("an address"),
            scheme: Scheme::Https,
            version,
            method,
            target: "/a%20b?c=d".into(),
            upgrade: upgrade.map(Into::into),
            body,
            window: 262_144,
            fields: fields(&[("host", b"blog.example.com"), ("cookie", b"a=\xff")]),
        }))
    };
    let early = ResponseHead::Informational {
        status: StatusCode::from_u16(103).expect("a status"),
        fields: fields(&[("link", b"</style.css>; rel=preload")]),
    };
    let answer = |status, reason: Option<&[u8]>, body| {
        head(&ResponseHead::Final {
            status,
            reason: reason.map(Into::into),
            body,
            fields: fields(&[("set-cookie", b"a=1"), ("set-cookie", b"b=2")]),
        })
    };
    let mut hints = head(&early);
    hints.extend(answer(StatusCode::OK, None, BodyLength::Unknown));
    let get = request(
        HttpVersion::Http2,
        Method::GET,
        "192.0.2.1:443",
        None,
        BodyLength::Empty,
    );
    let (post, length) = (Method::POST, BodyLength::Known(5));
    let websocket = Some("websocket");
    vec![
        ("cut", get[..9].into(), Err(WireError::Truncated)),
        ("get", get, Ok(1)),
        (
            "post",
            request(HttpVersion::Http11, post, "[2001:db8::1]:1", None, length),
            Ok(1),
        ),
        (
            "upgrade",
            request(
                HttpVersion::Http11,
                Method::GET,
                "192.0.2.1:1",
                websocket,
                length,
            ),
            Ok(1),
        ),
        (
            "switching",
            answer(
                StatusCode::SWITCHING_PROTOCOLS,
                Some(b"Go"),
                BodyLength::Empty,
            ),
            Ok(1),
        ),
        ("hints", hints, Ok(2)),
        (
            "failed",
            head(&ResponseHead::Failed(Failure::UpstreamTimeout.into())),
            Ok(1),
        ),
        (
            "bad-name",
            vec![8, 0, 103, 1, 2, b':', b'a', 1, b'v'],
            Err(WireError::Malformed),
        ),
        (
            "bad-value",
            vec![7, 0, 103, 1, 1, b'x', 1, b'\n'],
            Err(WireError::Malformed),
        ),
        ("bad-status", vec![3, 0, 99, 0], Err(WireError::Malformed)),
    ]
}

fn body_seeds() -> Vec<Seed> {
    let data = |data: &[u8]| [&data_header(data.len())[..], data].concat();
    let list = trailers(fields(&[("grpc-status", b"0"), ("x", b"\xfe")]).0).expect("short");
    let hello = data(b"hello");
    let long = data(&[b'l'; 300]);
    vec![
        ("empty", Vec::new(), Ok(0)),
        ("data", [&hello[..], &long, &hello].concat(), Ok(3)),
        ("trailers", [&hello[..], &list].concat(), Ok(2)),
        ("only-trailers", list.to_vec(), Ok(1)),
        ("cut", hello[..3].into(), Err(WireError::Truncated)),
        ("cut-length", vec![0x40], Err(WireError::Truncated)),
        ("cut-trailers", list[..7].into(), Err(WireError::Truncated)),
        (
            "after-trailers",
            [&list[..], &hello].concat(),
            Err(WireError::AfterTrailers),
        ),
        ("endless", vec![0xff; 9], Err(WireError::Truncated)),
        ("bad-trailers", vec![0, 1, 1], Err(WireError::Malformed)),
    ]
}

fn control<T: serde::Serialize>(message: &T) -> Vec<u8> {
    encode(message, CONTROL_LIMIT)
        .map(Bytes::into)
        .expect("short")
}

fn head<T: serde::Serialize>(head: &T) -> Vec<u8> {
    encode(head, HEAD_LIMIT).map(Bytes::into).expect("short")
}

fn fields(list: &[(&'static str, &[u8])]) -> Fields {
    Fields(HeaderMap::from_iter(list.iter().map(|(name, value)| {
        let value = HeaderValue::from_bytes(value).expect("a value");
        (HeaderName::from_static(name), value)
    })))
}

fn datagrams_seeds() -> Vec<Seed<DatagramsError>> {
    let long = [vec![0xff, 0xff], vec![7; DATAGRAMS_LIMIT + 1]].concat();
    vec![
        ("one", b"\x00\x06packet".to_vec(), Ok(1)),
        ("three", b"\x00\x04aaaabbbbcc".to_vec(), Ok(3)),
        ("empty", Vec::new(), Err(DatagramsError::Empty)),
        ("header", b"\x00\x04".to_vec(), Err(DatagramsError::Empty)),
        (
            "zero",
            b"\x00\x00abc".to_vec(),
            Err(DatagramsError::SegmentSize),
        ),
        (
            "past-end",
            b"\x00\x04abc".to_vec(),
            Err(DatagramsError::SegmentSize),
        ),
        (
            "tiny",
            [vec![0, 1], vec![7; 65]].concat(),
            Err(DatagramsError::TooManyPackets),
        ),
        ("long", long, Err(DatagramsError::TooLong)),
    ]
}
