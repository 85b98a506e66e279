//! Agents whose network lets nothing out but through a proxy.

use std::path::Path;

use qtunnel::{Carrier, ConnectError, Event, Pin, Proxy, Transport, Trust};

use crate::lab::back::Back;
use crate::lab::process::{Process, qtunnel};
use crate::lab::{Lab, Server, way, within};

/// What the environment and the flags of an agent say about proxies.
type Words<'a> = &'a [(&'a str, &'a str)];

#[tokio::test]
async fn an_agent_goes_through_squid_when_the_environment_says_so() {
    let Some(squid) = Back::squid(None).await else {
        return;
    };
    let office = Office::open().await;
    let proxy = format!("http://{}", squid.addr);
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        office.publishes(&[(name, &proxy)], &[]).await;
    }
    squid.logged(&office.target).await;
}

#[tokio::test]
async fn an_agent_goes_through_the_squid_of_a_flag_whatever_the_environment_says() {
    let Some(squid) = Back::squid(None).await else {
        return;
    };
    let office = Office::open().await;
    let flag = format!("http://{}", squid.addr);

    office
        .publishes(&[("HTTPS_PROXY", NOBODY)], &["--proxy", &flag])
        .await;

    squid.logged(&office.target).await;
}

#[tokio::test]
async fn no_proxy_and_proxy_off_lead_past_every_proxy() {
    let office = Office::open().await;
    let dead = ("HTTPS_PROXY", NOBODY);

    office
        .publishes(&[dead, ("NO_PROXY", "localhost")], &[])
        .await;
    office.publishes(&[dead], &["--proxy", "off"]).await;
}

#[tokio::test]
async fn squid_lets_an_agent_through_that_knows_the_password() {
    let Some(squid) = Back::squid(Some(("agent", "s3cret"))).await else {
        return;
    };
    let office = Office::open().await;
    let proxy = format!("http://agent:s3cret@{}", squid.addr);

    office.publishes(&[("HTTPS_PROXY", &proxy)], &[]).await;

    squid.logged(&office.target).await;
}

#[tokio::test]
async fn a_proxy_that_wants_another_password_is_named_without_the_one_that_was_given() {
    let Some(squid) = Back::squid(Some(("agent", "s3cret"))).await else {
        return;
    };
    let office = Office::open().await;
    for url in ["http://", "http://agent:wr0ng@"] {
        let proxy = format!("{url}{}", squid.addr);

        let said = office.fails(&[("HTTPS_PROXY", &proxy)]).await;

        let advice = format!("proxy {} wants a user name and a password", squid.addr);
        assert!(said.contains(&advice), "{said}");
        assert!(!said.contains("wr0ng"), "{said}");
    }
}

#[tokio::test]
async fn an_agent_goes_through_a_socks_proxy_which_resolves_the_name() {
    for credentials in [None, Some(("agent", "s3cret"))] {
        let Some(mut socks) = Back::socks(credentials).await else {
            return;
        };
        let office = Office::open().await;
        let user = if credentials.is_some() {
            "agent:s3cret@"
        } else {
            ""
        };
        let proxy = format!("socks5h://{user}{}", socks.addr);

        office.publishes(&[("ALL_PROXY", &proxy)], &[]).await;
        socks
            .process
            .line(&format!("connected to {}", office.target))
            .await;
        office.publishes(&[], &["--proxy", &proxy]).await;
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_named() {
    let office = Office::open().await;

    let said = office.fails(&[("HTTPS_PROXY", NOBODY)]).await;

    assert!(
        said.contains("cannot connect to proxy 127.0.0.1:9"),
        "{said}"
    );
}

#[tokio::test]
async fn a_proxy_that_intercepts_tls_reads_nothing() {
    let Some(mut spy) = Back::intercepting(&spying()).await else {
        return;
    };
    let lab = Lab::start().await.over(Carrier::WebSocket);
    let upstream = Server::echo().await;
    let _agent = lab
        .agent_with("blog", &upstream, |config| {
            config.proxy = Proxy::Url(format!("http://{}", spy.addr));
        })
        .await;

    let reply = lab.visitor("blog").post("/", "open sesame").await;

    assert_eq!((reply.status, reply.text()), (200, "open sesame"));
    spy.process.line("opened /_qtunnel/connect").await;
    spy.process.line("read nothing").await;
    let read = |line: &String| line.starts_with("read [");
    assert!(
        !spy.process.seen.iter().any(read),
        "{:#?}",
        spy.process.seen
    );
}

#[tokio::test]
async fn behind_a_proxy_that_intercepts_tls_a_wrong_pin_or_authority_is_named_beside_the_right_one()
{
    let Some(spy) = Back::intercepting(&spying()).await else {
        return;
    };
    let lab = Lab::start().await.over(Carrier::WebSocket);
    let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
    let expected = Pin::of(other.cert.der()).unwrap();
    let file = lab.state.path().join("other.pem");
    std::fs::write(&file, other.cert.pem()).unwrap();
    for (trust, words) in [
        (Trust::Pins(vec![expected]), expected.to_string()),
        (Trust::Ca(file.clone()), file.display().to_string()),
    ] {
        let upstream = Server::echo().await;
        let mut config = lab.agent_config("blog", &upstream);
        config.proxy = Proxy::Url(format!("http://{}", spy.addr));
        config.trust = trust;

        let refused = within("the refusal", qtunnel::Agent::connect(config)).await;

        let Err(qtunnel::AgentError::Connect(ConnectError::Untrusted { why, .. })) = refused else {
            panic!("connected, or failed otherwise");
        };
        assert!(why.contains(&words), "{why}");
        assert!(why.contains(&lab.pin().to_string()), "{why}");
    }
}

#[tokio::test]
async fn udp_goes_past_the_proxy_and_the_websocket_through_it() {
    let Some(squid) = Back::squid(None).await else {
        return;
    };
    let lab = Lab::start().await;
    let upstream = Server::echo().await;
    let proxy = Proxy::Url(format!("http://{}", squid.addr));
    let mut agent = lab
        .agent_with("blog", &upstream, |config| {
            config.transport = Transport::Auto;
            config.proxy = proxy;
        })
        .await;

    // Where packets are lost, the proxy may have the start.
    let over_udp = agent.event(|event| match event {
        Event::Ready { transport, .. } | Event::Transport(transport) => {
            (transport.carrier == Carrier::Udp).then_some(())
        }
        _ => None,
    });

    over_udp.await;
}

/// An edge, and a place from which agents reach it over WebSockets.
struct Office {
    edge: Lab,
    home: tempfile::TempDir,
    upstream: Server,
    /// The edge as proxies are asked for it.
    target: String,
}

impl Office {
    async fn open() -> Self {
        let edge = Lab::start().await;
        Self {
            target: format!("{}:{}", way::host(), edge.https.port()),
            edge,
            home: tempfile::tempdir().unwrap(),
            upstream: Server::text("published").await,
        }
    }

    fn agent(&self, environment: Words, flags: &[&str]) -> Process {
        let port = self.upstream.addr.port().to_string();
        let url = format!("wss://{}", self.target);
        let mut command = qtunnel(self.home.path(), ["connect", &port, "--json"]);
        command
            .args(["--subdomain", "office", "--transport", "websocket"])
            .args(["--server", "localhost", "--websocket-url", &url])
            .args(["--pin", &self.edge.pin().to_string(), "--exit-on-failure"])
            .args(flags)
            .envs(environment.iter().copied());
        Process::spawn(command)
    }

    /// Publish something from there, and visit it.
    async fn publishes(&self, environment: Words<'_>, flags: &[&str]) {
        let mut agent = self.agent(environment, flags);
        let ready = agent.line("\"ready\"").await;
        assert!(ready.contains("\"transport\":\"websocket\""), "{ready}");

        let reply = self.edge.visitor("office").get("/").await;

        assert_eq!(reply.text(), "published", "{environment:?} {flags:?}");
        agent.signal(nix::sys::signal::Signal::SIGTERM);
        agent.ended().await;
    }

    /// Fail to publish anything, and return what was said about it.
    async fn fails(&self, environment: Words<'_>) -> String {
        let mut agent = self.agent(environment, &[]);
        assert_eq!(agent.ended().await.code(), Some(5), "{:#?}", agent.seen);
        agent.seen.join("\n")
    }
}

fn spying() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/programs/watch_tunnel.py")
}

/// A port on which nobody listens, below those of any user's programs.
const NOBODY: &str = "http://127.0.0.1:9";
