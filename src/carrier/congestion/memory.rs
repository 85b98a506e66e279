//! Path measurements that outlive a connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Latest measurement of one path, shared by the connections over it, so that the next one need not
/// start from nothing.
#[derive(Debug, Clone, Default)]
pub struct PathMemory(Arc<Mutex<Option<KnownPath>>>);

/// One measurement of a path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KnownPath {
    /// Delivery rate, in bytes per second.
    rate: f64,
    /// Round trip without a queue.
    min_rtt: Duration,
    at: Instant,
}

impl PathMemory {
    /// Store the path's current measurement.
    pub(crate) fn store(&self, rate: f64, min_rtt: Duration, at: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(KnownPath::new(rate, min_rtt, at));
    }

    /// Return the path's latest measurement.
    pub(crate) fn recall(&self) -> Option<KnownPath> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownPath {
    pub(crate) fn new(rate: f64, min_rtt: Duration, at: Instant) -> Self {
        Self { rate, min_rtt, at }
    }

    /// Return how many bytes may be in flight at once on a path with this `min_rtt`: half of what
    /// filled the measured path, or `None` if it is not the same path or the measurement is old.
    /// This is the jump of Careful Resume (draft-ietf-tsvwg-careful-resume §3): half, since others
    /// may be using the path now.
    pub(crate) fn jump(&self, min_rtt: Duration, now: Instant) -> Option<u64> {
        let alike = min_rtt > self.min_rtt / 2 && min_rtt < self.min_rtt.saturating_mul(2);
        let fresh = now.saturating_duration_since(self.at) < MAX_AGE;
        (alike && fresh).then(|| ((self.rate * min_rtt.as_secs_f64() / 2.0) as u64).min(MAX_JUMP))
    }
}

/// Time that a measurement stays valid.
const MAX_AGE: Duration = Duration::from_secs(600);

/// Largest jump, in bytes: more would fill most queues if the path has become worse.
const MAX_JUMP: u64 = 1 << 20;
