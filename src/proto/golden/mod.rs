//! Golden bytes of every message: what another implementation of the wire must write.

mod body;
mod control;
mod head;
mod refused;

use std::fmt::Debug;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;

#[test]
fn codes() {
    let closes = [
        (Close::Done, 0),
        (Close::Protocol, 1),
        (Close::Timeout, 2),
        (Close::Superseded, 3),
        (Close::Busy, 4),
        (Close::TakenOver, 5),
        (Close::Refused, 401),
        (Close::HelloTooLarge, 413),
        (Close::Version, 426),
    ];
    for (close, code) in closes {
        assert_eq!(close.code().into_inner(), code);
        assert_eq!(Close::from_code(close.code()), Some(close));
    }
    assert_eq!(Close::from_code(6u32.into()), None);
    let resets = [
        (Reset::Gone, 1),
        (Reset::Protocol, 2),
        (Reset::Enough, 3),
        (Reset::Unsupported, 4),
    ];
    for (reset, code) in resets {
        assert_eq!(reset.code().into_inner(), code);
    }
}

/// Check that the length and `payload` are `value`, both ways, that nothing shorter is, and that what a
/// later version appends is skipped.
fn golden<T>(value: T, payload: &[&[u8]])
where
    T: Serialize + DeserializeOwned + Variants + PartialEq + Debug,
{
    let payload = payload.concat();
    let length = (payload.len() as u32 | 0x8000_0000).to_be_bytes();
    let message = [&length[..], &payload].concat();

    assert_eq!(&encode(&value, CONTROL_LIMIT).unwrap()[..], message);
    assert_eq!(decode_known::<T>(&payload).unwrap().as_ref(), Some(&value));

    for end in 0..message.len() {
        let mut splitter = Splitter::default();
        splitter.push(&message[..end]);
        assert_eq!(splitter.next(CONTROL_LIMIT), Ok(None), "{end} bytes");
    }
    for end in 0..payload.len() {
        let cut = decode_known::<T>(&payload[..end]);
        assert_eq!(cut, Err(WireError::Malformed), "{end} bytes");
    }
    let longer = decode_known::<T>(&[&payload[..], &[0]].concat());
    assert_eq!(longer, Ok(Some(value)));
    assert!(u32::from(payload[0]) < T::VARIANTS);
    assert_eq!(decode_known::<T>(&[T::VARIANTS as u8]), Ok(None));
}

fn fields(list: &[(&'static str, &[u8])]) -> Fields {
    Fields(HeaderMap::from_iter(list.iter().map(|(name, value)| {
        let value = HeaderValue::from_bytes(value).unwrap();
        (HeaderName::from_static(name), value)
    })))
}
