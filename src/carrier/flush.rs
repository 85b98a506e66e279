//! When all that was sent has arrived.

use std::time::Duration;

use quinn::Connection;
use tokio::time::sleep;

use super::congestion;

/// Wait until the peer has acknowledged all that was sent on a connection, or the connection has ended.
///
/// quinn takes data long before it is sent, forgets what is not acknowledged when the connection is closed, and
/// has no word for this moment. It is when nothing is on its way, and nothing has been for a round trip.
pub async fn all_delivered(connection: &Connection) {
    let mut before = None;
    while connection.close_reason().is_none() {
        let idle_at = congestion::idle_at(connection.congestion_state());
        if idle_at.is_some() && idle_at == before {
            return;
        }
        before = idle_at;
        sleep(connection.rtt().max(TURN)).await;
    }
}

/// Time in which quinn gets to send what it was given.
const TURN: Duration = Duration::from_millis(10);
