//! Where an edge listens: for visitors over TCP, for agents over UDP too.

use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{AsyncUdpSocket, Endpoint, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::bind;
use super::bind::ListenError;
use super::sockets::Sockets;
use crate::carrier;
use crate::carrier::{EdgeKeys, EdgeSocket, PathKind, PathMemory, SharedCongestionOwner};
#[cfg(unix)]
use crate::carrier::{Predecessors, SharedUdp};
use crate::edge::config::EdgeConfig;
#[cfg(unix)]
use crate::edge::handover::{HandoverError, HandoverState, Takeover};
#[cfg(unix)]
use crate::edge::names::registry::Registry;
use crate::edge::server::BindError;
use crate::edge::visitors::accept::Listener;
use crate::proto::{ALPN, ALPN_ANY};
use crate::tls::Identity;

/// Everything that is bound.
pub struct Listening {
    pub listeners: Vec<Listener>,
    pub endpoint: Endpoint,
    pub socket: EdgeSocket,
    /// QUIC's settings for agents in general.
    pub quic: ServerConfig,
    /// QUIC's settings for agents on this machine.
    pub nearby: Arc<ServerConfig>,
    pub addrs: Addrs,
    #[cfg(unix)]
    pub udp: Option<Arc<SharedUdp>>,
    /// The edges whose addresses these were.
    #[cfg(unix)]
    pub predecessors: Predecessors,
    /// The same socket as `udp`.
    #[cfg(unix)]
    descriptor: Option<OwnedFd>,
}

/// The addresses that are listened on.
#[derive(Debug, Clone, Default)]
pub struct Addrs {
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    pub quic: Option<SocketAddr>,
}

/// The edges whose addresses these are, if they are inherited.
#[cfg(unix)]
type Before = Option<Predecessors>;
#[cfg(not(unix))]
type Before = ();

impl Listening {
    /// Listen on the addresses of the configuration, with those of the sockets that fit.
    pub fn start(
        config: &EdgeConfig,
        identity: &Identity,
        keys: EdgeKeys,
        sockets: &mut Sockets,
    ) -> Result<Self, BindError> {
        Self::on(config, identity, keys, sockets, Before::default())
    }

    /// Listen on the addresses of a running edge, without a look at what comes until
    /// [`begin`](Self::begin).
    #[cfg(unix)]
    pub fn inherit(
        config: &EdgeConfig,
        identity: &Identity,
        keys: EdgeKeys,
        from: &mut Takeover,
    ) -> Result<Self, BindError> {
        if let Some(running) = from.sockets.udp_addr()
            && config.quic != Some(running)
        {
            let off = || "off".to_owned();
            return Err(HandoverError::Elsewhere {
                running: running.to_string(),
                wanted: config.quic.map_or_else(off, |addr| addr.to_string()),
            }
            .into());
        }
        let before = Some(from.predecessors.clone());
        Self::on(config, identity, keys, &mut from.sockets, before)
    }

    fn on(
        config: &EdgeConfig,
        identity: &Identity,
        keys: EdgeKeys,
        sockets: &mut Sockets,
        before: Before,
    ) -> Result<Self, BindError> {
        let mut addrs = Addrs::default();
        let mut listeners = Vec::new();
        for addr in &config.http {
            let (tcp, addr) = bound(*addr, sockets)?;
            addrs.http.push(addr);
            listeners.push(Listener { tcp, tls: None });
        }
        let tls = TlsAcceptor::from(Arc::new(identity.visitor_config()));
        for addr in &config.https {
            let (tcp, addr) = bound(*addr, sockets)?;
            addrs.https.push(addr);
            listeners.push(Listener {
                tcp,
                tls: Some(tls.clone()),
            });
        }
        #[cfg(unix)]
        let predecessors = before.clone().unwrap_or_default();
        let agents = Agents::new(config, sockets, before)?;
        addrs.quic = agents.addr;
        let (quic, nearby) = server_configs(identity);
        let (endpoint, socket) =
            carrier::edge_endpoint(agents.udp, quic.clone(), keys, config.limits.websockets)
                .map_err(ListenError::udp(config))?;
        Ok(Self {
            listeners,
            endpoint,
            socket,
            quic,
            nearby: Arc::new(nearby),
            addrs,
            #[cfg(unix)]
            udp: agents.shared,
            #[cfg(unix)]
            predecessors,
            #[cfg(unix)]
            descriptor: agents.descriptor,
        })
    }

    /// Begin to read what comes over UDP.
    #[cfg(unix)]
    pub fn begin(&self) {
        if let Some(udp) = &self.udp {
            udp.read();
        }
    }

    /// Return what a successor would get.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    #[cfg(unix)]
    pub fn estate(&self, keys: EdgeKeys, registry: Registry) -> io::Result<HandoverState> {
        let listeners = self.listeners.iter().map(|listener| listener.tcp.as_fd());
        let sockets = listeners.chain(self.descriptor.as_ref().map(AsFd::as_fd));
        Ok(HandoverState {
            sockets: sockets
                .map(|socket| socket.try_clone_to_owned())
                .collect::<Result<_, _>>()?,
            udp: self.udp.clone(),
            predecessors: self.predecessors.clone(),
            ids: keys.connection_ids,
            registry,
        })
    }
}

/// Where agents come over UDP, if they do.
#[derive(Default)]
struct Agents {
    addr: Option<SocketAddr>,
    udp: Option<Arc<dyn AsyncUdpSocket>>,
    #[cfg(unix)]
    shared: Option<Arc<SharedUdp>>,
    #[cfg(unix)]
    descriptor: Option<OwnedFd>,
}

impl Agents {
    fn new(
        config: &EdgeConfig,
        sockets: &mut Sockets,
        before: Before,
    ) -> Result<Self, ListenError> {
        match config.quic {
            Some(addr) => Self::at(addr, sockets, before).map_err(ListenError::udp(config)),
            None => Ok(Self::default()),
        }
    }

    fn at(addr: SocketAddr, sockets: &mut Sockets, before: Before) -> io::Result<Self> {
        let socket = match sockets.take_udp(addr) {
            Some(bound) => bound,
            None => carrier::bind_edge_udp(addr)?,
        };
        let addr = Some(socket.local_addr()?);
        #[cfg(unix)]
        let descriptor = Some(socket.as_fd().try_clone_to_owned()?);
        let udp = carrier::edge_udp(socket)?;
        #[cfg(unix)]
        let udp = match before {
            Some(predecessors) => SharedUdp::waiting(udp, predecessors),
            None => SharedUdp::reading(udp),
        };
        #[cfg(not(unix))]
        let () = before;
        Ok(Self {
            addr,
            #[cfg(unix)]
            shared: Some(udp.clone()),
            #[cfg(unix)]
            descriptor,
            udp: Some(udp),
        })
    }
}

/// QUIC's settings for agents in general, and for those on this machine.
fn server_configs(identity: &Identity) -> (ServerConfig, ServerConfig) {
    let tls = identity.agent_config(&[ALPN, ALPN_ANY]);
    let tls = QuicServerConfig::try_from(tls).expect("the configuration speaks TLS 1.3");
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    server
        .max_incoming(MOST_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFERS);
    let mut nearby = server.clone();
    let (ours, memory) = (SharedCongestionOwner::default(), PathMemory::default());
    let transport = |reach| carrier::edge_transport(reach, &ours, &memory);
    server.transport_config(transport(PathKind::Network));
    nearby.transport_config(transport(PathKind::Loopback));
    (server, nearby)
}

/// First packets that wait to be looked at, which takes less than a millisecond. What comes beyond is
/// dropped, and repeated by whoever means it.
const MOST_INCOMING: usize = 1_024;

/// What may wait behind one of them, in bytes: the rest of a first flight with large keys is one packet.
const INCOMING_BUFFER: u64 = 16 << 10;

/// The same for all of them.
const INCOMING_BUFFERS: u64 = 4 << 20;

fn bound(
    addr: SocketAddr,
    sockets: &mut Sockets,
) -> Result<(TcpListener, SocketAddr), ListenError> {
    let listen = |bound: Option<std::net::TcpListener>| match bound {
        Some(bound) => TcpListener::from_std(bound),
        None => bind::tcp(addr),
    };
    let tcp = listen(sockets.take_tcp(addr));
    let local = tcp.and_then(|tcp| Ok((tcp.local_addr()?, tcp)));
    let (addr, tcp) = local.map_err(|err| ListenError::new("TCP", addr, err))?;
    carrier::request_bbr(&tcp, addr);
    carrier::limit_visitor_send_queues(&tcp);
    Ok((tcp, addr))
}
