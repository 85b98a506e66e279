//! How many packets one transmit may have.

use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};

use quinn::udp::Transmit;

use super::kept;

/// As many as have been of use lately.
///
/// quinn makes room for all that a transmit may have before it knows how much there is to send, and each
/// connection keeps that room: 13 KiB per agent, most of which are idle.
#[derive(Debug)]
pub(super) struct Segments {
    allowed: AtomicUsize,
    /// How much speaks for more, or for fewer if it is negative.
    need: AtomicIsize,
}

impl Segments {
    pub(super) fn new() -> Self {
        Self {
            allowed: AtomicUsize::new(FEWEST),
            need: AtomicIsize::new(0),
        }
    }

    /// Return how many packets the next transmit may have.
    pub(super) fn allowed(&self) -> usize {
        self.allowed.load(Relaxed)
    }

    /// Learn from a transmit.
    pub(super) fn sent(&self, transmit: &Transmit) {
        let packets = kept::packets(transmit);
        let allowed = self.allowed();
        let need = match packets {
            full if full >= allowed => self.need.load(Relaxed) + FULL,
            half if half * 2 > allowed => return,
            _ => self.need.load(Relaxed) - 1,
        };
        match need {
            MORE.. => self.allow(allowed * 2),
            ..=FEWER => self.allow(allowed / 2),
            _ => self.need.store(need, Relaxed),
        }
    }

    fn allow(&self, packets: usize) {
        self.allowed.store(packets.clamp(FEWEST, MOST), Relaxed);
        self.need.store(0, Relaxed);
    }
}

/// Enough for an agent that says that it is there.
const FEWEST: usize = 2;

/// More than quinn ever puts into one.
const MOST: usize = 16;

/// One full transmit speaks for more as much as so many short ones speak against it: of a handshake's, one in
/// six is full.
const FULL: isize = 5;

/// When more are allowed: after three full transmits.
const MORE: isize = 3 * FULL;

/// When fewer are allowed.
const FEWER: isize = -64;

#[cfg(test)]
mod tests {
    use super::*;

    fn send(segments: &Segments, packets: usize) {
        segments.sent(&Transmit {
            destination: ([127, 0, 0, 1], 1).into(),
            ecn: None,
            contents: &vec![0; packets * 1_200],
            segment_size: (packets > 1).then_some(1_200),
            src_ip: None,
        });
    }

    #[test]
    fn whoever_sends_much_soon_may_send_it_at_once() {
        let segments = Segments::new();

        for _ in 0..9 {
            send(&segments, segments.allowed());
        }

        assert_eq!(segments.allowed(), MOST);
    }

    #[test]
    fn acknowledgements_between_long_transmits_change_nothing() {
        let segments = Segments::new();

        for _ in 0..100 {
            send(&segments, 10);
            (0..4).for_each(|_| send(&segments, 1));
        }

        assert_eq!(segments.allowed(), MOST);
    }

    #[test]
    fn agents_that_come_and_stay_idle_change_nothing() {
        let segments = Segments::new();

        for _ in 0..100 {
            send(&segments, 2);
            (0..5).for_each(|_| send(&segments, 1));
        }

        assert_eq!(segments.allowed(), FEWEST);
    }

    #[test]
    fn when_little_is_sent_little_room_is_made() {
        let segments = Segments::new();
        (0..10).for_each(|_| send(&segments, 10));

        (0..1_000).for_each(|_| send(&segments, 1));

        assert_eq!(segments.allowed(), FEWEST);
    }
}
