//! A probe: a packet that every QUIC server answers, without a connection.
//!
//! A long header with an unknown version makes a server answer with a Version Negotiation packet
//! (RFC 9000 §6, RFC 8999 §6). It needs no code at the far end. Servers must ignore such packets
//! below 1,200 bytes, so an answer also proves that full packets pass.

use std::io;

/// One probe, identified by its random connection id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe([u8; ID]);

impl Probe {
    /// Create a probe with a random id.
    pub(crate) fn new() -> io::Result<Self> {
        let mut id = [0; ID];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| io::Error::other("no randomness"))?;
        Ok(Self(id))
    }

    /// Return the datagram to send. The edge routes by the destination id and echoes the source id.
    pub(crate) fn datagram(&self) -> [u8; FULL_SIZE] {
        let mut datagram = [0; FULL_SIZE];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            datagram[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&[FIRST_BYTE]);
        put(&UNKNOWN_VERSION.to_be_bytes());
        put(&[ID as u8]);
        put(&self.0);
        put(&[ID as u8]);
        put(&self.0);
        datagram
    }

    /// Return the datagram to send, padded to `size` bytes if that is more.
    pub(crate) fn padded(&self, size: usize) -> Vec<u8> {
        let mut datagram = self.datagram().to_vec();
        datagram.resize(size.max(FULL_SIZE), 0);
        datagram
    }

    /// Report whether this datagram answers the probe.
    pub(crate) fn is_answered_by(&self, datagram: &[u8]) -> bool {
        is_version_negotiation(datagram)
            && datagram.get(5) == Some(&(ID as u8))
            && datagram.get(6..6 + ID) == Some(&self.0)
    }
}

/// Report whether a datagram is a Version Negotiation packet (RFC 8999 §6).
pub(crate) fn is_version_negotiation(datagram: &[u8]) -> bool {
    matches!(datagram, [first, 0, 0, 0, 0, ..] if first & 0x80 != 0)
}

/// Smallest datagram that a server answers, in bytes (RFC 9000 §14.1).
pub(crate) const FULL_SIZE: usize = 1200;

/// Version reserved to force version negotiation (RFC 9000 §15: `0x?a?a?a?a`).
const UNKNOWN_VERSION: u32 = 0x5a8a_2a7a;

/// First byte: long header, fixed bit set.
const FIRST_BYTE: u8 = 0b1100_0000;

/// Length of the connection ids in bytes: too long to be guessed by someone who cannot see the
/// probe.
const ID: usize = 8;

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use bytes::BytesMut;
    use quinn_proto::{DatagramEvent, Endpoint, EndpointConfig};

    use super::*;

    fn answer_of_a_quic_server(datagram: &[u8]) -> Option<Vec<u8>> {
        let server = crate::carrier::testbed::certificate().server;
        let config = EndpointConfig::default();
        let mut endpoint = Endpoint::new(Arc::new(config), Some(Arc::new(server)), true, None);
        let mut answer = Vec::new();
        let from = ([192, 0, 2, 1], 7).into();
        let event = endpoint.handle(
            Instant::now(),
            from,
            None,
            None,
            BytesMut::from(datagram),
            &mut answer,
        );
        matches!(event, Some(DatagramEvent::Response(_))).then_some(answer)
    }

    #[test]
    fn a_quic_server_answers_a_probe() {
        let probe = Probe::new().unwrap();

        let answer = answer_of_a_quic_server(&probe.datagram()).unwrap();

        assert!(probe.is_answered_by(&answer));
        assert!(!Probe::new().unwrap().is_answered_by(&answer));
    }

    #[test]
    fn a_probe_that_lost_its_tail_is_not_answered() {
        let probe = Probe::new().unwrap();

        assert_eq!(
            answer_of_a_quic_server(&probe.datagram()[..FULL_SIZE - 1]),
            None
        );
    }

    #[test]
    fn a_truncated_answer_does_not_count() {
        let probe = Probe::new().unwrap();
        let answer = answer_of_a_quic_server(&probe.datagram()).unwrap();

        for len in 0..6 + ID {
            assert!(!probe.is_answered_by(&answer[..len]));
        }
    }
}
