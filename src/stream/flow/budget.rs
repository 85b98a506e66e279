//! How much may wait for its readers, in a session and in the whole process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::FIRST_WINDOW;
use crate::proto::LEAST_WINDOW;

/// What all sessions of a process may have in windows, in bytes.
#[derive(Debug)]
pub struct BufferTotal {
    limit: u64,
    pub(crate) used: AtomicU64,
}

impl BufferTotal {
    /// Allow that much.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicU64::new(0),
        })
    }

    /// Count bytes that wait for their reader outside of any session's windows.
    pub fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    /// Count them no longer.
    pub fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }

    /// Report whether who has so much leaves enough to others: see [`Budget::try_take`].
    pub fn has_room_beside(&self, bytes: u64) -> bool {
        bytes <= self.free() / PART
    }

    fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Relaxed))
    }

    /// Return how much is in use, in bytes.
    #[cfg(test)]
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }
}

/// What the conversations of one session may have in windows, in bytes.
///
/// Only what lets windows grow is refused. A new conversation gets [`LEAST_WINDOW`] in any case: their
/// number has limits of its own.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
    total: Arc<BufferTotal>,
}

impl Budget {
    /// Allow that much, and no more than `total` has left.
    pub fn new(limit: u64, total: Arc<BufferTotal>) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
            total,
        }
    }

    /// Take a window for a new conversation: the smaller, the less there is of what is set aside for new
    /// ones.
    pub(crate) fn first_window(&self) -> u64 {
        let left = |used: &AtomicU64, limit: u64| (limit / NEW).saturating_sub(used.load(Relaxed));
        let session = left(&self.used, self.limit);
        let total = left(&self.total.used, self.total.limit);
        let window = (session.min(total) / NEW_PART).clamp(LEAST_WINDOW, FIRST_WINDOW);
        self.take(window);
        window
    }

    /// Take so much, whether it is there or not.
    pub(crate) fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
        self.total.used.fetch_add(bytes, Relaxed);
    }

    /// Take so much, if the window that it makes is no more than a part of what is free.
    ///
    /// Those who have much leave the more for others, the less there is: however many do not read, who
    /// does finds room (Choudhury and Hahne, Dynamic queue length thresholds for shared-memory packet
    /// switches, 1998).
    pub(crate) fn try_take(&self, bytes: u64, window: u64) -> bool {
        let free = |used: &AtomicU64, limit: u64| limit.saturating_sub(used.load(Relaxed));
        let session = free(&self.used, self.limit);
        let total = free(&self.total.used, self.total.limit);
        let fits = window <= session.min(total) / PART;
        if fits {
            self.take(bytes);
        }
        fits
    }

    /// Report whether so little is in use that whoever grows too large is in nobody's way.
    pub(crate) fn is_ample(&self) -> bool {
        self.used.load(Relaxed) < self.limit / AMPLE
            && self.total.used.load(Relaxed) < self.total.limit / AMPLE
    }

    /// Report whether so much is in use that windows should shrink: what is set aside for new ones.
    pub(crate) fn is_scarce(&self) -> bool {
        self.used.load(Relaxed) > self.limit / NEW
            || self.total.used.load(Relaxed) > self.total.limit / NEW
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
        self.total.used.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.total.used.fetch_sub(*self.used.get_mut(), Relaxed);
    }
}

/// One window has no more than this part of what is free.
const PART: u64 = 4;

/// This part of a budget is for conversations that have not shown yet what they need.
const NEW: u64 = 3;

/// And a new one has no more than this part of what is left of it.
const NEW_PART: u64 = 16;

/// While less than this part is in use, any window may grow.
const AMPLE: u64 = 8;
