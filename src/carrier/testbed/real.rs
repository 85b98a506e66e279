//! An edge and agents on loopback, with the kernel's sockets and hyper's HTTP.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use quinn::{Connection, Endpoint, EndpointConfig};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::lab::serve;
use super::{Certificate, certificate};
use crate::carrier::agent::dial::{DialConfig, Dialed, dial};
use crate::carrier::agent::dial_error::DialError;
use crate::carrier::congestion::CongestionOwner;
use crate::carrier::edge::socket::EdgeSocket;
use crate::carrier::edge::socket::edge_endpoint_over;
use crate::carrier::tcp::byte_stream::ByteStream;
use crate::carrier::tcp::outer_tls;
use crate::carrier::websocket::upgrade::upgrade_response;
use crate::carrier::websocket::{Ended, PeerInfo};
use crate::carrier::{EdgeEndpoint, Proxy, Transport, WEBSOCKET_PATH};
use crate::net::path_kind::PathKind;
use crate::net::tcp_options::limit_send_queue;

/// Most WebSockets that the edge accepts.
pub(crate) const WEBSOCKETS: usize = 8;

pub(crate) struct RealEdge {
    pub(crate) endpoint: Endpoint,
    pub(crate) socket: EdgeSocket,
    pub(crate) udp: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    /// Reasons for which WebSockets ended.
    pub(crate) ended: mpsc::UnboundedReceiver<Ended>,
    certificate: Certificate,
    tasks: JoinSet<()>,
}

impl RealEdge {
    pub(crate) async fn start() -> Self {
        Self::with(certificate()).await
    }

    pub(crate) async fn with(certificate: Certificate) -> Self {
        let udp = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = udp.local_addr().unwrap();
        let config = EndpointConfig::default();
        let udp = EdgeEndpoint::wrap_udp(udp).unwrap();
        let (endpoint, socket) =
            edge_endpoint_over(Some(udp), config, certificate.server.clone(), WEBSOCKETS).unwrap();
        let (report, ended) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let http = listener.local_addr().unwrap();
        tasks.spawn(listen(listener, None, socket.clone(), report.clone()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let https = listener.local_addr().unwrap();
        let tls = TlsAcceptor::from(certificate.https.clone());
        tasks.spawn(listen(listener, Some(tls), socket.clone(), report));
        Self {
            endpoint,
            socket,
            udp: addr,
            http,
            https,
            ended,
            certificate: super::certificate(),
            tasks,
        }
    }

    /// Return the configuration with which an agent dials this edge.
    pub(crate) fn config(&self, transport: Transport) -> DialConfig {
        let tls = outer_tls::outer_tls();
        DialConfig {
            host: self.udp.ip().to_string(),
            port: self.udp.port(),
            server_name: "edge.test".into(),
            transport,
            quic: self.certificate.client.clone(),
            websocket: format!("wss://{}", self.https).parse().unwrap(),
            websocket_tls: tls.clone(),
            proxy: Proxy::Direct,
            proxy_tls: tls,
            memory: crate::carrier::PathMemory::default(),
        }
    }

    /// Dial as an agent that serves streams, and return it with the edge's end of its connection.
    pub(crate) async fn agent(
        &mut self,
        config: DialConfig,
    ) -> Result<(Dialed, Connection), DialError> {
        let endpoint = self.endpoint.clone();
        let accepted = tokio::spawn(async move {
            loop {
                if let Ok(connection) = endpoint.accept().await.unwrap().await {
                    return connection;
                }
            }
        });
        let dialed = dial(config).await.inspect_err(|_| accepted.abort())?;
        self.tasks.spawn(serve(dialed.connection.clone()));
        Ok((dialed, accepted.await.unwrap()))
    }

    /// Dial as [`agent`](Self::agent) does and keep it alive; return the edge's end.
    pub(crate) async fn connect_agent(&mut self, config: DialConfig) -> Connection {
        let (dialed, connection) = self.agent(config).await.unwrap();
        self.tasks.spawn(dialed.driver.run());
        connection
    }
}

async fn listen(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    socket: EdgeSocket,
    report: mpsc::UnboundedSender<Ended>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (tcp, peer) = listener.accept().await.unwrap();
        limit_send_queue(&tcp, PathKind::of(peer));
        let (tls, socket, report) = (tls.clone(), socket.clone(), report.clone());
        connections.spawn(async move {
            let io: Box<dyn ByteStream> = match tls {
                Some(tls) => Box::new(tls.accept(tcp).await.unwrap()),
                None => Box::new(tcp),
            };
            let service =
                service_fn(move |request| answer(request, socket.clone(), peer, report.clone()));
            let http = http1::Builder::new().serve_connection(TokioIo::new(io), service);
            let _ = http.with_upgrades().await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    socket: EdgeSocket,
    peer: SocketAddr,
    report: mpsc::UnboundedSender<Ended>,
) -> Result<Response<Empty<Bytes>>, hyper::Error> {
    let mut response = Response::new(Empty::new());
    if request.uri().path() != WEBSOCKET_PATH {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    }
    match upgrade_response(request.headers()) {
        Ok(headers) => {
            *response.headers_mut() = headers;
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            // The listener's task ends with the upgrade; the test outlives both.
            tokio::spawn(async move {
                let upgraded = hyper::upgrade::on(request).await.unwrap();
                let peer = PeerInfo {
                    address: peer,
                    path_kind: PathKind::of(peer),
                    congestion: CongestionOwner::Quic,
                };
                let io = TokioIo::new(upgraded);
                if let Ok(carrying) = socket.accept(io, peer) {
                    let _ = report.send(carrying.await);
                }
            });
        }
        Err(err) => {
            *response.headers_mut() = err.required();
            *response.status_mut() = err.status();
        }
    }
    Ok(response)
}

/// Relay every TCP connection to `to` until the result is dropped.
pub(crate) async fn relay(to: SocketAddr) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (addr, tasks)
}

/// Relay one agent's UDP packets to `to` until the result is dropped.
pub(crate) async fn relay_udp(to: SocketAddr) -> (SocketAddr, JoinSet<()>) {
    let near = Arc::new(
        tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap(),
    );
    let far = Arc::new(
        tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap(),
    );
    far.connect(to).await.unwrap();
    let addr = near.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    let (agent_is, agent) = tokio::sync::watch::channel(addr);
    let (back, out) = (near.clone(), far.clone());
    tasks.spawn(async move {
        let mut buffer = vec![0; 2000];
        loop {
            let n = far.recv(&mut buffer).await.unwrap();
            let agent = *agent.borrow();
            // Packets that the kernel does not accept are lost, as on any link.
            let _ = back.try_send_to(&buffer[..n], agent);
        }
    });
    tasks.spawn(async move {
        let mut buffer = vec![0; 2000];
        loop {
            let (n, from) = near.recv_from(&mut buffer).await.unwrap();
            agent_is.send_replace(from);
            let _ = out.try_send(&buffer[..n]);
        }
    });
    (addr, tasks)
}
