//! One direction of the link: a drop-tail queue, a rate, then loss, delay and every other trouble.
//!
//! Pure: given when a packet arrives and how long it is, it says when each of its copies comes out.

use std::{collections::VecDeque, time::Duration};

use fastrand::Rng;

use crate::{
    loss::{Loss, happens},
    rate::Rate,
    stats::Stats,
};

/// What one direction does to packets.
#[derive(Clone, Debug)]
pub struct Shape {
    pub rate: Rate,
    /// The queue's length in time at the peak rate; it is kept in bytes, as in real routers.
    pub queue: Duration,
    pub delay: Duration,
    /// Up to this much is added to the delay, evenly distributed; the order is kept.
    pub jitter: Duration,
    pub loss: Loss,
    /// Probability that a packet is held back by `hold`, so that later ones overtake it.
    pub reorder: f64,
    pub hold: Duration,
    /// Probability that a packet comes out twice.
    pub duplicate: f64,
    /// Probability that one bit of a packet is flipped.
    pub corrupt: f64,
    pub seed: u64,
}

/// The state of one direction.
#[derive(Debug)]
pub struct Path {
    shape: Shape,
    /// None if the link has no rate, and so never a queue.
    queue_bytes: Option<usize>,
    /// When each queued packet will have left the queue, and its length.
    queue: VecDeque<(Duration, usize)>,
    queued: usize,
    /// When the line is free again.
    free_at: Duration,
    /// When the last packet in order comes out.
    last_due: Duration,
    lost_last: bool,
    rng: Rng,
    stats: Stats,
    stats_since: Duration,
}

/// What became of a packet: it is lost, comes out once, or twice.
#[derive(Debug, Default, PartialEq)]
pub struct Fate {
    pub copies: [Option<Copy>; 2],
}

/// One packet that comes out at the far end.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    pub due: Duration,
    pub flipped_bit: Option<usize>,
}

impl Path {
    pub fn new(shape: Shape) -> Self {
        let queue_bytes = shape.rate.peak().map(|peak| {
            let bytes = peak as f64 / 8.0 * shape.queue.as_secs_f64();
            (bytes as usize).max(SHORTEST_QUEUE)
        });
        Self {
            rng: Rng::with_seed(shape.seed),
            shape,
            queue_bytes,
            queue: VecDeque::new(),
            queued: 0,
            free_at: Duration::ZERO,
            last_due: Duration::ZERO,
            lost_last: false,
            stats: Stats::default(),
            stats_since: Duration::ZERO,
        }
    }

    /// Decide what becomes of a packet of `length` bytes that arrives at `now`.
    pub fn admit(&mut self, now: Duration, length: usize) -> Fate {
        self.stats.packets += 1;
        self.stats.bytes += length as u64;
        let Some(sent) = self.enqueue(now, length) else {
            self.stats.overflowed += 1;
            return Fate::default();
        };
        let lost = self.shape.loss.loses(&mut self.rng);
        let burst_begins = lost && !self.lost_last;
        self.lost_last = lost;
        if lost {
            self.stats.lost += 1;
            self.stats.bursts += u64::from(burst_begins);
            return Fate::default();
        }
        self.stats.carried += length as u64;
        let due = self.due(sent);
        let flipped_bit = happens(self.shape.corrupt, &mut self.rng).then(|| {
            self.stats.corrupted += 1;
            self.rng.usize(..length.max(1) * 8)
        });
        let copy = Some(Copy { due, flipped_bit });
        let again = happens(self.shape.duplicate, &mut self.rng);
        self.stats.duplicated += u64::from(again);
        Fate {
            copies: [copy.clone(), copy.filter(|_| again)],
        }
    }

    /// Count a packet that meets a link which is cut.
    pub fn refuse(&mut self, length: usize) {
        self.stats.packets += 1;
        self.stats.bytes += length as u64;
        self.stats.refused += 1;
    }

    /// Hand out the counters and start them afresh.
    pub fn take_stats(&mut self, now: Duration) -> Stats {
        let mut stats = std::mem::take(&mut self.stats);
        stats.capacity = self.shape.rate.capacity(self.stats_since, now);
        self.stats_since = now;
        stats
    }

    /// When the packet has left the queue and the line; none if there is no room for it.
    fn enqueue(&mut self, now: Duration, length: usize) -> Option<Duration> {
        let Some(room) = self.queue_bytes else {
            return Some(now);
        };
        while let Some(&(gone, bytes)) = self.queue.front() {
            if gone > now {
                break;
            }
            self.queue.pop_front();
            self.queued -= bytes;
        }
        if self.queued + length > room {
            return None;
        }
        let start = self.free_at.max(now);
        self.free_at = self.shape.rate.finish(start, length);
        self.queue.push_back((self.free_at, length));
        self.queued += length;
        self.stats.waits.record(start - now);
        Some(self.free_at)
    }

    /// When a packet that left the line at `sent` comes out.
    fn due(&mut self, sent: Duration) -> Duration {
        let jitter = if self.shape.jitter.is_zero() {
            Duration::ZERO
        } else {
            self.shape.jitter.mul_f64(self.rng.f64())
        };
        let in_order = (sent + self.shape.delay + jitter).max(self.last_due);
        if happens(self.shape.reorder, &mut self.rng) {
            self.stats.reordered += 1;
            return in_order + self.shape.hold;
        }
        self.last_due = in_order;
        in_order
    }
}

/// Two full packets: with less, a link of a low rate and a short queue could pass nothing at all.
const SHORTEST_QUEUE: usize = 3_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A perfect link of 20 ms; the tests spoil it.
    fn shape() -> Shape {
        Shape {
            rate: "0".parse().expect("a test's own rate"),
            queue: ms(100),
            delay: ms(20),
            jitter: ms(0),
            loss: Loss::independent(0.0),
            reorder: 0.0,
            hold: ms(5),
            duplicate: 0.0,
            corrupt: 0.0,
            seed: 1,
        }
    }

    /// When each of `count` packets, sent a millisecond apart, comes out.
    fn dues(path: &mut Path, count: u64) -> Vec<Duration> {
        (0..count)
            .flat_map(|n| path.admit(ms(n), 1_000).copies)
            .flatten()
            .map(|copy| copy.due)
            .collect()
    }

    #[test]
    fn a_perfect_link_only_delays() {
        let mut path = Path::new(shape());

        assert_eq!(dues(&mut path, 3), [ms(20), ms(21), ms(22)]);
    }

    #[test]
    fn a_rate_spaces_packets_and_its_queue_overflows() {
        // 1,000 bytes take 8 ms at 1 Mbit/s; 40 ms of queue are 5,000 bytes.
        let mut path = Path::new(Shape {
            rate: "1".parse().expect("a test's own rate"),
            queue: ms(40),
            ..shape()
        });

        let burst: Vec<_> = (0..7)
            .map(|_| path.admit(ms(0), 1_000).copies[0].clone())
            .collect();

        let due = |n: usize| burst[n].as_ref().map(|copy| copy.due);
        assert_eq!((due(0), due(4)), (Some(ms(28)), Some(ms(60))));
        assert_eq!((due(5), due(6)), (None, None));
        // By 8 ms the first has left, and there is room for one again.
        assert_eq!(
            path.admit(ms(8), 1_000).copies[0]
                .as_ref()
                .map(|copy| copy.due),
            Some(ms(68))
        );
        let stats = path.take_stats(ms(100));
        assert_eq!(
            (stats.overflowed, stats.packets, stats.capacity),
            (2, 8, Some(12_500))
        );
    }

    #[test]
    fn jitter_keeps_the_order_and_its_bound() {
        let mut path = Path::new(Shape {
            jitter: ms(10),
            ..shape()
        });

        let dues = dues(&mut path, 1_000);

        assert!(dues.is_sorted());
        assert!(
            (0..)
                .zip(&dues)
                .all(|(n, due)| (ms(n + 20)..=ms(n + 30)).contains(due))
        );
    }

    #[test]
    fn a_packet_held_back_is_overtaken() {
        let mut path = Path::new(Shape {
            reorder: 0.1,
            ..shape()
        });

        let dues = dues(&mut path, 1_000);

        assert!(!dues.is_sorted());
        let held = (0..)
            .zip(&dues)
            .filter(|&(n, due)| *due == ms(n + 25))
            .count() as u64;
        assert_eq!(held, path.take_stats(ms(2_000)).reordered);
        assert!((50..200).contains(&held), "{held} of 1,000 were held back");
    }

    #[test]
    fn duplicates_and_flipped_bits_come_as_often_as_asked() {
        let mut path = Path::new(Shape {
            duplicate: 0.1,
            corrupt: 0.2,
            ..shape()
        });

        let copies: Vec<_> = (0..10_000)
            .flat_map(|n| path.admit(ms(n), 100).copies)
            .flatten()
            .collect();

        let stats = path.take_stats(ms(10_000));
        assert_eq!(copies.len() as u64, 10_000 + stats.duplicated);
        assert!(
            (900..1_100).contains(&stats.duplicated),
            "{} twice",
            stats.duplicated
        );
        assert!(
            (1_850..2_150).contains(&stats.corrupted),
            "{} spoilt",
            stats.corrupted
        );
        assert!(
            copies
                .iter()
                .all(|copy| copy.flipped_bit.is_none_or(|bit| bit < 800))
        );
    }

    #[test]
    fn counters_start_afresh_when_read() {
        let mut path = Path::new(shape());
        path.admit(ms(0), 100);

        assert_eq!(path.take_stats(ms(1)).bytes, 100);
        assert_eq!(path.take_stats(ms(2)).bytes, 0);
    }
}
