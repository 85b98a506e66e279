//! The agent's end of a session's connection.

use std::ops::Deref;
use std::time::Duration;

use quinn::{Endpoint, VarInt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::dial::{DialConfig, Dialed, dial};
use super::dial_error::DialError;
use super::driver::CarrierState;
use crate::carrier::link::Link;
use crate::carrier::transport::SESSION_BUFFER;
use crate::proto::Close;

/// The agent's connection to the edge, which a task moves between carriers as the network changes.
/// Dropping it closes the connection.
pub struct AgentLink {
    link: Link,
    endpoint: Endpoint,
    state: watch::Receiver<CarrierState>,
}

impl AgentLink {
    /// Bytes of bodies that may wait for the agent's upstreams.
    pub const BUFFER: u64 = SESSION_BUFFER;

    /// Connect to the edge over the first carrier that completes a QUIC handshake.
    ///
    /// # Errors
    /// [`DialError`], with the error of every attempt, if no carrier does.
    pub async fn dial(config: DialConfig) -> Result<Self, DialError> {
        let Dialed {
            connection,
            endpoint,
            carrier,
            driver,
            duplicator,
        } = dial(config).await?;
        // The driver ends by itself soon after the connection is closed: until the close is delivered, its
        // carrier is still needed.
        tokio::spawn(driver.run());
        Ok(Self {
            link: Link::new(connection, duplicator),
            endpoint,
            state: carrier,
        })
    }

    /// Return the carrier in use, and the reason for it.
    pub fn carrier(&self) -> CarrierState {
        self.state.borrow().clone()
    }

    /// Wait until the carrier has changed, or there is a new WebSocket. Return `None` once the connection has
    /// ended. Cancel safe.
    pub async fn carrier_changed(&mut self) -> Option<CarrierState> {
        self.state.changed().await.ok()?;
        Some(self.state.borrow_and_update().clone())
    }

    /// Close the connection, and wait until the edge has acknowledged it, for up to [`CLOSE_TIMEOUT`].
    pub async fn close(&self, code: VarInt, reason: &[u8]) {
        self.connection().close(code, reason);
        let _ = timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

impl Deref for AgentLink {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.link
    }
}

impl Drop for AgentLink {
    fn drop(&mut self) {
        let connection = self.link.connection();
        connection.close(Close::Done.code(), b"the agent is gone");
    }
}

/// Time that the edge has to acknowledge a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
