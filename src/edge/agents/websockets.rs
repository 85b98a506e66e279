//! WebSockets of agents whose network allows only HTTP: they carry QUIC packets, on the visitors'
//! listeners.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
#[cfg(unix)]
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
#[cfg(windows)]
use std::os::windows::io::{AsRawSocket, BorrowedSocket, RawSocket};
#[cfg(unix)]
use std::sync::Arc;
use std::time::Duration;

use ::http::Response;
use ::http::header::{FORWARDED, HeaderMap, HeaderName};
use ::http::request::Parts;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug};

#[cfg(unix)]
use crate::carrier::handover::passed_websocket::{PassedWebSocket, PassedWebSockets};
#[cfg(unix)]
use crate::carrier::handover::predecessors::Predecessors;
use crate::carrier::{EdgeEndpoint, PeerInfo, answer_upgrade};
use crate::edge::visitors::http::body::VisitorBody;
use crate::edge::visitors::http::http2::{CountedReads, Http2Stream};
use crate::http::x_forwarded::X_FORWARDED_FOR;
use crate::net::tcp_options::limit_send_queue;

/// Descriptor of a visitor's TCP connection, which hyper owns and does not give back.
#[derive(Clone, Copy)]
pub struct RawTcp {
    #[cfg(unix)]
    socket: RawFd,
    #[cfg(windows)]
    socket: RawSocket,
}

impl RawTcp {
    /// Copy the descriptor of a connection.
    pub fn of(tcp: &TcpStream) -> Self {
        Self {
            #[cfg(unix)]
            socket: tcp.as_raw_fd(),
            #[cfg(windows)]
            socket: tcp.as_raw_socket(),
        }
    }

    /// Borrow the socket.
    ///
    /// # Safety
    /// The connection must stay open for the lifetime of the result.
    #[cfg(unix)]
    unsafe fn borrow(&self) -> BorrowedFd<'_> {
        // SAFETY: the caller's promise.
        unsafe { BorrowedFd::borrow_raw(self.socket) }
    }

    /// Borrow the socket.
    ///
    /// # Safety
    /// The connection must stay open for the lifetime of the result.
    #[cfg(windows)]
    unsafe fn borrow(&self) -> BorrowedSocket<'_> {
        // SAFETY: the caller's promise.
        unsafe { BorrowedSocket::borrow_raw(self.socket) }
    }
}

/// The WebSockets that carry QUIC packets of agents.
#[derive(Clone)]
pub struct AgentWebSockets {
    pub endpoint: EdgeEndpoint,
    /// The edges before this one, some of whose agents connect here.
    #[cfg(unix)]
    pub predecessors: Predecessors,
    /// The tasks that carry the packets. They outlive the visitors' connections, and end after the
    /// agents' sessions.
    pub tasks: TaskTracker,
    /// Cancelled to end the tasks.
    pub end: CancellationToken,
}

impl AgentWebSockets {
    /// Upgrade a connection to a WebSocket of the agent at `agent`, and start carrying its packets.
    pub fn accept(
        &self,
        mut parts: Parts,
        agent: SocketAddr,
        (peer, tcp, stream): (SocketAddr, RawTcp, Option<Arc<Http2Stream>>),
        expects_upgrade: bool,
    ) -> Response<VisitorBody> {
        let mut response = Response::new(VisitorBody::Empty);
        let (headers, on_upgrade) = match answer_upgrade(&mut parts, expects_upgrade) {
            Ok((status, headers, on_upgrade)) => {
                *response.status_mut() = status;
                (headers, on_upgrade)
            }
            Err(refusal) => {
                *response.status_mut() = refusal.status();
                *response.headers_mut() = refusal.required();
                return response;
            }
        };
        let is_direct = !is_proxied(&parts.headers);
        *response.headers_mut() = headers;
        let websockets = self.clone();
        let task = async move {
            let upgraded = match on_upgrade.await {
                Ok(upgraded) => upgraded,
                Err(err) => return debug!(%err, "the websocket upgrade failed"),
            };
            let peer = {
                // SAFETY: `upgraded` owns the connection, whose socket is therefore open.
                let tcp = unsafe { tcp.borrow() };
                let peer = match is_direct {
                    true => PeerInfo::direct(agent, &tcp, peer),
                    false => PeerInfo::proxied(agent),
                };
                // Packets must not grow stale in the kernel's send queue.
                limit_send_queue(&tcp, peer.path_kind);
                peer
            };
            let io = CountedReads::new(TokioIo::new(upgraded), stream);
            let endpoint = &websockets.endpoint;
            #[cfg(unix)]
            let carrying = endpoint.carry_or_relay(&websockets.predecessors, io, peer);
            #[cfg(not(unix))]
            let carrying = endpoint.carry(io, peer);
            websockets.pump(carrying).await;
        };
        self.tasks.spawn(task.in_current_span());
        response
    }

    /// Carry the WebSockets that a successor passes on, until the end or until no process is left
    /// that could pass on any.
    #[cfg(unix)]
    pub fn receive(&self, passed: PassedWebSockets) {
        let websockets = self.clone();
        self.tasks.spawn(async move {
            loop {
                let next = tokio::select! {
                    next = passed.next() => next,
                    () = websockets.end.cancelled() => return,
                };
                match next {
                    Ok(Some(passed)) => websockets.carry(passed),
                    Ok(None) => return,
                    Err(err) => {
                        debug!(%err, "cannot receive a websocket from the successor");
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    }
                }
            }
        });
    }

    /// Start a task that carries a WebSocket passed on by a successor.
    #[cfg(unix)]
    fn carry(&self, passed: PassedWebSocket) {
        let websockets = self.clone();
        self.tasks.spawn(async move {
            let carrying = websockets.endpoint.carry(passed.stream, passed.peer);
            websockets.pump(carrying).await;
        });
    }

    /// Carry the packets of one WebSocket until it ends, or all are ended.
    async fn pump(&self, carrying: Result<impl Future<Output = impl Display>, impl Display>) {
        match carrying {
            Ok(carrying) => tokio::select! {
                ended = carrying => debug!(reason = %ended, "a websocket ended"),
                () = self.end.cancelled() => {}
            },
            Err(err) => debug!(%err, "a websocket was rejected"),
        }
    }
}

/// Pause after a failure to receive a WebSocket: the system may have descriptors again.
#[cfg(unix)]
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Return an agent's address: that of the TCP peer, or if the peer is a trusted proxy, the last
/// address in its `X-Forwarded-For` that is not a trusted proxy's.
pub fn agent_address(peer: SocketAddr, trusted: &[IpNet], fields: &HeaderMap) -> SocketAddr {
    let is_trusted = |address: &IpAddr| {
        let address = address.to_canonical();
        trusted.iter().any(|proxies| proxies.contains(&address))
    };
    if !is_trusted(&peer.ip()) {
        return peer;
    }
    let lists = fields.get_all(X_FORWARDED_FOR).into_iter();
    let lists = lists.filter_map(|list| list.to_str().ok());
    let addresses: Vec<&str> = lists.flat_map(|list| list.split(',')).collect();
    // Each proxy appends its peer's address.
    let mut addresses = addresses
        .iter()
        .rev()
        .map_while(|text| text.trim().parse().ok());
    match addresses.find(|address| !is_trusted(address)) {
        Some(address) => (address, 0).into(),
        None => peer,
    }
}

/// Report whether a request came through a proxy.
fn is_proxied(fields: &HeaderMap) -> bool {
    PROXY_FIELDS.iter().any(|name| fields.contains_key(name))
}

/// Fields that proxies add to a request, and agents do not.
const PROXY_FIELDS: [HeaderName; 3] = [
    X_FORWARDED_FOR,
    HeaderName::from_static("x-real-ip"),
    FORWARDED,
];

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;

    #[test]
    fn trusted_proxies_name_the_address_of_an_agent() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let addresses = HeaderValue::from_static("203.0.113.9, 198.51.100.7, 10.0.0.2");
        let fields = HeaderMap::from_iter([(X_FORWARDED_FOR, addresses)]);
        let address = |peer: [u8; 4]| agent_address((peer, 4000).into(), &trusted, &fields).ip();

        assert_eq!(address([10, 0, 0, 1]), IpAddr::from([198, 51, 100, 7]));
        assert_eq!(address([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 1]));
        let silent = agent_address(([10, 0, 0, 1], 4000).into(), &trusted, &HeaderMap::new());
        assert_eq!(silent, ([10, 0, 0, 1], 4000).into());
    }
}
