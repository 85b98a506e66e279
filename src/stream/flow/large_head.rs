//! Memory of heads that are larger than most, while they arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::FlowControl;

/// Memory reserved for one large head, released on drop.
pub struct LargeHead {
    flow: Arc<FlowControl>,
    length: usize,
}

impl LargeHead {
    pub(crate) fn new(flow: &Arc<FlowControl>, length: usize) -> Result<Self, LargeHeadsFull> {
        let before = flow.large_heads.0.fetch_add(length, Ordering::Relaxed);
        // Dropping it on failure releases what it has reserved.
        let head = Self {
            flow: flow.clone(),
            length,
        };
        match before + length > MAX_LARGE_HEADS {
            true => Err(LargeHeadsFull),
            false => Ok(head),
        }
    }
}

impl Drop for LargeHead {
    fn drop(&mut self) {
        let all = &self.flow.large_heads.0;
        all.fetch_sub(self.length, Ordering::Relaxed);
    }
}

/// Bytes reserved by all of a session's large heads.
#[derive(Default)]
pub(crate) struct LargeHeads(AtomicUsize);

/// The session's memory for large heads is exhausted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session's memory for large heads is exhausted")]
pub struct LargeHeadsFull;

/// Most bytes for one session's large heads: as much as all of its conversations may have in usual
/// heads.
const MAX_LARGE_HEADS: usize = 32 << 20;
