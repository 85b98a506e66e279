//! Encoding of frames: headers, and a client's masks.

use bytes::{BufMut, Bytes, BytesMut};

use super::{FIN, LENGTH_16, LENGTH_64, MASKED, MAX_CONTROL_PAYLOAD, Role, apply, opcode};

/// Encodes frames.
pub(crate) struct Encoder {
    masks: Option<Box<Masks>>,
}

impl Encoder {
    pub(crate) fn new(role: Role) -> Self {
        Self {
            masks: (role == Role::Client).then(Box::default),
        }
    }

    /// Encode a binary message of these parts. Return `None` if there is no randomness for its mask.
    pub(crate) fn binary(&mut self, parts: &[&[u8]]) -> Option<Bytes> {
        self.frame(opcode::BINARY, parts)
    }

    /// Encode the pong for a ping with this payload.
    pub(crate) fn pong(&mut self, ping: &[u8]) -> Option<Bytes> {
        self.frame(opcode::PONG, &[ping])
    }

    /// Encode a close frame with a status code (RFC 6455 §7.4) and a reason, which is truncated to fit.
    pub(crate) fn close(&mut self, code: u16, reason: &str) -> Option<Bytes> {
        let mut end = reason.len().min(MAX_CONTROL_PAYLOAD - 2);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = &reason.as_bytes()[..end];
        self.frame(opcode::CLOSE, &[&code.to_be_bytes(), reason])
    }

    fn frame(&mut self, opcode: u8, parts: &[&[u8]]) -> Option<Bytes> {
        let mask = match &mut self.masks {
            Some(masks) => Some(masks.next()?),
            None => None,
        };
        let masked = if mask.is_some() { MASKED } else { 0 };
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut frame = BytesMut::with_capacity(MAX_HEADER + length);
        frame.put_u8(FIN | opcode);
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short), _) if length <= MAX_CONTROL_PAYLOAD => frame.put_u8(masked | short),
            (_, Ok(length)) => {
                frame.put_u8(masked | LENGTH_16);
                frame.put_u16(length);
            }
            _ => {
                frame.put_u8(masked | LENGTH_64);
                frame.put_u64(length as u64);
            }
        }
        frame.extend_from_slice(mask.as_ref().map_or(&[], |mask| mask));
        let head = frame.len();
        for part in parts {
            frame.extend_from_slice(part);
        }
        if let Some(mask) = mask {
            apply(mask, &mut frame[head..]);
        }
        Some(frame.freeze())
    }
}

/// Unpredictable masks (RFC 6455 §10.3), drawn many at once.
struct Masks {
    drawn: [[u8; 4]; MASK_BATCH],
    used: usize,
}

impl Default for Masks {
    fn default() -> Self {
        Self {
            drawn: [[0; 4]; MASK_BATCH],
            used: MASK_BATCH,
        }
    }
}

impl Masks {
    fn next(&mut self) -> Option<[u8; 4]> {
        if self.used == MASK_BATCH {
            aws_lc_rs::rand::fill(self.drawn.as_flattened_mut()).ok()?;
            self.used = 0;
        }
        self.used += 1;
        Some(self.drawn[self.used - 1])
    }
}

/// The longest frame header, in bytes.
const MAX_HEADER: usize = 2 + 8 + 4;

/// The number of masks drawn at once.
const MASK_BATCH: usize = 64;
