//! Suspicion about UDP while it is in use.

use std::time::Duration;

use tokio::time::Instant;

use super::SILENT;
use super::probing::{PROBE_FAST, PROBE_SLOW};

/// Since when there is suspicion, and what has been done about it.
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

    pub(crate) fn probe_answered(&mut self, now: Instant) {
        self.answered = Some(now);
        self.probes = 0;
    }

    /// Since when there is no sign of life at all.
    pub(crate) fn lifeless(&self) -> Instant {
        self.answered.unwrap_or(self.raised)
    }

    /// Whether both ends wait for timeouts that have grown long.
    pub(crate) fn has_lasted(&self, now: Instant) -> bool {
        now >= self.lifeless() + SILENT
    }

    /// The time between two probes.
    pub(crate) fn pause(&self, now: Instant, rtt: Duration) -> Duration {
        match self.answered {
            Some(answered) if now < answered + PROBE_SLOW => PROBE_SLOW,
            _ => PROBE_FAST.max(rtt),
        }
    }
}

pub(crate) fn doubt_after(rtt: Duration) -> Duration {
    DOUBT.max(3 * rtt)
}

/// Silence that raises suspicion: beyond the second repetition of a lost packet on most paths.
const DOUBT: Duration = Duration::from_millis(400);
