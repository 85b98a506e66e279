//! Batches of packets in a WebSocket message, as segmentation offload (GSO) makes them for UDP.

use bytes::Bytes;

/// A batch of packets: `stride` bytes each, the last one possibly shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagrams {
    /// Length of each packet but the last, in bytes.
    pub stride: usize,
    /// All packets, concatenated.
    pub bytes: Bytes,
}

/// Reason for refusing a message; the WebSocket that sent it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramsError {
    /// No packets.
    #[error("the message has no packets")]
    Empty,
    /// More than [`DATAGRAMS_LIMIT`] bytes.
    #[error("the message has more than {DATAGRAMS_LIMIT} bytes of packets")]
    TooLong,
    /// More than [`DATAGRAMS_COUNT`] packets.
    #[error("the message has more than {DATAGRAMS_COUNT} packets")]
    TooManyPackets,
    /// A packet size that is zero, or larger than the message.
    #[error("the segment size is 0 or exceeds the message")]
    SegmentSize,
}

impl Datagrams {
    /// Encode one transmit as a message, or return `None` if no receiver would accept it.
    ///
    /// `segment` is the length of each packet but the last; without it `contents` is one packet.
    pub fn encode(segment: Option<usize>, contents: &[u8]) -> Option<Bytes> {
        let header = Self::header(segment, contents)?;
        Some([&header, contents].concat().into())
    }

    /// Encode the header in front of `contents`, or return `None` as [`Self::encode`] does.
    pub fn header(segment: Option<usize>, contents: &[u8]) -> Option<[u8; DATAGRAMS_HEADER]> {
        let stride = segment.unwrap_or(contents.len()).min(contents.len());
        check(stride, contents.len()).ok()?;
        Some(u16::try_from(stride).ok()?.to_be_bytes())
    }

    /// Decode one message without copying its packets.
    ///
    /// # Errors
    /// [`DatagramsError`] names the violation; the WebSocket is then to be closed.
    pub fn decode(mut message: Bytes) -> Result<Self, DatagramsError> {
        if message.len() <= DATAGRAMS_HEADER {
            return Err(DatagramsError::Empty);
        }
        let header = message.split_to(DATAGRAMS_HEADER);
        let stride = usize::from(u16::from_be_bytes([header[0], header[1]]));
        check(stride, message.len())?;
        Ok(Self {
            stride,
            bytes: message,
        })
    }
}

fn check(stride: usize, len: usize) -> Result<(), DatagramsError> {
    if len == 0 {
        return Err(DatagramsError::Empty);
    }
    if len > DATAGRAMS_LIMIT {
        return Err(DatagramsError::TooLong);
    }
    if stride == 0 || stride > len {
        return Err(DatagramsError::SegmentSize);
    }
    if len.div_ceil(stride) > DATAGRAMS_COUNT {
        return Err(DatagramsError::TooManyPackets);
    }
    Ok(())
}

/// Most bytes of packets in one message: as much as the kernel sends in one segmented UDP transmit.
pub const DATAGRAMS_LIMIT: usize = 64 * 1024;

/// Most packets in one message: Linux's own limit for one segmented transmit. It keeps a message of
/// one-byte packets from becoming 64 thousand calls into QUIC.
pub const DATAGRAMS_COUNT: usize = 64;

/// Length of the header in front of the packets, in bytes.
pub const DATAGRAMS_HEADER: usize = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal(message: &[u8]) -> DatagramsError {
        Datagrams::decode(Bytes::copy_from_slice(message)).unwrap_err()
    }

    #[test]
    fn three_packets_have_these_bytes() {
        let message = Datagrams::encode(Some(4), b"aaaabbbbcc").unwrap();

        assert_eq!(message[..], *b"\x00\x04aaaabbbbcc");
    }

    #[test]
    fn a_lone_packet_is_its_own_segment() {
        let message = Datagrams::encode(None, b"packet").unwrap();

        assert_eq!(message[..], *b"\x00\x06packet");
    }

    #[test]
    fn a_message_without_packets_is_refused() {
        assert_eq!(refusal(b""), DatagramsError::Empty);
        assert_eq!(refusal(b"\x01"), DatagramsError::Empty);
        assert_eq!(refusal(b"\x00\x01"), DatagramsError::Empty);
    }

    #[test]
    fn a_segment_size_of_zero_or_past_the_end_is_refused() {
        assert_eq!(refusal(b"\x00\x00abc"), DatagramsError::SegmentSize);
        assert_eq!(refusal(b"\x00\x04abc"), DatagramsError::SegmentSize);
        assert!(Datagrams::decode(Bytes::from_static(b"\x00\x03abc")).is_ok());
    }

    #[test]
    fn bytes_are_accepted_up_to_the_limit_and_no_further() {
        let mut message = vec![0x04, 0x00];
        message.resize(DATAGRAMS_HEADER + DATAGRAMS_LIMIT, 7);
        assert!(Datagrams::decode(message.clone().into()).is_ok());

        message.push(7);

        assert_eq!(refusal(&message), DatagramsError::TooLong);
    }

    #[test]
    fn packets_are_accepted_up_to_the_limit_and_no_further() {
        let mut message = vec![0, 1];
        message.resize(DATAGRAMS_HEADER + DATAGRAMS_COUNT, 7);
        assert!(Datagrams::decode(message.clone().into()).is_ok());

        message.push(7);

        assert_eq!(refusal(&message), DatagramsError::TooManyPackets);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_to_the_same(
            stride in 1_usize..1500,
            packets in 1_usize..=DATAGRAMS_COUNT,
            short in 0_usize..1500,
        ) {
            let len = (stride * packets).min(DATAGRAMS_LIMIT).saturating_sub(short % stride).max(1);
            let contents: Vec<u8> = (0..len).map(|i| i as u8).collect();

            let message = Datagrams::encode(Some(stride), &contents).unwrap();
            let datagrams = Datagrams::decode(message).unwrap();

            prop_assert_eq!(datagrams.stride, stride.min(len));
            prop_assert_eq!(&datagrams.bytes[..], &contents[..]);
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_whole_packets(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(datagrams) = Datagrams::decode(bytes.clone().into()) {
                prop_assert_eq!(&datagrams.bytes[..], &bytes[DATAGRAMS_HEADER..]);
                prop_assert!((1..=datagrams.bytes.len()).contains(&datagrams.stride));
                prop_assert!(datagrams.bytes.len().div_ceil(datagrams.stride) <= DATAGRAMS_COUNT);
            }
        }
    }
}
