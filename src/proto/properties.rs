//! Property tests over any values and any bytes: round trips, and independence of the pieces in
//! which the network delivers them.

use std::net::SocketAddr;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn an_agents_message_survives(message in agent_message()) {
        let bytes = encode(&message, CONTROL_LIMIT).unwrap();
        prop_assert_eq!(decode::<AgentMessage>(&bytes[4..]).unwrap(), message);
    }

    #[test]
    fn an_edges_message_survives(message in edge_message()) {
        let bytes = encode(&message, CONTROL_LIMIT).unwrap();
        prop_assert_eq!(decode::<EdgeMessage>(&bytes[4..]).unwrap(), message);
    }

    #[test]
    fn a_request_head_survives(head in stream_head()) {
        let bytes = encode(&head, CONTROL_LIMIT).unwrap();
        prop_assert_eq!(decode::<StreamHead>(&bytes[4..]).unwrap(), head);
    }

    #[test]
    fn messages_are_the_same_in_any_pieces(
        messages in vec(edge_message(), 0..4),
        cuts in cuts(),
    ) {
        let bytes: Vec<u8> = messages.iter()
            .flat_map(|message| encode(message, CONTROL_LIMIT).unwrap())
            .collect();

        let (payloads, end) = split(&bytes, &cuts);

        let decoded: Vec<_> = payloads.iter()
            .map(|payload| decode::<EdgeMessage>(payload).unwrap())
            .collect();
        prop_assert_eq!(decoded, messages);
        prop_assert_eq!(end, Ok(Bytes::new()));
    }

    #[test]
    fn an_answer_is_the_same_in_any_pieces(
        heads in vec(response_head(), 1..4),
        data in vec(vec(any::<u8>(), 1..300), 0..5),
        trailing in option::of(fields()),
        cuts in cuts(),
    ) {
        let mut bytes = Vec::new();
        for head in &heads {
            bytes.extend(encode(head, HEAD_LIMIT).unwrap());
        }
        for data in &data {
            bytes.extend(data_header(data.len()));
            bytes.extend(data);
        }
        if let Some(fields) = &trailing {
            bytes.extend(trailers(fields.0.clone()).unwrap());
        }

        let (mut splitter, mut received, mut body) = (Splitter::default(), Vec::new(), None);
        let mut collected = Collected::default();
        for piece in pieces(&bytes, &cuts) {
            if body.is_none() {
                splitter.push(&piece);
                while received.len() < heads.len() && let Some(head) = splitter.next(HEAD_LIMIT).unwrap() {
                    received.push(decode::<ResponseHead>(&head).unwrap());
                }
                if received.len() == heads.len() {
                    body = Some(BodyDecoder::new(std::mem::take(&mut splitter).into_rest()));
                }
            } else if let Some(body) = &mut body {
                body.push(piece);
            }
            if let Some(body) = &mut body {
                collected.take_from(body).unwrap();
            }
        }

        prop_assert_eq!(received, heads);
        prop_assert_eq!(collected.data, data.concat());
        prop_assert_eq!(collected.trailers, trailing.map(|fields| fields.0));
        prop_assert_eq!(body.unwrap().finish(), Ok(()));
    }

    #[test]
    fn any_bytes_are_the_same_messages_in_any_pieces(bytes in mostly_small(), cuts in cuts()) {
        prop_assert_eq!(split(&bytes, &cuts), split(&bytes, &[]));
    }

    #[test]
    fn any_bytes_are_the_same_body_in_any_pieces(bytes in mostly_small(), cuts in cuts()) {
        prop_assert_eq!(collect(&bytes, &cuts), collect(&bytes, &[]));
    }
}

/// Split bytes into payloads, and return what is left or the error.
fn split(bytes: &[u8], cuts: &[u16]) -> (Vec<Bytes>, Result<Bytes, WireError>) {
    let (mut splitter, mut payloads) = (Splitter::default(), Vec::new());
    for piece in pieces(bytes, cuts) {
        splitter.push(&piece);
        loop {
            match splitter.next(CONTROL_LIMIT) {
                Ok(Some(payload)) => payloads.push(payload),
                Ok(None) => break,
                Err(err) => return (payloads, Err(err)),
            }
        }
    }
    (payloads, Ok(splitter.into_rest()))
}

/// Decode a body, and return how it ends.
fn collect(bytes: &[u8], cuts: &[u16]) -> (Collected, Result<(), WireError>) {
    let (mut decoder, mut collected) = (BodyDecoder::new(Bytes::new()), Collected::default());
    for piece in pieces(bytes, cuts) {
        decoder.push(piece);
        if let Err(err) = collected.take_from(&mut decoder) {
            return (collected, Err(err));
        }
    }
    (collected, decoder.finish())
}

#[derive(Debug, Default, PartialEq)]
struct Collected {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Collected {
    fn take_from(&mut self, decoder: &mut BodyDecoder) -> Result<(), WireError> {
        while let Some(frame) = decoder.next_frame()? {
            match frame {
                Frame::Data(data) => {
                    assert!(!data.is_empty());
                    self.data.extend(data);
                }
                Frame::Trailers(fields) => assert!(self.trailers.replace(fields).is_none()),
            }
        }
        Ok(())
    }
}

/// Cut bytes at these places, each taken modulo what is left. The pieces are never empty.
fn pieces(bytes: &[u8], cuts: &[u16]) -> Vec<Bytes> {
    let (mut rest, mut pieces) = (Bytes::copy_from_slice(bytes), Vec::new());
    for cut in cuts {
        if rest.len() > 1 {
            pieces.push(rest.split_to(1 + usize::from(*cut) % (rest.len() - 1)));
        }
    }
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

/// Cut sizes, small ones among large ones, so that integers and prefixes are cut too.
fn cuts() -> impl Strategy<Value = Vec<u16>> {
    vec(prop_oneof![0u16..8, any::<u16>()], 0..40)
}

/// Bytes that are often lengths of what follows.
fn mostly_small() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![4 => 0u8..6, 1 => any::<u8>()], 0..200)
}

fn agent_message() -> impl Strategy<Value = AgentMessage> {
    let hello = (
        ".{0,20}",
        any::<[u8; 16]>(),
        any::<(u64, u64, u64)>(),
        claim_mode(),
        ".{0,20}",
        vec(tunnel_request(), 0..4),
        vec(lost_session(), 0..3),
    )
        .prop_map(
            |(token, agent, (run, epoch, features), claim, software, tunnels, lost)| {
                AgentMessage::Hello(Hello {
                    token: Secret::new(token),
                    agent: AgentId(agent),
                    run: RunId(run),
                    epoch,
                    claim,
                    software: software.into(),
                    tunnels,
                    lost,
                    features: Features(features),
                })
            },
        );
    prop_oneof![
        hello,
        tunnel_request().prop_map(AgentMessage::Open),
        any::<u32>().prop_map(AgentMessage::Close),
        any::<u64>().prop_map(|deadline_ms| AgentMessage::Draining { deadline_ms }),
        window().prop_map(AgentMessage::Window),
        Just(AgentMessage::Ping),
    ]
}

fn claim_mode() -> impl Strategy<Value = ClaimMode> {
    prop_oneof![
        Just(ClaimMode::Own),
        Just(ClaimMode::Superseded),
        Just(ClaimMode::TakeOver),
    ]
}

fn window() -> impl Strategy<Value = Window> {
    any::<(u64, u64)>().prop_map(|(stream, limit)| Window { stream, limit })
}

fn lost_session() -> impl Strategy<Value = LostSession> {
    let fields = (any::<u64>(), any::<u64>(), vec(any::<u64>(), 0..5));
    fields.prop_map(|(epoch, accepted, unread)| LostSession {
        epoch,
        accepted,
        unread,
    })
}

fn edge_message() -> impl Strategy<Value = EdgeMessage> {
    let welcome = (
        any::<(u64, u64)>(),
        ".{0,20}",
        vec(tunnel_grant(), 0..4),
        any::<(u32, u32)>(),
    )
        .prop_map(|((session, features), software, tunnels, limits)| {
            EdgeMessage::Welcome(Welcome {
                session,
                software: software.into(),
                tunnels,
                limits: Limits {
                    tunnels: limits.0,
                    streams: limits.1,
                },
                features: Features(features),
            })
        });
    prop_oneof![
        welcome,
        window().prop_map(EdgeMessage::Window),
        Just(EdgeMessage::Ping),
        refused().prop_map(EdgeMessage::Refused),
        tunnel_grant().prop_map(EdgeMessage::Opened),
        (any::<u32>(), refused())
            .prop_map(|(tunnel, refused)| EdgeMessage::NotOpened { tunnel, refused }),
        any::<u64>().prop_map(|deadline_ms| EdgeMessage::Draining { deadline_ms }),
        text().prop_map(EdgeMessage::Notice),
        any::<u64>().prop_map(|deadline_ms| EdgeMessage::Moving { deadline_ms }),
    ]
}

fn text() -> impl Strategy<Value = Text> {
    ".{0,40}".prop_map(Text::from)
}

fn refused() -> impl Strategy<Value = Refused> {
    refusal().prop_map(Refused::from)
}

fn refusal() -> impl Strategy<Value = Refusal> {
    let texts = || (text(), text());
    prop_oneof![
        Just(Refusal::Unauthorized),
        (texts(), any::<bool>()).prop_map(|((name, holder), may_take_over)| Refusal::NameTaken {
            name,
            holder,
            may_take_over,
        }),
        texts().prop_map(|(name, reason)| Refusal::NameInvalid { name, reason }),
        any::<u32>().prop_map(|limit| Refusal::TooManyTunnels { limit }),
        text().prop_map(|reason| Refusal::Busy { reason }),
        Just(Refusal::Unsupported),
    ]
}

fn tunnel_request() -> impl Strategy<Value = TunnelRequest> {
    (any::<u32>(), text(), vec(".{0,20}", 0..3)).prop_map(|(tunnel, name, upgrades)| {
        TunnelRequest {
            tunnel,
            address: Address::Name(name).into(),
            policy: Policy { upgrades },
        }
    })
}

fn tunnel_grant() -> impl Strategy<Value = TunnelGrant> {
    (any::<u32>(), text(), vec(text(), 0..3)).prop_map(|(tunnel, name, urls)| TunnelGrant {
        tunnel,
        address: Address::Name(name).into(),
        urls,
    })
}

fn stream_head() -> impl Strategy<Value = StreamHead> {
    let scheme = prop_oneof![Just(Scheme::Http), Just(Scheme::Https)];
    let version = prop_oneof![
        Just(HttpVersion::Http10),
        Just(HttpVersion::Http11),
        Just(HttpVersion::Http2),
    ];
    let method = "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}";
    (
        (any::<u32>(), visitor(), scheme, version),
        (method, ".{0,40}", option::of(".{0,20}"), body_length()),
        (any::<u32>(), fields()),
    )
        .prop_map(
            |(
                (tunnel, visitor, scheme, version),
                (method, target, upgrade, body),
                (window, fields),
            )| {
                StreamHead::Http(RequestHead {
                    tunnel,
                    visitor,
                    scheme,
                    version,
                    method: Method::from_bytes(method.as_bytes()).unwrap(),
                    target,
                    upgrade,
                    body,
                    window,
                    fields,
                })
            },
        )
}

fn response_head() -> impl Strategy<Value = ResponseHead> {
    let status = || (100u16..1000).prop_map(|code| StatusCode::from_u16(code).unwrap());
    let failure = prop_oneof![
        Just(Failure::NoSuchTunnel),
        Just(Failure::UpstreamUnreachable),
        Just(Failure::UpstreamTimeout),
        Just(Failure::UpstreamInvalid),
        Just(Failure::Busy),
        Just(Failure::UpstreamNotHttp),
        Just(Failure::UpstreamHeadTooLarge),
        Just(Failure::UpstreamHeadInvalid),
        Just(Failure::LoopDetected),
    ];
    let reason = option::of(vec(any::<u8>(), 0..20));
    prop_oneof![
        (status(), fields())
            .prop_map(|(status, fields)| ResponseHead::Informational { status, fields }),
        (status(), reason, body_length(), fields()).prop_map(|(status, reason, body, fields)| {
            ResponseHead::Final {
                status,
                reason,
                body,
                fields,
            }
        }),
        failure.prop_map(|failure: Failure| ResponseHead::Failed(failure.into())),
    ]
}

/// Remove an IPv6 address's flow label and scope, which the wire does not carry.
fn visitor() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        any::<([u8; 4], u16)>().prop_map(SocketAddr::from),
        any::<([u8; 16], u16)>().prop_map(SocketAddr::from),
    ]
}

fn body_length() -> impl Strategy<Value = BodyLength> {
    prop_oneof![
        Just(BodyLength::Empty),
        any::<u64>().prop_map(BodyLength::Known),
        Just(BodyLength::Unknown),
    ]
}

fn fields() -> impl Strategy<Value = Fields> {
    // Few letters, so that names repeat.
    let name = prop_oneof!["[ab]", "[a-z0-9-]{1,20}"];
    let byte = prop_oneof![Just(b'\t'), b' '..0x7f, 0x80u8..];
    let value = vec(byte, 0..40);
    vec((name, value), 0..8).prop_map(|list| {
        Fields(HeaderMap::from_iter(list.into_iter().map(
            |(name, value)| {
                (
                    HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    HeaderValue::from_bytes(&value).unwrap(),
                )
            },
        )))
    })
}
