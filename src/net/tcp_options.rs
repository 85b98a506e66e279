//! Options of TCP sockets: congestion control, and limits on the kernel's send queues.

use std::net::SocketAddr;
use std::sync::Once;

use socket2::SockRef;
use tracing::debug;

use super::path_kind::PathKind;

/// Request BBR, a congestion control that does not take every loss for a full queue, for a connection to
/// this address or a listener on it. Accepted connections inherit it from their listener.
///
/// Where BBR is unavailable or not permitted, the socket keeps the system's congestion control. So it
/// does on loopback: nothing is lost there, and BBR's pacing would only add latency.
pub fn request_bbr<'s>(tcp: impl Into<SockRef<'s>>, addr: SocketAddr) {
    if PathKind::of(addr) == PathKind::Loopback {
        return;
    }
    if let Err(err) = set_bbr(&tcp.into()) {
        // Logged once: the result is the same for every socket.
        static LOGGED: Once = Once::new();
        LOGGED.call_once(|| debug!(%err, "TCP sockets keep the system's congestion control"));
    }
}

/// Return the bytes in a connection's send buffer that the peer has not acknowledged (`SIOCOUTQ`), where the
/// system reports them.
#[cfg(target_os = "linux")]
pub fn unacknowledged<'s>(tcp: impl Into<SockRef<'s>>) -> Option<u32> {
    use std::os::fd::AsRawFd;

    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed, and the kernel writes one integer.
    let result =
        unsafe { libc::ioctl(tcp.into().as_raw_fd(), libc::TIOCOUTQ as _, &raw mut bytes) };
    (result == 0).then(|| u32::try_from(bytes).unwrap_or(0))
}

/// Return the bytes in a connection's send buffer that the peer has not acknowledged (`SIOCOUTQ`), where the
/// system reports them.
#[cfg(not(target_os = "linux"))]
pub fn unacknowledged<'s>(_: impl Into<SockRef<'s>>) -> Option<u32> {
    None
}

/// Report whether a connection uses BBR.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub fn is_on_bbr(tcp: &SockRef) -> bool {
    tcp.tcp_congestion()
        .is_ok_and(|name| name.split(|byte| *byte == 0).next() == Some(b"bbr"))
}

/// Report whether a connection uses BBR.
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub fn is_on_bbr(_: &SockRef) -> bool {
    false
}

/// Use BBR for a connection or a listener.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub fn set_bbr(tcp: &SockRef) -> std::io::Result<()> {
    tcp.set_tcp_congestion(b"bbr")
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn set_bbr(_: &SockRef) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Limit the unsent bytes in the kernel's send queue of a TCP connection, and disable Nagle's algorithm.
///
/// For every TCP connection that may become a WebSocket, before TLS is started on it.
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
        debug!(%err, "the TCP socket keeps its default options");
    }
}

/// Limit the unsent bytes in the kernel's send queue of every connection that a listener accepts.
pub fn limit_visitor_send_queues<'s>(listener: impl Into<SockRef<'s>>) {
    if let Err(err) = limit_unsent(&listener.into(), MAX_UNSENT_TO_VISITOR) {
        debug!(%err, "the TCP listener keeps its default options");
    }
}

/// Set `TCP_NOTSENT_LOWAT`.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn limit_unsent(tcp: &SockRef, unsent: u32) -> std::io::Result<()> {
    tcp.set_tcp_notsent_lowat(unsent)
}

/// Limit the send buffer as a whole, where there is no `TCP_NOTSENT_LOWAT`. This costs throughput on long paths.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn limit_unsent(tcp: &SockRef, unsent: u32) -> std::io::Result<()> {
    const IN_FLIGHT: usize = 512 * 1024;
    tcp.set_send_buffer_size(IN_FLIGHT + unsent as usize)
}

/// Unsent bytes that the kernel accepts. Its send buffer holds everything in flight and grows to
/// megabytes; without this bound, so does the queue in front of the network, which quinn cannot see.
const MAX_UNSENT: u32 = 16 * 1024;

/// Unsent bytes that the kernel accepts for a visitor. The data for a slow visitor waits where it is
/// counted, and not in the kernel's send buffer, which would accept megabytes at once and make the
/// visitor look fast.
const MAX_UNSENT_TO_VISITOR: u32 = 128 * 1024;

/// Unsent bytes that the kernel accepts on loopback, where the scheduling delay of the other process,
/// and not a network, must be bridged: at least as much as is in flight there.
const MAX_UNSENT_LOOPBACK: u32 = 256 * 1024;
