//! Bare QUIC peers, for what no edge and no agent of ours would do.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qtunnel::Pin;
use qtunnel::proto::{
    self, Address, AgentId, AgentMessage, ClaimMode, EdgeMessage, Features, Hello, Policy, Refusal,
    RunId, TunnelRequest,
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;

use super::{Lab, way, within};

/// What agents of this version offer.
pub const ALPN: [&[u8]; 2] = [b"qtunnel/1", b"qtunnel"];

impl Lab {
    /// Connect to the edge, without saying anything yet.
    pub async fn dial(&self, alpn: &[&[u8]]) -> Connection {
        dial(self.quic, &self.ca(), alpn).await
    }

    /// Ask for a name as an agent would, and stay connected for as long as the connection is kept.
    pub async fn hello(&self, name: &str) -> Result<Connection, Refusal> {
        let connection = self.dial(&ALPN).await;
        let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
        say(&mut send, &greeting(&[name])).await;
        match hear(&mut receive).await {
            EdgeMessage::Welcome(_) => Ok(connection),
            EdgeMessage::Refused(refused) => Err(refused.into()),
            other => panic!("{other:?}"),
        }
    }
}

/// Connect to an edge with the certificate of a CA, without saying anything yet.
pub async fn dial(edge: SocketAddr, ca: &Path, alpn: &[&[u8]]) -> Connection {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(ca).expect("the edge made it");
    roots.add(ca).expect("a CA");
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let tls = QuicClientConfig::try_from(tls).expect("TLS 1.3");
    let endpoint = Endpoint::client(([0, 0, 0, 0], 0).into()).expect("a socket");
    let connecting = endpoint
        .connect_with(
            quinn::ClientConfig::new(Arc::new(tls)),
            way::from_agents(edge),
            "localhost",
        )
        .expect("a valid address");
    within("the handshake", connecting).await.expect("an edge")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A hello that asks for these names.
pub fn greeting(names: &[&str]) -> AgentMessage {
    AgentMessage::Hello(Hello {
        token: Default::default(),
        agent: AgentId::random(),
        run: RunId(1),
        epoch: 1,
        claim: ClaimMode::Own,
        software: "a test".into(),
        tunnels: (0..)
            .zip(names)
            .map(|(tunnel, name)| TunnelRequest {
                tunnel,
                address: Address::Name((*name).into()).into(),
                policy: Policy::default(),
            })
            .collect(),
        lost: Vec::new(),
        features: Features::ALL,
    })
}

/// Send a message on a control stream.
pub async fn say(send: &mut SendStream, message: &AgentMessage) {
    let bytes = proto::encode(message, proto::CONTROL_LIMIT).expect("a short message");
    send.write_chunk(bytes).await.expect("a live stream");
}

/// Receive a message from a control stream.
pub async fn hear(receive: &mut RecvStream) -> EdgeMessage {
    let mut splitter = proto::Splitter::default();
    within("the edge's message", async {
        loop {
            if let Some(message) = splitter.next(proto::CONTROL_LIMIT).expect("a message") {
                return proto::decode_known(&message)
                    .expect("a message")
                    .expect("a message of this version");
            }
            let chunk = receive.read_chunk(1024, true).await.expect("a live stream");
            splitter.push(&chunk.expect("more").bytes);
        }
    })
    .await
}

/// A QUIC server that is not an edge of this version.
pub struct Stranger {
    pub addr: SocketAddr,
    pub pin: Pin,
    task: tokio::task::JoinHandle<()>,
}

impl Stranger {
    /// Speak these protocols, and do something with every connection.
    pub fn start<F, Fut>(alpn: &[&[u8]], serve: F) -> Self
    where
        F: Fn(Connection) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a key");
        let chain = made.cert.der().clone();
        let pin = Pin::of(&chain).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .expect("they belong together");
        tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let tls = QuicServerConfig::try_from(tls).expect("TLS 1.3");
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let endpoint = Endpoint::server(config, ([127, 0, 0, 1], 0).into()).expect("a socket");
        let addr = endpoint.local_addr().expect("bound");
        let task = tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                if let Ok(connection) = incoming.await {
                    serve(connection).await;
                }
            }
        });
        Self { addr, pin, task }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Send frames of a body, whatever the window allows, until the other end stops the stream or takes
/// nothing more.
pub async fn flood(send: &mut SendStream) {
    let piece = [&proto::data_header(PIECE)[..], &[b'x'; PIECE]].concat();
    while let Ok(Ok(())) = timeout(QUIET, send.write_all(&piece)).await {}
}

/// Payload bytes of one frame.
const PIECE: usize = 4096;

/// Time without progress after which the other end takes nothing more.
const QUIET: Duration = Duration::from_millis(500);
