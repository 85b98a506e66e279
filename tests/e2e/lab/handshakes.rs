//! QUIC handshakes that never finish: a client's first packets with nothing behind them. It stands by itself, as
//! the benchmark's program includes it too.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig,
    EndpointEvent,
};

/// What the client does when it is asked to prove its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRetry {
    /// Nothing, like one whose address is forged.
    Ignore,
    /// It brings the token, and nothing after that.
    Follow,
}

/// A client that begins handshakes from one address.
pub struct Handshakes {
    socket: UdpSocket,
    edge: SocketAddr,
    endpoint: Endpoint,
    config: ClientConfig,
    on_retry: OnRetry,
    /// Those that may be asked to prove their address.
    begun: HashMap<ConnectionHandle, (Connection, Instant)>,
    /// When they began, the oldest first.
    order: VecDeque<(ConnectionHandle, Instant)>,
}

impl Handshakes {
    /// Prepare to begin handshakes with an edge from an address of this machine.
    pub fn new(from: Ipv4Addr, edge: SocketAddr, on_retry: OnRetry) -> io::Result<Self> {
        let socket = UdpSocket::bind((from, 0))?;
        socket.set_nonblocking(true)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"qtunnel/1".to_vec()];
        let tls = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
        Ok(Self {
            socket,
            edge,
            endpoint: Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None),
            config: ClientConfig::new(Arc::new(tls)),
            on_retry,
            begun: HashMap::new(),
            order: VecDeque::new(),
        })
    }

    /// Send the first packets of one more handshake.
    pub fn begin(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let begun = self
            .endpoint
            .connect(now, self.config.clone(), self.edge, "localhost");
        let (handle, mut connection) = begun.map_err(io::Error::other)?;
        self.send(&mut connection, now);
        match self.on_retry {
            OnRetry::Ignore => self.forget(handle),
            OnRetry::Follow => {
                self.begun.insert(handle, (connection, now));
                self.order.push_back((handle, now));
                self.follow();
            }
        }
        Ok(())
    }

    /// Answer the edge's demands for a proof, and forget those that have not been asked for long.
    pub fn follow(&mut self) {
        let (mut datagram, mut reply) = ([0; 2_048], Vec::new());
        while let Ok(length) = self.socket.recv(&mut datagram) {
            let now = Instant::now();
            // RFC 9000 §17.2: a long header's type is in these bits, and 3 is Retry.
            if datagram[0] & 0xb0 != 0xb0 {
                continue;
            }
            let data = datagram[..length].into();
            let event = self
                .endpoint
                .handle(now, self.edge, None, None, data, &mut reply);
            if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event
                && let Some((mut connection, _)) = self.begun.remove(&handle)
            {
                connection.handle_event(event);
                self.send(&mut connection, now);
                self.forget(handle);
            }
        }
        while let Some((handle, begun)) = self.order.front().copied()
            && begun.elapsed() > ASKED_WITHIN
        {
            self.order.pop_front();
            // The number may be another one's by now.
            if self.begun.get(&handle).is_some_and(|(_, at)| *at == begun) {
                self.begun.remove(&handle);
                self.forget(handle);
            }
        }
    }

    fn send(&self, connection: &mut Connection, now: Instant) {
        let mut packets = Vec::new();
        while let Some(transmit) = connection.poll_transmit(now, 1, &mut packets) {
            // A packet that the system does not take is as good as lost.
            let _ = self.socket.send_to(&packets[..transmit.size], self.edge);
            packets.clear();
        }
    }

    fn forget(&mut self, handle: ConnectionHandle) {
        self.endpoint.handle_event(handle, EndpointEvent::drained());
    }
}

/// Begin so many handshakes a second, from all of them in turns, for as long as it goes on. Return how many
/// there were.
pub fn flood(
    clients: &mut [Handshakes],
    rate: u32,
    mut goes_on: impl FnMut() -> bool,
) -> io::Result<u64> {
    let (start, mut begun) = (Instant::now(), 0_u64);
    while goes_on() {
        let due = start.elapsed().as_secs_f64() * f64::from(rate);
        while (begun as f64) < due && goes_on() {
            let turn = begun as usize % clients.len();
            clients[turn].begin()?;
            begun += 1;
        }
        clients.iter_mut().for_each(Handshakes::follow);
        sleep(TICK);
    }
    Ok(begun)
}

/// Between looks at the clock.
const TICK: Duration = Duration::from_millis(1);

/// How long the edge may take to ask for a proof.
const ASKED_WITHIN: Duration = Duration::from_secs(1);
