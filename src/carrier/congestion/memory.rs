//! What earlier connections have found out about the way to an edge.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Outlives connections, so that the next one need not start from nothing.
#[derive(Debug, Clone, Default)]
pub struct PathMemory(Arc<Mutex<Option<Known>>>);

/// A path as it was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// Bytes per second.
    rate: f64,
    /// The round trip without a queue.
    base: Duration,
    at: Instant,
}

impl PathMemory {
    /// Note what the path is like now.
    pub(crate) fn note(&self, rate: f64, base: Duration, at: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Known::new(rate, base, at));
    }

    pub(crate) fn recall(&self) -> Option<Known> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    pub(crate) fn new(rate: f64, base: Duration, at: Instant) -> Self {
        Self { rate, base, at }
    }

    /// Return how much may be in flight at once on a path with that round trip: half of what filled the
    /// path that was known, if it may be the same one. This is the jump of Careful Resume
    /// (draft-ietf-tsvwg-careful-resume §3): not the whole, since others may be there now.
    pub(crate) fn jump(&self, base: Duration, now: Instant) -> Option<u64> {
        let alike = base > self.base / 2 && base < self.base.saturating_mul(2);
        let fresh = now.saturating_duration_since(self.at) < FRESH;
        (alike && fresh).then(|| ((self.rate * base.as_secs_f64() / 2.0) as u64).min(LARGEST_JUMP))
    }
}

/// How long a path is taken to be what it was.
const FRESH: Duration = Duration::from_secs(600);

/// A jump to more than this would fill most queues if the path were a worse one.
const LARGEST_JUMP: u64 = 1 << 20;
