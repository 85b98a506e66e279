//! A deadline that is set anew often and seldom over.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A deadline whose timer is left alone when the deadline moves away: it then elapses too early, and is
/// set again. For what happens with each packet that costs next to nothing.
#[derive(Debug, Default)]
pub struct LazyDeadline {
    at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl LazyDeadline {
    /// Set the deadline.
    pub fn set(&mut self, at: Instant) {
        self.at = Some(at);
    }

    /// Have none.
    pub fn clear(&mut self) {
        self.at = None;
    }

    /// Report whether there is one.
    pub fn is_set(&self) -> bool {
        self.at.is_some()
    }

    /// Wait for the deadline; without one, for ever.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        ready!(timer.as_mut().poll(cx));
        if Instant::now() < at {
            timer.as_mut().reset(at);
            ready!(timer.as_mut().poll(cx));
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_is_over_when_it_should_be() {
        let start = Instant::now();
        let mut deadline = LazyDeadline::default();
        deadline.set(start + LIMIT);
        let polled = timeout(LIMIT / 2, poll_fn(|cx| deadline.poll(cx))).await;
        assert!(polled.is_err());

        deadline.set(start + 3 * LIMIT);
        poll_fn(|cx| deadline.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 3 * LIMIT.as_secs());

        deadline.set(start + 5 * LIMIT);
        assert!(
            timeout(LIMIT, poll_fn(|cx| deadline.poll(cx)))
                .await
                .is_err()
        );
        deadline.set(start + 4 * LIMIT);
        poll_fn(|cx| deadline.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 4 * LIMIT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_deadline_nothing_is_over() {
        let mut deadline = LazyDeadline::default();
        deadline.set(Instant::now() + LIMIT);
        assert!(deadline.is_set());
        deadline.clear();

        sleep(LIMIT).await;

        assert!(
            timeout(LIMIT, poll_fn(|cx| deadline.poll(cx)))
                .await
                .is_err()
        );
    }
}
