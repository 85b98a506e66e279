//! Rate limit with a burst (the generic cell rate algorithm, a kind of token bucket).

use std::time::Duration;

use tokio::time::Instant;

/// Limit on how often something may happen: a burst, and then once per interval.
#[derive(Debug)]
pub struct RateLimit {
    burst: u32,
    interval: Duration,
    /// Time at which the whole burst is available again.
    full_at: Instant,
}

impl RateLimit {
    /// Allow a burst of `burst`, and then one per `interval`.
    pub fn new(burst: u32, interval: Duration) -> Self {
        Self {
            burst,
            interval,
            full_at: Instant::now(),
        }
    }

    /// Take one and return true, or return false if the limit is reached.
    pub fn take(&mut self) -> bool {
        let now = Instant::now();
        let full_at = self.full_at.max(now) + self.interval;
        let allowed = full_at.duration_since(now) <= self.interval * self.burst;
        if allowed {
            self.full_at = full_at;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_allowed_and_then_one_per_interval() {
        let mut limit = RateLimit::new(3, Duration::from_secs(1));

        assert_eq!([(); 4].map(|()| limit.take()), [true, true, true, false]);
        advance(Duration::from_secs(1)).await;
        assert_eq!([(); 2].map(|()| limit.take()), [true, false]);
        advance(Duration::from_secs(60)).await;
        assert_eq!([(); 4].map(|()| limit.take()), [true, true, true, false]);
    }
}
