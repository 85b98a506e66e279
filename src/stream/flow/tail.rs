//! The end of a message, when nothing follows it.
//!
//! A packet is missed once a later one is acknowledged (RFC 9002 §6.1). Behind the last packet of a short
//! message there is none: its loss is found by a probe timeout, for which quinn sends an empty packet, and
//! repeats what was lost when that one is acknowledged, two round trips late and more. Where packets are
//! lost, something is therefore sent a little later: what came before it is missed after one round trip,
//! and when it has been repeated, that has something behind it too.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::lock;

/// The ends of one session's messages.
#[derive(Default)]
pub struct TailProbe {
    /// When the latest message ended, and how much has been sent behind it.
    ended: Mutex<Option<(Instant, usize)>>,
    happened: Notify,
    ends: AtomicU32,
    lossy: AtomicBool,
}

impl TailProbe {
    /// Note that a message has ended, on a path that loses packets or does not.
    pub(crate) fn ended(&self, is_lossy: impl FnOnce() -> bool) {
        if self.ends.fetch_add(1, Relaxed).is_multiple_of(ASK) {
            self.lossy.store(is_lossy(), Relaxed);
        }
        if self.lossy.load(Relaxed) {
            *lock(&self.ended) = Some((Instant::now(), 0));
            self.happened.notify_one();
        }
    }

    /// Wait until something must be sent behind the end of a message. May be cancelled.
    pub(crate) async fn due(&self, round_trip: impl Fn() -> Duration) {
        loop {
            let ended = *lock(&self.ended);
            let Some((at, followed)) = ended else {
                self.happened.notified().await;
                continue;
            };
            let due = sleep_until(at + round_trip().mul_f32(AFTER[followed]));
            tokio::select! {
                () = due => {}
                // Another message ends before what would follow a repetition.
                () = self.happened.notified(), if followed > 0 => continue,
            }
            let mut latest = lock(&self.ended);
            // Behind a message that ended since, what is sent now would be too early.
            if *latest == ended {
                *latest = Some((at, followed + 1)).filter(|(_, followed)| *followed < AFTER.len());
                return;
            }
        }
    }
}

/// How much later something follows, in round trips. What is acknowledged an eighth of one late lets what
/// came before it be missed at once (RFC 9002 §6.1.2), and is not taken by the same burst of losses; what was
/// missed then is sent again just before the second.
const AFTER: [f32; 2] = [0.125, 1.375];

/// Ends of messages after which the path is asked again.
const ASK: u32 = 8;

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    #[tokio::test(start_paused = true)]
    async fn something_follows_the_end_of_a_message_and_what_is_repeated_of_it() {
        let tail = TailProbe::default();

        tail.ended(|| true);

        let ended = Instant::now();
        tail.due(|| RTT).await;
        assert_eq!(ended.elapsed(), RTT / 8);
        tail.due(|| RTT).await;
        assert_eq!(ended.elapsed(), RTT + 3 * RTT / 8);
        assert!(timeout(RTT, tail.due(|| RTT)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn of_messages_that_follow_each_other_the_last_is_followed() {
        let tail = TailProbe::default();
        let since = Instant::now();
        for _ in 0..10 {
            tail.ended(|| true);
            assert!(timeout(RTT / 10, tail.due(|| RTT)).await.is_err());
        }

        tail.due(|| RTT).await;

        assert_eq!(since.elapsed(), 9 * RTT / 10 + RTT / 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_followed_in_time_that_ends_while_an_earlier_one_may_be_repeated() {
        let tail = TailProbe::default();
        tail.ended(|| true);
        tail.due(|| RTT).await;
        let (waiting, next) = (tail.due(|| RTT), async {
            sleep_until(Instant::now() + RTT / 2).await;
            tail.ended(|| true);
            Instant::now()
        });

        let ((), ended) = tokio::join!(waiting, next);

        assert_eq!(ended.elapsed(), RTT / 8);
    }

    #[tokio::test(start_paused = true)]
    async fn where_nothing_is_lost_nothing_follows() {
        let tail = TailProbe::default();

        tail.ended(|| false);

        assert!(timeout(RTT, tail.due(|| RTT)).await.is_err());
    }
}
