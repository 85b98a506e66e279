//! Our congestion controller: it keeps a model of the path and lets the window follow from it.
//!
//! Loss is not congestion unless it is heavy; a queue is. The rate is found by sending a little
//! more for a round trip and looking whether more arrives or a queue builds; then the queue is
//! drained. A queue that we cannot drain belongs to somebody else, and then we hold our ground.
//! quinn paces at 1.25 × window / smoothed RTT, so the window is the only handle.

mod delivery;
#[cfg(test)]
mod link_model;
mod path;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use delivery::{Delivery, Sample};
use path::PathModel;

/// Makes controllers, for quinn's `TransportConfig::congestion_controller_factory`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Bytes that may be in flight on a path of which nothing is known.
    pub initial_window: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            initial_window: INITIAL_WINDOW,
        }
    }
}

impl ControllerFactory for Config {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(RateModel::new(self.initial_window, u64::from(mtu), now))
    }
}

#[derive(Clone)]
struct RateModel {
    initial_window: u64,
    window: u64,
    path: PathModel,
    delivery: Delivery,
    smoothed_rtt: Duration,
    stage: Stage,
    /// Rounds since the stage began.
    rounds: u32,
    /// A round ends when a packet is acknowledged that was sent after this much was delivered.
    round_end: u64,
    /// Whether the window, not the application, was what held us back in this round.
    window_used: bool,
    /// Whether a sample of this round was taken for want of data.
    app_limited: bool,
    /// Bytes acknowledged in the batch in progress.
    batch: u64,
    /// The rate when the stage began.
    rate_before: f64,
    /// Acknowledgements in a row that met a queue.
    queued: u32,
}

/// What the controller is doing.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Stage {
    /// Doubling each round, until a queue builds or the rate no longer grows.
    Startup { rate: f64, flat_rounds: u32 },
    /// Sending at the rate of the path.
    Cruise,
    /// Sending more, to see whether more arrives.
    Probe,
    /// Sending less, so that the queue of a probe goes away and the base is seen.
    Relax,
    /// The rate has fallen: sending next to nothing until the queue is gone.
    Drain {
        empty_since: Option<Instant>,
        failed: u32,
    },
    /// Somebody else keeps the queue filled: holding `base`, the round trip when we send half.
    Contend { base: Duration },
    /// Finding that base.
    Yield,
}

impl RateModel {
    fn new(initial_window: u64, mtu: u64, now: Instant) -> Self {
        Self {
            initial_window,
            window: initial_window,
            path: PathModel::new(mtu, now),
            delivery: Delivery::new(now),
            smoothed_rtt: RTT_UNKNOWN,
            stage: Stage::Startup {
                rate: 0.0,
                flat_rounds: 0,
            },
            rounds: 0,
            round_end: 0,
            window_used: false,
            app_limited: false,
            batch: 0,
            rate_before: 0.0,
            queued: 0,
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.rounds = 0;
        self.round_end = self.delivery.delivered;
        self.rate_before = self.path.rate();
        self.queued = 0;
    }

    fn start_again(&mut self) {
        self.enter(Stage::Startup {
            rate: self.path.rate(),
            flat_rounds: 0,
        });
    }

    /// What keeps the path busy although round trips vary and senders sleep.
    fn margin(&self) -> f64 {
        self.path.noise().max(MARGIN)
    }

    /// The queue that cruising leaves, in seconds.
    fn queue_expected(&self) -> f64 {
        self.margin() + (KEEP * self.path.mtu) as f64 / self.path.rate().max(1.0)
    }

    /// The queue that is not of our making, or of a rate that is no more, in seconds.
    fn queue_high(&self) -> f64 {
        let probe = self.path.base().as_secs_f64() * (PROBE - 1.0);
        probe.max(QUEUE_MIN) + self.queue_expected() + self.path.noise()
    }

    fn on_ack_in_startup(&mut self, rtt: Duration) {
        let base = self.path.base();
        let high = (base / 8)
            .clamp(STARTUP_QUEUE.0, STARTUP_QUEUE.1)
            .as_secs_f64();
        if rtt.saturating_sub(base).as_secs_f64() > high + self.path.noise() {
            self.queued += 1;
        } else {
            self.queued = 0;
        }
        if self.queued >= STARTUP_ACKS {
            self.enter(Stage::Relax);
        }
    }

    fn on_tick(&mut self, now: Instant, in_flight: u64) {
        let (Some(queue), high) = (self.path.queue(), self.queue_high()) else {
            return;
        };
        let rate_now = self.path.rate_now(now, self.delivery.delivered);
        match self.stage {
            Stage::Cruise | Stage::Probe | Stage::Relax if queue > high => {
                self.path.set_rate(rate_now.min(self.path.rate()), now);
                self.enter(Stage::Drain {
                    empty_since: None,
                    failed: 0,
                });
            }
            Stage::Drain { .. } if queue < high / 2.0 => self.enter(Stage::Cruise),
            Stage::Drain {
                empty_since: None, ..
            } if in_flight > self.window => {
                self.path.set_rate(rate_now.min(self.path.rate()), now);
            }
            Stage::Drain {
                empty_since,
                failed,
            } => {
                let since = empty_since.unwrap_or(now);
                if now.saturating_duration_since(since) <= 2 * self.path.base() {
                    self.stage = Stage::Drain {
                        empty_since: Some(since),
                        failed,
                    };
                } else if failed < DRAINS {
                    self.stage = Stage::Drain {
                        empty_since: None,
                        failed: failed + 1,
                    };
                } else {
                    self.enter(Stage::Yield);
                }
            }
            Stage::Contend { .. } | Stage::Yield if queue < high / 2.0 => self.enter(Stage::Cruise),
            _ => {}
        }
    }

    fn on_round(&mut self, now: Instant) {
        self.rounds += 1;
        if self.window_used || !self.app_limited {
            self.advance();
            self.path.next_round();
        }
        if self.path.take_loss() > Some(LOSS_TOLERATED) {
            self.path.set_rate(self.path.rate() * HEAVY_LOSS, now);
            if let Stage::Startup { .. } = self.stage {
                self.enter(Stage::Cruise);
            }
        }
        (self.window_used, self.app_limited) = (false, false);
        self.round_end = self.delivery.delivered;
    }

    /// Move on after a round that the application filled.
    fn advance(&mut self) {
        let rate = self.path.rate();
        let queue = self.path.queue().unwrap_or_default();
        match self.stage {
            Stage::Startup {
                rate: before,
                flat_rounds,
            } => {
                let (rate, flat_rounds) = if rate > before * 1.25 {
                    (rate, 0)
                } else {
                    (before, flat_rounds + 1)
                };
                self.stage = Stage::Startup { rate, flat_rounds };
                if flat_rounds >= STARTUP_ROUNDS {
                    self.enter(Stage::Relax);
                }
            }
            Stage::Cruise => {
                let idle = self.rounds >= 2 && queue < self.queue_expected() / 4.0;
                if idle || self.rounds >= CRUISE_ROUNDS {
                    self.enter(Stage::Probe);
                }
            }
            Stage::Probe => {
                if rate > self.rate_before * 1.1 && queue < self.queue_expected() {
                    self.start_again();
                } else if self.rounds >= 2 {
                    self.enter(Stage::Relax);
                }
            }
            Stage::Relax => self.enter(Stage::Cruise),
            Stage::Drain { .. } => {}
            Stage::Contend { .. } => {
                if self.rounds >= CONTEND_ROUNDS {
                    self.enter(Stage::Yield);
                }
            }
            Stage::Yield => {
                if self.rounds >= 2 {
                    self.enter(Stage::Contend {
                        base: self.path.rtt_now(),
                    });
                }
            }
        }
    }

    fn update_window(&mut self) {
        let PathModel { mtu, .. } = self.path;
        let base = self.path.base();
        let keep = (KEEP * mtu) as f64;
        let cruise = self.path.in_flight(base, self.margin()) + keep;
        let grown = self.window + self.batch;
        let target = match self.stage {
            Stage::Startup { .. } if self.window_used => return self.window = grown,
            Stage::Startup { .. } => return,
            Stage::Cruise => cruise,
            Stage::Probe => (cruise * PROBE).max(cruise + (2 * mtu) as f64),
            Stage::Relax => self.path.in_flight(base, 0.0) * RELAX,
            Stage::Drain { .. } => self.path.in_flight(base, 0.0) * DRAIN,
            Stage::Contend { base } => self.path.in_flight(base, self.margin()) * CONTEND + keep,
            Stage::Yield => self.path.in_flight(self.path.rtt_now(), 0.0) * YIELD,
        };
        self.window = (target as u64).min(grown).max(LEAST * mtu);
    }
}

impl Controller for RateModel {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        if bytes > ACK_ONLY {
            self.delivery.on_sent(now, self.smoothed_rtt);
        }
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        _app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.smoothed_rtt = rtt.get();
        self.delivery.on_ack(now, sent, bytes);
        self.batch += bytes;
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        _largest: Option<u64>,
    ) {
        let sample = self.delivery.on_end_acks(now, in_flight, app_limited);
        if let Some(sample) = sample {
            self.on_sample(now, in_flight, app_limited, &sample);
        }
        self.batch = 0;
    }

    fn on_congestion_event(
        &mut self,
        _now: Instant,
        _sent: Instant,
        persistent: bool,
        lost_bytes: u64,
    ) {
        self.path.observe_delivery(0, lost_bytes);
        if persistent {
            self.window = self.window.min(self.initial_window);
            self.start_again();
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.path.mtu = u64::from(new_mtu);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.initial_window
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl RateModel {
    fn on_sample(&mut self, now: Instant, in_flight: u64, app_limited: bool, sample: &Sample) {
        self.path.observe_delivery(self.batch, 0);
        let rtt = self.path.observe_rtt(now, sample.sent);
        self.window_used |= !app_limited && (in_flight + self.batch) * 4 >= self.window * 3;
        self.app_limited |= sample.app_limited;
        match self.stage {
            Stage::Drain { .. } => {}
            _ => self.path.observe_rate(sample),
        }
        if let Stage::Startup { .. } = self.stage {
            self.on_ack_in_startup(rtt);
        }
        if sample.delivered_before >= self.round_end {
            self.on_round(now);
        }
        if self.path.tick_is_over(now) {
            self.on_tick(now, in_flight);
            self.path.next_tick(now, self.delivery.delivered);
        }
        self.update_window();
    }
}

/// 32 packets of the size that QUIC starts with: an answer of 30 KiB in one round trip.
const INITIAL_WINDOW: u64 = 32 * 1200;

/// Packets that remain when nothing seems to pass, so that acknowledgements keep coming.
const LEAST: u64 = 4;

/// Packets of ours that should wait at the bottleneck: the same number for each connection, which
/// is what makes their shares equal (as in TCP Vegas).
const KEEP: u64 = 3;

/// Seconds of queue to bridge delayed acknowledgements and the scheduling of either end.
const MARGIN: f64 = 0.002;

/// How much more a probe sends.
const PROBE: f64 = 1.25;

/// What share of the path is used to let a probe's queue go.
const RELAX: f64 = 0.9;

/// What share of the path is used to find out whether a queue is ours.
const DRAIN: f64 = 0.85;

/// Times that a queue may outlast a drain before it is taken for somebody else's.
const DRAINS: u32 = 1;

/// How much more than its part of a contended path a connection takes: with [`YIELD`] it settles
/// where half of its packets are 20 % of the round trip, at about 40 % of the path.
const CONTEND: f64 = 1.25;

/// What share of its part a connection sends to see the queue of the others.
const YIELD: f64 = 0.5;

/// Rounds between two such looks.
const CONTEND_ROUNDS: u32 = 8;

/// Rounds between two probes: a probe's queue then takes a tenth of the time.
const CRUISE_ROUNDS: u32 = 8;

/// Rounds in which the rate grew by less than a quarter, after which it is taken to be found (BBR).
const STARTUP_ROUNDS: u32 = 3;

/// Acknowledgements in a row that meet a queue and so end the start-up (HyStart, RFC 9406 §4.2).
const STARTUP_ACKS: u32 = 8;

/// What counts as a queue there: an eighth of the round trip, within these (RFC 9406 §4.3).
const STARTUP_QUEUE: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(16));

/// Less than this many seconds of queue is never taken for a change of the path.
const QUEUE_MIN: f64 = 0.008;

/// The share of packets that may be lost for reasons other than congestion.
const LOSS_TOLERATED: f64 = 0.2;

/// What is left of the rate after loss above that.
const HEAVY_LOSS: f64 = 0.7;

/// Packets up to this size hold nothing but acknowledgements, most often. Those are never
/// acknowledged themselves, and not worth remembering.
const ACK_ONLY: u64 = 128;

/// Until the first acknowledgement.
const RTT_UNKNOWN: Duration = Duration::from_millis(100);
