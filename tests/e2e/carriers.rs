//! One connection, two carriers.

use qtunnel::{Carrier, Event, Transport};

use crate::lab::{Lab, Server};

#[tokio::test]
async fn a_visitor_is_served_where_only_http_gets_through() {
    let lab = Lab::with(|config| config.quic = None).await;
    let upstream = Server::echo().await;
    let mut agent = lab
        .agent_with("ws", &upstream, |config| {
            config.transport = Transport::Auto;
        })
        .await;

    let reply = lab.visitor("ws").post("/", "over tcp").await;

    assert_eq!((reply.status, reply.text()), (200, "over tcp"));
    let carrier = agent
        .event(|event| match event {
            Event::Ready { transport, .. } => Some(transport.carrier),
            _ => None,
        })
        .await;
    assert_eq!(carrier, Carrier::WebSocket);
}
