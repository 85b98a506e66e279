//! An edge that is a process of its own, and that can be killed and started again on the same ports.

use std::net::SocketAddr;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use qtunnel::{AgentConfig, ServerAddr, Trust, Upstream};

use super::process::Process;
use super::{Lab, Visitor};

/// `qtunnel serve` for `*.localhost`.
pub struct EdgeProcess {
    pub process: Process,
    pub http: SocketAddr,
    pub quic: SocketAddr,
    home: PathBuf,
    args: Vec<String>,
}

impl EdgeProcess {
    /// Start it in a home directory of its own, on ports of the system's choice.
    pub async fn start(home: &std::path::Path, args: &[&str]) -> Self {
        let args: Vec<_> = args.iter().map(ToString::to_string).collect();
        let (process, http, quic) = launch(home, "0", "0", &args).await;
        Self {
            process,
            http,
            quic,
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
        let (http, quic) = (self.http.to_string(), self.quic.to_string());
        (self.process, ..) = launch(&self.home, &http, &quic, &self.args).await;
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
                host: "localhost".into(),
                port: self.quic.port(),
            },
            trust: Trust::Ca(self.ca()),
            ..Lab::config(name, upstream)
        }
    }

    /// What agents trust.
    pub fn ca(&self) -> PathBuf {
        self.home.join(".local/state/qtunnel/ca.pem")
    }
}

async fn launch(
    home: &std::path::Path,
    http: &str,
    quic: &str,
    args: &[String],
) -> (Process, SocketAddr, SocketAddr) {
    let mut all = vec!["serve", "--https", "off", "--http", http, "--quic", quic];
    all.extend(args.iter().map(String::as_str));
    let mut process = Process::qtunnel(home, all);
    let http = address(&process.line("  http ").await);
    let quic = address(&process.line("  quic ").await);
    (process, http, quic)
}

fn address(line: &str) -> SocketAddr {
    let word = line.split_whitespace().nth(1).expect("an address");
    word.trim_end_matches(',').parse().expect("an address")
}
