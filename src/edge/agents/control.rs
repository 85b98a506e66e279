//! The edge's end of a session's control stream.

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tokio::time::timeout;

use super::unauthenticated::Evicted;
use crate::proto;
use crate::proto::{
    ALPN, AgentMessage, CONTROL_LIMIT, Close, EdgeMessage, HELLO_LIMIT, Hello, Splitter, WireError,
};
use crate::stream::{CONTROL_PRIORITY, first_message, next_message};

/// The edge's end of a control stream.
pub struct Control {
    send: SendStream,
    receive: RecvStream,
    splitter: Splitter,
}

impl Control {
    /// Accept the control stream and receive the hello on it.
    pub async fn accept(connection: &Connection) -> Result<(Self, Hello), SessionError> {
        let (send, receive) = connection.accept_bi().await?;
        let _ = send.set_priority(CONTROL_PRIORITY);
        let mut control = Self {
            send,
            receive,
            splitter: Splitter::default(),
        };
        let (receive, splitter) = (&mut control.receive, &mut control.splitter);
        let first = first_message::<AgentMessage, SessionError>(receive, splitter, HELLO_LIMIT);
        match first.await.map_err(too_large)? {
            Some(AgentMessage::Hello(hello)) => Ok((control, hello)),
            None => Err(WireError::Truncated.into()),
            Some(_) => Err(WireError::Invalid("the first message is not a hello").into()),
        }
    }

    /// Send a message, within [`CONTROL_SEND_TIMEOUT`].
    pub async fn send(&mut self, message: &EdgeMessage) -> Result<(), SessionError> {
        let bytes = proto::encode(message, CONTROL_LIMIT)?;
        timeout(CONTROL_SEND_TIMEOUT, self.send.write_chunk(bytes))
            .await
            .map_err(|_| SessionError::Slow)??;
        Ok(())
    }

    /// Receive the next message; `None` when the connection has ended. Cancel safe.
    pub async fn receive(&mut self, limit: usize) -> Result<Option<AgentMessage>, SessionError> {
        match next_message(&mut self.receive, &mut self.splitter, limit).await {
            Err(SessionError::Read(quinn::ReadError::ConnectionLost(_))) => Ok(None),
            received => received,
        }
    }
}

/// Tell a hello that is too long from other violations: the agent can do something about it.
fn too_large(err: SessionError) -> SessionError {
    match err {
        SessionError::Wire(err @ WireError::TooLong { .. }) => SessionError::HelloTooLarge(err),
        other => other,
    }
}

/// Timeout of sending a control message to an agent that does not read.
const CONTROL_SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason why the edge ends a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the agent speaks another version of the protocol")]
    Version,
    #[error("the agent was refused")]
    Refused,
    #[error(transparent)]
    Evicted(#[from] Evicted),
    #[error("the agent does not respond in time")]
    Slow,
    #[error("the agent's first message is too long")]
    HelloTooLarge(#[source] WireError),
    #[error("the agent violates the protocol")]
    Wire(#[from] WireError),
    #[error("the connection was lost")]
    Connection(#[from] quinn::ConnectionError),
    #[error("the control stream cannot be read")]
    Read(#[from] quinn::ReadError),
    #[error("the control stream cannot be written")]
    Write(#[from] quinn::WriteError),
}

impl SessionError {
    /// Return the code to close the connection with.
    pub fn close(&self) -> Close {
        match self {
            Self::Version => Close::Version,
            Self::Refused => Close::Refused,
            Self::Evicted(_) => Close::Busy,
            Self::Slow => Close::Timeout,
            Self::HelloTooLarge(_) => Close::HelloTooLarge,
            Self::Wire(_) | Self::Connection(_) | Self::Read(_) | Self::Write(_) => Close::Protocol,
        }
    }

    /// Return the reason to close the connection with; for a version mismatch, our ALPN.
    pub fn reason(&self) -> String {
        match self {
            Self::Version => String::from_utf8_lossy(ALPN).into_owned(),
            Self::Wire(err) | Self::HelloTooLarge(err) => err.to_string(),
            _ => self.to_string(),
        }
    }
}
