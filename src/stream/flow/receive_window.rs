//! What the other end may send of a body.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Crowded, FlowControl, LARGEST_WINDOW, LargeHead};
use crate::proto::LEAST_WINDOW;

/// How much of a stream's body the other end may still send, and what is set aside for it.
pub struct ReceiveWindow {
    flow: Arc<FlowControl>,
    stream: u64,
    /// What has come.
    received: u64,
    /// What has been read.
    pub(crate) taken: u64,
    /// What may be sent, from the body's beginning.
    limit: u64,
    /// The whole body's length, or as much as there may be.
    length: u64,
    /// What may be sent and not read.
    window: u64,
    /// What of the budget is ours.
    reserved: u64,
    /// When the limit was raised, or the first bytes came.
    raised: Option<Instant>,
    /// Round trips within which a step is read by whom the window holds up.
    quick: u32,
}

impl ReceiveWindow {
    /// Begin to receive on the stream of that index, with a window that suits the budget.
    pub fn new(flow: Arc<FlowControl>, stream: u64) -> Self {
        let window = flow.budget.first_window();
        Self::with(flow, stream, window)
    }

    /// Begin to receive on the stream of that index, with the smallest window.
    pub fn least(flow: Arc<FlowControl>, stream: u64) -> Self {
        flow.budget.take(LEAST_WINDOW);
        Self::with(flow, stream, LEAST_WINDOW)
    }

    fn with(flow: Arc<FlowControl>, stream: u64, window: u64) -> Self {
        Self {
            flow,
            stream,
            received: 0,
            taken: 0,
            limit: window,
            length: u64::MAX,
            window,
            reserved: window,
            raised: None,
            quick: QUICK_AT_FIRST,
        }
    }

    /// Return what may be sent before more is said, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Report whether there is so little room that this window is as small as that of a slow reader.
    pub fn is_scarce(&self) -> bool {
        self.window <= SLOW && self.flow.budget.is_scarce()
    }

    /// Note that the other end has broken the protocol on this stream.
    pub fn violated(&self, what: &dyn fmt::Display) {
        self.flow.violated(self.stream, what);
    }

    /// Begin with the window that the other end has named, before anything has come. It was checked.
    pub fn open(&mut self, window: u64) {
        self.flow.budget.take(window);
        self.flow.budget.give_back(self.reserved);
        (self.window, self.limit, self.reserved) = (window, window, window);
    }

    /// Set memory aside for a head of so many bytes, until it is whole.
    ///
    /// # Errors
    /// If the session's other heads have it all.
    pub fn large_head(&self, length: usize) -> Result<LargeHead, Crowded> {
        LargeHead::new(&self.flow, length)
    }

    /// Set aside no more than so long a body can take.
    pub fn expect(&mut self, length: u64) {
        self.length = length;
        self.settle();
    }

    /// Count what has come.
    ///
    /// # Errors
    /// If more has come than was allowed.
    pub fn receive(&mut self, bytes: u64) -> Result<(), Exceeded> {
        self.received = self.received.saturating_add(bytes);
        match self.received > self.limit {
            true => Err(Exceeded),
            false => Ok(()),
        }
    }

    /// Reserve only what has come and was not read: no more is received.
    pub fn close(&mut self) {
        self.length = self.received;
        self.window = 0;
        self.settle();
    }

    /// Count what has been read, and let more come.
    pub fn take(&mut self, bytes: u64) {
        self.taken += bytes;
        if self.limit < self.length {
            let raised = *self.raised.get_or_insert_with(Instant::now);
            if self.limit - self.taken <= self.window - self.window / STEPS {
                self.raise(raised);
            }
        } else if self.window == 0 {
            self.settle();
        }
    }

    /// Let a window more come: a larger one if a step of this one was read so quickly that it must have
    /// held the sender up, and a smaller one if there is little room.
    fn raise(&mut self, before: Instant) {
        let now = Instant::now();
        let quick = now.duration_since(before) < self.quick * self.flow.round_trip();
        (self.raised, self.quick) = (Some(now), QUICK);
        if quick && self.window < LARGEST_WINDOW {
            let wanted = (self.window * 2).min(LARGEST_WINDOW);
            let may_grow = self.taken >= READS || self.flow.budget.is_ample();
            if may_grow && self.flow.budget.try_take(wanted - self.window, wanted) {
                self.reserved += wanted - self.window;
                self.window = wanted;
            }
        } else if !quick && self.flow.budget.is_scarce() {
            self.window = (self.window / 2).max(LEAST_WINDOW);
        }
        self.limit = self.limit.max(self.taken + self.window);
        self.settle();
        self.flow.tell(self.stream, self.limit);
    }

    /// Give back what cannot come any more.
    fn settle(&mut self) {
        let needed = self.limit.min(self.length) - self.taken.min(self.length);
        let needed = needed.max(self.window.min(self.length));
        if let Some(surplus) = self.reserved.checked_sub(needed) {
            self.flow.budget.give_back(surplus);
            self.reserved = needed;
        }
    }
}

impl Drop for ReceiveWindow {
    fn drop(&mut self) {
        self.flow.budget.give_back(self.reserved);
    }
}

/// More was sent than was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than the window allows")]
pub struct Exceeded;

/// Whoever has taken so many bytes reads them. From who does not, the buffers on the way take some 400 KiB, as
/// quickly as the fastest reader.
const READS: u64 = 512 << 10;

/// What windows of slow readers shrink to, and a step more.
const SLOW: u64 = 2 * LEAST_WINDOW;

/// The limit is raised so many times per window. What has been read and not told is missing from the
/// window: with two steps, half of it.
const STEPS: u64 = 4;

/// Of a window that is large enough, a step takes two round trips or more to be read; whom the window
/// holds up reads all of it in one.
const QUICK: u32 = 2;

/// The first step comes in a connection's first round trips, each of which brings twice as much as the
/// one before.
const QUICK_AT_FIRST: u32 = 4;
