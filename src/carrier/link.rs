//! The connection of a session, with what the transport below it needs to know of the session.

use std::sync::Arc;

use quinn::Connection;

use super::duplicate::duplicator::Duplicator;
use super::{flush, transport};

/// What both ends have of a session's connection. The ends' own parts are in
/// [`AgentLink`](super::AgentLink) and [`EdgeLink`](super::EdgeLink).
pub struct Link {
    connection: Connection,
    duplicator: Arc<Duplicator>,
}

impl Link {
    pub(crate) fn new(connection: Connection, duplicator: Duplicator) -> Self {
        Self {
            connection,
            duplicator: Arc::new(duplicator),
        }
    }

    /// Return the QUIC connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Return the negotiated protocol (ALPN, RFC 7301).
    pub fn alpn(&self) -> Option<Vec<u8>> {
        transport::alpn(&self.connection)
    }

    /// Return a function to call when a message is about to be sent, with the length of its body in bytes.
    pub fn on_message(&self) -> impl Fn(u64) + Send + Sync + use<> {
        let duplicator = self.duplicator.clone();
        move |bytes| duplicator.message_written(bytes)
    }

    /// Send the last packets of a finished message again: see [`Duplicator::resend_tail`].
    pub fn resend_tail(&self) {
        self.duplicator.resend_tail();
    }

    /// Wait until the peer has acknowledged everything that was sent, or the connection has ended.
    pub async fn wait_until_delivered(&self) {
        flush::wait_until_delivered(&self.connection).await;
    }
}
