//! Which of a session's streams have been read: what the edge may send again if the session breaks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::proto::{LostSession, UNREAD_LIMIT};

/// The streams of one session that may hold a request.
#[derive(Clone, Default)]
pub struct UnreadStreams(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    accepted: u64,
    unread: BTreeSet<u64>,
}

impl UnreadStreams {
    /// Note that the edge has opened the stream of this index.
    pub fn accepted(&self, stream: u64) {
        let mut state = self.lock();
        state.accepted = state.accepted.max(stream + 1);
        state.unread.insert(stream);
    }

    /// Note that the stream's head has been read. Nothing may come of the request before this.
    pub fn read(&self, stream: u64) {
        self.lock().unread.remove(&stream);
    }

    /// Say what the edge has to know once the session is lost and all its conversations have ended.
    pub fn report(&self, epoch: u64) -> LostSession {
        let state = self.lock();
        // Left out, they count as read: those that came last are the most likely to wait still.
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
