//! The control stream of a session, at the agent.

use quinn::{Connection, ConnectionError, RecvStream, SendStream};

use crate::proto;
use crate::proto::{
    AgentMessage, CONTROL_LIMIT, EdgeMessage, HELLO_LIMIT, Hello, Splitter, WireError,
};
use crate::stream::{CONTROL_PRIORITY, next_message};

/// The control stream.
pub struct Control {
    send: SendStream,
    receive: RecvStream,
    splitter: Splitter,
}

impl Control {
    /// Open the control stream. A connection has exactly one.
    ///
    /// # Errors
    /// [`ConnectionError`] if the connection is lost.
    pub async fn open(connection: &Connection) -> Result<Self, ConnectionError> {
        let (send, receive) = connection.open_bi().await?;
        let _ = send.set_priority(CONTROL_PRIORITY);
        Ok(Self {
            send,
            receive,
            splitter: Splitter::default(),
        })
    }

    /// Send one message.
    ///
    /// # Errors
    /// [`ControlError`] if the message is too long, or the stream cannot be written.
    pub async fn send(&mut self, message: &AgentMessage) -> Result<(), ControlError> {
        let bytes = proto::encode(message, CONTROL_LIMIT)?;
        self.send.write_chunk(bytes).await?;
        Ok(())
    }

    /// Send the first message, for which there is a lower limit than for those of an agent that is known.
    ///
    /// # Errors
    /// [`ControlError::HelloTooLarge`] before anything is sent.
    pub async fn hello(&mut self, hello: Hello) -> Result<(), ControlError> {
        let bytes = match proto::encode(&AgentMessage::Hello(hello), HELLO_LIMIT) {
            Err(err @ WireError::TooLong { .. }) => return Err(ControlError::HelloTooLarge(err)),
            encoded => encoded?,
        };
        self.send.write_chunk(bytes).await?;
        Ok(())
    }

    /// Receive the next message. Cancel safe.
    ///
    /// # Errors
    /// [`ControlError`] if the message is invalid, or the stream has ended.
    pub async fn receive(&mut self) -> Result<EdgeMessage, ControlError> {
        next_message::<_, ControlError>(&mut self.receive, &mut self.splitter, CONTROL_LIMIT)
            .await?
            .ok_or(WireError::Truncated.into())
    }
}

/// The control stream has failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The hello is longer than an edge reads.
    #[error("the hello is longer than an edge reads")]
    HelloTooLarge(#[source] WireError),
    #[error("the message from the edge is invalid")]
    Wire(#[from] WireError),
    #[error("the control stream cannot be read")]
    Read(#[from] quinn::ReadError),
    #[error("the control stream cannot be written")]
    Write(#[from] quinn::WriteError),
}
