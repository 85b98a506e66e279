//! How long to stay on a WebSocket at least.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) time: Duration,
    udp_failed: Option<Instant>,
}

impl Hold {
    pub(crate) fn new() -> Self {
        Self {
            time: HOLD,
            udp_failed: None,
        }
    }

    pub(crate) fn udp_has_failed(&mut self, now: Instant, longest: Duration) {
        let again = self
            .udp_failed
            .is_some_and(|failed| now < failed + self.time + FLAPPING);
        self.time = match again {
            true => (self.time * 2).min(longest),
            false => HOLD,
        };
        self.udp_failed = Some(now);
    }
}

/// How long to stay on a WebSocket at least. Doubled each time that UDP failed again within
/// [`FLAPPING`].
const HOLD: Duration = Duration::from_secs(2);

const FLAPPING: Duration = Duration::from_secs(60);

/// What the doubling goes up to: a healed network is used within half a minute all the same.
pub(crate) const HOLD_MAX: Duration = Duration::from_secs(16);

/// What the doubling goes up to when UDP was deaf: its probes do not tell the truth.
pub(crate) const HOLD_DEAF: Duration = Duration::from_secs(300);
