//! One direction of a bottleneck: a drop-tail queue, a rate, loss, delay and jitter.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Properties of one direction of a link.
#[derive(Clone)]
pub(crate) struct Link {
    /// Rate in bits per second, from each moment (counted from the start) on.
    pub rate: Vec<(Duration, f64)>,
    /// Queue size in bytes; more is dropped.
    pub queue: u64,
    /// Propagation delay, one way.
    pub delay: Duration,
    /// Largest additional delay, uniform from zero. Order is kept.
    pub jitter: Duration,
    /// Packets arrive only at multiples of this (Wi-Fi, or a busy receiver).
    pub bunch: Duration,
    /// Loss behind the queue.
    pub loss: Loss,
}

/// Model of packet loss.
#[derive(Clone, Copy)]
pub(crate) enum Loss {
    /// Loss of each packet with this probability.
    Independent(f64),
    /// Bursts of this mean length, and this share of all packets (Gilbert-Elliott).
    Bursts { share: f64, length: f64 },
}

impl Link {
    /// Create a link with this many Mbit/s, one-way delay, and queue (at that rate).
    pub(crate) fn new(mbit: f64, delay: Duration, queue: Duration) -> Self {
        Self {
            rate: vec![(Duration::ZERO, mbit * 1e6)],
            queue: (mbit * 1e6 / 8.0 * queue.as_secs_f64()) as u64,
            delay,
            jitter: Duration::ZERO,
            bunch: Duration::ZERO,
            loss: Loss::Independent(0.0),
        }
    }

    /// Return the bytes that the link could have carried between two moments.
    pub(crate) fn capacity(&self, from: Duration, to: Duration) -> f64 {
        let ends = self.rate.iter().skip(1).map(|&(at, _)| at).chain([to]);
        self.rate
            .iter()
            .zip(ends)
            .map(|(&(at, rate), end)| {
                let length = end.min(to).saturating_sub(at.max(from));
                rate / 8.0 * length.as_secs_f64()
            })
            .sum()
    }

    fn rate_at(&self, since_start: Duration) -> f64 {
        let next = self.rate.partition_point(|&(at, _)| at <= since_start);
        self.rate[next - 1].1
    }
}

/// A packet in flight, with the caller's data for the far end.
pub(crate) struct Packet<T> {
    pub bytes: u64,
    pub load: T,
}

/// A [`Link`] in use.
pub(crate) struct Pipe<T> {
    pub link: Link,
    start: Instant,
    waiting: VecDeque<(Instant, Packet<T>)>,
    waiting_bytes: u64,
    last_due: Instant,
    in_burst: bool,
    rng: Rng,
    /// Queueing delay of each packet, and when it left the queue.
    pub waits: Vec<(Instant, Duration)>,
    /// Packets dropped because the queue was full.
    pub overflowed: u64,
    /// Bytes that left the queue.
    pub carried: u64,
}

impl<T> Pipe<T> {
    pub(crate) fn new(link: Link, start: Instant, seed: u64) -> Self {
        Self {
            link,
            start,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            last_due: start,
            in_burst: false,
            rng: Rng(seed),
            waits: Vec::new(),
            overflowed: 0,
            carried: 0,
        }
    }

    /// Enqueue a packet. Return when the link must be [served](Self::serve), if it was idle.
    pub(crate) fn push(&mut self, now: Instant, packet: Packet<T>) -> Option<Instant> {
        if self.waiting_bytes + packet.bytes > self.link.queue && !self.waiting.is_empty() {
            self.overflowed += 1;
            return None;
        }
        self.waiting_bytes += packet.bytes;
        self.waiting.push_back((now, packet));
        (self.waiting.len() == 1).then(|| now + self.service_time(now))
    }

    /// Dequeue the first packet. Return when it arrives (unless it is lost), and when to serve the
    /// next.
    pub(crate) fn serve(&mut self, now: Instant) -> (Option<(Instant, T)>, Option<Instant>) {
        let (since, packet) = self.waiting.pop_front().expect("served only while busy");
        self.waiting_bytes -= packet.bytes;
        self.carried += packet.bytes;
        self.waits.push((now, now - since));
        let next = (!self.waiting.is_empty()).then(|| now + self.service_time(now));
        let arrival = (!self.lose()).then(|| (self.arrival(now), packet.load));
        (arrival, next)
    }

    /// Return how long a packet that arrived now would wait.
    pub(crate) fn backlog(&self, now: Instant) -> Duration {
        let rate = self.link.rate_at(now - self.start);
        Duration::from_secs_f64(self.waiting_bytes as f64 * 8.0 / rate)
    }

    fn service_time(&self, now: Instant) -> Duration {
        let bytes = self.waiting.front().map_or(0, |(_, packet)| packet.bytes);
        let rate = self.link.rate_at(now - self.start);
        Duration::from_secs_f64(bytes as f64 * 8.0 / rate)
    }

    fn lose(&mut self) -> bool {
        match self.link.loss {
            Loss::Independent(share) => share > 0.0 && self.rng.unit() < share,
            Loss::Bursts { share, length } => {
                let flip = if self.in_burst {
                    1.0 / length
                } else {
                    share / length / (1.0 - share)
                };
                self.in_burst ^= self.rng.unit() < flip;
                self.in_burst
            }
        }
    }

    fn arrival(&mut self, now: Instant) -> Instant {
        let jitter = self.link.jitter.mul_f64(self.rng.unit());
        let mut due = now + self.link.delay + jitter;
        if !self.link.bunch.is_zero() {
            let bunch = self.link.bunch.as_nanos();
            let bunches = (due - self.start).as_nanos().div_ceil(bunch);
            due = self.start + Duration::from_nanos((bunches * bunch) as u64);
        }
        self.last_due = self.last_due.max(due);
        self.last_due
    }
}

/// SplitMix64: the same numbers on every machine.
pub(crate) struct Rng(pub u64);

impl Rng {
    /// Return a number, uniform in `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
