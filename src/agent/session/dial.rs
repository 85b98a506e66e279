//! Connecting to the edge as the agent's configuration says.

use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;

use super::connect_error::ConnectError;
use crate::agent::config::AgentConfig;
use crate::carrier::{AgentLink, DialConfig, PathMemory};
use crate::proto::{ALPN, ALPN_ANY};
use crate::tls::{LastRejection, proxy_config};

/// Build the dial configuration for the edge, and the slot that receives the reason if its certificate is
/// not trusted.
pub(crate) fn dial_config(
    config: &AgentConfig,
    memory: &PathMemory,
) -> Result<(DialConfig, LastRejection), ConnectError> {
    let server = &config.server;
    let (tls, last_rejection) = config.trust.client_config(&[ALPN, ALPN_ANY])?;
    let tls = QuicClientConfig::try_from(tls).expect("the configuration speaks TLS 1.3");
    let quic = quinn::ClientConfig::new(Arc::new(tls));
    let websocket = match &config.websocket {
        Some(url) => url.clone(),
        None => server.websocket().map_err(|_| ConnectError::NotAnEdge {
            server: server.clone(),
        })?,
    };
    let dial_config = DialConfig {
        host: server.host.clone(),
        port: server.port,
        server_name: server.host.clone(),
        transport: config.transport,
        quic,
        websocket,
        websocket_tls: DialConfig::outer_tls(),
        proxy: config.proxy.clone(),
        proxy_tls: Arc::new(proxy_config()),
        memory: memory.clone(),
    };
    Ok((dial_config, last_rejection))
}

/// Connect to the edge over whichever carrier the network lets through.
pub(crate) async fn dial(
    config: &AgentConfig,
    memory: &PathMemory,
) -> Result<AgentLink, ConnectError> {
    let server = &config.server;
    let (dial_config, last_rejection) = dial_config(config, memory)?;
    let dialed = AgentLink::dial(dial_config).await;
    dialed.map_err(|err| match last_rejection.take() {
        Some(rejection) => ConnectError::Untrusted {
            server: server.clone(),
            why: rejection.why,
            advice: rejection.advice,
        },
        None if err.is_foreign() => ConnectError::NotAnEdge {
            server: server.clone(),
        },
        None => ConnectError::Unreachable {
            server: server.clone(),
            tried: err,
        },
    })
}
