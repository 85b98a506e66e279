//! Cache of path measurements, by the network that an agent connects from.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::PathMemory;

/// Path memories of the most recent agents' networks, so that a returning agent's connection does
/// not start from nothing.
#[derive(Debug, Default)]
pub struct PathCache(Mutex<VecDeque<(IpAddr, PathMemory)>>);

impl PathCache {
    /// Return the memory of the path to this agent. Until [`Self::store`] is called with it, it is
    /// not shared.
    pub fn recall(&self, agent: IpAddr) -> PathMemory {
        let (network, paths) = (network(agent), self.lock());
        let known = paths.iter().find(|(other, _)| *other == network);
        known.map(|(_, path)| path.clone()).unwrap_or_default()
    }

    /// Store a path memory for the agent's network, evicting the least recently stored one when
    /// full.
    pub fn store(&self, agent: IpAddr, path: &PathMemory) {
        let (network, mut paths) = (network(agent), self.lock());
        paths.retain(|(other, _)| *other != network);
        if paths.len() == MAX_NETWORKS {
            paths.pop_front();
        }
        paths.push_back((network, path.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(IpAddr, PathMemory)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Return the network part of an address, which hosts with the same path share: an IPv6 host
/// changes the lower half of its address (RFC 8981).
fn network(agent: IpAddr) -> IpAddr {
    match agent.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Networks that are cached; each takes some 150 bytes.
const MAX_NETWORKS: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::{Duration, Instant};

    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    fn ip(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    /// Store a path with a measurement.
    fn store_known(paths: &PathCache, agent: IpAddr) {
        let path = paths.recall(agent);
        paths.store(agent, &path);
        path.store(1e6, RTT, Instant::now());
    }

    fn knows(paths: &PathCache, agent: &str) -> bool {
        paths.recall(ip(agent)).recall().is_some()
    }

    #[test]
    fn a_returning_agents_path_memory_is_recalled_by_its_network() {
        let paths = PathCache::default();
        for agent in ["192.0.2.1", "2001:db8:1:2:a::1"] {
            store_known(&paths, ip(agent));
        }

        assert!(knows(&paths, "192.0.2.1"));
        assert!(knows(&paths, "::ffff:192.0.2.1"), "of a socket for both");
        assert!(knows(&paths, "2001:db8:1:2:b::7"), "another address of it");
        assert!(!knows(&paths, "192.0.2.2"));
        assert!(!knows(&paths, "2001:db8:1:3:a::1"));
    }

    #[test]
    fn a_path_memory_that_was_not_stored_is_not_shared() {
        let paths = PathCache::default();
        let stranger = ip("192.0.2.1");

        paths.recall(stranger).store(1e6, RTT, Instant::now());

        assert!(!knows(&paths, "192.0.2.1"));
    }

    #[test]
    fn the_least_recently_stored_path_is_evicted_first() {
        let paths = PathCache::default();
        let agent = |n: u32| Ipv4Addr::from_bits((10 << 24) + n).into();
        for n in 0..MAX_NETWORKS as u32 {
            store_known(&paths, agent(n));
        }
        store_known(&paths, agent(0));

        store_known(&paths, ip("192.0.2.1"));

        assert!(knows(&paths, "10.0.0.0"));
        assert!(!knows(&paths, "10.0.0.1"));
        assert_eq!(paths.lock().len(), MAX_NETWORKS);
    }
}
