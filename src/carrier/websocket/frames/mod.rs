//! WebSocket frames (RFC 6455 §5), as far as packets need them. Binary messages are sent as single frames;
//! received messages may have been fragmented by a proxy on the path.
//!
//! Packets are copied into a frame once, and received messages are passed on without a copy. An idle
//! WebSocket needs a kilobyte of buffer.

pub(crate) mod encoder;
pub(crate) mod reader;
pub(crate) mod write;

pub(crate) use self::encoder::Encoder;
#[cfg(unix)]
pub(crate) use self::reader::payload_prefix;
pub(crate) use self::reader::{FrameError, Reader, Received};
pub(crate) use self::write::write_all;

/// The role of one end of a WebSocket: the client masks what it sends (RFC 6455 §5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

mod opcode {
    pub(crate) const CONTINUATION: u8 = 0;
    pub(crate) const TEXT: u8 = 1;
    pub(crate) const BINARY: u8 = 2;
    pub(crate) const CLOSE: u8 = 8;
    pub(crate) const PING: u8 = 9;
    pub(crate) const PONG: u8 = 10;
}

/// FIN bit in the first byte: this is the last frame of its message.
const FIN: u8 = 0x80;

/// MASK bit in the second byte: a mask follows the length.
const MASKED: u8 = 0x80;

/// The longest payload of a control frame, and of any frame whose length is in the second byte, in bytes.
const MAX_CONTROL_PAYLOAD: usize = 125;

/// Length field: the length follows in two bytes.
const LENGTH_16: u8 = 126;

/// Length field: the length follows in eight bytes.
const LENGTH_64: u8 = 127;

/// Mask or unmask a payload.
fn apply(mask: [u8; 4], payload: &mut [u8]) {
    // In blocks of the widest vector registers.
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicU64;

    use bytes::Bytes;
    use futures_util::{SinkExt, StreamExt};
    use proptest::prelude::*;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role as TheirRole;

    use super::*;

    const LONGEST: usize = 70_000;

    /// Read these bytes as a server, and return what is received before the error.
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

    /// Encode a frame of a client, with a mask of zeros.
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
