//! Body frames.

use ::http::{HeaderMap, HeaderValue};
use bytes::Bytes;

use crate::proto::*;

#[test]
fn the_header_of_a_data_frame_is_the_shortest_integer() {
    let golden: [(usize, &[u8]); 8] = [
        (1, &[1]),
        (63, &[63]),
        (64, &[0x40, 64]),
        (16_383, &[0x7f, 0xff]),
        (16_384, &[0x80, 0, 0x40, 0]),
        ((1 << 30) - 1, &[0xbf, 0xff, 0xff, 0xff]),
        (1 << 30, &[0xc0, 0, 0, 0, 0x40, 0, 0, 0]),
        (1 << 40, &[0xc0, 0, 1, 0, 0, 0, 0, 0]),
    ];
    for (length, bytes) in golden {
        assert_eq!(&data_header(length)[..], bytes, "{length}");
    }
}

#[test]
fn a_body_with_trailers() {
    let bytes: &[&[u8]] = &[
        &[5], // five bytes of data
        b"hello",
        &[0],             // trailers:
        &[0x80, 0, 0, 7], //   length
        &[1],             //   fields: one
        b"\x01x\x03\xfe,;",
    ];
    let bytes = bytes.concat();

    let mut expected = HeaderMap::new();
    expected.insert("x", HeaderValue::from_bytes(b"\xfe,;").unwrap());
    assert_eq!(trailers(expected.clone()).unwrap(), bytes[6..]);
    let mut decoder = BodyDecoder::new(Bytes::from(bytes.clone()));
    let data = Frame::Data(Bytes::from_static(b"hello"));
    assert_eq!(decoder.next_frame(), Ok(Some(data)));
    let fields = Frame::Trailers(expected);
    assert_eq!(decoder.next_frame(), Ok(Some(fields)));
    assert_eq!(decoder.next_frame(), Ok(None));
    assert_eq!(decoder.finish(), Ok(()));

    // FIN is allowed before the first frame and between the two, and nowhere else.
    for end in 0..bytes.len() {
        let mut decoder = BodyDecoder::new(Bytes::copy_from_slice(&bytes[..end]));
        while let Some(frame) = decoder.next_frame().unwrap() {
            assert!(matches!(frame, Frame::Data(_)), "{end} bytes");
        }
        let complete = matches!(end, 0 | 6);
        assert_eq!(decoder.finish().is_ok(), complete, "{end} bytes");
    }
}

#[test]
fn nothing_follows_the_trailers() {
    let mut body = trailers(HeaderMap::new()).unwrap().to_vec();
    body.push(1);
    let mut decoder = BodyDecoder::new(Bytes::from(body));

    let fields = Frame::Trailers(HeaderMap::new());
    assert_eq!(decoder.next_frame(), Ok(Some(fields)));
    assert_eq!(decoder.next_frame(), Err(WireError::AfterTrailers));
}
