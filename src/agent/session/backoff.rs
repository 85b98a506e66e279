//! When to try again.

use std::time::Duration;

/// Waiting times between attempts: none at first, then doubling up to half a minute, each with
/// jitter so that a thousand agents do not return to a restarted edge in the same moment.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Return how long to wait before the next attempt.
    pub fn next(&mut self) -> Duration {
        let wait = match self.failures {
            0 => Duration::ZERO,
            failures => {
                let whole = FIRST
                    .saturating_mul(1 << (failures - 1).min(16))
                    .min(LONGEST);
                // Anything between a half and the whole.
                whole.mul_f64(0.5 + 0.5 * random())
            }
        };
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// Begin anew after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A number from 0 up to 1.
fn random() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}

/// The wait after the first attempt that failed at once.
const FIRST: Duration = Duration::from_millis(200);

/// The longest wait: an edge that returns is found within it.
const LONGEST: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_is_immediate_and_waits_grow_to_half_a_minute() {
        let mut backoff = Backoff::default();

        assert_eq!(backoff.next(), Duration::ZERO);
        let waits: Vec<_> = (0..20).map(|_| backoff.next()).collect();

        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST);
        assert!(waits.iter().all(|wait| *wait <= LONGEST));
        assert!(waits[10..].iter().all(|wait| *wait >= LONGEST / 2));
        backoff.reset();
        assert_eq!(backoff.next(), Duration::ZERO);
    }
}
