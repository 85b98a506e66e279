//! Stopping, being killed, and coming back.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use nix::sys::signal::Signal;
use qtunnel::proto::{Refusal, Secret};
use qtunnel::{AgentError, ConnectError, Event, Service, Transport, UpstreamBody};
use tokio::net::TcpStream;

use crate::lab::process::Process;
use crate::lab::{EdgeProcess, Lab, Load, Running, Server, Visitor, eventually, way, within};

/// Begin a download from [`Server::halting`], and wait for its first half.
async fn half_a_download(visitor: &Visitor) -> Incoming {
    let mut body = visitor
        .begin(Request::get("/"), Empty::<Bytes>::new())
        .await
        .into_body();
    let half = within("the first half", body.frame()).await;
    assert_eq!(half.unwrap().unwrap().into_data().unwrap(), "first");
    body
}

#[tokio::test]
async fn a_killed_edge_is_found_again_within_a_second_of_its_return() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let upstream = Server::text("here").await;
    let _agent = Running::start(edge.agent_config("blog", &upstream)).await;
    assert_eq!(edge.visitor("blog").get("/").await.text(), "here");

    // The last outage is long enough for QUIC's own repetitions to have become rare. A machine that
    // is busy with something else may be late once.
    for outage in [0, 400, 4_000].map(Duration::from_millis) {
        let mut took = Vec::new();
        for _ in 0..3 {
            edge.kill().await;
            tokio::time::sleep(outage).await;
            edge.restart().await;
            let back = Instant::now();
            let visitor = edge.visitor("blog");
            eventually("the tunnel's return", || async {
                visitor.get("/").await.status == 200
            })
            .await;
            took.push(back.elapsed());
        }
        took.sort();
        assert!(
            took[1] < way::patient(SOON),
            "after {outage:?} away it took {took:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_edge_gets_its_agents_back_under_load_and_what_was_held_is_answered() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let upstream = Server::text("here").await;
    let mut agents = Vec::new();
    let mut load = Load::new();
    for (name, transport) in [
        ("auto", Transport::Auto),
        ("quic", Transport::Quic),
        ("websocket", Transport::Websocket),
    ] {
        let mut config = edge.agent_config(name, &upstream);
        config.transport = transport;
        config.websocket = Some(edge.websocket());
        agents.push(Running::start(config).await);
        load.add_http1(edge.visitor(name));
        load.add_http1(edge.visitor(name));
    }
    load.answers(100).await;

    // A machine that is busy with something else may be late once.
    let mut took = Vec::new();
    let mut back = Instant::now();
    for times in 2..5 {
        edge.kill().await;
        edge.restart().await;
        back = Instant::now();
        for agent in &agents {
            eventually("an agent's return", || async {
                agent.count(|event| matches!(event, Event::Ready { .. })) >= times
            })
            .await;
        }
        took.push(back.elapsed());
    }

    load.answers(200).await;
    let outcomes = load.stop().await;
    let after = outcomes.iter().filter(|one| one.begun > back);
    let failed: Vec<_> = after.filter(|one| one.problem.is_some()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    took.sort();
    println!("all agents were back after {took:?}");
    assert!(took[1] < way::patient(SOON), "{took:?}");
}

#[tokio::test]
async fn an_edge_that_stops_lets_a_download_finish_and_accepts_nobody() {
    let mut lab = Lab::start().await;
    let (upstream, go_on) = Server::halting().await;
    let mut agent = lab.agent("blog", &upstream).await;
    let visitor = lab.visitor("blog");
    let body = half_a_download(&visitor).await;

    let stopped = lab.begin_stop();

    eventually("the end of accepting", || async {
        TcpStream::connect(lab.http).await.is_err()
    })
    .await;
    agent
        .event(|event| match event {
            Event::Notice(text) => text.contains("restart").then_some(()),
            _ => None,
        })
        .await;
    assert!(!stopped.is_finished());
    go_on.send_replace(true);
    let rest = within("the second half", body.collect()).await.unwrap();
    assert_eq!(rest.to_bytes(), " last");
    within("the edge's end", stopped).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_stops_lets_a_download_finish_and_takes_no_new_requests() {
    let lab = Lab::with(|edge| edge.hold = Duration::ZERO).await;
    let (upstream, go_on) = Server::halting().await;
    let mut agent = lab.agent("blog", &upstream).await;
    let visitor = lab.visitor("blog");
    let body = half_a_download(&visitor).await;

    agent.begin_stop();

    eventually("the end of the name", || async {
        let request = Request::get("/");
        let response = visitor.begin(request, Empty::<Bytes>::new()).await;
        response.status() == 502
    })
    .await;
    go_on.send_replace(true);
    let rest = within("the second half", body.collect()).await.unwrap();
    assert_eq!(rest.to_bytes(), " last");
    agent.ended().await.unwrap();
}

#[tokio::test]
async fn a_long_download_goes_on_while_both_ends_stop() {
    static REST: [u8; 8 << 20] = [b'.'; 8 << 20];
    let mut lab = Lab::start().await;
    let (upstream, go_on) = Server::halting_before(&REST).await;
    let mut agent = lab.agent("blog", &upstream).await;
    let body = half_a_download(&lab.visitor("blog")).await;

    // The agent hears of the edge's end while it drains, and must go on hearing of windows.
    agent.begin_stop();
    let stopped = lab.begin_stop();
    eventually("the end of accepting", || async {
        TcpStream::connect(lab.http).await.is_err()
    })
    .await;
    go_on.send_replace(true);

    let rest = within("the rest", body.collect()).await.unwrap();
    assert_eq!(rest.to_bytes().len(), REST.len());
    agent.ended().await.unwrap();
    within("the edge's end", stopped).await.unwrap();
}

#[tokio::test]
async fn what_outlasts_the_edges_grace_period_is_cut() {
    let mut lab = Lab::with(|edge| edge.grace_period = Duration::from_millis(100)).await;
    let (upstream, _never) = Server::halting().await;
    let _agent = lab.agent("blog", &upstream).await;
    let body = half_a_download(&lab.visitor("blog")).await;

    let stopped = lab.begin_stop();

    let cut = within("the cut", body.collect()).await;
    assert!(cut.is_err(), "half a download looks whole");
    within("the edge's end", stopped).await.unwrap();
}

#[tokio::test]
async fn what_outlasts_the_agents_grace_period_is_cut() {
    let lab = Lab::start().await;
    let (upstream, _never) = Server::halting().await;
    let mut agent = lab
        .agent_with("blog", &upstream, |agent| {
            agent.grace_period = Duration::from_millis(100);
        })
        .await;
    let body = half_a_download(&lab.visitor("blog")).await;

    agent.begin_stop();

    let cut = within("the cut", body.collect()).await;
    assert!(cut.is_err(), "half a download looks whole");
    agent.ended().await.unwrap();
}

#[tokio::test]
async fn one_signal_drains_both_programs_and_they_end_with_code_0() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let home = tempfile::tempdir().unwrap();
        let mut edge = EdgeProcess::start(home.path(), &[]).await;
        let (upstream, go_on) = Server::halting().await;
        let mut agent = connect(&edge, home.path(), &upstream).await;
        let body = half_a_download(&edge.visitor("blog")).await;

        agent.signal(signal);
        edge.process.signal(signal);
        agent.line("stopping").await;
        edge.process.line("stopping").await;
        go_on.send_replace(true);

        let rest = within("the second half", body.collect()).await.unwrap();
        assert_eq!(rest.to_bytes(), " last");
        assert_eq!(agent.ended().await.code(), Some(0), "{:#?}", agent.seen);
        let edge = &mut edge.process;
        assert_eq!(edge.ended().await.code(), Some(0), "{:#?}", edge.seen);
    }
}

#[tokio::test]
async fn the_second_signal_ends_either_program_at_once() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &["--grace-period", "1h"]).await;
    let (upstream, _never) = Server::halting().await;
    let mut agent = connect(&edge, home.path(), &upstream).await;
    let body = half_a_download(&edge.visitor("blog")).await;

    for process in [&mut agent, &mut edge.process] {
        process.signal(Signal::SIGTERM);
        process.line("stopping").await;
        process.signal(Signal::SIGINT);
        assert_eq!(process.ended().await.code(), Some(1), "{:#?}", process.seen);
    }

    assert!(within("the cut", body.collect()).await.is_err());
}

/// Start `qtunnel connect` for the name `blog`, and wait until it is ready.
async fn connect(edge: &EdgeProcess, home: &std::path::Path, upstream: &Server) -> Process {
    let (server, ca) = (edge.server(), edge.ca());
    let upstream = upstream.addr.to_string();
    let mut agent = Process::qtunnel(
        home,
        [
            "connect",
            &upstream,
            "--server",
            &server,
            "--ca",
            &ca.to_string_lossy(),
            "--subdomain",
            "blog",
            "--grace-period",
            "1h",
        ],
    );
    agent.line("connected over").await;
    agent
}

#[tokio::test]
async fn an_agent_that_was_killed_comes_back_under_its_name_at_once() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &[]).await;
    let (upstream, arrived) = Server::silent().await;
    let mut agent = connect(&edge, home.path(), &upstream).await;
    let visitor = edge.visitor("blog");
    let waiting = tokio::spawn(async move { visitor.get("/").await });
    within("the request", arrived.notified()).await;

    agent.signal(Signal::SIGKILL);
    agent.ended().await;
    let answering = Server::text("back").await;
    let _agent = connect(&edge, home.path(), &answering).await;

    assert_eq!(edge.visitor("blog").get("/").await.text(), "back");
    let reply = within("the lost request's answer", waiting).await.unwrap();
    let code = reply.header("x-qtunnel-error");
    assert_eq!((reply.status, code), (502, "agent_lost"));
    assert_eq!(reply.header("retry-after"), "5");
}

#[tokio::test]
async fn an_agent_reconnects_at_once_and_then_says_how_long_it_waits() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let upstream = Server::text("here").await;
    let mut agent = Running::start(edge.agent_config("blog", &upstream)).await;

    edge.process.signal(Signal::SIGTERM);

    let (reason, wait) = agent
        .event(|event| match event {
            Event::Reconnecting { reason, wait } => Some((reason.clone(), *wait)),
            _ => None,
        })
        .await;
    assert_eq!(
        (reason.as_str(), wait),
        ("the edge stopped", Duration::ZERO)
    );
    edge.process.ended().await;
    edge.restart().await;
    eventually("the tunnel's return", || async {
        edge.visitor("blog").get("/").await.status == 200
    })
    .await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_token_that_is_no_longer_accepted_ends_the_agent() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &["--token", "old"]).await;
    let upstream = Server::text("here").await;
    let mut config = edge.agent_config("blog", &upstream);
    config.token = Secret::new("old");
    let agent = Running::start(config).await;

    edge.kill().await;
    edge.set_args(&["--token", "new"]);
    edge.restart().await;

    let err = agent.ended().await.unwrap_err();
    assert!(
        matches!(
            err,
            AgentError::Connect(ConnectError::Refused(Refusal::Unauthorized))
        ),
        "{err:?}"
    );
}

#[tokio::test]
async fn a_panic_ends_its_own_conversation_and_no_other() {
    let lab = Lab::start().await;
    let service = Service::new(|request| async move {
        if request.uri().path() == "/panic" {
            panic!("as it should");
        }
        Ok(hyper::Response::new(UpstreamBody::full("fine")))
    });
    let mut agent = lab.agent("app", qtunnel::Upstream::Service(service)).await;
    let visitor = lab.visitor("app");

    let panicked = visitor.get("/panic").await;

    let code = panicked.header("x-qtunnel-error");
    assert_eq!((panicked.status, code), (502, "upstream_invalid"));
    assert_eq!(visitor.get("/").await.text(), "fine");
    let problem = agent
        .event(|event| match event {
            Event::Request(log) => log.problem.clone(),
            _ => None,
        })
        .await;
    assert!(problem.contains("panicked"), "{problem}");
}

/// How soon agents are back after their edge. Up to 700 ms go by before they ask after it; each packet of
/// the handshakes that a bad link then loses costs another 300 ms.
const SOON: Duration = Duration::from_secs(1);
