//! Packets of one transmit, kept so that they can be sent again.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// The packets, and how they were sent.
pub(crate) struct SavedTransmit {
    destination: SocketAddr,
    segment: usize,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
    bytes: Vec<u8>,
}

impl SavedTransmit {
    /// Keep the first packets of a transmit, so many or all of them.
    pub(crate) fn first(transmit: &Transmit, count: usize) -> Self {
        let end = transmit.contents.len().min(count * segment(transmit));
        Self::of(transmit, &transmit.contents[..end], Vec::new())
    }

    /// Keep the last packets of a transmit, so many or all of them, in a buffer that may have been used.
    pub(crate) fn last(transmit: &Transmit, count: usize, buffer: Vec<u8>) -> Self {
        let start = packets(transmit).saturating_sub(count) * segment(transmit);
        Self::of(transmit, &transmit.contents[start..], buffer)
    }

    fn of(transmit: &Transmit, contents: &[u8], mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.extend_from_slice(contents);
        Self {
            destination: transmit.destination,
            segment: segment(transmit),
            ecn: transmit.ecn,
            src_ip: transmit.src_ip,
            bytes,
        }
    }

    /// The same packets, to where they were sent.
    pub(crate) fn transmit(&self) -> Transmit<'_> {
        Transmit {
            destination: self.destination,
            ecn: self.ecn,
            contents: &self.bytes,
            segment_size: (self.segment < self.bytes.len()).then_some(self.segment),
            src_ip: self.src_ip,
        }
    }

    /// How many bytes the packets have together.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Let others be kept in the same place.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

/// How many packets a transmit has.
pub(crate) fn packets(transmit: &Transmit) -> usize {
    transmit.contents.len().div_ceil(segment(transmit))
}

/// How long each of them is but the last.
fn segment(transmit: &Transmit) -> usize {
    transmit
        .segment_size
        .unwrap_or(transmit.contents.len())
        .max(1)
}
