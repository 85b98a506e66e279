//! Send window of one body.

use std::sync::Arc;

use tokio::sync::watch;

use super::{FIRST_UPDATE, FlowControl, lock};

/// Flow-control limit of a body at its sender.
pub struct SendWindow {
    flow: Arc<FlowControl>,
    stream: u64,
    sent: u64,
    limit: u64,
    /// Updates from the peer, once so much has been sent that there may be some.
    raised: Option<watch::Receiver<u64>>,
}

impl SendWindow {
    /// Create the window of a stream, of which the peer accepts `limit` bytes before its first
    /// update.
    pub fn new(flow: Arc<FlowControl>, stream: u64, limit: u64) -> Self {
        Self {
            flow,
            stream,
            sent: 0,
            limit,
            raised: None,
        }
    }

    /// Set the initial limit, if it was not known yet.
    pub fn open(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Return the number of bytes sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Take up to `wanted` bytes of the window; 0 if it is used up.
    pub fn take(&mut self, wanted: usize) -> usize {
        let wanted = wanted as u64;
        if self.raised.is_none() && self.sent + wanted >= FIRST_UPDATE {
            self.subscribe();
        }
        if let Some(raised) = &self.raised
            && self.sent + wanted > self.limit
        {
            self.limit = self.limit.max(*raised.borrow());
        }
        let taken = wanted.min(self.limit.saturating_sub(self.sent));
        let before = self.sent;
        self.sent += taken;
        self.flow.record_sent(before, self.sent);
        taken as usize
    }

    /// Record that the message has ended, and its last packet is about to be sent.
    pub fn message_written(&self) {
        self.flow.message_written(self.sent);
    }

    /// Wait until the limit is raised, or the session has ended.
    pub async fn raised(&mut self) {
        if self.raised.is_none() {
            // The limit may be below [`FIRST_UPDATE`]: then subscribe, so that the caller waits
            // instead of spinning.
            self.subscribe();
        }
        let limit = self.limit;
        if let Some(raised) = &mut self.raised {
            // The sender of updates is dropped only with the session, which the stream reports
            // then.
            if raised.wait_for(|raised| *raised > limit).await.is_err() {
                self.limit = u64::MAX;
            }
        }
    }

    fn subscribe(&mut self) {
        let (raise, raised) = watch::channel(self.limit);
        lock(&self.flow.sending).insert(self.stream, raise);
        self.raised = Some(raised);
    }
}

impl Drop for SendWindow {
    fn drop(&mut self) {
        if self.raised.is_some() {
            lock(&self.flow.sending).remove(&self.stream);
        }
    }
}
