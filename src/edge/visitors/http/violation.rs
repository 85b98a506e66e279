//! Violations for which a visitor's request is refused before it is routed.
//!
//! The caller makes the response (page, `X-Qtunnel-Error`, closing the connection).

use ::http::StatusCode;

use super::head_limits::{MAX_FIELDS, MAX_HEAD, MAX_TARGET};
use crate::proto::METHOD_LIMIT;

/// A rule of HTTP that a request head breaks, or a limit that it exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("a line of the request head does not end in CR LF")]
    BareLineFeed,
    #[error("the request line is malformed")]
    MalformedRequestLine,
    #[error("only HTTP/1.0, HTTP/1.1 and HTTP/2 are spoken here")]
    UnsupportedVersion,
    #[error("the request method is longer than {} bytes", METHOD_LIMIT)]
    MethodTooLong,
    #[error("the request target is malformed")]
    MalformedTarget,
    #[error("the request target is longer than {} KiB", MAX_TARGET >> 10)]
    TargetTooLong,
    #[error("the request head is larger than {} KiB", MAX_HEAD >> 10)]
    HeadTooLarge,
    #[error("the request has more than {} header fields", MAX_FIELDS)]
    TooManyFields,
    #[error("the request head did not arrive in time")]
    HeadTooSlow,
    #[error("a header field's name is malformed")]
    MalformedFieldName,
    #[error("a header field is folded over several lines")]
    FoldedField,
    #[error("a header field's value contains a control character")]
    MalformedFieldValue,
    #[error("the request names no host")]
    MissingHost,
    #[error("the request has more than one Host field")]
    RepeatedHost,
    #[error("the request's host is malformed")]
    MalformedHost,
    #[error("the request target and the Host field name different hosts")]
    HostMismatch,
    #[error("the request has both Content-Length and Transfer-Encoding")]
    ConflictingFraming,
    #[error("an HTTP/1.0 request has a Transfer-Encoding")]
    TransferEncodingOnHttp10,
    #[error("the Transfer-Encoding does not end the body with exactly one chunked coding")]
    MalformedTransferEncoding,
    #[error("the only transfer coding understood here is chunked")]
    UnsupportedTransferCoding,
    #[error("the request has more than one Content-Length")]
    RepeatedContentLength,
    #[error("the Content-Length is not a decimal number")]
    MalformedContentLength,
    #[error("a header field's name imitates a framing field with underscores")]
    LookAlikeField,
    #[error("CONNECT is for proxies, and this is none")]
    Connect,
    #[error("the target * goes only with OPTIONS")]
    AsteriskTarget,
    #[error("an HTTP/2 request has a header field of one HTTP/1.1 connection")]
    ConnectionField,
    #[error("the request was not examined")]
    Unexamined,
}

impl Violation {
    /// Return the status of the response.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::HeadTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge | Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            // RFC 9112 §3 and §6.1: the response to what is not implemented.
            Self::MethodTooLong | Self::UnsupportedTransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::UnsupportedVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            // The guard and the service disagree about the connection, which no visitor can bring
            // about.
            Self::Unexamined => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}
