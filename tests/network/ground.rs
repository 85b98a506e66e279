//! An edge, an agent and its upstream, each where it would be, and a router between them.
//!
//! ```text
//!   edge 10.9.0.1 ──────── 10.9.0.254 router 10.8.0.1 ═══ link ═══ 10.8.0.2 agent, upstream
//!   visitors                          the wall, the NAT
//! ```

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::lab::process::Process;
use crate::link::Link;
use crate::space::Space;
use crate::upstream::Upstream;

/// Where visitors reach the edge, in its namespace.
pub const HTTP: &str = "127.0.0.1:8080";
pub const HOST: &str = "net.edge.test";

/// The edge's addresses; agents use the first unless told otherwise.
pub const EDGE: &str = "10.9.0.1";
pub const EDGE_TOO: &str = "10.9.0.2";

/// Fast enough for a download to fill, slow enough for a busy machine.
pub const RATE: u64 = 20_000_000;

/// The whole scene.
pub struct Ground {
    edge: Option<Process>,
    upstream: Upstream,
    /// What the agent needs to be let in.
    token: String,
    pin: String,
    home: TempDir,
    pub agents_space: Space,
    pub router: Space,
    pub edges_space: Space,
    addresses: u8,
}

impl Ground {
    /// Run a case at the edge, where the visitors are, on a path with this round trip time.
    pub fn run<T: Send>(
        round_trip: Duration,
        case: impl AsyncFnOnce(&mut Ground) -> T + Send,
    ) -> T {
        let mut ground = Self::lay(round_trip);
        ground.edges_space.entrance().block_on(async move || {
            ground.start_edge().await;
            case(&mut ground).await
        })
    }

    fn lay(round_trip: Duration) -> Self {
        let [edges_space, router, agents_space] = ["edge", "router", "agent"].map(Space::make);
        // Every kernel has it. What is better, our sockets have asked for.
        for space in [&edges_space, &agents_space] {
            space.run("sysctl", "-qw net.ipv4.tcp_congestion_control=reno");
        }
        router.ip(&format!(
            "link add cable type veth peer name cable netns {}",
            edges_space.name
        ));
        edges_space.ip(&format!("addr add {EDGE}/24 dev cable"));
        edges_space.ip(&format!("addr add {EDGE_TOO}/24 dev cable"));
        edges_space.ip("link set cable up");
        edges_space.ip("route add default via 10.9.0.254");
        router.ip("addr add 10.9.0.254/24 dev cable");
        router.ip("link set cable up");
        Link {
            delay: round_trip / 2,
            rate: RATE,
        }
        .lay(&agents_space, &router);
        router.ip("addr add 10.8.0.1/32 dev wire");
        router.ip("link set wire up");
        router.ip("route add 10.8.0.0/24 dev wire");
        router.run("sysctl", "-qw net.ipv4.ip_forward=1");
        router.run("nft", "add table inet wall");
        router.run(
            "nft",
            "add chain inet wall forward { type filter hook forward priority 0 ; }",
        );
        router.run("nft", "add table ip nat");
        router.run(
            "nft",
            "add chain ip nat post { type nat hook postrouting priority 100 ; }",
        );
        agents_space.ip("addr add 10.8.0.2/32 dev wire");
        agents_space.ip("link set wire up");
        agents_space.ip("route add default dev wire");
        Self {
            edge: None,
            upstream: Upstream::start(&agents_space),
            token: "a-token-for-the-network-tests".into(),
            pin: String::new(),
            home: tempfile::tempdir().expect("a temporary directory"),
            agents_space,
            router,
            edges_space,
            addresses: 2,
        }
    }

    async fn start_edge(&mut self) {
        let mut command = self.qtunnel(&self.edges_space, "edge");
        command.env("QTUNNEL_TOKEN", &self.token);
        command.args(["serve", "--domain", "edge.test", "--http", HTTP]);
        command.args(["--https", "8443", "--quic", "8443"]);
        let mut edge = Process::spawn(command);
        let join = edge.line("--pin sha256/").await;
        let at = join.find("sha256/").expect("waited for");
        self.pin = join[at..]
            .split_whitespace()
            .next()
            .expect("a pin")
            .to_owned();
        self.edge = Some(edge);
    }

    /// Start an agent that goes to the edge's first address.
    pub fn agent(&self, transport: &str) -> AgentProcess {
        self.agent_of(EDGE, transport)
    }

    /// Start an agent. It is not connected yet.
    pub fn agent_of(&self, edge: &str, transport: &str) -> AgentProcess {
        let mut command = self.qtunnel(&self.agents_space, "agent");
        command.env("QTUNNEL_TOKEN", &self.token);
        command.args(["connect", &self.upstream.port.to_string(), "--json"]);
        command.args(["--subdomain", "net", "--transport", transport]);
        command.args(["--server", &format!("{edge}:8443"), "--pin", &self.pin]);
        AgentProcess {
            process: Process::spawn(command),
        }
    }

    /// Give the agent's machine another address in place of the one that it has.
    pub fn change_address(&mut self) {
        let before = self.addresses;
        self.addresses += 1;
        let after = self.addresses;
        self.agents_space
            .ip(&format!("addr add 10.8.0.{after}/32 dev wire"));
        self.agents_space
            .ip(&format!("addr del 10.8.0.{before}/32 dev wire"));
    }

    fn qtunnel(&self, space: &Space, home: &str) -> Command {
        let home = self.home.path().join(home);
        std::fs::create_dir_all(&home).expect("a directory");
        let mut command = Command::from(space.command(env!("CARGO_BIN_EXE_qtunnel")));
        command.env_clear().current_dir(&home).env("HOME", &home);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        if let Some(log) = std::env::var_os("RUST_LOG") {
            command.env("RUST_LOG", log);
        }
        command
    }
}

/// `qtunnel connect --json`.
pub struct AgentProcess {
    pub process: Process,
}

impl AgentProcess {
    /// Wait until the tunnel is there, and return what carries it.
    pub async fn ready(&mut self) -> String {
        let ready = self.event(|event| event["event"] == "ready").await;
        ready["transport"].as_str().expect("a word").to_owned()
    }

    /// Wait until the tunnel is there and on this carrier. On a busy machine the other may win the race
    /// at the start.
    pub async fn ready_on(&mut self, carrier: &str) {
        if self.ready().await != carrier {
            self.moved_to(carrier).await;
        }
    }

    /// Wait until it has moved to a carrier, and return when and why.
    pub async fn moved_to(&mut self, carrier: &str) -> (Instant, String) {
        let moved = self
            .event(|event| event["event"] == "transport" && event["transport"] == carrier)
            .await;
        let reason = moved["reason"].as_str().expect("a reason").to_owned();
        (Instant::now(), reason)
    }

    /// Send a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    async fn event(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let parse = |line: &str| serde_json::from_str::<Value>(line).ok();
        let line = self
            .process
            .line_that("the event", |line| {
                parse(line).as_ref().is_some_and(&wanted)
            })
            .await;
        parse(&line).expect("parsed before")
    }
}
