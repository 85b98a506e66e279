//! Frames as they are received: checked, unmasked, and put together to messages.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{FIN, LENGTH_16, LENGTH_64, MASKED, Role, SHORT, apply, opcode};

/// What has come from the far end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A binary message.
    Binary(Bytes),
    /// To be answered with a pong that says the same.
    Ping(Bytes),
    Pong,
    /// The far end sends no more.
    Close,
}

/// Why no more can be read.
#[derive(Debug)]
pub(crate) enum FrameError {
    /// The connection has ended.
    End,
    Io(io::Error),
    /// A text message has come.
    Text,
    /// A message is too long.
    TooLong,
    /// This breaks the protocol.
    Protocol(&'static str),
}

/// What a frame says of itself.
struct Head {
    fin: bool,
    opcode: u8,
    mask: Option<[u8; 4]>,
    /// Bytes of the head.
    length: usize,
    /// Bytes behind it.
    payload: u64,
}

impl Head {
    /// Read one, or answer `None` while it is not all there.
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

/// Return the first bytes that a frame bears, so many or all of them, once they are there.
#[cfg(unix)]
pub(crate) fn beginning(frame: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let head = Head::read(frame)?;
    let wanted = usize::try_from(head.payload).map_or(bytes, |all| all.min(bytes));
    let mut payload = frame[head.length..].get(..wanted)?.to_vec();
    if let Some(mask) = head.mask {
        apply(mask, &mut payload);
    }
    Some(payload)
}

/// Takes frames apart.
pub(crate) struct Reader<R> {
    io: R,
    role: Role,
    /// The longest message.
    longest: usize,
    /// What has been read and belongs to no message yet.
    buffer: BytesMut,
    /// How much is read at once.
    room: usize,
    /// The message of which some frames are there.
    begun: Option<BytesMut>,
}

/// How much is read at once while little comes, and at most.
const ROOM: (usize, usize) = (1024, 64 * 1024);

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Read what the far end of this one says, up to so many bytes per message.
    pub(crate) fn new(io: R, role: Role, longest: usize) -> Self {
        Self {
            io,
            role,
            longest,
            buffer: BytesMut::new(),
            room: ROOM.0,
            begun: None,
        }
    }

    /// Begin with bytes that have been read already.
    pub(crate) fn after(mut self, early: BytesMut) -> Self {
        self.buffer = early;
        self
    }

    /// Wait for the next message or control frame. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Received, FrameError> {
        loop {
            if let Some(head) = Head::read(&self.buffer) {
                let payload = self.check(&head)?;
                let frame = head.length + payload;
                if frame <= self.buffer.len() {
                    self.buffer.advance(head.length);
                    let mut payload = self.buffer.split_to(payload);
                    if let Some(mask) = head.mask {
                        apply(mask, &mut payload);
                    }
                    match self.take(&head, payload) {
                        Some(received) => return Ok(received),
                        None => continue,
                    }
                }
                self.buffer.reserve(frame - self.buffer.len());
            }
            self.fill().await?;
        }
    }

    /// Refuse a frame that must not be sent here, and return how long it is otherwise.
    fn check(&self, head: &Head) -> Result<usize, FrameError> {
        if head.opcode & RESERVED != 0 {
            return Err(FrameError::Protocol("a frame of an unknown extension"));
        }
        if head.mask.is_some() != (self.role == Role::Server) {
            return Err(FrameError::Protocol(match self.role {
                Role::Server => "a frame without a mask",
                Role::Client => "a frame with a mask",
            }));
        }
        let before = self.begun.as_ref().map(BytesMut::len);
        match head.opcode {
            opcode::CLOSE | opcode::PING | opcode::PONG => {
                if !head.fin || head.payload > SHORT as u64 {
                    return Err(FrameError::Protocol("a long control frame"));
                }
            }
            opcode::TEXT => return Err(FrameError::Text),
            opcode::BINARY if before.is_some() => {
                return Err(FrameError::Protocol("a message within a message"));
            }
            opcode::CONTINUATION if before.is_none() => {
                return Err(FrameError::Protocol("the end of no message"));
            }
            opcode::BINARY | opcode::CONTINUATION => {}
            _ => return Err(FrameError::Protocol("a frame of an unknown kind")),
        }
        let payload = usize::try_from(head.payload).map_err(|_| FrameError::TooLong)?;
        match payload.checked_add(before.unwrap_or(0)) {
            Some(message) if message <= self.longest => Ok(payload),
            _ => Err(FrameError::TooLong),
        }
    }

    /// Take in a frame, and return what it completes.
    fn take(&mut self, head: &Head, payload: BytesMut) -> Option<Received> {
        match head.opcode {
            opcode::CLOSE => return Some(Received::Close),
            opcode::PING => return Some(Received::Ping(payload.freeze())),
            opcode::PONG => return Some(Received::Pong),
            _ => {}
        }
        let message = match self.begun.take() {
            None => payload,
            Some(mut message) => {
                message.extend_from_slice(&payload);
                message
            }
        };
        if !head.fin {
            self.begun = Some(message);
            return None;
        }
        Some(Received::Binary(message.freeze()))
    }

    /// Read some more.
    async fn fill(&mut self) -> Result<(), FrameError> {
        let spare = self.buffer.capacity() - self.buffer.len();
        if self.buffer.is_empty() && self.buffer.capacity() > 2 * self.room {
            // Anything else would keep the memory.
            self.buffer = BytesMut::with_capacity(self.room);
        } else if spare < self.room / 2 {
            self.buffer.reserve(self.room);
        }
        let spare = self.buffer.capacity() - self.buffer.len();
        let read = self.io.read_buf(&mut self.buffer).await;
        let read = read.map_err(FrameError::Io)?;
        match read {
            0 => return Err(FrameError::End),
            all if all == spare => self.room = (self.room * 4).min(ROOM.1),
            little if little < self.room / 8 => self.room = (self.room / 2).max(ROOM.0),
            _ => {}
        }
        Ok(())
    }
}

/// In the first byte: what no extension of ours uses.
const RESERVED: u8 = 0x70;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::carrier::websocket::frames::Encoder;

    const LONGEST: usize = 70_000;

    #[tokio::test]
    async fn a_reader_that_has_become_idle_gives_its_memory_back() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut reader = Reader::new(near, Role::Client, LONGEST);
        let mut server = Encoder::new(Role::Server);
        for _ in 0..100 {
            let frame = server.binary(&[&[7; 60_000]]).unwrap();
            far.write_all(&frame).await.unwrap();
            reader.next().await.unwrap();
        }
        assert!(reader.room > 32 << 10);

        for _ in 0..10 {
            far.write_all(&server.binary(&[b"still there"]).unwrap())
                .await
                .unwrap();
            reader.next().await.unwrap();
        }

        assert!(reader.buffer.capacity() <= 2 * ROOM.0);
    }
}
