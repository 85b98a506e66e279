//! Length-prefixed postcard encoding, and its incremental decoding.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Encode `value` with a length prefix.
///
/// # Errors
/// [`WireError::TooLong`] if the encoding exceeds `limit` bytes.
pub fn encode<T: Serialize>(value: &T, limit: usize) -> Result<Bytes, WireError> {
    // Room for the length is left at the front, so that the value is serialised only once.
    let mut buf = BytesMut::with_capacity(512);
    buf.put_bytes(0, PREFIX);
    let mut buf = postcard::serialize_with_flavor(value, PostcardOutput(buf))
        .map_err(|_| WireError::Malformed)?;
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
/// [`WireError::Malformed`] if they are not a value, or anything is left over.
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

/// Incremental splitter of a byte stream into length-prefixed messages.
#[derive(Debug, Default)]
pub struct Splitter {
    buf: BytesMut,
}

impl Splitter {
    /// Append received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// Take the next message's payload, if all of it has arrived.
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
            // The announced length is not trusted: a few bytes must not reserve much memory.
            let missing = prefix + length - self.buf.len();
            self.buf
                .reserve(missing.min(self.buf.len().max(MAX_RESERVE)));
            return Ok(None);
        }
        self.buf.advance(prefix);
        Ok(Some(self.buf.split_to(length).freeze()))
    }

    /// Return the length of the message that is arriving, if it is known yet.
    pub fn announced(&self) -> Option<usize> {
        read_varint(&self.buf).map(|(length, _)| usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// Return the bytes after the last message.
    pub fn into_rest(self) -> Bytes {
        self.buf.freeze()
    }

    /// Report whether no bytes are left.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }
}

/// Decode the variable-length integer at the start of `bytes` into its value and its length.
pub(crate) fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let rest = bytes.get(1..length)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| {
        value << 8 | u64::from(*byte)
    });
    Some((value, length))
}

/// Output buffer for postcard, whose own growing buffers take bytes one at a time.
struct PostcardOutput(BytesMut);

impl postcard::ser_flavors::Flavor for PostcardOutput {
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

/// Violation of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A message, head or list of trailers exceeds its limit.
    #[error("{length} bytes where at most {limit} are allowed")]
    TooLong {
        /// Announced length, in bytes.
        length: usize,
        /// Limit, in bytes.
        limit: usize,
    },
    /// The bytes do not encode a value of the expected type.
    #[error("malformed message")]
    Malformed,
    /// The stream ended inside a message or a frame.
    #[error("the stream ended inside a message")]
    Truncated,
    /// A value is not allowed where it stands. The text says which and why.
    #[error("{0}")]
    Invalid(&'static str),
    /// The head or the first message is of a kind that only a later version of the protocol has.
    #[error("it is of a kind that this version does not know")]
    Unknown,
    /// Data followed the trailers.
    #[error("data after the trailers")]
    AfterTrailers,
}

/// Most bytes to reserve for an announced message that has not arrived: what most heads take.
const MAX_RESERVE: usize = 4 << 10;

/// Bytes of the length prefix: all lengths that we write fit the four-byte form.
const PREFIX: usize = 4;
