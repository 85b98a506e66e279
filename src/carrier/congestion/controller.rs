//! Implementation of quinn's [`Controller`] on top of the model.

use std::any::Any;
use std::time::Instant;

use quinn::congestion::Controller;
use quinn_proto::RttEstimator;

use super::delivery::Sample;
use super::owner::{ACK_TIMEOUT, OPEN_WINDOW, TCP_ENTRY_RATE, TCP_MIN_RATE};
use super::{RateModel, Stage};

impl Controller for RateModel {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        if bytes > ACK_ONLY_SIZE {
            if self.delivery.is_idle() {
                self.acked_at = now;
                self.limit_window_after_idle(now);
            }
            if self.is_tcp_controlled() {
                let timeout = (self.smoothed_rtt * ACK_TIMEOUT.0).max(ACK_TIMEOUT.1);
                self.acks_overdue = now.saturating_duration_since(self.acked_at) > timeout;
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
        (self.acked_at, self.acks_overdue) = (now, false);
        self.delivery.on_ack(now, sent, bytes);
        self.acked_bytes += bytes;
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        _largest: Option<u64>,
    ) {
        let sample = self.delivery.on_end_acks(now, in_flight, app_limited);
        let before = self.tcp_controlled;
        self.tcp_controlled = self.congestion_owner.is_tcp() && self.is_fast();
        if before && !self.tcp_controlled {
            self.reset_path(now);
        }
        match sample {
            Some(sample) if self.tcp_controlled => self.on_sample_under_tcp(&sample),
            Some(sample) => self.on_sample(now, in_flight, app_limited, &sample),
            None => {}
        }
        self.acked_bytes = 0;
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        _sent: Instant,
        persistent: bool,
        lost_bytes: u64,
    ) {
        if self.is_tcp_controlled() {
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
        if self.is_tcp_controlled() {
            return match self.acks_overdue {
                true => self.window.min(self.initial_window),
                false => OPEN_WINDOW,
            };
        }
        // quinn paces by the smoothed RTT, which stays high long after a queue has gone. A larger
        // window makes it pace faster, but allows more in flight too, up to a burst at once: a
        // small window is left as it is.
        let (smoothed, longest) = (self.smoothed_rtt, self.path.longest_now());
        let short = self.window < 2 * PACER_BURST * self.path.mtu;
        if short || smoothed < longest || longest.is_zero() {
            return self.window;
        }
        let stretch = smoothed.div_duration_f64(longest) / PACING_GAIN;
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
    /// Report whether the window is open because TCP keeps this path's queues short.
    fn is_tcp_controlled(&self) -> bool {
        self.tcp_controlled && self.congestion_owner.is_tcp()
    }

    /// Report whether the path is so fast that what is buffered on the way to the kernel drains at
    /// once.
    fn is_fast(&self) -> bool {
        let min_rate = match self.tcp_controlled {
            true => TCP_MIN_RATE,
            false => TCP_ENTRY_RATE,
        };
        self.path.rate() >= min_rate
    }

    /// Update only the rate, to see whether the path is still fast. Anything else would measure
    /// TCP's queues, not the path.
    fn on_sample_under_tcp(&mut self, sample: &Sample) {
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
        self.path.observe_delivery(self.acked_bytes, 0);
        let rtt = self.path.observe_rtt(now, sample.sent);
        self.round_min_rtt = self.round_min_rtt.min(rtt);
        let paced = self.smoothed_rtt > rtt.mul_f64(1.25);
        self.window_used |=
            !app_limited && (paced || (in_flight + self.acked_bytes) * 4 >= self.window * 3);
        self.app_limited |= sample.app_limited;
        match self.stage {
            Stage::Drain | Stage::Verify => {}
            _ => self.path.observe_rate(sample),
        }
        if self.stage == Stage::DrainProbe && in_flight > self.window {
            // Our queue is still draining, however long start-up has made it: nothing that was sent
            // after it drained has been acknowledged yet.
            self.stage_since = now;
        }
        if let Stage::Startup { fast_startup, .. } = self.stage {
            if let Some(known) = self.known_path.take() {
                let jump = known.jump(self.path.min_rtt(), now);
                self.window = self.window.max(jump.unwrap_or(0));
            }
            self.on_ack_in_startup(fast_startup, now, rtt);
        }
        if let Stage::DrainProbe | Stage::Verify = self.stage
            && sample.sent >= self.stage_since
        {
            self.on_ack_after_drain(now, rtt);
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

/// Windows per smoothed RTT at which quinn paces.
const PACING_GAIN: f64 = 1.25;

/// Packets that quinn's pacer sends in one burst at any rate.
const PACER_BURST: u64 = 10;

/// Size in bytes up to which a packet is taken to carry only ACK frames: such packets are never
/// acknowledged themselves and need no snapshot.
const ACK_ONLY_SIZE: u64 = 128;
