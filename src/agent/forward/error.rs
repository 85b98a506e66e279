//! The error of a conversation.

use std::error::Error as StdError;
use std::time::Duration;

use crate::agent::upstream::http2;
use crate::agent::upstream::pool::DialError;
use crate::agent::upstream::response_head::HeadError;
use crate::proto::{Failure, WireError};
use crate::stream::SendError;

/// The error that ended a conversation. The edge receives the [`Failure`] that belongs to it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("the visitor went away")]
    Visitor,
    #[error("it cannot be reached")]
    Dial(#[source] DialError),
    #[error("it did not start to respond within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    #[error("it failed")]
    Upstream(#[source] hyper::Error),
    #[error(transparent)]
    Head(HeadError),
    #[error("{description}")]
    Http2 {
        description: String,
        #[source]
        err: hyper::Error,
    },
    #[error("the request has come through this tunnel before: it leads to itself")]
    Loop,
    #[error("the service in this process failed")]
    Service(#[source] Box<dyn StdError + Send + Sync>),
    #[error("it switched protocols without being asked to")]
    UnrequestedSwitch,
    #[error("it switched to a protocol that was not requested")]
    WrongProtocol,
    #[error("upgrades over HTTP/2 are not possible")]
    NoUpgrade,
    #[error("the request's target or host cannot be forwarded")]
    Target,
    #[error("the response was not delivered")]
    Tunnel(#[source] SendError),
}

impl ForwardError {
    /// Wrap an error of an HTTP/2 connection, described in the terms of RFC 9113 where possible. `is_agreed` is set
    /// if ALPN or an earlier response has shown that the upstream speaks HTTP/2.
    pub(crate) fn from_http2(err: hyper::Error, is_agreed: bool) -> Self {
        match http2::describe(&err, is_agreed) {
            Some(description) => Self::Http2 { description, err },
            None => Self::Upstream(err),
        }
    }

    /// Report whether the upstream is at fault, so that its address belongs into the message.
    pub(crate) fn is_upstream_fault(&self) -> bool {
        match self {
            Self::Dial(_) | Self::Timeout(_) | Self::Upstream(_) | Self::Loop => true,
            Self::Head(_) | Self::Http2 { .. } | Self::Tunnel(SendError::Wire(_)) => true,
            Self::UnrequestedSwitch | Self::WrongProtocol | Self::NoUpgrade => true,
            Self::Tunnel(SendError::Body(_)) => true,
            Self::Visitor | Self::Service(_) | Self::Target | Self::Tunnel(_) => false,
        }
    }

    /// Return the failure to send to the edge, or `None` if it is too late for a head.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self {
            Self::Visitor => None,
            Self::Dial(DialError::Full) => Some(Failure::Busy),
            Self::Dial(DialError::NotTls(_)) => Some(Failure::UpstreamNotHttp),
            Self::Dial(_) => Some(Failure::UpstreamUnreachable),
            Self::Loop => Some(Failure::LoopDetected),
            Self::Timeout(_) => Some(Failure::UpstreamTimeout),
            Self::Head(HeadError::NotHttp { .. }) => Some(Failure::UpstreamNotHttp),
            Self::Head(HeadError::TooLong | HeadError::TooManyFields) => {
                Some(Failure::UpstreamHeadTooLarge)
            }
            Self::Head(_) => Some(Failure::UpstreamHeadInvalid),
            Self::Upstream(_)
            | Self::Http2 { .. }
            | Self::Service(_)
            | Self::UnrequestedSwitch
            | Self::WrongProtocol
            | Self::NoUpgrade
            | Self::Target => Some(Failure::UpstreamInvalid),
            Self::Tunnel(SendError::Wire(WireError::TooLong { .. })) => {
                Some(Failure::UpstreamHeadTooLarge)
            }
            Self::Tunnel(SendError::Wire(_)) => Some(Failure::UpstreamHeadInvalid),
            Self::Tunnel(_) => None,
        }
    }
}
