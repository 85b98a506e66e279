//! An upstream's response on its way into the tunnel.

use std::error::Error as StdError;

use ::http::header::{CONTENT_LENGTH, HeaderMap};
use ::http::response::Parts;
use ::http::{Method, StatusCode};
use bytes::Bytes;
use http_body::Body;
use hyper::ext::ReasonPhrase;

use crate::http::hygiene::strip_hop_by_hop;
use crate::proto::{BodyLength, Fields, ResponseHead};

/// Make the head of a response, as the edge gets it.
pub fn head<B>(mut parts: Parts, body: &B, method: &Method) -> ResponseHead
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    strip_hop_by_hop(&mut parts.headers);
    let length = if body.is_end_stream() || is_bodiless(parts.status, method) {
        BodyLength::Empty
    } else {
        match body.size_hint().exact() {
            Some(length) => BodyLength::Known(length),
            None => BodyLength::Unknown,
        }
    };
    if length == BodyLength::Unknown {
        parts.headers.remove(CONTENT_LENGTH);
    }
    ResponseHead::Final {
        status: parts.status,
        reason: parts
            .extensions
            .get::<ReasonPhrase>()
            .map(|reason| reason.as_bytes().to_vec()),
        body: length,
        fields: Fields(parts.headers),
    }
}

/// Make the head of a 1xx answer.
pub fn informational(status: StatusCode, mut fields: HeaderMap) -> ResponseHead {
    strip_hop_by_hop(&mut fields);
    ResponseHead::Informational {
        status,
        fields: Fields(fields),
    }
}

/// Make the head that says that the protocol has been switched. `Upgrade` is kept for the visitor.
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

/// These have no body whatever their fields say (RFC 9110 §6.4.1).
fn is_bodiless(status: StatusCode, method: &Method) -> bool {
    method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}
