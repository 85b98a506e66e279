//! Limits on visitors' connections and conversations: in all, and per visitor.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use super::client::Client;
use super::fair_share::Holder;
use crate::edge::fault::Fault;
use crate::edge::limits::EdgeLimits;

/// Counter and limit of visitors' connections and conversations (nginx: `limit_conn`).
#[derive(Debug, Clone, Default)]
pub struct ConnectionLimit(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    subnets: HashMap<IpAddr, usize>,
    conversations: HashMap<Holder, usize>,
}

impl ConnectionLimit {
    /// Reserve a place for a connection, released when the permit is dropped. Fails with the limit
    /// that was hit.
    ///
    /// Connections from this machine and from proxies in front of the edge count only towards the
    /// total: they carry the requests of many visitors.
    pub fn acquire(
        &self,
        visitor: IpAddr,
        is_shared: bool,
        limits: &EdgeLimits,
    ) -> Result<Permit, Fault> {
        let subnet = client_subnet(visitor);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = counts.subnets.get(&subnet).copied().unwrap_or(0);
        let is_limited = !is_shared && !visitor.is_loopback();
        if is_limited && here >= limits.connections_per_visitor {
            return Err(Fault::TooManyConnections);
        }
        if counts.all >= limits.connections {
            return Err(Fault::Busy);
        }
        counts.all += 1;
        *counts.subnets.entry(subnet).or_default() += 1;
        Ok(Permit {
            limit: self.clone(),
            subnet,
        })
    }

    /// Reserve a place for a conversation with any agent, released when the permit is dropped.
    ///
    /// # Errors
    /// [`Fault::TooManyConversations`] if the client has too many with all agents together.
    pub fn acquire_conversation(
        &self,
        client: Client,
        limits: &EdgeLimits,
    ) -> Result<VisitorPermit, Fault> {
        let holder = client.holder();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let conversations = counts.conversations.entry(holder).or_default();
        if *conversations >= limits.conversations_per_visitor {
            return Err(Fault::TooManyConversations);
        }
        *conversations += 1;
        Ok(VisitorPermit {
            limit: self.clone(),
            holder,
        })
    }
}

/// The place of one conversation among those of its visitor, released when this is dropped.
#[derive(Debug)]
pub struct VisitorPermit {
    limit: ConnectionLimit,
    holder: Holder,
}

impl Drop for VisitorPermit {
    fn drop(&mut self) {
        let mut counts = self.limit.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(conversations) = counts.conversations.get_mut(&self.holder) {
            *conversations -= 1;
            if *conversations == 0 {
                counts.conversations.remove(&self.holder);
            }
        }
    }
}

/// The place of one connection, released when this is dropped.
#[derive(Debug)]
pub struct Permit {
    limit: ConnectionLimit,
    subnet: IpAddr,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.limit.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(here) = counts.subnets.get_mut(&self.subnet) {
            *here -= 1;
            if *here == 0 {
                counts.subnets.remove(&self.subnet);
            }
        }
    }
}

/// Return the addresses that count as one visitor: an IPv6 subscriber has a /64 and may use all of
/// it.
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
    use crate::edge::visitors::connection_id::ConnectionId;

    #[test]
    fn each_visitor_has_its_own_limit_of_conversations() {
        let limits = EdgeLimits {
            conversations_per_visitor: 1,
            ..EdgeLimits::default()
        };
        let limit = ConnectionLimit::default();
        let acquire = |visitor: [u8; 4]| {
            let fields = Default::default();
            let client = Client::of(visitor.into(), ConnectionId::next(), &[], &fields);
            limit.acquire_conversation(client, &limits)
        };

        let first = acquire([192, 0, 2, 1]);

        assert_eq!(
            acquire([192, 0, 2, 1]).unwrap_err(),
            Fault::TooManyConversations
        );
        assert!(acquire([192, 0, 2, 2]).is_ok());
        drop(first);
        assert!(acquire([192, 0, 2, 1]).is_ok(), "a released place is free");
    }

    #[test]
    fn each_visitor_has_its_own_limit() {
        let limits = EdgeLimits {
            connections_per_visitor: 2,
            ..EdgeLimits::default()
        };
        let limit = ConnectionLimit::default();
        let acquire = |visitor: &str| limit.acquire(visitor.parse().unwrap(), false, &limits);

        let (first, _second) = (acquire("192.0.2.1"), acquire("192.0.2.1"));

        assert_eq!(acquire("192.0.2.1").unwrap_err(), Fault::TooManyConnections);
        assert!(acquire("192.0.2.2").is_ok());
        drop(first);
        assert!(acquire("192.0.2.1").is_ok(), "a released place is free");
    }

    #[test]
    fn all_addresses_of_a_subscriber_count_together() {
        let limits = EdgeLimits {
            connections_per_visitor: 1,
            ..EdgeLimits::default()
        };
        let limit = ConnectionLimit::default();
        let acquire = |visitor: &str| limit.acquire(visitor.parse().unwrap(), false, &limits);

        let _place = acquire("2001:db8:0:1::1").unwrap();

        assert_eq!(
            acquire("2001:db8:0:1:ffff::2").unwrap_err(),
            Fault::TooManyConnections
        );
        assert!(acquire("2001:db8:0:2::1").is_ok());
    }

    #[test]
    fn connections_from_this_machine_count_only_towards_the_total() {
        let limits = EdgeLimits {
            connections_per_visitor: 1,
            connections: 2,
            ..EdgeLimits::default()
        };
        let limit = ConnectionLimit::default();
        let acquire = |visitor: &str| limit.acquire(visitor.parse().unwrap(), false, &limits);

        let _places = (acquire("127.0.0.1").unwrap(), acquire("127.0.0.1").unwrap());

        assert_eq!(acquire("127.0.0.1").unwrap_err(), Fault::Busy);
    }

    #[test]
    fn connections_from_proxies_count_only_towards_the_total() {
        let limits = EdgeLimits {
            connections_per_visitor: 1,
            connections: 2,
            ..EdgeLimits::default()
        };
        let limit = ConnectionLimit::default();
        let acquire = || limit.acquire([192, 0, 2, 1].into(), true, &limits);

        let _places = (acquire().unwrap(), acquire().unwrap());

        assert_eq!(acquire().unwrap_err(), Fault::Busy);
    }
}
