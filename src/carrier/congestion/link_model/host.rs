//! One end of a connection: quinn's state machines, driven without a runtime.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn::congestion::ControllerFactory;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    ServerConfig, StreamId, Transmit, TransportConfig, VarInt,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::tls;

pub(crate) struct Host {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    peer: SocketAddr,
    work: Option<Source>,
    inbox: Vec<StreamId>,
    /// Bytes that the application at this end has read.
    pub received: u64,
    buffer: Vec<u8>,
}

struct Source {
    stream: Option<StreamId>,
    /// Bytes that quinn has not accepted yet.
    pending: u64,
}

impl Host {
    pub(crate) fn sender(
        now: Instant,
        addrs: (SocketAddr, SocketAddr),
        controller: Arc<dyn ControllerFactory + Send + Sync>,
        bytes: u64,
        seed: u8,
    ) -> Self {
        let mut host = Self::new(addrs.1, None, seed);
        let mut config = ClientConfig::new(Arc::new(
            quinn_proto::crypto::rustls::QuicClientConfig::try_from(client_tls())
                .expect("TLS 1.3 is on"),
        ));
        let mut transport = transport();
        transport.congestion_controller_factory(controller);
        config.transport_config(Arc::new(transport));
        let connection = host.endpoint.connect(now, config, addrs.1, "localhost");
        host.connection = Some(connection.expect("the address is valid"));
        host.work = Some(Source {
            stream: None,
            pending: bytes,
        });
        host
    }

    pub(crate) fn receiver(addrs: (SocketAddr, SocketAddr), seed: u8) -> Self {
        let mut config = ServerConfig::with_crypto(Arc::new(
            quinn_proto::crypto::rustls::QuicServerConfig::try_from(server_tls())
                .expect("TLS 1.3 is on"),
        ));
        config.transport_config(Arc::new(transport()));
        Self::new(addrs.0, Some(Arc::new(config)), seed)
    }

    fn new(peer: SocketAddr, config: Option<Arc<ServerConfig>>, seed: u8) -> Self {
        let endpoint = Arc::new(EndpointConfig::default());
        Self {
            endpoint: Endpoint::new(endpoint, config, true, Some([seed; 32])),
            connection: None,
            peer,
            work: None,
            inbox: Vec::new(),
            received: 0,
            buffer: Vec::new(),
        }
    }

    /// Add more to send, after all was sent before.
    pub(crate) fn offer(&mut self, bytes: u64) {
        let work = self.work.as_mut().expect("a sender");
        work.pending += bytes;
    }

    pub(crate) fn arrive(&mut self, now: Instant, data: &[u8]) {
        let event = self.endpoint.handle(
            now,
            self.peer,
            None,
            None,
            BytesMut::from(data),
            &mut self.buffer,
        );
        match event {
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = self.endpoint.accept(incoming, now, &mut self.buffer, None);
                self.connection = Some(accepted.expect("our own client is welcome"));
            }
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                let (_, connection) = self.connection.as_mut().expect("it has an event");
                connection.handle_event(event);
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
        self.buffer.clear();
    }

    /// Process everything that is due, adding packets to `out`. Return when to call it again.
    pub(crate) fn drive(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) -> Option<Instant> {
        let (handle, connection) = self.connection.as_mut()?;
        if connection.poll_timeout().is_some_and(|at| at <= now) {
            connection.handle_timeout(now);
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        while connection.poll().is_some() {}
        if let Some(work) = &mut self.work {
            work.write(connection);
        }
        self.received += read_all(connection, &mut self.inbox);
        while let Some(transmit) = connection.poll_transmit(now, SEGMENTS, &mut self.buffer) {
            let Transmit {
                size, segment_size, ..
            } = transmit;
            let segments = self.buffer[..size].chunks(segment_size.unwrap_or(size));
            out.extend(segments.map(<[u8]>::to_vec));
            self.buffer.clear();
        }
        connection.poll_timeout()
    }
}

impl Source {
    fn write(&mut self, connection: &mut Connection) {
        if self.stream.is_none() {
            self.stream = connection.streams().open(Dir::Uni);
        }
        let Some(stream) = self.stream else {
            return;
        };
        while self.pending > 0 {
            let wanted = self.pending.min(ZEROES.len() as u64) as usize;
            let mut chunk = [Bytes::from_static(&ZEROES[..wanted])];
            match connection.send_stream(stream).write_chunks(&mut chunk) {
                Ok(written) => self.pending -= written.bytes as u64,
                Err(_) => break,
            }
        }
    }
}

fn read_all(connection: &mut Connection, inbox: &mut Vec<StreamId>) -> u64 {
    while let Some(stream) = connection.streams().accept(Dir::Uni) {
        inbox.push(stream);
    }
    let mut received = 0;
    for &stream in inbox.iter() {
        let mut stream = connection.recv_stream(stream);
        let Ok(mut chunks) = stream.read(true) else {
            continue;
        };
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            received += chunk.bytes.len() as u64;
        }
        let _ = chunks.finalize();
    }
    received
}

/// Packets per system call, as quinn's driver asks for.
const SEGMENTS: usize = 10;

static ZEROES: [u8; 65_536] = [0; 65_536];

fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .initial_mtu(1452)
        .mtu_discovery_config(None)
        .initial_rtt(Duration::from_millis(100))
        .stream_receive_window(VarInt::from_u32(64 << 20))
        .send_window(64 << 20)
        .max_idle_timeout(None);
    config
}

/// Return an Ed25519 certificate and key: its signatures have one length, so the model stays
/// deterministic.
fn identity() -> &'static (CertificateDer<'static>, Vec<u8>) {
    static IDENTITY: OnceLock<(CertificateDer<'static>, Vec<u8>)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("supported");
        let certificate = rcgen::CertificateParams::new(["localhost".to_owned()])
            .and_then(|params| params.self_signed(&key))
            .expect("a valid name");
        (certificate.der().clone(), key.serialize_der())
    })
}

fn server_tls() -> rustls::ServerConfig {
    let (certificate, key) = identity();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.clone()));
    rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is on")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("made for each other")
}

fn client_tls() -> rustls::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(identity().0.clone()).expect("well formed");
    rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is on")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
