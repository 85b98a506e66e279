//! Rate limiting of a repeated notice, with a count of the suppressed occurrences.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Limits one kind of notice to one in [`MIN_INTERVAL`], and counts what happens in between.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The time of the last notice.
    reported_at: Option<Instant>,
    /// Occurrences since then.
    unreported: u64,
}

impl LogThrottle {
    /// Add occurrences. Return the number since the last notice if another notice is due. Adding none
    /// never makes one due.
    pub(crate) fn record(&self, times: u64) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.unreported += times;
        if times == 0
            || state
                .reported_at
                .is_some_and(|at| at.elapsed() < MIN_INTERVAL)
        {
            return None;
        }
        state.reported_at = Some(Instant::now());
        Some(std::mem::take(&mut state.unreported))
    }
}

/// The shortest time between two notices: one line a minute is noticed, and does not bury other lines.
const MIN_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_notice_is_due_at_once_and_then_once_a_minute_with_a_count() {
        let throttle = LogThrottle::default();

        assert_eq!(throttle.record(0), None);
        assert_eq!(throttle.record(1), Some(1));
        assert_eq!(throttle.record(2), None);
        tokio::time::advance(MIN_INTERVAL).await;
        assert_eq!(throttle.record(0), None);
        assert_eq!(throttle.record(1), Some(3));
    }
}
