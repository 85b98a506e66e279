//! An edge that is a process of its own, and that can be killed and started again on the same ports.

use std::net::SocketAddr;
use std::path::PathBuf;

use hyper::Uri;
use nix::sys::signal::Signal;
use qtunnel::{AgentConfig, ServerAddr, Trust, Upstream};
use tokio::process::Command;

use super::process::{Process, qtunnel};
use super::{Lab, Visitor, way};

/// `qtunnel serve` for `*.localhost`.
pub struct EdgeProcess {
    pub process: Process,
    pub http: SocketAddr,
    /// Where agents come over UDP; on port 0 they do not.
    pub quic: SocketAddr,
    /// Where visitors come over TLS, if they do.
    pub https: Option<SocketAddr>,
    home: PathBuf,
    args: Vec<String>,
}

impl EdgeProcess {
    /// Start it in a home directory of its own, on ports of the system's choice.
    pub async fn start(home: &std::path::Path, args: &[&str]) -> Self {
        Self::launch(home, ["0", "off", "0"], args).await
    }

    /// Start it with HTTPS, too.
    pub async fn start_with_https(home: &std::path::Path, args: &[&str]) -> Self {
        Self::launch(home, ["0", "0", "0"], args).await
    }

    /// Start it for agents that come over WebSockets alone.
    pub async fn start_without_quic(home: &std::path::Path, args: &[&str]) -> Self {
        Self::launch(home, ["0", "off", "off"], args).await
    }

    async fn launch(home: &std::path::Path, addrs: [&str; 3], args: &[&str]) -> Self {
        let args: Vec<_> = args.iter().map(ToString::to_string).collect();
        let mut process = Process::spawn(serve(home, addrs, &args));
        let http = address(&process.line("  http ").await).expect("visitors come over HTTP");
        let https = address(&process.line("  https ").await);
        let quic = address(&process.line("  quic ").await);
        let quic = quic.unwrap_or(([127, 0, 0, 1], 0).into());
        Self {
            process,
            http,
            quic,
            https,
            home: home.into(),
            args,
        }
    }

    /// Kill it as `kill -9` does: nobody is told.
    pub async fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.ended().await;
    }

    /// Start it again with the same state, on the same ports. It is there when this returns.
    pub async fn restart(&mut self) {
        self.process = Process::spawn(self.command(&[]));
        self.process.line("  quic ").await;
    }

    /// Have a new process take over, and return the old one. The new one is in charge when this
    /// returns.
    pub async fn take_over(&mut self) -> Process {
        let mut successor = self.successor(&[]);
        successor.line("  quic ").await;
        std::mem::replace(&mut self.process, successor)
    }

    /// Start a process that shall take over, with more arguments.
    pub fn successor(&self, args: &[&str]) -> Process {
        Process::spawn(self.command(&[&["--take-over"], args].concat()))
    }

    /// Start a process like this one, at other addresses for HTTPS or QUIC, that shall take over.
    pub fn successor_at(&self, https: &str, quic: &str) -> Process {
        let http = self.http.to_string();
        let args: Vec<_> = [&self.args[..], &["--take-over".to_owned()]].concat();
        Process::spawn(serve(&self.home, [&http, https, quic], &args))
    }

    /// Begin a command that starts it again, with more arguments.
    pub fn command(&self, more: &[&str]) -> Command {
        let https = self.https.map_or("off".to_owned(), |addr| addr.to_string());
        let http = self.http.to_string();
        let quic = match self.quic.port() {
            0 => "off".to_owned(),
            _ => self.quic.to_string(),
        };
        let more = more.iter().map(ToString::to_string);
        let args: Vec<_> = self.args.iter().cloned().chain(more).collect();
        serve(&self.home, [&http, &https, &quic], &args)
    }

    /// The socket at which a successor asks.
    pub fn door(&self) -> PathBuf {
        self.home.join(".local/state/qtunnel/handover.sock")
    }

    /// Start it with other arguments from now on.
    pub fn set_args(&mut self, args: &[&str]) {
        self.args = args.iter().map(ToString::to_string).collect();
    }

    /// Return a visitor of the tunnel `name`.
    pub fn visitor(&self, name: &str) -> Visitor {
        Visitor::new(self.http, format!("{name}.localhost"))
    }

    /// The configuration of an agent of this edge.
    pub fn agent_config(&self, name: &str, upstream: impl Into<Upstream>) -> AgentConfig {
        AgentConfig {
            server: ServerAddr {
                host: way::host().into(),
                port: self.quic.port(),
            },
            trust: Trust::Ca(self.ca()),
            ..Lab::config(name, upstream)
        }
    }

    /// What agents are told with `--server`.
    pub fn server(&self) -> String {
        format!("{}:{}", way::host(), self.quic.port())
    }

    /// Where it accepts WebSockets without TLS.
    pub fn websocket(&self) -> Uri {
        let url = format!("ws://{}", way::from_agents(self.http));
        url.parse().expect("a valid address")
    }

    /// Where it accepts WebSockets over TLS.
    pub fn websocket_over_tls(&self) -> Uri {
        let https = self.https.expect("an edge with HTTPS");
        let url = format!("wss://{}:{}", way::host(), https.port());
        url.parse().expect("a valid address")
    }

    /// What agents trust.
    pub fn ca(&self) -> PathBuf {
        self.home.join(".local/state/qtunnel/ca.pem")
    }
}

fn serve(home: &std::path::Path, [http, https, quic]: [&str; 3], args: &[String]) -> Command {
    let addrs = ["--http", http, "--https", https, "--quic", quic];
    let args = args.iter().map(String::as_str);
    qtunnel(home, ["serve"].into_iter().chain(addrs).chain(args))
}

fn address(line: &str) -> Option<SocketAddr> {
    let word = line.split_whitespace().nth(1).expect("an address");
    match word {
        "off" => None,
        word => Some(word.trim_end_matches(',').parse().expect("an address")),
    }
}
