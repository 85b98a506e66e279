//! The first thing on a conversation's stream, and the first thing that comes back.

use std::fmt;
use std::net::SocketAddr;

use ::http::{Method, StatusCode};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Check, Fields, HEAD_LIMIT, RESPONSE_HEAD_LIMIT};

/// What stands at the beginning of a stream, in one direction.
pub trait Head: Check + Serialize + serde::de::DeserializeOwned {
    /// The most bytes that it takes.
    const LIMIT: usize;
}

impl Head for StreamHead {
    const LIMIT: usize = HEAD_LIMIT;
}

impl Head for ResponseHead {
    const LIMIT: usize = RESPONSE_HEAD_LIMIT;
}

/// What kind of conversation a stream carries. The edge sends it first.
///
/// Kinds to come (TCP, TLS by server name, private tunnels) are appended here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum StreamHead {
    /// One HTTP request and its response.
    Http(RequestHead),
}

/// The head of a visitor's request, cleaned by the edge and completed by the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestHead {
    /// The number that the agent gave to the tunnel.
    pub tunnel: u32,
    /// Who asks, as the edge sees it.
    pub visitor: SocketAddr,
    /// How the visitor reached the edge.
    pub scheme: Scheme,
    /// The visitor's version of HTTP.
    pub version: HttpVersion,
    /// The method, in its own letter case.
    #[serde(with = "method")]
    pub method: Method,
    /// The origin form of the target (path and query, percent-encoding untouched) or `*`.
    pub target: String,
    /// The protocols to switch to, if the visitor asks for some (`Upgrade`, or RFC 8441's `:protocol`): those
    /// that the tunnel allows, as they were spelt. An answer with 101 names one of them.
    pub upgrade: Option<String>,
    /// Whether a body follows.
    pub body: BodyLength,
    /// Bytes of a body that either end takes before it tells a [`Window`](super::Window): at least
    /// [`LEAST_WINDOW`](super::LEAST_WINDOW).
    pub window: u32,
    /// The fields, without those that concern one hop only. The agent tells the upstream who the visitor is, by
    /// what is above and `Host` (`X-Forwarded-For`, `-Proto`, `-Host`, and RFC 7239); there is a `Forwarded` in
    /// here only when the edge trusts a proxy in front of it, and then all of them are, as they are to be told.
    #[serde(deserialize_with = "super::fields::with_room")]
    pub fields: Fields,
}

/// The head of an answer. The agent sends any number of informational ones, then one of the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ResponseHead {
    /// A 1xx answer other than 101.
    Informational {
        /// 100 and 102 to 199.
        #[serde(with = "status")]
        status: StatusCode,
        /// Its fields, as in 103 Early Hints (RFC 8297).
        fields: Fields,
    },
    /// The answer. After 101 both directions are raw bytes.
    Final {
        /// 101, or 200 to 999.
        #[serde(with = "status")]
        status: StatusCode,
        /// HTTP/1.1's reason phrase where it is not the usual one.
        #[serde(with = "serde_bytes")]
        reason: Option<Vec<u8>>,
        /// Whether a body follows.
        body: BodyLength,
        /// The fields, without those that concern one hop only.
        fields: Fields,
    },
    /// The agent could not get an answer; the edge makes one. Nothing follows.
    Failed(Failure),
}

/// What the agent could not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The agent knows no tunnel of that number (it is being closed).
    NoSuchTunnel,
    /// The upstream refuses connections, or is not there.
    UpstreamUnreachable,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// The upstream's answer was not HTTP, or broke off before its head was complete.
    UpstreamInvalid,
    /// The agent serves as many conversations as it may.
    Busy,
    /// The upstream does not speak HTTP, or another version of it.
    UpstreamNotHttp,
    /// The head of the upstream's answer is larger than [`RESPONSE_HEAD_LIMIT`].
    UpstreamHeadTooLarge,
    /// The head of the upstream's answer can be understood in two ways, or in none.
    UpstreamHeadInvalid,
    /// The request has come through this tunnel before.
    LoopDetected,
}

impl Failure {
    /// Return the status with which the edge answers the visitor.
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

/// Whether a body follows a head, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyLength {
    /// No body and no trailers: FIN follows.
    Empty,
    /// That many bytes.
    Known(u64),
    /// Until FIN or trailers.
    Unknown,
}

/// How the visitor reached the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scheme {
    /// In clear text, or through a proxy that terminates TLS without saying so.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// Return the scheme as it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A version of HTTP.
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
