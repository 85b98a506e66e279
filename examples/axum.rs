//! An axum app that publishes itself from within its process, without a local port:
//!
//! ```sh
//! cargo run --example axum
//! ```
//!
//! It contains an edge, so that nothing else is needed. With an edge on another machine, keep only the agent, with
//! the `server`, `token` and pin that `qtunnel serve` prints.

use std::error::Error;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use qtunnel::{
    Agent, AgentConfig, Edge, EdgeConfig, HostHeader, Service, Trust, TunnelConfig, Upgrades,
    Upstream,
};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let app = Router::new()
        .route("/", get(async || "try /greet/you\n"))
        .route(
            "/greet/{name}",
            get(async |Path(name): Path<String>| format!("hello, {name}\n")),
        );

    let state = tempfile::tempdir()?;
    let edge = Edge::bind(EdgeConfig {
        state_dir: state.path().into(),
        ..EdgeConfig::default()
    })
    .await?;
    let config = AgentConfig {
        server: edge.quic_addrs()[0].to_string().parse()?,
        trust: Trust::Pins(vec![edge.pin()]),
        tunnels: vec![TunnelConfig {
            name: "greeter".parse()?,
            upstream: Upstream::Service(Service::tower(app)),
            host_header: HostHeader::Preserve,
            upgrades: Upgrades::default(),
        }],
        ..AgentConfig::default()
    };
    let stop_edge = CancellationToken::new();
    let edge = tokio::spawn(edge.serve(stop_edge.clone().cancelled_owned()));

    let agent = Agent::connect(config).await?;
    println!("open {} (Ctrl-C stops)", agent.tunnels()[0].urls[0]);
    agent
        .serve(async {
            // Fails only if the signal handler cannot be installed.
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    stop_edge.cancel();
    edge.await?;
    Ok(())
}
