//! The request target (RFC 9112 §3.2).

use crate::edge::visitors::http::head_limits::MAX_TARGET;
use crate::edge::visitors::http::host::Host;
use crate::edge::visitors::http::violation::Violation;
use crate::proto::METHOD_LIMIT;

/// The forms of a target that an origin server accepts.
pub(crate) enum RequestTarget<'a> {
    /// Origin form (a path) or asterisk form: the host is in the `Host` field.
    Origin,
    Absolute {
        host: Host<'a>,
        default_port: u16,
    },
}

impl<'a> RequestTarget<'a> {
    /// Parse a target, which must fit the method and contain only valid characters.
    pub(crate) fn parse(method: &str, target: &'a [u8]) -> Result<Self, Violation> {
        if method == "CONNECT" {
            return Err(Violation::Connect);
        }
        if method.len() > METHOD_LIMIT {
            return Err(Violation::MethodTooLong);
        }
        if target.len() > MAX_TARGET {
            return Err(Violation::TargetTooLong);
        }
        match target {
            b"*" if method == "OPTIONS" => return Ok(Self::Origin),
            b"*" => return Err(Violation::AsteriskTarget),
            [b'/', ..] => return check_path(target).map(|()| Self::Origin),
            _ => {}
        }
        let colon = memchr::memchr(b':', target).ok_or(Violation::MalformedTarget)?;
        let default_port = match &target[..colon] {
            scheme if scheme.eq_ignore_ascii_case(b"http") => 80,
            scheme if scheme.eq_ignore_ascii_case(b"https") => 443,
            _ => return Err(Violation::MalformedTarget),
        };
        let rest = target[colon..]
            .strip_prefix(b"://")
            .ok_or(Violation::MalformedTarget)?;
        let authority_end = memchr::memchr3(b'/', b'?', b'#', rest).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_end);
        check_path(path)?;
        let host = Host::parse(authority).ok_or(Violation::MalformedTarget)?;
        Ok(Self::Absolute { host, default_port })
    }
}

/// Check the characters of a path and a query.
///
/// The `http` crate accepts the same ones, which are a few more than in RFC 3986 §3.3: browsers
/// leave `|`, `{` and the like as they are, and curl leaves UTF-8. A fragment never belongs in a
/// request, and would silently be lost.
fn check_path(path: &[u8]) -> Result<(), Violation> {
    let (path, query) = path.split_at(memchr::memchr(b'?', path).unwrap_or(path.len()));
    let in_path = |b: &u8| !matches!(b, 0..=b' ' | b'#' | b'<' | b'>' | b'`' | 0x7f);
    let in_query = |b: &u8| !matches!(b, 0..=b' ' | b'#' | b'<' | b'>' | b'"' | 0x7f);
    let is_text = |part: &[u8]| part.is_ascii() || std::str::from_utf8(part).is_ok();
    if path.iter().all(in_path) && query.iter().all(in_query) && is_text(path) && is_text(query) {
        Ok(())
    } else {
        Err(Violation::MalformedTarget)
    }
}
