//! TCP sockets as both ends want them.

use std::net::SocketAddr;
use std::sync::Once;

use socket2::SockRef;
use tracing::debug;

use crate::carrier::{CongestionOwner, PathKind};

/// Ask the kernel for BBR, a congestion control that does not take every loss for a full queue, for a
/// connection to this address or a listener on it. What a listener has, the connections get that it
/// accepts.
///
/// Where there is none, or none for us, the socket keeps what it has. So it does within this machine:
/// nothing is lost there, and BBR's pacing would only cost time.
pub fn request_bbr<'s>(tcp: impl Into<SockRef<'s>>, addr: SocketAddr) {
    if PathKind::of(addr) == PathKind::Loopback {
        return;
    }
    if let Err(err) = set_bbr(&tcp.into()) {
        // The same answer for every socket.
        static TOLD: Once = Once::new();
        TOLD.call_once(|| debug!(%err, "tcp sockets keep the system's congestion control"));
    }
}

/// Tell whether congestion can be left to the kernel on a connection that leads, without a proxy on the way,
/// to this address: whether it is on BBR, which keeps the network's queue short.
pub fn congestion_owner<'s>(tcp: impl Into<SockRef<'s>>, peer: SocketAddr) -> CongestionOwner {
    match PathKind::of(peer) == PathKind::Network && is_on_bbr(&tcp.into()) {
        true => CongestionOwner::Tcp,
        false => CongestionOwner::Quic,
    }
}

/// Return how many bytes of a connection the kernel keeps that the peer has not acknowledged, where the
/// system tells.
#[cfg(target_os = "linux")]
pub fn unacknowledged<'s>(tcp: impl Into<SockRef<'s>>) -> Option<u32> {
    use std::os::fd::AsRawFd;

    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed, and the kernel writes one integer.
    let result =
        unsafe { libc::ioctl(tcp.into().as_raw_fd(), libc::TIOCOUTQ as _, &raw mut bytes) };
    (result == 0).then(|| u32::try_from(bytes).unwrap_or(0))
}

/// Return how many bytes of a connection the kernel keeps that the peer has not acknowledged, where the
/// system tells.
#[cfg(not(target_os = "linux"))]
pub fn unacknowledged<'s>(_: impl Into<SockRef<'s>>) -> Option<u32> {
    None
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub(crate) fn is_on_bbr(tcp: &SockRef) -> bool {
    tcp.tcp_congestion()
        .is_ok_and(|name| name.split(|byte| *byte == 0).next() == Some(b"bbr"))
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn is_on_bbr(_: &SockRef) -> bool {
    false
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub(crate) fn set_bbr(tcp: &SockRef) -> std::io::Result<()> {
    tcp.set_tcp_congestion(b"bbr")
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn set_bbr(_: &SockRef) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Keep the kernel's queue in front of a TCP connection short and send small packets at once.
///
/// For every TCP connection that may become a WebSocket, before TLS is put on it.
pub fn limit_send_queue<'s>(tcp: impl Into<SockRef<'s>>, path_kind: PathKind) {
    let tcp = tcp.into();
    let unsent = match path_kind {
        PathKind::Loopback => MAX_UNSENT_LOOPBACK,
        PathKind::Network => MAX_UNSENT,
    };
    let asked = tcp
        .set_tcp_nodelay(true)
        .and_then(|()| limit_unsent(&tcp, unsent));
    if let Err(err) = asked {
        debug!(%err, "tcp socket keeps its options");
    }
}

/// Keep the kernel's queues short of what the connections that a listener accepts are sent.
pub fn limit_visitor_send_queues<'s>(listener: impl Into<SockRef<'s>>) {
    if let Err(err) = limit_unsent(&listener.into(), MAX_UNSENT_TO_VISITOR) {
        debug!(%err, "tcp listener keeps its options");
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn limit_unsent(tcp: &SockRef, unsent: u32) -> std::io::Result<()> {
    tcp.set_tcp_notsent_lowat(unsent)
}

/// Elsewhere the send buffer as a whole is bounded, at the price of speed on long paths.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn limit_unsent(tcp: &SockRef, unsent: u32) -> std::io::Result<()> {
    const IN_FLIGHT: usize = 512 * 1024;
    tcp.set_send_buffer_size(IN_FLIGHT + unsent as usize)
}

/// Unsent bytes that the kernel accepts. Its send buffer holds all that is in flight and grows to
/// megabytes; without this bound so does the queue in front of the network, and quinn cannot see it.
const MAX_UNSENT: u32 = 16 * 1024;

/// The same where visitors read: what is ahead of a slow one waits where it is counted, and not in the
/// kernel's send buffer, which would take megabytes at once and make the visitor look fast.
const MAX_UNSENT_TO_VISITOR: u32 = 128 * 1024;

/// The same within this machine, where it is the time that the other process takes to get its turn, and
/// not a network, that must be bridged: as much as is in flight there at least.
const MAX_UNSENT_LOOPBACK: u32 = 256 * 1024;
