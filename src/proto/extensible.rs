//! Values that a later version of the wire may extend.

use postcard::take_from_bytes;
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::WireError;

/// An enum whose variants are only ever appended, so that a receiver can tell one that it does not know yet from
/// bytes that are no value at all.
pub trait Variants {
    /// Number of variants in this version.
    const VARIANTS: u32;
}

/// A value inside of a message with its length in front (a postcard byte array that contains its postcard encoding).
///
/// A receiver skips the fields that follow those it knows, and finds a variant that it does not know
/// [`Unknown`](Self::Unknown), instead of failing to read the whole message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extensible<T> {
    /// A value that this version knows.
    Known(T),
    /// A variant of a later version. It cannot be sent.
    Unknown,
}

impl<T> Extensible<T> {
    /// Return the value if this version knows it.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown => None,
        }
    }
}

impl<T> From<T> for Extensible<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: Serialize> Serialize for Extensible<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = self
            .known()
            .ok_or_else(|| S::Error::custom("a value of an unknown kind cannot be sent"))?;
        delimited::serialize(value, serializer)
    }
}

impl<'de, T: DeserializeOwned + Variants> Deserialize<'de> for Extensible<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        match decode_known(bytes).map_err(D::Error::custom)? {
            Some(value) => Ok(Self::Known(value)),
            None => Ok(Self::Unknown),
        }
    }
}

/// Structs inside of a message with their length in front, for `#[serde(with)]`: a receiver skips the fields that
/// follow those it knows.
pub mod delimited {
    use super::*;

    /// Write the struct as a byte array that contains its encoding.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: Serialize, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let bytes = postcard::to_stdvec(value).map_err(S::Error::custom)?;
        serializer.serialize_bytes(&bytes)
    }

    /// Read what [`serialize`] of this version or a later one wrote.
    ///
    /// # Errors
    /// If the bytes are no such struct in any version.
    pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        let (value, _) = take_from_bytes(bytes).map_err(D::Error::custom)?;
        Ok(value)
    }
}

/// Decode a value that a later version may have extended: fields after the last known one are skipped, and a variant
/// that this version does not know is `None`.
///
/// # Errors
/// [`WireError::Malformed`] if the bytes are no value of that type in any version.
pub fn decode_known<T: DeserializeOwned + Variants>(bytes: &[u8]) -> Result<Option<T>, WireError> {
    // Postcard writes the index of a variant first.
    let (variant, _) = take_from_bytes::<u32>(bytes).map_err(|_| WireError::Malformed)?;
    if variant >= T::VARIANTS {
        return Ok(None);
    }
    let (value, _) = take_from_bytes(bytes).map_err(|_| WireError::Malformed)?;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Today {
        Number(u32),
    }

    impl Variants for Today {
        const VARIANTS: u32 = 1;
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Tomorrow {
        Number(u32, String),
        Name(String),
    }

    impl Variants for Tomorrow {
        const VARIANTS: u32 = 2;
    }

    /// A message with a field behind the value that may have been extended.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Message<T: Serialize + DeserializeOwned + Variants> {
        #[serde(bound(deserialize = "T: DeserializeOwned + Variants"))]
        value: Extensible<T>,
        after: u8,
    }

    fn sent_tomorrow(value: Tomorrow) -> Message<Today> {
        let message = Message {
            value: Extensible::Known(value),
            after: 7,
        };
        let bytes = postcard::to_stdvec(&message).expect("a message");
        postcard::from_bytes(&bytes).expect("it is understood today")
    }

    #[test]
    fn fields_of_a_later_version_are_skipped() {
        let message = sent_tomorrow(Tomorrow::Number(3, "three".into()));
        assert_eq!(message.value, Extensible::Known(Today::Number(3)));
        assert_eq!(message.after, 7);
    }

    #[test]
    fn a_variant_of_a_later_version_is_unknown_and_what_follows_it_is_read() {
        let message = sent_tomorrow(Tomorrow::Name("x".into()));
        assert_eq!((message.value, message.after), (Extensible::Unknown, 7));
    }

    #[test]
    fn what_is_no_value_in_any_version_is_malformed() {
        assert_eq!(decode_known::<Today>(&[]), Err(WireError::Malformed));
        assert_eq!(decode_known::<Today>(&[0]), Err(WireError::Malformed));
        assert_eq!(decode_known::<Today>(&[1]), Ok(None));
    }

    #[test]
    fn an_unknown_value_cannot_be_sent() {
        assert!(postcard::to_stdvec(&Extensible::<Today>::Unknown).is_err());
    }
}
