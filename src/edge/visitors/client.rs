//! The client that a request counts for: an address, or a connection whose address does not
//! identify the visitor.

use std::net::IpAddr;
use std::net::Ipv6Addr;

use ::http::HeaderMap;
use ::http::header::FORWARDED;
use ipnet::IpNet;

use super::connection_id::ConnectionId;
use super::fair_share::Holder;
use crate::http::x_forwarded::X_FORWARDED_FOR;

/// A client, as a holder of shares: a subscriber, and the network that the subscriber is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    holder: Holder,
    network: Option<Holder>,
}

impl Client {
    /// Return the client that a request counts for.
    ///
    /// The address of a trusted proxy is replaced by the one that the proxy names. Where that is
    /// missing, and on loopback, where a proxy or a tunnel may carry everybody's requests, each
    /// connection counts on its own.
    pub fn of(
        peer: IpAddr,
        connection: ConnectionId,
        proxies: &[IpNet],
        fields: &HeaderMap,
    ) -> Self {
        let is_proxy = |address: &IpAddr| proxies.iter().any(|net| net.contains(address));
        let address = match is_proxy(&peer) {
            true => forwarded_address(fields, is_proxy),
            false => Some(peer),
        };
        match address.map(|address| address.to_canonical()) {
            Some(address) if !address.is_loopback() => Self::at(address),
            _ => Self {
                holder: Holder::Connection(connection),
                network: None,
            },
        }
    }

    /// Return the client at an address.
    fn at(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self {
                holder: Holder::Subscriber(address),
                network: None,
            },
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                let subscriber = Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0);
                let network = Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0);
                Self {
                    holder: Holder::Subscriber(subscriber.into()),
                    network: Some(Holder::Network(network)),
                }
            }
        }
    }

    /// Return the subscriber, or the connection, that a request of this client counts for.
    pub fn holder(self) -> Holder {
        self.holder
    }

    /// Return all holders that a request of this client counts for.
    pub fn holders(self) -> impl Iterator<Item = Holder> + Clone {
        [Some(self.holder), self.network].into_iter().flatten()
    }
}

/// Return the last address that is not a trusted proxy's in the fields that proxies have added (RFC
/// 7239 §5.2). What stands before it may be forged by the visitor.
fn forwarded_address(fields: &HeaderMap, is_proxy: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let name = match fields.contains_key(X_FORWARDED_FOR) {
        true => X_FORWARDED_FOR,
        false => FORWARDED,
    };
    let lines = fields.get_all(&name).iter().rev();
    for line in lines {
        for element in line.to_str().ok()?.rsplit(',') {
            let node = match name == FORWARDED {
                true => forwarded_for(element)?,
                false => element.trim(),
            };
            // An obfuscated identifier instead of an address hides everything before it.
            let address = parse_node(node)?;
            if !is_proxy(&address.to_canonical()) {
                return Some(address);
            }
        }
    }
    None
}

/// Return the node of an element of `Forwarded` without its quotes.
fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("for")
            .then(|| value.trim().trim_matches('"'))
    })
}

/// Parse an address, in brackets or not, with a port or without.
fn parse_node(node: &str) -> Option<IpAddr> {
    if let Ok(address) = node.parse() {
        return Some(address);
    }
    if let Some(bracketed) = node.strip_prefix('[') {
        return bracketed.split_once(']')?.0.parse().ok();
    }
    node.rsplit_once(':')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, fields: &[(&'static str, &'static str)]) -> Client {
        let proxies = ["10.0.0.0/8".parse().unwrap()];
        let fields = fields
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        Client::of(
            peer.parse().unwrap(),
            ConnectionId::from_number(7),
            &proxies,
            &fields,
        )
    }

    fn at(address: &str) -> Client {
        Client::at(address.parse().unwrap())
    }

    #[test]
    fn addresses_of_a_subscriber_are_one_client_and_its_network_counts_too() {
        let [one, neighbour] = ["2001:db8:1:2::1", "2001:db8:1:3::1"].map(at);

        assert_eq!(one, at("2001:db8:1:2:ffff::1"));
        assert_ne!(one.holder, neighbour.holder);
        assert_eq!(one.network, neighbour.network);
        assert_eq!(at("192.0.2.1").network, None);
        assert_eq!(client("::ffff:192.0.2.1", &[]), at("192.0.2.1"));
    }

    #[test]
    fn fields_of_an_untrusted_peer_are_not_believed() {
        let forged = [("x-forwarded-for", "198.51.100.1")];

        assert_eq!(client("192.0.2.1", &forged), at("192.0.2.1"));
    }

    #[test]
    fn behind_a_trusted_proxy_the_last_address_that_is_not_a_proxy_is_the_client() {
        for fields in [
            [("x-forwarded-for", "198.51.100.1, 192.0.2.1")],
            [("x-forwarded-for", "198.51.100.1, 192.0.2.1:443, 10.0.0.2")],
            [("forwarded", "for=198.51.100.1, For=192.0.2.1;proto=https")],
            [("forwarded", "for=192.0.2.1, for=\"10.0.0.2:80\"")],
        ] {
            assert_eq!(client("10.0.0.1", &fields), at("192.0.2.1"), "{fields:?}");
        }
        let v6 = [("forwarded", "for=\"[2001:db8::1]:443\"")];
        assert_eq!(client("10.0.0.1", &v6), at("2001:db8::1"));
    }

    #[test]
    fn without_an_address_each_connection_counts_on_its_own() {
        let connection = Holder::Connection(ConnectionId::from_number(7));

        for (peer, fields) in [
            ("127.0.0.1", &[][..]),
            ("::1", &[]),
            ("10.0.0.1", &[]),
            ("10.0.0.1", &[("x-forwarded-for", "198.51.100.1, unknown")]),
            ("10.0.0.1", &[("forwarded", "for=192.0.2.1, for=_hidden")]),
            ("10.0.0.1", &[("x-forwarded-for", "127.0.0.1")]),
        ] {
            assert_eq!(client(peer, fields).holder, connection, "{peer} {fields:?}");
        }
    }
}
