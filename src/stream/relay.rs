//! Relay of raw bytes between a connection and a stream, after an upgrade.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Receiver, Sender};

/// Bytes relayed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Relayed {
    /// From the connection into the stream.
    pub sent: u64,
    /// From the stream to the connection.
    pub received: u64,
}

/// Relay until both directions have ended. A half-close of one leaves the other open, without an
/// idle timeout; a failure of one resets both.
pub async fn relay<S>(io: S, mut sender: Sender, mut receiver: Receiver) -> Relayed
where
    S: AsyncRead + AsyncWrite,
{
    let (mut read, mut write) = tokio::io::split(io);
    let mut relayed = Relayed::default();
    let Relayed { sent, received } = &mut relayed;
    let outward = async {
        let mut buf = BytesMut::new();
        loop {
            buf.reserve(READ_SIZE);
            match read.read_buf(&mut buf).await {
                Ok(0) => break sender.finish(),
                Ok(n) => *sent += n as u64,
                Err(_) => return Err(()),
            }
            sender.raw(buf.split().freeze()).await.map_err(drop)?;
        }
        Ok(())
    };
    let inward = async {
        while let Some(unread) = receiver.raw().await.map_err(drop)? {
            write.write_all(unread.as_ref()).await.map_err(drop)?;
            write.flush().await.map_err(drop)?;
            *received += unread.len() as u64;
        }
        write.shutdown().await.map_err(drop)
    };
    // The first direction to fail cancels the other, whose stream is then reset as it is dropped.
    let _ = tokio::try_join!(outward, inward);
    relayed
}

/// Bytes to read at once; more gains nothing on a stream of 1,400-byte packets.
const READ_SIZE: usize = 16 << 10;
