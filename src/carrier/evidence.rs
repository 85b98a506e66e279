//! When a carrier was last heard, and since when it owes an answer.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// How soon after receiving a packet one is sent that need not be answered: an acknowledgement,
/// which QUIC delays by at most 25 ms (RFC 9000 §18.2), and the scheduler's part.
const MAY_BE_ACK: Duration = Duration::from_millis(40);

/// What ends a run of packets. Shorter than the agent's keep-alive, so that the answers to those do
/// not make a run, whose every pause would be suspicious.
const PAUSE: Duration = Duration::from_millis(500);

/// Written by quinn's tasks with every packet, read by the one that judges.
#[derive(Debug)]
pub(super) struct Clock {
    base: Instant,
    /// Microseconds after `base`, 0 for never.
    heard: AtomicU64,
    asked: AtomicU64,
    asks: AtomicU32,
    run: AtomicU32,
}

/// What a [`Clock`] showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// When a packet came last.
    pub(super) heard: Option<Instant>,
    /// When the first packet was sent that should have been answered since.
    pub(super) asked: Option<Instant>,
    /// How many transmits have gone unanswered: QUIC repeats what needs an answer.
    pub(super) asks: u32,
    /// How often packets have come without a pause of [`PAUSE`] in between.
    pub(super) run: u32,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            base: Instant::now(),
            heard: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            asks: AtomicU32::new(0),
            run: AtomicU32::new(0),
        }
    }

    pub(super) fn heard(&self, now: Instant) {
        let now = self.micros(now);
        let before = self.heard.swap(now, Ordering::Relaxed);
        match now.saturating_sub(before) < PAUSE.as_micros() as u64 {
            true => self.run.fetch_add(1, Ordering::Relaxed),
            false => self.run.swap(1, Ordering::Relaxed),
        };
        self.forget_asked();
    }

    pub(super) fn sent(&self, now: Instant) {
        let now = self.micros(now);
        let heard = self.heard.load(Ordering::Relaxed);
        if heard != 0 && now.saturating_sub(heard) <= MAY_BE_ACK.as_micros() as u64 {
            return;
        }
        self.asks.fetch_add(1, Ordering::Relaxed);
        let _ = self
            .asked
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Count anew what is owed, because packets go another way now.
    pub(super) fn forget_asked(&self) {
        if self.asked.load(Ordering::Relaxed) != 0 {
            self.asked.store(0, Ordering::Relaxed);
            self.asks.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn seen(&self) -> Seen {
        Seen {
            heard: self.instant(&self.heard),
            asked: self.instant(&self.asked),
            asks: self.asks.load(Ordering::Relaxed),
            run: self.run.load(Ordering::Relaxed),
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.base).as_micros() as u64).max(1)
    }

    fn instant(&self, micros: &AtomicU64) -> Option<Instant> {
        match micros.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(self.base + Duration::from_micros(micros)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_packet_owes_an_answer_until_something_is_heard() {
        let clock = Clock::new();
        advance(Duration::from_secs(1)).await;
        let asked = Instant::now();
        clock.sent(asked);
        advance(Duration::from_secs(1)).await;
        clock.sent(Instant::now());

        assert_eq!(clock.seen().asked, Some(asked));
        assert_eq!(clock.seen().asks, 2);
        clock.heard(Instant::now());
        assert_eq!(clock.seen().asked, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_be_an_acknowledgement_owes_nothing() {
        let clock = Clock::new();
        advance(Duration::from_secs(1)).await;
        clock.heard(Instant::now());

        advance(MAY_BE_ACK).await;
        clock.sent(Instant::now());
        assert_eq!(clock.seen().asked, None);

        advance(Duration::from_millis(1)).await;
        clock.sent(Instant::now());
        assert!(clock.seen().asked.is_some());
    }
}
