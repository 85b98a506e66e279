//! WebSocket frames (RFC 6455 §5), as far as packets need them: whole binary messages out, and in whatever a
//! proxy on the way has made of them.
//!
//! The packets are copied into a frame once, and what was read is handed on without a copy. An idle
//! WebSocket keeps a kilobyte.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Which end of a WebSocket this is: the client masks what it sends (RFC 6455 §5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// What has come from the far end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A binary message.
    Binary(Bytes),
    /// To be answered with a pong that says the same.
    Ping(Bytes),
    Pong,
    /// The far end sends no more.
    Close,
}

/// Why no more can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the connection has ended")]
    End,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("a text message")]
    Text,
    #[error("a message that is too long")]
    TooLong,
    #[error("{0}")]
    Protocol(&'static str),
}

mod opcode {
    pub(super) const CONTINUATION: u8 = 0;
    pub(super) const TEXT: u8 = 1;
    pub(super) const BINARY: u8 = 2;
    pub(super) const CLOSE: u8 = 8;
    pub(super) const PING: u8 = 9;
    pub(super) const PONG: u8 = 10;
}

/// In the first byte: the last frame of its message.
const FIN: u8 = 0x80;

/// In the first byte: what no extension of ours uses.
const RESERVED: u8 = 0x70;

/// In the second byte: a mask follows the length.
const MASKED: u8 = 0x80;

/// The longest payload of a control frame, and of any whose length is in the second byte.
const SHORT: usize = 125;

/// Instead of the length: it follows in two bytes, or in eight.
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;

/// The longest head of a frame.
const LONGEST_HEAD: usize = 2 + 8 + 4;

/// Makes frames.
pub(super) struct Encoder {
    masks: Option<Box<Masks>>,
}

impl Encoder {
    pub(super) fn new(role: Role) -> Self {
        Self {
            masks: (role == Role::Client).then(Box::default),
        }
    }

    /// A binary message of these parts, or `None` if there is no randomness for its mask.
    pub(super) fn binary(&mut self, parts: &[&[u8]]) -> Option<Bytes> {
        self.frame(opcode::BINARY, parts)
    }

    /// The answer to a ping.
    pub(super) fn pong(&mut self, ping: &[u8]) -> Option<Bytes> {
        self.frame(opcode::PONG, &[ping])
    }

    /// The end of what is sent here, with its code (RFC 6455 §7.4) and reason.
    pub(super) fn close(&mut self, code: u16, reason: &str) -> Option<Bytes> {
        let mut end = reason.len().min(SHORT - 2);
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
        let mut frame = BytesMut::with_capacity(LONGEST_HEAD + length);
        frame.put_u8(FIN | opcode);
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short), _) if length <= SHORT => frame.put_u8(masked | short),
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

/// Masks that nobody can foresee, drawn many at once.
struct Masks {
    drawn: [[u8; 4]; MASKS],
    used: usize,
}

/// How many masks are drawn at once.
const MASKS: usize = 64;

impl Default for Masks {
    fn default() -> Self {
        Self {
            drawn: [[0; 4]; MASKS],
            used: MASKS,
        }
    }
}

impl Masks {
    fn next(&mut self) -> Option<[u8; 4]> {
        if self.used == MASKS {
            aws_lc_rs::rand::fill(self.drawn.as_flattened_mut()).ok()?;
            self.used = 0;
        }
        self.used += 1;
        Some(self.drawn[self.used - 1])
    }
}

/// Put a mask on, or take it off.
fn apply(mask: [u8; 4], payload: &mut [u8]) {
    // As much at once as the processor's widest registers hold.
    let (blocks, rest) = payload.as_chunks_mut::<64>();
    let wide: [u8; 64] = std::array::from_fn(|at| mask[at % 4]);
    for block in blocks {
        for (byte, mask) in block.iter_mut().zip(wide) {
            *byte ^= mask;
        }
    }
    for (byte, mask) in rest.iter_mut().zip(wide) {
        *byte ^= mask;
    }
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

/// Takes frames apart.
pub(super) struct Reader<R> {
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
    pub(super) fn new(io: R, role: Role, longest: usize) -> Self {
        Self {
            io,
            role,
            longest,
            buffer: BytesMut::new(),
            room: ROOM.0,
            begun: None,
        }
    }

    /// Wait for the next message or control frame. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Received, FrameError> {
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
        let read = self.io.read_buf(&mut self.buffer).await?;
        match read {
            0 => return Err(FrameError::End),
            all if all == spare => self.room = (self.room * 4).min(ROOM.1),
            little if little < self.room / 8 => self.room = (self.room / 2).max(ROOM.0),
            _ => {}
        }
        Ok(())
    }
}

/// Slices that are handed to the connection at once.
const SLICES: usize = 16;

/// Write frames, taking off those that are written and counting their bytes, and see that nothing is held back.
///
/// May be dropped between any two polls; `frames` then begins with what is left of the first one.
pub(super) async fn write_all(
    io: &mut (impl AsyncWrite + Unpin),
    frames: &mut VecDeque<Bytes>,
    written: &AtomicU64,
) -> io::Result<()> {
    while !frames.is_empty() {
        let n = poll_fn(|cx| {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let used = slices.iter_mut().zip(frames.iter());
            let used = used
                .map(|(slice, frame)| *slice = IoSlice::new(frame))
                .count();
            Pin::new(&mut *io).poll_write_vectored(cx, &slices[..used])
        })
        .await?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        written.fetch_add(n as u64, Relaxed);
        take_off(frames, n);
    }
    io.flush().await
}

fn take_off(frames: &mut VecDeque<Bytes>, mut bytes: usize) {
    while let Some(frame) = frames.front_mut() {
        if frame.len() > bytes {
            return frame.advance(bytes);
        }
        bytes -= frame.len();
        frames.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use proptest::prelude::*;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role as TheirRole;

    use super::*;

    const LONGEST: usize = 70_000;

    /// What a server makes of these bytes, until no more can be read.
    fn read(bytes: &[u8]) -> (Vec<Received>, FrameError) {
        let mut reader = Reader::new(bytes, Role::Server, LONGEST);
        let mut received = Vec::new();
        loop {
            match futures_util::FutureExt::now_or_never(reader.next()).expect("all is there") {
                Ok(next) => received.push(next),
                Err(err) => return (received, err),
            }
        }
    }

    /// A frame as a client sends it, with a mask that is none.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first, MASKED | payload.len() as u8, 0, 0, 0, 0];
        frame.extend(payload);
        frame
    }

    fn is_refused(frame: &[u8]) -> bool {
        matches!(read(frame).1, FrameError::Protocol(_))
    }

    #[test]
    fn the_masked_example_of_the_rfc_is_read() {
        // §5.7, as a binary message.
        let hello = [
            0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];

        let (received, _) = read(&hello);

        assert_eq!(received, [Received::Binary(Bytes::from_static(b"Hello"))]);
    }

    #[test]
    fn a_message_in_pieces_is_put_together_around_what_comes_between() {
        let mut bytes = frame(0x02, b"pa");
        bytes.extend(frame(0x89, b"there?"));
        bytes.extend(frame(0x00, b"ck"));
        bytes.extend(frame(0x8a, b""));
        bytes.extend(frame(0x80, b"et"));
        bytes.extend(frame(0x88, b"\x03\xe8"));

        let (received, end) = read(&bytes);

        assert_eq!(
            received,
            [
                Received::Ping(Bytes::from_static(b"there?")),
                Received::Pong,
                Received::Binary(Bytes::from_static(b"packet")),
                Received::Close,
            ]
        );
        assert!(matches!(end, FrameError::End));
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        assert!(is_refused(&frame(0xc2, b"compressed")));
        assert!(is_refused(&frame(0x83, b"unknown kind")));
        assert!(is_refused(&frame(0x09, b"ping in pieces")));
        assert!(is_refused(&frame(0x80, b"end of nothing")));
        assert!(is_refused(
            &[frame(0x02, b"begun"), frame(0x82, b"anew")].concat()
        ));
        assert!(is_refused(b"\x82\x02no mask"));
        assert!(is_refused(b"\x89\xfe\x00\x7e\0\0\0\0"), "a long ping");
        assert!(matches!(read(&frame(0x81, b"text")).1, FrameError::Text));
    }

    #[test]
    fn a_message_is_refused_before_it_is_read_if_it_will_be_too_long() {
        let head = |length: u64| [&[0x82, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat();
        let pieces = [
            frame(0x02, &[7; 100]),
            [
                &[0x80, 0xff][..],
                &(LONGEST as u64 - 99).to_be_bytes(),
                &[0; 4],
            ]
            .concat(),
        ];

        assert!(matches!(read(&head(LONGEST as u64)).1, FrameError::End));
        for long in [head(LONGEST as u64 + 1), head(u64::MAX), pieces.concat()] {
            assert!(matches!(read(&long).1, FrameError::TooLong));
        }
    }

    #[test]
    fn a_reason_is_cut_to_what_a_close_frame_may_say() {
        let close = Encoder::new(Role::Server).close(1008, &"é".repeat(100));

        let close = close.unwrap();

        assert_eq!(close[..4], [0x88, 124, 0x03, 0xf0]);
        assert_eq!(std::str::from_utf8(&close[4..]), Ok(&*"é".repeat(61)));
    }

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

    proptest! {
        #[test]
        fn tungstenite_reads_what_we_write_and_we_read_what_it_writes(
            lengths in proptest::collection::vec(prop_oneof![0_usize..300, 65_000_usize..LONGEST], 1..6),
            pipe in 1_usize..5_000,
            client in any::<bool>(),
        ) {
            let (ours, theirs) = match client {
                true => (Role::Client, TheirRole::Server),
                false => (Role::Server, TheirRole::Client),
            };
            let messages: Vec<Bytes> = lengths
                .iter()
                .map(|length| (0..*length).map(|at| (at * 7 + length) as u8).collect())
                .collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (back, end) = runtime.block_on(async {
                let (near, far) = tokio::io::duplex(pipe);
                let (reading, mut writing) = tokio::io::split(near);
                let echo = async {
                    let mut far = WebSocketStream::from_raw_socket(far, theirs, None).await;
                    while let Some(Ok(message)) = far.next().await {
                        match message {
                            Message::Binary(_) => far.send(message).await.unwrap(),
                            Message::Ping(_) | Message::Pong(_) => {}
                            other => return Some(other),
                        }
                    }
                    None
                };
                let mut encoder = Encoder::new(ours);
                let mut frames = VecDeque::new();
                for message in &messages {
                    let (front, rear) = message.split_at(message.len() / 3);
                    frames.push_back(encoder.binary(&[front, rear]).unwrap());
                    frames.push_back(encoder.pong(b"unasked").unwrap());
                }
                let sending = async {
                    let written = AtomicU64::new(0);
                    write_all(&mut writing, &mut frames, &written).await.unwrap();
                    std::future::pending::<()>().await;
                };
                let receiving = async {
                    let mut reader = Reader::new(reading, ours, LONGEST);
                    let mut back = Vec::new();
                    while back.len() < messages.len() {
                        if let Received::Binary(message) = reader.next().await.unwrap() {
                            back.push(message);
                        }
                    }
                    back
                };
                tokio::pin!(echo, sending);
                tokio::select! {
                    back = receiving => (back, None),
                    end = &mut echo => (Vec::new(), end),
                    () = &mut sending => unreachable!("it pends"),
                }
            });
            prop_assert!(end.is_none(), "{end:?}");
            prop_assert_eq!(back, messages);
        }

        #[test]
        fn any_bytes_are_messages_of_no_more_than_the_limit_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..600)
        ) {
            let (received, _) = read(&bytes);
            let all: usize = received.iter().map(|one| match one {
                Received::Binary(bytes) | Received::Ping(bytes) => bytes.len(),
                Received::Pong | Received::Close => 0,
            }).sum();
            prop_assert!(all <= bytes.len());
        }
    }
}
