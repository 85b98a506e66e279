//! Our congestion controller: it keeps a model of the path and lets the window follow from it.
//!
//! Loss is not congestion unless it is heavy; a queue is. The rate is found by sending a little
//! more for a round trip and looking whether more arrives or a queue builds; then the queue is
//! drained. A queue that we cannot drain belongs to somebody else, and then we hold our ground.
//! quinn paces at 1.25 × window / smoothed RTT, so the window is the only handle.

mod config;
mod controller;
mod delivery;
mod kernel;
#[cfg(test)]
mod link_model;
mod memory;
mod path;
mod paths;
#[cfg(test)]
mod tests;
mod window;

use std::time::{Duration, Instant};

use quinn::congestion::Controller;

pub use self::config::Config;
use self::delivery::Delivery;
pub use self::kernel::{CongestionOwner, SharedCongestionOwner};
use self::memory::Known;
pub use self::memory::PathMemory;
use self::path::PathModel;
pub use self::paths::Paths;

/// Bytes that the peer has acknowledged, by what a connection's controller has seen.
pub(crate) fn delivered(controller: Box<dyn Controller>) -> u64 {
    delivery(controller).map_or(0, |delivery| delivery.delivered)
}

/// The same, if nothing is on its way to the peer.
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
    least_window: u64,
    memory: Option<PathMemory>,
    congestion_owner: SharedCongestionOwner,
    /// Whether congestion was the kernel's business alone when packets were last acknowledged.
    left_to_kernel: bool,
    /// When something was acknowledged last, or sent after a pause.
    acked_at: Instant,
    /// Whether what has been sent goes unacknowledged for so long that no more of it should be.
    unheard: bool,
    /// What was known of the path, until there is a round trip to compare.
    known: Option<Known>,
    window: u64,
    path: PathModel,
    delivery: Delivery,
    smoothed_rtt: Duration,
    stage: Stage,
    stage_since: Instant,
    /// When a round last showed how much the path delivers.
    filled_at: Instant,
    /// Rounds since the stage began.
    rounds: u32,
    /// A round ends when a packet is acknowledged that was sent after this much was delivered.
    round_end: u64,
    /// Whether the window, not the application, was what held us back in this round.
    window_used: bool,
    /// The same of the round before.
    was_used: bool,
    /// Whether a sample of this round was taken for want of data.
    app_limited: bool,
    /// Bytes acknowledged in the batch in progress.
    batch: u64,
    /// The rate when the stage began.
    rate_before: f64,
    /// Acknowledgements in a row that met a queue.
    queued: u32,
    /// Lowest round trip of this round.
    round_least: Duration,
    /// Round trips of packets that were sent in this stage.
    own: Tally,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    count: u32,
    sum: Duration,
}

/// What the controller is doing.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Stage {
    /// Sending more in each round, until a queue builds or the rate no longer grows. If nothing is known of the path
    /// it leaps: four times as much at first, twice as much then. Otherwise what is known is the measure.
    Startup {
        rate: f64,
        flat_rounds: u32,
        leaps: bool,
    },
    /// Sending at the rate of the path.
    Cruise { rounds: u32 },
    /// Sending more, to see whether more arrives.
    Probe,
    /// Sending less, so that the queue of a probe goes away and the base is seen.
    Relax,
    /// The queue is long: sending next to nothing until what is in flight would pass without one.
    Drain,
    /// Looking whether the queue is gone then. What is left of it is somebody else's.
    Verify,
}

impl Stage {
    /// The beginning, on a path of which nothing is known.
    const FIRST: Self = Self::Startup {
        rate: 0.0,
        flat_rounds: 0,
        leaps: true,
    };
}

impl RateModel {
    fn new(config: &Config, mtu: u64, now: Instant) -> Self {
        Self {
            initial_window: config.initial_window,
            least_window: config.least_window,
            known: config.memory.as_ref().and_then(PathMemory::recall),
            memory: config.memory.clone(),
            congestion_owner: config.congestion_owner.clone(),
            left_to_kernel: false,
            acked_at: now,
            unheard: false,
            window: config.initial_window,
            path: PathModel::new(mtu, now),
            delivery: Delivery::new(now),
            smoothed_rtt: RTT_UNKNOWN,
            stage: Stage::FIRST,
            stage_since: now,
            filled_at: now,
            rounds: 0,
            round_end: 0,
            window_used: false,
            was_used: false,
            app_limited: false,
            batch: 0,
            rate_before: 0.0,
            queued: 0,
            round_least: Duration::MAX,
            own: Tally::default(),
        }
    }

    /// Begin anew, on a path of which nothing is known but what earlier connections have found out.
    fn reset_path(&mut self, now: Instant) {
        self.known = self.memory.as_ref().and_then(PathMemory::recall);
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
        self.queued = 0;
        self.own = Tally::default();
        self.round_least = Duration::MAX;
    }

    fn cruise(&mut self, now: Instant) {
        if let Some(memory) = &self.memory {
            memory.note(self.path.rate(), self.path.base(), now);
        }
        // Connections that probe in step learn nothing from each other: what was delivered so far
        // serves as a die.
        let often = if self.cruise_probes() { SELDOM } else { 1 };
        let rounds = often * CRUISE_ROUNDS + (self.delivery.delivered / self.path.mtu % 4) as u32;
        self.enter(Stage::Cruise { rounds }, now);
    }

    /// Whether the window is what holds us back. If not, a queue is not of our making: it may even be that
    /// of the other direction, in which acknowledgements wait.
    fn fills_window(&self) -> bool {
        self.window_used || self.was_used
    }

    /// As many acknowledgements as there are for half a window, within reason.
    fn some_acks(&self) -> u32 {
        (self.window / self.path.mtu / 4).clamp(SOME_ACKS.0, SOME_ACKS.1) as u32
    }

    fn on_ack_in_startup(&mut self, leaps: bool, now: Instant, rtt: Duration) {
        let mut high = (self.path.base() / 8).clamp(STARTUP_QUEUE.0, STARTUP_QUEUE.1);
        if leaps && self.window <= 2 * self.initial_window {
            // The first flights leave in bursts, which wait for themselves.
            high = high.max(self.path.base() / 2);
        }
        if rtt > self.path.base() + self.margin() + high && self.fills_window() {
            self.queued += 1;
        } else {
            self.queued = 0;
        }
        if self.queued >= self.some_acks() {
            self.enter(Stage::Relax, now);
        }
    }

    fn on_tick(&mut self, now: Instant, in_flight: u64) {
        let (queue, high) = (self.queue(), self.queue_high());
        let elapsed = now.saturating_duration_since(self.stage_since);
        let patience = 2 * self.path.base() + self.path.noise();
        match self.stage {
            Stage::Cruise { .. } | Stage::Probe if queue > high && self.fills_window() => {
                self.drain(now);
            }
            Stage::Relax if queue > high && elapsed > patience => self.drain(now),
            Stage::Drain if queue < high / 2 => self.cruise(now),
            Stage::Drain if in_flight > self.window => self.lower_rate(now),
            Stage::Drain => self.enter(Stage::Verify, now),
            _ => {}
        }
    }

    /// Judge what packets met that were sent when no queue of ours was left.
    fn on_ack_when_relaxed(&mut self, now: Instant, rtt: Duration) {
        self.own.count += 1;
        self.own.sum += rtt;
        if self.own.count < self.some_acks() {
            return;
        }
        let mean = self.own.sum / self.own.count;
        let excess = mean.saturating_sub(self.path.base());
        if self.stage == Stage::Verify && excess > self.queue_high() / 2 {
            self.path.reset_residue(mean);
        } else {
            self.path.observe_residue(mean);
        }
        self.cruise(now);
    }

    /// A router has marked a packet instead of losing it (RFC 3168): once in a probing cycle, this
    /// is taken for a sign that there is too much of ours.
    fn on_mark(&mut self, now: Instant) {
        if let Stage::Startup { .. } | Stage::Cruise { .. } | Stage::Probe = self.stage {
            self.path.set_rate(self.path.rate() * MARKED, now);
            self.enter(Stage::Relax, now);
        }
    }

    fn drain(&mut self, now: Instant) {
        self.lower_rate(now);
        self.enter(Stage::Drain, now);
    }

    /// Believe only what is delivered now, as long as a queue of ours keeps the path busy.
    fn lower_rate(&mut self, now: Instant) {
        let rtt = self.path.rtt_now().as_secs_f64();
        let least = (LEAST * self.path.mtu) as f64 / (2.0 * rtt);
        let rate = self.path.rate_now(now, self.delivery.delivered).max(least);
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
        if self.path.take_loss() > Some(LOSS_TOLERATED) {
            self.path.set_rate(self.path.rate() * HEAVY_LOSS, now);
            if let Stage::Startup { .. } = self.stage {
                self.cruise(now);
            }
        }
        self.was_used = self.window_used;
        (self.window_used, self.app_limited) = (false, false);
        self.round_least = Duration::MAX;
        self.round_end = self.delivery.delivered;
    }

    /// Move on after a round that the application filled.
    fn advance(&mut self, now: Instant) {
        let rate = self.path.rate();
        let queue = self.queue();
        match self.stage {
            // What did not fill the window cannot show that the path is full.
            Stage::Startup { .. } if !self.window_used => {}
            Stage::Startup {
                rate: before,
                flat_rounds,
                leaps,
            } => {
                let (rate, flat_rounds) = if rate > before * 1.25 {
                    (rate, 0)
                } else {
                    (before, flat_rounds + 1)
                };
                self.stage = Stage::Startup {
                    rate,
                    flat_rounds,
                    leaps,
                };
                if flat_rounds >= STARTUP_ROUNDS {
                    self.enter(Stage::Relax, now);
                }
            }
            Stage::Cruise { rounds } => {
                let kept = self.queue_kept();
                let bare = self.path.base() + self.path.residue();
                let queue = self.round_least.saturating_sub(bare);
                let idle = self.rounds >= 3 && queue < kept / 4 && self.path.noise() < kept;
                if idle || self.rounds >= rounds {
                    self.enter(Stage::Probe, now);
                }
            }
            Stage::Probe => {
                if rate > self.rate_before * PROBE_FOUND && queue < self.queue_expected() {
                    let (flat_rounds, leaps) = (0, false);
                    self.enter(
                        Stage::Startup {
                            rate,
                            flat_rounds,
                            leaps,
                        },
                        now,
                    );
                } else if self.rounds >= 2 {
                    self.enter(Stage::Relax, now);
                }
            }
            Stage::Relax | Stage::Drain | Stage::Verify => {}
        }
    }
}

/// Packets that remain when nothing seems to pass, so that acknowledgements keep coming.
const LEAST: u64 = 4;

/// How much faster data must arrive for a probe to have found something.
const PROBE_FOUND: f64 = 1.08;

/// Rounds between two probes: a probe's queue then takes a tenth of the time.
const CRUISE_ROUNDS: u32 = 8;

/// So many times as many where cruising is a probe by itself.
const SELDOM: u32 = 4;

/// Rounds in which the rate grew by less than a quarter, after which it is taken to be found (BBR).
const STARTUP_ROUNDS: u32 = 2;

/// Acknowledgements in a row that meet a queue and so end the start-up (HyStart, RFC 9406 §4.2).
const SOME_ACKS: (u64, u64) = (3, 16);

/// What counts as a queue there: an eighth of the round trip, within these (RFC 9406 §4.3).
const STARTUP_QUEUE: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(16));

/// The share of packets that may be lost for reasons other than congestion.
const LOSS_TOLERATED: f64 = 0.2;

/// What is left of the rate after loss above that.
const HEAVY_LOSS: f64 = 0.7;

/// What is left of the rate after a mark.
const MARKED: f64 = 0.85;

/// Until the first acknowledgement.
const RTT_UNKNOWN: Duration = Duration::from_millis(100);
