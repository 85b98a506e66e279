//! Scanner for the frames of one direction of an HTTP/2 connection, by their headers (RFC 9113
//! §4.1).
//!
//! It validates nothing: hyper does that. Only time limits depend on what it finds.

/// An event in a connection's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The header of a frame.
    Frame {
        /// The frame's type.
        kind: u8,
        /// The length of its payload in bytes.
        length: u32,
    },
    /// A WINDOW_UPDATE of the whole connection, with its increment.
    Window(u32),
}

/// Scanner for the frames in the bytes of one direction.
#[derive(Debug, Default)]
pub struct FrameScanner {
    /// Bytes left of the client's connection preface, which is no frame.
    preface: usize,
    header: [u8; HEADER_LENGTH],
    /// Bytes of the header that have arrived.
    header_read: usize,
    kind: u8,
    stream: u32,
    /// Bytes of the payload that are still to come.
    payload_left: u32,
    /// The last four bytes of the payload.
    payload: u32,
    /// A field block has started that another frame must continue.
    is_block_open: bool,
    frames: u64,
}

impl FrameScanner {
    /// Scan what a client sends, from its connection preface.
    pub fn of_client() -> Self {
        Self {
            preface: PREFACE_LENGTH,
            ..Self::default()
        }
    }

    /// Scan what a server sends.
    pub fn of_server() -> Self {
        Self::default()
    }

    /// Scan `bytes`, and call `emit` for each event in them.
    pub fn scan(&mut self, mut bytes: &[u8], mut emit: impl FnMut(Found)) {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.header_read < HEADER_LENGTH {
                let here = (HEADER_LENGTH - self.header_read).min(bytes.len());
                self.header[self.header_read..][..here].copy_from_slice(&bytes[..here]);
                self.header_read += here;
                bytes = &bytes[here..];
                if self.header_read < HEADER_LENGTH {
                    return;
                }
                emit(self.start_frame());
            }
            let here = bytes.len().min(self.payload_left as usize);
            if self.kind == kind::WINDOW_UPDATE {
                let update = bytes[..here].iter();
                self.payload =
                    update.fold(self.payload, |value, byte| value << 8 | u32::from(*byte));
            }
            self.payload_left -= here as u32;
            bytes = &bytes[here..];
            if self.payload_left == 0 {
                self.header_read = 0;
                self.frames += 1;
                if self.kind == kind::WINDOW_UPDATE && self.stream == 0 {
                    emit(Found::Window(self.payload & WINDOW_MASK));
                }
            }
        }
    }

    /// Report whether the preface is complete, including the first frame, which must be SETTINGS.
    pub fn has_preface(&self) -> bool {
        self.frames > 0
    }

    /// Report whether something has started that must not take long: any frame that is not DATA, or
    /// a field block.
    pub fn is_unfinished(&self) -> bool {
        let in_frame =
            self.header_read > 0 && (self.header_read < HEADER_LENGTH || self.kind != kind::DATA);
        in_frame || self.is_block_open
    }

    /// Interpret a complete frame header.
    fn start_frame(&mut self) -> Found {
        let [a, b, c, kind, flags, stream @ ..] = self.header;
        self.kind = kind;
        self.payload_left = u32::from_be_bytes([0, a, b, c]);
        self.stream = u32::from_be_bytes(stream) & WINDOW_MASK;
        self.payload = 0;
        if matches!(kind, kind::HEADERS | kind::CONTINUATION) {
            self.is_block_open = flags & END_HEADERS == 0;
        }
        let length = self.payload_left;
        if length == 0 {
            self.header_read = 0;
            self.frames += 1;
        }
        Found::Frame { kind, length }
    }
}

/// Types of frames (RFC 9113 §6).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Length of `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n` (RFC 9113 §3.4).
const PREFACE_LENGTH: usize = 24;

/// Length of a frame's header.
const HEADER_LENGTH: usize = 9;

/// The END_HEADERS flag.
const END_HEADERS: u8 = 4;

/// Mask of 31 bits: the first bit of the field is reserved.
const WINDOW_MASK: u32 = 0x7fff_ffff;

/// Initial window of a connection (RFC 9113 §6.9.2).
pub const INITIAL_WINDOW: i64 = 65_535;

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
    fn frames_are_found_however_the_bytes_are_split() {
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
            assert!(scanner.has_preface() && !scanner.is_unfinished());
        }
    }

    #[test]
    fn an_incomplete_head_or_frame_is_unfinished_but_incomplete_data_is_not() {
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
