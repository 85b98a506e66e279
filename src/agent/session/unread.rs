//! The streams of a session whose heads have not been read: the edge may resend their requests if the session is
//! lost.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::proto::{LostSession, UNREAD_LIMIT};

/// The unread streams of one session.
#[derive(Clone, Default)]
pub struct UnreadStreams(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Streams accepted so far: one more than the highest index.
    accepted: u64,
    /// The indices of accepted streams whose heads have not been read.
    unread: BTreeSet<u64>,
}

impl UnreadStreams {
    /// Record that the edge has opened the stream with this index.
    pub fn accepted(&self, stream: u64) {
        let mut state = self.lock();
        state.accepted = state.accepted.max(stream + 1);
        state.unread.insert(stream);
    }

    /// Record that the stream's head has been read. The request must have no effect before this is called.
    pub fn read(&self, stream: u64) {
        self.lock().unread.remove(&stream);
    }

    /// Return the report for the edge once the session is lost and all its conversations have ended.
    pub fn report(&self, epoch: u64) -> LostSession {
        let state = self.lock();
        // Streams beyond the limit count as read. The latest are reported, as the most likely to be unread.
        let unread = state.unread.iter().rev().take(UNREAD_LIMIT).copied();
        LostSession {
            epoch,
            accepted: state.accepted,
            unread: unread.collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
