//! What may be sent of a body.

use std::sync::Arc;

use tokio::sync::watch;

use super::{FlowControl, UNHEARD, lock};

/// How much of a stream's body may still be sent.
pub struct SendWindow {
    flow: Arc<FlowControl>,
    stream: u64,
    sent: u64,
    limit: u64,
    /// There once so much has been sent that the peer may have told a limit.
    raised: Option<watch::Receiver<u64>>,
}

impl SendWindow {
    /// Begin to send on the stream of that index. The peer takes `limit` bytes before it says more.
    pub fn new(flow: Arc<FlowControl>, stream: u64, limit: u64) -> Self {
        Self {
            flow,
            stream,
            sent: 0,
            limit,
            raised: None,
        }
    }

    /// Set what the peer takes before it says more, if it was not known yet.
    pub fn open(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Return how many bytes have been sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Take what may be sent now, up to that many bytes; none if the window is used up.
    pub fn take(&mut self, wanted: usize) -> usize {
        let wanted = wanted as u64;
        if self.raised.is_none() && self.sent + wanted >= UNHEARD {
            self.listen();
        }
        if let Some(raised) = &self.raised
            && self.sent + wanted > self.limit
        {
            self.limit = self.limit.max(*raised.borrow());
        }
        let taken = wanted.min(self.limit.saturating_sub(self.sent));
        let before = self.sent;
        self.sent += taken;
        self.flow.sent(before, self.sent);
        taken as usize
    }

    /// Note that the message has ended, and its last packet is about to be sent.
    pub fn ended(&self) {
        self.flow.message_written(self.sent);
    }

    /// Wait until more may be sent, or the session has ended.
    pub async fn raised(&mut self) {
        if self.raised.is_none() {
            // Less may be sent than nobody listens for: to wait is right, and not to ask again at once.
            self.listen();
        }
        let limit = self.limit;
        if let Some(raised) = &mut self.raised {
            // Nobody is left to raise it only when the session is over, which the stream tells then.
            if raised.wait_for(|raised| *raised > limit).await.is_err() {
                self.limit = u64::MAX;
            }
        }
    }

    fn listen(&mut self) {
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
