//! Enforcement of a lowest rate for a request's body.
//!
//! Time counts only while somebody waits for the visitor: a body that is not read, because the
//! tunnel or the upstream is slow, may take forever. Nor does it count while the edge lets the
//! visitor send nothing. Waiting is paid for with a credit of time: there is an initial grace, and
//! each byte buys more.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::http2::ROOM_CHECK_INTERVAL;
use super::read_pauses::ReadPauses;
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::lazy_deadline::LazyDeadline;
use crate::edge::visitors::socket::ReceivedBytes;

/// A body with a limit on the time that it is waited for.
pub struct PacedBody<B> {
    body: B,
    /// `None` if there is no limit.
    pace: Option<Pace>,
}

struct Pace {
    /// Bytes that buy one second.
    rate: u64,
    /// Upper bound of the credit.
    max_credit: Duration,
    received: ReceivedBytes,
    /// Bytes received on the connection when the last piece of the body arrived.
    seen: u64,
    /// Time for which the visitor may still be waited for.
    credit: Duration,
    /// Times at which the visitor could not send; `None` over HTTP/1, which has none.
    pauses: Option<ReadPauses>,
    /// Set while the visitor is being waited for.
    waiting: Option<Wait>,
    deadline: LazyDeadline,
}

/// A wait for the visitor.
#[derive(Clone, Copy)]
struct Wait {
    since: Instant,
    /// Length of the connection's pauses before the wait.
    paused: Duration,
}

impl<B> PacedBody<B> {
    /// Limit the time that a body is waited for.
    pub fn new(
        body: B,
        limits: &EdgeLimits,
        received: ReceivedBytes,
        pauses: Option<ReadPauses>,
    ) -> Self {
        let pace = Pace {
            seen: received.bytes(),
            received,
            credit: limits.body_grace,
            rate: limits.body_rate.max(1),
            max_credit: limits.body_pause.max(limits.body_grace),
            pauses,
            waiting: None,
            deadline: LazyDeadline::default(),
        };
        Self {
            body,
            pace: Some(pace),
        }
    }

    /// Lift the limit from now on.
    pub fn unlimit(&mut self) {
        self.pace = None;
    }

    /// Return the body itself.
    pub fn into_inner(self) -> B {
        self.body
    }
}

impl Pace {
    /// Record that a piece of the body has arrived.
    fn note_received(&mut self, bytes: usize) {
        if let Some(wait) = self.waiting.take() {
            let waited = wait.since.elapsed();
            let waited = waited.saturating_sub(self.paused(wait));
            self.credit = self.credit.saturating_sub(waited);
        }
        self.credit = self.credit_with(bytes as u64);
        self.seen = self.received.bytes();
    }

    /// Return the credit after these bytes have been added to it.
    fn credit_with(&self, bytes: u64) -> Duration {
        let bought = Duration::from_millis(bytes.saturating_mul(1_000) / self.rate);
        self.credit.saturating_add(bought).min(self.max_credit)
    }

    /// Return the length of the pauses during a wait.
    fn paused(&self, wait: Wait) -> Duration {
        let total = self.pauses.as_ref().map(ReadPauses::total);
        total.unwrap_or_default().saturating_sub(wait.paused)
    }

    fn start_wait(&self) -> Wait {
        let total = self.pauses.as_ref().map(ReadPauses::total);
        Wait {
            since: Instant::now(),
            paused: total.unwrap_or_default(),
        }
    }

    /// Wait until the visitor has been waited for too long.
    fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wait = self.waiting.unwrap_or_else(|| self.start_wait());
        self.waiting = Some(wait);
        loop {
            let unfinished = (self.received.bytes() - self.seen).min(MAX_UNFINISHED);
            let paused = self.paused(wait);
            let mut deadline = wait.since + paused + self.credit_with(unfinished);
            if self.pauses.as_ref().is_some_and(ReadPauses::is_paused) {
                // It moves with the time.
                deadline = deadline.max(Instant::now() + ROOM_CHECK_INTERVAL);
            }
            self.deadline.set(deadline);
            ready!(self.deadline.poll(cx));
            let received = (self.received.bytes() - self.seen).min(MAX_UNFINISHED);
            if received <= unfinished && self.paused(wait) <= paused {
                return Poll::Ready(());
            }
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for PacedBody<B> {
    type Data = Bytes;
    type Error = BodyError<B::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        let Some(pace) = &mut this.pace else {
            return frame.map(|frame| frame.map(|frame| frame.map_err(BodyError::Connection)));
        };
        match frame {
            Poll::Pending => {
                ready!(pace.poll_too_slow(cx));
                Poll::Ready(Some(Err(BodyError::TooSlow)))
            }
            Poll::Ready(frame) => {
                if let Some(Ok(frame)) = &frame {
                    pace.note_received(frame.data_ref().map_or(0, Bytes::len));
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Connection)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Reason why a request's body ends early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError<E> {
    /// The visitor aborted the request, or its connection was lost.
    #[error("the visitor's connection broke")]
    Connection(#[source] E),
    /// The visitor sends too slowly.
    #[error("the visitor sends too slowly")]
    TooSlow,
}

/// Received bytes that count although the body has not got them yet: those of an incomplete TLS
/// record and an incomplete HTTP/2 frame (16 KiB each).
const MAX_UNFINISHED: u64 = 33 << 10;

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use http_body_util::channel::{Channel, Sender};
    use tokio::time::{sleep, timeout};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(10);

    fn body() -> (Sender<Bytes>, PacedBody<Channel<Bytes>>, EdgeLimits) {
        let (sender, body) = Channel::new(8);
        let limits = EdgeLimits::default();
        let paced = PacedBody::new(
            body,
            &limits,
            ReceivedBytes::default(),
            Some(ReadPauses::default()),
        );
        (sender, paced, limits)
    }

    async fn is_too_slow(body: &mut PacedBody<Channel<Bytes>>) -> bool {
        matches!(body.frame().await, Some(Err(BodyError::TooSlow)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_start_fails_after_the_grace() {
        let (_sender, mut body, limits) = body();
        let started = Instant::now();

        assert!(is_too_slow(&mut body).await);

        let took = started.elapsed();
        assert!(took >= limits.body_grace && took < limits.body_grace + MOMENT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_starts_at_the_last_moment_is_received() {
        let (mut sender, body, limits) = body();
        let sending = async {
            sleep(limits.body_grace - MOMENT).await;
            sender.send_data("late".into()).await.unwrap();
            drop(sender);
        };

        let (received, ()) = tokio::join!(body.collect(), sending);

        assert_eq!(received.unwrap().to_bytes(), "late");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_at_the_least_rate_is_received_for_hours_and_a_slower_one_is_not() {
        for (bytes, hours, is_received) in [(500, 3, true), (450, 3, false), (1, 3, false)] {
            let (mut sender, mut body, limits) = body();
            assert_eq!(limits.body_rate, 500);
            let sending = async {
                for _ in 0..hours * 3600 {
                    sleep(Duration::from_secs(1)).await;
                    if sender.send_data(vec![0; bytes].into()).await.is_err() {
                        break;
                    }
                }
                drop(sender);
            };
            let receiving = async move {
                while let Some(frame) = body.frame().await {
                    if frame.is_err() {
                        return false;
                    }
                }
                true
            };

            let (received, ()) = tokio::join!(receiving, sending);

            assert_eq!(received, is_received, "{bytes} B/s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_may_take_what_the_bytes_before_it_have_bought_up_to_its_limit() {
        for (before, max_credit) in [
            (1_000, 12),
            (25_000, 60),
            // More buys nothing more.
            (100_000_000, 60),
        ] {
            let (mut sender, mut body, _) = body();
            sender.send_data(vec![0; before].into()).await.unwrap();
            body.frame().await.unwrap().unwrap();
            let started = Instant::now();

            assert!(is_too_slow(&mut body).await);

            let took = started.elapsed();
            let max_credit = Duration::from_secs(max_credit);
            assert!(took >= max_credit && took < max_credit + MOMENT, "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_body_is_not_read_does_not_count() {
        let (mut sender, mut body, _) = body();
        for _ in 0..10 {
            sender.send_data("piece".into()).await.unwrap();

            sleep(Duration::from_secs(3600)).await;

            assert!(body.frame().await.unwrap().is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_edge_lets_the_visitor_send_nothing_does_not_count() {
        let (mut sender, mut body, limits) = body();
        let pauses = body.pace.as_ref().unwrap().pauses.clone().unwrap();
        let started = Instant::now();
        let pause = Duration::from_secs(3600);
        let pausing = async {
            sleep(limits.body_grace / 2).await;
            pauses.set(true);
            sleep(pause).await;
            pauses.set(false);
        };

        let (is_slow, ()) = tokio::join!(is_too_slow(&mut body), pausing);

        let took = started.elapsed().saturating_sub(pause);
        assert!(is_slow);
        assert!(took >= limits.body_grace && took < limits.body_grace + 2 * ROOM_CHECK_INTERVAL);
        pauses.set(true);
        sender.send_data("piece".into()).await.unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        let waited = timeout(pause, body.frame()).await;
        assert!(waited.is_err(), "the pause is not over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_takes_nothing_from_the_credit() {
        let (mut sender, mut body, limits) = body();
        let pauses = body.pace.as_ref().unwrap().pauses.clone().unwrap();
        pauses.set(true);
        let sending = async {
            sleep(Duration::from_secs(3600)).await;
            pauses.set(false);
            sender.send_data("piece".into()).await.unwrap();
        };
        let (piece, ()) = tokio::join!(body.frame(), sending);
        assert!(piece.unwrap().is_ok());
        let started = Instant::now();

        assert!(is_too_slow(&mut body).await);

        assert!(started.elapsed() >= limits.body_grace);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_an_incomplete_record_count() {
        let (_sender, mut body, limits) = body();
        let received = body.pace.as_ref().unwrap().received.clone();
        received.add(5_000);
        let started = Instant::now();

        assert!(is_too_slow(&mut body).await);

        assert!(started.elapsed() >= limits.body_grace + Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_a_body_is_waited_for_as_long_as_it_takes() {
        let (_sender, mut body, limits) = body();

        let waited = timeout(limits.body_grace / 2, body.frame()).await;
        body.unlimit();
        let waited_on = timeout(limits.body_grace * 100, body.frame()).await;

        assert!(waited.is_err() && waited_on.is_err());
    }
}
