//! Public names: who gets which, and for how long.

use std::time::Duration;

use qtunnel::proto::{AgentId, Refusal};
use qtunnel::{AgentError, ConnectError, Name};

use crate::lab::process::Process;
use crate::lab::{EdgeProcess, Lab, Running, Server, within};

/// Start `qtunnel connect` and return the label in front of the domain.
async fn name_of(edge: &EdgeProcess, home: &std::path::Path, args: &[&str]) -> String {
    let (server, ca) = (edge.server(), edge.ca());
    let ca = ca.to_string_lossy();
    let mut all = vec!["connect", "--server", &server, "--ca", &ca];
    all.extend(args);
    let mut agent = Process::qtunnel(home, all);
    let line = agent.line("http://").await;
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(agent.ended().await.code(), Some(0), "{:#?}", agent.seen);
    let url: hyper::Uri = line.split_whitespace().next().unwrap().parse().unwrap();
    let host = url.host().unwrap();
    host.strip_suffix(".localhost").unwrap().to_owned()
}

#[tokio::test]
async fn a_name_stays_the_same_for_the_same_upstream_and_differs_for_others() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &[]).await;

    let first = name_of(&edge, home.path(), &["3000"]).await;
    let second = name_of(&edge, home.path(), &["localhost:3000"]).await;
    let other = name_of(&edge, home.path(), &["3001"]).await;
    let random = name_of(&edge, home.path(), &["3000", "--random"]).await;
    let asked = name_of(&edge, home.path(), &["3000", "--subdomain", "Blog"]).await;

    assert_eq!(first, second);
    assert_ne!(first, other);
    assert_ne!(first, random);
    assert_eq!(asked, "blog");
    let lengths: Vec<_> = first.split('-').map(str::len).collect();
    assert!(
        matches!(lengths[..], [_, _, 4]),
        "{first}: two words and a suffix"
    );
}

#[tokio::test]
async fn another_machine_gets_another_name() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &[]).await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());

    let first = name_of(&edge, one.path(), &["3000"]).await;
    let second = name_of(&edge, two.path(), &["3000"]).await;

    assert_ne!(first, second);
}

#[tokio::test]
async fn a_name_of_another_agent_is_refused_until_it_leaves() {
    let lab = Lab::start().await;
    let (mine, yours) = (Server::text("mine").await, Server::text("yours").await);
    let holder = AgentId::random();
    let agent = lab
        .agent_with("blog", &mine, |agent| agent.id = holder)
        .await;

    let refused = qtunnel::Agent::connect(lab.agent_config("blog", &yours));
    let err = within("the refusal", refused).await.err().unwrap();

    let AgentError::Connect(ConnectError::Refused(Refusal::NameTaken {
        name, holder: who, ..
    })) = err
    else {
        panic!("{err:?}");
    };
    assert_eq!(name, "blog");
    assert!(who.contains(&holder.to_string()), "{who}");
    assert_eq!(lab.visitor("blog").get("/").await.text(), "mine");
    agent.stop().await.unwrap();
    let _agent = lab.agent("blog", &yours).await;
    assert_eq!(lab.visitor("blog").get("/").await.text(), "yours");
}

#[tokio::test]
async fn the_same_agents_newer_session_takes_its_names_over_at_once() {
    let lab = Lab::start().await;
    let (old, new) = (Server::text("old").await, Server::text("new").await);
    let id = AgentId::random();
    let ghost = lab.agent_with("blog", &old, |agent| agent.id = id).await;

    let _newer = lab.agent_with("blog", &new, |agent| agent.id = id).await;

    assert_eq!(lab.visitor("blog").get("/").await.text(), "new");
    let err = ghost.ended().await.unwrap_err();
    assert!(matches!(err, AgentError::Superseded), "{err:?}");
    assert!(err.to_string().contains("--subdomain"), "{err}");
    assert_eq!(lab.visitor("blog").get("/").await.text(), "new");
}

#[tokio::test]
async fn a_name_that_cannot_be_one_is_refused_by_the_edge_too() {
    for name in ["www", "a_b", "-a", "xn--a", "a.b", ""] {
        let lab = Lab::start().await;
        let refusal = lab.hello(name).await.unwrap_err();
        assert!(
            matches!(&refusal, Refusal::NameInvalid { name: named, .. } if named == name),
            "{name:?}: {refusal:?}"
        );
    }
}

#[tokio::test]
async fn one_agent_has_several_tunnels() {
    let lab = Lab::with(|edge| edge.hold = Duration::ZERO).await;
    let (one, two) = (Server::text("one").await, Server::text("two").await);
    let agent = lab
        .agent_with("one", &one, |agent| {
            agent.tunnels.push(Lab::tunnel("two", &two));
        })
        .await;

    assert_eq!(lab.visitor("one").get("/").await.text(), "one");
    assert_eq!(lab.visitor("two").get("/").await.text(), "two");
    assert!(agent.urls.iter().any(|url| url.contains("://two.")));
    agent.stop().await.unwrap();
    assert_eq!(lab.visitor("two").get("/").await.status, 502);
}

#[tokio::test]
async fn an_agent_gets_all_of_its_names_or_none() {
    let lab = Lab::start().await;
    let upstream = Server::text("here").await;
    let _holder = lab.agent("taken", &upstream).await;
    let mut config = lab.agent_config("free", &upstream);
    config.tunnels.push(Lab::tunnel("taken", &upstream));

    let refused = within("the refusal", qtunnel::Agent::connect(config)).await;

    assert!(refused.is_err());
    assert_eq!(lab.visitor("free").get("/").await.status, 404);
}

#[tokio::test]
async fn hundreds_of_agents_are_served_side_by_side() {
    let lab = Lab::start().await;
    let upstream = Server::echo().await;
    let mut agents = Vec::new();
    // Two hundred handshakes at a time would test how busy this machine is.
    for wave in 0..4 {
        let mut coming = tokio::task::JoinSet::new();
        for number in wave * 50..(wave + 1) * 50 {
            let config = lab.agent_config(&format!("agent-{number}"), &upstream);
            coming.spawn(Running::start(config));
        }
        agents.extend(within("fifty agents", coming.join_all()).await);
    }

    for number in 0..200 {
        let reply = lab.visitor(&format!("agent-{number}")).get("/").await;

        assert_eq!(reply.header("x-host"), format!("agent-{number}.localhost"));
    }
}

#[test]
fn random_names_do_not_repeat() {
    let names: std::collections::HashSet<_> = (0..1_000).map(|_| Name::random()).collect();

    assert!(names.len() >= 999, "{} of 1000", names.len());
}
