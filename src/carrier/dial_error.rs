//! Why an edge could not be reached.

use std::{error::Error, fmt, io, net::SocketAddr, ops::RangeInclusive};

use quinn::{ConnectError, ConnectionError};

use super::{Carrier, hop::HopError, race::HANDSHAKE};

/// QUIC's codes for what TLS says about a certificate, from `bad_certificate` to `decrypt_error` (a
/// wrong signature): 0x100 and the alert (RFC 9001 §4.8, RFC 8446 §6).
const CERTIFICATE_ALERTS: RangeInclusive<u64> = 0x12a..=0x133;

/// No carrier brought a connection.
#[derive(Debug)]
pub struct DialError {
    pub host: String,
    /// What each attempt came to.
    pub attempts: Vec<AttemptError>,
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    #[error("udp to {to}: no answer within {} s; is UDP port {} open at the edge and on the way?", HANDSHAKE.as_secs(), to.port())]
    NoAnswer { to: SocketAddr },
    #[error("{carrier}: {hop}")]
    Hop {
        carrier: Carrier,
        #[source]
        hop: HopError,
    },
    #[error("{carrier}: no QUIC connection with the edge")]
    Quic {
        carrier: Carrier,
        #[source]
        err: ConnectionError,
    },
    #[error("websocket: no QUIC answer from the edge within {} s", HANDSHAKE.as_secs())]
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
    /// Report whether the edge was reached but its certificate was not accepted.
    pub fn is_untrusted(&self) -> bool {
        self.attempts.iter().any(|attempt| match attempt {
            AttemptError::Quic {
                err: ConnectionError::TransportError(err),
                ..
            } => CERTIFICATE_ALERTS.contains(&u64::from(err.code)),
            _ => false,
        })
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "edge {} not reached", self.host)?;
        for attempt in &self.attempts {
            write!(f, "; {attempt}")?;
            let mut cause = attempt.source();
            // A hop's own text is part of its attempt's.
            if matches!(attempt, AttemptError::Hop { .. }) {
                cause = cause.and_then(Error::source);
            }
            while let Some(err) = cause {
                write!(f, ": {err}")?;
                cause = err.source();
            }
        }
        Ok(())
    }
}

impl Error for DialError {}
