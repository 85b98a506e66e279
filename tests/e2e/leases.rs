//! Whose a name is while its agent is away.

use std::time::Duration;

use qtunnel::proto::{AgentId, Refusal, Secret};
use qtunnel::{Agent, AgentConfig, AgentError, ConnectError};

use crate::lab::{EdgeProcess, Lab, Relay, Running, Server, eventually, within};

/// Ask for a name that is held, and return who holds it.
async fn refused(config: AgentConfig) -> String {
    match within("the refusal", Agent::connect(config)).await.err() {
        Some(AgentError::Connect(ConnectError::Refused(Refusal::NameTaken { holder, .. }))) => {
            holder
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
async fn another_agent_with_the_same_token_may_follow_one_that_was_cut_off() {
    let lab = lab_with_tokens().await;
    let (old, new) = (Server::text("old").await, Server::text("new").await);
    let agent = Running::start(with_token(lab.agent_config("blog", &old), "mine")).await;

    agent.kill();
    let mut config = with_token(lab.agent_config("blog", &new), "mine");
    config.id = AgentId::random();
    eventually("the edge's noticing", || async {
        let connected = within("an answer", Agent::connect(config.clone())).await;
        let Ok(agent) = connected else { return false };
        tokio::spawn(agent.serve(std::future::pending()));
        true
    })
    .await;

    assert_eq!(lab.visitor("blog").get("/").await.text(), "new");
}

#[tokio::test]
async fn another_agent_with_the_same_token_may_follow_one_that_has_fallen_silent() {
    let lab = lab_with_tokens().await;
    let (old, new) = (Server::text("old").await, Server::text("new").await);
    let relay = Relay::to(lab.quic).await;
    let mut config = with_token(lab.agent_config("blog", &old), "mine");
    config.server.port = relay.addr.port();
    let _ghost = Running::start(config).await;

    let alive = refused(with_token(lab.agent_config("blog", &new), "mine")).await;
    relay.towards_edge(false);
    let _newer = Running::start(with_token(lab.agent_config("blog", &new), "mine")).await;

    assert!(alive.contains("as long as it is connected"), "{alive}");
    assert_eq!(lab.visitor("blog").get("/").await.text(), "new");
}

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
