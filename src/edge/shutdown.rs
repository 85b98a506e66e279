//! Shutdown state: draining or not, and whether a successor has taken over.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Shutdown state, shared by everything that has to react to it.
#[derive(Debug, Clone, Default)]
pub struct Draining {
    started: CancellationToken,
    handed_over: Arc<AtomicBool>,
}

impl Draining {
    /// Start draining; no other process takes over.
    pub fn stop(&self) {
        self.started.cancel();
    }

    /// Start draining; a successor serves the addresses from now on.
    pub fn hand_over(&self) {
        self.handed_over.store(true, Ordering::Release);
        self.started.cancel();
    }

    /// Wait until draining starts.
    pub async fn started(&self) {
        self.started.cancelled().await;
    }

    /// Wait until draining starts without a successor; with one, for ever.
    pub async fn stopped(&self) {
        self.started().await;
        if self.has_successor() {
            pending::<()>().await;
        }
    }

    /// Report whether draining has started.
    pub fn has_started(&self) -> bool {
        self.started.is_cancelled()
    }

    /// Report whether a successor has taken over.
    pub fn has_successor(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// Return how long an idle HTTP/1.1 connection is kept once draining has started. A visitor may
    /// be sending a request on it at this moment, which a close would lose. With a successor in
    /// place there is time to answer that request and to announce the end of the connection with
    /// it.
    pub fn idle_grace(&self) -> Duration {
        match self.has_successor() {
            true => IDLE_GRACE,
            false => Duration::ZERO,
        }
    }
}

/// Longer than the gaps between requests of a visitor that is actively browsing.
const IDLE_GRACE: Duration = Duration::from_secs(5);
