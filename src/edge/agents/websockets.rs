//! Agents whose network lets only HTTP through: their packets come in WebSockets, on the visitors'
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

use ::http::header::{FORWARDED, HeaderMap, HeaderName};
use ::http::request::Parts;
use ::http::{Method, Response, StatusCode};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug};

use crate::carrier::{
    CongestionOwner, EdgeSocket, NotAWebSocket, PathKind, PeerInfo, check_extended_connect,
    congestion_control, shorten_send_queue, upgrade_response,
};
#[cfg(unix)]
use crate::carrier::{PassedWebSocket, PassedWebSockets, Predecessors};
use crate::edge::visitors::http::body::VisitorBody;
use crate::edge::visitors::http::http2::{CountedReads, Stream};
use crate::http::forwarded::X_FORWARDED_FOR;

/// The socket of a visitor's connection, which hyper has and does not give back.
#[derive(Clone, Copy)]
pub struct RawTcp {
    #[cfg(unix)]
    socket: RawFd,
    #[cfg(windows)]
    socket: RawSocket,
}

impl RawTcp {
    /// Remember a connection's socket.
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
    /// The connection must stay open meanwhile.
    #[cfg(unix)]
    unsafe fn borrow(&self) -> BorrowedFd<'_> {
        // SAFETY: the caller's promise.
        unsafe { BorrowedFd::borrow_raw(self.socket) }
    }

    /// Borrow the socket.
    ///
    /// # Safety
    /// The connection must stay open meanwhile.
    #[cfg(windows)]
    unsafe fn borrow(&self) -> BorrowedSocket<'_> {
        // SAFETY: the caller's promise.
        unsafe { BorrowedSocket::borrow_raw(self.socket) }
    }
}

/// The WebSockets that carry packets.
#[derive(Clone)]
pub struct Carriers {
    pub socket: EdgeSocket,
    /// The edges before this one, some of whose agents come here.
    #[cfg(unix)]
    pub predecessors: Predecessors,
    /// What moves the packets. It ends after the agents' sessions, not with the visitors.
    pub pumps: TaskTracker,
    /// Ends the pumps.
    pub end: CancellationToken,
}

impl Carriers {
    /// Take over a connection whose agent, at that address, asks for it.
    pub fn accept(
        &self,
        mut parts: Parts,
        agent: SocketAddr,
        (peer, tcp, stream): (SocketAddr, RawTcp, Option<Arc<Stream>>),
        expects_upgrade: bool,
    ) -> Response<VisitorBody> {
        let mut response = Response::new(VisitorBody::Empty);
        let websocket = parts
            .extensions
            .get::<Protocol>()
            .is_some_and(|protocol| protocol.as_str() == "websocket");
        let headers = if parts.method == Method::CONNECT && websocket {
            check_extended_connect(&parts.headers).map(|()| HeaderMap::new())
        } else if expects_upgrade {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            upgrade_response(&parts.headers)
        } else {
            Err(NotAWebSocket::NoUpgrade)
        };
        let (headers, on_upgrade) = match (headers, parts.extensions.remove::<OnUpgrade>()) {
            (Ok(headers), Some(on_upgrade)) => (headers, on_upgrade),
            (headers, _) => {
                let refusal = headers.err().unwrap_or(NotAWebSocket::NoUpgrade);
                *response.status_mut() = refusal.status();
                *response.headers_mut() = refusal.required();
                return response;
            }
        };
        let is_direct = !is_proxied(&parts.headers);
        *response.headers_mut() = headers;
        let carriers = self.clone();
        let pump = async move {
            let upgraded = match on_upgrade.await {
                Ok(upgraded) => upgraded,
                Err(err) => return debug!(%err, "no websocket came about"),
            };
            let (reach, congestion) = {
                // SAFETY: `upgraded` owns the connection, whose socket is therefore open.
                let tcp = unsafe { tcp.borrow() };
                let way = match is_direct {
                    true => (PathKind::of(peer), congestion_control(&tcp, peer)),
                    // It is often on the same machine, and the agent never is.
                    false => (PathKind::Network, CongestionOwner::Ours),
                };
                // Packets must not grow old in the kernel's queue.
                shorten_send_queue(&tcp, way.0);
                way
            };
            let io = CountedReads::new(TokioIo::new(upgraded), stream);
            let socket = &carriers.socket;
            let peer = PeerInfo {
                peer: agent,
                reach,
                congestion,
            };
            #[cfg(unix)]
            let carrying = socket.accept_or_relay(&carriers.predecessors, io, peer);
            #[cfg(not(unix))]
            let carrying = socket.accept(io, peer);
            carriers.pump(carrying).await;
        };
        self.pumps.spawn(pump.in_current_span());
        response
    }

    /// Carry the WebSockets that a successor passes on, until the end or until nobody is left who could
    /// pass on any.
    #[cfg(unix)]
    pub fn receive(&self, websockets: PassedWebSockets) {
        let carriers = self.clone();
        self.pumps.spawn(async move {
            loop {
                let next = tokio::select! {
                    next = websockets.next() => next,
                    () = carriers.end.cancelled() => return,
                };
                match next {
                    Ok(Some(passed)) => carriers.carry(passed),
                    Ok(None) => return,
                    Err(err) => {
                        debug!(%err, "a websocket was not passed on");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
    }

    #[cfg(unix)]
    fn carry(&self, passed: PassedWebSocket) {
        let carriers = self.clone();
        self.pumps.spawn(async move {
            let carrying = carriers.socket.accept(passed.stream, passed.peer);
            carriers.pump(carrying).await;
        });
    }

    /// Move the packets of one WebSocket until its end, or that of all.
    async fn pump(&self, carrying: Result<impl Future<Output = impl Display>, impl Display>) {
        match carrying {
            Ok(carrying) => tokio::select! {
                ended = carrying => debug!(reason = %ended, "a websocket ended"),
                () = self.end.cancelled() => {}
            },
            Err(err) => debug!(%err, "a websocket was turned away"),
        }
    }
}

/// After a WebSocket that could not be received: the system may have descriptors again.
#[cfg(unix)]
const PAUSE: Duration = Duration::from_millis(100);

/// Find out an agent's address: that at the other end of the connection, or what a trusted proxy there says.
pub fn agent_address(peer: SocketAddr, trusted: &[IpNet], fields: &HeaderMap) -> SocketAddr {
    let is_trusted = |address: &IpAddr| {
        let address = address.to_canonical();
        trusted.iter().any(|proxies| proxies.contains(&address))
    };
    if !is_trusted(&peer.ip()) {
        return peer;
    }
    let told = fields.get_all(X_FORWARDED_FOR).into_iter();
    let told = told.filter_map(|list| list.to_str().ok());
    let addresses: Vec<&str> = told.flat_map(|list| list.split(',')).collect();
    // Each proxy has added its peer's address at the end.
    let mut addresses = addresses
        .iter()
        .rev()
        .map_while(|text| text.trim().parse().ok());
    match addresses.find(|address| !is_trusted(address)) {
        Some(address) => (address, 0).into(),
        None => peer,
    }
}

/// Tell whether there is a proxy in front of the edge.
fn is_proxied(fields: &HeaderMap) -> bool {
    PROXIES_FIELDS.iter().any(|name| fields.contains_key(name))
}

/// What proxies add to a request, and agents do not.
const PROXIES_FIELDS: [HeaderName; 3] = [
    X_FORWARDED_FOR,
    HeaderName::from_static("x-real-ip"),
    FORWARDED,
];

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;

    #[test]
    fn an_agent_behind_trusted_proxies_has_the_address_that_they_say() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let told = HeaderValue::from_static("203.0.113.9, 198.51.100.7, 10.0.0.2");
        let fields = HeaderMap::from_iter([(X_FORWARDED_FOR, told)]);
        let address = |peer: [u8; 4]| agent_address((peer, 4000).into(), &trusted, &fields).ip();

        assert_eq!(address([10, 0, 0, 1]), IpAddr::from([198, 51, 100, 7]));
        assert_eq!(address([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 1]));
        let silent = agent_address(([10, 0, 0, 1], 4000).into(), &trusted, &HeaderMap::new());
        assert_eq!(silent, ([10, 0, 0, 1], 4000).into());
    }
}
