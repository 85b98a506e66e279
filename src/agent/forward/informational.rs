//! The queue of informational (1xx) responses from an upstream to the edge.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::proto::{INFORMATIONAL_LIMIT, ResponseHead};

/// A short queue of 1xx responses. Every request has one and few use it, so it allocates almost nothing while it is
/// empty: a channel would allocate kilobytes.
#[derive(Clone, Default)]
pub struct InformationalQueue(Arc<Queue>);

#[derive(Default)]
struct Queue {
    /// The waiting responses, and the number of all that were accepted.
    responses: Mutex<(VecDeque<ResponseHead>, usize)>,
    arrived: Notify,
}

impl InformationalQueue {
    /// Add a response. It is dropped if the queue is full: 1xx responses are only hints.
    pub fn push(&self, response: ResponseHead) {
        let mut queue = self
            .0
            .responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (responses, total) = &mut *queue;
        // The edge accepts no more for one request.
        if responses.len() < MAX_QUEUED && *total < INFORMATIONAL_LIMIT {
            *total += 1;
            responses.push_back(response);
            self.0.arrived.notify_one();
        }
    }

    /// Wait for the next response. Cancel safe.
    pub async fn next(&self) -> ResponseHead {
        loop {
            let response = self.take();
            if let Some(response) = response {
                return response;
            }
            self.0.arrived.notified().await;
        }
    }

    fn take(&self) -> Option<ResponseHead> {
        let mut queue = self
            .0
            .responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        queue.0.pop_front()
    }
}

/// The most 1xx responses of a request that wait to be sent to the edge.
const MAX_QUEUED: usize = 8;
