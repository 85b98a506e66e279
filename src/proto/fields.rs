//! Header and trailer fields on the wire: a list of (name, value) byte strings, repeats in order.

use ::http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::Bytes;

/// A list of fields. Values are bytes: HTTP promises no more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub HeaderMap);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            list.serialize_element(&(name.as_str(), Bytes::new(value.as_bytes())))?;
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FieldsVisitor { extra: 0 })
    }
}

/// Decode the fields of a request with room for the [`EXTRA_FIELDS`] that the agent adds: growing
/// the map for them would take 600 instructions more of every request.
pub(crate) fn with_extra_room<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Fields, D::Error> {
    deserializer.deserialize_seq(FieldsVisitor {
        extra: EXTRA_FIELDS,
    })
}

/// Fields that the agent adds: `Forwarded`, `X-Forwarded-For`, `-Proto` and `-Host`, and
/// `CDN-Loop`.
const EXTRA_FIELDS: usize = 5;

struct FieldsVisitor {
    extra: usize,
}

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of fields")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Fields, A::Error> {
        // The announced length is not trusted: a few bytes must not reserve much memory.
        let mut fields =
            HeaderMap::with_capacity(list.size_hint().unwrap_or(0).min(64) + self.extra);
        // Names are read as bytes: `HeaderName` checks them more strictly than UTF-8 does.
        while let Some((name, value)) = list.next_element::<(&Bytes, &Bytes)>()? {
            let name = HeaderName::from_bytes(name).map_err(A::Error::custom)?;
            let value = HeaderValue::from_bytes(value).map_err(A::Error::custom)?;
            fields.try_append(name, value).map_err(A::Error::custom)?;
        }
        Ok(Fields(fields))
    }
}
