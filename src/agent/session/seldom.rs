//! Something that is said at most once in a while, however often it happens.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When it was said last, and what has happened since.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    /// Note that it has happened so often. Returns how often since it was said last, if it is time to say
    /// so.
    pub(crate) fn happened(&self, times: u64) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.unsaid += times;
        if times == 0 || state.said.is_some_and(|said| said.elapsed() < PAUSE) {
            return None;
        }
        state.said = Some(Instant::now());
        Some(std::mem::take(&mut state.unsaid))
    }
}

/// A line in a minute is seen, and buries no others.
const PAUSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_said_at_once_and_then_once_in_a_minute_with_a_count() {
        let seldom = Seldom::default();

        assert_eq!(seldom.happened(0), None);
        assert_eq!(seldom.happened(1), Some(1));
        assert_eq!(seldom.happened(2), None);
        tokio::time::advance(PAUSE).await;
        assert_eq!(seldom.happened(0), None);
        assert_eq!(seldom.happened(1), Some(3));
    }
}
