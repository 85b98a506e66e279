//! Immediate detection of a closed UDP port.
//!
//! A host reports a closed port with an ICMP Port Unreachable message (RFC 1122 §4.1.3.1), which the kernel passes
//! on to connected sockets only; quinn's socket is not connected.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{net::UdpSocket, time::sleep};

/// Wait until the host reports that this port is closed, and return that error. Otherwise, wait for ever.
pub(crate) async fn refused(to: SocketAddr) -> io::Error {
    match ask(to).await {
        Ok(never) => match never {},
        Err(err) if is_refusal(&err) => err,
        // Without a socket, or with any other error, nothing is known about the port.
        Err(_) => std::future::pending().await,
    }
}

/// Wait until all these ports are reported closed. Without any port, wait for ever.
pub async fn refused_by_all(all: &[SocketAddr]) {
    if all.is_empty() {
        std::future::pending::<()>().await;
    }
    join_all(all.iter().map(|to| refused(*to))).await;
}

/// Send datagrams to a port until an error is reported.
async fn ask(to: SocketAddr) -> io::Result<std::convert::Infallible> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    let send = async {
        for _ in 0..DATAGRAMS {
            socket.send(&NOT_QUIC).await?;
            sleep(SEND_INTERVAL).await;
        }
        std::future::pending().await
    };
    let receive = async {
        loop {
            // Any answer means that the port is open.
            socket.recv(&mut [0; 64]).await?;
        }
    };
    tokio::select! {
        sent = send => sent,
        received = receive => received,
    }
}

/// Report whether an error means that the port is closed. Windows reports it as a reset.
fn is_refusal(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

/// The datagram that is sent: shorter than any QUIC packet, so that servers ignore it (RFC 9000 §5.2).
const NOT_QUIC: [u8; 1] = [0];

/// The number of datagrams, since any of them, or the reply to it, may get lost.
const DATAGRAMS: u32 = 3;

/// The time between two datagrams: routers limit ICMP messages to a few per second (RFC 1812 §4.3.2.8).
const SEND_INTERVAL: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_closed_port_is_detected_at_once_and_a_silent_one_is_not() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();

        let silent = timeout(Duration::from_millis(100), refused(addr)).await;
        drop(socket);
        let closed = timeout(Duration::from_secs(5), refused(addr)).await;

        assert!(silent.is_err());
        assert_eq!(closed.unwrap().kind(), io::ErrorKind::ConnectionRefused);
    }
}
