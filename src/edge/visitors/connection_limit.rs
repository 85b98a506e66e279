//! How many connections and conversations of visitors there are, and whose.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use super::client::Client;
use super::fair_share::Holder;
use super::http::error_page::Fault;
use crate::edge::limits::EdgeLimits;

/// How many connections and conversations there are, and whose.
#[derive(Debug, Clone, Default)]
pub struct Crowd(Arc<Mutex<Present>>);

#[derive(Debug, Default)]
struct Present {
    all: usize,
    households: HashMap<IpAddr, usize>,
    conversations: HashMap<Holder, usize>,
}

impl Crowd {
    /// Take a place until the returned value is dropped, or say what there is too much of.
    ///
    /// Connections from this machine and from proxies in front of the edge count only in all: they
    /// bring everybody's.
    pub fn enter(
        &self,
        visitor: IpAddr,
        brings_others: bool,
        limits: &EdgeLimits,
    ) -> Result<Place, Fault> {
        let house = client_subnet(visitor);
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = present.households.get(&house).copied().unwrap_or(0);
        let alone = !brings_others && !visitor.is_loopback();
        if alone && here >= limits.connections_per_visitor {
            return Err(Fault::TooManyConnections);
        }
        if present.all >= limits.connections {
            return Err(Fault::Busy);
        }
        present.all += 1;
        *present.households.entry(house).or_default() += 1;
        Ok(Place {
            crowd: self.clone(),
            house,
        })
    }

    /// Count a conversation until the returned value is dropped, with whatever agent it is, unless its visitor has
    /// too many.
    pub fn converse(&self, client: Client, limits: &EdgeLimits) -> Result<Turn, Fault> {
        let holder = client.holder();
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let conversations = present.conversations.entry(holder).or_default();
        if *conversations >= limits.conversations_per_visitor {
            return Err(Fault::TooManyConversations);
        }
        *conversations += 1;
        Ok(Turn {
            crowd: self.clone(),
            holder,
        })
    }
}

/// A conversation of a visitor's.
#[derive(Debug)]
pub struct Turn {
    crowd: Crowd,
    holder: Holder,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut present = self.crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(conversations) = present.conversations.get_mut(&self.holder) {
            *conversations -= 1;
            if *conversations == 0 {
                present.conversations.remove(&self.holder);
            }
        }
    }
}

/// A visitor's place among the connections.
#[derive(Debug)]
pub struct Place {
    crowd: Crowd,
    house: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut present = self.crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
        present.all -= 1;
        if let Some(here) = present.households.get_mut(&self.house) {
            *here -= 1;
            if *here == 0 {
                present.households.remove(&self.house);
            }
        }
    }
}

/// One subscriber of IPv6 has a /64 and may use all its addresses.
fn client_subnet(visitor: IpAddr) -> IpAddr {
    match visitor {
        IpAddr::V4(_) => visitor,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::visitors::client::ConnectionId;

    #[test]
    fn a_visitor_has_so_many_conversations_and_others_have_theirs() {
        let limits = EdgeLimits {
            conversations_per_visitor: 1,
            ..EdgeLimits::default()
        };
        let crowd = Crowd::default();
        let converse = |visitor: [u8; 4]| {
            let fields = Default::default();
            let client = Client::of(visitor.into(), ConnectionId::next(), &[], &fields);
            crowd.converse(client, &limits)
        };

        let first = converse([192, 0, 2, 1]);

        assert_eq!(
            converse([192, 0, 2, 1]).unwrap_err(),
            Fault::TooManyConversations
        );
        assert!(converse([192, 0, 2, 2]).is_ok());
        drop(first);
        assert!(
            converse([192, 0, 2, 1]).is_ok(),
            "one that has ended is free"
        );
    }

    #[test]
    fn a_visitor_has_so_many_connections_and_others_have_theirs() {
        let limits = EdgeLimits {
            connections_per_visitor: 2,
            ..EdgeLimits::default()
        };
        let crowd = Crowd::default();
        let enter = |visitor: &str| crowd.enter(visitor.parse().unwrap(), false, &limits);

        let (first, _second) = (enter("192.0.2.1"), enter("192.0.2.1"));

        assert_eq!(enter("192.0.2.1").unwrap_err(), Fault::TooManyConnections);
        assert!(enter("192.0.2.2").is_ok());
        drop(first);
        assert!(enter("192.0.2.1").is_ok(), "a place that was left is free");
    }

    #[test]
    fn all_addresses_of_a_subscriber_count_together() {
        let limits = EdgeLimits {
            connections_per_visitor: 1,
            ..EdgeLimits::default()
        };
        let crowd = Crowd::default();
        let enter = |visitor: &str| crowd.enter(visitor.parse().unwrap(), false, &limits);

        let _place = enter("2001:db8:0:1::1").unwrap();

        assert_eq!(
            enter("2001:db8:0:1:ffff::2").unwrap_err(),
            Fault::TooManyConnections
        );
        assert!(enter("2001:db8:0:2::1").is_ok());
    }

    #[test]
    fn connections_from_this_machine_count_in_all_only() {
        let limits = EdgeLimits {
            connections_per_visitor: 1,
            connections: 2,
            ..EdgeLimits::default()
        };
        let crowd = Crowd::default();
        let enter = |visitor: &str| crowd.enter(visitor.parse().unwrap(), false, &limits);

        let _places = (enter("127.0.0.1").unwrap(), enter("127.0.0.1").unwrap());

        assert_eq!(enter("127.0.0.1").unwrap_err(), Fault::Busy);
    }

    #[test]
    fn connections_from_proxies_in_front_count_in_all_only() {
        let limits = EdgeLimits {
            connections_per_visitor: 1,
            connections: 2,
            ..EdgeLimits::default()
        };
        let crowd = Crowd::default();
        let enter = || crowd.enter([192, 0, 2, 1].into(), true, &limits);

        let _places = (enter().unwrap(), enter().unwrap());

        assert_eq!(enter().unwrap_err(), Fault::Busy);
    }
}
