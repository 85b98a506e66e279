//! What is known of the path: how fast it delivers, how long it takes without a queue, how much of
//! that time is noise, and what share it loses. Leaves what to do about it to the controller.

use std::time::{Duration, Instant};

use super::delivery::Sample;

/// A model of the path, kept up to date by acknowledgements.
#[derive(Clone)]
pub(super) struct PathModel {
    /// Bytes of a full packet.
    pub mtu: u64,
    /// Highest delivery rate of each of the last rounds, bytes per second.
    rates: [f64; RATE_ROUNDS],
    rates_at: usize,
    /// Packets sent before this met a path that is no more.
    rates_from: Instant,
    /// Lowest round trip of the span before, and of this one.
    base: [Duration; 2],
    base_since: Instant,
    earlier: Tick,
    tick: Tick,
    /// How far round trips were apart in each of the last ticks, in seconds.
    spreads: [f64; SPREAD_TICKS],
    spreads_at: usize,
    acked: u64,
    lost: u64,
    loss: f64,
}

/// A short while, about half a round trip.
#[derive(Clone, Copy)]
struct Tick {
    since: Instant,
    delivered: u64,
    shortest: Duration,
    longest: Duration,
    samples: u32,
}

impl PathModel {
    pub(super) fn new(mtu: u64, now: Instant) -> Self {
        Self {
            mtu,
            rates: [0.0; RATE_ROUNDS],
            rates_at: 0,
            rates_from: now,
            base: [Duration::MAX; 2],
            base_since: now,
            earlier: Tick::new(now, 0),
            tick: Tick::new(now, 0),
            spreads: [0.0; SPREAD_TICKS],
            spreads_at: 0,
            acked: 0,
            lost: 0,
            loss: 0.0,
        }
    }

    /// Take in the round trip of a packet that was sent at `sent`.
    pub(super) fn observe_rtt(&mut self, now: Instant, sent: Instant) -> Duration {
        let rtt = now.saturating_duration_since(sent);
        if now.saturating_duration_since(self.base_since) > BASE_SPAN {
            self.base = [self.base[1], rtt];
            self.base_since = now;
        }
        self.base[1] = self.base[1].min(rtt);
        self.tick.shortest = self.tick.shortest.min(rtt);
        self.tick.longest = self.tick.longest.max(rtt);
        self.tick.samples += 1;
        rtt
    }

    /// Take in a delivery rate, unless it is old or says only how little there was to send.
    pub(super) fn observe_rate(&mut self, sample: &Sample) {
        if sample.sent >= self.rates_from && (!sample.app_limited || sample.rate > self.rate()) {
            let best = &mut self.rates[self.rates_at];
            *best = best.max(sample.rate);
        }
    }

    /// Begin a new round of rates, which makes that of [`RATE_ROUNDS`] ago forgotten.
    pub(super) fn next_round(&mut self) {
        self.rates_at = (self.rates_at + 1) % RATE_ROUNDS;
        self.rates[self.rates_at] = 0.0;
    }

    /// Replace what is known of the rate.
    pub(super) fn set_rate(&mut self, rate: f64, now: Instant) {
        self.rates = [0.0; RATE_ROUNDS];
        self.rates[self.rates_at] = rate;
        self.rates_from = now;
    }

    /// Count packets for the loss rate.
    pub(super) fn observe_delivery(&mut self, acked: u64, lost: u64) {
        self.acked += acked;
        self.lost += lost;
    }

    /// The share lost since the last answer, once enough has been sent to tell.
    pub(super) fn take_loss(&mut self) -> Option<f64> {
        let sent = self.acked + self.lost;
        if sent < LOSS_PACKETS * self.mtu {
            return None;
        }
        let share = self.lost as f64 / sent as f64;
        self.loss += LOSS_WEIGHT * (share - self.loss);
        (self.acked, self.lost) = (0, 0);
        Some(share)
    }

    /// Whether a tick is over.
    pub(super) fn tick_is_over(&self, now: Instant) -> bool {
        let length = (self.base() / 2).max(TICK_MIN);
        now.saturating_duration_since(self.tick.since) > length
    }

    /// Begin the next tick.
    pub(super) fn next_tick(&mut self, now: Instant, delivered: u64) {
        if self.tick.samples >= FEW {
            // Packets leave in bursts of ten: that much spread is our own doing.
            let burst = (BURST * self.mtu) as f64 / self.rate().max(1.0);
            let spread = self
                .tick
                .longest
                .saturating_sub(self.tick.shortest)
                .as_secs_f64();
            self.spreads_at = (self.spreads_at + 1) % SPREAD_TICKS;
            self.spreads[self.spreads_at] = (spread - burst).max(0.0);
        }
        self.earlier = self.tick;
        self.tick = Tick::new(now, delivered);
    }

    /// Highest delivery rate of late, bytes per second.
    pub(super) fn rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    /// Delivery rate during this tick and the one before.
    pub(super) fn rate_now(&self, now: Instant, delivered: u64) -> f64 {
        let time = now
            .saturating_duration_since(self.earlier.since)
            .as_secs_f64();
        (delivered - self.earlier.delivered) as f64 / time.max(1e-6)
    }

    /// The round trip without a queue.
    pub(super) fn base(&self) -> Duration {
        self.base[0].min(self.base[1])
    }

    /// The lowest round trip during this tick and the one before.
    pub(super) fn rtt_now(&self) -> Duration {
        self.tick.shortest.min(self.earlier.shortest)
    }

    /// How long packets wait at the bottleneck now, in seconds; `None` if too few were seen.
    pub(super) fn queue(&self) -> Option<f64> {
        let known = self.tick.samples + self.earlier.samples >= FEW;
        known.then(|| self.rtt_now().saturating_sub(self.base()).as_secs_f64())
    }

    /// How far round trips are apart for reasons other than our own queue, in seconds.
    pub(super) fn noise(&self) -> f64 {
        self.spreads.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The share of packets that the path loses.
    pub(super) fn loss(&self) -> f64 {
        self.loss
    }

    /// Bytes that must be in flight to keep the path busy for `base` and `margin` seconds. Lost
    /// packets are in flight too, until they are missed.
    pub(super) fn in_flight(&self, base: Duration, margin: f64) -> f64 {
        self.rate() * (base.as_secs_f64() + margin) / (1.0 - self.loss.min(super::LOSS_TOLERATED))
    }
}

impl Tick {
    fn new(since: Instant, delivered: u64) -> Self {
        Self {
            since,
            delivered,
            shortest: Duration::MAX,
            longest: Duration::ZERO,
            samples: 0,
        }
    }
}

/// Rounds for which the best rate is remembered: longer than a probing cycle.
const RATE_ROUNDS: usize = 10;

/// The base is the lowest round trip of the last one to two spans (BBR: ten seconds).
const BASE_SPAN: Duration = Duration::from_secs(10);

/// The noise is the lowest spread of these: some of them meet a steady queue.
const SPREAD_TICKS: usize = 8;

/// Where round trips take microseconds, scheduling decides about what happens within this.
const TICK_MIN: Duration = Duration::from_millis(2);

/// Acknowledgements from which on a tick tells something.
const FEW: u32 = 4;

/// Packets that quinn's pacer lets go at once at least.
const BURST: u64 = 10;

/// Packets over which loss is judged: five bursts of five are no more than chance among 128.
const LOSS_PACKETS: u64 = 128;

/// Weight of the newest judgement.
const LOSS_WEIGHT: f64 = 0.5;
