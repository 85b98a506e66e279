//! Clock of the time for which the edge lets a visitor send nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Clock that runs while the edge lets a visitor send nothing on a connection, because too much of
/// what it has sent is unread.
#[derive(Debug, Clone, Default)]
pub struct ReadPauses(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Length of all pauses that are over.
    past: Duration,
    /// Start of the current pause.
    since: Option<Instant>,
}

impl ReadPauses {
    /// Record whether there is a pause now.
    pub fn set(&self, is_paused: bool) {
        let mut state = self.lock();
        match state.since {
            Some(since) if !is_paused => {
                state.past += since.elapsed();
                state.since = None;
            }
            None if is_paused => state.since = Some(Instant::now()),
            _ => {}
        }
    }

    /// Report whether there is a pause now.
    pub fn is_paused(&self) -> bool {
        self.lock().since.is_some()
    }

    /// Return the length of all pauses so far.
    pub fn total(&self) -> Duration {
        let state = self.lock();
        let current = state.since.map(|since| since.elapsed());
        state.past + current.unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics half-way through a change while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const MOMENT: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn only_the_time_of_pauses_counts_and_also_that_of_the_current_one() {
        let pauses = ReadPauses::default();
        for (is_paused, total) in [(false, 0), (true, 1), (true, 2), (false, 2), (true, 3)] {
            pauses.set(is_paused);
            sleep(MOMENT).await;

            assert_eq!(pauses.total(), MOMENT * total);
            assert_eq!(pauses.is_paused(), is_paused);
        }
    }
}
