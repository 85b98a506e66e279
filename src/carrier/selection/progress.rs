//! Tracking of the edge's acknowledgements: the only proof that packets pass both ways.
//!
//! An edge that receives nothing still sends: it retransmits, and visitors cause new data. Even its
//! ACK frames are repeated with those. So this counts the bytes that are acknowledged for the first
//! time.

use quinn::{Connection, FrameStats};
use tokio::time::Instant;

use crate::carrier::congestion;

/// Acknowledgements of one connection, sampled at each [`Self::update`].
#[derive(Debug)]
pub(crate) struct Progress {
    /// Bytes acknowledged by the last update.
    delivered: u64,
    /// Ack-eliciting frames sent by then.
    sent: u64,
    last_acked: Option<Instant>,
    unacked: Option<Unacked>,
}

/// Data sent since the last acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unacked {
    pub(crate) since: Instant,
    /// Updates at which more had been sent, or waited to be: QUIC retransmits what must be
    /// acknowledged.
    pub(crate) transmits: u32,
}

impl Progress {
    pub(crate) fn new(connection: &Connection) -> Self {
        let (delivered, sent) = counts(connection);
        Self::since(delivered, sent)
    }

    fn since(delivered: u64, sent: u64) -> Self {
        Self {
            delivered,
            sent,
            last_acked: None,
            unacked: None,
        }
    }

    /// Compare the connection's counters with those of the last update. What the carrier has no
    /// room for counts as unacknowledged, too: a blocked connection sends nothing whose loss could
    /// be noticed.
    pub(crate) fn update(&mut self, connection: &Connection, more_to_send: bool, now: Instant) {
        let (delivered, sent) = counts(connection);
        self.record(delivered, sent, more_to_send, now);
    }

    fn record(&mut self, delivered: u64, sent: u64, more_to_send: bool, now: Instant) {
        if delivered > self.delivered {
            // What was sent in the meantime may be acknowledged or not. If not, QUIC will
            // retransmit it.
            self.last_acked = Some(now);
            self.unacked = None;
        } else if sent > self.sent || more_to_send {
            let unacked = self.unacked.get_or_insert(Unacked {
                since: now,
                transmits: 0,
            });
            unacked.transmits += 1;
        }
        (self.delivered, self.sent) = (delivered, sent);
    }

    /// Return the time of the last acknowledgement, to the precision of the updates.
    pub(crate) fn last_acked(&self) -> Option<Instant> {
        self.last_acked
    }

    /// Return what is unacknowledged since the last acknowledgement, if there is anything.
    pub(crate) fn unacked(&self) -> Option<Unacked> {
        self.unacked
    }
}

fn counts(connection: &Connection) -> (u64, u64) {
    let delivered = congestion::delivered(connection.congestion_state());
    (delivered, ack_eliciting(&connection.stats().frame_tx))
}

/// Return the ack-eliciting frames sent: all but ACK, PADDING and CONNECTION_CLOSE (RFC 9002 §2).
fn ack_eliciting(sent: &FrameStats) -> u64 {
    [
        sent.ack_frequency,
        sent.crypto,
        sent.data_blocked,
        sent.datagram,
        sent.handshake_done.into(),
        sent.immediate_ack,
        sent.max_data,
        sent.max_stream_data,
        sent.max_streams_bidi,
        sent.max_streams_uni,
        sent.new_connection_id,
        sent.new_token,
        sent.path_challenge,
        sent.path_response,
        sent.ping,
        sent.reset_stream,
        sent.retire_connection_id,
        sent.stream_data_blocked,
        sent.streams_blocked_bidi,
        sent.streams_blocked_uni,
        sent.stop_sending,
        sent.stream,
    ]
    .iter()
    .sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn data_is_unacknowledged_until_something_is_acknowledged() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut progress = Progress::since(100, 5);

        progress.record(100, 5, false, at(0));
        assert_eq!(progress.unacked(), None);

        progress.record(100, 7, false, at(50));
        progress.record(100, 7, false, at(100));
        progress.record(100, 8, false, at(150));
        let unacked = Unacked {
            since: at(50),
            transmits: 2,
        };
        assert_eq!(progress.unacked(), Some(unacked));
        assert_eq!(progress.last_acked(), None);

        progress.record(200, 9, false, at(200));
        assert_eq!(progress.unacked(), None);
        assert_eq!(progress.last_acked(), Some(at(200)));
    }

    #[test]
    fn data_that_waits_for_the_carrier_counts_as_unacknowledged() {
        let now = Instant::now();
        let mut progress = Progress::since(100, 5);

        progress.record(100, 5, true, now);

        assert_eq!(progress.unacked().map(|unacked| unacked.since), Some(now));
        progress.record(200, 5, true, now);
        assert_eq!(progress.unacked(), None);
    }
}
