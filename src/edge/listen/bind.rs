//! Binding addresses, with errors that say what to do.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::edge::config::EdgeConfig;

/// Listen for TCP connections.
///
/// # Errors
/// Those of the system; [`ListenError`] explains them.
pub fn tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        // The unspecified address stands for both families.
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // A restarted edge must not wait for its predecessor's connections to be forgotten. On Windows it does not
    // have to, and there this would let another process listen on the same address.
    socket.set_reuse_address(cfg!(unix))?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connections that the system keeps while we do not accept; it may hold fewer (`somaxconn`).
const BACKLOG: i32 = 4096;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} ({protocol}){}", advice(*addr, source))]
pub struct ListenError {
    protocol: &'static str,
    addr: SocketAddr,
    source: io::Error,
}

impl ListenError {
    /// Explain why binding failed.
    pub fn new(protocol: &'static str, addr: SocketAddr, source: io::Error) -> Self {
        Self {
            protocol,
            addr,
            source,
        }
    }

    /// Explain why there is no UDP socket for agents.
    pub fn udp(config: &EdgeConfig) -> impl FnOnce(io::Error) -> Self + use<> {
        let addr = config.quic.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        move |err| Self::new("UDP", addr, err)
    }
}

fn advice(addr: SocketAddr, err: &io::Error) -> String {
    match err.kind() {
        io::ErrorKind::AddrInUse => format!(
            ": port {} is in use by another process; stop it ({} shows it) or choose another with --http, \
             --https and --quic",
            addr.port(),
            who_listens(addr.port())
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

/// What shows the process that listens on a port.
fn who_listens(port: u16) -> String {
    match std::env::consts::OS {
        "linux" => format!("`ss -lptun 'sport = :{port}'`"),
        "windows" => format!("`netstat -ano | findstr :{port}`"),
        _ => format!("`lsof -nP -i :{port}`"),
    }
}
