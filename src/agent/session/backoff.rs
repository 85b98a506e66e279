//! Exponential backoff between attempts to connect.

use std::time::Duration;

/// Exponential backoff with jitter: no wait before the first attempt, then doubling up to half a minute.
/// The jitter keeps a thousand agents from returning to a restarted edge at the same moment.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Return the wait before the next attempt, and count the attempt as failed.
    pub fn next(&mut self) -> Duration {
        let wait = match self.failures {
            0 => Duration::ZERO,
            failures => {
                let full = INITIAL_WAIT
                    .saturating_mul(1 << (failures - 1).min(16))
                    .min(MAX_WAIT);
                // Jitter: between half of the wait and all of it.
                full.mul_f64(0.5 + 0.5 * random())
            }
        };
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// Start from the beginning after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Return a random number from 0 to just below 1.
fn random() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}

/// The wait after the first failed attempt.
const INITIAL_WAIT: Duration = Duration::from_millis(200);

/// The longest wait: an edge that returns is reached within this time.
const MAX_WAIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_is_immediate_and_waits_grow_to_half_a_minute() {
        let mut backoff = Backoff::default();

        assert_eq!(backoff.next(), Duration::ZERO);
        let waits: Vec<_> = (0..20).map(|_| backoff.next()).collect();

        assert!(waits[0] >= INITIAL_WAIT / 2 && waits[0] <= INITIAL_WAIT);
        assert!(waits.iter().all(|wait| *wait <= MAX_WAIT));
        assert!(waits[10..].iter().all(|wait| *wait >= MAX_WAIT / 2));
        backoff.reset();
        assert_eq!(backoff.next(), Duration::ZERO);
    }
}
