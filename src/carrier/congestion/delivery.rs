//! The delivery-rate sampler (draft-cheng-iccrg-delivery-rate-estimation): how fast bytes arrived
//! at the peer while an acknowledged packet was on its way. Leaves what to make of it to others.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Counts what is delivered and remembers the state in which packets were sent.
#[derive(Clone)]
pub(crate) struct Delivery {
    /// Bytes acknowledged so far.
    pub delivered: u64,
    delivered_at: Instant,
    /// When the packet that was acknowledged last had been sent.
    first_sent: Instant,
    log: VecDeque<Snapshot>,
    /// What was sent before this much was delivered was sent for want of data, not of window.
    limited_until: u64,
    idle: bool,
    /// The newest packet of the batch of acknowledgements in progress.
    newest: Option<Instant>,
}

/// The counters at the moment some packets were sent.
#[derive(Clone, Copy)]
struct Snapshot {
    sent: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    app_limited: bool,
}

/// What a batch of acknowledgements says.
pub(crate) struct Sample {
    /// When the newest packet of the batch was sent.
    pub sent: Instant,
    /// Bytes per second; zero if too little is known.
    pub rate: f64,
    /// Whether the sender had nothing more to send, so that `rate` is only a lower bound.
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

    /// Report whether nothing is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.idle
    }

    /// Note that packets are sent. `srtt` decides for how long, and how finely, that is remembered.
    pub(crate) fn on_sent(&mut self, now: Instant, srtt: Duration) {
        if self.idle {
            self.idle = false;
            (self.delivered_at, self.first_sent) = (now, now);
        }
        let retention = (srtt * 4).max(RETENTION);
        let spacing = retention / SNAPSHOTS;
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

    /// Count a packet of the batch.
    pub(crate) fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        self.delivered_at = now;
        self.newest = self.newest.max(Some(sent));
    }

    /// Close the batch.
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
            // One byte more: what is sent when all this has been delivered is the first that the want let out.
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

/// How many moments are remembered at most: rates are off by a percent then, and the log has 24 KiB.
const SNAPSHOTS: u32 = 512;

/// For how long packets are remembered at least; four round trips where that is longer.
const RETENTION: Duration = Duration::from_millis(100);
