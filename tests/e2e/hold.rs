//! Requests that come while an agent is away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use nix::sys::signal::Signal;
use qtunnel::Event;
use tokio::task::JoinSet;

use crate::lab::process::Process;
use crate::lab::visitor::collect;
use crate::lab::{EdgeProcess, Lab, Relay, Reply, Running, Server, Visitor, eventually, within};

#[tokio::test]
async fn a_request_waits_for_an_agent_that_comes_back_and_is_delivered() {
    let lab = Lab::with(|edge| edge.limits.held_per_tunnel = 1).await;
    let upstream = Server::echo().await;
    let config = lab.agent_config("blog", &upstream);
    Running::start(config.clone()).await.stop().await.unwrap();
    let visitor = lab.visitor("blog");

    let waiting = tokio::spawn(once_there_is_room(visitor));
    one_is_held(&lab).await;
    let _back = Running::start(config).await;

    let reply = within("the held request's answer", waiting).await.unwrap();
    assert_eq!((reply.status, reply.text()), (200, "patience"));
}

#[tokio::test]
async fn a_request_that_was_held_for_too_long_is_told_when_to_try_again() {
    let lab = Lab::with(|edge| edge.hold = Duration::from_millis(100)).await;
    let upstream = Server::echo().await;
    lab.agent("blog", &upstream).await.stop().await.unwrap();

    let reply = lab.visitor("blog").get("/").await;

    let code = reply.header("x-qtunnel-error");
    assert_eq!((reply.status, code), (502, "agent_offline"));
    assert_eq!(reply.header("retry-after"), "5");
}

#[tokio::test]
async fn a_visitor_who_goes_away_leaves_its_place_to_another() {
    let lab = Lab::with(|edge| edge.limits.held_per_tunnel = 1).await;
    let upstream = Server::echo().await;
    lab.agent("blog", &upstream).await.stop().await.unwrap();
    let visitor = lab.visitor("blog");

    let first = tokio::spawn(once_there_is_room(visitor));
    one_is_held(&lab).await;
    first.abort();

    eventually("a free place", || async { !is_full(&lab).await }).await;
}

/// Post something that an edge where one request may be held does not refuse.
async fn once_there_is_room(visitor: Visitor) -> Reply {
    loop {
        let reply = visitor.post("/", "patience").await;
        if reply.status != 503 {
            return reply;
        }
    }
}

/// Wait until a request is held, where only one may be: the next one's refusal tells.
async fn one_is_held(lab: &Lab) {
    eventually("a held request", || is_full(lab)).await;
}

async fn is_full(lab: &Lab) -> bool {
    // One that is not refused gets no answer, and leaves.
    let limit = Duration::from_millis(200);
    let reply = tokio::time::timeout(limit, lab.visitor("blog").get("/")).await;
    reply.is_ok_and(|reply| reply.status == 503)
}

#[tokio::test]
async fn requests_are_held_within_a_bound_of_bytes() {
    let lab = Lab::with(|edge| edge.limits.held_bytes = 1_000).await;
    let upstream = Server::echo().await;
    lab.agent("blog", &upstream).await.stop().await.unwrap();

    let large = Request::get("/").header("x-large", "x".repeat(1_000));
    let reply = lab.visitor("blog").send(large).await;

    let code = reply.header("x-qtunnel-error");
    assert_eq!((reply.status, code), (503, "busy"));
}

/// An upstream that counts how often each `x-id` arrives, and answers those to `/` at once and those to
/// `/never` never.
async fn counting() -> (Server, Arc<Mutex<HashMap<String, u32>>>) {
    let counts = Arc::<Mutex<HashMap<String, u32>>>::default();
    let counted = counts.clone();
    let server = Server::http(move |request: Request<Incoming>| {
        let counted = counted.clone();
        async move {
            let id = request.headers()["x-id"].to_str().unwrap().to_owned();
            *counted.lock().unwrap().entry(id).or_default() += 1;
            if request.uri().path() == "/never" {
                std::future::pending::<()>().await;
            }
            let body = request
                .into_body()
                .collect()
                .await
                .map(|body| body.to_bytes());
            Response::new(Full::new(body.unwrap_or_default()))
        }
    })
    .await;
    (server, counts)
}

#[tokio::test]
async fn what_never_reached_a_lost_session_is_sent_again_once_and_what_did_is_not() {
    let lab = Lab::start().await;
    let (upstream, counts) = counting().await;
    let relay = Relay::to(lab.quic).await;
    let mut config = lab.agent_config("blog", &upstream);
    config.server.port = relay.addr.port();
    let mut agent = Running::start(config).await;
    let post = |path: &'static str, id: String| {
        let request = Request::post(path).header("x-id", &id);
        let visitor = lab.visitor("blog");
        async move {
            let body = Full::new(Bytes::from(vec![7; 10_000]));
            let reply = collect(visitor.wait(request, body).await).await;
            (id, reply.status, reply.body.len())
        }
    };

    let mut processed = JoinSet::new();
    (0..5).for_each(|number| drop(processed.spawn(post("/never", format!("never-{number}")))));
    eventually("the requests' arrival", || async {
        counts.lock().unwrap().len() == 5
    })
    .await;
    // The agent hears nothing from now on, and what it says arrives: the edge takes it for alive.
    relay.towards_agents(false);
    let mut unread = JoinSet::new();
    (0..50).for_each(|number| drop(unread.spawn(post("/", format!("unread-{number}")))));
    agent
        .event(|event| matches!(event, Event::Reconnecting { .. }).then_some(()))
        .await;
    relay.towards_agents(true);

    let unread = within("the answers", unread.join_all()).await;
    let processed = within("the faults", processed.join_all()).await;
    for (id, status, length) in unread {
        assert_eq!((status, length), (200, 10_000), "{id}");
        assert_eq!(counts.lock().unwrap()[&id], 1, "{id}");
    }
    for (id, status, _) in processed {
        assert_eq!(status, 502, "{id}");
        assert_eq!(counts.lock().unwrap()[&id], 1, "{id}");
    }
}

#[tokio::test]
async fn no_request_is_processed_twice_in_a_thousand_kills() {
    const LANES: usize = 8;
    const KILLS: usize = 125;
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &[]).await;
    let (upstream, counts) = counting().await;
    let answered = Arc::<Mutex<Vec<String>>>::default();
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let name = format!("lane-{lane}");
        let (server, ca) = (edge.server(), edge.ca());
        let (upstream, home) = (upstream.addr.to_string(), home.path().to_owned());
        let (visitor, answered) = (edge.visitor(&name), answered.clone());
        let visits = async move {
            for number in 0.. {
                let id = format!("{lane}-{number}");
                let request = Request::post("/").header("x-id", &id);
                let body = Full::new(Bytes::from_static(b"once"));
                let reply = collect(visitor.begin(request, body).await).await;
                match reply.status {
                    200 => answered.lock().unwrap().push(id),
                    502 => {}
                    other => panic!("{other}: {}", reply.text()),
                }
            }
        };
        lanes.spawn(async move {
            let mut visits = Some(visits);
            let mut visiting = JoinSet::new();
            let ca = ca.to_string_lossy();
            for kill in 0..KILLS {
                let mut agent = Process::qtunnel(
                    &home,
                    [
                        "connect",
                        &upstream,
                        "--server",
                        &server,
                        "--ca",
                        &ca,
                        "--subdomain",
                        &name,
                        "--transport",
                        "quic",
                    ],
                );
                // In the middle of a request, or of the next: the agent logs each one that has ended.
                agent.line("connected over").await;
                if let Some(visits) = visits.take() {
                    visiting.spawn(visits);
                }
                for _ in 0..kill % 5 {
                    agent.line("POST").await;
                }
                agent.signal(Signal::SIGKILL);
                agent.ended().await;
            }
            assert!(visiting.try_join_next().is_none(), "a visitor gave up");
        });
    }
    lanes.join_all().await;

    let (counts, answered) = (counts.lock().unwrap(), answered.lock().unwrap());
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "processed more than once: {twice:?}");
    assert!(answered.iter().all(|id| counts[id] == 1));
}
