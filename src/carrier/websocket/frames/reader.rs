//! Decoding of frames: they are checked, unmasked, and assembled into messages.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{FIN, LENGTH_16, LENGTH_64, MASKED, MAX_CONTROL_PAYLOAD, Role, apply, opcode};

/// A message or control frame from the peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A binary message.
    Binary(Bytes),
    /// A ping, to be answered with a pong of the same payload.
    Ping(Bytes),
    Pong,
    /// A close frame: the peer sends no more.
    Close,
}

/// No more frames can be read.
#[derive(Debug)]
pub(crate) enum FrameError {
    /// The connection was closed.
    End,
    Io(io::Error),
    /// A text message was received.
    Text,
    /// A message is too long.
    TooLong,
    /// The peer violates the protocol, as described.
    Protocol(&'static str),
}

/// The header of a frame.
struct FrameHeader {
    fin: bool,
    opcode: u8,
    mask: Option<[u8; 4]>,
    /// The length of the header, in bytes.
    length: usize,
    /// The length of the payload, in bytes.
    payload: u64,
}

impl FrameHeader {
    /// Decode a header. Return `None` while it is incomplete.
    fn read(mut bytes: &[u8]) -> Option<Self> {
        let all = bytes.len();
        let [first, second] = bytes.try_get_u16().ok()?.to_be_bytes();
        let payload = match second & !MASKED {
            LENGTH_16 => bytes.try_get_u16().ok()?.into(),
            LENGTH_64 => bytes.try_get_u64().ok()?,
            short => short.into(),
        };
        let mask = match second & MASKED {
            0 => None,
            _ => Some(bytes.try_get_u32().ok()?.to_be_bytes()),
        };
        Some(Self {
            fin: first & FIN != 0,
            opcode: first & !FIN,
            mask,
            length: all - bytes.len(),
            payload,
        })
    }
}

/// Return the first `bytes` bytes of a frame's payload, or all if it has fewer, once they have been read.
#[cfg(unix)]
pub(crate) fn payload_prefix(frame: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let head = FrameHeader::read(frame)?;
    let wanted = usize::try_from(head.payload).map_or(bytes, |all| all.min(bytes));
    let mut payload = frame[head.length..].get(..wanted)?.to_vec();
    if let Some(mask) = head.mask {
        apply(mask, &mut payload);
    }
    Some(payload)
}

/// Reads frames and assembles messages.
pub(crate) struct Reader<R> {
    io: R,
    role: Role,
    /// The length of the longest accepted message, in bytes.
    max_message: usize,
    /// Bytes that have been read and not yet decoded.
    buffer: BytesMut,
    /// Bytes to read at once.
    read_size: usize,
    /// The message of which only some frames have been received.
    partial: Option<BytesMut>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Create a reader for the end with this role, of messages of up to `max_message` bytes.
    pub(crate) fn new(io: R, role: Role, max_message: usize) -> Self {
        Self {
            io,
            role,
            max_message,
            buffer: BytesMut::new(),
            read_size: READ_SIZE.0,
            partial: None,
        }
    }

    /// Start with bytes that have been read already.
    pub(crate) fn with_buffered(mut self, early: BytesMut) -> Self {
        self.buffer = early;
        self
    }

    /// Wait for the next message or control frame. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Received, FrameError> {
        loop {
            if let Some(head) = FrameHeader::read(&self.buffer) {
                let payload = self.check(&head)?;
                let frame = head.length + payload;
                if frame <= self.buffer.len() {
                    self.buffer.advance(head.length);
                    let mut payload = self.buffer.split_to(payload);
                    if let Some(mask) = head.mask {
                        apply(mask, &mut payload);
                    }
                    match self.accept(&head, payload) {
                        Some(received) => return Ok(received),
                        None => continue,
                    }
                }
                self.buffer.reserve(frame - self.buffer.len());
            }
            self.fill().await?;
        }
    }

    /// Check that a frame is allowed here, and return the length of its payload.
    fn check(&self, head: &FrameHeader) -> Result<usize, FrameError> {
        if head.opcode & RESERVED_BITS != 0 {
            return Err(FrameError::Protocol("a frame with reserved bits set"));
        }
        if head.mask.is_some() != (self.role == Role::Server) {
            return Err(FrameError::Protocol(match self.role {
                Role::Server => "an unmasked frame",
                Role::Client => "a masked frame",
            }));
        }
        let before = self.partial.as_ref().map(BytesMut::len);
        match head.opcode {
            opcode::CLOSE | opcode::PING | opcode::PONG => {
                if !head.fin || head.payload > MAX_CONTROL_PAYLOAD as u64 {
                    return Err(FrameError::Protocol(
                        "a fragmented or too long control frame",
                    ));
                }
            }
            opcode::TEXT => return Err(FrameError::Text),
            opcode::BINARY if before.is_some() => {
                return Err(FrameError::Protocol(
                    "a new message within a fragmented message",
                ));
            }
            opcode::CONTINUATION if before.is_none() => {
                return Err(FrameError::Protocol(
                    "a continuation frame without a message",
                ));
            }
            opcode::BINARY | opcode::CONTINUATION => {}
            _ => return Err(FrameError::Protocol("a frame with an unknown opcode")),
        }
        let payload = usize::try_from(head.payload).map_err(|_| FrameError::TooLong)?;
        match payload.checked_add(before.unwrap_or(0)) {
            Some(message) if message <= self.max_message => Ok(payload),
            _ => Err(FrameError::TooLong),
        }
    }

    /// Accept a frame, and return the message or control frame that it completes.
    fn accept(&mut self, head: &FrameHeader, payload: BytesMut) -> Option<Received> {
        match head.opcode {
            opcode::CLOSE => return Some(Received::Close),
            opcode::PING => return Some(Received::Ping(payload.freeze())),
            opcode::PONG => return Some(Received::Pong),
            _ => {}
        }
        let message = match self.partial.take() {
            None => payload,
            Some(mut message) => {
                message.extend_from_slice(&payload);
                message
            }
        };
        if !head.fin {
            self.partial = Some(message);
            return None;
        }
        Some(Received::Binary(message.freeze()))
    }

    /// Read more bytes, and adapt the read size.
    async fn fill(&mut self) -> Result<(), FrameError> {
        let spare = self.buffer.capacity() - self.buffer.len();
        if self.buffer.is_empty() && self.buffer.capacity() > 2 * self.read_size {
            // Reserving would keep the large allocation.
            self.buffer = BytesMut::with_capacity(self.read_size);
        } else if spare < self.read_size / 2 {
            self.buffer.reserve(self.read_size);
        }
        let spare = self.buffer.capacity() - self.buffer.len();
        let read = self.io.read_buf(&mut self.buffer).await;
        let read = read.map_err(FrameError::Io)?;
        match read {
            0 => return Err(FrameError::End),
            all if all == spare => self.read_size = (self.read_size * 4).min(READ_SIZE.1),
            little if little < self.read_size / 8 => {
                self.read_size = (self.read_size / 2).max(READ_SIZE.0)
            }
            _ => {}
        }
        Ok(())
    }
}

/// The RSV1 to RSV3 bits in the first byte: no extension is negotiated.
const RESERVED_BITS: u8 = 0x70;

/// The smallest and the largest number of bytes to read at once.
const READ_SIZE: (usize, usize) = (1024, 64 * 1024);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::carrier::websocket::frames::Encoder;

    const LONGEST: usize = 70_000;

    #[tokio::test]
    async fn an_idle_reader_releases_its_memory() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut reader = Reader::new(near, Role::Client, LONGEST);
        let mut server = Encoder::new(Role::Server);
        for _ in 0..100 {
            let frame = server.binary(&[&[7; 60_000]]).unwrap();
            far.write_all(&frame).await.unwrap();
            reader.next().await.unwrap();
        }
        assert!(reader.read_size > 32 << 10);

        for _ in 0..10 {
            far.write_all(&server.binary(&[b"still there"]).unwrap())
                .await
                .unwrap();
            reader.next().await.unwrap();
        }

        assert!(reader.buffer.capacity() <= 2 * READ_SIZE.0);
    }
}
