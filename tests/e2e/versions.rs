//! Ends of different ages: each is doctored into one that is some versions ahead of this one.

use bytes::Bytes;
use http::Method;
use qtunnel::proto::{
    self, Address, AgentMessage, CONTROL_LIMIT, EdgeMessage, Features, HELLO_LIMIT, Policy,
    Refusal, Refused, TunnelRequest, Welcome, put_varint,
};
use qtunnel::{AgentError, ConnectError, Event};
use quinn::{ReadError, ReadToEndError};
use serde::Serialize;

use crate::lab::fake_edge::{FakeEdge, request, welcome};
use crate::lab::peer::{ALPN, greeting, hear};
use crate::lab::{Lab, Running, Server, within};

/// Reset code of an agent that does not know a kind of conversation.
const UNSUPPORTED: u32 = 4;

/// A feature that nobody has yet.
const LATER: Features = Features(1 << 40);

/// Fields that a later version appends to a message.
const APPENDED: &[u8] = b"\x05later\x01\x02";

/// A control message of a kind that this version does not know.
const UNKNOWN_MESSAGE: &[u8] = b"\x63some of its fields";

/// Encode a message with more behind it than this version has.
fn extended(message: &impl Serialize) -> Bytes {
    let encoded = proto::encode(message, CONTROL_LIMIT).expect("a short message");
    framed(&[&encoded[4..], APPENDED].concat())
}

fn framed(payload: &[u8]) -> Bytes {
    let mut bytes = Vec::new();
    put_varint(payload.len() as u64, &mut bytes);
    bytes.extend_from_slice(payload);
    bytes.into()
}

/// A hello for names that ends with the features of a later version, and with fields behind them.
fn later_hello(names: &[&str]) -> Bytes {
    let AgentMessage::Hello(mut hello) = greeting(names) else {
        panic!("no hello");
    };
    hello.features = Features::ALL | LATER;
    extended(&AgentMessage::Hello(hello))
}

#[tokio::test]
async fn an_edge_serves_a_later_agent_and_skips_what_it_does_not_know() {
    let lab = Lab::start().await;
    let connection = lab.dial(&ALPN).await;
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");

    send.write_chunk(later_hello(&["blog"]))
        .await
        .expect("a live stream");
    let welcomed = hear(&mut receive).await;
    send.write_chunk(framed(UNKNOWN_MESSAGE))
        .await
        .expect("a live stream");
    let shop = AgentMessage::Open(TunnelRequest {
        tunnel: 7,
        address: Address::Name("shop".into()).into(),
        policy: Policy::default(),
    });
    send.write_chunk(extended(&shop))
        .await
        .expect("a live stream");
    let opened = hear(&mut receive).await;

    let EdgeMessage::Welcome(Welcome { features, .. }) = welcomed else {
        panic!("{welcomed:?}");
    };
    assert!(features.contains(Features::HTTP) && !features.contains(LATER));
    assert!(matches!(opened, EdgeMessage::Opened(_)), "{opened:?}");
}

#[tokio::test]
async fn an_edge_refuses_a_kind_of_address_that_it_does_not_have_and_nothing_else() {
    let lab = Lab::start().await;
    let connection = lab.dial(&ALPN).await;
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    send.write_chunk(later_hello(&["blog"]))
        .await
        .expect("a live stream");
    let _ = hear(&mut receive).await;

    // Open, number 7, an address of three bytes (kind 9), a policy of one byte: no upgrades.
    send.write_chunk(framed(&[1, 7, 3, 9, 80, 0, 1, 0]))
        .await
        .expect("a live stream");
    let answer = hear(&mut receive).await;

    let EdgeMessage::NotOpened { tunnel: 7, refused } = answer else {
        panic!("{answer:?}");
    };
    assert!(refused.is_permanent && refused.text.contains("upgrade the edge"));
    assert_eq!(Refusal::from(refused), Refusal::Unsupported);
    assert_eq!(connection.close_reason(), None);
}

#[tokio::test]
async fn an_agent_understands_a_later_edge_and_skips_what_it_does_not_know() {
    let upstream = Server::text("fine").await;
    let mut edge = FakeEdge::start();
    let config = edge.agent_config("blog", &upstream);
    let welcoming = async {
        let mut session = edge.greeted().await;
        let mut welcome = welcome(&session.hello);
        welcome.features = Features::ALL | LATER;
        session.raw(extended(&EdgeMessage::Welcome(welcome))).await;
        session
    };

    let (mut agent, mut session) = tokio::join!(Running::start(config), welcoming);
    session.raw(framed(UNKNOWN_MESSAGE)).await;
    session.say(&EdgeMessage::Notice("still here".into())).await;
    let (mut send, mut receive) = session.connection.open_bi().await.expect("a stream");
    send.write_chunk(framed(b"\x09a kind of conversation to come"))
        .await
        .expect("a live stream");
    let unknown = within("its reset", receive.read_to_end(100)).await;
    let head = request(Method::GET, "/", &[("host", "blog.example.com")]);
    let (mut send, mut receive) = session.ask(head).await;
    send.finish().expect("a live stream");
    let response = within("the response", receive.read_to_end(1 << 16))
        .await
        .expect("a response");

    agent
        .event(|event| matches!(event, Event::Notice(text) if text == "still here").then_some(()))
        .await;
    let Err(ReadToEndError::Read(ReadError::Reset(code))) = unknown else {
        panic!("{unknown:?}");
    };
    assert_eq!(code, UNSUPPORTED.into());
    assert!(response.ends_with(b"fine"));
    assert_eq!(session.connection.close_reason(), None);
}

#[tokio::test]
async fn an_agent_gives_up_and_says_why_if_a_later_edge_refuses_it_for_good() {
    let upstream = Server::text("fine").await;
    let mut edge = FakeEdge::start();
    let config = edge.agent_config("blog", &upstream);

    let (agent, ()) = tokio::join!(
        qtunnel::Agent::connect(config),
        refuse_as_a_later_edge(&mut edge, true)
    );

    let Err(AgentError::Connect(err @ ConnectError::Refused(_))) = agent else {
        panic!("it is connected");
    };
    assert!(err.to_string().contains("the moon is full"), "{err}");
    assert!(err.is_permanent());
}

#[tokio::test]
async fn an_agent_comes_back_if_a_later_edge_refuses_it_for_now() {
    let upstream = Server::text("fine").await;
    let mut edge = FakeEdge::start();
    let config = edge.agent_config("blog", &upstream);
    let refusing_once = async {
        refuse_as_a_later_edge(&mut edge, false).await;
        edge.welcomed().await
    };

    let (_agent, session) = tokio::join!(Running::start(config), refusing_once);

    assert_eq!(session.connection.close_reason(), None);
}

/// Refuse an agent for a reason that this version does not know.
async fn refuse_as_a_later_edge(edge: &mut FakeEdge, is_permanent: bool) {
    let mut session = edge.greeted().await;
    let refused = EdgeMessage::Refused(Refused {
        reason: Refusal::Unauthorized.into(),
        is_permanent,
        text: "the moon is full".into(),
    });
    let encoded = proto::encode(&refused, CONTROL_LIMIT).expect("a short message");
    // Message 1, with a reason of one byte: 0.
    let mut payload = encoded[4..].to_vec();
    assert_eq!(payload[..3], [1, 1, 0]);
    payload[2] = 99;
    session.raw(framed(&payload)).await;
    session.closed().await;
}

#[tokio::test]
async fn more_tunnels_than_fit_into_a_hello_are_an_error_at_the_agent() {
    let upstream = Server::text("fine").await;
    let lab = Lab::start().await;
    let mut config = lab.agent_config("blog", &upstream);
    config.token = proto::Secret::new("t".repeat(HELLO_LIMIT));

    let refused = qtunnel::Agent::connect(config).await.map(drop);

    let Err(AgentError::Connect(err @ ConnectError::HelloTooLarge(_))) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        err.is_permanent() && err.to_string().contains("publish fewer tunnels"),
        "{err}"
    );
}
