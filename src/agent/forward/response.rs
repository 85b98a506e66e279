//! The heads of responses from an upstream, as they are sent to the edge.

use std::error::Error as StdError;

use ::http::header::HeaderMap;
use ::http::response::Parts;
use ::http::{Method, StatusCode};
use bytes::Bytes;
use http_body::Body;
use hyper::ext::ReasonPhrase;

use crate::http::hygiene::{normalize_content_length, strip_hop_by_hop};
use crate::proto::{BodyLength, Fields, ResponseHead, is_bodiless, is_reason};

/// Build the head of a final response: without hop-by-hop fields, and with one unambiguous body length.
pub fn head<B>(mut parts: Parts, body: &B, method: &Method) -> ResponseHead
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    strip_hop_by_hop(&mut parts.headers);
    let length = if body.is_end_stream() || method == Method::HEAD || is_bodiless(parts.status) {
        BodyLength::Empty
    } else {
        match body.size_hint().exact() {
            Some(length) => BodyLength::Known(length),
            None => BodyLength::Unknown,
        }
    };
    normalize_content_length(&mut parts.headers, length);
    ResponseHead::Final {
        status: parts.status,
        reason: parts
            .extensions
            .get::<ReasonPhrase>()
            .map(|reason| reason.as_bytes().to_vec())
            .filter(|reason| is_reason(reason)),
        body: length,
        fields: Fields(parts.headers),
    }
}

/// Build the head of a 1xx response.
pub fn informational(status: StatusCode, mut fields: HeaderMap) -> ResponseHead {
    strip_hop_by_hop(&mut fields);
    ResponseHead::Informational {
        status,
        fields: Fields(fields),
    }
}

/// Build the head of a 101 response. `Upgrade` is kept for the visitor.
pub fn switched(mut parts: Parts) -> ResponseHead {
    let upgrade = strip_hop_by_hop(&mut parts.headers).upgrade;
    if let Some(protocol) = upgrade {
        parts.headers.insert("upgrade", protocol);
        parts
            .headers
            .insert("connection", ::http::HeaderValue::from_static("upgrade"));
    }
    ResponseHead::Final {
        status: StatusCode::SWITCHING_PROTOCOLS,
        reason: None,
        body: BodyLength::Empty,
        fields: Fields(parts.headers),
    }
}
