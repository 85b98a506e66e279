//! 1xx answers on their way from an upstream to the edge.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::proto::{INFORMATIONAL_LIMIT, ResponseHead};

/// A short queue. It is made for every request and hardly ever used, so it is nothing until then: a
/// channel would allocate kilobytes.
#[derive(Clone, Default)]
pub struct InformationalQueue(Arc<Queue>);

#[derive(Default)]
struct Queue {
    hints: Mutex<(VecDeque<ResponseHead>, usize)>,
    arrived: Notify,
}

impl InformationalQueue {
    /// Add one. More than anybody waits for are dropped: they are hints.
    pub fn push(&self, hint: ResponseHead) {
        let mut queue = self.0.hints.lock().unwrap_or_else(PoisonError::into_inner);
        let (hints, all) = &mut *queue;
        // The edge takes no more of one answer.
        if hints.len() < MOST && *all < INFORMATIONAL_LIMIT {
            *all += 1;
            hints.push_back(hint);
            self.0.arrived.notify_one();
        }
    }

    /// Take the next one as soon as there is one. May be cancelled.
    pub async fn next(&self) -> ResponseHead {
        loop {
            let hint = self.take();
            if let Some(hint) = hint {
                return hint;
            }
            self.0.arrived.notified().await;
        }
    }

    fn take(&self) -> Option<ResponseHead> {
        let mut queue = self.0.hints.lock().unwrap_or_else(PoisonError::into_inner);
        queue.0.pop_front()
    }
}

/// 1xx answers that may wait for the tunnel.
const MOST: usize = 8;
