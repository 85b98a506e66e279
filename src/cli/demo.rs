//! `qtunnel demo`: an edge, a sample upstream and an agent in one process, over real QUIC.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use qtunnel::proto::{AgentId, Secret};
use qtunnel::{
    Address, Agent, AgentConfig, Edge, EdgeConfig, HostHeader, Name, Proxy, ServerAddr, Target,
    Transport, Trust, TunnelConfig, Upgrades, escape,
};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::output::Output;
use super::{Failure, signal};

#[derive(Args)]
pub struct DemoArgs {
    /// The port of the printed URL; another one if it is taken
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

/// Run the demo until a signal arrives.
pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    let state_dir = std::env::temp_dir().join(format!("qtunnel-demo-{}", std::process::id()));
    let ran = demo(args, &state_dir).await;
    // It contained only the keys of this demo.
    let _ = std::fs::remove_dir_all(&state_dir);
    ran
}

/// Run the edge, the sample upstream and the agent with this state directory.
async fn demo(args: DemoArgs, state_dir: &std::path::Path) -> Result<(), Failure> {
    let mut shutdown = pin!(signal::shutdown()?);
    let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).is_ok();
    let http = SocketAddr::from((Ipv4Addr::LOCALHOST, if free { args.port } else { 0 }));
    let edge = Edge::bind(EdgeConfig {
        http: vec![http],
        https: Vec::new(),
        state_dir: state_dir.into(),
        grace_period: Duration::from_secs(2),
        ..EdgeConfig::default()
    })
    .await
    .map_err(Failure::running)?;
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(Failure::running)?;
    let address = upstream.local_addr().map_err(Failure::running)?;
    let target = Target::Http {
        host: address.ip().to_string(),
        port: address.port(),
    };

    let output = Output::start(false, target.to_string());
    let quic = edge.quic_addrs()[0];
    let config = AgentConfig {
        server: ServerAddr {
            host: quic.ip().to_string(),
            port: quic.port(),
        },
        trust: Trust::Pins(vec![edge.pin()]),
        transport: Transport::Quic,
        websocket: None,
        proxy: Proxy::Direct,
        token: Secret::default(),
        id: AgentId::random(),
        take_over_names: false,
        tunnels: vec![TunnelConfig {
            name: Name::random(),
            upstream: Address::Target(target).into(),
            host_header: HostHeader::Preserve,
            upgrades: Upgrades::default(),
        }],
        grace_period: Duration::from_secs(2),
        upstream_timeout: Duration::from_secs(60),
        exit_on_failure: true,
        observer: output.observer(),
    };

    // The agent stops before the edge, so that it can close its session.
    let (stop_edge, edge_stopped) = oneshot::channel::<()>();
    let mut tasks = JoinSet::new();
    tasks.spawn(edge.serve(async move {
        let _ = edge_stopped.await;
    }));
    tasks.spawn(serve_sample(upstream));
    let agent = tokio::select! {
        agent = Agent::connect(config) => agent.map_err(Failure::running)?,
        () = &mut shutdown => return Ok(()),
    };
    println!("open the first URL in a browser, or with curl; Ctrl-C stops the demo");
    let served = agent.serve(shutdown).await.map_err(Failure::running);
    drop(stop_edge);
    tasks.join_next().await;
    tasks.shutdown().await;
    output.finish(None);
    served
}

/// Serve requests with responses that show the request.
async fn serve_sample(listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(async move {
                    // Connection errors do not matter here.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(echo)).await;
                });
            }
        }
    }
}

/// Build a response that shows the request.
async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut text = format!(
        "It works: this response came through a QUIC tunnel.\n\nThe upstream received:\n\n{} {}\n",
        request.method(),
        escape(&request.uri().to_string())
    );
    for (name, value) in request.headers() {
        text.push_str(&format!(
            "{name}: {}\n",
            escape(&String::from_utf8_lossy(value.as_bytes()))
        ));
    }
    let mut response = Response::new(Full::new(Bytes::from(text)));
    let plain = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, plain);
    Ok(response)
}
