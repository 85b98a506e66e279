//! Congestion window, and the queue that it leaves at the bottleneck.

use std::time::{Duration, Instant};

use super::memory::KnownPath;
use super::{MIN_WINDOW_PACKETS, RateModel, Stage};

impl RateModel {
    /// Return the time beyond `min_rtt` that the window must cover: jitter, competing queue and
    /// scheduling.
    pub(crate) fn margin(&self) -> Duration {
        let scheduling = SCHEDULING_MARGIN.saturating_sub(self.path.min_rtt() / 8);
        self.path
            .jitter()
            .max(self.path.competing_queue())
            .max(scheduling)
    }

    /// Return the bytes of ours that should stand in the bottleneck's queue. They grow more slowly
    /// than the rate, which makes competing connections converge to equal shares (TCP Vegas keeps a
    /// constant).
    fn standing_queue(&self) -> f64 {
        let packets = self.path.rate() * STANDING_QUEUE_TIME.as_secs_f64() / self.path.mtu as f64;
        (MIN_QUEUE_PACKETS + packets.sqrt()) * self.path.mtu as f64
    }

    /// Report whether, on a slow link, the standing queue is so large a part of what is in flight
    /// that a faster path would show without a probe.
    pub(crate) fn cruise_reveals_bandwidth(&self) -> bool {
        self.standing_queue() > (PROBE_GAIN - 1.0) * self.path.in_flight(self.path.min_rtt())
    }

    /// Return the queueing delay to expect while cruising: margin and our standing queue.
    pub(crate) fn expected_queue_delay(&self) -> Duration {
        self.margin() + self.standing_queue_delay()
    }

    /// Return the queueing delay of our standing queue.
    pub(crate) fn standing_queue_delay(&self) -> Duration {
        seconds(self.standing_queue() / self.path.rate().max(1.0))
    }

    /// Return the queueing delay above which a queue is not ours, or the rate has fallen.
    pub(crate) fn queue_limit(&self) -> Duration {
        let probe = self.path.min_rtt().mul_f64(PROBE_GAIN - 1.0);
        probe.max(MIN_QUEUE_DELAY) + self.expected_queue_delay()
    }

    /// Return the queueing delay that is ours.
    pub(crate) fn queue(&self) -> Duration {
        self.path
            .queue()
            .saturating_sub(self.path.competing_queue())
    }

    /// Return the bytes by which the window may grow for each byte acknowledged.
    fn growth(&self) -> u64 {
        match self.stage {
            Stage::Startup {
                fast_startup: true, ..
            } if self.queued_acks == 0
                && self.window < self.initial_window * FAST_STARTUP_WINDOWS =>
            {
                FAST_STARTUP_GROWTH
            }
            _ => 1,
        }
    }

    /// Limit the window after an application-limited period (RFC 7661, or slow start after idle):
    /// send no more at once than a new connection would on this path, which may have become slow
    /// unnoticed. Each acknowledgement then opens the window by the bytes it covers, so that the
    /// second flight is not limited.
    pub(crate) fn limit_window_after_idle(&mut self, now: Instant) {
        let unknown = matches!(
            self.stage,
            Stage::Startup {
                fast_startup: true,
                ..
            }
        );
        if unknown || now.saturating_duration_since(self.filled_at) <= NON_VALIDATED_PERIOD {
            return;
        }
        let known = KnownPath::new(self.path.rate(), self.path.min_rtt(), self.filled_at);
        let jump = known.jump(self.path.min_rtt(), now).unwrap_or(0);
        self.window = self.window.min(jump.max(self.initial_window));
    }

    /// Set the window from the model, for the current stage.
    pub(crate) fn update_window(&mut self) {
        let mtu = self.path.mtu;
        let competing = self
            .path
            .competing_queue()
            .div_duration_f64(self.path.min_rtt());
        let gain = 1.0 + COMPETING_GAIN * competing.min(1.0)
            - OVERFLOW_BACKOFF * self.path.overflow_loss();
        let busy = self.path.in_flight(self.path.min_rtt() + self.margin());
        let cruise = busy * gain.max(MIN_COMPETING_GAIN) + self.standing_queue();
        let grown = self.window + self.growth() * self.acked_bytes;
        let scheduling = SCHEDULING_MARGIN.saturating_sub(self.path.min_rtt() / 8);
        let drained = self
            .path
            .in_flight(self.path.min_rtt() + scheduling.max(self.path.jitter()));
        let target = match self.stage {
            Stage::Startup { .. } if !self.window_used => return,
            Stage::Startup {
                fast_startup: true, ..
            } => return self.window = grown,
            Stage::Startup { .. } => cruise * RESTART_GAIN,
            Stage::Cruise { .. } => cruise,
            Stage::Probe => (cruise * PROBE_GAIN).max(cruise + mtu as f64),
            Stage::DrainProbe => drained * DRAIN_PROBE_GAIN,
            Stage::Drain | Stage::Verify => drained * DRAIN_GAIN,
        };
        let min_window = self.min_window.max(MIN_WINDOW_PACKETS * mtu);
        self.window = (target as u64).min(grown).max(min_window);
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.min(1e6))
}

/// Initial windows up to which start-up quadruples its window per round trip instead of doubling
/// it, while no queue shows: on a long path it is start-up that takes time.
const FAST_STARTUP_WINDOWS: u64 = 8;

/// Extra window per byte acknowledged during fast start-up.
const FAST_STARTUP_GROWTH: u64 = 3;

/// Time that an estimate stays valid while the application, not the window, limits sending (RFC 7661
/// calls this the non-validated period).
const NON_VALIDATED_PERIOD: Duration = Duration::from_secs(1);

/// Window gain of a start-up that resumes from a known rate: the estimate grows with it, and it
/// causes at most half a round trip of queue if there is no spare bandwidth.
const RESTART_GAIN: f64 = 1.6;

/// Standing queue: the square root of the packets that the path delivers in this time, besides
/// [`MIN_QUEUE_PACKETS`]. 6 packets at 50 Mbit/s, 1 at 1 Mbit/s.
const STANDING_QUEUE_TIME: Duration = Duration::from_millis(8);

/// Standing queue at any rate, in packets.
const MIN_QUEUE_PACKETS: f64 = 1.0;

/// Allowance for scheduling at either end, where an eighth of `min_rtt` does not cover it.
const SCHEDULING_MARGIN: Duration = Duration::from_millis(2);

/// Window gain against a competing queue, in proportion to its share of `min_rtt`: enough not to be
/// starved by TCP, too little to starve it.
const COMPETING_GAIN: f64 = 0.2;

/// Lowest window gain under overflow loss; below this the model could no longer measure the path.
const MIN_COMPETING_GAIN: f64 = 0.5;

/// Window reduction per share of overflow loss: 2 % of it undo [`COMPETING_GAIN`].
const OVERFLOW_BACKOFF: f64 = 10.0;

/// Window gain of a probe.
const PROBE_GAIN: f64 = 1.2;

/// Window gain that drains a probe's queue.
const DRAIN_PROBE_GAIN: f64 = 0.95;

/// Window gain while finding out whether a queue is ours.
const DRAIN_GAIN: f64 = 0.85;

/// Shortest queueing delay that is ever taken for a change of the path.
const MIN_QUEUE_DELAY: Duration = Duration::from_millis(8);
