//! The send logs of an edge, by agent address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quinn::udp::Transmit;

use super::send_log::SendLog;

/// The logs of the packets sent to those agents that have one.
#[derive(Default)]
pub(crate) struct SendLogs {
    by_address: RwLock<HashMap<SocketAddr, Arc<SendLog>>>,
    /// Set while there is any log; avoids the lock while there is none.
    any: AtomicBool,
}

/// A handle to the log for one agent. Dropping it removes the log.
pub(crate) struct SendLogHandle {
    all: Arc<SendLogs>,
    remote: SocketAddr,
    log: Arc<SendLog>,
}

impl SendLogs {
    /// Record a transmit in the log for its destination, and resend the duplicates that are due after it.
    pub(crate) fn sent(&self, transmit: &Transmit, send: impl FnOnce(Transmit)) {
        if self.any.load(Relaxed) {
            let all = self.by_address.read();
            let all = all.unwrap_or_else(PoisonError::into_inner);
            if let Some(log) = all.get(&transmit.destination) {
                log.sent(transmit, send);
            }
        }
    }

    /// Start a log of the packets to an address. It replaces an earlier one.
    pub(crate) fn start_log(self: &Arc<Self>, remote: SocketAddr) -> SendLogHandle {
        let log = Arc::new(SendLog::default());
        self.change(|all| all.insert(remote, log.clone()));
        SendLogHandle {
            all: self.clone(),
            remote,
            log,
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

impl SendLogHandle {
    /// See [`SendLog::message_written`].
    pub(crate) fn message_written(&self) {
        self.log.message_written();
    }

    /// See [`SendLog::resend_within`].
    pub(crate) fn resend_within(
        &self,
        within: Duration,
        max_bytes: u64,
        send: impl FnMut(Transmit),
    ) {
        self.log.resend_within(within, max_bytes, send);
    }
}

impl Drop for SendLogHandle {
    fn drop(&mut self) {
        self.all.change(|all| {
            // Another session may use the same address by now.
            if all
                .get(&self.remote)
                .is_some_and(|it| Arc::ptr_eq(it, &self.log))
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
    fn packets_to_an_agent_are_logged_until_its_handle_is_dropped() {
        let all = Arc::new(SendLogs::default());
        let remote = SocketAddr::from(([192, 0, 2, 1], 1));
        let again = |of: &SendLogHandle| {
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
        let first = all.start_log(remote);
        again(&first);
        send(remote, b"mine");
        send(([192, 0, 2, 1], 2).into(), b"another's");
        assert_eq!(again(&first), b"mine");

        let second = all.start_log(remote);
        drop(first);
        again(&second);
        send(remote, b"of the second");
        assert_eq!(again(&second), b"of the second");

        drop(second);
        assert!(!all.any.load(Relaxed));
    }
}
