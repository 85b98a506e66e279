//! What is known of the path: how fast it delivers, how long it takes without a queue, how much of
//! that time is noise, and what share it loses. Leaves what to do about it to the controller.

use std::time::{Duration, Instant};

use super::delivery::Sample;

/// A model of the path, kept up to date by acknowledgements.
#[derive(Clone)]
pub(crate) struct PathModel {
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
    /// What was left of the queue the last times when ours was gone.
    residues: [Duration; RESIDUES],
    residues_at: usize,
    earlier: Tick,
    tick: Tick,
    /// The highest jump from a round trip to the next in each of the last ticks.
    jumps: [Duration; JUMP_TICKS],
    jumps_at: usize,
    /// Their median.
    noise: Duration,
    last_rtt: Duration,
    acked: u64,
    lost: u64,
    /// The share lost while no queue but ours was seen.
    loss: f64,
    /// The share lost of late.
    loss_now: f64,
}

/// A short while, about half a round trip.
#[derive(Clone, Copy)]
struct Tick {
    since: Instant,
    delivered: u64,
    shortest: Duration,
    longest: Duration,
    jump: Duration,
    samples: u32,
}

impl PathModel {
    pub(crate) fn new(mtu: u64, now: Instant) -> Self {
        Self {
            mtu,
            rates: [0.0; RATE_ROUNDS],
            rates_at: 0,
            rates_from: now,
            base: [Duration::MAX; 2],
            base_since: now,
            residues: [Duration::ZERO; RESIDUES],
            residues_at: 0,
            earlier: Tick::new(now, 0),
            tick: Tick::new(now, 0),
            jumps: [Duration::ZERO; JUMP_TICKS],
            jumps_at: 0,
            noise: Duration::ZERO,
            last_rtt: Duration::MAX,
            acked: 0,
            lost: 0,
            loss: 0.0,
            loss_now: 0.0,
        }
    }

    /// Take in the round trip of a packet that was sent at `sent`.
    pub(crate) fn observe_rtt(&mut self, now: Instant, sent: Instant) -> Duration {
        let rtt = now.saturating_duration_since(sent).max(RTT_MIN);
        if now.saturating_duration_since(self.base_since) > BASE_SPAN {
            let before = self.base();
            self.base = [self.base[1], rtt];
            self.base_since = now;
            let risen = self.base().saturating_sub(before);
            self.residues = self.residues.map(|residue| residue.saturating_sub(risen));
        }
        self.base[1] = self.base[1].min(rtt);
        self.tick.shortest = self.tick.shortest.min(rtt);
        self.tick.longest = self.tick.longest.max(rtt);
        self.tick.jump = self.tick.jump.max(rtt.saturating_sub(self.last_rtt));
        self.last_rtt = rtt;
        self.tick.samples += 1;
        rtt
    }

    /// Take in a delivery rate, unless it is old or says only how little there was to send.
    pub(crate) fn observe_rate(&mut self, sample: &Sample) {
        if sample.sent >= self.rates_from && (!sample.app_limited || sample.rate > self.rate()) {
            let best = &mut self.rates[self.rates_at];
            *best = best.max(sample.rate);
        }
    }

    /// Begin a new round of rates, which makes that of [`RATE_ROUNDS`] ago forgotten.
    pub(crate) fn next_round(&mut self) {
        self.rates_at = (self.rates_at + 1) % RATE_ROUNDS;
        self.rates[self.rates_at] = 0.0;
    }

    /// Replace what is known of the rate.
    pub(crate) fn set_rate(&mut self, rate: f64, now: Instant) {
        self.rates = [0.0; RATE_ROUNDS];
        self.rates[self.rates_at] = rate;
        self.rates_from = now;
    }

    /// Count packets for the loss rate.
    pub(crate) fn observe_delivery(&mut self, acked: u64, lost: u64) {
        self.acked += acked;
        self.lost += lost;
    }

    /// The share lost since the last answer, once enough has been sent to tell.
    pub(crate) fn take_loss(&mut self) -> Option<f64> {
        let sent = self.acked + self.lost;
        if sent < LOSS_PACKETS * self.mtu {
            return None;
        }
        let share = self.lost as f64 / sent as f64;
        self.loss_now += LOSS_WEIGHT * (share - self.loss_now);
        if self.residue().is_zero() {
            self.loss = self.loss_now;
        }
        (self.acked, self.lost) = (0, 0);
        Some(share)
    }

    /// Whether a tick is over.
    pub(crate) fn tick_is_over(&self, now: Instant) -> bool {
        let length = (self.base() / 2).max(TICK_MIN).max(self.noise());
        self.tick.samples >= FEW && now.saturating_duration_since(self.tick.since) > length
    }

    /// Begin the next tick.
    pub(crate) fn next_tick(&mut self, now: Instant, delivered: u64) {
        // An acknowledgement is for two packets, the second of which waited for the first.
        let pair = Duration::from_secs_f64((2 * self.mtu) as f64 / self.rate().max(1.0));
        self.jumps_at = (self.jumps_at + 1) % JUMP_TICKS;
        self.jumps[self.jumps_at] = self.tick.jump.saturating_sub(pair);
        let mut jumps = self.jumps;
        jumps.sort_unstable();
        self.noise = jumps[JUMP_TICKS / 2];
        self.earlier = self.tick;
        self.tick = Tick::new(now, delivered);
    }

    /// Highest delivery rate of late, bytes per second.
    pub(crate) fn rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    /// Delivery rate during this tick and the one before.
    pub(crate) fn rate_now(&self, now: Instant, delivered: u64) -> f64 {
        let time = now
            .saturating_duration_since(self.earlier.since)
            .as_secs_f64();
        (delivered - self.earlier.delivered) as f64 / time.max(1e-6)
    }

    /// The round trip without a queue.
    pub(crate) fn base(&self) -> Duration {
        self.base[0].min(self.base[1])
    }

    /// The lowest round trip during this tick and the one before.
    pub(crate) fn rtt_now(&self) -> Duration {
        self.tick.shortest.min(self.earlier.shortest)
    }

    /// By how much round trips exceed the base without a queue of ours: they vary, or somebody else
    /// fills the queue.
    pub(crate) fn residue(&self) -> Duration {
        let mut residues = self.residues;
        residues.sort_unstable();
        residues[RESIDUES / 2]
    }

    /// Take in the mean round trip of packets that met no queue of ours.
    pub(crate) fn observe_residue(&mut self, mean: Duration) {
        self.residues_at = (self.residues_at + 1) % RESIDUES;
        self.residues[self.residues_at] = self.residue_of(mean);
    }

    /// The same, and forget earlier ones.
    pub(crate) fn reset_residue(&mut self, mean: Duration) {
        self.residues = [self.residue_of(mean); RESIDUES];
    }

    fn residue_of(&self, mean: Duration) -> Duration {
        let packets = (super::LEAST * self.mtu) as f64 / self.rate().max(1.0);
        let excess = mean.saturating_sub(self.base());
        let discount = RESIDUE_MIN + Duration::from_secs_f64(packets);
        excess.min(2 * excess.saturating_sub(discount))
    }

    /// The longest round trip during this tick and the one before.
    pub(crate) fn longest_now(&self) -> Duration {
        self.tick.longest.max(self.earlier.longest)
    }

    /// How long packets wait at the bottleneck, whoever filled its queue.
    pub(crate) fn queue(&self) -> Duration {
        self.rtt_now().saturating_sub(self.base())
    }

    /// How much round trips differ for reasons other than our own queue, which grows gradually: the
    /// median of the jumps of the last ticks.
    pub(crate) fn noise(&self) -> Duration {
        self.noise
    }

    /// The share of packets that a queue that others fill has no room for.
    pub(crate) fn overflow(&self) -> f64 {
        (self.loss_now - self.loss).max(0.0)
    }

    /// Bytes that must be in flight to keep the path busy for so long a round trip. Lost packets
    /// are in flight too, until they are missed.
    pub(crate) fn in_flight(&self, rtt: Duration) -> f64 {
        self.rate() * rtt.as_secs_f64() / (1.0 - self.loss.min(super::LOSS_TOLERATED))
    }
}

impl Tick {
    fn new(since: Instant, delivered: u64) -> Self {
        Self {
            since,
            delivered,
            shortest: Duration::MAX,
            longest: Duration::ZERO,
            jump: Duration::ZERO,
            samples: 0,
        }
    }
}

/// Rounds for which the best rate is remembered: longer than a probing cycle.
const RATE_ROUNDS: usize = 10;

/// The base is the lowest round trip of the last one to two spans (BBR: ten seconds).
const BASE_SPAN: Duration = Duration::from_secs(10);

/// What no network is faster than; it keeps divisions sane.
const RTT_MIN: Duration = Duration::from_micros(1);

/// Ticks by which the noise is judged.
const JUMP_TICKS: usize = 8;

/// The residue is the least of these: in between, others may have probed.
const RESIDUES: usize = 3;

/// Residues up to this, and up to the time of the least packets, are not counted: the queues that
/// connections see of each other would add up.
const RESIDUE_MIN: Duration = Duration::from_millis(4);

/// Where round trips take microseconds, scheduling decides about what happens within this.
const TICK_MIN: Duration = Duration::from_millis(2);

/// Acknowledgements in a tick at least. On a slow line there are not many more, and the lowest of three round
/// trips that vary is a long one often enough to pass for a queue.
const FEW: u32 = 6;

/// Packets over which loss is judged. At 5 % in bursts of five, a fifth of so many is lost by chance
/// once in a thousand times.
const LOSS_PACKETS: u64 = 256;

/// Weight of the newest judgement.
const LOSS_WEIGHT: f64 = 0.2;
