//! The frames of one direction of an HTTP/2 connection, as far as their headers tell (RFC 9113 §4.1).
//!
//! It judges nothing: hyper does that. What it finds decides about time limits alone.

/// What a connection's bytes have brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A frame begins.
    Frame {
        /// Its kind.
        kind: u8,
        /// The length of its payload.
        length: u32,
    },
    /// A window has been raised: that of the connection.
    Window(u32),
}

/// Follows frames through the bytes of one direction.
#[derive(Debug, Default)]
pub struct FrameScanner {
    /// What is left of the client's connection preface, which is no frame.
    preface: usize,
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    kind: u8,
    stream: u32,
    /// Bytes of the payload that are to come.
    left: u32,
    /// The last four bytes of the payload.
    payload: u32,
    /// A block of fields has begun that another frame must continue.
    is_block_open: bool,
    frames: u64,
}

impl FrameScanner {
    /// Begin with what a client sends.
    pub fn of_client() -> Self {
        Self {
            preface: PREFACE,
            ..Self::default()
        }
    }

    /// Begin with what a server sends.
    pub fn of_server() -> Self {
        Self::default()
    }

    /// Follow frames through `bytes`, and tell of what they bring.
    pub fn scan(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Found)) {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.have < HEADER {
                let here = (HEADER - self.have).min(bytes.len());
                self.header[self.have..][..here].copy_from_slice(&bytes[..here]);
                self.have += here;
                bytes = &bytes[here..];
                if self.have < HEADER {
                    return;
                }
                tell(self.begin());
            }
            let here = bytes.len().min(self.left as usize);
            if self.kind == kind::WINDOW_UPDATE {
                let update = bytes[..here].iter();
                self.payload =
                    update.fold(self.payload, |value, byte| value << 8 | u32::from(*byte));
            }
            self.left -= here as u32;
            bytes = &bytes[here..];
            if self.left == 0 {
                self.have = 0;
                self.frames += 1;
                if self.kind == kind::WINDOW_UPDATE && self.stream == 0 {
                    tell(Found::Window(self.payload & MOST_WINDOW));
                }
            }
        }
    }

    /// Report whether the preface is whole: with the first frame, which must be SETTINGS.
    pub fn has_begun(&self) -> bool {
        self.frames > 0
    }

    /// Report whether something has begun that must not take long: any frame that is not DATA, or a
    /// block of fields.
    pub fn is_unfinished(&self) -> bool {
        let in_frame = self.have > 0 && (self.have < HEADER || self.kind != kind::DATA);
        in_frame || self.is_block_open
    }

    fn begin(&mut self) -> Found {
        let [a, b, c, kind, flags, stream @ ..] = self.header;
        self.kind = kind;
        self.left = u32::from_be_bytes([0, a, b, c]);
        self.stream = u32::from_be_bytes(stream) & MOST_WINDOW;
        self.payload = 0;
        if matches!(kind, kind::HEADERS | kind::CONTINUATION) {
            self.is_block_open = flags & END_HEADERS == 0;
        }
        let length = self.left;
        if length == 0 {
            self.have = 0;
            self.frames += 1;
        }
        Found::Frame { kind, length }
    }
}

/// Kinds of frames (RFC 9113 §6).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n` (RFC 9113 §3.4).
const PREFACE: usize = 24;

/// The header of every frame.
const HEADER: usize = 9;

/// The flag of a frame that ends a block of fields.
const END_HEADERS: u8 = 4;

/// 31 bits: the first of the field is reserved.
const MOST_WINDOW: u32 = 0x7fff_ffff;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn frames_are_found_in_whatever_pieces_they_come() {
        let bytes = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[0; 12]),
            frame(4, 1, 0, &[]),
            frame(8, 0, 0, &[0, 1, 0, 0]),
            frame(8, 0, 3, &[0, 0, 0, 9]),
            frame(1, 4, 1, b"fields"),
            frame(0, 1, 1, &[7; 70]),
        ]
        .concat();
        for size in [1, 2, 5, 9, 13, 1000] {
            let mut scanner = FrameScanner::of_client();
            let mut found = Vec::new();

            for piece in bytes.chunks(size) {
                scanner.scan(piece, |what| found.push(what));
            }

            let frame = |kind, length| Found::Frame { kind, length };
            assert_eq!(
                found,
                [
                    frame(4, 12),
                    frame(4, 0),
                    frame(8, 4),
                    Found::Window(65536),
                    frame(8, 4),
                    frame(1, 6),
                    frame(0, 70),
                ],
                "{size}"
            );
            assert!(scanner.has_begun() && !scanner.is_unfinished());
        }
    }

    #[test]
    fn half_a_head_and_half_a_frame_are_unfinished_and_half_of_data_is_not() {
        for (bytes, is_unfinished) in [
            (frame(1, 0, 1, b"fields"), true),
            (
                [frame(1, 0, 1, b"fields"), frame(9, 4, 1, b"")].concat(),
                false,
            ),
            (frame(1, 4, 1, b"fields")[..12].to_vec(), true),
            (frame(6, 0, 0, &[0; 8])[..12].to_vec(), true),
            (frame(0, 0, 1, &[0; 8])[..5].to_vec(), true),
            (frame(0, 0, 1, &[0; 8])[..12].to_vec(), false),
            (frame(0, 0, 1, &[0; 8]), false),
        ] {
            let mut scanner = FrameScanner::of_server();

            scanner.scan(&bytes, |_| {});

            assert_eq!(scanner.is_unfinished(), is_unfinished, "{bytes:?}");
        }
    }
}
