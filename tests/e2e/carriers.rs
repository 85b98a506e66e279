//! One connection, two carriers.

use std::net::SocketAddr;

use nix::sys::signal::Signal;
use qtunnel::{Carrier, Event, Transport};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::lab::process::{Process, qtunnel};
use crate::lab::{Lab, Server, way};

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

#[tokio::test]
async fn people_and_programs_are_told_when_and_why_the_carrier_changes() {
    let lab = Lab::start().await;
    let upstream = Server::text("fine").await;
    let (port, pin) = (upstream.addr.port().to_string(), lab.pin().to_string());
    let websocket = lab.websocket().to_string();
    for (format, on_udp) in [
        ("--json", "\"transport\":\"quic\""),
        ("--random", " quic ("),
    ] {
        let relay = Relay::start(lab.quic).await;
        let home = tempfile::tempdir().unwrap();
        let server = way::from_agents(relay.addr).to_string();
        let connect = ["connect", &port, "--server", &server, "--pin", &pin, format];
        let mut agent = qtunnel(home.path(), connect);
        agent.args(["--websocket-url", &websocket]);
        let mut agent = Process::spawn(agent);
        // Where packets are lost, it may have begun over the WebSocket.
        agent.line(on_udp).await;

        drop(relay);

        if format == "--json" {
            let told = agent.line("\"reason\":\"udp silent for ").await;
            let told: serde_json::Value = serde_json::from_str(&told).unwrap();
            assert_eq!(told["event"], "transport");
            assert_eq!(told["transport"], "websocket");
            for figure in ["rtt_ms", "sent_packets", "lost_packets", "mtu"] {
                assert!(told[figure].is_number(), "{told}");
            }
        } else {
            let told = agent.line("moved to websocket (round trip ").await;
            assert!(told.contains("  udp silent for "), "{told}");
            assert!(told.contains("% lost, packets of up to "), "{told}");
        }
        agent.signal(Signal::SIGTERM);
        agent.ended().await;
        let told = agent
            .seen
            .iter()
            .filter(|line| line.contains(" silent for "));
        assert_eq!(told.count(), 1, "{:#?}", agent.seen);
    }
}

/// A port that leads to the edge's for UDP, until it is dropped.
struct Relay {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Relay {
    async fn start(edge: SocketAddr) -> Self {
        let agents = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let edges = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = agents.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut there, mut back) = (vec![0; 65536], vec![0; 65536]);
            let mut agent = None;
            loop {
                // What cannot be sent is lost, as on any network.
                tokio::select! {
                    Ok((length, from)) = agents.recv_from(&mut there) => {
                        agent = Some(from);
                        let _ = edges.send_to(&there[..length], edge).await;
                    }
                    Ok((length, _)) = edges.recv_from(&mut back) => {
                        if let Some(agent) = agent {
                            let _ = agents.send_to(&back[..length], agent).await;
                        }
                    }
                    else => {}
                }
            }
        });
        Self { addr, task }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
