//! What a visitor has sent of its requests' bodies, and nobody has read yet.
//!
//! h2 keeps it, up to the connection's window, and hyper has no way to ask for it. So DATA frames are counted
//! where they come from the socket, and again where bodies are read. The difference is part of the budget of
//! all bodies that wait for their readers. What h2 throws away, since nobody will read it, shows in the
//! connection's window, which never hides more than is unread.

use std::sync::Arc;

use crate::proto::LEAST_WINDOW;
use crate::stream::BufferTotal;

/// The unread bytes of one connection.
#[derive(Debug)]
pub struct SentAhead {
    total: Arc<BufferTotal>,
    unread: u64,
    /// The window that the visitor has when all is read.
    whole: i64,
    /// What the visitor may still send.
    window: i64,
}

impl SentAhead {
    /// Count what waits on a connection whose window is that large.
    pub fn new(total: Arc<BufferTotal>, window: u32) -> Self {
        Self {
            total,
            unread: 0,
            whole: window.into(),
            window: super::connection::INITIAL_WINDOW,
        }
    }

    /// Note that DATA has come.
    pub fn came(&mut self, bytes: u32) {
        self.window -= i64::from(bytes);
        self.set(self.unread + u64::from(bytes));
    }

    /// Note that somebody has read DATA.
    pub fn read(&mut self, bytes: usize) {
        self.set(self.unread.saturating_sub(bytes as u64));
    }

    /// Note that the visitor was told that it may send more.
    pub fn raised(&mut self, bytes: u32) {
        self.window += i64::from(bytes);
        self.set(self.unread);
    }

    /// Note that nobody is left who could read anything.
    pub fn settle(&mut self) {
        self.set(0);
    }

    /// Report whether so much is unread that nothing more should come.
    pub fn is_too_much(&self) -> bool {
        self.unread > LEAST_WINDOW && !self.total.has_room_beside(self.unread)
    }

    fn set(&mut self, unread: u64) {
        let most = u64::try_from(self.whole - self.window).unwrap_or(0);
        let unread = unread.min(most);
        self.total.take(unread.saturating_sub(self.unread));
        self.total.give_back(self.unread.saturating_sub(unread));
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

    fn begin(limit: u64) -> (Arc<BufferTotal>, SentAhead) {
        let total = BufferTotal::new(limit);
        let mut sent_ahead = SentAhead::new(total.clone(), WINDOW);
        sent_ahead
            .raised(WINDOW - crate::edge::visitors::http::http2::connection::INITIAL_WINDOW as u32);
        (total, sent_ahead)
    }

    #[test]
    fn what_came_counts_until_it_is_read() {
        let (total, mut sent_ahead) = begin(1 << 30);

        sent_ahead.came(10_000);
        sent_ahead.read(4_000);
        assert_eq!(total.used(), 6_000);
        sent_ahead.settle();
        assert_eq!(total.used(), 0);
        sent_ahead.came(10_000);
        drop(sent_ahead);

        assert_eq!(total.used(), 0);
    }

    #[test]
    fn what_was_thrown_away_counts_until_the_visitor_may_send_as_much_again() {
        let (total, mut sent_ahead) = begin(1 << 30);

        sent_ahead.came(500_000);
        sent_ahead.came(100_000);
        sent_ahead.read(100_000);
        sent_ahead.raised(600_000);

        assert_eq!(total.used(), 0);
    }

    #[test]
    fn the_less_is_left_the_less_one_connection_may_have() {
        let (total, mut sent_ahead) = begin(1 << 20);

        sent_ahead.came(150_000);
        assert!(!sent_ahead.is_too_much());
        sent_ahead.came(100_000);
        assert!(sent_ahead.is_too_much());
        sent_ahead.read(100_000);
        total.take(600_000);
        assert!(sent_ahead.is_too_much());

        sent_ahead.read(150_000 - LEAST_WINDOW as usize);
        assert!(!sent_ahead.is_too_much());
    }
}
