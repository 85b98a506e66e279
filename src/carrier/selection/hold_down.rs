//! HoldDown-down: the shortest time to stay on a WebSocket before returning to UDP.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest time on a WebSocket, and when UDP failed last.
#[derive(Debug)]
pub(crate) struct HoldDown {
    pub(crate) time: Duration,
    udp_failed: Option<Instant>,
}

impl HoldDown {
    pub(crate) fn new() -> Self {
        Self {
            time: MIN_HOLD,
            udp_failed: None,
        }
    }

    /// Start a hold-down: twice the previous one, up to `longest`, if UDP fails again soon.
    pub(crate) fn udp_has_failed(&mut self, now: Instant, longest: Duration) {
        let flapping = self
            .udp_failed
            .is_some_and(|failed| now < failed + self.time + FLAPPING);
        self.time = match flapping {
            true => (self.time * 2).min(longest),
            false => MIN_HOLD,
        };
        self.udp_failed = Some(now);
    }
}

/// Shortest hold-down, doubled each time that UDP fails again within [`FLAPPING`].
const MIN_HOLD: Duration = Duration::from_secs(2);

/// Time after a hold-down within which another failure of UDP doubles it.
const FLAPPING: Duration = Duration::from_secs(60);

/// Upper limit of the doubling: a healed network is used within half a minute all the same.
pub(crate) const MAX_HOLD: Duration = Duration::from_secs(16);

/// Upper limit of the doubling when UDP's flow was blocked: answers to its probes prove nothing
/// then.
pub(crate) const MAX_HOLD_BLOCKED: Duration = Duration::from_secs(300);
