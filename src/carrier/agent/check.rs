//! Each part of the way to an edge, tried by itself, for `qtunnel check`.

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
use crate::carrier::selection::probe::{FULL_SIZE, Probe};
use crate::carrier::tcp::connect::{HOP, Peer, TcpConnectError};
use crate::carrier::tcp::{connect, proxy};
use crate::carrier::udp_socket;

impl DialConfig {
    /// Look the edge's name up.
    pub async fn look_up(&self) -> Result<Vec<SocketAddr>, TcpConnectError> {
        connect::resolve(&self.host, self.port, HOP).await
    }

    /// Connect to where the WebSocket is, past every proxy.
    pub async fn reach_tcp(&self) -> Result<SocketAddr, TcpConnectError> {
        let Target { host, port, .. } = Target::of(&self.websocket)?;
        let addresses = connect::resolve(host, port, HOP).await?;
        let first = addresses[0];
        let tcp = connect::connect(&Peer::Edge(format!("{host}:{port}")), addresses).await?;
        Ok(tcp.peer_addr().unwrap_or(first))
    }

    /// Name the proxy that a WebSocket would go through, without its password.
    pub fn proxy_in_use(&self) -> Result<Option<String>, TcpConnectError> {
        let Target {
            tls_handshake,
            host,
            port,
        } = Target::of(&self.websocket)?;
        let proxy = self.proxy.intercept(tls_handshake, host, port)?;
        Ok(proxy.map(|proxy| proxy.uri().to_string().trim_end_matches('/').to_owned()))
    }

    /// Have the proxy connect to where the WebSocket is.
    pub async fn reach_proxy(&self) -> Result<(), TcpConnectError> {
        let Target {
            tls_handshake,
            host,
            port,
        } = Target::of(&self.websocket)?;
        proxy::connect(&self.proxy, tls_handshake, host, port, &self.proxy_tls)
            .await
            .map(drop)
    }

    /// Open a WebSocket, and close it.
    pub async fn reach_websocket(&self) -> Result<(), TcpConnectError> {
        dial_websocket(self).await.map(drop)
    }
}

/// Ask for a sign of life with datagrams of this size, which are not fragmented on the way; `None`
/// if there is none within [`UDP_ANSWER`].
pub async fn ask_over_udp(edges: &[SocketAddr], size: usize) -> io::Result<Option<SocketAddr>> {
    let socket = TokioRuntime.wrap_udp_socket(udp_socket::any_port()?)?;
    let probes = edges
        .iter()
        .map(|edge| Ok((Probe::new()?, *edge)))
        .collect::<io::Result<Vec<_>>>()?;
    let ask = async {
        loop {
            for (probe, edge) in &probes {
                // One that cannot be sent is one that is not answered.
                let _ = socket.try_send(&Transmit {
                    destination: reachable(*edge, &*socket),
                    ecn: None,
                    contents: &probe.padded(size),
                    segment_size: None,
                    src_ip: None,
                });
            }
            sleep(AGAIN).await;
        }
    };
    let answered = timeout(UDP_ANSWER, async {
        tokio::select! {
            answered = answer(&socket, &probes) => answered,
            () = ask => unreachable!("it asks for ever"),
        }
    });
    Ok(answered.await.ok())
}

/// An address in the family of the socket that is to reach it.
fn reachable(edge: SocketAddr, socket: &dyn AsyncUdpSocket) -> SocketAddr {
    match (edge, socket.local_addr()) {
        (SocketAddr::V4(v4), Ok(SocketAddr::V6(_))) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        (edge, _) => edge,
    }
}

async fn answer(socket: &Arc<dyn AsyncUdpSocket>, probes: &[(Probe, SocketAddr)]) -> SocketAddr {
    let mut datagram = vec![0; usize::from(u16::MAX)];
    loop {
        let mut meta = [RecvMeta::default()];
        let received = poll_fn(|cx| {
            let mut bufs = [IoSliceMut::new(&mut datagram)];
            match socket.poll_recv(cx, &mut bufs, &mut meta) {
                // What the network says of earlier packets is no answer.
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

/// How long an edge may take to answer any of the questions over UDP.
pub const UDP_ANSWER: Duration = Duration::from_secs(3);

/// Between two questions: a lost packet is no blocked port.
const AGAIN: Duration = Duration::from_millis(300);

/// The smallest datagram that a QUIC server answers.
pub const SMALLEST_FULL_PACKET: usize = FULL_SIZE;
