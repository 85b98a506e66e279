//! An edge, an upstream and an agent in one process, over real QUIC on loopback, and a request through all three:
//!
//! ```sh
//! cargo run --example loopback
//! ```

use std::error::Error;

use axum::Router;
use axum::routing::get;
use qtunnel::{
    Address, Agent, AgentConfig, Edge, EdgeConfig, HostHeader, Trust, TunnelConfig, Upgrades,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();

    // The upstream: any local web server.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let upstream: Address = format!("http://{}", listener.local_addr()?).parse()?;
    let app = Router::new().route("/hello", get(async || "hello from the upstream\n"));
    let upstream_stop = stop.clone().cancelled_owned();
    tasks.spawn(async move {
        let served = axum::serve(listener, app).with_graceful_shutdown(upstream_stop);
        served.await.expect("the listener works");
    });

    // The edge: on ports chosen by the system, with a certificate from a local CA.
    let state = tempfile::tempdir()?;
    let edge = Edge::bind(EdgeConfig {
        state_dir: state.path().into(),
        ..EdgeConfig::default()
    })
    .await?;
    let (http, quic, pin) = (edge.http_addrs()[0], edge.quic_addrs()[0], edge.pin());
    tasks.spawn(edge.serve(stop.clone().cancelled_owned()));

    // The agent: it authenticates the edge by its key, and publishes the upstream under a name.
    let agent = Agent::connect(AgentConfig {
        server: quic.to_string().parse()?,
        trust: Trust::Pins(vec![pin]),
        tunnels: vec![TunnelConfig {
            name: "hello".parse()?,
            upstream: upstream.into(),
            host_header: HostHeader::Preserve,
            upgrades: Upgrades::default(),
        }],
        ..AgentConfig::default()
    })
    .await?;
    println!("published at {}", agent.tunnels()[0].urls[0]);
    let agent_stop = stop.clone().cancelled_owned();
    tasks.spawn(async move { agent.serve(agent_stop).await.expect("the edge is here") });

    // A visitor: an ordinary HTTP client.
    let mut visitor = TcpStream::connect(http).await?;
    let request = "GET /hello HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n";
    visitor.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    visitor.read_to_string(&mut response).await?;
    println!("{response}");

    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}
