//! The `X-Forwarded-*` fields.

use ::http::header::{HeaderName, HeaderValue};

/// Convert text that was made of valid values into a field value without copying.
pub(crate) fn value(made: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(bytes::Bytes::from(made)).expect("made of values and addresses")
}

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
