//! What one connection has sent of late, kept so that it can be sent again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quinn::udp::Transmit;
use tokio::time::Instant;

use super::saved_transmit;
use super::saved_transmit::SavedTransmit;

/// The latest packets of one connection, once somebody has asked for them.
#[derive(Default)]
pub(crate) struct SendLog {
    wanted: AtomicBool,
    /// Messages that take one packet each, with which what is sent next begins.
    messages: AtomicUsize,
    packets: Mutex<Packets>,
}

#[derive(Default)]
struct Packets {
    kept: VecDeque<Sent>,
    count: usize,
    /// When the latest packet was sent of those that there is no room for.
    gone: Option<Instant>,
    /// What was meant by of late, when somebody asked last.
    within: Duration,
    /// To be sent again behind what is sent next.
    due: Option<SavedTransmit>,
    /// Packets that were sent, as far as they are for some to be sent again that way.
    credit: usize,
}

/// The packets of one transmit.
struct Sent {
    at: Instant,
    packets: SavedTransmit,
}

impl SendLog {
    /// Note that a message is about to be sent that takes one packet.
    pub(crate) fn message_written(&self) {
        if self.wanted.load(Relaxed) {
            self.messages.fetch_add(1, Relaxed);
        }
    }

    /// Note what is sent, and send again what is due behind it: where much else is sent, there is no pause in
    /// which a message could be sent again.
    pub(crate) fn sent(&self, transmit: &Transmit, send: impl FnOnce(Transmit)) {
        if self.wanted.load(Relaxed) {
            self.with(|packets| {
                if let Some(due) = packets.due.take() {
                    send(due.transmit());
                }
                let now = Instant::now();
                packets.keep(transmit, now);
                if transmit.contents.len() > ACK_ONLY {
                    let messages = self.messages.swap(0, Relaxed);
                    let left = packets.repeat_first(messages, transmit, now);
                    self.messages.fetch_add(left, Relaxed);
                }
            });
        }
    }

    /// Send all again that was sent within this time, unless it is more than so many bytes, or than is kept: then
    /// it is no short message, or not alone. The first time nothing has been kept yet.
    pub(crate) fn resend_within(
        &self,
        within: Duration,
        most: u64,
        mut send: impl FnMut(Transmit),
    ) {
        if !self.wanted.swap(true, Relaxed) {
            return;
        }
        self.with(|packets| {
            packets.within = within;
            packets.due = None;
            let now = Instant::now();
            let is_old = |sent: &Sent| now.saturating_duration_since(sent.at) > within;
            let message = packets.kept.range(packets.kept.partition_point(is_old)..);
            let bytes: usize = message.clone().map(|sent| sent.packets.len()).sum();
            if bytes as u64 <= most && !packets.are_many(now) {
                message.for_each(|sent| send(sent.packets.transmit()));
            }
        });
    }

    fn with(&self, act: impl FnOnce(&mut Packets)) {
        act(&mut self.packets.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Packets {
    fn keep(&mut self, transmit: &Transmit, now: Instant) {
        let count = saved_transmit::packets(transmit);
        self.credit = (self.credit + count).min(MOST * SHARE);
        if count > ROOM {
            self.gone = Some(now);
            return;
        }
        let freed = if transmit.contents.len() <= ACK_ONLY {
            self.room_for_small()
        } else {
            self.count += count;
            self.room_for_large()
        };
        let buffer = freed.map_or_else(Vec::new, |sent| sent.packets.into_buffer());
        self.kept.push_back(Sent {
            at: now,
            packets: SavedTransmit::last(transmit, count, buffer),
        });
    }

    /// Have the first packets of a transmit sent again, if others are sent all the time. Returns how many of them
    /// come in the next.
    fn repeat_first(&mut self, wanted: usize, transmit: &Transmit, now: Instant) -> usize {
        let may = wanted.min(self.credit / SHARE);
        if may == 0 || !self.are_many(now) {
            return 0;
        }
        let repeated = may.min(saved_transmit::packets(transmit));
        self.credit -= repeated * SHARE;
        self.due = Some(SavedTransmit::first(transmit, repeated));
        may - repeated
    }

    /// Whether more packets were sent of late than there is room for.
    fn are_many(&self, now: Instant) -> bool {
        self.gone
            .is_some_and(|at| now.saturating_duration_since(at) <= self.within)
    }

    /// Acknowledgements come and go beside a message, and must not push it out.
    fn room_for_small(&mut self) -> Option<Sent> {
        let mut small = (0..self.kept.len())
            .rev()
            .filter(|at| self.kept[*at].is_small());
        let oldest = small.nth(SMALL - 1)?;
        self.kept.remove(oldest)
    }

    fn room_for_large(&mut self) -> Option<Sent> {
        let mut freed = None;
        while self.count > ROOM
            && let Some(oldest) = self.kept.pop_front()
        {
            if !oldest.is_small() {
                self.count -= saved_transmit::packets(&oldest.packets.transmit());
                self.gone = Some(oldest.at);
                freed = Some(oldest);
            }
        }
        freed
    }
}

impl Sent {
    fn is_small(&self) -> bool {
        self.packets.len() <= ACK_ONLY
    }
}

/// Packets that are kept: an answer of 15 KiB.
const ROOM: usize = 12;

/// Packets up to this size acknowledge what has come, even where some has not. They may also be the end of a
/// stream whose data went before.
const ACK_ONLY: usize = 80;

/// As many of those are kept.
const SMALL: usize = 4;

/// Among so many packets one is sent again at most.
const SHARE: usize = 8;

/// As many may be in a row.
const MOST: usize = 8;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use quinn::udp::EcnCodepoint;
    use tokio::time::advance;

    use super::*;

    const AGENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
    const A_WHILE: Duration = Duration::from_millis(10);
    const MUCH: u64 = 1 << 20;

    fn send(recent: &SendLog, packets: usize, fill: u8) {
        assert_eq!(send_behind(recent, packets, fill), None);
    }

    /// Send, and tell what is sent again behind it.
    fn send_behind(recent: &SendLog, packets: usize, fill: u8) -> Option<(usize, u8)> {
        let transmit = Transmit {
            destination: AGENT,
            ecn: Some(EcnCodepoint::Ect0),
            contents: &vec![fill; packets * 1_200],
            segment_size: (packets > 1).then_some(1_200),
            src_ip: None,
        };
        let mut again = None;
        recent.sent(&transmit, |transmit| {
            again = Some((transmit.contents.len(), transmit.contents[0]));
        });
        again
    }

    fn acknowledge(recent: &SendLog) {
        let transmit = Transmit {
            destination: AGENT,
            ecn: Some(EcnCodepoint::Ect0),
            contents: &[0; ACK_ONLY],
            segment_size: None,
            src_ip: None,
        };
        recent.sent(&transmit, |_| panic!("an acknowledgement alone"));
    }

    /// The transmits that are sent again: how many bytes, and of what.
    fn resend_within(recent: &SendLog, most: u64) -> Vec<(usize, u8)> {
        let mut sent = Vec::new();
        recent.resend_within(A_WHILE, most, |transmit| {
            assert_eq!(transmit.ecn, Some(EcnCodepoint::Ect0));
            assert_eq!(transmit.destination, AGENT);
            sent.push((transmit.contents.len(), transmit.contents[0]));
        });
        sent
    }

    /// What has been asked for packets once.
    fn wanted() -> SendLog {
        let recent = SendLog::default();
        assert!(resend_within(&recent, MUCH).is_empty());
        recent
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_of_late_is_sent_again_in_order() {
        let recent = wanted();
        send(&recent, 1, 1);
        advance(A_WHILE * 2).await;
        send(&recent, 8, 2);
        send(&recent, 1, 3);

        assert_eq!(resend_within(&recent, MUCH), [(9_600, 2), (1_200, 3)]);
        assert_eq!(resend_within(&recent, 10_799), [], "more than may be");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_of_a_long_message_is_sent_again() {
        let recent = wanted();
        (0..4).for_each(|_| send(&recent, 10, 1));
        send(&recent, 1, 2);

        assert_eq!(resend_within(&recent, MUCH), []);

        advance(A_WHILE * 2).await;
        send(&recent, 1, 3);
        assert_eq!(resend_within(&recent, MUCH), [(1_200, 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn acknowledgements_do_not_push_out_a_message() {
        let recent = wanted();
        send(&recent, 2, 1);
        (0..100).for_each(|_| acknowledge(&recent));

        let end = (ACK_ONLY, 0);
        assert_eq!(
            resend_within(&recent, MUCH),
            [(2_400, 1), end, end, end, end]
        );

        (0..6).for_each(|_| send(&recent, 2, 2));
        assert_eq!(
            resend_within(&recent, MUCH),
            [],
            "there was no room for the first"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn among_much_else_a_message_of_one_packet_goes_again_behind_the_next() {
        let recent = wanted();
        (0..4).for_each(|_| send(&recent, 10, 1));
        recent.message_written();
        send(&recent, 10, 2);

        assert_eq!(send_behind(&recent, 10, 3), Some((1_200, 2)));
        assert_eq!(send_behind(&recent, 10, 4), None);
    }

    #[tokio::test(start_paused = true)]
    async fn of_messages_that_end_together_each_goes_again() {
        let recent = wanted();
        (0..4).for_each(|_| send(&recent, 10, 1));
        (0..3).for_each(|_| recent.message_written());
        send(&recent, 2, 2);

        assert_eq!(send_behind(&recent, 2, 3), Some((2_400, 2)));
        assert_eq!(send_behind(&recent, 2, 4), Some((1_200, 3)));
        assert_eq!(send_behind(&recent, 2, 5), None);
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_messages_of_one_packet_few_go_again() {
        let recent = wanted();
        let mut sent_again = 0;
        for _ in 0..800 {
            recent.message_written();
            sent_again += usize::from(send_behind(&recent, 1, 1).is_some());
        }

        assert!((90..=100).contains(&sent_again), "{sent_again}");
    }

    #[tokio::test(start_paused = true)]
    async fn before_anybody_asks_nothing_is_kept() {
        let recent = SendLog::default();
        send(&recent, 1, 1);

        assert!(resend_within(&recent, MUCH).is_empty());
        assert!(resend_within(&recent, MUCH).is_empty());
    }
}
