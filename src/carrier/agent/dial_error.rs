//! The errors of a failed dial.

use std::{error::Error, fmt, io, net::SocketAddr, ops::RangeInclusive};

use quinn::{ConnectError, ConnectionError, TransportErrorCode};

use crate::carrier::Carrier;
use crate::carrier::tcp::connect::{Peer, TcpConnectError};
use crate::carrier::transport::HANDSHAKE_TIMEOUT;

/// No carrier could connect to the edge.
#[derive(Debug)]
pub struct DialError {
    pub host: String,
    /// The error of each attempt.
    pub attempts: Vec<AttemptError>,
}

/// One attempt over one carrier failed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    #[error("udp to {to}: no answer within {} s; is UDP port {} open at the edge and on the path?", HANDSHAKE_TIMEOUT.as_secs(), to.port())]
    NoAnswer { to: SocketAddr },
    #[error("udp to {to}: the port is closed")]
    Refused {
        to: SocketAddr,
        #[source]
        err: io::Error,
    },
    #[error("{carrier}: {err}")]
    Tcp {
        carrier: Carrier,
        #[source]
        err: TcpConnectError,
    },
    #[error("{carrier}: no QUIC connection with the edge")]
    Quic {
        carrier: Carrier,
        #[source]
        err: ConnectionError,
    },
    #[error("websocket: no QUIC answer from the edge within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    NoQuic,
    #[error("websocket: {0}")]
    Ended(String),
    #[error("{0} is not a server name")]
    ServerName(String),
    #[error("cannot connect with this configuration")]
    Configuration(#[source] ConnectError),
    #[error("cannot open a UDP socket")]
    Socket(#[source] io::Error),
}

impl DialError {
    /// Report whether the edge was reached, but its certificate was rejected.
    pub fn is_untrusted(&self) -> bool {
        self.attempts.iter().any(|attempt| match attempt {
            AttemptError::Quic {
                err: ConnectionError::TransportError(err),
                ..
            } => CERTIFICATE_ALERTS.contains(&u64::from(err.code)),
            _ => false,
        })
    }

    /// Report whether a QUIC server answered that does not speak this protocol.
    pub fn is_foreign(&self) -> bool {
        self.attempts.iter().any(|attempt| match attempt {
            AttemptError::Quic { err, .. } => match err {
                ConnectionError::ConnectionClosed(close) => {
                    close.error_code == TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL)
                }
                ConnectionError::VersionMismatch => true,
                _ => false,
            },
            _ => false,
        })
    }

    /// Report whether the edge's machine is up, but its ports are closed.
    pub fn is_refused(&self) -> bool {
        !self.attempts.is_empty() && self.attempts.iter().all(AttemptError::is_refused)
    }

    /// Return the host name that could not be resolved, and the error, if that is the cause.
    pub fn unresolved(&self) -> Option<(&str, &io::Error)> {
        self.attempts.iter().find_map(|attempt| match attempt {
            AttemptError::Tcp {
                err: TcpConnectError::Resolve { host, err },
                ..
            } => Some((host.as_str(), err)),
            _ => None,
        })
    }

    /// Summarise the failures of all attempts in a few words, without repetition.
    pub fn summary(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        for attempt in &self.attempts {
            let part = attempt.summary();
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        parts.join(", ")
    }
}

impl AttemptError {
    fn is_refused(&self) -> bool {
        match self {
            Self::Refused { .. } => true,
            Self::Tcp {
                err: TcpConnectError::Connect { peer, err, .. },
                ..
            } => matches!(peer, Peer::Edge(_)) && err.kind() == io::ErrorKind::ConnectionRefused,
            _ => false,
        }
    }

    fn summary(&self) -> String {
        match self {
            Self::NoAnswer { to } => format!("UDP port {} does not answer", to.port()),
            Self::Refused { to, .. } => format!("UDP port {} is closed", to.port()),
            Self::Tcp {
                err: TcpConnectError::Connect { addr, .. },
                ..
            } if self.is_refused() => format!("TCP port {} is closed", addr.port()),
            Self::Tcp {
                err:
                    TcpConnectError::TimedOut {
                        peer: Peer::Edge(host),
                    },
                ..
            } => {
                let port = host.rsplit(':').next().unwrap_or(host);
                format!("TCP port {port} does not answer")
            }
            other => chain(other),
        }
    }
}

/// Format an attempt's error with its causes. The text of a `Tcp` attempt already contains its source.
fn chain(attempt: &AttemptError) -> String {
    let mut text = attempt.to_string();
    let mut cause = attempt.source();
    if matches!(attempt, AttemptError::Tcp { .. }) {
        cause = cause.and_then(Error::source);
    }
    while let Some(err) = cause {
        text = format!("{text}: {err}");
        cause = err.source();
    }
    text
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "edge {} not reached", self.host)?;
        for attempt in &self.attempts {
            write!(f, "; {}", chain(attempt))?;
        }
        Ok(())
    }
}

impl Error for DialError {}

/// QUIC error codes of the TLS alerts about a certificate, from `bad_certificate` to `decrypt_error` (a
/// wrong signature): 0x100 plus the alert (RFC 9001 §4.8, RFC 8446 §6).
const CERTIFICATE_ALERTS: RangeInclusive<u64> = 0x12a..=0x133;

/// The TLS alert `no_application_protocol`: the server supports none of the offered protocols (RFC 7301 §3.2).
const NO_APPLICATION_PROTOCOL: u8 = 120;
