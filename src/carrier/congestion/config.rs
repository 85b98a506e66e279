//! Configuration of a congestion controller.

use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};

use super::{CongestionOwner, PathMemory, RateModel, SharedCongestionOwner};

/// Factory of controllers, for quinn's `TransportConfig::congestion_controller_factory`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Window on a path of which nothing is known, in bytes.
    pub initial_window: u64,
    /// Smallest window on any path, in bytes.
    pub min_window: u64,
    /// Measurements of earlier connections over the same path, shared with later ones.
    pub memory: Option<PathMemory>,
    /// Owner of congestion control, which may be TCP instead of the controllers that are made.
    pub congestion_owner: SharedCongestionOwner,
}

impl Config {
    /// Return the configuration for loopback. Its RTT is the time that the two processes take to be
    /// scheduled: on a busy machine that looks like a queue, and a window derived from it would
    /// make each turn move next to nothing.
    pub fn loopback() -> Self {
        Self {
            initial_window: LOOPBACK_WINDOW,
            min_window: LOOPBACK_WINDOW,
            memory: None,
            congestion_owner: SharedCongestionOwner::default(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            initial_window: INITIAL_WINDOW,
            min_window: 0,
            memory: None,
            congestion_owner: SharedCongestionOwner::default(),
        }
    }
}

impl ControllerFactory for Config {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        // A new path may be UDP's, where an unbounded window would be a flood: QUIC owns it until
        // the carrier says otherwise.
        self.congestion_owner.set(CongestionOwner::Quic);
        Box::new(RateModel::new(&self, u64::from(mtu), now))
    }
}

/// 32 packets of QUIC's initial size: a 30 KiB response fits into one round trip.
const INITIAL_WINDOW: u64 = 32 * 1200;

/// Bytes that a socket's buffer holds at least, with the kernel's defaults: the other process may
/// not be scheduled for a while.
const LOOPBACK_WINDOW: u64 = 256 << 10;
