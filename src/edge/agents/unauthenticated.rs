//! Connections of agents whose token has not been accepted yet: how many there may be, and whose.
//!
//! Each costs some 50 KiB and a signature, and anybody can begin one. So they have places of their own,
//! which those with an accepted token do not share, and a newer connection takes the place of the
//! oldest one of whoever has the most.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::ConnectionId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::carrier::subnet;
use crate::edge::limits::EdgeLimits;

/// The connections that are not authenticated.
#[derive(Clone)]
pub struct Unauthenticated(Arc<Shared>);

struct Shared {
    most: usize,
    most_per_subnet: usize,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    /// By number, the oldest first.
    places: BTreeMap<u64, Occupied>,
    next: u64,
    /// The numbers of each subnet's places, the oldest first.
    subnets: HashMap<IpAddr, VecDeque<u64>>,
    turned_away: TurnedAway,
}

struct Occupied {
    subnet: IpAddr,
    since: Instant,
    evicted: CancellationToken,
}

/// A connection that somebody begins.
pub struct Attempt {
    /// Where the peer is: for a WebSocket, the address of its TCP connection.
    pub from: IpAddr,
    /// Where its packets come from.
    pub remote: SocketAddr,
    /// What its first packet was addressed to: repetitions of that have it, too.
    pub id: ConnectionId,
    /// Whether the peer has shown that it receives what is sent to that address.
    pub is_validated: bool,
}

/// What to do with a connection that somebody begins.
pub enum Admission {
    /// Shake hands.
    Place(Place),
    /// Ask for a proof of address (RFC 9000 §8.1.2).
    Retry,
    /// Say nothing. The peer repeats its first packet soon.
    Ignore,
}

impl Unauthenticated {
    /// Begin with none.
    pub fn new(limits: &EdgeLimits) -> Self {
        Self(Arc::new(Shared {
            most: limits.unauthenticated,
            most_per_subnet: limits.unauthenticated_per_address,
            pool: Mutex::default(),
        }))
    }

    /// Decide what becomes of a connection. `lingering` is how many more of them QUIC has that are ending.
    pub fn admit(&self, attempt: &Attempt, lingering: usize) -> Admission {
        let (subnet, now) = (subnet(attempt.from), Instant::now());
        let mut pool = self.lock();
        let (all, here) = (pool.places.len(), pool.in_subnet(subnet));
        if !attempt.is_validated && (all >= CALM || here >= CALM_PER_SUBNET) {
            return Admission::Retry;
        }
        if lingering >= self.0.most {
            return Admission::Ignore;
        }
        // A program that begins many handshakes and finishes none does not repeat itself; QUIC does.
        let is_busy = all >= self.0.most / 4 || here >= self.0.most_per_subnet / 8;
        if is_busy && !pool.turned_away.comes_again(attempt, now) {
            return Admission::Ignore;
        }
        let has_room = if here >= self.0.most_per_subnet {
            pool.evict(subnet, now, YOUNG)
        } else if all >= self.0.most {
            let (largest, most) = pool.largest();
            let patience = if most > here + 1 {
                Duration::ZERO
            } else {
                YOUNG
            };
            pool.evict(largest, now, patience)
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
        Admission::Place(Place {
            pool: self.clone(),
            number,
            evicted,
        })
    }

    /// Count them.
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

    /// Find who has the most places, and how many these are.
    fn largest(&self) -> (IpAddr, usize) {
        let largest = self.subnets.iter().max_by_key(|(_, places)| places.len());
        largest.map_or((Ipv6Addr::UNSPECIFIED.into(), 0), |(subnet, places)| {
            (*subnet, places.len())
        })
    }

    /// Free the oldest place of a subnet, if it has been taken for so long.
    fn evict(&mut self, subnet: IpAddr, now: Instant, at_least: Duration) -> bool {
        let oldest = self.subnets.get(&subnet).and_then(VecDeque::front).copied();
        let Some((number, occupied)) = oldest.and_then(|oldest| self.places.get_key_value(&oldest))
        else {
            return false;
        };
        if now.saturating_duration_since(occupied.since) < at_least {
            return false;
        }
        occupied.evicted.cancel();
        let number = *number;
        self.free(number);
        true
    }

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

/// A connection's place, until it is dropped.
pub struct Place {
    pool: Unauthenticated,
    number: u64,
    evicted: CancellationToken,
}

impl Place {
    /// Do something for as long as the connection has its place.
    ///
    /// # Errors
    /// [`Evicted`] once a newer connection has it.
    pub async fn keep<T>(&self, work: impl Future<Output = T>) -> Result<T, Evicted> {
        tokio::select! {
            biased;
            () = self.evicted.cancelled() => Err(Evicted),
            done = work => Ok(done),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.lock().free(self.number);
    }
}

/// A newer connection has the place.
#[derive(Debug, thiserror::Error)]
#[error("too many connections whose token was not accepted yet")]
pub struct Evicted;

/// Connections that were not answered when there was little room, with the moment of that.
#[derive(Default)]
struct TurnedAway {
    hasher: RandomState,
    since: HashMap<u64, Instant>,
    /// The oldest first.
    order: VecDeque<u64>,
}

impl TurnedAway {
    /// Report whether the attempt is a repetition, and remember it if not.
    fn comes_again(&mut self, attempt: &Attempt, now: Instant) -> bool {
        let key = self.hasher.hash_one((attempt.remote, &attempt.id[..]));
        if let Some(since) = self.since.get(&key) {
            return now.saturating_duration_since(*since) >= REPETITION;
        }
        if self.order.len() >= TURNED_AWAY
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
const CALM: usize = 32;

/// The same for one subnet.
const CALM_PER_SUBNET: usize = 8;

/// How long a connection has its place to itself where those who want it have as many: a handshake and
/// a hello on a slow path, without a loss.
const YOUNG: Duration = Duration::from_millis(500);

/// The soonest repetition of a first packet: less than QUIC's probe timeout at the agent (RFC 9002
/// §6.2.1), more than what a network reorders.
const REPETITION: Duration = Duration::from_millis(100);

/// Attempts that are remembered: those of two seconds, where 8,000 begin in a second.
const TURNED_AWAY: usize = 16_384;

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

    /// Try, and once more when QUIC would.
    async fn insist(pool: &Unauthenticated, attempt: &Attempt) -> Option<Place> {
        for _ in 0..2 {
            if let Admission::Place(place) = pool.admit(attempt, 0) {
                return Some(place);
            }
            tokio::time::advance(REPETITION).await;
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_of_address_is_asked_for_when_few_handshakes_are_unfinished() {
        let pool = pool(800, 400);
        let mut places = Vec::new();

        for id in 0..CALM_PER_SUBNET as u8 {
            let forged = Attempt {
                is_validated: false,
                ..attempt("192.0.2.1", id)
            };
            match pool.admit(&forged, 0) {
                Admission::Place(place) => places.push(place),
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
        assert!(matches!(pool.admit(&elsewhere, 0), Admission::Place(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_has_its_share_and_its_oldest_connection_goes_first() {
        let pool = pool(800, 8);
        let mut places = Vec::new();
        for id in 0..8 {
            places.push(insist(&pool, &attempt("2001:db8::1", id)).await.unwrap());
        }

        // Another address of the same /64.
        tokio::time::advance(YOUNG).await;
        let newer = insist(&pool, &attempt("2001:db8::2", 100)).await;

        assert!(newer.is_some());
        assert!(places[0].keep(async {}).await.is_err());
        assert!(places[1].keep(async {}).await.is_ok());
        assert_eq!(pool.len(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_few_places_gets_one_of_whoever_has_the_most() {
        let pool = pool(8, 8);
        let mut hog = Vec::new();
        for id in 0..8 {
            hog.push(insist(&pool, &attempt("192.0.2.1", id)).await.unwrap());
        }

        let other = insist(&pool, &attempt("192.0.2.2", 100)).await;

        assert!(other.is_some());
        assert!(hog[0].keep(async {}).await.is_err());
        drop((hog, other));
        assert_eq!(pool.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_has_its_place_to_itself_for_a_while() {
        let pool = pool(800, 1);
        let first = insist(&pool, &attempt("192.0.2.1", 1)).await.unwrap();

        let second = insist(&pool, &attempt("192.0.2.1", 2)).await;

        assert!(second.is_none());
        assert!(first.keep(async {}).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_let_in_while_too_many_connections_are_ending() {
        let pool = pool(8, 8);

        let admission = pool.admit(&attempt("192.0.2.1", 1), 8);

        assert!(matches!(admission, Admission::Ignore));
    }
}
