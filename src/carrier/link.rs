//! An agent's connection and what its packets leave by.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use quinn::{AsyncUdpSocket, Connection, Endpoint};
use tokio::time::{Instant, sleep};

/// A connection to an edge that can be asked for a sign of life.
#[derive(Debug)]
pub struct Link {
    pub(super) endpoint: Endpoint,
    pub(super) socket: Arc<dyn AsyncUdpSocket>,
    /// The QUIC connection.
    pub connection: Connection,
}

impl Link {
    /// Prod the edge whenever it has fallen silent, for as long as the future is polled.
    ///
    /// QUIC repeats an unanswered packet at intervals that double (RFC 9002 §6.2.1): an edge that
    /// was away for ten seconds is asked again only ten seconds later. The steady pings found here
    /// meet a restarted edge soon after its return, and its stateless reset ends the connection.
    pub async fn attend(&self) -> Infallible {
        let mut heard = self.heard();
        let mut since = Instant::now();
        loop {
            let silent = since.elapsed() >= SILENCE;
            sleep(if silent { PROD } else { SILENCE }).await;
            let now = self.heard();
            if now != heard {
                (heard, since) = (now, Instant::now());
            } else if since.elapsed() >= SILENCE {
                // quinn has no ping of its own, but it pings when its socket is replaced. The new
                // socket is the old one, so nothing changes for the edge.
                let _ = self.endpoint.rebind_abstract(self.socket.clone());
            }
        }
    }

    /// Wait until the edge has heard that the connection is closed, but not for long.
    pub async fn close(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.endpoint.wait_idle()).await;
    }

    fn heard(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }
}

/// The agent's keep-alive and half a second for the answer: on a live connection something arrives
/// more often than this.
const SILENCE: Duration = Duration::from_millis(1_200);

/// How often a silent edge is pinged: within the second in which its return must be noticed, with
/// room for a lost packet and the handshake. A ping is 60 bytes, and after 15 s the connection is
/// given up.
const PROD: Duration = Duration::from_millis(250);
