//! Whose an address is.

use std::net::{IpAddr, Ipv6Addr};

/// The addresses that one subscriber may use: an IPv4 address, or the /64 of an IPv6 address.
pub fn subnet(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}
