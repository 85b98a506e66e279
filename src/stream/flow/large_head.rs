//! Heads that are longer than most, and are still arriving.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::FlowControl;

/// What is set aside for one of them, until it is dropped.
pub struct LargeHead {
    flow: Arc<FlowControl>,
    length: usize,
}

impl LargeHead {
    pub(crate) fn new(flow: &Arc<FlowControl>, length: usize) -> Result<Self, Crowded> {
        let before = flow.large_heads.0.fetch_add(length, Ordering::Relaxed);
        // Dropped, it gives back what it took.
        let head = Self {
            flow: flow.clone(),
            length,
        };
        match before + length > MOST {
            true => Err(Crowded),
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

/// Bytes of all of a session's.
#[derive(Default)]
pub(crate) struct LargeHeads(AtomicUsize);

/// There is no room for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session's large heads have all the memory that there is for them")]
pub struct Crowded;

/// Bytes of one session's: as much as all of its conversations may have in usual heads.
const MOST: usize = 32 << 20;
