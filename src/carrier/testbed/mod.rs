//! A whole network in memory, on paused time: an edge, an agent and what can go wrong in between.
//!
//! The sockets, the WebSocket framing, the judge and quinn are the real ones. UDP is a heap of
//! delayed datagrams and TCP a delayed pipe; both lose, hold back and cut by a seeded generator.

mod lab;
mod network;
mod noise;
mod pipe;
mod proxies;
mod real;
mod resets;
mod scenarios;
mod sockets;
mod storms;
mod udp;

use std::sync::{Arc, LazyLock};

use quinn::{
    ClientConfig, ServerConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{RootCertStore, pki_types::PrivateKeyDer, version::TLS13};

use super::{PathKind, PathMemory, SharedCongestionOwner, edge_transport};
use crate::tls;

/// Both ends' configurations around one self-signed certificate for `edge.test`.
#[derive(Clone)]
pub(crate) struct Certificate {
    pub(crate) server: ServerConfig,
    pub(crate) client: ClientConfig,
    /// For listeners that put TLS around a WebSocket.
    https: Arc<rustls::ServerConfig>,
}

/// The one that edge and agent agree on.
pub(crate) fn certificate() -> Certificate {
    static CERTIFICATE: LazyLock<Certificate> = LazyLock::new(issue);
    CERTIFICATE.clone()
}

/// Another one for the same name, as an impostor would have it.
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
        // An attempt sets how it talks.
        client: ClientConfig::new(client),
        https,
    }
}
