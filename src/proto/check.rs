//! What a value must be besides well-formed. The table of all fields is in `fields.md`.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use ::http::header::{CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING};
use ::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};

use super::{
    AgentMessage, BodyLength, EdgeMessage, FIRST_WINDOW_LIMIT, Hello, INFORMATIONAL, LEAST_WINDOW,
    LOST_LIMIT, REASON_LIMIT, REQUEST_FIELDS_LIMIT, RequestHead, ResponseHead, StreamHead,
    TARGET_LIMIT, TunnelGrant, TunnelRequest, UNREAD_LIMIT, UPGRADE_LIMIT, URLS_LIMIT, Welcome,
    WireError,
};

/// A message or head that is not believed because it could be decoded.
///
/// Whoever receives from a stream gets no value that was not checked: the receiving functions ask for this trait.
pub trait Check {
    /// Find what is wrong with the value on its own. What depends on the receiver's state is left to the receiver.
    ///
    /// # Errors
    /// [`WireError::Invalid`] names it.
    fn check(&self) -> Result<(), WireError>;
}

impl Check for AgentMessage {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Hello(hello) => hello.check(),
            Self::Open(_) | Self::Shut(_) | Self::Draining { .. } => Ok(()),
            Self::Window(_) | Self::Nothing => Ok(()),
        }
    }
}

impl Check for Hello {
    fn check(&self) -> Result<(), WireError> {
        let mut numbers = HashSet::new();
        let mut is_new = |request: &TunnelRequest| numbers.insert(request.tunnel);
        require(
            self.tunnels.iter().all(&mut is_new),
            "two tunnels have the same number",
        )?;
        require(
            self.lost.len() <= LOST_LIMIT,
            "more lost sessions are reported than an agent may",
        )?;
        let is_possible = |lost: &super::LostSession| {
            lost.unread.len() <= UNREAD_LIMIT
                && lost.unread.iter().all(|stream| *stream < lost.accepted)
        };
        require(
            self.lost.iter().all(is_possible),
            "a lost session has unread streams that it cannot have",
        )
    }
}

impl Check for EdgeMessage {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Welcome(welcome) => welcome.check(),
            Self::Opened(grant) => grant.check(),
            Self::Refused(_) | Self::NotOpened { .. } | Self::Notice(_) => Ok(()),
            Self::Draining { .. } | Self::Moving { .. } => Ok(()),
            Self::Window(_) | Self::Nothing => Ok(()),
        }
    }
}

impl Check for Welcome {
    fn check(&self) -> Result<(), WireError> {
        self.tunnels.iter().try_for_each(Check::check)
    }
}

impl Check for TunnelGrant {
    fn check(&self) -> Result<(), WireError> {
        require(self.urls.len() <= URLS_LIMIT, "a tunnel has too many URLs")?;
        require(
            self.urls.iter().all(|url| is_url(url)),
            "a tunnel's URL is not one",
        )
    }
}

impl Check for StreamHead {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Http(head) => head.check(),
        }
    }
}

impl Check for RequestHead {
    fn check(&self) -> Result<(), WireError> {
        let is_asterisk = self.target == "*" && self.method == Method::OPTIONS;
        require(self.method != Method::CONNECT, "the method is CONNECT")?;
        require(
            self.method.as_str().len() <= METHOD_LIMIT,
            "the method is too long",
        )?;
        require(
            is_asterisk || is_origin_form(&self.target),
            "the target is not a path",
        )?;
        require(self.target.len() <= TARGET_LIMIT, "the target is too long")?;
        require(
            self.upgrade.as_deref().is_none_or(is_protocol),
            "the protocol to switch to is not one",
        )?;
        check_length(self.body)?;
        require(
            WINDOWS.contains(&self.window.into()),
            "the window is smaller or larger than one may be",
        )?;
        check_request_fields(&self.fields.0, self.body)
    }
}

impl Check for ResponseHead {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Informational { status, .. } => require(
                INFORMATIONAL.contains(&status.as_u16())
                    && *status != StatusCode::SWITCHING_PROTOCOLS,
                "an informational answer has another kind of status",
            ),
            Self::Final {
                status,
                reason,
                body,
                ..
            } => {
                require(
                    *status == StatusCode::SWITCHING_PROTOCOLS
                        || !INFORMATIONAL.contains(&status.as_u16()),
                    "an answer has an informational status",
                )?;
                require(
                    !is_bodiless(*status) || *body == BodyLength::Empty,
                    "an answer has a body that its status forbids",
                )?;
                require(
                    reason.as_deref().is_none_or(is_reason),
                    "the reason phrase is not one",
                )?;
                check_length(*body)
            }
            Self::Failed(_) => Ok(()),
        }
    }
}

/// Answers with these have no body whatever their fields say (RFC 9110 §6.4.1), as those to HEAD.
pub fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Report whether this may be sent as the reason phrase of HTTP/1.1 (RFC 9112 §4).
pub fn is_reason(reason: &[u8]) -> bool {
    let allowed = |b: &u8| matches!(b, b'\t' | b' '..=b'~' | 0x80..);
    reason.len() <= REASON_LIMIT && reason.iter().all(allowed)
}

fn require(holds: bool, otherwise: &'static str) -> Result<(), WireError> {
    match holds {
        true => Ok(()),
        false => Err(WireError::Invalid(otherwise)),
    }
}

fn check_length(body: BodyLength) -> Result<(), WireError> {
    let fits = !matches!(body, BodyLength::Known(length) if length >= BODY_LIMIT);
    require(fits, "the body is longer than a stream")
}

fn is_url(url: &str) -> bool {
    let visible = url.bytes().all(|b| b.is_ascii_graphic());
    let parsed = url.parse::<Uri>().ok().filter(|_| visible);
    parsed.is_some_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
    })
}

/// A path and a query (RFC 9112 §3.2.1). Two slashes at the beginning are a path, too, and in front of a server
/// they stay one.
fn is_origin_form(target: &str) -> bool {
    let allowed = |b: u8| !b.is_ascii_control() && b != b' ' && b != b'#';
    target.starts_with('/') && target.bytes().all(allowed)
}

/// Report whether this may stand for protocols to switch to: one name, or several with commas, of what `Upgrade`
/// and `:protocol` may say (RFC 9110 §7.8).
pub fn is_protocol(protocol: &str) -> bool {
    let allowed = |b: u8| matches!(b, b'!'..=b'~' | b' ');
    (1..=UPGRADE_LIMIT).contains(&protocol.len())
        && protocol.bytes().all(allowed)
        && !protocol.contains(['"', '\\', ';', '(', ')'])
}

/// The edge has removed what concerns one hop, and has left one host: if it has not, nothing of it may reach an
/// upstream, which could read another request out of it than the edge did.
fn check_request_fields(fields: &HeaderMap, body: BodyLength) -> Result<(), WireError> {
    require(
        fields.len() <= REQUEST_FIELDS_LIMIT,
        "there are too many fields",
    )?;
    let mut hosts = fields.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    require(
        second.is_none() && host.is_some_and(|host| is_host(host.as_bytes())),
        "there is not exactly one host",
    )?;
    let (mut hop, mut framing) = (false, false);
    for name in fields.keys() {
        hop |= OF_ONE_HOP.contains(name);
        framing |= imitates_framing(name);
    }
    let only_trailers = fields
        .get_all(TE)
        .iter()
        .all(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    require(
        !hop && only_trailers,
        "a field concerns one connection only",
    )?;
    require(!framing, "a field could be read as a length")?;
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    let (length, second) = (lengths.next(), lengths.next());
    let agrees = match (length, body) {
        (None, _) => true,
        (Some(length), BodyLength::Known(known)) => decimal(length.as_bytes()) == Some(known),
        (Some(length), BodyLength::Empty) => decimal(length.as_bytes()).is_some(),
        (Some(_), BodyLength::Unknown) => false,
    };
    require(
        agrees && second.is_none(),
        "the length differs from what the fields say",
    )
}

/// A host and perhaps a port (RFC 9110 §7.2): what is in a name or an address, and nothing that could be read as two.
fn is_host(host: &[u8]) -> bool {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-._~:[]".contains(b);
    (1..=HOST_LIMIT).contains(&host.len()) && host.iter().all(allowed)
}

/// `content_length` is a length to those who pass fields on in variables (CGI, WSGI).
fn imitates_framing(name: &HeaderName) -> bool {
    name.as_str().contains('_') && {
        let hyphened = name.as_str().replace('_', "-");
        hyphened == CONTENT_LENGTH.as_str() || hyphened == TRANSFER_ENCODING.as_str()
    }
}

/// Read digits and nothing else (RFC 9110 §8.6).
pub fn decimal(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit) && !value.is_empty();
    digits
        .then(|| std::str::from_utf8(value).ok()?.parse().ok())
        .flatten()
}

const WINDOWS: RangeInclusive<u64> = LEAST_WINDOW..=FIRST_WINDOW_LIMIT;

/// Each body is shorter: a QUIC stream carries no more (RFC 9000 §4.5), and it fits everybody's signed arithmetic.
pub const BODY_LIMIT: u64 = 1 << 62;

/// The longest registered method has 17 characters; nobody sends longer ones than this.
pub const METHOD_LIMIT: usize = 256;

/// The longest name of DNS (255), and a port.
const HOST_LIMIT: usize = 270;

const OF_ONE_HOP: [HeaderName; 8] = [
    ::http::header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    ::http::header::PROXY_AUTHENTICATE,
    ::http::header::PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    ::http::header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];
