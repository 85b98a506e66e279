//! From an agent's configuration to a connection with the edge, or to the reason why there is none.

use std::sync::Arc;

use quinn::ConnectionError;
use quinn::crypto::rustls::QuicClientConfig;

use super::connect_error::ConnectError;
use crate::agent::config::AgentConfig;
use crate::carrier;
use crate::carrier::{AttemptError, DialConfig, Dialed, PathMemory};
use crate::proto::{ALPN, ALPN_ANY};
use crate::tls::{Distrust, proxy_config};

/// What to dial for an edge, and where the reason will be noted if it is not to be trusted.
pub(crate) fn dialing(
    config: &AgentConfig,
    memory: &PathMemory,
) -> Result<(DialConfig, Distrust), ConnectError> {
    let server = &config.server;
    let (tls, distrust) = config.trust.client_config(&[ALPN, ALPN_ANY])?;
    let tls = QuicClientConfig::try_from(tls).expect("the configuration speaks TLS 1.3");
    let quic = quinn::ClientConfig::new(Arc::new(tls));
    let websocket = match &config.websocket {
        Some(url) => url.clone(),
        None => server.websocket().map_err(|_| ConnectError::NotAnEdge {
            server: server.clone(),
        })?,
    };
    let way = DialConfig {
        host: server.host.clone(),
        port: server.port,
        server_name: server.host.clone(),
        transport: config.transport,
        quic,
        websocket,
        websocket_tls: carrier::outer_tls(),
        proxy: config.proxy.clone(),
        proxy_tls: Arc::new(proxy_config()),
        memory: memory.clone(),
    };
    Ok((way, distrust))
}

/// PathKind the edge over whichever carrier the network lets through.
pub(crate) async fn dial(
    config: &AgentConfig,
    memory: &PathMemory,
) -> Result<Dialed, ConnectError> {
    let server = &config.server;
    let (way, distrust) = dialing(config, memory)?;
    let dialed = carrier::dial(way).await;
    dialed.map_err(|err| match distrust.take() {
        Some(distrusted) => ConnectError::Untrusted {
            server: server.clone(),
            why: distrusted.why,
            advice: distrusted.advice,
        },
        None if err.attempts.iter().any(is_foreign) => ConnectError::NotAnEdge {
            server: server.clone(),
        },
        None => ConnectError::Unreachable {
            server: server.clone(),
            tried: err,
        },
    })
}

/// Report whether somebody answered in QUIC who has never heard of us.
fn is_foreign(attempt: &AttemptError) -> bool {
    let AttemptError::Quic { err, .. } = attempt else {
        return false;
    };
    match err {
        ConnectionError::ConnectionClosed(close) => {
            close.error_code == quinn::TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL)
        }
        ConnectionError::VersionMismatch => true,
        _ => false,
    }
}

/// TLS's alert for an ALPN that the server does not know (RFC 7301 §3.2).
const NO_APPLICATION_PROTOCOL: u8 = 120;
