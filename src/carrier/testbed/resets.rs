//! Test of a stateless reset that arrives while the agent changes sockets.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use quinn::{
    AsyncUdpSocket, ConnectionError, Endpoint, EndpointConfig, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::certificate;
use super::network::{EDGE, Network};
use super::udp::MemoryUdp;
use crate::carrier::agent::factory::CarrierFactory;
use crate::carrier::agent::factory::Upgraded;
use crate::carrier::agent::race::Race;
use crate::carrier::edge::endpoint::edge_endpoint;
use crate::carrier::edge::socket::EdgeSocket;
use crate::carrier::tcp::connect::{Peer, TcpConnectError};
use crate::carrier::{Carrier, EdgeKeys, PathMemory, Transport};
use crate::net::path_kind::PathKind;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn changing_sockets_during_a_stateless_reset_ends_only_the_connection() {
    let network = Network::new(1);
    let (edge, socket) = start_edge(&network);
    let arrived = Arc::new(Notify::new());
    let race = Race {
        quic: certificate().client,
        path_kind: PathKind::Network,
        memory: PathMemory::default(),
        endpoint: EndpointConfig::default(),
        server_name: "edge.test".into(),
        edge: vec![EDGE],
        factory: Arc::new(ObservedCarrierFactory(network.clone(), arrived.clone())),
    };
    let accepting = tokio::spawn({
        let edge = edge.clone();
        async move { edge.accept().await.unwrap().await.unwrap() }
    });
    let agent = race.run(Transport::Quic, &mut Vec::new()).await.unwrap();
    // The edge goes silently, and another takes its place.
    network.udp(false);
    drop(accepting.await.unwrap());
    edge.wait_idle().await;
    drop((edge, socket));
    sleep(SECOND).await;
    let _edge = start_edge(&network);
    let connection = agent.connection.clone();
    let endpoint = agent.endpoint.clone();
    // A separate task is polled before the connection's.
    let moved = tokio::spawn(async move {
        arrived.notified().await;
        agent.send_over(Carrier::Udp);
    });
    tokio::task::yield_now().await;

    network.udp(true);

    timeout(3 * SECOND, moved).await.unwrap().unwrap();
    let ended = timeout(3 * SECOND, connection.closed()).await;
    assert_eq!(ended, Ok(ConnectionError::Reset));
    endpoint.wait_idle().await;
}

/// Start an edge with the keys of the previous one.
fn start_edge(network: &Arc<Network>) -> (Endpoint, EdgeSocket) {
    let udp = MemoryUdp::open(network, Some(EDGE));
    let keys = EdgeKeys::from_bytes(&[7; EdgeKeys::LENGTH]);
    edge_endpoint(Some(udp), certificate().server, keys, 1).unwrap()
}

/// Carrier factory whose UDP sockets report packets before quinn receives them.
struct ObservedCarrierFactory(Arc<Network>, Arc<Notify>);

impl CarrierFactory for ObservedCarrierFactory {
    fn bind(&self) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let udp = MemoryUdp::open(&self.0, None);
        Ok(Arc::new(ObservedUdp(udp, self.1.clone())))
    }

    fn dial(&self) -> BoxFuture<'static, Result<Upgraded, TcpConnectError>> {
        let peer = Peer::Edge("edge.test".into());
        Box::pin(async { Err(TcpConnectError::TimedOut { peer }) })
    }
}

#[derive(Debug)]
struct ObservedUdp(Arc<MemoryUdp>, Arc<Notify>);

impl AsyncUdpSocket for ObservedUdp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.0.poll_recv(cx, bufs, meta);
        if received.is_ready() {
            self.1.notify_waiters();
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
