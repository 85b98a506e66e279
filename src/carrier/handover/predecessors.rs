//! The edge processes before this one that may still have connections.

use std::io::{self, IoSliceMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::udp::RecvMeta;
use tokio::net::UnixStream;
use tracing::debug;

use super::predecessor::Predecessor;
use crate::carrier::websocket::PeerInfo;

/// All of them; clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Predecessors(Arc<Mutex<Vec<Predecessor>>>);

impl Predecessors {
    /// Look at those that have not ended.
    pub fn living(&self) -> MutexGuard<'_, Vec<Predecessor>> {
        let mut all = self.lock();
        all.retain(|one| !one.is_gone());
        all
    }

    /// Pass on what is theirs, and leave nothing of it.
    pub(crate) fn sort(&self, bufs: &[IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        let mut all = self.lock();
        if all.is_empty() {
            return;
        }
        for (buf, meta) in bufs.iter().zip(metas) {
            // A run of packets comes from one socket of one agent, which is one connection's.
            let packets = &buf[..meta.len];
            let Some(at) = all.iter().position(|one| one.owns(packets)) else {
                continue;
            };
            // One that has no UDP does not read such packets, and is there all the same.
            if let Err(err) = all[at].pass_on(meta, packets)
                && all[at].is_gone()
            {
                debug!(%err, "the edge before this one is gone");
                all.swap_remove(at);
            }
            meta.len = 0;
        }
    }

    /// Have the one carry a WebSocket whose connection this packet is for, over the returned stream;
    /// `None` if it is nobody's.
    pub(crate) fn pass_on_websocket(
        &self,
        packet: &[u8],
        peer: &PeerInfo,
    ) -> io::Result<Option<UnixStream>> {
        let all = self.living();
        let owner = all.iter().find(|one| one.owns(packet));
        owner.map(|one| one.pass_on_websocket(peer)).transpose()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Predecessor>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FromIterator<Predecessor> for Predecessors {
    fn from_iter<I: IntoIterator<Item = Predecessor>>(all: I) -> Self {
        Self(Arc::new(Mutex::new(all.into_iter().collect())))
    }
}
