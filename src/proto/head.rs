//! Heads of a conversation: the first thing on its stream in each direction.

use std::fmt;
use std::net::SocketAddr;

use ::http::{Method, StatusCode};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Extensible, Fields, HEAD_LIMIT, RESPONSE_HEAD_LIMIT, Variants};

/// The first value on a stream, in one direction.
pub trait Head: Serialize + serde::de::DeserializeOwned + Variants {
    /// Longest encoding, in bytes.
    const LIMIT: usize;
}

impl Variants for StreamHead {
    const VARIANTS: u32 = 1;
}

impl Variants for ResponseHead {
    const VARIANTS: u32 = 3;
}

impl Variants for Failure {
    const VARIANTS: u32 = 9;
}

impl Head for StreamHead {
    const LIMIT: usize = HEAD_LIMIT;
}

impl Head for ResponseHead {
    const LIMIT: usize = RESPONSE_HEAD_LIMIT;
}

/// Kind of a stream's conversation. The edge sends it first.
///
/// Kinds to come (TCP, TLS by server name, private tunnels) are appended here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum StreamHead {
    /// One HTTP request and its response.
    Http(RequestHead),
}

/// Head of a visitor's request, cleaned by the edge and completed by the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestHead {
    /// Number that the agent gave the tunnel.
    pub tunnel: u32,
    /// Address of the visitor, as the edge sees it.
    pub visitor: SocketAddr,
    /// Scheme by which the visitor reached the edge.
    pub scheme: Scheme,
    /// HTTP version of the visitor's request.
    pub version: HttpVersion,
    /// The method, in its own letter case.
    #[serde(with = "method")]
    pub method: Method,
    /// Target in origin form (path and query, percent-encoding untouched) or `*`.
    pub target: String,
    /// Protocols to switch to, if the visitor asks for any (`Upgrade`, or RFC 8441's `:protocol`):
    /// those that the tunnel allows, spelt as in the request. A 101 response names one of them.
    pub upgrade: Option<String>,
    /// Length of the body that follows, if there is one.
    pub body: BodyLength,
    /// Bytes of a body that either end accepts before it sends a [`Window`](super::Window): at
    /// least [`MIN_WINDOW`](super::MIN_WINDOW).
    pub window: u32,
    /// Fields, without hop-by-hop ones. The agent adds `Forwarded` (RFC 7239) and
    /// `X-Forwarded-For`, `-Proto` and `-Host` for the upstream, from the values above and `Host`.
    /// They are in here only when the edge trusts a proxy in front of it, and then all of them, as
    /// the upstream is to get them.
    #[serde(deserialize_with = "super::fields::with_extra_room")]
    pub fields: Fields,
}

/// Head of a response. The agent sends any number of informational ones, then one of the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ResponseHead {
    /// A 1xx response other than 101.
    Informational {
        /// Status: 100, or 102 to 199.
        #[serde(with = "status")]
        status: StatusCode,
        /// Fields, as in 103 Early Hints (RFC 8297).
        fields: Fields,
    },
    /// The response. After 101 both directions are raw bytes.
    Final {
        /// Status: 101, or 200 to 999.
        #[serde(with = "status")]
        status: StatusCode,
        /// Reason phrase of HTTP/1.1, where it is not the usual one.
        #[serde(with = "serde_bytes")]
        reason: Option<Vec<u8>>,
        /// Length of the body that follows, if there is one.
        body: BodyLength,
        /// Fields, without hop-by-hop ones.
        fields: Fields,
    },
    /// The agent got no response; the edge makes one. Nothing follows.
    Failed(Extensible<Failure>),
}

/// Failure of an agent to get a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The agent has no tunnel of that number (it is being closed).
    NoSuchTunnel,
    /// The upstream refuses connections, or is down.
    UpstreamUnreachable,
    /// The upstream did not respond in time.
    UpstreamTimeout,
    /// The upstream's response was not HTTP, or broke off before its head was complete.
    UpstreamInvalid,
    /// The agent serves as many conversations as it may.
    Busy,
    /// The upstream does not speak HTTP, or another version of it.
    UpstreamNotHttp,
    /// The head of the upstream's response exceeds [`RESPONSE_HEAD_LIMIT`].
    UpstreamHeadTooLarge,
    /// The head of the upstream's response is ambiguous or invalid.
    UpstreamHeadInvalid,
    /// The request has come through this tunnel before.
    LoopDetected,
}

impl Failure {
    /// Return the status of the edge's response to the visitor.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoSuchTunnel => StatusCode::NOT_FOUND,
            Self::UpstreamUnreachable
            | Self::UpstreamInvalid
            | Self::UpstreamNotHttp
            | Self::UpstreamHeadTooLarge
            | Self::UpstreamHeadInvalid => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::LoopDetected => StatusCode::LOOP_DETECTED,
        }
    }
}

/// Length of the body that follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyLength {
    /// No body and no trailers: FIN follows.
    Empty,
    /// A body of this many bytes.
    Known(u64),
    /// A body that ends with FIN or trailers.
    Unknown,
}

/// Scheme by which the visitor reached the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scheme {
    /// Clear text, or a proxy that terminates TLS without saying so.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// Return the scheme as in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// HTTP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HttpVersion {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

impl From<::http::Version> for HttpVersion {
    fn from(version: ::http::Version) -> Self {
        match version {
            ::http::Version::HTTP_09 | ::http::Version::HTTP_10 => Self::Http10,
            ::http::Version::HTTP_11 => Self::Http11,
            _ => Self::Http2,
        }
    }
}

impl fmt::Display for HttpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        })
    }
}

mod method {
    use super::*;

    pub fn serialize<S: Serializer>(method: &Method, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(method.as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Method, D::Error> {
        <&str>::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

mod status {
    use super::*;

    pub fn serialize<S: Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(status.as_u16())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<StatusCode, D::Error> {
        StatusCode::from_u16(u16::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
