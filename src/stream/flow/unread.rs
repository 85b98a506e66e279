//! Bytes of a body that were received and wait for their reader.
//!
//! They count in the window, and so in the budget, until the last copy of them is dropped: while
//! hyper or h2 has them queued for a connection, of whatever protocol, no more are accepted in
//! their place.

use std::fmt;
use std::io::IoSlice;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf, Bytes};
use tokio::time::Instant;

use super::large_head::{LargeHead, LargeHeadsFull};
use super::lock;
use super::receive_window::{ReceiveWindow, WindowExceeded};
use crate::http::Piece;

/// Window of a body, shared between the body's receiver and the pieces that are still unread.
#[derive(Clone)]
pub struct SharedWindow(Arc<Mutex<State>>);

struct State {
    window: ReceiveWindow,
    /// Bytes received and not yet taken by the reader.
    unread: u64,
    /// Last time at which the reader took something, or had nothing to take.
    progress: Instant,
}

impl SharedWindow {
    /// Share an unused window.
    pub fn new(window: ReceiveWindow) -> Self {
        Self(Arc::new(Mutex::new(State {
            window,
            unread: 0,
            progress: Instant::now(),
        })))
    }

    /// Count received bytes, until the returned piece is dropped.
    ///
    /// # Errors
    /// If more was received than the window allows.
    pub fn receive(&self, bytes: Bytes) -> Result<Unread, WindowExceeded> {
        self.count(bytes.len())?;
        Ok(self.unread(bytes))
    }

    /// Count received bytes that become pieces later, or are [taken](Self::take) without becoming
    /// any.
    ///
    /// # Errors
    /// If more was received than the window allows.
    pub fn count(&self, bytes: usize) -> Result<(), WindowExceeded> {
        let mut state = self.lock();
        state.window.receive(bytes as u64)?;
        if state.unread == 0 {
            state.progress = Instant::now();
        }
        state.unread += bytes as u64;
        Ok(())
    }

    /// Make a piece of bytes that are already counted.
    pub fn unread(&self, bytes: Bytes) -> Unread {
        Unread {
            counted: bytes.len() as u64,
            bytes,
            window: Some(self.clone()),
        }
    }

    /// Reserve memory for a head of this length: see [`ReceiveWindow::large_head`].
    ///
    /// # Errors
    /// If there is none left.
    pub fn large_head(&self, length: usize) -> Result<LargeHead, LargeHeadsFull> {
        self.lock().window.large_head(length)
    }

    /// Report that the other end has violated the protocol on this stream.
    pub fn report_violation(&self, what: &dyn fmt::Display) {
        self.lock().window.report_violation(what);
    }

    /// Start with the window that the other end has announced, before any data.
    pub fn open(&self, window: u64) {
        self.lock().window.open(window);
    }

    /// Reserve no more than a body of this length can take.
    pub fn expect(&self, length: u64) {
        self.lock().window.expect(length);
    }

    /// Report whether memory is scarce and this window is as small as a slow reader's.
    pub fn is_scarce(&self) -> bool {
        self.lock().window.is_scarce()
    }

    /// Reserve only what is unread: nothing more will be received.
    pub fn close(&self) {
        self.lock().window.close();
    }

    /// Return the time since which unread bytes wait without any being taken; `None` if none wait.
    pub fn stalled_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.unread > 0).then_some(state.progress)
    }

    /// Record that counted bytes wait no longer.
    pub fn take(&self, bytes: u64) {
        let mut state = self.lock();
        state.unread = state.unread.saturating_sub(bytes);
        state.progress = Instant::now();
        state.window.take(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

/// Piece of a body that counts as unread until it is dropped.
pub struct Unread {
    bytes: Bytes,
    counted: u64,
    /// Window that the piece counts in.
    window: Option<SharedWindow>,
}

impl Unread {
    /// Return the bytes, which count as read from now on: for a reader that collects a whole body
    /// in memory, and would otherwise block itself.
    pub fn into_bytes(mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    /// Return the bytes, which still count as unread for as long as this piece does.
    pub fn share(&self) -> Bytes {
        self.bytes.clone()
    }

    /// Split off the bytes after the first `at`, each part with its share of what is counted.
    pub fn split_off(&mut self, at: usize) -> Self {
        let bytes = self.bytes.split_off(at);
        let counted = self.counted.min(bytes.len() as u64);
        self.counted -= counted;
        Self {
            bytes,
            counted,
            window: self.window.clone(),
        }
    }

    /// Return the number of bytes left.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Buf for Unread {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Piece for Unread {
    fn share(&self) -> Bytes {
        Self::share(self)
    }
}

impl From<Bytes> for Unread {
    /// Wrap bytes that do not count in any window, such as a page of our own.
    fn from(bytes: Bytes) -> Self {
        Self {
            bytes,
            counted: 0,
            window: None,
        }
    }
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        if let Some(window) = &self.window {
            window.take(self.counted);
        }
    }
}
