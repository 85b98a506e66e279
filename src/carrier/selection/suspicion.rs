//! Suspicion about UDP while it is in use.

use std::time::Duration;

use tokio::time::Instant;

use super::UDP_DEAD_AFTER;
use super::probing::{FAST_PROBE_INTERVAL, SLOW_PROBE_INTERVAL};

/// Suspicion that UDP is dead, and the probes sent to find out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspicion {
    pub(crate) raised: Instant,
    /// Probes sent since the last answer.
    pub(crate) probes: u32,
    answered: Option<Instant>,
}

impl Suspicion {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            raised: now,
            probes: 0,
            answered: None,
        }
    }

    /// Record an answered probe.
    pub(crate) fn probe_answered(&mut self, now: Instant) {
        self.answered = Some(now);
        self.probes = 0;
    }

    /// Return the time of the last sign of life: an answered probe, or when the suspicion was
    /// raised.
    pub(crate) fn last_sign_of_life(&self) -> Instant {
        self.answered.unwrap_or(self.raised)
    }

    /// Report whether it has lasted so long that both ends wait for retransmission timeouts that
    /// have grown long.
    pub(crate) fn has_lasted(&self, now: Instant) -> bool {
        now >= self.last_sign_of_life() + UDP_DEAD_AFTER
    }

    /// Return the interval between two probes.
    pub(crate) fn probe_interval(&self, now: Instant, rtt: Duration) -> Duration {
        match self.answered {
            Some(answered) if now < answered + SLOW_PROBE_INTERVAL => SLOW_PROBE_INTERVAL,
            _ => FAST_PROBE_INTERVAL.max(rtt),
        }
    }
}

/// Return the silence after which UDP is suspected.
pub(crate) fn suspect_after(rtt: Duration) -> Duration {
    SUSPECT_AFTER.max(3 * rtt)
}

/// Silence that raises suspicion: longer than the second retransmission of a lost packet on most
/// paths.
const SUSPECT_AFTER: Duration = Duration::from_millis(400);
