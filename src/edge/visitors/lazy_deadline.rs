//! A deadline that is moved often and rarely expires.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A deadline whose timer is not touched when the deadline moves later: the timer then fires early
/// and is set again. This costs almost nothing per move, so that a deadline may move with every
/// packet.
#[derive(Debug, Default)]
pub struct LazyDeadline {
    at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl LazyDeadline {
    /// Set or move the deadline.
    pub fn set(&mut self, at: Instant) {
        self.at = Some(at);
    }

    /// Remove the deadline.
    pub fn clear(&mut self) {
        self.at = None;
    }

    /// Report whether there is a deadline.
    pub fn is_set(&self) -> bool {
        self.at.is_some()
    }

    /// Wait for the deadline; without one, forever.
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
    async fn a_deadline_that_moves_expires_on_time() {
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
    async fn without_a_deadline_nothing_expires() {
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
