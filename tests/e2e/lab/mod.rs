//! The harness: a [`Lab`] owns an edge, its agents and their upstreams, on loopback and on ports of
//! the system's choice. Its methods return when the thing is ready, so that no test ever sleeps.

pub mod back;
pub mod cable;
pub mod edge_process;
pub mod fake_edge;
pub mod frames;
pub mod front;
pub mod handshakes;
pub mod head;
pub mod http2;
pub mod load;
pub mod peer;
pub mod ports;
pub mod process;
pub mod relay;
pub mod tools;
pub mod upstream;
pub mod visitor;
pub mod way;
pub mod wire;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Uri;
use qtunnel::proto::{AgentId, Secret};
use qtunnel::{
    Agent, AgentConfig, Carrier, Edge, EdgeConfig, Event, HostHeader, Observer, Pin, Proxy,
    ServerAddr, Transport, Trust, TunnelConfig, Upgrades, Upstream,
};
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use cable::Cable;
pub use edge_process::EdgeProcess;
pub use http2::Http2;
pub use load::Load;
pub use relay::Relay;
pub use upstream::Server;
pub use visitor::{Reply, Visitor};
pub use wire::{Wire, Wires};

/// How long a test waits on loopback for something that should happen; [`way::patience`] is what counts.
const PATIENCE: Duration = Duration::from_secs(20);

/// Wait for something, and fail the test with its name if it does not happen.
pub async fn within<T>(what: &str, event: impl Future<Output = T>) -> T {
    let patience = way::patience();
    timeout(patience, event)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen within {patience:?}"))
}

/// Wait until something is so, asking again and again.
pub async fn eventually<Fut>(what: &str, mut is_so: impl FnMut() -> Fut)
where
    Fut: Future<Output = bool>,
{
    within(what, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Put other bytes in place of a text, of the same length.
pub fn forge(bytes: bytes::Bytes, text: &str, with: &[u8]) -> bytes::Bytes {
    assert_eq!(text.len(), with.len(), "the message must stay as long");
    let at = bytes
        .windows(text.len())
        .position(|at| at == text.as_bytes())
        .expect("the message has the text");
    let mut bytes = bytes.to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes.into()
}

/// Show what edges and agents log, if `RUST_LOG` asks for it.
fn show_logs() {
    if let Ok(wanted) = std::env::var("RUST_LOG") {
        let targets: Targets = wanted.parse().expect("levels of modules");
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        // Only the first test of a process can.
        let _ = tracing_subscriber::registry()
            .with(lines)
            .with(targets)
            .try_init();
    }
}

/// An edge and what belongs to it.
pub struct Lab {
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub quic: SocketAddr,
    pub domain: String,
    pub trust: Trust,
    pub state: TempDir,
    carrier: Carrier,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<()>>,
}

impl Lab {
    /// Start an edge for `*.localhost`.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Start an edge for `*.tunnel.test`, as a public edge has a domain of its own.
    pub async fn public() -> Self {
        Self::with(|config| config.domain = "tunnel.test".into()).await
    }

    /// Start an edge, with some of its configuration changed.
    pub async fn with(change: impl FnOnce(&mut EdgeConfig)) -> Self {
        show_logs();
        let state = tempfile::tempdir().expect("a temporary directory");
        let mut config = EdgeConfig {
            state_dir: state.path().into(),
            grace_period: Duration::from_secs(5),
            // Whatever a second worker could break is broken in every test.
            workers: NonZeroUsize::new(2).expect("two"),
            ..EdgeConfig::default()
        };
        change(&mut config);
        let domain = config.domain.clone();
        let edge = Edge::bind(config).await.expect("the edge binds");
        let first =
            |addrs: &[SocketAddr]| addrs.first().copied().unwrap_or(([127, 0, 0, 1], 0).into());
        let (http, https, quic) = (
            first(edge.http_addrs()),
            first(edge.https_addrs()),
            first(edge.quic_addrs()),
        );
        let trust = Trust::Pins(vec![edge.pin()]);
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(edge.serve(async move {
            let _ = stopped.await;
        }));
        Self {
            http,
            https,
            quic,
            domain,
            trust,
            state,
            carrier: Carrier::Udp,
            stop: Some(stop),
            served: Some(served),
        }
    }

    /// Let agents use this carrier and no other.
    pub fn over(mut self, carrier: Carrier) -> Self {
        self.carrier = carrier;
        self
    }

    /// Connect an agent that publishes `upstream` under `name`.
    pub async fn agent(&self, name: &str, upstream: impl Into<Upstream>) -> Running {
        self.agent_with(name, upstream, |_| {}).await
    }

    /// Connect an agent, with some of its configuration changed.
    pub async fn agent_with(
        &self,
        name: &str,
        upstream: impl Into<Upstream>,
        change: impl FnOnce(&mut AgentConfig),
    ) -> Running {
        let mut config = self.agent_config(name, upstream);
        change(&mut config);
        Running::start(config).await
    }

    /// The configuration of an agent of this edge.
    pub fn agent_config(&self, name: &str, upstream: impl Into<Upstream>) -> AgentConfig {
        AgentConfig {
            server: ServerAddr {
                host: way::from_agents(self.quic).ip().to_string(),
                port: self.quic.port(),
            },
            trust: self.trust.clone(),
            transport: match self.carrier {
                Carrier::Udp => Transport::Quic,
                Carrier::WebSocket => Transport::Websocket,
            },
            websocket: Some(self.websocket()),
            ..Self::config(name, upstream)
        }
    }

    /// What agents recognise the edge by.
    pub fn pin(&self) -> Pin {
        match &self.trust {
            Trust::Pins(pins) => pins[0],
            other => panic!("{other:?}"),
        }
    }

    /// Where the edge accepts WebSockets.
    pub fn websocket(&self) -> Uri {
        let url = format!("wss://{}", way::from_agents(self.https));
        url.parse().expect("a valid address")
    }

    /// The configuration of an agent whose edge is still to be named.
    pub fn config(name: &str, upstream: impl Into<Upstream>) -> AgentConfig {
        AgentConfig {
            server: "localhost".parse().expect("a host"),
            trust: Trust::System,
            transport: Transport::Quic,
            websocket: None,
            proxy: Proxy::Direct,
            token: Secret::default(),
            id: AgentId::random(),
            take_over_names: false,
            tunnels: vec![Self::tunnel(name, upstream)],
            grace_period: Duration::from_secs(5),
            upstream_timeout: Duration::from_secs(60),
            exit_on_failure: false,
            observer: Observer::default(),
        }
    }

    /// The configuration of a tunnel, for an agent that has one more.
    pub fn tunnel(name: &str, upstream: impl Into<Upstream>) -> TunnelConfig {
        TunnelConfig {
            name: name.parse().expect("a valid name"),
            upstream: upstream.into(),
            host_header: HostHeader::Preserve,
            upgrades: Upgrades::default(),
        }
    }

    /// Return a visitor of the tunnel `name` over plain HTTP/1.1.
    pub fn visitor(&self, name: &str) -> Visitor {
        Visitor::new(self.http, format!("{name}.{}", self.domain))
    }

    /// Connect a visitor of the tunnel `name` over TLS and HTTP/2.
    pub async fn http2(&self, name: &str) -> Http2 {
        Http2::connect(self.https, &format!("{name}.{}", self.domain), &self.ca()).await
    }

    /// Tell the edge to stop, without waiting for it.
    pub fn begin_stop(&mut self) -> JoinHandle<()> {
        drop(self.stop.take());
        self.served.take().expect("the edge is stopped once")
    }

    /// The certificate authority that visitors over TLS may be told to trust.
    pub fn ca(&self) -> std::path::PathBuf {
        self.state.path().join("ca.pem")
    }
}

/// An agent that is connected, and what it has reported.
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), qtunnel::AgentError>>,
    events: Arc<Mutex<Vec<Event>>>,
    changed: watch::Receiver<()>,
    pub urls: Vec<String>,
}

impl Running {
    /// Connect an agent.
    pub async fn start(mut config: AgentConfig) -> Self {
        let events = Arc::<Mutex<Vec<Event>>>::default();
        let (change, changed) = watch::channel(());
        let seen = events.clone();
        config.observer = Observer::new(move |event| {
            seen.lock().expect("no panic while it is held").push(event);
            change.send_replace(());
        });
        let agent = within("connecting", Agent::connect(config))
            .await
            .expect("the agent connects");
        let urls = agent
            .tunnels()
            .iter()
            .flat_map(|tunnel| &tunnel.urls)
            .map(ToString::to_string)
            .collect();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(agent.serve(async move {
            let _ = stopped.await;
        }));
        Self {
            stop: Some(stop),
            served,
            events,
            changed,
            urls,
        }
    }

    /// Wait until the agent has reported an event that `pick` takes, and return what it took. Events
    /// of the past count.
    pub async fn event<T>(&mut self, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        within("the agent's event", async {
            loop {
                self.changed.borrow_and_update();
                let found = self
                    .events
                    .lock()
                    .expect("no panic while it is held")
                    .iter()
                    .find_map(&mut pick);
                if let Some(found) = found {
                    return found;
                }
                self.changed.changed().await.expect("the agent is running");
            }
        })
        .await
    }

    /// Count the events of a kind that the agent has reported.
    pub fn count(&self, is_of_kind: impl Fn(&Event) -> bool) -> usize {
        let events = self.events.lock().expect("no panic while it is held");
        events.iter().filter(|event| is_of_kind(event)).count()
    }

    /// Tell the agent to stop and wait until it has.
    pub async fn stop(mut self) -> Result<(), qtunnel::AgentError> {
        drop(self.stop.take());
        within("stopping", self.served)
            .await
            .expect("the agent does not panic")
    }

    /// Tell the agent to stop, without waiting for it.
    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Let the agent vanish in the middle of whatever it does.
    pub fn kill(self) {
        self.served.abort();
    }

    /// Wait until the agent has ended.
    pub async fn ended(self) -> Result<(), qtunnel::AgentError> {
        within("the agent's end", self.served)
            .await
            .expect("the agent does not panic")
    }
}
