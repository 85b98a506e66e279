//! What visitors and agents notice of a handover: nothing.

use super::{Download, Socket, upstream};
use crate::lab::load::Outcome;
use crate::lab::{EdgeProcess, Load, Running, Server, eventually};
use qtunnel::{AgentConfig, Event, Transport};

/// An agent for each way of travelling, under the name of that way.
async fn agents(edge: &EdgeProcess, upstream: &Server) -> Vec<Running> {
    let configs = TRANSPORTS.map(|(name, transport)| AgentConfig {
        transport,
        websocket: Some(edge.websocket()),
        ..edge.agent_config(name, upstream)
    });
    let mut agents = Vec::new();
    for config in configs {
        agents.push(Running::start(config).await);
    }
    agents
}

const TRANSPORTS: [(&str, Transport); 3] = [
    ("auto", Transport::Auto),
    ("quic", Transport::Quic),
    ("websocket", Transport::Websocket),
];

/// 200 requests a second to all of them, from visitors over HTTP/1.1 and HTTP/2.
async fn visitors(edge: &EdgeProcess) -> Load {
    let mut load = Load::new();
    for (name, _) in TRANSPORTS {
        load.add_http1(edge.visitor(name));
        let https = edge.https.expect("an edge with HTTPS");
        load.add_http2(https, format!("{name}.localhost"), edge.ca());
    }
    load
}

fn all_succeeded(outcomes: &[Outcome]) {
    let problems: Vec<_> = outcomes
        .iter()
        .filter(|one| one.problem.is_some())
        .collect();
    let longest = outcomes.iter().map(|one| one.took).max();
    println!("{} requests, the longest took {longest:?}", outcomes.len());
    assert!(
        problems.is_empty(),
        "{} of {}: {problems:#?}",
        problems.len(),
        outcomes.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_is_replaced_and_no_visitor_notices() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start_with_https(home.path(), &["--grace-period", "5m"]).await;
    let upstream = upstream().await;
    let agents = agents(&edge, &upstream).await;
    let load = visitors(&edge).await;
    load.answers(100).await;
    let download = Download::begin(&edge.visitor("auto")).await;
    let mut sockets = Vec::new();
    for at in 0..10 {
        let (name, _) = TRANSPORTS[at % TRANSPORTS.len()];
        sockets.push(Socket::open(&edge.visitor(name)).await);
    }

    let mut old = edge.take_over().await;

    for agent in &agents {
        ready(agent, 2).await;
    }
    load.answers(400).await;
    for socket in &mut sockets {
        socket.echoes("still here").await;
    }
    download.ends_exact().await;
    all_succeeded(&load.stop().await);
    for mut socket in sockets {
        socket.echoes("to the end").await;
    }
    assert_eq!(old.ended().await.code(), Some(0), "{:#?}", old.seen);
    assert!(
        !old.seen.iter().any(|line| line.contains("cutting")),
        "{:#?}",
        old.seen
    );
    for (name, _) in TRANSPORTS {
        assert_eq!(edge.visitor(name).get("/").await.status, 200);
    }
    for agent in &agents {
        let lost = agent.count(|event| matches!(event, Event::Reconnecting { .. }));
        assert_eq!(lost, 0, "the old session's end was taken for a loss");
    }
}

/// Wait until an agent has been ready so many times.
pub async fn ready(agent: &Running, times: usize) {
    eventually("the agent's new session", || async {
        agent.count(|event| matches!(event, Event::Ready { .. })) >= times
    })
    .await;
}

#[tokio::test]
async fn a_successor_is_succeeded_while_the_first_edge_still_drains() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &["--grace-period", "5m"]).await;
    let upstream = upstream().await;
    let agent = Running::start(edge.agent_config("blog", &upstream)).await;
    let of_the_first = Download::begin(&edge.visitor("blog")).await;
    let mut first = edge.take_over().await;
    ready(&agent, 2).await;
    let of_the_second = Download::begin(&edge.visitor("blog")).await;

    let mut second = edge.take_over().await;

    assert_eq!(edge.visitor("blog").get("/").await.text(), "here");
    of_the_second.ends_exact().await;
    assert_eq!(second.ended().await.code(), Some(0), "{:#?}", second.seen);
    of_the_first.ends_exact().await;
    assert_eq!(first.ended().await.code(), Some(0), "{:#?}", first.seen);
    assert_eq!(edge.visitor("blog").get("/").await.text(), "here");
}

#[tokio::test]
async fn a_kept_connection_gets_one_more_answer_and_is_told_that_it_ends() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let upstream = upstream().await;
    let _agent = Running::start(edge.agent_config("blog", &upstream)).await;
    let mut kept = edge.visitor("blog").wire().await;
    kept.send(GET).await;
    let head = kept.head().await;
    assert!(!head.contains("\r\nconnection: "), "{head}");
    assert_eq!(kept.bytes(4).await, b"here");

    let _old = edge.take_over().await;

    kept.send(GET).await;
    let head = kept.head().await;
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    assert_eq!(kept.rest().await, b"here");
}

const GET: &str = "GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n";
