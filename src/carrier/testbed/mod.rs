//! A simulated network on paused time: an edge, an agent and the faults between them.
//!
//! The sockets, the WebSocket framing, the selector and quinn are the real ones. UDP is a heap of
//! delayed datagrams and TCP a delayed pipe; a seeded generator makes both lose, delay and cut.

mod chaos;
mod lab;
mod network;
mod pipe;
mod proxies;
mod random;
mod real;
mod resets;
mod scenarios;
mod sockets;
mod udp;

use std::sync::{Arc, LazyLock};

use quinn::{
    ClientConfig, ServerConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{RootCertStore, pki_types::PrivateKeyDer, version::TLS13};

use super::PathMemory;
use crate::carrier::congestion::SharedCongestionOwner;
use crate::carrier::transport::edge_transport;
use crate::net::path_kind::PathKind;
use crate::tls;

/// Configurations of both ends for one self-signed certificate for `edge.test`.
#[derive(Clone)]
pub(crate) struct Certificate {
    pub(crate) server: ServerConfig,
    pub(crate) client: ClientConfig,
    /// For listeners that put TLS around a WebSocket.
    https: Arc<rustls::ServerConfig>,
}

/// Return the certificate that edge and agent agree on.
pub(crate) fn certificate() -> Certificate {
    static CERTIFICATE: LazyLock<Certificate> = LazyLock::new(issue);
    CERTIFICATE.clone()
}

/// Return another certificate for the same name, as an impostor would have.
fn impostor() -> Certificate {
    issue()
}

fn issue() -> Certificate {
    let issued = rcgen::generate_simple_self_signed(["edge.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(issued.signing_key.serialize_der().into());
    let provider = tls::provider();
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    let https = Arc::new(server.clone());
    let mut roots = RootCertStore::empty();
    roots.add(issued.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = Arc::new(QuicServerConfig::try_from(server).unwrap());
    let client = Arc::new(QuicClientConfig::try_from(client).unwrap());
    let mut server = ServerConfig::with_crypto(server);
    let (ours, memory) = (SharedCongestionOwner::default(), PathMemory::default());
    server.transport_config(edge_transport(PathKind::Network, &ours, &memory));
    Certificate {
        server,
        // A connection attempt sets the transport's settings.
        client: ClientConfig::new(client),
        https,
    }
}
