//! Rejected messages: too long, or malformed.

use ::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use crate::proto::*;

#[test]
fn every_limit_holds_at_the_last_byte() {
    for limit in [HELLO_LIMIT, CONTROL_LIMIT, HEAD_LIMIT, TRAILERS_LIMIT] {
        // What surrounds the token: the kind of message, the token's length in two or three bytes, the agent's
        // identity, and seven bytes of what is zero or empty.
        let around = 1 + if limit < 1 << 14 { 2 } else { 3 } + 16 + 7;
        let hello = |length: usize| {
            AgentMessage::Hello(Hello {
                token: Secret::new("n".repeat(length - around)),
                agent: AgentId([7; 16]),
                run: RunId(0),
                epoch: 0,
                claim: ClaimMode::Own,
                software: "".into(),
                tunnels: Vec::new(),
                lost: Vec::new(),
                features: Features::default(),
            })
        };
        let too_long = WireError::TooLong {
            length: limit + 1,
            limit,
        };

        let longest = encode(&hello(limit), limit).unwrap();
        assert_eq!(longest.len(), 4 + limit);
        assert_eq!(encode(&hello(limit + 1), limit), Err(too_long));

        let mut splitter = Splitter::default();
        splitter.push(&longest);
        let payload = splitter.next(limit).unwrap().unwrap();
        assert_eq!(decode::<AgentMessage>(&payload), Ok(hello(limit)));

        // Refused as soon as the length is here, whatever form it has.
        for prefix in [
            ((limit as u32 + 1) | 0x8000_0000).to_be_bytes().to_vec(),
            ((limit as u64 + 1) | 0xc000_0000_0000_0000)
                .to_be_bytes()
                .to_vec(),
        ] {
            let mut splitter = Splitter::default();
            splitter.push(&prefix);
            assert_eq!(splitter.next(limit), Err(too_long));
        }
    }
}

#[test]
fn trailers_are_refused_past_their_limit_before_they_arrive() {
    let longer = ((TRAILERS_LIMIT as u32 + 1) | 0x8000_0000).to_be_bytes();
    let mut decoder = BodyDecoder::new(Bytes::from([&[0], &longer[..]].concat()));

    let refused = decoder.next_frame();

    assert!(
        matches!(refused, Err(WireError::TooLong { .. })),
        "{refused:?}"
    );
    let value = HeaderValue::from_bytes(&vec![b'v'; TRAILERS_LIMIT]).unwrap();
    let refused = trailers(HeaderMap::from_iter([(
        HeaderName::from_static("x"),
        value,
    )]));
    assert!(
        matches!(refused, Err(WireError::TooLong { .. })),
        "{refused:?}"
    );
}

#[test]
fn invalid_encodings_are_malformed() {
    let message = |bytes: &[u8]| decode_known::<EdgeMessage>(bytes).map(drop);
    let head = |bytes: &[u8]| decode_known::<ResponseHead>(bytes).map(drop);
    let list = |bytes: &[u8]| decode::<Fields>(bytes).map(drop);
    for (what, refused) in [
        ("no bytes", message(b"")),
        ("a text that is not UTF-8", message(b"\x05\x01\xff")),
        ("a status of two digits", head(&[0, 99, 0])),
        ("a status of four digits", head(&[0, 0xe8, 7, 0])),
        ("a name with a space", list(b"\x01\x01 \x00")),
        ("an empty name", list(b"\x01\x00\x00")),
        ("a value with a line feed", list(b"\x01\x01x\x01\n")),
        ("fewer fields than announced", list(b"\x02\x01x\x00")),
    ] {
        assert_eq!(refused, Err(WireError::Malformed), "{what}");
    }
}
