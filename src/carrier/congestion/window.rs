//! How much may be in flight, and what queue that leaves.

use std::time::{Duration, Instant};

use super::memory::Known;
use super::{LEAST, RateModel, Stage};

impl RateModel {
    /// Round trips beyond the bare one that must be bridged: they vary, and senders sleep.
    pub(crate) fn margin(&self) -> Duration {
        let short = MARGIN.saturating_sub(self.path.base() / 8);
        self.path.noise().max(self.path.residue()).max(short)
    }

    /// Bytes of ours that should wait at the bottleneck. Less than proportional to the rate, which
    /// is what makes the shares of connections equal (TCP Vegas keeps a constant).
    fn keep(&self) -> f64 {
        let packets = self.path.rate() * KEEP.as_secs_f64() / self.path.mtu as f64;
        (KEEP_LEAST + packets.sqrt()) * self.path.mtu as f64
    }

    /// Whether the queue that cruising leaves is so large a part of what is in flight, on a slow line, that a
    /// faster path would show without a probe.
    pub(crate) fn cruise_probes(&self) -> bool {
        self.keep() > (PROBE - 1.0) * self.path.in_flight(self.path.base())
    }

    /// The queue of ours that cruising leaves.
    pub(crate) fn queue_expected(&self) -> Duration {
        self.margin() + self.queue_kept()
    }

    pub(crate) fn queue_kept(&self) -> Duration {
        seconds(self.keep() / self.path.rate().max(1.0))
    }

    /// The queue that is not of our making, or of a rate that is no more.
    pub(crate) fn queue_high(&self) -> Duration {
        let probe = self.path.base().mul_f64(PROBE - 1.0);
        probe.max(QUEUE_MIN) + self.queue_expected()
    }

    /// The queue of our making.
    pub(crate) fn queue(&self) -> Duration {
        self.path.queue().saturating_sub(self.path.residue())
    }

    /// Bytes by which the window may grow for each that is acknowledged.
    fn growth(&self) -> u64 {
        match self.stage {
            Stage::Startup { leaps: true, .. }
                if self.queued == 0 && self.window < self.initial_window * LEAP =>
            {
                LEAP_GROWTH
            }
            _ => 1,
        }
    }

    /// Where little was sent for a while, send no more at once than a new connection would on this path. It may
    /// have become a slow one meanwhile, which little does not show. Each acknowledgement gives back as much as it
    /// is for, so that the second flight may be as long as ever.
    pub(crate) fn limit_window_after_idle(&mut self, now: Instant) {
        let unknown = matches!(self.stage, Stage::Startup { leaps: true, .. });
        if unknown || now.saturating_duration_since(self.filled_at) <= NON_VALIDATED_PERIOD {
            return;
        }
        let known = Known::new(self.path.rate(), self.path.base(), self.filled_at);
        let jump = known.jump(self.path.base(), now).unwrap_or(0);
        self.window = self.window.min(jump.max(self.initial_window));
    }

    pub(crate) fn update_window(&mut self) {
        let mtu = self.path.mtu;
        let foreign = self.path.residue().div_duration_f64(self.path.base());
        let contend = 1.0 + CONTEND * foreign.min(1.0) - GIVE_WAY * self.path.overflow();
        let busy = self.path.in_flight(self.path.base() + self.margin());
        let cruise = busy * contend.max(CONTEND_LEAST) + self.keep();
        let grown = self.window + self.growth() * self.batch;
        let short = MARGIN.saturating_sub(self.path.base() / 8);
        let drained = self
            .path
            .in_flight(self.path.base() + short.max(self.path.noise()));
        let target = match self.stage {
            Stage::Startup { .. } if !self.window_used => return,
            Stage::Startup { leaps: true, .. } => return self.window = grown,
            Stage::Startup { .. } => cruise * AGAIN,
            Stage::Cruise { .. } => cruise,
            Stage::Probe => (cruise * PROBE).max(cruise + mtu as f64),
            Stage::Relax => drained * RELAX,
            Stage::Drain | Stage::Verify => drained * DRAIN,
        };
        let least = self.least_window.max(LEAST * mtu);
        self.window = (target as u64).min(grown).max(least);
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.min(1e6))
}

/// Up to so many initial windows, and while no queue shows, a start-up does not double its window in
/// each round trip, but makes it four times as large: on a long path it is the start-up that takes time.
const LEAP: u64 = 8;

/// So much more is sent then for each byte that is acknowledged.
const LEAP_GROWTH: u64 = 3;

/// For so long a path is taken to be what it was, although what is sent does not show it.
const NON_VALIDATED_PERIOD: Duration = Duration::from_secs(1);

/// How much more than fills the path, as far as it is known, a start-up sends that begins again: what is
/// known grows with it, and half a round trip of queue comes of it at most if there is nothing to be found.
const AGAIN: f64 = 1.6;

/// The share of the rate of which the square root, in packets, waits at the bottleneck: 6 at
/// 50 Mbit/s, 1 at 1 Mbit/s, besides [`KEEP_LEAST`].
const KEEP: Duration = Duration::from_millis(8);

/// Packets that wait at the bottleneck at any rate.
const KEEP_LEAST: f64 = 1.0;

/// What bridges the scheduling of either end, where the round trip itself does not.
const MARGIN: Duration = Duration::from_millis(2);

/// How much more is sent where others keep the queue filled, in proportion to their part of the
/// round trip: enough not to be pushed out by TCP, too little to push it out.
const CONTEND: f64 = 0.2;

/// No more than this is given way, or the model would lose sight of the path.
const CONTEND_LEAST: f64 = 0.5;

/// How much less is sent there for each packet in a hundred that others leave no room for: two in a
/// hundred undo [`CONTEND`].
const GIVE_WAY: f64 = 10.0;

/// How much more a probe sends.
const PROBE: f64 = 1.2;

/// What share of the path is used to let a probe's queue go.
const RELAX: f64 = 0.95;

/// What share of the path is used to find out whether a queue is ours.
const DRAIN: f64 = 0.85;

/// A queue shorter than this is never taken for a change of the path.
const QUEUE_MIN: Duration = Duration::from_millis(8);
