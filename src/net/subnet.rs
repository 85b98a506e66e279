//! Grouping of client addresses by subscriber.

use std::net::{IpAddr, Ipv6Addr};

/// Return the subnet that one subscriber controls: an IPv4 address itself, or the /64 of an IPv6 address. An
/// IPv4-mapped address counts as IPv4.
pub fn subnet(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}
