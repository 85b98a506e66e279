//! UDP sockets: binding and buffer sizes.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::debug;

/// Bind a UDP socket to a port of the system's choice, for both address families where the system supports that.
pub fn bind_any_port() -> io::Result<UdpSocket> {
    dual_stack().or_else(|_| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        enlarge_buffers(&socket);
        Ok(socket)
    })
}

fn dual_stack() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
    let socket = socket.into();
    enlarge_buffers(&socket);
    Ok(socket)
}

/// Bind a UDP socket to this address: for both address families if it is `[::]`.
///
/// # Errors
/// If the address cannot be bound.
pub fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        // One socket for both families, where the system has both.
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// Request large socket buffers. The kernel may grant less; failure is only logged.
pub fn enlarge_buffers(socket: &UdpSocket) {
    let socket = SockRef::from(socket);
    let asked = socket
        .set_recv_buffer_size(UDP_BUFFER)
        .and_then(|()| socket.set_send_buffer_size(UDP_BUFFER));
    if let Err(err) = asked {
        debug!(%err, "the UDP socket keeps its default buffer sizes");
    }
}

/// Requested size of each kernel buffer of a UDP socket, in bytes: 50 ms at 600 Mbit/s. The usual
/// default of 208 KiB overflows whenever the receiving thread is busy for a few milliseconds. The
/// kernel may grant less.
const UDP_BUFFER: usize = 4 << 20;
