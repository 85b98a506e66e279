//! Delivery-rate sampler (draft-cheng-iccrg-delivery-rate-estimation): how fast bytes arrived at
//! the peer while an acknowledged packet was in flight. What to conclude from it is left to others.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Counter of delivered bytes, with snapshots of its state at the time packets were sent.
#[derive(Clone)]
pub(crate) struct Delivery {
    /// Bytes acknowledged so far.
    pub delivered: u64,
    delivered_at: Instant,
    /// Send time of the most recently acknowledged packet.
    first_sent: Instant,
    log: VecDeque<Snapshot>,
    /// Delivered count up to which packets were sent application-limited (draft's `app_limited`).
    limited_until: u64,
    idle: bool,
    /// Send time of the newest packet in the current batch of acknowledgements.
    newest: Option<Instant>,
}

/// Counters at the moment some packets were sent.
#[derive(Clone, Copy)]
struct Snapshot {
    sent: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    app_limited: bool,
}

/// Rate sample of one batch of acknowledgements.
pub(crate) struct Sample {
    /// Send time of the batch's newest packet.
    pub sent: Instant,
    /// Delivery rate in bytes per second; zero if too little is known.
    pub rate: f64,
    /// Set if the sender had no more data to send, so that `rate` is only a lower bound.
    pub app_limited: bool,
    /// Bytes that had been delivered when the packet was sent.
    pub delivered_before: u64,
}

impl Delivery {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            delivered: 0,
            delivered_at: now,
            first_sent: now,
            log: VecDeque::new(),
            limited_until: 0,
            idle: true,
            newest: None,
        }
    }

    /// Report whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.idle
    }

    /// Record that packets are sent. `srtt` decides how long, and how finely, snapshots are kept.
    pub(crate) fn on_sent(&mut self, now: Instant, srtt: Duration) {
        if self.idle {
            self.idle = false;
            (self.delivered_at, self.first_sent) = (now, now);
        }
        let retention = (srtt * 4).max(MIN_RETENTION);
        let spacing = retention / MAX_SNAPSHOTS;
        if self
            .log
            .back()
            .is_some_and(|last| now.saturating_duration_since(last.sent) < spacing)
        {
            return;
        }
        while self
            .log
            .front()
            .is_some_and(|old| now.saturating_duration_since(old.sent) > retention)
        {
            self.log.pop_front();
        }
        self.log.push_back(Snapshot {
            sent: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            app_limited: self.limited_until > self.delivered,
        });
    }

    /// Count an acknowledged packet of the batch.
    pub(crate) fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        self.delivered_at = now;
        self.newest = self.newest.max(Some(sent));
    }

    /// Close the batch and return its rate sample.
    pub(crate) fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
    ) -> Option<Sample> {
        let sent = self.newest.take()?;
        self.first_sent = sent;
        self.idle = in_flight == 0;
        if app_limited {
            // +1, so that a packet sent exactly when all of this is delivered still counts as
            // application-limited.
            self.limited_until = self.delivered + in_flight + 1;
        }
        let after = self.log.partition_point(|snapshot| snapshot.sent <= sent);
        let then = self.log.get(after.checked_sub(1)?)?;
        let sending = sent.saturating_duration_since(then.first_sent);
        let arriving = now.saturating_duration_since(then.delivered_at);
        let interval = sending.max(arriving).as_secs_f64();
        let bytes = (self.delivered - then.delivered) as f64;
        Some(Sample {
            sent,
            rate: if interval > 0.0 {
                bytes / interval
            } else {
                0.0
            },
            app_limited: then.app_limited,
            delivered_before: then.delivered,
        })
    }
}

/// Most snapshots kept: rates are then off by 1 %, and the log takes 24 KiB.
const MAX_SNAPSHOTS: u32 = 512;

/// Shortest time that snapshots are kept; four round trips where that is longer.
const MIN_RETENTION: Duration = Duration::from_millis(100);
