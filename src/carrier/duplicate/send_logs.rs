//! What an edge has sent of late, by agent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quinn::udp::Transmit;

use super::send_log::SendLog;

/// The latest packets to those agents for whom somebody wants them.
#[derive(Default)]
pub(crate) struct SendLogs {
    by_address: RwLock<HashMap<SocketAddr, Arc<SendLog>>>,
    /// Whether there are any.
    any: AtomicBool,
}

/// Has the packets to one agent kept, until it is dropped.
pub(crate) struct Remembering {
    all: Arc<SendLogs>,
    remote: SocketAddr,
    recent: Arc<SendLog>,
}

impl SendLogs {
    /// Note what is sent, and have sent again what is due behind it.
    pub(crate) fn sent(&self, transmit: &Transmit, send: impl FnOnce(Transmit)) {
        if self.any.load(Relaxed) {
            let all = self.by_address.read();
            let all = all.unwrap_or_else(PoisonError::into_inner);
            if let Some(recent) = all.get(&transmit.destination) {
                recent.sent(transmit, send);
            }
        }
    }

    /// Keep what is sent to this address.
    pub(crate) fn remember(self: &Arc<Self>, remote: SocketAddr) -> Remembering {
        let recent = Arc::new(SendLog::default());
        self.change(|all| all.insert(remote, recent.clone()));
        Remembering {
            all: self.clone(),
            remote,
            recent,
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<SocketAddr, Arc<SendLog>>) -> T) {
        let mut all = self
            .by_address
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut all);
        self.any.store(!all.is_empty(), Relaxed);
    }
}

impl Remembering {
    /// See [`SendLog::message_written`].
    pub(crate) fn message_written(&self) {
        self.recent.message_written();
    }

    /// See [`SendLog::again`].
    pub(crate) fn resend_within(&self, within: Duration, most: u64, send: impl FnMut(Transmit)) {
        self.recent.resend_within(within, most, send);
    }
}

impl Drop for Remembering {
    fn drop(&mut self) {
        self.all.change(|all| {
            // Another session may have come from the same address.
            if all
                .get(&self.remote)
                .is_some_and(|it| Arc::ptr_eq(it, &self.recent))
            {
                all.remove(&self.remote);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_an_agent_is_kept_for_as_long_as_its_session_lasts() {
        let all = Arc::new(SendLogs::default());
        let remote = SocketAddr::from(([192, 0, 2, 1], 1));
        let again = |of: &Remembering| {
            let mut sent = Vec::new();
            of.resend_within(Duration::from_secs(60), u64::MAX, |transmit| {
                assert_eq!(transmit.destination, remote);
                sent.extend_from_slice(transmit.contents);
            });
            sent
        };
        let send = |to: SocketAddr, contents: &[u8]| {
            let transmit = Transmit {
                destination: to,
                ecn: None,
                contents,
                segment_size: None,
                src_ip: None,
            };
            all.sent(&transmit, |_| panic!("is not busy"));
        };
        let first = all.remember(remote);
        again(&first);
        send(remote, b"mine");
        send(([192, 0, 2, 1], 2).into(), b"another's");
        assert_eq!(again(&first), b"mine");

        let second = all.remember(remote);
        drop(first);
        again(&second);
        send(remote, b"of the second");
        assert_eq!(again(&second), b"of the second");

        drop(second);
        assert!(!all.any.load(Relaxed));
    }
}
