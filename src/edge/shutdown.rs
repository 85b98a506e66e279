//! Whether the edge takes leave, and of whom.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The beginning of the end, for all who have to know.
#[derive(Debug, Clone, Default)]
pub struct Draining {
    begun: CancellationToken,
    succeeded: Arc<AtomicBool>,
}

impl Draining {
    /// Stop: there will be nobody here.
    pub fn stop(&self) {
        self.begun.cancel();
    }

    /// Leave the addresses to a successor.
    pub fn hand_over(&self) {
        self.succeeded.store(true, Ordering::Release);
        self.begun.cancel();
    }

    /// Wait for the beginning.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Wait until there will be nobody here; with a successor for ever.
    pub async fn stopped(&self) {
        self.begun().await;
        if self.is_succeeded() {
            pending::<()>().await;
        }
    }

    /// Report whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Report whether there is a successor.
    pub fn is_succeeded(&self) -> bool {
        self.succeeded.load(Ordering::Acquire)
    }

    /// Return how long an idle connection of HTTP/1.1 is kept once draining has begun. A visitor may
    /// be sending a request on it in this moment, which would be lost. With a successor there is the
    /// time to answer that one, and to say that the connection ends with it.
    pub fn idle_grace(&self) -> Duration {
        match self.is_succeeded() {
            true => PATIENCE,
            false => Duration::ZERO,
        }
    }
}

/// Visitors who are in the middle of something use their connections more often than this.
const PATIENCE: Duration = Duration::from_secs(5);
