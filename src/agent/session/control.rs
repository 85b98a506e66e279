//! The control stream of a session, at the agent.

use quinn::{Connection, ConnectionError, RecvStream, SendStream};

use crate::proto;
use crate::proto::{AgentMessage, CONTROL_LIMIT, EdgeMessage, HELLO_LIMIT, Hello, Splitter, WireError};
use crate::stream::{CONTROL_PRIORITY, next_message};

/// The control stream.
pub struct Control {
    send: SendStream,
    receive: RecvStream,
    splitter: Splitter,
}

impl Control {
    /// Open the stream, which a connection has one of.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn open(connection: &Connection) -> Result<Self, ConnectionError> {
        let (send, receive) = connection.open_bi().await?;
        let _ = send.set_priority(CONTROL_PRIORITY);
        Ok(Self {
            send,
            receive,
            splitter: Splitter::default(),
        })
    }

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

    /// Receive the next message. May be cancelled.
    pub async fn receive(&mut self) -> Result<EdgeMessage, ControlError> {
        next_message::<_, ControlError>(&mut self.receive, &mut self.splitter, CONTROL_LIMIT)
            .await?
            .ok_or(WireError::Truncated.into())
    }
}

/// The control stream is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The hello is longer than an edge reads.
    #[error("the hello is longer than an edge reads")]
    HelloTooLarge(#[source] WireError),
    #[error("the edge is not understood")]
    Wire(#[from] WireError),
    #[error("the control stream cannot be read")]
    Read(#[from] quinn::ReadError),
    #[error("the control stream cannot be written")]
    Write(#[from] quinn::WriteError),
}
