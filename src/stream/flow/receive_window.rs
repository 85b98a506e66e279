//! Receive window of one body.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use super::{FlowControl, LargeHead, LargeHeadsFull, MAX_WINDOW};
use crate::proto::MIN_WINDOW;

/// Flow-control limit of a body for its sender, and the memory reserved for it.
pub struct ReceiveWindow {
    flow: Arc<FlowControl>,
    stream: u64,
    /// Bytes received.
    received: u64,
    /// Bytes read.
    pub(crate) read: u64,
    /// Bytes that may be sent, from the start of the body.
    limit: u64,
    /// Length of the body, or `u64::MAX` if unknown.
    length: u64,
    /// Bytes that may be sent and not yet read.
    window: u64,
    /// Bytes reserved in the budget.
    reserved: u64,
    /// Time of the last update, or of the first bytes.
    updated: Option<Instant>,
    /// Round trips within which a step is read by a reader that the window limits.
    quick_round_trips: u32,
}

impl ReceiveWindow {
    /// Create the window of a stream, sized by the budget.
    pub fn new(flow: Arc<FlowControl>, stream: u64) -> Self {
        let window = flow.budget.first_window();
        Self::with(flow, stream, window)
    }

    /// Create the smallest window for a stream.
    pub fn smallest(flow: Arc<FlowControl>, stream: u64) -> Self {
        flow.budget.take(MIN_WINDOW);
        Self::with(flow, stream, MIN_WINDOW)
    }

    fn with(flow: Arc<FlowControl>, stream: u64, window: u64) -> Self {
        Self {
            flow,
            stream,
            received: 0,
            read: 0,
            limit: window,
            length: u64::MAX,
            window,
            reserved: window,
            updated: None,
            quick_round_trips: FIRST_QUICK_ROUND_TRIPS,
        }
    }

    /// Return the bytes that may be sent before an update, from the start of the body.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Report whether memory is scarce and this window is as small as a slow reader's.
    pub fn is_scarce(&self) -> bool {
        self.window <= SLOW_READER_WINDOW && self.flow.budget.is_scarce()
    }

    /// Report that the other end has violated the protocol on this stream.
    pub fn report_violation(&self, what: &dyn fmt::Display) {
        self.flow.report_violation(self.stream, what);
    }

    /// Start with the window that the other end has announced, before any data. It was checked.
    pub fn open(&mut self, window: u64) {
        self.flow.budget.take(window);
        self.flow.budget.release(self.reserved);
        (self.window, self.limit, self.reserved) = (window, window, window);
    }

    /// Reserve memory for a head of `length` bytes until it is complete.
    ///
    /// # Errors
    /// If the session's other heads have it all.
    pub fn large_head(&self, length: usize) -> Result<LargeHead, LargeHeadsFull> {
        LargeHead::new(&self.flow, length)
    }

    /// Reserve no more than a body of this length can take.
    pub fn expect(&mut self, length: u64) {
        self.length = length;
        self.release_surplus();
    }

    /// Count received bytes.
    ///
    /// # Errors
    /// If more was received than the window allows.
    pub fn receive(&mut self, bytes: u64) -> Result<(), WindowExceeded> {
        self.received = self.received.saturating_add(bytes);
        match self.received > self.limit {
            true => Err(WindowExceeded),
            false => Ok(()),
        }
    }

    /// Reserve only what was received and not yet read: nothing more will be received.
    pub fn close(&mut self) {
        self.length = self.received;
        self.window = 0;
        self.release_surplus();
    }

    /// Count read bytes, and grant the sender more.
    pub fn take(&mut self, bytes: u64) {
        self.read += bytes;
        if self.limit < self.length {
            let updated = *self.updated.get_or_insert_with(Instant::now);
            if self.limit - self.read <= self.window - self.window / UPDATES_PER_WINDOW {
                self.raise(updated);
            }
        } else if self.window == 0 {
            self.release_surplus();
        }
    }

    /// Grant another window: a larger one if the reader took a step so quickly that the window must
    /// have limited the sender, and a smaller one if memory is scarce.
    fn raise(&mut self, before: Instant) {
        let now = Instant::now();
        let quick = now.duration_since(before) < self.quick_round_trips * self.flow.round_trip();
        (self.updated, self.quick_round_trips) = (Some(now), QUICK_ROUND_TRIPS);
        if quick && self.window < MAX_WINDOW {
            let wanted = (self.window * 2).min(MAX_WINDOW);
            let may_grow = self.read >= PROVEN_READER || self.flow.budget.is_ample();
            if may_grow && self.flow.budget.try_take(wanted - self.window, wanted) {
                self.reserved += wanted - self.window;
                self.window = wanted;
            }
        } else if !quick && self.flow.budget.is_scarce() {
            self.window = (self.window / 2).max(MIN_WINDOW);
        }
        self.limit = self.limit.max(self.read + self.window);
        self.release_surplus();
        self.flow.queue_update(self.stream, self.limit);
    }

    /// Release what cannot arrive any more.
    fn release_surplus(&mut self) {
        let needed = self.limit.min(self.length) - self.read.min(self.length);
        let needed = needed.max(self.window.min(self.length));
        if let Some(surplus) = self.reserved.checked_sub(needed) {
            self.flow.budget.release(surplus);
            self.reserved = needed;
        }
    }
}

impl Drop for ReceiveWindow {
    fn drop(&mut self) {
        self.flow.budget.release(self.reserved);
    }
}

/// The sender exceeded the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the flow-control window was exceeded")]
pub struct WindowExceeded;

/// Past this point the reader is known to be alive: for one that is not, buffers along the path
/// swallow up to about 400 KiB, as quickly as the fastest reader.
const PROVEN_READER: u64 = 512 << 10;

/// Window up to which a reader counts as slow: the smallest, and one doubling.
const SLOW_READER_WINDOW: u64 = 2 * MIN_WINDOW;

/// Updates per window. What has been read but not yet granted is missing from the window: with two
/// steps, half of it.
const UPDATES_PER_WINDOW: u64 = 4;

/// Round trips within which a step counts as quick: with a large enough window it takes two or more
/// to be read; a reader limited by the window reads all of it in one.
const QUICK_ROUND_TRIPS: u32 = 2;

/// The same for the first step, which falls into a connection's first round trips, each of which
/// brings twice as much as the one before.
const FIRST_QUICK_ROUND_TRIPS: u32 = 4;
