//! The header of packets that one process of an edge passes on to another.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, RecvMeta};
use serde::{Deserialize, Serialize};

/// The metadata of a run of packets, encoded with postcard.
#[derive(Serialize, Deserialize)]
struct PacketHeader {
    from: SocketAddr,
    /// The scope id of an IPv6 address. A link-local address is unusable without it.
    scope: u32,
    stride: u32,
    ecn: u8,
    to: Option<IpAddr>,
}

/// Encode the metadata of received packets, except for their length.
pub(crate) fn write(meta: &RecvMeta) -> [u8; PACKET_HEADER] {
    let mut header = [0; PACKET_HEADER];
    let fields = PacketHeader {
        from: meta.addr,
        scope: match meta.addr {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        },
        stride: meta.stride as u32,
        ecn: meta.ecn.map_or(0, |ecn| ecn as u8),
        to: meta.dst_ip,
    };
    postcard::to_slice(&fields, &mut header).expect("there is room for the longest header");
    header
}

/// Decode a header that [`write()`] encoded. `len` is the length of all its packets together, in bytes.
pub(crate) fn read(header: &[u8; PACKET_HEADER], len: usize) -> Option<RecvMeta> {
    let (fields, _zeros) = postcard::take_from_bytes::<PacketHeader>(header).ok()?;
    let mut addr = fields.from;
    if let SocketAddr::V6(v6) = &mut addr {
        v6.set_scope_id(fields.scope);
    }
    Some(RecvMeta {
        addr,
        len,
        stride: fields.stride as usize,
        ecn: EcnCodepoint::from_bits(fields.ecn),
        dst_ip: fields.to,
    })
}

/// The length of a header, in bytes. It precedes the packets: what postcard needs at most (53), padded
/// with zeros.
pub(crate) const PACKET_HEADER: usize = 64;

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use super::*;

    #[test]
    fn the_longest_header_survives_a_round_trip() {
        let meta = RecvMeta {
            addr: SocketAddrV6::new(Ipv6Addr::from([0xff; 16]), u16::MAX, 0, u32::MAX).into(),
            len: 7,
            stride: 65_527,
            ecn: Some(EcnCodepoint::Ce),
            dst_ip: Some(Ipv6Addr::from([0xff; 16]).into()),
        };

        let back = read(&write(&meta), 7).unwrap();

        assert_eq!(format!("{back:?}"), format!("{meta:?}"));
    }

    #[test]
    fn an_invalid_header_is_rejected() {
        assert!(read(&[0xff; PACKET_HEADER], 7).is_none());
    }
}
