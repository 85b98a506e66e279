//! What one connection has sent of late, kept so that it can be sent again.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quinn::udp::{EcnCodepoint, Transmit};
use tokio::time::Instant;

/// The latest packets of one connection, once somebody has asked for them.
#[derive(Default)]
pub(super) struct Recent {
    wanted: AtomicBool,
    packets: Mutex<Packets>,
}

#[derive(Default)]
struct Packets {
    kept: VecDeque<Kept>,
    count: usize,
    /// When the latest packet was sent of those that there is no room for.
    gone: Option<Instant>,
}

/// The packets of one transmit, or the last of them.
struct Kept {
    sent: Instant,
    segment: usize,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
    bytes: Vec<u8>,
}

impl Recent {
    /// Note what is sent.
    pub(super) fn sent(&self, transmit: &Transmit) {
        if self.wanted.load(Relaxed) {
            self.with(|packets| packets.keep(transmit, Instant::now()));
        }
    }

    /// Send all again that was sent within this time, unless it is more than so many bytes, or than is kept: then
    /// it is no short message, or not alone. The first time nothing has been kept yet.
    ///
    /// `send` gets transmits that lack their destination.
    pub(super) fn again(&self, within: Duration, most: u64, mut send: impl FnMut(Transmit)) {
        if !self.wanted.swap(true, Relaxed) {
            return;
        }
        self.with(|packets| {
            let now = Instant::now();
            let is_recent = |sent: Instant| now.saturating_duration_since(sent) <= within;
            let first = packets.kept.partition_point(|kept| !is_recent(kept.sent));
            let message = packets.kept.range(first..);
            let bytes: usize = message.clone().map(|kept| kept.bytes.len()).sum();
            if bytes as u64 <= most && !packets.gone.is_some_and(is_recent) {
                message.for_each(|kept| send(kept.transmit()));
            }
        });
    }

    fn with(&self, act: impl FnOnce(&mut Packets)) {
        act(&mut self.packets.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Packets {
    fn keep(&mut self, transmit: &Transmit, now: Instant) {
        let contents = transmit.contents;
        let segment = transmit.segment_size.unwrap_or(contents.len());
        let count = contents.len().div_ceil(segment);
        if count > ROOM {
            self.gone = Some(now);
            return;
        }
        let mut bytes = if contents.len() <= ACK_ONLY {
            self.room_for_small()
        } else {
            self.count += count;
            self.room_for_large()
        };
        bytes.clear();
        bytes.extend_from_slice(contents);
        self.kept.push_back(Kept {
            sent: now,
            segment,
            ecn: transmit.ecn,
            src_ip: transmit.src_ip,
            bytes,
        });
    }

    /// Acknowledgements come and go beside a message, and must not push it out.
    fn room_for_small(&mut self) -> Vec<u8> {
        let is_small = |kept: &Kept| kept.bytes.len() <= ACK_ONLY;
        let mut small = self
            .kept
            .iter()
            .rev()
            .enumerate()
            .filter(|(_, kept)| is_small(kept));
        match small.nth(SMALL - 1) {
            Some((from_back, _)) => {
                let at = self.kept.len() - 1 - from_back;
                self.kept
                    .remove(at)
                    .map_or_else(Vec::new, |kept| kept.bytes)
            }
            None => Vec::new(),
        }
    }

    fn room_for_large(&mut self) -> Vec<u8> {
        let mut freed = Vec::new();
        while self.count > ROOM
            && let Some(oldest) = self.kept.pop_front()
        {
            if oldest.bytes.len() > ACK_ONLY {
                self.count -= oldest.count();
                self.gone = Some(oldest.sent);
                freed = oldest.bytes;
            }
        }
        freed
    }
}

impl Kept {
    fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.segment)
    }

    fn transmit(&self) -> Transmit<'_> {
        Transmit {
            destination: NOWHERE,
            ecn: self.ecn,
            contents: &self.bytes,
            segment_size: (self.segment < self.bytes.len()).then_some(self.segment),
            src_ip: self.src_ip,
        }
    }
}

/// Packets that are kept: an answer of 15 KiB.
const ROOM: usize = 12;

/// Packets up to this size acknowledge what has come, even where some has not. They may also be the end of a
/// stream whose data went before.
const ACK_ONLY: usize = 80;

/// As many of those are kept.
const SMALL: usize = 4;

const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const A_WHILE: Duration = Duration::from_millis(10);
    const MUCH: u64 = 1 << 20;

    fn send(recent: &Recent, packets: usize, fill: u8) {
        recent.sent(&Transmit {
            destination: NOWHERE,
            ecn: Some(EcnCodepoint::Ect0),
            contents: &vec![fill; packets * 1_200],
            segment_size: (packets > 1).then_some(1_200),
            src_ip: None,
        });
    }

    fn acknowledge(recent: &Recent) {
        recent.sent(&Transmit {
            destination: NOWHERE,
            ecn: Some(EcnCodepoint::Ect0),
            contents: &[0; ACK_ONLY],
            segment_size: None,
            src_ip: None,
        });
    }

    /// The transmits that are sent again: how many bytes, and of what.
    fn again(recent: &Recent, most: u64) -> Vec<(usize, u8)> {
        let mut sent = Vec::new();
        recent.again(A_WHILE, most, |transmit| {
            assert_eq!(transmit.ecn, Some(EcnCodepoint::Ect0));
            sent.push((transmit.contents.len(), transmit.contents[0]));
        });
        sent
    }

    /// What has been asked for packets once.
    fn wanted() -> Recent {
        let recent = Recent::default();
        assert!(again(&recent, MUCH).is_empty());
        recent
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_of_late_is_sent_again_in_order() {
        let recent = wanted();
        send(&recent, 1, 1);
        advance(A_WHILE * 2).await;
        send(&recent, 8, 2);
        send(&recent, 1, 3);

        assert_eq!(again(&recent, MUCH), [(9_600, 2), (1_200, 3)]);
        assert_eq!(again(&recent, 10_799), [], "more than may be");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_of_a_long_message_is_sent_again() {
        let recent = wanted();
        (0..4).for_each(|_| send(&recent, 10, 1));
        send(&recent, 1, 2);

        assert_eq!(again(&recent, MUCH), []);

        advance(A_WHILE * 2).await;
        send(&recent, 1, 3);
        assert_eq!(again(&recent, MUCH), [(1_200, 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn acknowledgements_do_not_push_out_a_message() {
        let recent = wanted();
        send(&recent, 2, 1);
        (0..100).for_each(|_| acknowledge(&recent));

        let end = (ACK_ONLY, 0);
        assert_eq!(again(&recent, MUCH), [(2_400, 1), end, end, end, end]);

        (0..6).for_each(|_| send(&recent, 2, 2));
        assert_eq!(again(&recent, MUCH), [], "there was no room for the first");
    }

    #[tokio::test(start_paused = true)]
    async fn before_anybody_asks_nothing_is_kept() {
        let recent = Recent::default();
        send(&recent, 1, 1);

        assert!(again(&recent, MUCH).is_empty());
        assert!(again(&recent, MUCH).is_empty());
    }
}
