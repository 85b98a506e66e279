//! The chunked coding (RFC 9112 §7.1), followed byte by byte to where the body ends.
//!
//! Nothing is decoded here: hyper does that with the same bytes. What hyper forgives is not.

use crate::edge::visitors::http::validate::MAX_TRAILERS;

/// Where in a chunked body the next byte is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunked {
    place: Place,
    /// The size of the current chunk, as far as it has been read.
    size: u64,
    /// Bytes of chunk extensions in the whole body.
    extensions: usize,
    /// Trailer fields and their bytes.
    trailers: usize,
    trailer_bytes: usize,
}

/// What follows the bytes that were scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// More of the body.
    Body,
    /// The next message.
    Message,
    /// A byte that must not be there.
    Broken(BodyError),
}

/// What is wrong with the framing of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("a chunk of the request body has a malformed size")]
    Size,
    #[error("the chunk extensions of the request body are malformed or longer than 8 KiB")]
    Extension,
    #[error("a line of the request body's framing does not end in CR LF")]
    LineEnd,
    #[error("a trailer field is malformed")]
    Trailer,
    #[error("the request has more than 32 trailer fields, or more than 8 KiB of them")]
    TooManyTrailers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The chunk's size; the count of its digits so far.
    Size(u8),
    /// White space behind the size, where only an extension may follow.
    SizeSpace,
    Extension,
    SizeLf,
    /// The chunk's data; how many bytes are left.
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
            place: Place::Size(0),
            size: 0,
            extensions: 0,
            trailers: 0,
            trailer_bytes: 0,
        }
    }

    /// Follow the body through `bytes`; return how many of them are sound, and what comes after.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> (usize, Next) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let Place::Data(left) = self.place {
                let here = (bytes.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                at += here;
                let left = left - here as u64;
                self.place = if left == 0 {
                    Place::DataCr
                } else {
                    Place::Data(left)
                };
                continue;
            }
            match self.step(byte) {
                Ok(Some(place)) => self.place = place,
                Ok(None) => return (at + 1, Next::Message),
                Err(err) => return (at, Next::Broken(err)),
            }
            at += 1;
        }
        (at, Next::Body)
    }

    /// Find the place behind one byte of framing; `None` is the end of the body.
    fn step(&mut self, byte: u8) -> Result<Option<Place>, BodyError> {
        let place = match (self.place, byte) {
            (Place::Size(digits), _) if byte.is_ascii_hexdigit() && digits < MAX_SIZE_DIGITS => {
                self.size = self.size << 4 | u64::from(hex_digit(byte));
                Place::Size(digits + 1)
            }
            (Place::Size(1..), b'\r') => Place::SizeLf,
            (Place::Size(1..) | Place::SizeSpace, b';') => Place::Extension,
            (Place::Size(1..) | Place::SizeSpace, b' ' | b'\t') => {
                self.count_extension()?;
                Place::SizeSpace
            }
            (Place::Size(1..) | Place::Extension, b'\n') => return Err(BodyError::LineEnd),
            (Place::Size(_) | Place::SizeSpace, _) => return Err(BodyError::Size),

            (Place::Extension, b'\r') => Place::SizeLf,
            (Place::Extension, _) if is_value(byte) => {
                self.count_extension()?;
                Place::Extension
            }
            (Place::Extension, _) => return Err(BodyError::Extension),

            (Place::SizeLf, b'\n') => match std::mem::take(&mut self.size) {
                0 => Place::TrailerStart,
                size => Place::Data(size),
            },
            (Place::DataCr, b'\r') => Place::DataLf,
            (Place::DataLf, b'\n') => Place::Size(0),

            (Place::TrailerStart, b'\r') => Place::EndLf,
            (Place::TrailerStart | Place::TrailerName, _) if is_token(byte) => {
                if self.place == Place::TrailerStart {
                    self.trailers += 1;
                }
                self.count_trailer()?;
                Place::TrailerName
            }
            (Place::TrailerName, b':') => Place::TrailerValue,
            (Place::TrailerStart | Place::TrailerName, b'\n') => return Err(BodyError::LineEnd),
            (Place::TrailerStart | Place::TrailerName, _) => return Err(BodyError::Trailer),
            (Place::TrailerValue, b'\r') => Place::TrailerLf,
            (Place::TrailerValue, b'\n') => return Err(BodyError::LineEnd),
            (Place::TrailerValue, _) if is_value(byte) => {
                self.count_trailer()?;
                Place::TrailerValue
            }
            (Place::TrailerValue, _) => return Err(BodyError::Trailer),
            (Place::TrailerLf, b'\n') => Place::TrailerStart,
            (Place::EndLf, b'\n') => return Ok(None),

            (
                Place::SizeLf | Place::DataCr | Place::DataLf | Place::TrailerLf | Place::EndLf,
                _,
            ) => {
                return Err(BodyError::LineEnd);
            }
            (Place::Data(_), _) => unreachable!("data is skipped, not stepped through"),
        };
        Ok(Some(place))
    }

    fn count_extension(&mut self) -> Result<(), BodyError> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS {
            Err(BodyError::Extension)
        } else {
            Ok(())
        }
    }

    fn count_trailer(&mut self) -> Result<(), BodyError> {
        self.trailer_bytes += 1;
        if self.trailers > MAX_TRAILERS || self.trailer_bytes > MAX_TRAILER_BYTES {
            return Err(BodyError::TooManyTrailers);
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

/// A character of a field's name (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A character of a field's value (RFC 9110 §5.5).
fn is_value(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

/// The digits of 64 bits, which is what hyper counts with.
const MAX_SIZE_DIGITS: u8 = 16;

/// Bytes of chunk extensions in a body: nobody uses them but to make small chunks expensive. hyper
/// stops at twice as many.
const MAX_EXTENSIONS: usize = 8 << 10;

/// Bytes of trailer fields, line ends aside: half a head.
const MAX_TRAILER_BYTES: usize = 8 << 10;
