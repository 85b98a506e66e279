//! A delivery-rate congestion controller in the manner of BBR: it models the path and derives the
//! congestion window from the model.
//!
//! Loss below [`MAX_RANDOM_LOSS`] is not treated as congestion; a standing queue is. The bottleneck
//! rate is probed by sending slightly more for a round trip and checking whether the delivery rate
//! rises or a queue builds; then the queue is drained. A queue that draining does not remove
//! belongs to competing traffic, and then the controller holds its share.
//!
//! quinn paces at 1.25 × window / smoothed RTT, so the window is the only control there is.

mod config;
mod controller;
mod delivery;
#[cfg(test)]
mod link_model;
mod memory;
mod owner;
mod path;
mod path_cache;
#[cfg(test)]
mod tests;
mod window;

use std::time::{Duration, Instant};

use quinn::congestion::Controller;

pub use self::config::Config;
use self::delivery::Delivery;
use self::memory::KnownPath;
pub use self::memory::PathMemory;
pub use self::owner::{CongestionOwner, SharedCongestionOwner};
use self::path::PathModel;
pub use self::path_cache::PathCache;

/// Return the bytes that the peer has acknowledged, as this connection's controller has counted
/// them; 0 for another controller.
pub(crate) fn delivered(controller: Box<dyn Controller>) -> u64 {
    delivery(controller).map_or(0, |delivery| delivery.delivered)
}

/// Return the same count if nothing is in flight, or `None`.
pub(crate) fn idle_at(controller: Box<dyn Controller>) -> Option<u64> {
    let delivery = delivery(controller)?;
    delivery.is_idle().then_some(delivery.delivered)
}

fn delivery(controller: Box<dyn Controller>) -> Option<Delivery> {
    let model = controller.into_any().downcast::<RateModel>().ok()?;
    Some(model.delivery)
}

#[derive(Clone)]
struct RateModel {
    initial_window: u64,
    min_window: u64,
    memory: Option<PathMemory>,
    congestion_owner: SharedCongestionOwner,
    /// Set if TCP alone controlled congestion when packets were last acknowledged.
    tcp_controlled: bool,
    /// Time of the last acknowledgement, or of the first packet after an idle period.
    acked_at: Instant,
    /// Set when acknowledgements are overdue while TCP controls congestion, so that no more than an
    /// initial window may be sent.
    acks_overdue: bool,
    /// An earlier connection's measurement of this path, until the first RTT sample to check it
    /// against.
    known_path: Option<KnownPath>,
    window: u64,
    path: PathModel,
    delivery: Delivery,
    smoothed_rtt: Duration,
    stage: Stage,
    stage_since: Instant,
    /// End of the last round that was not application-limited.
    filled_at: Instant,
    /// Rounds since the stage began.
    rounds: u32,
    /// Delivered bytes at the round's start: it ends when a packet sent after that is acknowledged.
    round_end: u64,
    /// Set if this round was limited by the window rather than by the application.
    window_used: bool,
    /// [`Self::window_used`] of the previous round.
    window_was_used: bool,
    /// Set if a rate sample of this round was application-limited.
    app_limited: bool,
    /// Bytes acknowledged in the current batch.
    acked_bytes: u64,
    /// Delivery rate when the stage began, in bytes per second.
    rate_before: f64,
    /// Consecutive acknowledgements that met a queue.
    queued_acks: u32,
    /// Lowest RTT of this round.
    round_min_rtt: Duration,
    /// RTTs of the packets that were sent in this stage.
    stage_rtts: RttSum,
}

#[derive(Clone, Copy, Default)]
struct RttSum {
    count: u32,
    sum: Duration,
}

/// Stage of the controller, like a state of BBR's state machine.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Stage {
    /// Grow in each round until a queue builds or the rate stops growing (BBR's Startup). With
    /// `fast_startup`, on an unknown path, the window quadruples per round at first and doubles
    /// later; otherwise it grows from what is known of the path.
    Startup {
        rate: f64,
        flat_rounds: u32,
        fast_startup: bool,
    },
    /// Send at the path's delivery rate.
    Cruise { rounds: u32 },
    /// Send more for a round, to see whether the delivery rate rises (BBR's ProbeBW_UP).
    Probe,
    /// Send less, so that the probe's queue drains and `min_rtt` becomes visible (ProbeBW_DOWN).
    DrainProbe,
    /// Send next to nothing, because of a long queue, until what is in flight would pass without
    /// one.
    Drain,
    /// Check whether the queue is gone after a drain; what is left of it is competing traffic's.
    Verify,
}

impl Stage {
    /// First stage, on a path of which nothing is known.
    const FIRST: Self = Self::Startup {
        rate: 0.0,
        flat_rounds: 0,
        fast_startup: true,
    };
}

impl RateModel {
    fn new(config: &Config, mtu: u64, now: Instant) -> Self {
        Self {
            initial_window: config.initial_window,
            min_window: config.min_window,
            known_path: config.memory.as_ref().and_then(PathMemory::recall),
            memory: config.memory.clone(),
            congestion_owner: config.congestion_owner.clone(),
            tcp_controlled: false,
            acked_at: now,
            acks_overdue: false,
            window: config.initial_window,
            path: PathModel::new(mtu, now),
            delivery: Delivery::new(now),
            smoothed_rtt: DEFAULT_RTT,
            stage: Stage::FIRST,
            stage_since: now,
            filled_at: now,
            rounds: 0,
            round_end: 0,
            window_used: false,
            window_was_used: false,
            app_limited: false,
            acked_bytes: 0,
            rate_before: 0.0,
            queued_acks: 0,
            round_min_rtt: Duration::MAX,
            stage_rtts: RttSum::default(),
        }
    }

    /// Start over on a new path; only what earlier connections have measured on it is kept.
    fn reset_path(&mut self, now: Instant) {
        self.known_path = self.memory.as_ref().and_then(PathMemory::recall);
        self.window = self.initial_window;
        self.path = PathModel::new(self.path.mtu, now);
        self.enter(Stage::FIRST, now);
    }

    fn enter(&mut self, stage: Stage, now: Instant) {
        self.stage = stage;
        self.stage_since = now;
        self.rounds = 0;
        self.round_end = self.delivery.delivered;
        self.rate_before = self.path.rate();
        self.queued_acks = 0;
        self.stage_rtts = RttSum::default();
        self.round_min_rtt = Duration::MAX;
    }

    fn cruise(&mut self, now: Instant) {
        if let Some(memory) = &self.memory {
            memory.store(self.path.rate(), self.path.min_rtt(), now);
        }
        // Connections that probe in step learn nothing from each other: the bytes delivered so far
        // serve as a cheap random number.
        let factor = if self.cruise_reveals_bandwidth() {
            SLOW_LINK_PROBE_FACTOR
        } else {
            1
        };
        let rounds = factor * CRUISE_ROUNDS + (self.delivery.delivered / self.path.mtu % 4) as u32;
        self.enter(Stage::Cruise { rounds }, now);
    }

    /// Report whether the window, not the application, limits what is sent. If it does not, a queue
    /// is not ours: it may even be in the other direction, where acknowledgements wait.
    fn fills_window(&self) -> bool {
        self.window_used || self.window_was_used
    }

    /// Return the acknowledgements to judge a queue by: those of half a window, within
    /// [`ACK_SAMPLES`].
    fn ack_samples(&self) -> u32 {
        (self.window / self.path.mtu / 4).clamp(ACK_SAMPLES.0, ACK_SAMPLES.1) as u32
    }

    fn on_ack_in_startup(&mut self, fast_startup: bool, now: Instant, rtt: Duration) {
        let mut limit = (self.path.min_rtt() / 8).clamp(STARTUP_QUEUE.0, STARTUP_QUEUE.1);
        if fast_startup && self.window <= 2 * self.initial_window {
            // The first flights leave in bursts, which queue behind themselves.
            limit = limit.max(self.path.min_rtt() / 2);
        }
        if rtt > self.path.min_rtt() + self.margin() + limit && self.fills_window() {
            self.queued_acks += 1;
        } else {
            self.queued_acks = 0;
        }
        if self.queued_acks >= self.ack_samples() {
            self.enter(Stage::DrainProbe, now);
        }
    }

    fn on_tick(&mut self, now: Instant, in_flight: u64) {
        let (queue, limit) = (self.queue(), self.queue_limit());
        let elapsed = now.saturating_duration_since(self.stage_since);
        let timeout = 2 * self.path.min_rtt() + self.path.jitter();
        match self.stage {
            Stage::Cruise { .. } | Stage::Probe if queue > limit && self.fills_window() => {
                self.drain(now);
            }
            Stage::DrainProbe if queue > limit && elapsed > timeout => self.drain(now),
            Stage::Drain if queue < limit / 2 => self.cruise(now),
            Stage::Drain if in_flight > self.window => self.lower_rate(now),
            Stage::Drain => self.enter(Stage::Verify, now),
            _ => {}
        }
    }

    /// Take the RTT of a packet that was sent once our own queue had drained. After enough of them,
    /// the mean tells how much of the queue is competing traffic's.
    fn on_ack_after_drain(&mut self, now: Instant, rtt: Duration) {
        self.stage_rtts.count += 1;
        self.stage_rtts.sum += rtt;
        if self.stage_rtts.count < self.ack_samples() {
            return;
        }
        let mean = self.stage_rtts.sum / self.stage_rtts.count;
        let excess = mean.saturating_sub(self.path.min_rtt());
        if self.stage == Stage::Verify && excess > self.queue_limit() / 2 {
            self.path.reset_competing_queue(mean);
        } else {
            self.path.observe_competing_queue(mean);
        }
        self.cruise(now);
    }

    /// React to an ECN mark (RFC 3168): once in a probing cycle, reduce the rate and drain.
    fn on_mark(&mut self, now: Instant) {
        if let Stage::Startup { .. } | Stage::Cruise { .. } | Stage::Probe = self.stage {
            self.path.set_rate(self.path.rate() * ECN_GAIN, now);
            self.enter(Stage::DrainProbe, now);
        }
    }

    fn drain(&mut self, now: Instant) {
        self.lower_rate(now);
        self.enter(Stage::Drain, now);
    }

    /// Lower the rate estimate to what is delivered now, while our own queue keeps the path busy.
    fn lower_rate(&mut self, now: Instant) {
        let rtt = self.path.rtt_now().as_secs_f64();
        let min_rate = (MIN_WINDOW_PACKETS * self.path.mtu) as f64 / (2.0 * rtt);
        let rate = self
            .path
            .rate_now(now, self.delivery.delivered)
            .max(min_rate);
        self.path.set_rate(rate.min(self.path.rate()), now);
    }

    fn on_round(&mut self, now: Instant) {
        self.rounds += 1;
        if self.window_used || !self.app_limited {
            self.filled_at = now;
            self.advance(now);
            self.path.next_round();
        } else {
            self.limit_window_after_idle(now);
        }
        if self.path.take_loss() > Some(MAX_RANDOM_LOSS) {
            self.path.set_rate(self.path.rate() * HEAVY_LOSS_GAIN, now);
            if let Stage::Startup { .. } = self.stage {
                self.cruise(now);
            }
        }
        self.window_was_used = self.window_used;
        (self.window_used, self.app_limited) = (false, false);
        self.round_min_rtt = Duration::MAX;
        self.round_end = self.delivery.delivered;
    }

    /// Advance the stage after a round that was not application-limited.
    fn advance(&mut self, now: Instant) {
        let rate = self.path.rate();
        let queue = self.queue();
        match self.stage {
            // A round that did not fill the window cannot show that the path is full.
            Stage::Startup { .. } if !self.window_used => {}
            Stage::Startup {
                rate: before,
                flat_rounds,
                fast_startup,
            } => {
                let (rate, flat_rounds) = if rate > before * 1.25 {
                    (rate, 0)
                } else {
                    (before, flat_rounds + 1)
                };
                self.stage = Stage::Startup {
                    rate,
                    flat_rounds,
                    fast_startup,
                };
                if flat_rounds >= STARTUP_ROUNDS {
                    self.enter(Stage::DrainProbe, now);
                }
            }
            Stage::Cruise { rounds } => {
                let standing = self.standing_queue_delay();
                let baseline = self.path.min_rtt() + self.path.competing_queue();
                let queue = self.round_min_rtt.saturating_sub(baseline);
                let idle =
                    self.rounds >= 3 && queue < standing / 4 && self.path.jitter() < standing;
                if idle || self.rounds >= rounds {
                    self.enter(Stage::Probe, now);
                }
            }
            Stage::Probe => {
                if rate > self.rate_before * PROBE_SUCCESS && queue < self.expected_queue_delay() {
                    let (flat_rounds, fast_startup) = (0, false);
                    self.enter(
                        Stage::Startup {
                            rate,
                            flat_rounds,
                            fast_startup,
                        },
                        now,
                    );
                } else if self.rounds >= 2 {
                    self.enter(Stage::DrainProbe, now);
                }
            }
            Stage::DrainProbe | Stage::Drain | Stage::Verify => {}
        }
    }
}

/// Smallest window, in packets, so that acknowledgements keep coming when nothing seems to pass.
const MIN_WINDOW_PACKETS: u64 = 4;

/// Factor by which the rate must rise for a probe to have found spare bandwidth.
const PROBE_SUCCESS: f64 = 1.08;

/// Rounds between two probes: a probe's queue then takes a tenth of the time.
const CRUISE_ROUNDS: u32 = 8;

/// On slow links the standing queue already reveals spare bandwidth; probe this many times less
/// often.
const SLOW_LINK_PROBE_FACTOR: u32 = 4;

/// Rounds of start-up with less than 25 % growth after which the rate counts as found (BBR).
const STARTUP_ROUNDS: u32 = 2;

/// Consecutive acknowledgements that must meet a queue to end start-up (HyStart++, RFC 9406 §4.2):
/// minimum and maximum.
const ACK_SAMPLES: (u64, u64) = (3, 16);

/// Bounds of the queueing delay that ends start-up; between them, it is an eighth of `min_rtt` (RFC
/// 9406 §4.3).
const STARTUP_QUEUE: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(16));

/// Share of packets that may be lost for reasons other than congestion.
const MAX_RANDOM_LOSS: f64 = 0.2;

/// Factor applied to the rate after a loss above [`MAX_RANDOM_LOSS`].
const HEAVY_LOSS_GAIN: f64 = 0.7;

/// Factor applied to the rate after an ECN mark.
const ECN_GAIN: f64 = 0.85;

/// Smoothed RTT assumed until the first acknowledgement.
const DEFAULT_RTT: Duration = Duration::from_millis(100);
