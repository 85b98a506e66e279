//! Listening sockets bound by somebody else: a service manager (socket activation), or the edge
//! before this one.

#[cfg(unix)]
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
#[cfg(unix)]
use std::os::fd::{FromRawFd, OwnedFd};
#[cfg(unix)]
use std::sync::atomic::{AtomicBool, Ordering};

/// Sockets that are bound already. An edge uses them for the configured addresses that they are
/// bound to.
#[derive(Debug, Default)]
pub struct Sockets {
    tcp: Vec<(SocketAddr, TcpListener)>,
    udp: Vec<(SocketAddr, UdpSocket)>,
}

impl Sockets {
    /// Take the sockets that a service manager such as systemd passes to this process
    /// (`LISTEN_FDS`); none if there is no service manager. Only the first call finds any.
    ///
    /// # Errors
    /// Returns an error if the descriptors that are passed are invalid.
    #[cfg(unix)]
    pub fn from_service_manager() -> io::Result<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let mut sockets = Self::default();
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Ok(sockets);
        }
        for fd in sd_notify::listen_fds()? {
            // SAFETY: the manager has opened them for this process, and nobody takes them twice.
            sockets.add(unsafe { OwnedFd::from_raw_fd(fd) })?;
        }
        Ok(sockets)
    }

    /// Add a socket of any kind. One that is of no use to an edge is closed.
    #[cfg(unix)]
    pub(crate) fn add(&mut self, fd: OwnedFd) -> io::Result<()> {
        let socket = socket2::Socket::from(fd);
        socket.set_nonblocking(true)?;
        let Some(addr) = socket.local_addr()?.as_socket() else {
            return Ok(());
        };
        match socket.r#type()? {
            socket2::Type::STREAM => self.tcp.push((addr, socket.into())),
            socket2::Type::DGRAM => self.udp.push((addr, socket.into())),
            _ => {}
        }
        Ok(())
    }

    /// Remove and return the TCP listener bound to an address.
    pub(crate) fn take_tcp(&mut self, addr: SocketAddr) -> Option<TcpListener> {
        let at = self.tcp.iter().position(|(bound, _)| *bound == addr)?;
        Some(self.tcp.swap_remove(at).1)
    }

    /// Remove and return the UDP socket bound to an address.
    pub(crate) fn take_udp(&mut self, addr: SocketAddr) -> Option<UdpSocket> {
        let at = self.udp.iter().position(|(bound, _)| *bound == addr)?;
        Some(self.udp.swap_remove(at).1)
    }

    /// Return the address of the UDP socket, if there is one.
    #[cfg(unix)]
    pub(crate) fn udp_addr(&self) -> Option<SocketAddr> {
        self.udp.first().map(|(addr, _)| *addr)
    }

    /// Return the addresses of the sockets that have not been taken.
    pub(crate) fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        let tcp = self.tcp.iter().map(|(addr, _)| *addr);
        tcp.chain(self.udp.iter().map(|(addr, _)| *addr))
    }
}
