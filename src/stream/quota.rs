//! How often something may happen.

use std::time::Duration;

use tokio::time::Instant;

/// Lets something happen some times at once, and then no more often than once in a while.
#[derive(Debug)]
pub struct Quota {
    at_once: u32,
    every: Duration,
    /// When there will be as much left as there can be.
    full: Instant,
}

impl Quota {
    /// Let it happen so often at once, and then once in every `every`.
    pub fn new(at_once: u32, every: Duration) -> Self {
        Self {
            at_once,
            every,
            full: Instant::now(),
        }
    }

    /// Let it happen, or report that it may not.
    pub fn take(&mut self) -> bool {
        let now = Instant::now();
        let full = self.full.max(now) + self.every;
        let allowed = full.duration_since(now) <= self.every * self.at_once;
        if allowed {
            self.full = full;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_happens_some_times_at_once_and_then_once_in_a_while() {
        let mut quota = Quota::new(3, Duration::from_secs(1));

        assert_eq!([(); 4].map(|()| quota.take()), [true, true, true, false]);
        advance(Duration::from_secs(1)).await;
        assert_eq!([(); 2].map(|()| quota.take()), [true, false]);
        advance(Duration::from_secs(60)).await;
        assert_eq!([(); 4].map(|()| quota.take()), [true, true, true, false]);
    }
}
