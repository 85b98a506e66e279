//! Limits on the memory of receive windows, per session and for the whole process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::FIRST_WINDOW;
use crate::http::BufferLimit;
use crate::proto::MIN_WINDOW;

/// Memory of all bodies that wait for their readers in a process, in bytes: the windows of all
/// sessions, and what waits outside of them.
#[derive(Debug)]
pub struct BufferTotal {
    limit: u64,
    pub(crate) used: AtomicU64,
}

impl BufferTotal {
    /// Allow `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicU64::new(0),
        })
    }

    fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Relaxed))
    }

    /// Return the number of reserved bytes.
    #[cfg(test)]
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }
}

impl BufferLimit for BufferTotal {
    /// See [`Budget::try_take`].
    fn is_within_share(&self, bytes: u64) -> bool {
        bytes <= self.free() / WINDOW_SHARE
    }

    fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

/// Window memory of one session's conversations, in bytes.
///
/// Only the growth of windows is refused. A new conversation always gets [`MIN_WINDOW`]: the number
/// of conversations is limited elsewhere.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
    total: Arc<BufferTotal>,
}

impl Budget {
    /// Allow `limit` bytes, and no more than `total` has left.
    pub fn new(limit: u64, total: Arc<BufferTotal>) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
            total,
        }
    }

    /// Reserve the window of a new conversation: the smaller, the less is left of the share for new
    /// ones.
    pub(crate) fn first_window(&self) -> u64 {
        let left =
            |used: &AtomicU64, limit: u64| (limit / NEW_SHARE).saturating_sub(used.load(Relaxed));
        let session = left(&self.used, self.limit);
        let total = left(&self.total.used, self.total.limit);
        let window = (session.min(total) / NEW_WINDOW_SHARE).clamp(MIN_WINDOW, FIRST_WINDOW);
        self.take(window);
        window
    }

    /// Reserve bytes unconditionally.
    pub(crate) fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
        self.total.used.fetch_add(bytes, Relaxed);
    }

    /// Reserve bytes, if the resulting window is at most [`WINDOW_SHARE`] of what is free.
    ///
    /// The less memory is free, the smaller the largest window may be: however many readers have
    /// stopped, an active one finds room (Choudhury and Hahne, Dynamic queue length thresholds for
    /// shared-memory packet switches, 1998).
    pub(crate) fn try_take(&self, bytes: u64, window: u64) -> bool {
        let free = |used: &AtomicU64, limit: u64| limit.saturating_sub(used.load(Relaxed));
        let session = free(&self.used, self.limit);
        let total = free(&self.total.used, self.total.limit);
        let fits = window <= session.min(total) / WINDOW_SHARE;
        if fits {
            self.take(bytes);
        }
        fits
    }

    /// Report whether so little is in use that a window that grows too large does no harm.
    pub(crate) fn is_ample(&self) -> bool {
        self.used.load(Relaxed) < self.limit / AMPLE_SHARE
            && self.total.used.load(Relaxed) < self.total.limit / AMPLE_SHARE
    }

    /// Report whether so much is in use that windows should shrink: more than the share for new
    /// ones.
    pub(crate) fn is_scarce(&self) -> bool {
        self.used.load(Relaxed) > self.limit / NEW_SHARE
            || self.total.used.load(Relaxed) > self.total.limit / NEW_SHARE
    }

    /// Release reserved bytes.
    pub(crate) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
        self.total.used.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.total.used.fetch_sub(*self.used.get_mut(), Relaxed);
    }
}

/// Divisor: a window takes at most this part of what is free.
const WINDOW_SHARE: u64 = 4;

/// Divisor: this part of a budget is for conversations that have not shown yet what they need.
const NEW_SHARE: u64 = 3;

/// Divisor: a new conversation takes at most this part of what is left of that share.
const NEW_WINDOW_SHARE: u64 = 16;

/// Divisor: while less than this part is in use, any window may grow.
const AMPLE_SHARE: u64 = 8;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;
    use crate::http::ReplayBuffer;

    #[tokio::test]
    async fn buffered_bytes_count_in_the_total_and_nothing_is_buffered_beyond_it() {
        let total = BufferTotal::new(100);
        let frames =
            [10; 3].map(|size| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![7; size]))));
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let buffer = ReplayBuffer::<_>::within(total.clone(), body);
        let mut reader = buffer.read();

        for used in [10, 20, 0] {
            reader.frame().await.unwrap().unwrap();
            assert_eq!(total.used(), used);
        }

        assert_eq!(buffer.buffered(), None);
    }
}
