//! Bytes of a body that have come through the tunnel and wait for their reader.
//!
//! They count in the window, and so in the budget, until the last copy of them is dropped: while hyper or h2
//! have them queued for a connection, whatever the protocol, nothing more comes in their place.

use std::fmt;
use std::io::IoSlice;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf, Bytes};
use tokio::time::Instant;

use super::large_head::{Crowded, LargeHead};
use super::lock;
use super::receive_window::{Exceeded, ReceiveWindow};

/// The window of a body, shared between whoever receives the body and the pieces that are still unread.
#[derive(Clone)]
pub struct SharedWindow(Arc<Mutex<State>>);

struct State {
    window: ReceiveWindow,
    /// Bytes that were received and have not been taken by their reader.
    unread: u64,
    /// The last moment at which the reader took something, or had nothing to take.
    progress: Instant,
}

impl SharedWindow {
    /// Share a window of which nothing is used yet.
    pub fn new(window: ReceiveWindow) -> Self {
        Self(Arc::new(Mutex::new(State {
            window,
            unread: 0,
            progress: Instant::now(),
        })))
    }

    /// Count bytes that have come, until the returned piece is dropped.
    ///
    /// # Errors
    /// If more has come than was allowed.
    pub fn receive(&self, bytes: Bytes) -> Result<Unread, Exceeded> {
        self.count(bytes.len())?;
        Ok(self.unread(bytes))
    }

    /// Count bytes that have come, of which pieces are made later, or which are [taken](Self::take).
    ///
    /// # Errors
    /// If more has come than was allowed.
    pub fn count(&self, bytes: usize) -> Result<(), Exceeded> {
        let mut state = self.lock();
        state.window.receive(bytes as u64)?;
        if state.unread == 0 {
            state.progress = Instant::now();
        }
        state.unread += bytes as u64;
        Ok(())
    }

    /// Make a piece of bytes that are counted.
    pub fn unread(&self, bytes: Bytes) -> Unread {
        Unread {
            counted: bytes.len() as u64,
            bytes,
            window: Some(self.clone()),
        }
    }

    /// Reserve room for a head of this length: see [`ReceiveWindow::large_head`].
    ///
    /// # Errors
    /// If there is none.
    pub fn large_head(&self, length: usize) -> Result<LargeHead, Crowded> {
        self.lock().window.large_head(length)
    }

    /// Note that the other end has broken the protocol on this stream.
    pub fn violated(&self, what: &dyn fmt::Display) {
        self.lock().window.violated(what);
    }

    /// Begin with the window that the other end has named, before anything has come.
    pub fn open(&self, window: u64) {
        self.lock().window.open(window);
    }

    /// Reserve no more than a body of this length can take.
    pub fn expect(&self, length: u64) {
        self.lock().window.expect(length);
    }

    /// Report whether there is so little room that this window is as small as that of a slow reader.
    pub fn is_scarce(&self) -> bool {
        self.lock().window.is_scarce()
    }

    /// Reserve only what is unread from now on: nothing more will be received.
    pub fn close(&self) {
        self.lock().window.close();
    }

    /// Return since when unread bytes have waited without any of them being taken; `None` if none wait.
    pub fn stalled_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.unread > 0).then_some(state.progress)
    }

    /// Note that counted bytes need not wait any longer.
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

/// A piece of a body. Dropped, it counts as read.
pub struct Unread {
    bytes: Bytes,
    counted: u64,
    /// Until the piece counts as read.
    window: Option<SharedWindow>,
}

impl Unread {
    /// Return the bytes, which count as read from now on: for a reader that collects a whole body in memory,
    /// and would otherwise wait for itself.
    pub fn into_bytes(mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    /// Return the bytes, which go on counting as unread for as long as this piece does.
    pub fn share(&self) -> Bytes {
        self.bytes.clone()
    }

    /// Split off the bytes behind the first `at`, each part with its share of what is counted.
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

    /// Return how many bytes are left to be written.
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

impl From<Bytes> for Unread {
    /// Wrap bytes that count nowhere, such as a page of our own.
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
