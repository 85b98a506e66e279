//! Identifiers of visitors' connections.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Identifier of a visitor's connection, unique in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// Return an identifier that no other connection has.
    pub fn next() -> Self {
        static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
        Self(CONNECTIONS.fetch_add(1, Relaxed))
    }

    /// Return the identifier with this number.
    #[cfg(test)]
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}
