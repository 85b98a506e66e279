//! Why a conversation did not end as it should.

use std::error::Error as StdError;
use std::time::Duration;

use crate::agent::upstream::http2;
use crate::agent::upstream::pool::DialError;
use crate::agent::upstream::response_head::HeadError;
use crate::proto::{Failure, WireError};
use crate::stream::SendError;

/// Why a conversation did not end as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("the visitor went away")]
    Visitor,
    #[error("it cannot be reached")]
    Dial(#[source] DialError),
    #[error("it did not begin to answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    #[error("it failed")]
    Upstream(#[source] hyper::Error),
    #[error(transparent)]
    Head(HeadError),
    #[error("{what}")]
    Http2 {
        what: String,
        #[source]
        err: hyper::Error,
    },
    #[error("the request has come through this tunnel before: it leads to itself")]
    Loop,
    #[error("the service in this process failed")]
    Service(#[source] Box<dyn StdError + Send + Sync>),
    #[error("it switched protocols without being asked")]
    NotAsked,
    #[error("it switched to another protocol than it was asked for")]
    OtherProtocol,
    #[error("upgrades over HTTP/2 are not possible")]
    NoUpgrade,
    #[error("the request's target or host cannot be sent on")]
    Target,
    #[error("the response was not delivered")]
    Tunnel(#[source] SendError),
}

impl ForwardError {
    /// Name what went wrong on an HTTP/2 connection, if it has a name.
    pub(crate) fn of_http2(err: hyper::Error, is_agreed: bool) -> Self {
        match http2::describe(&err, is_agreed) {
            Some(what) => Self::Http2 { what, err },
            None => Self::Upstream(err),
        }
    }

    /// Report whether the upstream's address helps to understand it.
    pub(crate) fn is_upstreams(&self) -> bool {
        match self {
            Self::Dial(_) | Self::Timeout(_) | Self::Upstream(_) | Self::Loop => true,
            Self::Head(_) | Self::Http2 { .. } | Self::Tunnel(SendError::Wire(_)) => true,
            Self::NotAsked | Self::OtherProtocol | Self::NoUpgrade => true,
            Self::Tunnel(SendError::Body(_)) => true,
            Self::Visitor | Self::Service(_) | Self::Target | Self::Tunnel(_) => false,
        }
    }

    /// What the edge is told, if it still can be told anything.
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
            | Self::NotAsked
            | Self::OtherProtocol
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
