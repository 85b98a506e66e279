//! Heads of requests and responses.

use ::http::{Method, StatusCode};

use super::{fields, golden};
use crate::proto::*;

#[test]
fn request_heads() {
    golden(
        StreamHead::Http(RequestHead {
            tunnel: 1,
            visitor: "192.0.2.1:443".parse().unwrap(),
            scheme: Scheme::Https,
            version: HttpVersion::Http2,
            method: Method::GET,
            target: "/a?b".into(),
            upgrade: None,
            body: BodyLength::Empty,
            window: 32_768,
            fields: fields(&[("host", b"b.c"), ("x", b"\xff"), ("x", b"")]),
        }),
        &[
            &[0],             // Http
            &[1],             // tunnel
            &[0],             // visitor: IPv4
            &[192, 0, 2, 1],  //   address
            &[0xbb, 3],       //   port
            &[1],             // scheme: Https
            &[2],             // version: Http2
            b"\x03GET",       // method
            b"\x04/a?b",      // target
            &[0],             // upgrade: none
            &[0],             // body: Empty
            &[0x80, 0x80, 2], // window: 2 << 14
            &[3],             // fields: three
            b"\x04host\x03b.c",
            b"\x01x\x01\xff", // a value is bytes
            b"\x01x\x00",     // a repeat keeps its place
        ],
    );
    golden(
        StreamHead::Http(RequestHead {
            tunnel: 0,
            visitor: "[2001:db8::1]:1".parse().unwrap(),
            scheme: Scheme::Http,
            version: HttpVersion::Http11,
            method: Method::from_bytes(b"patch").unwrap(),
            target: "*".into(),
            upgrade: Some("websocket".into()),
            body: BodyLength::Known(300),
            window: 300,
            fields: Fields::default(),
        }),
        &[
            &[0],                               // Http
            &[0],                               // tunnel
            &[1],                               // visitor: IPv6
            &[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0], //   address, first half
            &[0, 0, 0, 0, 0, 0, 0, 1],          //   second half
            &[1],                               //   port
            &[0],                               // scheme: Http
            &[1],                               // version: Http11
            b"\x05patch",                       // method, in its own letter case
            b"\x01*",                           // target
            b"\x01\x09websocket",               // upgrade
            &[1, 0xac, 2],                      // body: Known(300)
            &[0xac, 2],                         // window
            &[0],                               // fields: none
        ],
    );
}

#[test]
fn response_heads() {
    golden(
        ResponseHead::Informational {
            status: StatusCode::from_u16(103).unwrap(),
            fields: fields(&[("link", b"</a>")]),
        },
        &[
            &[0],   // Informational
            &[103], // status
            &[1],   // fields: one
            b"\x04link\x04</a>",
        ],
    );
    golden(
        ResponseHead::Final {
            status: StatusCode::OK,
            reason: Some(b"Fine\xff".to_vec()),
            body: BodyLength::Unknown,
            fields: Fields::default(),
        },
        &[
            &[1],                // Final
            &[0xc8, 1],          // status
            b"\x01\x05Fine\xff", // reason
            &[2],                // body: Unknown
            &[0],                // fields: none
        ],
    );
    let failures = [
        Failure::NoSuchTunnel,
        Failure::UpstreamUnreachable,
        Failure::UpstreamTimeout,
        Failure::UpstreamInvalid,
        Failure::Busy,
        Failure::UpstreamNotHttp,
        Failure::UpstreamHeadTooLarge,
        Failure::UpstreamHeadInvalid,
        Failure::LoopDetected,
    ];
    for (code, failure) in (0..).zip(failures) {
        golden(ResponseHead::Failed(failure.into()), &[&[2], &[1, code]]);
    }
}
