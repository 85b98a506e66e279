//! Model of the path: delivery rate, minimum RTT, jitter, competing queue and loss. What to do
//! about them is left to the controller.

use std::time::{Duration, Instant};

use super::delivery::Sample;

/// Model of the path, updated by acknowledgements.
#[derive(Clone)]
pub(crate) struct PathModel {
    /// Size of a full packet, in bytes.
    pub mtu: u64,
    /// Highest delivery rate of each of the last [`RATE_ROUNDS`] rounds, in bytes per second.
    rates: [f64; RATE_ROUNDS],
    rates_at: usize,
    /// Send time before which packets are ignored, because the path has changed since.
    rates_since: Instant,
    /// Lowest RTT of the previous [`MIN_RTT_WINDOW`], and of the current one.
    min_rtts: [Duration; 2],
    min_rtt_since: Instant,
    /// Last estimates of competing traffic's queueing delay, taken when our own queue had drained.
    competing_queues: [Duration; COMPETING_QUEUE_SAMPLES],
    competing_queues_at: usize,
    previous_tick: Tick,
    tick: Tick,
    /// Largest increase between consecutive RTTs in each of the last ticks.
    jumps: [Duration; JUMP_TICKS],
    jumps_at: usize,
    /// Median of `jumps`.
    jitter: Duration,
    last_rtt: Duration,
    acked: u64,
    lost: u64,
    /// Share lost while no competing queue was seen.
    random_loss: f64,
    /// Moving average of the share lost.
    recent_loss: f64,
}

/// A sampling interval of about half a round trip.
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
            rates_since: now,
            min_rtts: [Duration::MAX; 2],
            min_rtt_since: now,
            competing_queues: [Duration::ZERO; COMPETING_QUEUE_SAMPLES],
            competing_queues_at: 0,
            previous_tick: Tick::new(now, 0),
            tick: Tick::new(now, 0),
            jumps: [Duration::ZERO; JUMP_TICKS],
            jumps_at: 0,
            jitter: Duration::ZERO,
            last_rtt: Duration::MAX,
            acked: 0,
            lost: 0,
            random_loss: 0.0,
            recent_loss: 0.0,
        }
    }

    /// Record the RTT of a packet that was sent at `sent`, and return it.
    pub(crate) fn observe_rtt(&mut self, now: Instant, sent: Instant) -> Duration {
        let rtt = now.saturating_duration_since(sent).max(MIN_RTT_SAMPLE);
        if now.saturating_duration_since(self.min_rtt_since) > MIN_RTT_WINDOW {
            let before = self.min_rtt();
            self.min_rtts = [self.min_rtts[1], rtt];
            self.min_rtt_since = now;
            let risen = self.min_rtt().saturating_sub(before);
            self.competing_queues = self
                .competing_queues
                .map(|queue| queue.saturating_sub(risen));
        }
        self.min_rtts[1] = self.min_rtts[1].min(rtt);
        self.tick.shortest = self.tick.shortest.min(rtt);
        self.tick.longest = self.tick.longest.max(rtt);
        self.tick.jump = self.tick.jump.max(rtt.saturating_sub(self.last_rtt));
        self.last_rtt = rtt;
        self.tick.samples += 1;
        rtt
    }

    /// Record a delivery rate, unless it predates the last reset or is application-limited and
    /// lower.
    pub(crate) fn observe_rate(&mut self, sample: &Sample) {
        if sample.sent >= self.rates_since && (!sample.app_limited || sample.rate > self.rate()) {
            let best = &mut self.rates[self.rates_at];
            *best = best.max(sample.rate);
        }
    }

    /// Start a new round of rates, dropping that of [`RATE_ROUNDS`] ago.
    pub(crate) fn next_round(&mut self) {
        self.rates_at = (self.rates_at + 1) % RATE_ROUNDS;
        self.rates[self.rates_at] = 0.0;
    }

    /// Replace the rate estimate.
    pub(crate) fn set_rate(&mut self, rate: f64, now: Instant) {
        self.rates = [0.0; RATE_ROUNDS];
        self.rates[self.rates_at] = rate;
        self.rates_since = now;
    }

    /// Count acknowledged and lost bytes for the loss rate.
    pub(crate) fn observe_delivery(&mut self, acked: u64, lost: u64) {
        self.acked += acked;
        self.lost += lost;
    }

    /// Return the share lost since the last result, once [`LOSS_PACKETS`] have been sent.
    pub(crate) fn take_loss(&mut self) -> Option<f64> {
        let sent = self.acked + self.lost;
        if sent < LOSS_PACKETS * self.mtu {
            return None;
        }
        let share = self.lost as f64 / sent as f64;
        self.recent_loss += LOSS_WEIGHT * (share - self.recent_loss);
        if self.competing_queue().is_zero() {
            self.random_loss = self.recent_loss;
        }
        (self.acked, self.lost) = (0, 0);
        Some(share)
    }

    /// Report whether the tick is over.
    pub(crate) fn tick_is_over(&self, now: Instant) -> bool {
        let length = (self.min_rtt() / 2).max(MIN_TICK).max(self.jitter());
        self.tick.samples >= MIN_TICK_SAMPLES
            && now.saturating_duration_since(self.tick.since) > length
    }

    /// Start the next tick.
    pub(crate) fn next_tick(&mut self, now: Instant, delivered: u64) {
        // One acknowledgement covers two packets, the second of which waited for the first.
        let pair = Duration::from_secs_f64((2 * self.mtu) as f64 / self.rate().max(1.0));
        self.jumps_at = (self.jumps_at + 1) % JUMP_TICKS;
        self.jumps[self.jumps_at] = self.tick.jump.saturating_sub(pair);
        let mut jumps = self.jumps;
        jumps.sort_unstable();
        self.jitter = jumps[JUMP_TICKS / 2];
        self.previous_tick = self.tick;
        self.tick = Tick::new(now, delivered);
    }

    /// Return the highest recent delivery rate, in bytes per second.
    pub(crate) fn rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    /// Return the delivery rate during this tick and the previous one, in bytes per second.
    pub(crate) fn rate_now(&self, now: Instant, delivered: u64) -> f64 {
        let time = now
            .saturating_duration_since(self.previous_tick.since)
            .as_secs_f64();
        (delivered - self.previous_tick.delivered) as f64 / time.max(1e-6)
    }

    /// Return the minimum RTT: the path's round trip without a queue.
    pub(crate) fn min_rtt(&self) -> Duration {
        self.min_rtts[0].min(self.min_rtts[1])
    }

    /// Return the lowest RTT during this tick and the previous one.
    pub(crate) fn rtt_now(&self) -> Duration {
        self.tick.shortest.min(self.previous_tick.shortest)
    }

    /// Return the queueing delay that is not ours: RTTs exceed `min_rtt` by it although our queue
    /// is drained, because they vary or because competing traffic fills the queue.
    pub(crate) fn competing_queue(&self) -> Duration {
        let mut competing_queues = self.competing_queues;
        competing_queues.sort_unstable();
        competing_queues[COMPETING_QUEUE_SAMPLES / 2]
    }

    /// Record the mean RTT of packets that met no queue of ours.
    pub(crate) fn observe_competing_queue(&mut self, mean: Duration) {
        self.competing_queues_at = (self.competing_queues_at + 1) % COMPETING_QUEUE_SAMPLES;
        self.competing_queues[self.competing_queues_at] = self.competing_queue_of(mean);
    }

    /// Record it, replacing all earlier samples.
    pub(crate) fn reset_competing_queue(&mut self, mean: Duration) {
        self.competing_queues = [self.competing_queue_of(mean); COMPETING_QUEUE_SAMPLES];
    }

    fn competing_queue_of(&self, mean: Duration) -> Duration {
        let packets = (super::MIN_WINDOW_PACKETS * self.mtu) as f64 / self.rate().max(1.0);
        let excess = mean.saturating_sub(self.min_rtt());
        let allowance = COMPETING_QUEUE_ALLOWANCE + Duration::from_secs_f64(packets);
        excess.min(2 * excess.saturating_sub(allowance))
    }

    /// Return the highest RTT during this tick and the previous one.
    pub(crate) fn longest_now(&self) -> Duration {
        self.tick.longest.max(self.previous_tick.longest)
    }

    /// Return the queueing delay at the bottleneck, whoever caused it.
    pub(crate) fn queue(&self) -> Duration {
        self.rtt_now().saturating_sub(self.min_rtt())
    }

    /// Return how much RTTs vary for reasons other than our own queue, which grows gradually: the
    /// median of the last ticks' jumps.
    pub(crate) fn jitter(&self) -> Duration {
        self.jitter
    }

    /// Return the share of packets lost to a queue that competing traffic keeps full.
    pub(crate) fn overflow_loss(&self) -> f64 {
        (self.recent_loss - self.random_loss).max(0.0)
    }

    /// Return the bytes that must be in flight to keep the path busy for a round trip of `rtt`.
    /// Lost packets count as in flight until they are detected.
    pub(crate) fn in_flight(&self, rtt: Duration) -> f64 {
        self.rate() * rtt.as_secs_f64() / (1.0 - self.random_loss.min(super::MAX_RANDOM_LOSS))
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

/// Rounds whose best rate is kept: longer than a probing cycle.
const RATE_ROUNDS: usize = 10;

/// Window of the minimum-RTT filter, which spans the last one to two of them (BBR: ten seconds).
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);

/// Lower bound of an RTT sample; no network is faster, and it keeps divisions sane.
const MIN_RTT_SAMPLE: Duration = Duration::from_micros(1);

/// Ticks over which the jitter is taken.
const JUMP_TICKS: usize = 8;

/// Samples of the competing queue, of which the median counts: others may have been probing during
/// one.
const COMPETING_QUEUE_SAMPLES: usize = 3;

/// Queueing delay, besides the time that [`MIN_WINDOW_PACKETS`](super::MIN_WINDOW_PACKETS) take, that is not counted as
/// competing: otherwise the small queues that our connections see of each other would add up.
const COMPETING_QUEUE_ALLOWANCE: Duration = Duration::from_millis(4);

/// Shortest tick: where RTTs are microseconds, scheduling decides what happens within this.
const MIN_TICK: Duration = Duration::from_millis(2);

/// Fewest acknowledgements in a tick. A slow line has not many more, and the lowest of only three
/// RTTs that vary is often long enough to pass for a queue.
const MIN_TICK_SAMPLES: u32 = 6;

/// Packets per loss sample. At 5 % loss in bursts of five, a fifth of this many is lost by chance
/// once in a thousand samples.
const LOSS_PACKETS: u64 = 256;

/// Weight of the newest sample in the moving average of loss.
const LOSS_WEIGHT: f64 = 0.2;
