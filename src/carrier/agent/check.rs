//! Tests of the single steps of the path to an edge, for `qtunnel check`.

use std::{
    future::poll_fn,
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, Runtime, TokioRuntime,
    udp::{RecvMeta, Transmit},
};
use tokio::time::{sleep, timeout};

use super::dial::{DialConfig, Target, dial_websocket};
use super::refusal::refused_by_all;
use crate::carrier::selection::probe::{FULL_SIZE, Probe};
use crate::carrier::tcp::connect::{Peer, STEP_TIMEOUT, TcpConnectError};
use crate::carrier::tcp::{connect, proxy};
use crate::carrier::transport::ETHERNET_PACKET;
use crate::net::udp_socket;

impl DialConfig {
    /// The time limit for an answer to any of the probes over UDP.
    pub const UDP_ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

    /// The smallest datagram that a QUIC server answers with Version Negotiation, in bytes (RFC 9000 §6.1,
    /// §14.1).
    pub const MIN_PROBE_SIZE: usize = FULL_SIZE;

    /// The largest datagram that agents send over a network, in bytes.
    pub const MAX_PROBE_SIZE: usize = ETHERNET_PACKET as usize;

    /// Resolve the edge's host name.
    pub async fn look_up(&self) -> Result<Vec<SocketAddr>, TcpConnectError> {
        connect::resolve(&self.host, self.port, STEP_TIMEOUT).await
    }

    /// Open a TCP connection to the WebSocket's address without a proxy. Return the address.
    pub async fn reach_tcp(&self) -> Result<SocketAddr, TcpConnectError> {
        let Target { host, port, .. } = Target::of(&self.websocket)?;
        let addresses = connect::resolve(host, port, STEP_TIMEOUT).await?;
        let first = addresses[0];
        let tcp = connect::connect(&Peer::Edge(format!("{host}:{port}")), addresses).await?;
        Ok(tcp.peer_addr().unwrap_or(first))
    }

    /// Return the URL of the proxy that a WebSocket would go through, without its password.
    pub fn proxy_in_use(&self) -> Result<Option<String>, TcpConnectError> {
        let Target {
            use_tls,
            host,
            port,
        } = Target::of(&self.websocket)?;
        let proxy = self.proxy.intercept(use_tls, host, port)?;
        Ok(proxy.map(|proxy| proxy.uri().to_string().trim_end_matches('/').to_owned()))
    }

    /// Open a connection to the WebSocket's address, through the proxy if there is one.
    pub async fn reach_proxy(&self) -> Result<(), TcpConnectError> {
        let Target {
            use_tls,
            host,
            port,
        } = Target::of(&self.websocket)?;
        proxy::connect(&self.proxy, use_tls, host, port, &self.proxy_tls)
            .await
            .map(drop)
    }

    /// Open a WebSocket and close it.
    pub async fn reach_websocket(&self) -> Result<(), TcpConnectError> {
        dial_websocket(self).await.map(drop)
    }

    /// Wait until all these UDP ports of an edge are reported closed. Without any port, wait for ever.
    pub async fn refused_by_all(edges: &[SocketAddr]) {
        refused_by_all(edges).await;
    }

    /// Probe addresses of an edge over UDP, with unfragmented datagrams of `size` bytes. Return the first
    /// address that answers, or `None` if none does within [`UDP_ANSWER_TIMEOUT`](Self::UDP_ANSWER_TIMEOUT).
    ///
    /// # Errors
    /// If there is no UDP socket or no randomness.
    pub async fn probe_udp(edges: &[SocketAddr], size: usize) -> io::Result<Option<SocketAddr>> {
        let socket = TokioRuntime.wrap_udp_socket(udp_socket::bind_any_port()?)?;
        let probes = edges
            .iter()
            .map(|edge| Ok((Probe::new()?, *edge)))
            .collect::<io::Result<Vec<_>>>()?;
        let ask = async {
            loop {
                for (probe, edge) in &probes {
                    // A probe that cannot be sent counts as unanswered.
                    let _ = socket.try_send(&Transmit {
                        destination: reachable(*edge, &*socket),
                        ecn: None,
                        contents: &probe.padded(size),
                        segment_size: None,
                        src_ip: None,
                    });
                }
                sleep(PROBE_INTERVAL).await;
            }
        };
        let answered = timeout(Self::UDP_ANSWER_TIMEOUT, async {
            tokio::select! {
                answered = answer(&socket, &probes) => answered,
                () = ask => unreachable!("probing never ends"),
            }
        });
        Ok(answered.await.ok())
    }
}

/// Convert an address to the address family of the socket.
fn reachable(edge: SocketAddr, socket: &dyn AsyncUdpSocket) -> SocketAddr {
    match (edge, socket.local_addr()) {
        (SocketAddr::V4(v4), Ok(SocketAddr::V6(_))) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        (edge, _) => edge,
    }
}

/// Wait for an answer to one of the probes, and return the address that it was sent to.
async fn answer(socket: &Arc<dyn AsyncUdpSocket>, probes: &[(Probe, SocketAddr)]) -> SocketAddr {
    let mut datagram = vec![0; usize::from(u16::MAX)];
    loop {
        let mut meta = [RecvMeta::default()];
        let received = poll_fn(|cx| {
            let mut bufs = [IoSliceMut::new(&mut datagram)];
            match socket.poll_recv(cx, &mut bufs, &mut meta) {
                // An ICMP error about an earlier packet is no answer.
                Poll::Ready(Err(_)) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                other => other,
            }
        });
        let _ = received.await;
        for packet in datagram[..meta[0].len].chunks(meta[0].stride.max(1)) {
            let answered = probes
                .iter()
                .find(|(probe, _)| probe.is_answered_by(packet));
            if let Some((_, edge)) = answered {
                return *edge;
            }
        }
    }
}

/// The interval between two probes: a single lost packet must not look like a blocked port.
const PROBE_INTERVAL: Duration = Duration::from_millis(300);
