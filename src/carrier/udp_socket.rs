//! UDP sockets as both ends want them.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::debug;

/// Bind the socket that an agent sends from: any port, both address families if the system has them.
pub(crate) fn any_port() -> io::Result<UdpSocket> {
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

/// Ask for large buffers; what the kernel grants is good enough.
pub(crate) fn enlarge_buffers(socket: &UdpSocket) {
    let socket = SockRef::from(socket);
    let asked = socket
        .set_recv_buffer_size(UDP_BUFFER)
        .and_then(|()| socket.set_send_buffer_size(UDP_BUFFER));
    if let Err(err) = asked {
        debug!(%err, "udp socket keeps its buffers");
    }
}

/// Kernel buffers of a UDP socket: 50 ms at 600 Mbit/s. The usual 208 KiB overflow whenever the
/// receiving thread is away for a few milliseconds. The kernel may grant less.
const UDP_BUFFER: usize = 4 << 20;
