//! What quinn tells the model, and asks of it.

use std::any::Any;
use std::time::Instant;

use quinn::congestion::Controller;
use quinn_proto::RttEstimator;

use super::delivery::Sample;
use super::kernel::{FAST, OPEN, SURELY_FAST, UNHEARD};
use super::{RateModel, Stage};

impl Controller for RateModel {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        if bytes > ACK_ONLY {
            if self.delivery.is_idle() {
                self.acked_at = now;
                self.limit_window_after_idle(now);
            }
            if self.is_left_to_kernel() {
                let patience = (self.smoothed_rtt * UNHEARD.0).max(UNHEARD.1);
                self.unheard = now.saturating_duration_since(self.acked_at) > patience;
            }
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
        (self.acked_at, self.unheard) = (now, false);
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
        let before = self.left_to_kernel;
        self.left_to_kernel = self.congestion_owner.is_kernel() && self.is_fast();
        if before && !self.left_to_kernel {
            self.reset_path(now);
        }
        match sample {
            Some(sample) if self.left_to_kernel => self.on_sample_of_kernel(&sample),
            Some(sample) => self.on_sample(now, in_flight, app_limited, &sample),
            None => {}
        }
        self.batch = 0;
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        _sent: Instant,
        persistent: bool,
        lost_bytes: u64,
    ) {
        if self.is_left_to_kernel() {
            return;
        }
        self.path.observe_delivery(0, lost_bytes);
        if lost_bytes == 0 {
            self.on_mark(now);
        }
        if persistent {
            self.path.set_rate(0.0, now);
            self.window = self.window.min(self.initial_window);
            self.enter(Stage::FIRST, now);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.path.mtu = u64::from(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.is_left_to_kernel() {
            return match self.unheard {
                true => self.window.min(self.initial_window),
                false => OPEN,
            };
        }
        // quinn paces by the smoothed RTT, which remembers a queue for long after it has gone. What allows it
        // to pace faster allows for more in flight too, up to a burst at once: a short window stays as it is.
        let (smoothed, longest) = (self.smoothed_rtt, self.path.longest_now());
        let short = self.window < 2 * BURST * self.path.mtu;
        if short || smoothed < longest || longest.is_zero() {
            return self.window;
        }
        let stretch = smoothed.div_duration_f64(longest) / PACING;
        (self.window as f64 * stretch.max(1.0)) as u64
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
    /// Whether the window is open, because the kernel keeps the queues of this path short.
    fn is_left_to_kernel(&self) -> bool {
        self.left_to_kernel && self.congestion_owner.is_kernel()
    }

    /// Whether the path delivers so much that what is queued on the way to the kernel takes no time.
    fn is_fast(&self) -> bool {
        let least = match self.left_to_kernel {
            true => FAST,
            false => SURELY_FAST,
        };
        self.path.rate() >= least
    }

    /// See whether the path is still a fast one. What else the model knows of it would be about TCP's queues.
    fn on_sample_of_kernel(&mut self, sample: &Sample) {
        self.path.observe_rate(sample);
        self.app_limited |= sample.app_limited;
        if sample.delivered_before >= self.round_end {
            if !self.app_limited {
                self.path.next_round();
            }
            self.app_limited = false;
            self.round_end = self.delivery.delivered;
        }
    }

    fn on_sample(&mut self, now: Instant, in_flight: u64, app_limited: bool, sample: &Sample) {
        self.path.observe_delivery(self.batch, 0);
        let rtt = self.path.observe_rtt(now, sample.sent);
        self.round_least = self.round_least.min(rtt);
        let paced = self.smoothed_rtt > rtt.mul_f64(1.25);
        self.window_used |=
            !app_limited && (paced || (in_flight + self.batch) * 4 >= self.window * 3);
        self.app_limited |= sample.app_limited;
        match self.stage {
            Stage::Drain | Stage::Verify => {}
            _ => self.path.observe_rate(sample),
        }
        if self.stage == Stage::Relax && in_flight > self.window {
            // Ours is still on its way out, however long a start-up has made it: nothing that was
            // sent since then has been judged yet.
            self.stage_since = now;
        }
        if let Stage::Startup { leaps, .. } = self.stage {
            if let Some(known) = self.known.take() {
                let jump = known.jump(self.path.base(), now);
                self.window = self.window.max(jump.unwrap_or(0));
            }
            self.on_ack_in_startup(leaps, now, rtt);
        }
        if let Stage::Relax | Stage::Verify = self.stage
            && sample.sent >= self.stage_since
        {
            self.on_ack_when_relaxed(now, rtt);
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

/// quinn paces at this many windows per smoothed RTT.
const PACING: f64 = 1.25;

/// Packets that quinn's pacer lets go at once, whatever the rate.
const BURST: u64 = 10;

/// Packets up to this size hold nothing but acknowledgements, most often. Those are never
/// acknowledged themselves, and not worth remembering.
const ACK_ONLY: u64 = 128;
