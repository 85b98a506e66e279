//! A log of the latest packets of one connection, for sending them again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quinn::udp::Transmit;
use tokio::time::Instant;

use super::saved_transmit;
use super::saved_transmit::SavedTransmit;

/// The latest packets of one connection. Nothing is recorded before the first [`resend_within`](Self::resend_within).
#[derive(Default)]
pub(crate) struct SendLog {
    enabled: AtomicBool,
    /// Single-packet messages written since the last transmit; they come first in the next one.
    single_packet_messages: AtomicUsize,
    packets: Mutex<Packets>,
}

#[derive(Default)]
struct Packets {
    saved: VecDeque<Sent>,
    /// Saved packets, without those that only acknowledge.
    count: usize,
    /// The send time of the latest packet that was evicted, or not saved for lack of room.
    evicted_at: Option<Instant>,
    /// The `within` of the latest `resend_within` call.
    within: Duration,
    /// Packets to resend after the next transmit.
    due: Option<SavedTransmit>,
    /// The duplication budget, in packets sent: each duplicate costs [`PACKETS_PER_DUPLICATE`], and
    /// [`MAX_BURST`] duplicates can be saved up.
    budget: usize,
}

/// The packets of one transmit.
struct Sent {
    at: Instant,
    packets: SavedTransmit,
}

impl SendLog {
    /// Note that a message that fits into one packet is about to be sent.
    pub(crate) fn message_written(&self) {
        if self.enabled.load(Relaxed) {
            self.single_packet_messages.fetch_add(1, Relaxed);
        }
    }

    /// Record a transmit, and resend the duplicates that are due after it: a busy connection has no pause in
    /// which a message could be resent.
    pub(crate) fn sent(&self, transmit: &Transmit, send: impl FnOnce(Transmit)) {
        if self.enabled.load(Relaxed) {
            self.with(|packets| {
                if let Some(due) = packets.due.take() {
                    send(due.transmit());
                }
                let now = Instant::now();
                packets.store(transmit, now);
                if transmit.contents.len() > MAX_ACK_SIZE {
                    let messages = self.single_packet_messages.swap(0, Relaxed);
                    let left = packets.schedule_duplicates(messages, transmit, now);
                    self.single_packet_messages.fetch_add(left, Relaxed);
                }
            });
        }
    }

    /// Resend everything that was sent within the given time, unless it is more than `max_bytes` or more than is
    /// saved: then it was no short message, or not alone. The first call only starts the recording.
    pub(crate) fn resend_within(
        &self,
        within: Duration,
        max_bytes: u64,
        mut send: impl FnMut(Transmit),
    ) {
        if !self.enabled.swap(true, Relaxed) {
            return;
        }
        self.with(|packets| {
            packets.within = within;
            packets.due = None;
            let now = Instant::now();
            let is_old = |sent: &Sent| now.saturating_duration_since(sent.at) > within;
            let message = packets.saved.range(packets.saved.partition_point(is_old)..);
            let bytes: usize = message.clone().map(|sent| sent.packets.len()).sum();
            if bytes as u64 <= max_bytes && !packets.is_busy(now) {
                message.for_each(|sent| send(sent.packets.transmit()));
            }
        });
    }

    fn with(&self, act: impl FnOnce(&mut Packets)) {
        act(&mut self.packets.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Packets {
    fn store(&mut self, transmit: &Transmit, now: Instant) {
        let count = saved_transmit::packets(transmit);
        self.budget = (self.budget + count).min(MAX_BURST * PACKETS_PER_DUPLICATE);
        if count > MAX_PACKETS {
            self.evicted_at = Some(now);
            return;
        }
        let freed = if transmit.contents.len() <= MAX_ACK_SIZE {
            self.make_room_for_ack()
        } else {
            self.count += count;
            self.make_room_for_data()
        };
        let buffer = freed.map_or_else(Vec::new, |sent| sent.packets.into_buffer());
        self.saved.push_back(Sent {
            at: now,
            packets: SavedTransmit::last(transmit, count, buffer),
        });
    }

    /// Schedule duplicates of the first packets of a transmit, if the connection is busy. Return how many of the
    /// `wanted` messages are to be duplicated from the next transmit.
    fn schedule_duplicates(&mut self, wanted: usize, transmit: &Transmit, now: Instant) -> usize {
        let may = wanted.min(self.budget / PACKETS_PER_DUPLICATE);
        if may == 0 || !self.is_busy(now) {
            return 0;
        }
        let repeated = may.min(saved_transmit::packets(transmit));
        self.budget -= repeated * PACKETS_PER_DUPLICATE;
        self.due = Some(SavedTransmit::first(transmit, repeated));
        may - repeated
    }

    /// Report whether more packets were sent recently than the log can hold.
    fn is_busy(&self, now: Instant) -> bool {
        self.evicted_at
            .is_some_and(|at| now.saturating_duration_since(at) <= self.within)
    }

    /// Evict the oldest acknowledgement if there are [`MAX_ACKS`]. Acknowledgements are sent beside a message, and
    /// must not evict its packets.
    fn make_room_for_ack(&mut self) -> Option<Sent> {
        let mut acks = (0..self.saved.len())
            .rev()
            .filter(|at| self.saved[*at].is_ack());
        let oldest = acks.nth(MAX_ACKS - 1)?;
        self.saved.remove(oldest)
    }

    /// Evict the oldest packets until at most [`MAX_PACKETS`] are left; return one of them, for its buffer.
    fn make_room_for_data(&mut self) -> Option<Sent> {
        let mut freed = None;
        while self.count > MAX_PACKETS
            && let Some(oldest) = self.saved.pop_front()
        {
            if !oldest.is_ack() {
                self.count -= saved_transmit::packets(&oldest.packets.transmit());
                self.evicted_at = Some(oldest.at);
                freed = Some(oldest);
            }
        }
        freed
    }
}

impl Sent {
    fn is_ack(&self) -> bool {
        self.packets.len() <= MAX_ACK_SIZE
    }
}

/// The most packets that are saved: a response of 15 KiB.
const MAX_PACKETS: usize = 12;

/// The largest packet that counts as a bare acknowledgement, in bytes: room for an ACK frame with gaps. Such a
/// packet may also be the end of a stream whose data was sent before.
const MAX_ACK_SIZE: usize = 80;

/// ACK-sized transmits to keep.
const MAX_ACKS: usize = 4;

/// At most one duplicate is sent per this many packets.
const PACKETS_PER_DUPLICATE: usize = 8;

/// The most duplicates that can be saved up, and so sent in a row.
const MAX_BURST: usize = 8;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use quinn::udp::EcnCodepoint;
    use tokio::time::advance;

    use super::*;

    const AGENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
    const A_WHILE: Duration = Duration::from_millis(10);
    const MUCH: u64 = 1 << 20;

    fn send(log: &SendLog, packets: usize, fill: u8) {
        assert_eq!(send_and_resend(log, packets, fill), None);
    }

    /// Send packets, and return the length and the first byte of what is resent after them.
    fn send_and_resend(log: &SendLog, packets: usize, fill: u8) -> Option<(usize, u8)> {
        let transmit = Transmit {
            destination: AGENT,
            ecn: Some(EcnCodepoint::Ect0),
            contents: &vec![fill; packets * 1_200],
            segment_size: (packets > 1).then_some(1_200),
            src_ip: None,
        };
        let mut again = None;
        log.sent(&transmit, |transmit| {
            again = Some((transmit.contents.len(), transmit.contents[0]));
        });
        again
    }

    fn acknowledge(log: &SendLog) {
        let transmit = Transmit {
            destination: AGENT,
            ecn: Some(EcnCodepoint::Ect0),
            contents: &[0; MAX_ACK_SIZE],
            segment_size: None,
            src_ip: None,
        };
        log.sent(&transmit, |_| panic!("an acknowledgement alone"));
    }

    /// Return the length and the first byte of each transmit that is resent.
    fn resend_within(log: &SendLog, max_bytes: u64) -> Vec<(usize, u8)> {
        let mut sent = Vec::new();
        log.resend_within(A_WHILE, max_bytes, |transmit| {
            assert_eq!(transmit.ecn, Some(EcnCodepoint::Ect0));
            assert_eq!(transmit.destination, AGENT);
            sent.push((transmit.contents.len(), transmit.contents[0]));
        });
        sent
    }

    /// Create a log that records.
    fn enabled() -> SendLog {
        let log = SendLog::default();
        assert!(resend_within(&log, MUCH).is_empty());
        log
    }

    #[tokio::test(start_paused = true)]
    async fn recent_packets_are_resent_in_order() {
        let log = enabled();
        send(&log, 1, 1);
        advance(A_WHILE * 2).await;
        send(&log, 8, 2);
        send(&log, 1, 3);

        assert_eq!(resend_within(&log, MUCH), [(9_600, 2), (1_200, 3)]);
        assert_eq!(resend_within(&log, 10_799), [], "more than may be");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_of_a_long_message_is_resent() {
        let log = enabled();
        (0..4).for_each(|_| send(&log, 10, 1));
        send(&log, 1, 2);

        assert_eq!(resend_within(&log, MUCH), []);

        advance(A_WHILE * 2).await;
        send(&log, 1, 3);
        assert_eq!(resend_within(&log, MUCH), [(1_200, 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn acknowledgements_do_not_evict_a_message() {
        let log = enabled();
        send(&log, 2, 1);
        (0..100).for_each(|_| acknowledge(&log));

        let end = (MAX_ACK_SIZE, 0);
        assert_eq!(resend_within(&log, MUCH), [(2_400, 1), end, end, end, end]);

        (0..6).for_each(|_| send(&log, 2, 2));
        assert_eq!(
            resend_within(&log, MUCH),
            [],
            "there was no room for the first"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_busy_connection_a_single_packet_message_is_resent_after_the_next_transmit() {
        let log = enabled();
        (0..4).for_each(|_| send(&log, 10, 1));
        log.message_written();
        send(&log, 10, 2);

        assert_eq!(send_and_resend(&log, 10, 3), Some((1_200, 2)));
        assert_eq!(send_and_resend(&log, 10, 4), None);
    }

    #[tokio::test(start_paused = true)]
    async fn messages_that_end_together_are_all_resent() {
        let log = enabled();
        (0..4).for_each(|_| send(&log, 10, 1));
        (0..3).for_each(|_| log.message_written());
        send(&log, 2, 2);

        assert_eq!(send_and_resend(&log, 2, 3), Some((2_400, 2)));
        assert_eq!(send_and_resend(&log, 2, 4), Some((1_200, 3)));
        assert_eq!(send_and_resend(&log, 2, 5), None);
    }

    #[tokio::test(start_paused = true)]
    async fn duplicates_stay_within_the_budget() {
        let log = enabled();
        let mut sent_again = 0;
        for _ in 0..800 {
            log.message_written();
            sent_again += usize::from(send_and_resend(&log, 1, 1).is_some());
        }

        assert!((90..=100).contains(&sent_again), "{sent_again}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_recorded_before_the_first_request() {
        let log = SendLog::default();
        send(&log, 1, 1);

        assert!(resend_within(&log, MUCH).is_empty());
        assert!(resend_within(&log, MUCH).is_empty());
    }
}
