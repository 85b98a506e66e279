//! The messages of the control stream.

use super::golden;
use crate::proto::*;

#[test]
fn a_length_stands_in_front_in_its_four_byte_form() {
    let message = encode(&AgentMessage::Close(5), CONTROL_LIMIT).unwrap();

    assert_eq!(&message[..], [0x80, 0, 0, 2, /* Close */ 2, /* 5 */ 5]);
}

#[test]
fn hello() {
    golden(
        AgentMessage::Hello(Hello {
            token: Secret::new("s3cret"),
            agent: AgentId([7; 16]),
            run: RunId(130),
            epoch: 300,
            claim: ClaimMode::TakeOver,
            software: "q/1".into(),
            tunnels: vec![tunnel_request()],
            lost: vec![LostSession {
                epoch: 299,
                accepted: 130,
                unread: vec![5, 128],
            }],
            features: Features(3),
        }),
        &[
            &[0],            // Hello
            b"\x06s3cret",   // token
            &[7; 16],        // agent
            &[0x82, 1],      // run: 2 + (1 << 7)
            &[0xac, 2],      // epoch: 0x2c + (2 << 7)
            &[2],            // claim: TakeOver
            b"\x03q/1",      // software
            &[1],            // tunnels: one
            &[1],            // its number
            &[6],            // its address: six bytes
            &[0],            // Name
            b"\x04blog",     // the name
            &[6],            // its policy: six bytes
            b"\x01\x04echo", // upgrades: one
            &[1],            // lost: one
            &[0xab, 2],      // its epoch
            &[0x82, 1],      // accepted
            &[2],            // unread: two
            &[5],            // the first
            &[0x80, 1],      // the second
            &[3],            // features
        ],
    );
}

#[test]
fn later_messages_of_an_agent() {
    golden(
        AgentMessage::Open(tunnel_request()),
        &[
            &[1],            // Open
            &[1],            // tunnel
            &[6],            // address: six bytes
            &[0],            // Name
            b"\x04blog",     // the name
            &[6],            // policy: six bytes
            b"\x01\x04echo", // upgrades: one
        ],
    );
    golden(
        AgentMessage::Close(128),
        &[
            &[2],       // Close
            &[0x80, 1], // tunnel: 0x00 + (1 << 7)
        ],
    );
    golden(
        AgentMessage::Draining {
            deadline_ms: 30_000,
        },
        &[
            &[3],                // Draining
            &[0xb0, 0xea, 0x01], // deadline_ms
        ],
    );
    golden(
        AgentMessage::Window(Window {
            stream: 128,
            limit: 1,
        }),
        &[
            &[4],       // Window
            &[0x80, 1], // stream
            &[1],       // limit
        ],
    );
    golden(AgentMessage::Ping, &[&[5]]);
}

#[test]
fn welcome() {
    golden(
        EdgeMessage::Welcome(Welcome {
            session: 9,
            software: "q/1".into(),
            tunnels: vec![tunnel_grant()],
            limits: Limits {
                tunnels: 100,
                streams: 1000,
            },
            features: Features(300),
        }),
        &[
            &[0],               // Welcome
            &[9],               // session
            b"\x03q/1",         // software
            &[1],               // tunnels: one
            &[1],               // its number
            &[6],               // its address: six bytes
            &[0],               // Name
            b"\x04blog",        // the name
            &[1],               // urls: one
            b"\x0bhttps://b.c", // the URL
            &[3],               // limits: three bytes
            &[100],             // tunnels
            &[0xe8, 7],         // streams
            &[0xac, 2],         // features: 0x2c + (2 << 7)
        ],
    );
}

#[test]
fn refusals() {
    let refused = |reason: Refusal, bytes: &[&[u8]]| {
        let bytes = bytes.concat();
        let is_permanent = reason.is_permanent();
        let refused = Refused {
            reason: reason.into(),
            is_permanent,
            text: "no".into(),
        };
        golden(
            EdgeMessage::Refused(refused),
            &[
                &[1],                      // Refused
                &[bytes.len() as u8],      // reason: its length
                &bytes,                    // the reason
                &[u8::from(is_permanent)], // is_permanent
                b"\x02no",                 // text
            ],
        );
    };
    refused(Refusal::Unauthorized, &[&[0]]);
    refused(Refusal::Unsupported, &[&[5]]);
    refused(
        Refusal::NameTaken {
            name: "blog".into(),
            holder: "another".into(),
            may_take_over: true,
        },
        &[
            &[1],           // NameTaken
            b"\x04blog",    // name
            b"\x07another", // holder
            &[1],           // may_take_over
        ],
    );
    refused(
        Refusal::NameInvalid {
            name: "-".into(),
            reason: "a hyphen".into(),
        },
        &[
            &[2],            // NameInvalid
            b"\x01-",        // name
            b"\x08a hyphen", // reason
        ],
    );
    refused(
        Refusal::TooManyTunnels { limit: 100 },
        &[
            &[3],   // TooManyTunnels
            &[100], // limit
        ],
    );
    refused(
        Refusal::Busy {
            reason: "draining".into(),
        },
        &[
            &[4],            // Busy
            b"\x08draining", // reason
        ],
    );
}

#[test]
fn later_messages_of_an_edge() {
    golden(
        EdgeMessage::Opened(tunnel_grant()),
        &[
            &[2],               // Opened
            &[1],               // tunnel
            &[6],               // address: six bytes
            &[0],               // Name
            b"\x04blog",        // the name
            &[1],               // urls: one
            b"\x0bhttps://b.c", // the URL
        ],
    );
    golden(
        EdgeMessage::NotOpened {
            tunnel: 1,
            refused: Refused {
                reason: Refusal::Unauthorized.into(),
                is_permanent: true,
                text: "no".into(),
            },
        },
        &[
            &[3],      // NotOpened
            &[1],      // tunnel
            &[1, 0],   // reason: one byte, Unauthorized
            &[1],      // is_permanent
            b"\x02no", // text
        ],
    );
    golden(
        EdgeMessage::Draining { deadline_ms: 1 },
        &[
            &[4], // Draining
            &[1], // deadline_ms
        ],
    );
    golden(
        EdgeMessage::Notice("hi".into()),
        &[
            &[5],      // Notice
            b"\x02hi", // its text
        ],
    );
    golden(
        EdgeMessage::Moving { deadline_ms: 300 },
        &[
            &[6],       // Moving
            &[0xac, 2], // deadline_ms: 0x2c + (2 << 7)
        ],
    );
    golden(
        EdgeMessage::Window(Window {
            stream: 1,
            limit: 300,
        }),
        &[
            &[7],       // Window
            &[1],       // stream
            &[0xac, 2], // limit
        ],
    );
    golden(EdgeMessage::Ping, &[&[8]]);
}

fn tunnel_request() -> TunnelRequest {
    TunnelRequest {
        tunnel: 1,
        address: Address::Name("blog".into()).into(),
        policy: Policy {
            upgrades: vec!["echo".into()],
        },
    }
}

fn tunnel_grant() -> TunnelGrant {
    TunnelGrant {
        tunnel: 1,
        address: Address::Name("blog".into()).into(),
        urls: vec!["https://b.c".into()],
    }
}
