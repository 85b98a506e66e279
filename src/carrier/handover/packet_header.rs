//! What one process of an edge tells the other about packets that it passes on to it.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, RecvMeta};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Label {
    from: SocketAddr,
    /// Of a link-local address, which is none without it.
    scope: u32,
    stride: u32,
    ecn: u8,
    to: Option<IpAddr>,
}

/// Write down what the kernel has said about received packets, except for their length.
pub(crate) fn write(meta: &RecvMeta) -> [u8; LABEL] {
    let mut label = [0; LABEL];
    let said = Label {
        from: meta.addr,
        scope: match meta.addr {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        },
        stride: meta.stride as u32,
        ecn: meta.ecn.map_or(0, |ecn| ecn as u8),
        to: meta.dst_ip,
    };
    postcard::to_slice(&said, &mut label).expect("there is room for the longest label");
    label
}

/// Read what [`write()`] wrote, for packets of this length together.
pub(crate) fn read(label: &[u8; LABEL], len: usize) -> Option<RecvMeta> {
    let (said, _zeros) = postcard::take_from_bytes::<Label>(label).ok()?;
    let mut addr = said.from;
    if let SocketAddr::V6(v6) = &mut addr {
        v6.set_scope_id(said.scope);
    }
    Some(RecvMeta {
        addr,
        len,
        stride: said.stride as usize,
        ecn: EcnCodepoint::from_bits(said.ecn),
        dst_ip: said.to,
    })
}

/// Bytes of a label, which stands in front of the packets: what postcard needs at most (53), and
/// zeros.
pub(crate) const LABEL: usize = 64;

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use super::*;

    #[test]
    fn the_longest_label_comes_back_as_it_was() {
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
    fn what_is_no_label_is_not_read_as_one() {
        assert!(read(&[0xff; LABEL], 7).is_none());
    }
}
