//! Errors that the edge reports to visitors in place of a response of the upstream.

use ::http::StatusCode;

use crate::proto::Failure;

/// An error that a visitor sees. Its code is sent in `X-Qtunnel-Error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No tunnel has that name.
    NoSuchTunnel,
    /// The tunnel's agent is not connected.
    AgentOffline,
    /// The session was lost before the agent responded.
    AgentLost,
    /// The upstream refuses connections.
    UpstreamUnreachable,
    /// The upstream does not respond in time.
    UpstreamTimeout,
    /// The upstream's response is not HTTP, or breaks off.
    UpstreamInvalid,
    /// The upstream does not speak HTTP, or only another version of it.
    UpstreamNotHttp,
    /// The head of the upstream's response is too large.
    UpstreamHeadTooLarge,
    /// The head of the upstream's response is malformed.
    UpstreamHeadInvalid,
    /// The tunnel does not allow an upgrade to the protocol that the visitor asks for.
    UpgradeNotAllowed,
    /// The tunnel leads back to itself.
    LoopDetected,
    /// The visitor's request is malformed, or exceeds a limit.
    BadRequest(StatusCode),
    /// The visitor sends its request's body too slowly.
    BodyTooSlow,
    /// The tunnel or the edge has as many conversations as it may.
    Busy,
    /// The visitor has too many connections.
    TooManyConnections,
    /// The visitor has too many requests under way.
    TooManyConversations,
    /// The edge has no such page of its own.
    NotFound,
    /// A bug in qtunnel.
    Internal,
}

impl Fault {
    /// Return the code by which programs recognise the error.
    pub fn code(self) -> &'static str {
        match self {
            Self::NoSuchTunnel => "no_such_tunnel",
            Self::AgentOffline => "agent_offline",
            Self::AgentLost => "agent_lost",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamInvalid
            | Self::UpstreamNotHttp
            | Self::UpstreamHeadTooLarge
            | Self::UpstreamHeadInvalid => "upstream_invalid",
            Self::UpgradeNotAllowed => "upgrade_not_allowed",
            Self::LoopDetected => "loop_detected",
            Self::BadRequest(StatusCode::URI_TOO_LONG) => "target_too_long",
            Self::BadRequest(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) => "head_too_large",
            Self::BadRequest(_) => "bad_request",
            Self::BodyTooSlow => "body_too_slow",
            Self::Busy => "busy",
            Self::TooManyConnections => "too_many_connections",
            Self::TooManyConversations => "too_many_conversations",
            Self::NotFound => "not_found",
            Self::Internal => "internal",
        }
    }

    /// Return the status of the response.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoSuchTunnel | Self::NotFound => StatusCode::NOT_FOUND,
            Self::AgentOffline
            | Self::AgentLost
            | Self::UpstreamUnreachable
            | Self::UpstreamInvalid
            | Self::UpstreamNotHttp
            | Self::UpstreamHeadTooLarge
            | Self::UpstreamHeadInvalid => StatusCode::BAD_GATEWAY,
            Self::UpgradeNotAllowed => StatusCode::NOT_IMPLEMENTED,
            Self::LoopDetected => StatusCode::LOOP_DETECTED,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::BadRequest(status) => status,
            Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooManyConnections | Self::TooManyConversations => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Return the value of `Retry-After`, in seconds, if trying again makes sense.
    pub fn retry_after(self) -> Option<&'static str> {
        match self {
            Self::AgentOffline | Self::AgentLost => Some("5"),
            Self::Busy | Self::TooManyConnections | Self::TooManyConversations => Some("1"),
            _ => None,
        }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoSuchTunnel => Self::NoSuchTunnel,
            Failure::UpstreamUnreachable => Self::UpstreamUnreachable,
            Failure::UpstreamTimeout => Self::UpstreamTimeout,
            Failure::UpstreamInvalid => Self::UpstreamInvalid,
            Failure::Busy => Self::Busy,
            Failure::UpstreamNotHttp => Self::UpstreamNotHttp,
            Failure::UpstreamHeadTooLarge => Self::UpstreamHeadTooLarge,
            Failure::UpstreamHeadInvalid => Self::UpstreamHeadInvalid,
            Failure::LoopDetected => Self::LoopDetected,
        }
    }
}
