//! Noticing at once that nobody listens on a UDP port.
//!
//! A host says so in an ICMP message (RFC 1122 §4.1.3.1), which the kernel shows to connected sockets alone; quinn's
//! is none.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{net::UdpSocket, time::sleep};

/// Wait until the host says that nobody listens on this port, and return what it said. Otherwise it waits for ever.
pub(crate) async fn refused(to: SocketAddr) -> io::Error {
    match ask(to).await {
        Ok(never) => match never {},
        Err(err) if is_refusal(&err) => err,
        // Without such a socket, or with another error, one knows nothing.
        Err(_) => std::future::pending().await,
    }
}

/// Wait until the hosts say of all these ports that nobody listens. Without any port it waits for ever.
pub async fn refused_by_all(all: &[SocketAddr]) {
    if all.is_empty() {
        std::future::pending::<()>().await;
    }
    join_all(all.iter().map(|to| refused(*to))).await;
}

async fn ask(to: SocketAddr) -> io::Result<std::convert::Infallible> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    let send = async {
        for _ in 0..DATAGRAMS {
            socket.send(&NOTHING).await?;
            sleep(PAUSE).await;
        }
        std::future::pending().await
    };
    let hear = async {
        loop {
            // Whatever answers, it is no refusal.
            socket.recv(&mut [0; 64]).await?;
        }
    };
    tokio::select! {
        sent = send => sent,
        heard = hear => heard,
    }
}

/// Windows says it in other words.
fn is_refusal(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

/// The datagram that is refused: shorter than any QUIC packet, so that servers pass over it (RFC 9000 §5.2).
const NOTHING: [u8; 1] = [0];

/// Datagrams that are sent, of which any may get lost, or the answer to it.
const DATAGRAMS: u32 = 3;

/// Between two of them: routers limit such messages to a few in a second (RFC 1812 §4.3.2.8).
const PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_closed_port_is_noticed_at_once_and_a_silent_one_is_not() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();

        let silent = timeout(Duration::from_millis(100), refused(addr)).await;
        drop(socket);
        let closed = timeout(Duration::from_secs(5), refused(addr)).await;

        assert!(silent.is_err());
        assert_eq!(closed.unwrap().kind(), io::ErrorKind::ConnectionRefused);
    }
}
