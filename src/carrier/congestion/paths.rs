//! What is known of the ways to agents, by the networks that they are in.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::PathMemory;

/// The paths to the networks of the latest agents, so that one who comes back does not start from nothing.
#[derive(Debug, Default)]
pub struct Paths(Mutex<VecDeque<(IpAddr, PathMemory)>>);

impl Paths {
    /// Return what is known of the way to this agent. Before [`Self::keep`] it is nobody else's.
    pub fn recall(&self, agent: IpAddr) -> PathMemory {
        let (network, paths) = (network(agent), self.lock());
        let known = paths.iter().find(|(other, _)| *other == network);
        known.map(|(_, path)| path.clone()).unwrap_or_default()
    }

    /// Have this remembered for who comes from there next, instead of the path that was not needed for longest.
    pub fn keep(&self, agent: IpAddr, path: &PathMemory) {
        let (network, mut paths) = (network(agent), self.lock());
        paths.retain(|(other, _)| *other != network);
        if paths.len() == MOST {
            paths.pop_front();
        }
        paths.push_back((network, path.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(IpAddr, PathMemory)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What hosts with the same path have in common: a host of IPv6 changes the lower half of its address (RFC 8981).
fn network(agent: IpAddr) -> IpAddr {
    match agent.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Networks that are remembered; each takes some 150 bytes.
const MOST: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::{Duration, Instant};

    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    fn ip(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    /// Keep a path on which something is known.
    fn keep_known(paths: &Paths, agent: IpAddr) {
        let path = paths.recall(agent);
        paths.keep(agent, &path);
        path.note(1e6, RTT, Instant::now());
    }

    fn knows(paths: &Paths, agent: &str) -> bool {
        paths.recall(ip(agent)).recall().is_some()
    }

    #[test]
    fn an_agent_that_comes_back_from_the_same_network_finds_what_is_known_of_it() {
        let paths = Paths::default();
        for agent in ["192.0.2.1", "2001:db8:1:2:a::1"] {
            keep_known(&paths, ip(agent));
        }

        assert!(knows(&paths, "192.0.2.1"));
        assert!(knows(&paths, "::ffff:192.0.2.1"), "of a socket for both");
        assert!(knows(&paths, "2001:db8:1:2:b::7"), "another address of it");
        assert!(!knows(&paths, "192.0.2.2"));
        assert!(!knows(&paths, "2001:db8:1:3:a::1"));
    }

    #[test]
    fn what_was_not_kept_is_nobody_elses() {
        let paths = Paths::default();
        let stranger = ip("192.0.2.1");

        paths.recall(stranger).note(1e6, RTT, Instant::now());

        assert!(!knows(&paths, "192.0.2.1"));
    }

    #[test]
    fn the_path_that_was_not_needed_for_longest_is_forgotten_first() {
        let paths = Paths::default();
        let agent = |n: u32| Ipv4Addr::from_bits((10 << 24) + n).into();
        for n in 0..MOST as u32 {
            keep_known(&paths, agent(n));
        }
        keep_known(&paths, agent(0));

        keep_known(&paths, ip("192.0.2.1"));

        assert!(knows(&paths, "10.0.0.0"));
        assert!(!knows(&paths, "10.0.0.1"));
        assert_eq!(paths.lock().len(), MOST);
    }
}
