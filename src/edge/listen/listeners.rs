//! An edge's bound sockets: TCP for visitors and agents on WebSockets, UDP for agents.

use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use quinn::AsyncUdpSocket;
use quinn::crypto::rustls::QuicServerConfig;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::bind::{self, ListenError};
use super::sockets::Sockets;
#[cfg(unix)]
use crate::carrier::handover::predecessors::Predecessors;
#[cfg(unix)]
use crate::carrier::handover::shared_udp::SharedUdp;
use crate::carrier::{EdgeEndpoint, EdgeKeys};
use crate::edge::config::EdgeConfig;
#[cfg(unix)]
use crate::edge::handover::{HandoverState, Takeover};
#[cfg(unix)]
use crate::edge::names::registry::Registry;
use crate::edge::visitors::accept::Listener;
use crate::net::{tcp_options, udp_socket};
use crate::proto::{ALPN, ALPN_ANY};
use crate::tls::Identity;

/// Everything that an edge has bound.
pub struct Listeners {
    /// Listeners for visitors, and for agents on WebSockets.
    pub visitors: Vec<Listener>,
    /// The endpoint for agents.
    pub endpoint: EdgeEndpoint,
    pub addrs: Addrs,
    #[cfg(unix)]
    pub udp: Option<Arc<SharedUdp>>,
    /// The edges that these sockets were inherited from, which still drain.
    #[cfg(unix)]
    pub predecessors: Predecessors,
    /// A duplicate of the descriptor of `udp`.
    #[cfg(unix)]
    descriptor: Option<OwnedFd>,
}

/// Addresses that an edge listens on.
#[derive(Debug, Clone, Default)]
pub struct Addrs {
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    pub quic: Option<SocketAddr>,
}

/// The edges that sockets are inherited from, if any.
#[cfg(unix)]
type Inherited = Option<Predecessors>;
#[cfg(not(unix))]
type Inherited = ();

impl Listeners {
    /// Listen on the addresses of the configuration, using those of `sockets` that are bound to
    /// them.
    pub fn start(
        config: &EdgeConfig,
        identity: &Identity,
        keys: EdgeKeys,
        sockets: &mut Sockets,
    ) -> Result<Self, ListenError> {
        Self::bind(config, identity, keys, sockets, Inherited::default())
    }

    /// Listen on the addresses of a running edge, without reading UDP packets until
    /// [`start_reading`](Self::start_reading).
    #[cfg(unix)]
    pub fn inherit(
        config: &EdgeConfig,
        identity: &Identity,
        keys: EdgeKeys,
        from: &mut Takeover,
    ) -> Result<Self, ListenError> {
        let inherited = Some(from.predecessors.clone());
        Self::bind(config, identity, keys, &mut from.sockets, inherited)
    }

    /// Bind all addresses. UDP packets are read at once, unless sockets are inherited.
    fn bind(
        config: &EdgeConfig,
        identity: &Identity,
        keys: EdgeKeys,
        sockets: &mut Sockets,
        inherited: Inherited,
    ) -> Result<Self, ListenError> {
        let mut addrs = Addrs::default();
        let mut visitors = Vec::new();
        for addr in &config.http {
            let (tcp, addr) = listen_tcp(*addr, sockets)?;
            addrs.http.push(addr);
            visitors.push(Listener { tcp, tls: None });
        }
        let tls = TlsAcceptor::from(Arc::new(identity.visitor_config()));
        for addr in &config.https {
            let (tcp, addr) = listen_tcp(*addr, sockets)?;
            addrs.https.push(addr);
            visitors.push(Listener {
                tcp,
                tls: Some(tls.clone()),
            });
        }
        #[cfg(unix)]
        let predecessors = inherited.clone().unwrap_or_default();
        let agent_udp = AgentUdp::new(config, sockets, inherited)?;
        addrs.quic = agent_udp.addr;
        let tls = identity.agent_config(&[ALPN, ALPN_ANY]);
        let tls = QuicServerConfig::try_from(tls).expect("the configuration speaks TLS 1.3");
        let endpoint = EdgeEndpoint::new(agent_udp.udp, tls, keys, config.limits.websockets)
            .map_err(ListenError::udp(config))?;
        Ok(Self {
            visitors,
            endpoint,
            addrs,
            #[cfg(unix)]
            udp: agent_udp.shared,
            #[cfg(unix)]
            predecessors,
            #[cfg(unix)]
            descriptor: agent_udp.descriptor,
        })
    }

    /// Start to read UDP packets.
    #[cfg(unix)]
    pub fn start_reading(&self) {
        if let Some(udp) = &self.udp {
            udp.read();
        }
    }

    /// Return what a successor is handed.
    ///
    /// # Errors
    /// Returns the system's error if it has no descriptors left.
    #[cfg(unix)]
    pub fn handover_state(&self, keys: EdgeKeys, registry: Registry) -> io::Result<HandoverState> {
        let listeners = self.visitors.iter().map(|listener| listener.tcp.as_fd());
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

/// The UDP socket for agents, if there is one.
#[derive(Default)]
struct AgentUdp {
    addr: Option<SocketAddr>,
    udp: Option<Arc<dyn AsyncUdpSocket>>,
    #[cfg(unix)]
    shared: Option<Arc<SharedUdp>>,
    #[cfg(unix)]
    descriptor: Option<OwnedFd>,
}

impl AgentUdp {
    fn new(
        config: &EdgeConfig,
        sockets: &mut Sockets,
        inherited: Inherited,
    ) -> Result<Self, ListenError> {
        match config.quic {
            Some(addr) => Self::at(addr, sockets, inherited).map_err(ListenError::udp(config)),
            None => Ok(Self::default()),
        }
    }

    /// Bind the UDP socket, or use the one of `sockets` that is bound to this address.
    fn at(addr: SocketAddr, sockets: &mut Sockets, inherited: Inherited) -> io::Result<Self> {
        let socket = match sockets.take_udp(addr) {
            Some(bound) => bound,
            None => udp_socket::bind(addr)?,
        };
        let addr = Some(socket.local_addr()?);
        #[cfg(unix)]
        let descriptor = Some(socket.as_fd().try_clone_to_owned()?);
        let udp = EdgeEndpoint::wrap_udp(socket)?;
        #[cfg(unix)]
        let udp = match inherited {
            Some(predecessors) => SharedUdp::waiting(udp, predecessors),
            None => SharedUdp::reading(udp),
        };
        #[cfg(not(unix))]
        let () = inherited;
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

/// Listen for visitors on one address, or use the socket that is bound to it.
fn listen_tcp(
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
    tcp_options::request_bbr(&tcp, addr);
    tcp_options::limit_visitor_send_queues(&tcp);
    Ok((tcp, addr))
}
