//! Binding addresses, with errors that suggest a remedy.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::edge::config::EdgeConfig;

/// Listen for TCP connections.
///
/// # Errors
/// Returns the system's error, which [`ListenError`] explains.
pub fn tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        // The unspecified IPv6 address stands for both families.
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // A restarted edge must not wait for its predecessor's connections to leave TIME_WAIT. On
    // Windows it does not have to, and there this would let another process listen on the same
    // address.
    socket.set_reuse_address(cfg!(unix))?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connections that the system queues before they are accepted; it may queue fewer (`somaxconn`).
const BACKLOG: i32 = 4096;

/// Reason why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} ({protocol}){}", advice(*addr, source))]
pub struct ListenError {
    protocol: &'static str,
    addr: SocketAddr,
    source: io::Error,
}

impl ListenError {
    /// Wrap the system's error for an address.
    pub fn new(protocol: &'static str, addr: SocketAddr, source: io::Error) -> Self {
        Self {
            protocol,
            addr,
            source,
        }
    }

    /// Wrap the system's error for the UDP socket of agents.
    pub fn udp(config: &EdgeConfig) -> impl FnOnce(io::Error) -> Self + use<> {
        let addr = config.quic.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        move |err| Self::new("UDP", addr, err)
    }
}

/// Suggest a remedy for the system's error.
fn advice(addr: SocketAddr, err: &io::Error) -> String {
    match err.kind() {
        io::ErrorKind::AddrInUse => format!(
            ": port {} is in use by another process; stop it ({} shows it) or choose another with --http, \
             --https and --quic",
            addr.port(),
            command_to_find_listener(addr.port())
        ),
        io::ErrorKind::PermissionDenied if cfg!(windows) => format!(
            ": port {} is kept by another process or by Windows itself (`netsh int ipv4 show \
             excludedportrange tcp` lists what it keeps); choose another with --http, --https and --quic",
            addr.port()
        ),
        io::ErrorKind::PermissionDenied if addr.port() < 1024 && cfg!(not(target_os = "linux")) => {
            format!(
                ": ports below 1024 need a right; start the edge with `sudo`, or choose another port than {} with \
             --http, --https and --quic",
                addr.port()
            )
        }
        io::ErrorKind::PermissionDenied if addr.port() < 1024 => format!(
            ": ports below 1024 need a right; grant it with `sudo setcap cap_net_bind_service=+ep \
             $(command -v qtunnel)` (or AmbientCapabilities=CAP_NET_BIND_SERVICE under systemd), or \
             choose another port than {} with --http, --https and --quic",
            addr.port()
        ),
        io::ErrorKind::AddrNotAvailable => ": this machine does not have that address".to_owned(),
        _ => String::new(),
    }
}

/// Return a command that shows the process listening on a port.
fn command_to_find_listener(port: u16) -> String {
    match std::env::consts::OS {
        "linux" => format!("`ss -lptun 'sport = :{port}'`"),
        "windows" => format!("`netstat -ano | findstr :{port}`"),
        _ => format!("`lsof -nP -i :{port}`"),
    }
}
