//! What must hold for any bytes that a peer sends. The fuzz targets call it with what they make up,
//! and `tests/corpus.rs` with what has been kept.
//!
//! Each function decodes the bytes as a whole and one by one, which must not differ, and encodes
//! what it understood anew, which must mean the same. It answers how many messages or frames the
//! bytes were, or why they are none.

// Every user includes the file as a module, and a fuzz target wants one function of it.
#![allow(dead_code)]

use std::fmt::Debug;

use bytes::Bytes;
use http::HeaderMap;
use qtunnel::proto::{
    AgentMessage, BodyDecoder, CONTROL_LIMIT, Check, DATAGRAMS_COUNT, DATAGRAMS_HEADER, Datagrams,
    DatagramsError, EdgeMessage, Frame, HEAD_LIMIT, RESPONSE_HEAD_LIMIT, ResponseHead, Splitter,
    StreamHead, Variants, WireError, data_header, decode_known, encode, trailers,
};

/// Read messages of the control stream.
pub fn control(bytes: &[u8]) -> Result<usize, WireError> {
    messages(bytes, CONTROL_LIMIT, |payload| {
        let of_agent = understood::<AgentMessage>(payload, CONTROL_LIMIT);
        understood::<EdgeMessage>(payload, CONTROL_LIMIT) || of_agent
    })
}

/// Read heads of requests and responses.
pub fn head(bytes: &[u8]) -> Result<usize, WireError> {
    messages(bytes, RESPONSE_HEAD_LIMIT, |payload| {
        let of_request = understood::<StreamHead>(payload, HEAD_LIMIT);
        understood::<ResponseHead>(payload, RESPONSE_HEAD_LIMIT) || of_request
    })
}

/// Read a body.
pub fn body(bytes: &[u8]) -> Result<usize, WireError> {
    let whole = Body::decode([Bytes::copy_from_slice(bytes)]);
    let single = bytes.iter().map(|byte| Bytes::copy_from_slice(&[*byte]));
    let one_by_one = Body::decode(single);
    assert_eq!(whole.data, one_by_one.data);
    assert_eq!(whole.trailers, one_by_one.trailers);
    assert_eq!(whole.end, one_by_one.end);
    whole.end?;

    let again = Body::decode([whole.encode()]);
    assert_eq!(again.data, whole.data);
    assert_eq!(again.trailers, whole.trailers);
    assert_eq!(again.end, Ok(()));
    Ok(whole.frames)
}

/// Read the packets of a WebSocket message.
pub fn datagrams(bytes: &[u8]) -> Result<usize, DatagramsError> {
    let datagrams = Datagrams::decode(Bytes::copy_from_slice(bytes))?;
    let packets = datagrams.bytes.chunks(datagrams.stride).count();
    assert!((1..=DATAGRAMS_COUNT).contains(&packets));
    assert_eq!(datagrams.bytes, bytes[DATAGRAMS_HEADER..]);
    let again = Datagrams::encode(Some(datagrams.stride), &datagrams.bytes);
    assert_eq!(again.as_deref(), Some(bytes));
    Ok(packets)
}

fn messages(
    bytes: &[u8],
    limit: usize,
    understood: impl Fn(&[u8]) -> bool,
) -> Result<usize, WireError> {
    let (payloads, end) = split([bytes], limit);
    assert_eq!(split(bytes.chunks(1), limit), (payloads.clone(), end));
    end?;
    match payloads.iter().all(|payload| understood(payload)) {
        true => Ok(payloads.len()),
        false => Err(WireError::Malformed),
    }
}

fn split<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    limit: usize,
) -> (Vec<Bytes>, Result<(), WireError>) {
    let (mut splitter, mut payloads) = (Splitter::default(), Vec::new());
    for piece in pieces {
        splitter.push(piece);
        loop {
            match splitter.next(limit) {
                Ok(Some(payload)) => payloads.push(payload),
                Ok(None) => break,
                Err(err) => return (payloads, Err(err)),
            }
        }
    }
    match splitter.is_empty() {
        true => (payloads, Ok(())),
        false => (payloads, Err(WireError::Truncated)),
    }
}

/// Report whether the payload is a `T` of this version, which must then survive, or of a later one.
fn understood<T>(payload: &[u8], limit: usize) -> bool
where
    T: serde::Serialize + serde::de::DeserializeOwned + Variants + PartialEq + Debug + Check,
{
    let value = match decode_known::<T>(payload) {
        Ok(Some(value)) => value,
        Ok(None) => return true,
        Err(_) => return false,
    };
    let _ = value.check();
    // What contains a part of an unknown kind cannot be sent on. Without one, the shortest encoding may still be
    // longer than the one that arrived, for what became of texts: a refusal in words has its mark of a cut.
    match encode(&value, 8 * limit) {
        Ok(again) => assert_eq!(decode_known::<T>(&again[4..]), Ok(Some(value))),
        Err(err) => assert_eq!(err, WireError::Malformed),
    }
    true
}

struct Body {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    frames: usize,
    end: Result<(), WireError>,
}

impl Body {
    fn decode(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let mut decoder = BodyDecoder::new(Bytes::new());
        let mut body = Self {
            data: Vec::new(),
            trailers: None,
            frames: 0,
            end: Ok(()),
        };
        for piece in pieces {
            decoder.push(piece);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => body.add(frame),
                    Ok(None) => break,
                    Err(err) => {
                        body.end = Err(err);
                        return body;
                    }
                }
            }
        }
        body.end = decoder.finish();
        body
    }

    fn add(&mut self, frame: Frame) {
        self.frames += 1;
        assert!(self.trailers.is_none(), "nothing follows the trailers");
        match frame {
            Frame::Data(data) => {
                assert!(!data.is_empty());
                self.data.extend(data);
            }
            Frame::Trailers(fields) => self.trailers = Some(fields),
        }
    }

    fn encode(&self) -> Bytes {
        let mut bytes = Vec::new();
        if !self.data.is_empty() {
            bytes.extend(data_header(self.data.len()));
            bytes.extend(&self.data);
        }
        if let Some(fields) = &self.trailers {
            bytes.extend(trailers(fields.clone()).expect("they fitted before"));
        }
        bytes.into()
    }
}
