//! Receive activity of a carrier: the time of the last packet, and the length of the run it belongs
//! to.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// Receive activity of one carrier, written by quinn's tasks with every packet and read by the
/// driver.
#[derive(Debug)]
pub(crate) struct ReceiveMonitor {
    start: Instant,
    /// Microseconds after `start`; 0 for never.
    last_received: AtomicU64,
    run: AtomicU32,
}

/// Snapshot of a [`ReceiveMonitor`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReceiveActivity {
    /// The time at which the last packet was received.
    pub(crate) last_received: Option<Instant>,
    /// Packets that have come without a gap of [`RUN_GAP`] in between.
    pub(crate) run: u32,
}

impl ReceiveMonitor {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            last_received: AtomicU64::new(0),
            run: AtomicU32::new(0),
        }
    }

    /// Record the arrival of a packet.
    pub(crate) fn packet_received(&self, now: Instant) {
        let now = self.micros(now);
        let before = self.last_received.swap(now, Ordering::Relaxed);
        match now.saturating_sub(before) < RUN_GAP.as_micros() as u64 {
            true => self.run.fetch_add(1, Ordering::Relaxed),
            false => self.run.swap(1, Ordering::Relaxed),
        };
    }

    /// Return a snapshot.
    pub(crate) fn activity(&self) -> ReceiveActivity {
        ReceiveActivity {
            last_received: self.instant(&self.last_received),
            run: self.run.load(Ordering::Relaxed),
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.start).as_micros() as u64).max(1)
    }

    fn instant(&self, micros: &AtomicU64) -> Option<Instant> {
        match micros.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(self.start + Duration::from_micros(micros)),
        }
    }
}

/// Gap that ends a run of packets. Shorter than the agent's keep-alive interval, so that the
/// answers to keep-alives do not make a run whose every gap would be suspicious.
const RUN_GAP: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gap_ends_a_run() {
        let monitor = ReceiveMonitor::new();
        for _ in 0..3 {
            advance(RUN_GAP - Duration::from_millis(1)).await;
            monitor.packet_received(Instant::now());
        }
        assert_eq!(monitor.activity().run, 3);

        advance(RUN_GAP).await;
        monitor.packet_received(Instant::now());

        assert_eq!(monitor.activity().run, 1);
        assert_eq!(monitor.activity().last_received, Some(Instant::now()));
    }
}
