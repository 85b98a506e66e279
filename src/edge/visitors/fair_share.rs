//! Fair sharing of a fixed number of places between holders whose number is not known in advance.

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;

use super::connection_id::ConnectionId;

/// A party whose places are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    /// An IPv4 address, or an IPv6 /64.
    Subscriber(IpAddr),
    /// An IPv6 /48, with all the subscribers in it.
    Network(Ipv6Addr),
    /// A connection whose address does not identify the visitor.
    Connection(ConnectionId),
    /// A tunnel beside others of the same agent.
    Tunnel(u32),
}

impl Holder {
    /// Return how many places this holder may have for each one that is left free.
    fn places_per_free_place(self) -> usize {
        match self {
            Self::Subscriber(_) | Self::Connection(_) => CLIENT_SHARE,
            Self::Network(_) => NETWORK_SHARE,
            Self::Tunnel(_) => TUNNEL_SHARE,
        }
    }
}

/// A number of places, and how many of them each holder has.
///
/// A holder may take one more place as long as it has fewer than are free (or than a multiple of
/// that): a holder with many places leaves more for others, the fewer there are. One greedy holder
/// gets half of them, two get a third each, and however many there are, a newcomer finds a place
/// (dynamic thresholds: Choudhury and Hahne, Dynamic queue length thresholds for shared-memory
/// packet switches, 1998).
#[derive(Debug)]
pub struct FairShare {
    places: usize,
    taken: usize,
    held: HashMap<Holder, usize>,
}

/// Reason why a place was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// All places are taken.
    Full,
    /// This holder has its share already.
    Share(Holder),
}

impl FairShare {
    /// Share `places` places, all of them free.
    pub fn new(places: usize) -> Self {
        Self {
            places,
            taken: 0,
            held: HashMap::new(),
        }
    }

    /// Return how many places are free.
    pub fn free(&self) -> usize {
        self.places.saturating_sub(self.taken)
    }

    /// Return how many places a holder has.
    pub fn held(&self, holder: Holder) -> usize {
        self.held.get(&holder).copied().unwrap_or(0)
    }

    /// Take a place that counts for all of these holders.
    ///
    /// # Errors
    /// [`Denied`] if no place is free, or one of the holders has its share already.
    pub fn acquire(&mut self, holders: impl Iterator<Item = Holder> + Clone) -> Result<(), Denied> {
        let free = self.free();
        self.acquire_of(free, holders)
    }

    /// Take a place as if only `free` places were free, for a limit that is narrower than that of
    /// all places.
    ///
    /// # Errors
    /// [`Denied`] if no place is free, or one of the holders has its share already.
    pub fn acquire_of(
        &mut self,
        free: usize,
        holders: impl Iterator<Item = Holder> + Clone,
    ) -> Result<(), Denied> {
        let free = free.min(self.free());
        if free == 0 {
            return Err(Denied::Full);
        }
        let has_its_share = |holder: &Holder| {
            self.held(*holder) >= free.saturating_mul(holder.places_per_free_place())
        };
        if let Some(holder) = holders.clone().find(has_its_share) {
            return Err(Denied::Share(holder));
        }
        self.taken += 1;
        for holder in holders {
            *self.held.entry(holder).or_default() += 1;
        }
        Ok(())
    }

    /// Release a place that these holders have taken.
    pub fn release(&mut self, holders: impl Iterator<Item = Holder>) {
        self.taken = self.taken.saturating_sub(1);
        for holder in holders {
            if let Some(held) = self.held.get_mut(&holder) {
                *held -= 1;
                if *held == 0 {
                    self.held.remove(&holder);
                }
            }
        }
    }
}

/// Places that a client may have for each one that it leaves free: alone, it gets half of them.
const CLIENT_SHARE: usize = 1;

/// Places that all clients of an IPv6 /48 may have for each one that they leave free: alone, they
/// get two thirds. Providers give whole /48s to single customers, and some put many customers into
/// one.
const NETWORK_SHARE: usize = 2;

/// Places that a tunnel may have for each one that it leaves free for its siblings: alone, it gets
/// three quarters.
const TUNNEL_SHARE: usize = 3;

#[cfg(test)]
mod tests {
    use std::iter::once;

    use super::*;

    fn subscriber(number: u8) -> Holder {
        Holder::Subscriber([192, 0, 2, number].into())
    }

    fn fill(share: &mut FairShare, holder: Holder) -> usize {
        while share.acquire(once(holder)).is_ok() {}
        share.held(holder)
    }

    #[test]
    fn one_client_gets_half_and_a_tunnel_three_quarters() {
        assert_eq!(fill(&mut FairShare::new(1024), subscriber(1)), 512);
        assert_eq!(fill(&mut FairShare::new(1024), Holder::Tunnel(0)), 768);
        let network = Holder::Network(Ipv6Addr::LOCALHOST);
        assert_eq!(fill(&mut FairShare::new(1024), network), 683);
    }

    #[test]
    fn however_many_are_greedy_a_newcomer_finds_a_place() {
        let mut share = FairShare::new(1024);
        for _ in 0..100 {
            for number in 0..100 {
                let _ = share.acquire(once(subscriber(number)));
            }
        }

        let most = (0..100).map(|number| share.held(subscriber(number))).max();

        assert!(share.free() >= 10, "{share:?}");
        assert!(most <= Some(11), "{share:?}");
        assert!(share.acquire(once(subscriber(200))).is_ok());
    }

    #[test]
    fn released_places_are_available_to_others() {
        let mut share = FairShare::new(4);
        let one = once(subscriber(1));
        share.acquire(one.clone()).unwrap();
        share.acquire(one.clone()).unwrap();
        assert_eq!(
            share.acquire(one.clone()),
            Err(Denied::Share(subscriber(1)))
        );

        share.release(one.clone());

        assert!(share.acquire(one).is_ok());
        assert_eq!(share.free(), 2);
    }

    #[test]
    fn a_place_that_is_denied_counts_for_nobody() {
        let mut share = FairShare::new(2);
        let both = [subscriber(1), Holder::Tunnel(0)].into_iter();
        share.acquire(both.clone()).unwrap();

        assert!(share.acquire(both).is_err());

        assert_eq!((share.held(Holder::Tunnel(0)), share.free()), (1, 1));
    }

    #[test]
    fn places_run_out() {
        let mut share = FairShare::new(2);
        for number in 1..=2 {
            share.acquire(once(subscriber(number))).unwrap();
        }

        assert_eq!(share.acquire(once(subscriber(3))), Err(Denied::Full));
    }
}
