//! What one WebSocket message says: a transmit, that is a run of equally long QUIC packets.
//!
//! ```text
//!  0       2                                                          2 + n
//!  ├───────┼──────────────┬──────────────┬─────────────┬──────────────┤
//!  │ size  │ size bytes   │ size bytes   │      …      │ 1..=size bytes│
//!  └───────┴──────────────┴──────────────┴─────────────┴──────────────┘
//! ```
//!
//! `size` is a big-endian `u16`, at least 1 and at most `n`. The `n` bytes after it are the packets,
//! each `size` bytes long except the last, which may be shorter: what segmentation offload does for
//! UDP. `n` is at most [`MAX_BYTES`] and the packets are at most [`MAX_PACKETS`]. A message carries
//! whole packets only and is always binary. Nothing here looks into a packet.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of packets in one message: as much as the kernel moves in one segmented UDP transmit.
pub(super) const MAX_BYTES: usize = 64 * 1024;

/// Packets in one message: Linux's own limit for one segmented transmit. It keeps a message of
/// one-byte packets from becoming 64 thousand calls into quinn.
pub(super) const MAX_PACKETS: usize = 64;

/// The segment size in front of the packets.
pub(super) const HEADER: usize = 2;

/// Packets that travelled together: `stride` bytes each, the last one possibly shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagrams {
    pub(super) stride: usize,
    pub(super) bytes: Bytes,
}

/// Why a message is refused; the WebSocket that sent it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedMessage {
    #[error("the message has no packets")]
    Empty,
    #[error("the message has more than {MAX_BYTES} bytes of packets")]
    TooLong,
    #[error("the message has more than {MAX_PACKETS} packets")]
    TooManyPackets,
    #[error("the segment size is 0 or greater than what follows")]
    SegmentSize,
}

/// Write one transmit as a message, or `None` if it is one that no receiver would accept.
///
/// `segment` is the length of each packet but the last; without it `contents` is one packet.
pub(super) fn encode(segment: Option<usize>, contents: &[u8]) -> Option<Bytes> {
    let stride = segment.unwrap_or(contents.len()).min(contents.len());
    check(stride, contents.len()).ok()?;
    let size = u16::try_from(stride).ok()?;
    let mut message = BytesMut::with_capacity(HEADER + contents.len());
    message.put_u16(size);
    message.put_slice(contents);
    Some(message.freeze())
}

/// Read one message without copying its packets.
pub(super) fn decode(mut message: Bytes) -> Result<Datagrams, MalformedMessage> {
    if message.len() <= HEADER {
        return Err(MalformedMessage::Empty);
    }
    let header = message.split_to(HEADER);
    let stride = usize::from(u16::from_be_bytes([header[0], header[1]]));
    check(stride, message.len())?;
    Ok(Datagrams {
        stride,
        bytes: message,
    })
}

fn check(stride: usize, len: usize) -> Result<(), MalformedMessage> {
    if len == 0 {
        return Err(MalformedMessage::Empty);
    }
    if len > MAX_BYTES {
        return Err(MalformedMessage::TooLong);
    }
    if stride == 0 || stride > len {
        return Err(MalformedMessage::SegmentSize);
    }
    if len.div_ceil(stride) > MAX_PACKETS {
        return Err(MalformedMessage::TooManyPackets);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal(message: &[u8]) -> MalformedMessage {
        decode(Bytes::copy_from_slice(message)).unwrap_err()
    }

    #[test]
    fn three_packets_have_these_bytes() {
        let message = encode(Some(4), b"aaaabbbbcc").unwrap();

        assert_eq!(message[..], *b"\x00\x04aaaabbbbcc");
    }

    #[test]
    fn a_lone_packet_is_its_own_segment() {
        let message = encode(None, b"packet").unwrap();

        assert_eq!(message[..], *b"\x00\x06packet");
    }

    #[test]
    fn a_message_without_packets_is_refused() {
        assert_eq!(refusal(b""), MalformedMessage::Empty);
        assert_eq!(refusal(b"\x01"), MalformedMessage::Empty);
        assert_eq!(refusal(b"\x00\x01"), MalformedMessage::Empty);
    }

    #[test]
    fn a_segment_size_of_zero_or_past_the_end_is_refused() {
        assert_eq!(refusal(b"\x00\x00abc"), MalformedMessage::SegmentSize);
        assert_eq!(refusal(b"\x00\x04abc"), MalformedMessage::SegmentSize);
        assert!(decode(Bytes::from_static(b"\x00\x03abc")).is_ok());
    }

    #[test]
    fn bytes_are_accepted_up_to_the_limit_and_no_further() {
        let mut message = vec![0x04, 0x00];
        message.resize(HEADER + MAX_BYTES, 7);
        assert!(decode(message.clone().into()).is_ok());

        message.push(7);

        assert_eq!(refusal(&message), MalformedMessage::TooLong);
    }

    #[test]
    fn packets_are_accepted_up_to_the_limit_and_no_further() {
        let mut message = vec![0, 1];
        message.resize(HEADER + MAX_PACKETS, 7);
        assert!(decode(message.clone().into()).is_ok());

        message.push(7);

        assert_eq!(refusal(&message), MalformedMessage::TooManyPackets);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_to_the_same(
            stride in 1_usize..1500,
            packets in 1_usize..=MAX_PACKETS,
            short in 0_usize..1500,
        ) {
            let len = (stride * packets).min(MAX_BYTES).saturating_sub(short % stride).max(1);
            let contents: Vec<u8> = (0..len).map(|i| i as u8).collect();

            let message = encode(Some(stride), &contents).unwrap();
            let datagrams = decode(message).unwrap();

            prop_assert_eq!(datagrams.stride, stride.min(len));
            prop_assert_eq!(&datagrams.bytes[..], &contents[..]);
        }

        #[test]
        fn any_bytes_are_refused_or_are_whole_packets(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(datagrams) = decode(bytes.clone().into()) {
                prop_assert_eq!(&datagrams.bytes[..], &bytes[HEADER..]);
                prop_assert!((1..=datagrams.bytes.len()).contains(&datagrams.stride));
                prop_assert!(datagrams.bytes.len().div_ceil(datagrams.stride) <= MAX_PACKETS);
            }
        }
    }
}
