//! Unread bytes of the request bodies that a visitor has sent ahead on an HTTP/2 connection.
//!
//! h2 buffers them, up to the connection's window, and hyper offers no way to ask how many there
//! are. So DATA frames are counted when they are received, and again when bodies are read, and the
//! difference counts in the memory of all bodies that wait for their readers. What h2 discards,
//! because nobody will read it, shows in the connection's window: no more can be unread than the
//! window is short of its full size.

use std::sync::Arc;

use super::frames::INITIAL_WINDOW;
use crate::http::BufferLimit;
use crate::proto::MIN_WINDOW;
use crate::stream::BufferTotal;

/// Counter of the unread bytes of one connection.
#[derive(Debug)]
pub struct SentAhead {
    total: Arc<BufferTotal>,
    unread: u64,
    /// Size of the connection's window once everything is read.
    full_window: i64,
    /// Rest of the connection's window: what the visitor may still send.
    window: i64,
}

impl SentAhead {
    /// Count on a connection with a window of this size.
    pub fn new(total: Arc<BufferTotal>, window: u32) -> Self {
        Self {
            total,
            unread: 0,
            full_window: window.into(),
            window: INITIAL_WINDOW,
        }
    }

    /// Record the payload of a received DATA frame.
    pub fn received(&mut self, bytes: u32) {
        self.window -= i64::from(bytes);
        self.set(self.unread + u64::from(bytes));
    }

    /// Record that bytes of a body have been read.
    pub fn read(&mut self, bytes: usize) {
        self.set(self.unread.saturating_sub(bytes as u64));
    }

    /// Record a WINDOW_UPDATE of the connection, sent to the visitor.
    pub fn window_updated(&mut self, bytes: u32) {
        self.window += i64::from(bytes);
        self.set(self.unread);
    }

    /// Record that no stream is left, and so nothing unread.
    pub fn clear(&mut self) {
        self.set(0);
    }

    /// Report whether so much is unread that the connection should not be read.
    pub fn exceeds_share(&self) -> bool {
        self.unread > MIN_WINDOW && !self.total.is_within_share(self.unread)
    }

    /// Report whether the visitor may send nothing before it gets a WINDOW_UPDATE.
    pub fn is_window_exhausted(&self) -> bool {
        self.window <= 0
    }

    fn set(&mut self, unread: u64) {
        let max_unread = u64::try_from(self.full_window - self.window).unwrap_or(0);
        let unread = unread.min(max_unread);
        self.total.take(unread.saturating_sub(self.unread));
        self.total.release(self.unread.saturating_sub(unread));
        self.unread = unread;
    }
}

impl Drop for SentAhead {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u32 = 1 << 20;

    fn counter(limit: u64) -> (Arc<BufferTotal>, SentAhead) {
        let total = BufferTotal::new(limit);
        let mut sent_ahead = SentAhead::new(total.clone(), WINDOW);
        sent_ahead.window_updated(WINDOW - INITIAL_WINDOW as u32);
        (total, sent_ahead)
    }

    #[test]
    fn received_bytes_count_until_they_are_read() {
        let (total, mut sent_ahead) = counter(1 << 30);

        sent_ahead.received(10_000);
        sent_ahead.read(4_000);
        assert_eq!(total.used(), 6_000);
        sent_ahead.clear();
        assert_eq!(total.used(), 0);
        sent_ahead.received(10_000);
        drop(sent_ahead);

        assert_eq!(total.used(), 0);
    }

    #[test]
    fn discarded_bytes_count_until_the_visitor_may_send_as_many_again() {
        let (total, mut sent_ahead) = counter(1 << 30);

        sent_ahead.received(500_000);
        sent_ahead.received(100_000);
        sent_ahead.read(100_000);
        sent_ahead.window_updated(600_000);

        assert_eq!(total.used(), 0);
    }

    #[test]
    fn the_less_memory_is_left_the_less_one_connection_may_have_unread() {
        let (total, mut sent_ahead) = counter(1 << 20);

        sent_ahead.received(150_000);
        assert!(!sent_ahead.exceeds_share());
        sent_ahead.received(100_000);
        assert!(sent_ahead.exceeds_share());
        sent_ahead.read(100_000);
        total.take(600_000);
        assert!(sent_ahead.exceeds_share());

        sent_ahead.read(150_000 - MIN_WINDOW as usize);
        assert!(!sent_ahead.exceeds_share());
    }
}
