//! What the edge acknowledges of what was sent to it: the only proof that packets pass both ways.
//!
//! An edge that hears nothing goes on speaking: it repeats itself, and visitors make it say new
//! things. Even its acknowledgement frames come again with those. So this counts the bytes that are
//! acknowledged for the first time.

use quinn::{Connection, FrameStats};
use tokio::time::Instant;

use crate::carrier::congestion;

/// Follows one connection, as often as it is told to look.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Bytes that were acknowledged at the last look.
    delivered: u64,
    /// Frames that had been sent then and must be acknowledged.
    asked: u64,
    acked: Option<Instant>,
    owed: Option<Owed>,
}

/// Something was sent and nothing has been acknowledged since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owed {
    pub(crate) since: Instant,
    /// At how many looks more had been sent, or waited: QUIC repeats what needs an answer.
    pub(crate) asks: u32,
}

impl Progress {
    pub(crate) fn new(connection: &Connection) -> Self {
        let (delivered, asked) = counts(connection);
        Self::since(delivered, asked)
    }

    fn since(delivered: u64, asked: u64) -> Self {
        Self {
            delivered,
            asked,
            acked: None,
            owed: None,
        }
    }

    /// Look at what has come since the last look. What the carrier does not take is owed like what it took:
    /// a connection that waits for room sends nothing that could be missed.
    pub(crate) fn decide(&mut self, connection: &Connection, more_to_send: bool, now: Instant) {
        let (delivered, asked) = counts(connection);
        self.note(delivered, asked, more_to_send, now);
    }

    fn note(&mut self, delivered: u64, asked: u64, more_to_send: bool, now: Instant) {
        if delivered > self.delivered {
            // What was sent in the meantime may be acknowledged or not. If not, QUIC will repeat it.
            self.acked = Some(now);
            self.owed = None;
        } else if asked > self.asked || more_to_send {
            let owed = self.owed.get_or_insert(Owed {
                since: now,
                asks: 0,
            });
            owed.asks += 1;
        }
        (self.delivered, self.asked) = (delivered, asked);
    }

    /// When something was acknowledged last, to the precision of a look.
    pub(crate) fn acked(&self) -> Option<Instant> {
        self.acked
    }

    pub(crate) fn owed(&self) -> Option<Owed> {
        self.owed
    }
}

fn counts(connection: &Connection) -> (u64, u64) {
    let delivered = congestion::delivered(connection.congestion_state());
    (delivered, must_be_acked(&connection.stats().frame_tx))
}

/// Frames sent that must be acknowledged: all but ACK, PADDING and CONNECTION_CLOSE (RFC 9002 §2).
fn must_be_acked(sent: &FrameStats) -> u64 {
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
    fn what_is_sent_is_owed_until_something_is_acknowledged() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut progress = Progress::since(100, 5);

        progress.note(100, 5, false, at(0));
        assert_eq!(progress.owed(), None);

        progress.note(100, 7, false, at(50));
        progress.note(100, 7, false, at(100));
        progress.note(100, 8, false, at(150));
        let owed = Owed {
            since: at(50),
            asks: 2,
        };
        assert_eq!(progress.owed(), Some(owed));
        assert_eq!(progress.acked(), None);

        progress.note(200, 9, false, at(200));
        assert_eq!(progress.owed(), None);
        assert_eq!(progress.acked(), Some(at(200)));
    }

    #[test]
    fn what_the_carrier_has_no_room_for_is_owed_like_what_was_sent() {
        let now = Instant::now();
        let mut progress = Progress::since(100, 5);

        progress.note(100, 5, true, now);

        assert_eq!(progress.owed().map(|owed| owed.since), Some(now));
        progress.note(200, 5, true, now);
        assert_eq!(progress.owed(), None);
    }
}
