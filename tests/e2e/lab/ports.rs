//! Ports for programs that cannot be told to take any and say which.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below what Linux gives out for port 0, so that nobody is given one in between.
const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;

/// Return a port on which nobody listens, and that no other test of this process gets.
pub fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = LAST - FIRST;
    // Two test runs at the same time begin at different places.
    let start = (std::process::id() as u16).wrapping_mul(97) % span;
    (0..span)
        .map(|_| FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % span) % span)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("one of thousands is free")
}
