//! Limits on connections of agents whose token has not been accepted yet.
//!
//! Each costs some 50 KiB and a signature, and anybody can open one. So they have places of their
//! own, which authenticated sessions do not share, and a new connection evicts the oldest one of
//! the subnet that has the most.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::ConnectionId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::edge::limits::EdgeLimits;
use crate::net::subnet::subnet;

/// The unauthenticated connections.
#[derive(Clone)]
pub struct Unauthenticated(Arc<Shared>);

struct Shared {
    max_places: usize,
    max_per_subnet: usize,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    /// By number, the oldest first.
    places: BTreeMap<u64, Occupied>,
    next: u64,
    /// The numbers of each subnet's places, the oldest first.
    subnets: HashMap<IpAddr, VecDeque<u64>>,
    ignored: IgnoredAttempts,
}

struct Occupied {
    subnet: IpAddr,
    since: Instant,
    evicted: CancellationToken,
}

/// A connection attempt.
pub struct Attempt {
    /// Address of the peer: for a WebSocket, that of its TCP connection.
    pub from: IpAddr,
    /// Address that its packets come from.
    pub remote: SocketAddr,
    /// Connection id that its first packet was addressed to, and so are retransmissions of it.
    pub id: ConnectionId,
    /// The peer has proven that it receives what is sent to that address.
    pub is_validated: bool,
}

/// Decision about a connection attempt.
pub enum Admission {
    /// Do the handshake.
    Accept(HandshakePermit),
    /// Ask for a proof of address with a Retry packet (RFC 9000 §8.1.2).
    Retry,
    /// Drop the packet. A client retransmits its first packet soon.
    Ignore,
}

impl Unauthenticated {
    /// Create an empty set of connections.
    pub fn new(limits: &EdgeLimits) -> Self {
        Self(Arc::new(Shared {
            max_places: limits.unauthenticated,
            max_per_subnet: limits.unauthenticated_per_address,
            pool: Mutex::default(),
        }))
    }

    /// Decide about a connection attempt. `lingering` is the number of further connections that
    /// QUIC still holds because they are closing.
    pub fn admit(&self, attempt: &Attempt, lingering: usize) -> Admission {
        let (subnet, now) = (subnet(attempt.from), Instant::now());
        let mut pool = self.lock();
        let (all, here) = (pool.places.len(), pool.in_subnet(subnet));
        if !attempt.is_validated && (all >= RETRY_THRESHOLD || here >= RETRY_THRESHOLD_PER_SUBNET) {
            return Admission::Retry;
        }
        if lingering >= self.0.max_places {
            return Admission::Ignore;
        }
        // A program that starts many handshakes and finishes none does not retransmit; QUIC does.
        let is_busy = all >= self.0.max_places / 4 || here >= self.0.max_per_subnet / 8;
        if is_busy && !pool.ignored.is_retransmission(attempt, now) {
            return Admission::Ignore;
        }
        let has_room = if here >= self.0.max_per_subnet {
            pool.evict(subnet, now, MIN_EVICTION_AGE)
        } else if all >= self.0.max_places {
            let (largest, size) = pool.largest();
            let min_age = if size > here + 1 {
                Duration::ZERO
            } else {
                MIN_EVICTION_AGE
            };
            pool.evict(largest, now, min_age)
        } else {
            true
        };
        if !has_room {
            return Admission::Ignore;
        }
        let number = pool.next;
        pool.next += 1;
        pool.subnets.entry(subnet).or_default().push_back(number);
        let evicted = CancellationToken::new();
        let occupied = Occupied {
            subnet,
            since: now,
            evicted: evicted.clone(),
        };
        pool.places.insert(number, occupied);
        Admission::Accept(HandshakePermit {
            pool: self.clone(),
            number,
            evicted,
        })
    }

    /// Return the number of unauthenticated connections.
    pub fn len(&self) -> usize {
        self.lock().places.len()
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.0.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    fn in_subnet(&self, subnet: IpAddr) -> usize {
        self.subnets.get(&subnet).map_or(0, VecDeque::len)
    }

    /// Find the subnet with the most places, and their number.
    fn largest(&self) -> (IpAddr, usize) {
        let largest = self.subnets.iter().max_by_key(|(_, places)| places.len());
        largest.map_or((Ipv6Addr::UNSPECIFIED.into(), 0), |(subnet, places)| {
            (*subnet, places.len())
        })
    }

    /// Evict the oldest connection of a subnet, if it is at least `min_age` old. Report whether it
    /// did.
    fn evict(&mut self, subnet: IpAddr, now: Instant, min_age: Duration) -> bool {
        let oldest = self.subnets.get(&subnet).and_then(VecDeque::front).copied();
        let Some((number, occupied)) = oldest.and_then(|oldest| self.places.get_key_value(&oldest))
        else {
            return false;
        };
        if now.saturating_duration_since(occupied.since) < min_age {
            return false;
        }
        occupied.evicted.cancel();
        let number = *number;
        self.free(number);
        true
    }

    /// Free a place, if it is still taken.
    fn free(&mut self, number: u64) {
        let Some(occupied) = self.places.remove(&number) else {
            return;
        };
        let subnet = occupied.subnet;
        if let Some(places) = self.subnets.get_mut(&subnet) {
            places.retain(|place| *place != number);
            if places.is_empty() {
                self.subnets.remove(&subnet);
            }
        }
    }
}

/// A connection's place among those that are not authenticated, freed when this is dropped.
pub struct HandshakePermit {
    pool: Unauthenticated,
    number: u64,
    evicted: CancellationToken,
}

impl HandshakePermit {
    /// Run `work` for as long as the connection has its place.
    ///
    /// # Errors
    /// [`Evicted`] once a newer connection has been given the place.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Evicted> {
        tokio::select! {
            biased;
            () = self.evicted.cancelled() => Err(Evicted),
            done = work => Ok(done),
        }
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.pool.lock().free(self.number);
    }
}

/// A newer connection has been given the place.
#[derive(Debug, thiserror::Error)]
#[error("too many unauthenticated connections")]
pub struct Evicted;

/// Connection attempts that were ignored while there was little room, and when.
#[derive(Default)]
struct IgnoredAttempts {
    hasher: RandomState,
    since: HashMap<u64, Instant>,
    /// The oldest first.
    order: VecDeque<u64>,
}

impl IgnoredAttempts {
    /// Report whether the attempt is a retransmission of one that was ignored, and remember it if
    /// not.
    fn is_retransmission(&mut self, attempt: &Attempt, now: Instant) -> bool {
        let key = self.hasher.hash_one((attempt.remote, &attempt.id[..]));
        if let Some(since) = self.since.get(&key) {
            return now.saturating_duration_since(*since) >= MIN_RETRANSMISSION_DELAY;
        }
        if self.order.len() >= MAX_IGNORED_ATTEMPTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.since.remove(&oldest);
        }
        self.since.insert(key, now);
        self.order.push_back(key);
        false
    }
}

/// Places in use up to which nobody is asked for a proof of address, which costs a round trip.
const RETRY_THRESHOLD: usize = 32;

/// Places in use by one subnet up to which its addresses are not asked for a proof.
const RETRY_THRESHOLD_PER_SUBNET: usize = 8;

/// Time for which a connection is safe from eviction by those that have as many places as its own
/// subnet: a handshake and a hello on a slow path, without a loss.
const MIN_EVICTION_AGE: Duration = Duration::from_millis(500);

/// Shortest time after which a first packet can be a retransmission: less than QUIC's probe timeout
/// at the agent (RFC 9002 §6.2.1), and more than a network's reordering.
const MIN_RETRANSMISSION_DELAY: Duration = Duration::from_millis(100);

/// Ignored attempts that are remembered: those of two seconds, at 8,000 attempts per second.
const MAX_IGNORED_ATTEMPTS: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(unauthenticated: usize, unauthenticated_per_address: usize) -> Unauthenticated {
        Unauthenticated::new(&EdgeLimits {
            unauthenticated,
            unauthenticated_per_address,
            ..EdgeLimits::default()
        })
    }

    fn attempt(from: &str, id: u8) -> Attempt {
        let from = from.parse().unwrap();
        Attempt {
            from,
            remote: (from, 4_433).into(),
            id: ConnectionId::new(&[id; 8]),
            is_validated: true,
        }
    }

    /// Try, and once more when QUIC would retransmit.
    async fn try_twice(pool: &Unauthenticated, attempt: &Attempt) -> Option<HandshakePermit> {
        for _ in 0..2 {
            if let Admission::Accept(place) = pool.admit(attempt, 0) {
                return Some(place);
            }
            tokio::time::advance(MIN_RETRANSMISSION_DELAY).await;
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn few_unfinished_handshakes_suffice_to_ask_for_a_proof_of_address() {
        let pool = pool(800, 400);
        let mut places = Vec::new();

        for id in 0..RETRY_THRESHOLD_PER_SUBNET as u8 {
            let forged = Attempt {
                is_validated: false,
                ..attempt("192.0.2.1", id)
            };
            match pool.admit(&forged, 0) {
                Admission::Accept(place) => places.push(place),
                _ => panic!("{id}"),
            }
        }

        let next = Attempt {
            is_validated: false,
            ..attempt("192.0.2.1", 99)
        };
        assert!(matches!(pool.admit(&next, 0), Admission::Retry));
        let elsewhere = Attempt {
            is_validated: false,
            ..attempt("192.0.2.2", 99)
        };
        assert!(matches!(pool.admit(&elsewhere, 0), Admission::Accept(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_subnet_has_its_share_and_its_oldest_connection_is_evicted_first() {
        let pool = pool(800, 8);
        let mut places = Vec::new();
        for id in 0..8 {
            places.push(try_twice(&pool, &attempt("2001:db8::1", id)).await.unwrap());
        }

        // Another address of the same /64.
        tokio::time::advance(MIN_EVICTION_AGE).await;
        let newer = try_twice(&pool, &attempt("2001:db8::2", 100)).await;

        assert!(newer.is_some());
        assert!(places[0].run(async {}).await.is_err());
        assert!(places[1].run(async {}).await.is_ok());
        assert_eq!(pool.len(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_subnet_with_few_places_evicts_the_largest_one() {
        let pool = pool(8, 8);
        let mut hog = Vec::new();
        for id in 0..8 {
            hog.push(try_twice(&pool, &attempt("192.0.2.1", id)).await.unwrap());
        }

        let other = try_twice(&pool, &attempt("192.0.2.2", 100)).await;

        assert!(other.is_some());
        assert!(hog[0].run(async {}).await.is_err());
        drop((hog, other));
        assert_eq!(pool.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_is_safe_from_eviction_for_a_while() {
        let pool = pool(800, 1);
        let first = try_twice(&pool, &attempt("192.0.2.1", 1)).await.unwrap();

        let second = try_twice(&pool, &attempt("192.0.2.1", 2)).await;

        assert!(second.is_none());
        assert!(first.run(async {}).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn no_connection_is_accepted_while_too_many_are_closing() {
        let pool = pool(8, 8);

        let admission = pool.admit(&attempt("192.0.2.1", 1), 8);

        assert!(matches!(admission, Admission::Ignore));
    }
}
