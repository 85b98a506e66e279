//! Whose a name is while its agent is away.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use qtunnel::proto::{AgentId, AgentMessage, ClaimMode, EdgeMessage, Hello, Refusal, Secret};
use qtunnel::{Agent, AgentConfig, AgentError, ConnectError, Event};
use quinn::{Connection, RecvStream, SendStream};

use crate::lab::peer::{ALPN, greeting, hear, say};
use crate::lab::process::{Process, qtunnel, succeed};
use crate::lab::{EdgeProcess, Lab, Relay, Running, Server, eventually, tools, within};

/// Ask for a name that is held, and return who holds it.
async fn refused(config: AgentConfig) -> String {
    match within("the refusal", Agent::connect(config)).await.err() {
        Some(AgentError::Connect(ConnectError::Refused(Refusal::NameTaken { holder, .. }))) => {
            holder.to_string()
        }
        other => panic!("{other:?}"),
    }
}

fn with_token(mut config: AgentConfig, token: &str) -> AgentConfig {
    config.token = Secret::new(token);
    config
}

async fn lab_with_tokens() -> Lab {
    Lab::with(|edge| edge.tokens = Some(["mine", "yours"].map(Secret::new).into())).await
}

#[tokio::test]
async fn a_name_is_kept_for_an_agent_that_was_cut_off_and_others_hear_until_when() {
    let lab = lab_with_tokens().await;
    let upstream = Server::text("here").await;
    let config = with_token(lab.agent_config("blog", &upstream), "mine");
    let id = config.id;
    let agent = Running::start(config.clone()).await;

    let connected = refused(with_token(lab.agent_config("blog", &upstream), "yours")).await;
    agent.kill();
    eventually("the agent's absence", || async {
        let holder = refused(with_token(lab.agent_config("blog", &upstream), "yours")).await;
        assert!(holder.contains(&id.to_string()), "{holder}");
        assert!(!holder.contains("mine"), "{holder}");
        holder.contains("UTC, in ")
    })
    .await;

    assert!(
        connected.contains("as long as it is connected"),
        "{connected}"
    );
    let _back = Running::start(config).await;
    assert_eq!(lab.visitor("blog").get("/").await.text(), "here");
}

#[tokio::test]
async fn a_name_is_kept_from_agents_with_the_same_token_too_unless_they_ask_to_take_it_over() {
    let lab = lab_with_tokens().await;
    let (old, new) = (Server::text("old").await, Server::text("new").await);
    let config = with_token(lab.agent_config("blog", &old), "mine");
    let id = config.id.to_string();
    let agent = Running::start(config).await;
    let mut other = with_token(lab.agent_config("blog", &new), "mine");

    agent.kill();
    eventually("the agent's absence", || async {
        let holder = refused(other.clone()).await;
        assert!(holder.contains(&id), "{holder}");
        holder.contains("UTC, in ")
    })
    .await;

    other.take_over_names = true;
    let mut newer = Running::start(other).await;
    assert_eq!(lab.visitor("blog").get("/").await.text(), "new");
    let notice = newer.event(notice).await;
    assert!(notice.contains("blog") && notice.contains(&id), "{notice}");
}

#[tokio::test]
async fn an_agent_that_is_silent_keeps_its_name_and_serves_on_when_it_is_heard_again() {
    let lab = lab_with_tokens().await;
    let (old, new) = (Server::text("old").await, Server::text("new").await);
    let relay = Relay::to(lab.quic).await;
    let mut config = with_token(lab.agent_config("blog", &old), "mine");
    config.server.port = relay.addr.port();
    let silent = Running::start(config).await;
    let other = with_token(lab.agent_config("blog", &new), "mine");

    relay.towards_edge(false);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(4) {
        let holder = refused(other.clone()).await;
        assert!(holder.contains("as long as it is connected"), "{holder}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    relay.towards_edge(true);

    assert_eq!(lab.visitor("blog").get("/").await.text(), "old");
    silent.stop().await.unwrap();
}

#[tokio::test]
async fn a_takeover_that_is_asked_for_is_said_on_both_sides() {
    let lab = lab_with_tokens().await;
    let (old, new) = (Server::text("old").await, Server::text("new").await);
    let first = Running::start(with_token(lab.agent_config("blog", &old), "mine")).await;
    let mut config = with_token(lab.agent_config("blog", &new), "mine");
    config.take_over_names = true;
    let id = config.id.to_string();

    let mut second = Running::start(config).await;

    let err = first.ended().await.unwrap_err();
    assert!(matches!(err, AgentError::TakenOver { .. }), "{err:?}");
    assert!(err.to_string().contains(&id), "{err}");
    let notice = second.event(notice).await;
    assert!(notice.contains("taken over"), "{notice}");
    assert_eq!(lab.visitor("blog").get("/").await.text(), "new");
}

#[tokio::test]
async fn nobody_takes_a_name_over_with_another_token_or_without_one() {
    let lab = lab_with_tokens().await;
    let upstream = Server::text("mine").await;
    let _agent = Running::start(with_token(lab.agent_config("blog", &upstream), "mine")).await;
    let open = Lab::start().await;
    let _other = open.agent("blog", &upstream).await;

    let mut config = with_token(lab.agent_config("blog", &upstream), "yours");
    config.take_over_names = true;
    refused(config).await;
    let mut config = open.agent_config("blog", &upstream);
    config.take_over_names = true;
    refused(config).await;

    assert_eq!(lab.visitor("blog").get("/").await.text(), "mine");
    assert_eq!(open.visitor("blog").get("/").await.text(), "mine");
}

#[tokio::test]
async fn two_agents_that_both_ask_to_take_over_do_not_fight() {
    let lab = lab_with_tokens().await;
    let (old, new) = (Server::text("old").await, Server::text("new").await);
    let mut first = with_token(lab.agent_config("blog", &old), "mine");
    first.take_over_names = true;
    let mut second = with_token(lab.agent_config("blog", &new), "mine");
    second.take_over_names = true;
    let loser = Running::start(first.clone()).await;
    let _winner = Running::start(second).await;
    loser.ended().await.unwrap_err();

    // A service manager starts it again and again.
    for _ in 0..3 {
        let holder = refused(first.clone()).await;
        assert!(holder.contains("wants to keep it"), "{holder}");
    }

    assert_eq!(lab.visitor("blog").get("/").await.text(), "new");
}

#[tokio::test]
async fn two_agents_with_one_identity_do_not_fight() {
    let lab = Lab::start().await;
    let (old, new) = (Server::text("old").await, Server::text("new").await);
    let first = lab.agent_config("blog", &old);
    let mut copy = lab.agent_config("blog", &new);
    copy.id = first.id;
    let loser = Running::start(first.clone()).await;

    let _winner = Running::start(copy).await;

    let err = loser.ended().await.unwrap_err();
    assert!(matches!(err, AgentError::Superseded), "{err:?}");
    for _ in 0..3 {
        let holder = refused(first.clone()).await;
        assert!(
            holder.contains("another process with the same identity"),
            "{holder}"
        );
    }
    assert_eq!(lab.visitor("blog").get("/").await.text(), "new");
}

#[tokio::test]
async fn an_agent_that_was_superseded_by_one_that_is_gone_gets_its_name_back() {
    let lab = Lab::start().await;
    let ghost = Server::text("ghost").await;
    let relay = Relay::to(lab.quic).await;
    let mut gone = lab.agent_config("blog", &ghost);
    gone.server.port = relay.addr.port();
    let mut hello = hello(gone.id);
    hello.claim = ClaimMode::Superseded;
    let _gone = Running::start(gone).await;

    let alive = answer(&lab, &hello).await;
    relay.towards_edge(false);
    let silent = answer(&lab, &hello).await;

    assert!(matches!(alive.1, EdgeMessage::Refused(_)), "{:?}", alive.1);
    assert!(
        matches!(silent.1, EdgeMessage::Welcome(_)),
        "{:?}",
        silent.1
    );
}

#[tokio::test]
async fn a_session_that_comes_late_does_not_supersede_a_newer_one_of_the_same_run() {
    let lab = Lab::start().await;
    let id = AgentId::random();
    let late = hello(id);
    let mut newer = hello(id);
    newer.epoch = 2;

    let (_connection, first) = answer(&lab, &newer).await;
    let (_other, second) = answer(&lab, &late).await;
    newer.epoch = 3;
    let (_third, third) = answer(&lab, &newer).await;

    assert!(matches!(first, EdgeMessage::Welcome(_)), "{first:?}");
    let EdgeMessage::Refused(refused) = second else {
        panic!("{second:?}");
    };
    let Refusal::NameTaken { holder, .. } = refused.into() else {
        panic!("another reason");
    };
    assert!(holder.contains("newer session"), "{holder}");
    assert!(matches!(third, EdgeMessage::Welcome(_)), "{third:?}");
}

#[tokio::test]
async fn an_agent_that_returns_too_late_waits_until_its_name_is_free_again() {
    let lab = lab_with_tokens().await;
    let (old, new) = (Server::text("old").await, Server::text("new").await);
    let relay = Relay::to(lab.quic).await;
    let mut config = with_token(lab.agent_config("blog", &old), "mine");
    config.server.port = relay.addr.port();
    let mut rightful = Running::start(config).await;

    relay.towards_edge(false);
    relay.towards_agents(false);
    let mut other = with_token(lab.agent_config("blog", &new), "mine");
    other.take_over_names = true;
    let other = Running::start(other).await;
    // Longer than the edge remembers the session, so that it cannot say who has taken the name.
    tokio::time::sleep(Duration::from_secs(3)).await;
    relay.towards_edge(true);
    relay.towards_agents(true);
    let reason = rightful
        .event(|event| match event {
            Event::Reconnecting { reason, .. } if reason.contains("held by") => {
                Some(reason.clone())
            }
            _ => None,
        })
        .await;
    assert!(reason.contains("as long as it is connected"), "{reason}");
    assert_eq!(lab.visitor("blog").get("/").await.text(), "new");
    other.stop().await.unwrap();

    eventually("the rightful agent's return", || async {
        lab.visitor("blog").get("/").await.text() == "old"
    })
    .await;
}

#[tokio::test]
async fn an_agent_whose_clock_went_back_supersedes_its_own_ghost() {
    let Some(faketime) = tools::program("faketime") else {
        return;
    };
    // It waits for the program that it starts, and would outlive a kill that is meant for that one: only its
    // library is wanted.
    let mut ask = faketime.command();
    ask.args(["-f", "+1d", "env"]);
    let environment = succeed(ask).await;
    let library = environment
        .lines()
        .find_map(|line| line.strip_prefix("LD_PRELOAD="))
        .expect("faketime works by a library");
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &[]).await;
    let (server, ca) = (edge.server(), edge.ca());
    let connect = |ahead: bool| {
        let args = ["connect", "3000", "--transport", "quic", "--server"];
        let mut command = qtunnel(home.path(), args);
        command.arg(&server).arg("--ca").arg(&ca);
        if ahead {
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME", "+1d")
                // Timers go by another clock, which no machine sets.
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        Process::spawn(command)
    };
    let mut ghost = connect(true);
    let url = ghost.line("  →  ").await;

    ghost.signal(Signal::SIGKILL);
    ghost.ended().await;
    let mut agent = connect(false);

    assert_eq!(agent.line("  →  ").await, url);
    agent.line("connected over").await;
}

fn notice(event: &Event) -> Option<String> {
    match event {
        Event::Notice(text) => Some(text.clone()),
        _ => None,
    }
}

/// The first hello of a run, for the name "blog".
fn hello(agent: AgentId) -> Hello {
    match greeting(&["blog"]) {
        AgentMessage::Hello(hello) => Hello { agent, ..hello },
        other => panic!("{other:?}"),
    }
}

/// Say hello, and return what the edge says, and what keeps the session open.
async fn answer(lab: &Lab, hello: &Hello) -> (Kept, EdgeMessage) {
    let connection = lab.dial(&ALPN).await;
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    say(&mut send, &AgentMessage::Hello(hello.clone())).await;
    let answer = hear(&mut receive).await;
    ((connection, send, receive), answer)
}

type Kept = (Connection, SendStream, RecvStream);

#[tokio::test]
async fn a_name_is_free_when_its_time_is_over() {
    let lab = Lab::with(|edge| edge.lease = Duration::from_millis(300)).await;
    let (mine, yours) = (Server::text("mine").await, Server::text("yours").await);
    lab.agent("blog", &mine).await.kill();

    eventually("the end of the lease", || async {
        lab.visitor("blog").get("/").await.status == 404
    })
    .await;

    let _other = lab.agent("blog", &yours).await;
    assert_eq!(lab.visitor("blog").get("/").await.text(), "yours");
}

#[tokio::test]
async fn names_outlive_an_edge_that_is_killed() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let upstream = Server::text("here").await;
    let config = edge.agent_config("blog", &upstream);
    let agent = Running::start(config.clone()).await;

    edge.kill().await;
    agent.kill();
    edge.restart().await;

    let holder = refused(edge.agent_config("blog", &upstream)).await;
    assert!(holder.contains(&config.id.to_string()), "{holder}");
    let _back = Running::start(config).await;
    assert_eq!(edge.visitor("blog").get("/").await.text(), "here");
}

#[tokio::test]
async fn the_file_of_names_is_whole_whenever_the_edge_is_killed() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let upstream = Server::text("here").await;
    let mut granted = Vec::new();
    for round in 0..20 {
        let (told, mut ready) = tokio::sync::mpsc::unbounded_channel();
        let mut agents = tokio::task::JoinSet::new();
        for number in 0..8 {
            let config = edge.agent_config(&format!("name-{round}-{number}"), &upstream);
            let told = told.clone();
            agents.spawn(async move {
                let name = config.tunnels[0].name.to_string();
                let agent = Agent::connect(config).await.expect("a free name");
                let _ = told.send(name);
                let _ = agent.serve(std::future::pending()).await;
            });
        }
        // Some names are granted, others are just being claimed.
        for _ in 0..=round % 4 {
            granted.push(within("a granted name", ready.recv()).await.unwrap());
        }
        edge.kill().await;
        agents.shutdown().await;
        while let Ok(name) = ready.try_recv() {
            granted.push(name);
        }
        let file = home.path().join(".local/state/qtunnel/leases.json");
        let file: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file).unwrap()).expect("a whole file");
        let kept: Vec<_> = file["leases"]
            .as_array()
            .unwrap()
            .iter()
            .map(|lease| lease["name"].as_str().unwrap())
            .collect();
        let missing: Vec<_> = granted
            .iter()
            .filter(|name| !kept.contains(&name.as_str()))
            .collect();
        assert!(missing.is_empty(), "granted but not kept: {missing:?}");
        edge.restart().await;
    }
}

#[tokio::test]
async fn an_agent_supersedes_a_ghost_that_the_edge_still_believes_in() {
    let lab = Lab::start().await;
    let (old, new) = (Server::text("old").await, Server::text("new").await);
    let relay = Relay::to(lab.quic).await;
    let mut config = lab.agent_config("blog", &old);
    config.server.port = relay.addr.port();
    let id = config.id;
    let _ghost = Running::start(config).await;
    assert_eq!(lab.visitor("blog").get("/").await.text(), "old");

    // Half open: the edge's packets get through and are even answered, but nobody hears the answers.
    relay.towards_edge(false);
    let _newer = lab.agent_with("blog", &new, |agent| agent.id = id).await;

    assert_eq!(lab.visitor("blog").get("/").await.text(), "new");
}
