//! The older processes of this edge that may still have connections.

use std::io::{self, IoSliceMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::udp::RecvMeta;
use tokio::net::UnixStream;
use tracing::debug;

use super::predecessor::Predecessor;
use crate::carrier::websocket::PeerInfo;

/// The list of all predecessors; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Predecessors(Arc<Mutex<Vec<Predecessor>>>);

impl Predecessors {
    /// Remove the processes that have ended, and return the rest.
    pub fn alive(&self) -> MutexGuard<'_, Vec<Predecessor>> {
        let mut all = self.lock();
        all.retain(|one| !one.is_gone());
        all
    }

    /// Pass on the packets of predecessors' connections, and mark them as empty in `metas`.
    pub(crate) fn pass_on_packets(&self, bufs: &[IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        let mut all = self.lock();
        if all.is_empty() {
            return;
        }
        for (buf, meta) in bufs.iter().zip(metas) {
            // Coalesced packets come from one socket of an agent, which has one connection.
            let packets = &buf[..meta.len];
            let Some(at) = all.iter().position(|one| one.owns(packets)) else {
                continue;
            };
            // A predecessor without UDP does not receive packets, and may still be running.
            if let Err(err) = all[at].pass_on(meta, packets)
                && all[at].is_gone()
            {
                debug!(%err, "a predecessor is gone");
                all.swap_remove(at);
            }
            meta.len = 0;
        }
    }

    /// Pass on a WebSocket to the predecessor that has the connection of this packet, and return the
    /// stream to relay it over. Return `None` if no predecessor has it.
    pub(crate) fn pass_on_websocket(
        &self,
        packet: &[u8],
        peer: &PeerInfo,
    ) -> io::Result<Option<UnixStream>> {
        let all = self.alive();
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
