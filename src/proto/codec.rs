//! Length-prefixed postcard: how a value becomes bytes, and bytes that arrive in any pieces a value.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Encode `value` with its length in front.
///
/// # Errors
/// [`WireError::TooLong`] if the encoding exceeds `limit` bytes.
pub fn encode<T: Serialize>(value: &T, limit: usize) -> Result<Bytes, WireError> {
    // The length is written into room left for it, so that the value is serialised only once.
    let mut buf = BytesMut::with_capacity(512);
    buf.put_bytes(0, PREFIX);
    let mut buf =
        postcard::serialize_with_flavor(value, Output(buf)).map_err(|_| WireError::Malformed)?;
    let length = buf.len() - PREFIX;
    if length > limit {
        return Err(WireError::TooLong { length, limit });
    }
    // Four-byte form of the variable-length integer: two most significant bits are `10`.
    let prefix = (length as u32) | 0x8000_0000;
    buf[..PREFIX].copy_from_slice(&prefix.to_be_bytes());
    Ok(buf.freeze())
}

/// Decode one value from exactly these bytes.
///
/// # Errors
/// [`WireError::Malformed`] if they are not one, or if anything is left over.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(WireError::Malformed),
    }
}

/// Write a QUIC variable-length integer (RFC 9000 §16) in its shortest form.
pub fn put_varint(value: u64, out: &mut impl BufMut) {
    match value {
        0..0x40 => out.put_u8(value as u8),
        0x40..0x4000 => out.put_u16(value as u16 | 0x4000),
        0x4000..0x4000_0000 => out.put_u32(value as u32 | 0x8000_0000),
        _ => out.put_u64(value | 0xc000_0000_0000_0000),
    }
}

/// Collects the pieces of length-prefixed messages and gives them out whole.
#[derive(Debug, Default)]
pub struct Splitter {
    buf: BytesMut,
}

impl Splitter {
    /// Add what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// Take the next message's payload if all of it has arrived.
    ///
    /// # Errors
    /// [`WireError::TooLong`] as soon as the length is known to exceed `limit`.
    pub fn next(&mut self, limit: usize) -> Result<Option<Bytes>, WireError> {
        let Some((length, prefix)) = read_varint(&self.buf) else {
            return Ok(None);
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > limit {
            return Err(WireError::TooLong { length, limit });
        }
        if self.buf.len() < prefix + length {
            // Little is believed of what is announced: a few bytes must not take much memory.
            let missing = prefix + length - self.buf.len();
            self.buf.reserve(missing.min(self.buf.len().max(BELIEVED)));
            return Ok(None);
        }
        self.buf.advance(prefix);
        Ok(Some(self.buf.split_to(length).freeze()))
    }

    /// Return how long the message is that has begun to arrive, if that is known.
    pub fn announced(&self) -> Option<usize> {
        read_varint(&self.buf).map(|(length, _)| usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// Give back what followed the last message.
    pub fn into_rest(self) -> Bytes {
        self.buf.freeze()
    }

    /// Report whether nothing has arrived that was not given out.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }
}

/// Read a variable-length integer at the start of `bytes`: its value and how long it is.
pub(crate) fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let rest = bytes.get(1..length)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| {
        value << 8 | u64::from(*byte)
    });
    Some((value, length))
}

/// Where postcard writes: its own growing buffers take bytes one at a time.
struct Output(BytesMut);

impl postcard::ser_flavors::Flavor for Output {
    type Output = BytesMut;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.put_u8(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<BytesMut> {
        Ok(self.0)
    }
}

/// What does not follow the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A message, head or list of trailers is longer than it may be.
    #[error("{length} bytes where at most {limit} are allowed")]
    TooLong {
        /// What was announced.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The bytes are not a value of the kind that is expected here.
    #[error("malformed message")]
    Malformed,
    /// The sender finished inside a message or a frame.
    #[error("the stream ended inside a message")]
    Truncated,
    /// A value is none that may stand there. The text says which and why.
    #[error("{0}")]
    Invalid(&'static str),
    /// Something followed the trailers.
    #[error("data after the trailers")]
    AfterTrailers,
}

/// Room that is made for what is announced and has not come: as much as most heads have.
const BELIEVED: usize = 4 << 10;

/// All lengths that we write fit the four-byte form.
const PREFIX: usize = 4;
