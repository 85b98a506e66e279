//! The chunked transfer coding (RFC 9112 §7.1), scanned byte by byte for the end of the body.
//!
//! Nothing is decoded here: hyper does that with the same bytes. What hyper tolerates is refused
//! here.

use crate::edge::visitors::http::head_limits::MAX_TRAILERS;

/// Scanner for a chunked body: the position of the next byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunked {
    position: Position,
    /// Size of the current chunk, as far as it has been read.
    size: u64,
    /// Bytes of chunk extensions in the whole body.
    extensions: usize,
    /// Number of trailer fields, and their bytes.
    trailers: usize,
    trailer_bytes: usize,
}

/// The part of the message that follows the scanned bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// More of the body.
    Body,
    /// The next message.
    Message,
    /// A byte that violates the framing.
    Broken(FramingError),
}

/// Violation in the framing of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    #[error("a chunk of the request body has a malformed size")]
    Size,
    #[error("the chunk extensions of the request body are malformed or longer than {} KiB", MAX_EXTENSIONS >> 10)]
    Extension,
    #[error("a line of the request body's framing does not end in CR LF")]
    LineEnd,
    #[error("a trailer field is malformed")]
    Trailer,
    #[error("the request has more than {} trailer fields, or more than {} KiB of them", MAX_TRAILERS, MAX_TRAILER_BYTES >> 10)]
    TooManyTrailers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// The chunk's size, after this many digits.
    Size(u8),
    /// White space after the size, where only an extension may follow.
    SizeSpace,
    Extension,
    SizeLf,
    /// The chunk's data, with this many bytes left.
    Data(u64),
    DataCr,
    DataLf,
    /// The first byte of a trailer field, or of the line that ends the body.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

impl Chunked {
    pub(crate) fn new() -> Self {
        Self {
            position: Position::Size(0),
            size: 0,
            extensions: 0,
            trailers: 0,
            trailer_bytes: 0,
        }
    }

    /// Scan `bytes` of the body; return how many of them are valid, and what follows.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> (usize, Next) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let Position::Data(left) = self.position {
                let here = (bytes.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                at += here;
                let left = left - here as u64;
                self.position = if left == 0 {
                    Position::DataCr
                } else {
                    Position::Data(left)
                };
                continue;
            }
            match self.step(byte) {
                Ok(Some(position)) => self.position = position,
                Ok(None) => return (at + 1, Next::Message),
                Err(err) => return (at, Next::Broken(err)),
            }
            at += 1;
        }
        (at, Next::Body)
    }

    /// Return the position after one byte of framing; `None` is the end of the body.
    fn step(&mut self, byte: u8) -> Result<Option<Position>, FramingError> {
        let position = match (self.position, byte) {
            (Position::Size(digits), _) if byte.is_ascii_hexdigit() && digits < MAX_SIZE_DIGITS => {
                self.size = self.size << 4 | u64::from(hex_digit(byte));
                Position::Size(digits + 1)
            }
            (Position::Size(1..), b'\r') => Position::SizeLf,
            (Position::Size(1..) | Position::SizeSpace, b';') => Position::Extension,
            (Position::Size(1..) | Position::SizeSpace, b' ' | b'\t') => {
                self.count_extension()?;
                Position::SizeSpace
            }
            (Position::Size(1..) | Position::Extension, b'\n') => {
                return Err(FramingError::LineEnd);
            }
            (Position::Size(_) | Position::SizeSpace, _) => return Err(FramingError::Size),

            (Position::Extension, b'\r') => Position::SizeLf,
            (Position::Extension, _) if is_value(byte) => {
                self.count_extension()?;
                Position::Extension
            }
            (Position::Extension, _) => return Err(FramingError::Extension),

            (Position::SizeLf, b'\n') => match std::mem::take(&mut self.size) {
                0 => Position::TrailerStart,
                size => Position::Data(size),
            },
            (Position::DataCr, b'\r') => Position::DataLf,
            (Position::DataLf, b'\n') => Position::Size(0),

            (Position::TrailerStart, b'\r') => Position::EndLf,
            (Position::TrailerStart | Position::TrailerName, _) if is_token(byte) => {
                if self.position == Position::TrailerStart {
                    self.trailers += 1;
                }
                self.count_trailer()?;
                Position::TrailerName
            }
            (Position::TrailerName, b':') => Position::TrailerValue,
            (Position::TrailerStart | Position::TrailerName, b'\n') => {
                return Err(FramingError::LineEnd);
            }
            (Position::TrailerStart | Position::TrailerName, _) => {
                return Err(FramingError::Trailer);
            }
            (Position::TrailerValue, b'\r') => Position::TrailerLf,
            (Position::TrailerValue, b'\n') => return Err(FramingError::LineEnd),
            (Position::TrailerValue, _) if is_value(byte) => {
                self.count_trailer()?;
                Position::TrailerValue
            }
            (Position::TrailerValue, _) => return Err(FramingError::Trailer),
            (Position::TrailerLf, b'\n') => Position::TrailerStart,
            (Position::EndLf, b'\n') => return Ok(None),

            (
                Position::SizeLf
                | Position::DataCr
                | Position::DataLf
                | Position::TrailerLf
                | Position::EndLf,
                _,
            ) => {
                return Err(FramingError::LineEnd);
            }
            (Position::Data(_), _) => unreachable!("data is skipped, not stepped through"),
        };
        Ok(Some(position))
    }

    fn count_extension(&mut self) -> Result<(), FramingError> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS {
            Err(FramingError::Extension)
        } else {
            Ok(())
        }
    }

    fn count_trailer(&mut self) -> Result<(), FramingError> {
        self.trailer_bytes += 1;
        if self.trailers > MAX_TRAILERS || self.trailer_bytes > MAX_TRAILER_BYTES {
            return Err(FramingError::TooManyTrailers);
        }
        Ok(())
    }
}

fn hex_digit(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => byte - b'0',
        _ => (byte | 0x20) - b'a' + 10,
    }
}

/// Report whether a byte may be part of a field's name (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Report whether a byte may be part of a field's value (RFC 9110 §5.5).
fn is_value(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

/// Hexadecimal digits of 64 bits, which is what hyper counts with.
const MAX_SIZE_DIGITS: u8 = 16;

/// Bytes of chunk extensions in a body: they are only used to make small chunks expensive. hyper's
/// limit is twice as high.
const MAX_EXTENSIONS: usize = 8 << 10;

/// Bytes of trailer fields, without line ends: half a head.
const MAX_TRAILER_BYTES: usize = 8 << 10;
