//! Waiting until everything that was sent on a connection has been acknowledged.

use std::time::Duration;

use quinn::Connection;
use tokio::time::sleep;

use super::congestion;

/// Wait until the peer has acknowledged everything that was sent on a connection, or the connection has ended.
///
/// quinn accepts data long before it sends it, discards unacknowledged data when the connection is closed, and
/// has no event for "everything delivered". Here that means: nothing is in flight, and nothing has been for a
/// round trip.
pub async fn wait_until_delivered(connection: &Connection) {
    let mut before = None;
    while connection.close_reason().is_none() {
        let idle_at = congestion::idle_at(connection.congestion_state());
        if idle_at.is_some() && idle_at == before {
            return;
        }
        before = idle_at;
        sleep(connection.rtt().max(MIN_POLL_INTERVAL)).await;
    }
}

/// The shortest time between two checks. It gives quinn time to send what it was given.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(10);
