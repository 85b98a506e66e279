//! Body frames: data and trailers.

use ::http::HeaderMap;
use bytes::{Buf, Bytes, BytesMut};

use super::codec::{Splitter, read_varint};
use super::{Fields, TRAILERS_LIMIT, WireError, decode, encode, put_varint};

/// Encode the header of a data frame with `length > 0` bytes.
pub fn data_header(length: usize) -> Bytes {
    debug_assert!(length > 0, "an empty frame would announce trailers");
    let mut header = BytesMut::with_capacity(8);
    put_varint(length as u64, &mut header);
    header.freeze()
}

/// Encode the frame of trailers, which ends a body.
///
/// # Errors
/// [`WireError::TooLong`] past [`TRAILERS_LIMIT`].
pub fn trailers(fields: HeaderMap) -> Result<Bytes, WireError> {
    let list = encode(&Fields(fields), TRAILERS_LIMIT)?;
    let mut frame = BytesMut::with_capacity(1 + list.len());
    put_varint(0, &mut frame);
    frame.extend_from_slice(&list);
    Ok(frame.freeze())
}

/// A piece of a body.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Data, never empty. A frame that arrives in pieces is returned in pieces.
    Data(Bytes),
    /// The trailers; nothing follows.
    Trailers(HeaderMap),
}

/// Incremental decoder of a stream's bytes into [`Frame`]s, which neither copies data nor waits for
/// whole frames.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    /// Bytes pushed and not yet decoded.
    input: Bytes,
}

#[derive(Debug)]
enum State {
    /// Between frames, or inside the variable-length integer of which `partial` has arrived.
    Header { partial: [u8; 8], have: usize },
    /// Inside a frame of data.
    Data { left: u64 },
    /// Inside the trailers.
    Trailers(Splitter),
    /// After the trailers.
    End,
}

impl BodyDecoder {
    /// Start at a frame boundary, with the bytes that were read together with the head.
    pub fn new(input: Bytes) -> Self {
        Self {
            state: State::BOUNDARY,
            input,
        }
    }

    /// Append received bytes. Call it only after [`next_frame`](Self::next_frame) has returned
    /// `None`.
    pub fn push(&mut self, input: Bytes) {
        debug_assert!(
            self.input.is_empty(),
            "decode what is there before adding more"
        );
        self.input = input;
    }

    /// Decode the next piece, or return `None` if more bytes are needed.
    ///
    /// # Errors
    /// A [`WireError`] ends the body; the stream should then be reset.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        while !self.input.is_empty() {
            match &mut self.state {
                State::Header { partial, have } => {
                    partial[*have] = self.input.get_u8();
                    *have += 1;
                    self.state = match read_varint(&partial[..*have]) {
                        None => continue,
                        Some((0, _)) => State::Trailers(Splitter::default()),
                        Some((left, _)) => State::Data { left },
                    };
                }
                State::Data { left } => {
                    let here = self
                        .input
                        .len()
                        .min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= here as u64;
                    if *left == 0 {
                        self.state = State::BOUNDARY;
                    }
                    return Ok(Some(Frame::Data(self.input.split_to(here))));
                }
                State::Trailers(splitter) => {
                    splitter.push(&std::mem::take(&mut self.input));
                    let Some(list) = splitter.next(TRAILERS_LIMIT)? else {
                        return Ok(None);
                    };
                    self.input = std::mem::take(splitter).into_rest();
                    self.state = State::End;
                    return Ok(Some(Frame::Trailers(decode::<Fields>(&list)?.0)));
                }
                State::End => return Err(WireError::AfterTrailers),
            }
        }
        Ok(None)
    }

    /// Check that the body may end here.
    ///
    /// # Errors
    /// [`WireError::Truncated`] inside a frame.
    pub fn finish(&self) -> Result<(), WireError> {
        match self.state {
            State::Header { have: 0, .. } | State::End if self.input.is_empty() => Ok(()),
            _ => Err(WireError::Truncated),
        }
    }

    /// Report whether the trailers have been returned, after which only FIN may come.
    pub fn is_end(&self) -> bool {
        matches!(self.state, State::End)
    }
}

impl State {
    const BOUNDARY: Self = Self::Header {
        partial: [0; 8],
        have: 0,
    };
}
