//! A crowd of agents in one process, for `scripts/bench scale`: as many sessions as it is told, each
//! with as many tunnels, named `t0`, `t1` and so on. Runtime and allocator are those of the program.

use std::error::Error;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use qtunnel::proto::Secret;
use qtunnel::{
    Address, Agent, AgentConfig, HostHeader, Pin, ServerAddr, Transport, Trust, TunnelConfig,
    Upgrades,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

#[global_allocator]
static ALLOCATOR: qtunnel::Allocator = qtunnel::Allocator;

/// Open sessions, print `ready`, and serve until killed.
#[derive(Parser)]
struct Options {
    /// The edge
    #[arg(long)]
    server: ServerAddr,
    /// How to recognise it
    #[arg(long)]
    pin: Pin,
    #[arg(long)]
    token: String,
    /// quic or websocket
    #[arg(long)]
    transport: Transport,
    /// Where all tunnels lead
    #[arg(long)]
    upstream: Address,
    /// Sessions
    #[arg(long)]
    agents: usize,
    /// Tunnels of each
    #[arg(long)]
    tunnels: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    rlimit::increase_nofile_limit(u64::MAX)?;
    qtunnel::runtime()?.block_on(serve(options))
}

async fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    let (dialling, mut opened) = (Arc::new(Semaphore::new(DIALLING)), JoinSet::new());
    for number in 0..options.agents {
        let (config, dialling) = (options.agent(number)?, dialling.clone());
        opened.spawn(async move {
            let _turn = dialling.acquire().await;
            timeout(CONNECT, Agent::connect(config)).await
        });
    }
    let mut serving = JoinSet::new();
    while let Some(agent) = opened.join_next().await {
        serving.spawn(agent???.serve(pending()));
    }
    println!("ready");
    // None of them ends by itself.
    match serving.join_next().await {
        Some(ended) => Ok(ended??),
        None => Ok(()),
    }
}

impl Options {
    fn agent(&self, number: usize) -> Result<AgentConfig, Box<dyn Error>> {
        let first = number * self.tunnels;
        let tunnels = (first..first + self.tunnels).map(|tunnel| {
            Ok(TunnelConfig {
                name: format!("t{tunnel}").parse()?,
                upstream: self.upstream.clone().into(),
                host_header: HostHeader::Preserve,
                upgrades: Upgrades::default(),
            })
        });
        Ok(AgentConfig {
            server: self.server.clone(),
            trust: Trust::Pins(vec![self.pin]),
            token: Secret::new(self.token.as_str()),
            transport: self.transport,
            tunnels: tunnels.collect::<Result<_, Box<dyn Error>>>()?,
            exit_on_failure: true,
            ..AgentConfig::default()
        })
    }
}

/// Handshakes at the same time: more would only time each other out on a small machine.
const DIALLING: usize = 16;

/// How long one agent may take.
const CONNECT: Duration = Duration::from_secs(20);
