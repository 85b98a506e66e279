//! When a carrier was last heard, and for how long without a pause.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// Written by quinn's tasks with every packet, read by the one that judges.
#[derive(Debug)]
pub(crate) struct Clock {
    base: Instant,
    /// Microseconds after `base`, 0 for never.
    heard: AtomicU64,
    run: AtomicU32,
}

/// What a [`Clock`] showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// When a packet came last.
    pub(crate) heard: Option<Instant>,
    /// How often packets have come without a pause of [`PAUSE`] in between.
    pub(crate) run: u32,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            base: Instant::now(),
            heard: AtomicU64::new(0),
            run: AtomicU32::new(0),
        }
    }

    pub(crate) fn heard(&self, now: Instant) {
        let now = self.micros(now);
        let before = self.heard.swap(now, Ordering::Relaxed);
        match now.saturating_sub(before) < PAUSE.as_micros() as u64 {
            true => self.run.fetch_add(1, Ordering::Relaxed),
            false => self.run.swap(1, Ordering::Relaxed),
        };
    }

    pub(crate) fn seen(&self) -> Seen {
        Seen {
            heard: self.instant(&self.heard),
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

/// What ends a run of packets. Shorter than the agent's keep-alive, so that the answers to those do
/// not make a run, whose every pause would be suspicious.
const PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_a_run() {
        let clock = Clock::new();
        for _ in 0..3 {
            advance(PAUSE - Duration::from_millis(1)).await;
            clock.heard(Instant::now());
        }
        assert_eq!(clock.seen().run, 3);

        advance(PAUSE).await;
        clock.heard(Instant::now());

        assert_eq!(clock.seen().run, 1);
        assert_eq!(clock.seen().heard, Some(Instant::now()));
    }
}
