//! A copy of the packets of one transmit, for sending them again.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// The packets, with the destination and the options that they were sent with.
pub(crate) struct SavedTransmit {
    destination: SocketAddr,
    segment: usize,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
    bytes: Vec<u8>,
}

impl SavedTransmit {
    /// Save the first `count` packets of a transmit, or all if it has fewer.
    pub(crate) fn first(transmit: &Transmit, count: usize) -> Self {
        let end = transmit.contents.len().min(count * segment(transmit));
        Self::of(transmit, &transmit.contents[..end], Vec::new())
    }

    /// Save the last `count` packets of a transmit, or all if it has fewer, and reuse a buffer for them.
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

    /// Return a transmit of the same packets to the same destination.
    pub(crate) fn transmit(&self) -> Transmit<'_> {
        Transmit {
            destination: self.destination,
            ecn: self.ecn,
            contents: &self.bytes,
            segment_size: (self.segment < self.bytes.len()).then_some(self.segment),
            src_ip: self.src_ip,
        }
    }

    /// Return the length of all packets together, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Release the buffer for reuse.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

/// Count the packets of a transmit.
pub(crate) fn packets(transmit: &Transmit) -> usize {
    transmit.contents.len().div_ceil(segment(transmit))
}

/// Return the length of each packet but the last, in bytes.
fn segment(transmit: &Transmit) -> usize {
    transmit
        .segment_size
        .unwrap_or(transmit.contents.len())
        .max(1)
}
