//! Agents that need a new WebSocket for an old session, and find the successor at its other end.

use super::rolling::ready;
use super::{Download, Socket, upstream};
use crate::lab::process::Process;
use crate::lab::{Cable, EdgeProcess, Relay, Running, Server, eventually, way};
use qtunnel::{AgentConfig, Event, ServerAddr, Transport};

#[tokio::test]
async fn udp_that_is_blocked_after_a_handover_cuts_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start_with_https(home.path(), &["--grace-period", "5m"]).await;
    let upstream = upstream().await;
    let network = Relay::to(edge.quic).await;
    let agent = Running::start(AgentConfig {
        server: ServerAddr {
            host: way::host().into(),
            port: way::from_agents(network.addr).port(),
        },
        transport: Transport::Auto,
        websocket: Some(edge.websocket_over_tls()),
        ..edge.agent_config("blog", &upstream)
    })
    .await;

    after_a_handover(&mut edge, &agent, async || {
        network.towards_edge(false);
        network.towards_agents(false);
    })
    .await;
}

#[tokio::test]
async fn a_websocket_that_breaks_after_a_handover_cuts_nothing() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &["--grace-period", "5m"]).await;

    a_websocket_breaks(edge).await;
}

#[tokio::test]
async fn a_websocket_that_breaks_where_there_is_no_udp_cuts_nothing() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start_without_quic(home.path(), &["--grace-period", "5m"]).await;

    a_websocket_breaks(edge).await;
}

async fn a_websocket_breaks(mut edge: EdgeProcess) {
    let upstream = upstream().await;
    let (agent, cable) = over_a_cable(&edge, &upstream).await;

    after_a_handover(&mut edge, &agent, async || break_websockets(&cable).await).await;
}

/// Hand over in the middle of conversations, have something happen to the network, and see that nothing is
/// lost.
async fn after_a_handover(edge: &mut EdgeProcess, agent: &Running, happen: impl AsyncFnOnce()) {
    let conversations = Conversations::begin(edge).await;
    let old = edge.take_over().await;
    ready(agent, 2).await;

    happen().await;

    conversations.end_whole(old).await;
    assert_eq!(edge.visitor("blog").get("/").await.text(), "here");
    nothing_was_lost(agent);
}

#[tokio::test]
async fn a_websocket_finds_the_first_edge_behind_every_later_one() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &["--grace-period", "5m"]).await;
    let upstream = upstream().await;
    let (agent, cable) = over_a_cable(&edge, &upstream).await;
    let of_the_first = Conversations::begin(&edge).await;
    let first = edge.take_over().await;
    ready(&agent, 2).await;
    break_websockets(&cable).await;
    let of_the_second = Conversations::begin(&edge).await;

    let second = edge.take_over().await;
    ready(&agent, 3).await;
    break_websockets(&cable).await;

    of_the_second.end_whole(second).await;
    of_the_first.end_whole(first).await;
    assert_eq!(edge.visitor("blog").get("/").await.text(), "here");
    nothing_was_lost(&agent);
}

/// An agent on a WebSocket alone, which breaks with the cable.
async fn over_a_cable(edge: &EdgeProcess, upstream: &Server) -> (Running, Cable) {
    let cable = Cable::to(edge.http).await;
    let url = format!("ws://{}", way::from_agents(cable.addr));
    let agent = Running::start(AgentConfig {
        transport: Transport::Websocket,
        websocket: Some(url.parse().expect("a valid address")),
        ..edge.agent_config("blog", upstream)
    })
    .await;
    (agent, cable)
}

/// Break the WebSockets of two sessions or more, and wait until as many are there again.
async fn break_websockets(cable: &Cable) {
    let before = cable.connections();
    cable.pull();
    eventually("the agent's new websockets", || async {
        cable.connections() >= before + 2
    })
    .await;
}

/// What visitors are in the middle of.
struct Conversations {
    download: Download,
    socket: Socket,
}

impl Conversations {
    async fn begin(edge: &EdgeProcess) -> Self {
        Self {
            download: Download::begin(&edge.visitor("blog")).await,
            socket: Socket::open(&edge.visitor("blog")).await,
        }
    }

    /// Go on to the end, with which the process ends that they began with.
    async fn end_whole(mut self, mut process: Process) {
        self.socket.echoes("still here").await;
        self.download.ends_exact().await;
        self.socket.echoes("to the end").await;
        drop(self.socket);
        assert_eq!(process.ended().await.code(), Some(0), "{:#?}", process.seen);
        let cut = process.seen.iter().any(|line| line.contains("cutting"));
        assert!(!cut, "{:#?}", process.seen);
    }
}

fn nothing_was_lost(agent: &Running) {
    let lost = agent.count(|event| matches!(event, Event::Reconnecting { .. }));
    assert_eq!(lost, 0, "a session's end was taken for a loss");
}
