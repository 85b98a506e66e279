//! Tail loss probes (compare RFC 8985): a packet after the end of a message, when nothing else
//! follows it.
//!
//! A packet is declared lost once a later one is acknowledged (RFC 9002 §6.1). After the last
//! packet of a short message there is no later one: its loss is found by a probe timeout, for which
//! quinn sends an empty packet, and it is retransmitted when that one is acknowledged, two round
//! trips late or more. On a lossy path, a PING is therefore sent a little later: the loss is then
//! detected after one round trip, and a second PING does the same for the retransmission.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::lock;

/// Timer of one session's tail probes.
#[derive(Default)]
pub struct TailProbe {
    /// End of the latest message, and the number of probes sent after it.
    last_message: Mutex<Option<(Instant, usize)>>,
    changed: Notify,
    messages: AtomicU32,
    lossy: AtomicBool,
}

impl TailProbe {
    /// Record that a message has ended. `is_lossy` is asked once per [`LOSS_CHECK_MESSAGES`].
    pub(crate) fn message_written(&self, is_lossy: impl FnOnce() -> bool) {
        if self
            .messages
            .fetch_add(1, Relaxed)
            .is_multiple_of(LOSS_CHECK_MESSAGES)
        {
            self.lossy.store(is_lossy(), Relaxed);
        }
        if self.lossy.load(Relaxed) {
            *lock(&self.last_message) = Some((Instant::now(), 0));
            self.changed.notify_one();
        }
    }

    /// Wait until a probe is due. Cancel-safe.
    pub(crate) async fn due(&self, round_trip: impl Fn() -> Duration) {
        loop {
            let ended = *lock(&self.last_message);
            let Some((at, probes)) = ended else {
                self.changed.notified().await;
                continue;
            };
            let due = sleep_until(at + round_trip().mul_f32(PROBE_DELAYS[probes]));
            tokio::select! {
                () = due => {}
                // Another message ends before the probe for a retransmission is due.
                () = self.changed.notified(), if probes > 0 => continue,
            }
            let mut latest = lock(&self.last_message);
            // For a message that has ended since, this probe would be too early.
            if *latest == ended {
                *latest = Some((at, probes + 1)).filter(|(_, probes)| *probes < PROBE_DELAYS.len());
                return;
            }
        }
    }
}

/// Delays of the probes after the end of a message, in round trips. A packet acknowledged 1/8 RTT
/// later lets an earlier one be declared lost at once (RFC 9002 §6.1.2), and is not lost in the
/// same burst; the retransmission follows just before the second.
const PROBE_DELAYS: [f32; 2] = [0.125, 1.375];

/// Messages after which the path's loss is checked again.
const LOSS_CHECK_MESSAGES: u32 = 8;

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    #[tokio::test(start_paused = true)]
    async fn a_message_and_its_retransmission_are_followed_by_a_probe() {
        let tail = TailProbe::default();

        tail.message_written(|| true);

        let ended = Instant::now();
        tail.due(|| RTT).await;
        assert_eq!(ended.elapsed(), RTT / 8);
        tail.due(|| RTT).await;
        assert_eq!(ended.elapsed(), RTT + 3 * RTT / 8);
        assert!(timeout(RTT, tail.due(|| RTT)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_last_of_consecutive_messages_is_followed_by_a_probe() {
        let tail = TailProbe::default();
        let since = Instant::now();
        for _ in 0..10 {
            tail.message_written(|| true);
            assert!(timeout(RTT / 10, tail.due(|| RTT)).await.is_err());
        }

        tail.due(|| RTT).await;

        assert_eq!(since.elapsed(), 9 * RTT / 10 + RTT / 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_message_is_probed_in_time_while_an_earlier_one_awaits_its_second_probe() {
        let tail = TailProbe::default();
        tail.message_written(|| true);
        tail.due(|| RTT).await;
        let (waiting, next) = (tail.due(|| RTT), async {
            sleep_until(Instant::now() + RTT / 2).await;
            tail.message_written(|| true);
            Instant::now()
        });

        let ((), ended) = tokio::join!(waiting, next);

        assert_eq!(ended.elapsed(), RTT / 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_path_without_loss_is_not_probed() {
        let tail = TailProbe::default();

        tail.message_written(|| false);

        assert!(timeout(RTT, tail.due(|| RTT)).await.is_err());
    }
}
