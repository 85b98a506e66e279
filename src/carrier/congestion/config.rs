//! What a controller begins with.

use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};

use super::{CongestionOwner, PathMemory, RateModel, SharedCongestionOwner};

/// Makes controllers, for quinn's `TransportConfig::congestion_controller_factory`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Bytes that may be in flight on a path of which nothing is known.
    pub initial_window: u64,
    /// Bytes that may be in flight whatever the path seems to be.
    pub least_window: u64,
    /// What earlier connections to the same place have found out, and later ones shall know.
    pub memory: Option<PathMemory>,
    /// Who controls congestion instead of the controllers that are made.
    pub congestion_owner: SharedCongestionOwner,
}

impl Config {
    /// For a path within this machine. Its round trip is how long the two processes take to get their
    /// turn: on a busy machine that looks like a queue, and a window that followed from it would make
    /// each turn move next to nothing.
    pub fn loopback() -> Self {
        Self {
            initial_window: LOOPBACK_WINDOW,
            least_window: LOOPBACK_WINDOW,
            memory: None,
            congestion_owner: SharedCongestionOwner::default(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            initial_window: INITIAL_WINDOW,
            least_window: 0,
            memory: None,
            congestion_owner: SharedCongestionOwner::default(),
        }
    }
}

impl ControllerFactory for Config {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        // A path that is new may be UDP's, where a window without bounds would be a flood: until somebody
        // says otherwise, it is ours.
        self.congestion_owner.set(CongestionOwner::Ours);
        Box::new(RateModel::new(&self, u64::from(mtu), now))
    }
}

/// 32 packets of the size that QUIC starts with: an answer of 30 KiB in one round trip.
const INITIAL_WINDOW: u64 = 32 * 1200;

/// What a socket's buffer takes at least, with the kernel's defaults: the other process may be away for
/// a while.
const LOOPBACK_WINDOW: u64 = 256 << 10;
