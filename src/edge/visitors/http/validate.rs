//! Rules for a request that hyper has parsed, in HTTP/1.1 and HTTP/2 alike, checked before it is
//! routed: one host, a target that fits the method, bounded sizes, no ambiguous framing fields.
//!
//! Faults that hyper's HTTP/1.1 parser hides (line ends, repeated framing) are found by `guard`.

use ::http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue, TE};
use ::http::request::Parts;
use ::http::uri::{PathAndQuery, Scheme};
use ::http::{HeaderMap, Method, Version};
use hyper::ext::Protocol;

use super::head_limits::{CRUMB_OVERHEAD, MAX_FIELDS, MAX_HEAD, MAX_TARGET};
use super::host::Host;
use super::violation::Violation;
use crate::proto::METHOD_LIMIT;

/// The host that a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    /// As the visitor spelt it, with its port: the value of `Host` and `X-Forwarded-Host`.
    pub(crate) raw: HeaderValue,
    /// In lower case, without port and final dot: what a tunnel is looked up by.
    pub(crate) host: String,
}

/// Check a request, and return the host that it is for, or the first rule that it breaks.
pub(crate) fn check(parts: &Parts) -> Result<Authority, Violation> {
    check_target(parts)?;
    check_fields(parts)?;
    authority(parts)
}

/// Report whether a field would be taken for `Content-Length` or `Transfer-Encoding` by a server
/// that treats underscores as hyphens, as everything does that passes headers on in variables (CGI,
/// WSGI).
pub(crate) fn imitates_framing(name: &str) -> bool {
    name.contains('_')
        && [CONTENT_LENGTH.as_str(), "transfer-encoding"]
            .iter()
            .any(|framing| same_variable(name, framing))
}

/// Report whether two field names are the same as variables: without case, and with `_` for `-`.
pub(crate) fn same_variable(name: &str, other: &str) -> bool {
    let fold = |b: u8| {
        if b == b'_' {
            b'-'
        } else {
            b.to_ascii_lowercase()
        }
    };
    name.len() == other.len() && name.bytes().map(fold).eq(other.bytes().map(fold))
}

/// Check the request target and that it fits the method (RFC 9112 §3.2).
fn check_target(parts: &Parts) -> Result<(), Violation> {
    let target = &parts.uri;
    let extended_connect =
        parts.extensions.get::<Protocol>().is_some() && parts.version == Version::HTTP_2;
    if parts.method == Method::CONNECT && !extended_connect {
        return Err(Violation::Connect);
    }
    if parts.method.as_str().len() > METHOD_LIMIT {
        return Err(Violation::MethodTooLong);
    }
    if target
        .scheme()
        .is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS)
    {
        return Err(Violation::MalformedTarget);
    }
    let path = target.path_and_query().map_or("", PathAndQuery::as_str);
    let authority = target
        .authority()
        .map_or(0, |authority| authority.as_str().len());
    if path.len() + authority > MAX_TARGET {
        return Err(Violation::TargetTooLong);
    }
    match path {
        "*" if parts.method == Method::OPTIONS => Ok(()),
        "*" => Err(Violation::AsteriskTarget),
        _ if path.starts_with('/') => Ok(()),
        // The absolute form may have a query without a path, which means the root.
        _ if path.starts_with('?') && target.authority().is_some() => Ok(()),
        _ => Err(Violation::MalformedTarget),
    }
}

/// Check the number, size and framing of the header fields.
fn check_fields(parts: &Parts) -> Result<(), Violation> {
    let headers = &parts.headers;
    // HTTP/2 may split one Cookie field into one per cookie (RFC 9113 §8.2.3). The same cookies
    // must get the same verdict over both versions: such crumbs count as the one field that they
    // are joined to.
    let crumbs = headers.get_all(COOKIE).iter().count();
    if headers.len() - crumbs.saturating_sub(1) > MAX_FIELDS {
        return Err(Violation::TooManyFields);
    }
    let fields: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD)
        .sum();
    let joined =
        crumbs.saturating_sub(1) * (COOKIE.as_str().len() + FIELD_OVERHEAD - CRUMB_OVERHEAD);
    let target = parts
        .uri
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    let rest = match parts.version {
        Version::HTTP_2 => other_head_bytes(parts),
        // The guard has counted every byte of the head.
        _ => 0,
    };
    if fields - joined + target + rest > MAX_HEAD {
        return Err(Violation::HeadTooLarge);
    }
    if headers.keys().any(|name| imitates_framing(name.as_str())) {
        return Err(Violation::LookAlikeField);
    }
    if parts.version == Version::HTTP_2 {
        refuse_connection_fields(headers)?;
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        if lengths.next().is_some() {
            return Err(Violation::RepeatedContentLength);
        }
        content_length(length.as_bytes()).ok_or(Violation::MalformedContentLength)?;
    }
    Ok(())
}

/// Count the bytes that an HTTP/2 request would have in HTTP/1.1 besides its target and fields: the
/// rest of the request line, its `Host`, and the empty line.
fn other_head_bytes(parts: &Parts) -> usize {
    let line = parts.method.as_str().len() + "  HTTP/1.1\r\n".len();
    let host = match parts.uri.authority() {
        Some(authority) if !parts.headers.contains_key(HOST) => {
            HOST.as_str().len() + authority.as_str().len() + FIELD_OVERHEAD
        }
        _ => 0,
    };
    line + host + "\r\n".len()
}

/// Parse a `Content-Length`: digits and nothing else (RFC 9110 §8.6).
///
/// Eighteen digits are an exabyte, and cannot overflow anybody's signed arithmetic.
pub(crate) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        value
            .iter()
            .fold(0, |length, digit| length * 10 + u64::from(digit - b'0')),
    )
}

/// Refuse the fields of an HTTP/1.1 connection (RFC 9113 §8.2.2).
fn refuse_connection_fields(headers: &HeaderMap) -> Result<(), Violation> {
    let foreign = CONNECTION_FIELDS
        .iter()
        .any(|name| headers.contains_key(name));
    let trailers = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"trailers");
    if foreign || !headers.get_all(TE).iter().all(trailers) {
        return Err(Violation::ConnectionField);
    }
    Ok(())
}

/// Return the one host that the request names.
fn authority(parts: &Parts) -> Result<Authority, Violation> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let field = hosts.next();
    if hosts.next().is_some() {
        return Err(Violation::RepeatedHost);
    }
    let target = parts
        .uri
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    let parse = |bytes| Host::parse(bytes).ok_or(Violation::MalformedHost);
    match (field, target) {
        (None, None) => Err(Violation::MissingHost),
        (Some(field), None) => {
            let host = parse(field.as_bytes())?;
            Ok(Authority {
                raw: field.clone(),
                host: host.canonical(),
            })
        }
        (None, Some(target)) => {
            let host = parse(target)?;
            let raw = HeaderValue::from_bytes(target).map_err(|_| Violation::MalformedHost)?;
            Ok(Authority {
                raw,
                host: host.canonical(),
            })
        }
        (Some(field), Some(target)) => {
            let host = parse(field.as_bytes())?;
            let default_port = if parts.uri.scheme() == Some(&Scheme::HTTPS) {
                443
            } else {
                80
            };
            if !host.agrees_with(&parse(target)?, default_port) {
                return Err(Violation::HostMismatch);
            }
            Ok(Authority {
                raw: field.clone(),
                host: host.canonical(),
            })
        }
    }
}

/// Bytes of a field in HTTP/1.1 besides its name and value: `: ` and CR LF.
const FIELD_OVERHEAD: usize = 4;

const CONNECTION_FIELDS: [HeaderName; 5] = [
    ::http::header::CONNECTION,
    ::http::header::TRANSFER_ENCODING,
    ::http::header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;

    /// Make a request as hyper hands it over; the method, version and target come first, then the
    /// fields.
    fn request(method: &str, version: Version, target: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder()
            .method(method)
            .version(version)
            .uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn http1(method: &str, target: &str, fields: &[(&str, &str)]) -> Result<Authority, Violation> {
        check(&request(method, Version::HTTP_11, target, fields))
    }

    fn http2(method: &str, target: &str, fields: &[(&str, &str)]) -> Result<Authority, Violation> {
        check(&request(method, Version::HTTP_2, target, fields))
    }

    fn host(name: &str) -> [(&'static str, String); 1] {
        [("host", name.to_owned())]
    }

    #[test]
    fn the_host_field_names_the_host_in_http1() {
        let authority = http1("GET", "/a%2Fb?c", &[("host", "Blog.Example:8080")]).expect("valid");

        assert_eq!(authority.raw, "Blog.Example:8080");
        assert_eq!(authority.host, "blog.example");
    }

    #[test]
    fn the_authority_names_the_host_in_http2() {
        let authority = http2("GET", "https://Blog.Example:8443/", &[]).expect("valid");

        assert_eq!(authority.raw, "Blog.Example:8443");
        assert_eq!(authority.host, "blog.example");
    }

    #[test]
    fn authority_and_host_field_must_agree() {
        assert!(http2("GET", "https://a.example/", &[("host", "A.example:443")]).is_ok());
        assert!(http1("GET", "http://a.example/", &[("host", "a.example")]).is_ok());
        for field in ["b.example", "a.example:80"] {
            assert_eq!(
                http2("GET", "https://a.example/", &[("host", field)]),
                Err(Violation::HostMismatch)
            );
        }
        assert_eq!(
            http1("GET", "http://a.example/", &[("host", "b.example")]),
            Err(Violation::HostMismatch)
        );
    }

    #[test]
    fn no_host_two_hosts_and_a_malformed_host_are_refused() {
        let two = [("host", "a.example"), ("host", "a.example")];
        assert_eq!(http1("GET", "/", &[]), Err(Violation::MissingHost));
        assert_eq!(http1("GET", "/", &two), Err(Violation::RepeatedHost));
        for (name, value) in host("a.example, b.example")
            .iter()
            .chain(&host(""))
            .chain(&host("u@a.example"))
        {
            assert_eq!(
                http1("GET", "/", &[(*name, value)]),
                Err(Violation::MalformedHost)
            );
        }
        assert_eq!(
            http2("GET", "https://user@a.example/", &[]),
            Err(Violation::MalformedHost)
        );
    }

    #[test]
    fn connect_is_refused_unless_it_is_extended() {
        let mut extended = request("CONNECT", Version::HTTP_2, "https://a.example/chat", &[]);
        extended
            .extensions
            .insert(Protocol::from_static("websocket"));

        assert!(check(&extended).is_ok());
        assert_eq!(
            http2("CONNECT", "a.example:443", &[]),
            Err(Violation::Connect)
        );
        assert_eq!(
            http1("CONNECT", "a.example:443", &[("host", "a.example:443")]),
            Err(Violation::Connect)
        );
    }

    #[test]
    fn only_options_accepts_an_asterisk() {
        assert!(http1("OPTIONS", "*", &[("host", "a.example")]).is_ok());
        assert_eq!(
            http1("GET", "*", &[("host", "a.example")]),
            Err(Violation::AsteriskTarget)
        );
    }

    #[test]
    fn a_target_is_a_path_or_an_http_url() {
        for target in ["a.example", "ftp://a.example/", "mailto://a.example"] {
            assert_eq!(
                http1("GET", target, &[("host", "a.example")]),
                Err(Violation::MalformedTarget),
                "{target}"
            );
        }
        assert!(http1("GET", "http://a.example?q", &[("host", "a.example")]).is_ok());
    }

    #[test]
    fn a_target_of_8_kib_passes_and_a_longer_one_is_refused() {
        let target = |length: usize| format!("/{}", "a".repeat(length - 1));

        assert!(http1("GET", &target(MAX_TARGET), &[("host", "a.example")]).is_ok());
        let longer = http1("GET", &target(MAX_TARGET + 1), &[("host", "a.example")]);
        assert_eq!(longer, Err(Violation::TargetTooLong));
    }

    #[test]
    fn a_method_of_256_bytes_passes_and_a_longer_one_is_refused() {
        for (length, expected) in [
            (METHOD_LIMIT, None),
            (METHOD_LIMIT + 1, Some(Violation::MethodTooLong)),
        ] {
            let method = "M".repeat(length);
            let over_http1 = http1(&method, "/", &[("host", "a.example")]);
            let over_http2 = http2(&method, "https://a.example/", &[]);
            assert_eq!((over_http1.err(), over_http2.err()), (expected, expected));
        }
    }

    #[test]
    fn a_hundred_fields_pass_and_one_more_is_refused() {
        let mut fields = vec![("x", "y"); MAX_FIELDS - 1];
        fields.push(("host", "a.example"));

        assert!(http1("GET", "/", &fields).is_ok());
        fields.push(("x", "y"));
        assert_eq!(http1("GET", "/", &fields), Err(Violation::TooManyFields));
    }

    #[test]
    fn a_head_of_16_kib_passes_and_a_larger_one_is_refused() {
        let overhead = "/".len() + "host: a\r\n".len() + "x: \r\n".len();
        let value = |length: usize| "y".repeat(length - overhead);

        assert!(http1("GET", "/", &[("host", "a"), ("x", &value(MAX_HEAD))]).is_ok());
        let larger = http1("GET", "/", &[("host", "a"), ("x", &value(MAX_HEAD + 1))]);
        assert_eq!(larger, Err(Violation::HeadTooLarge));
    }

    #[test]
    fn split_cookies_count_as_one_field() {
        let crumbs = |length: usize, count: usize| -> Vec<(&str, String)> {
            let mut crumbs = vec![("cookie", "a=1".to_owned()); count - 1];
            let others = crumbs.len() * ("a=1".len() + CRUMB_OVERHEAD);
            crumbs.push(("cookie", "y".repeat(length - others)));
            crumbs
        };
        let with = |fields: &[(&str, String)]| {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| (*name, &**value))
                .collect();
            http2("GET", "https://a/", &fields)
        };
        let head = "GET / HTTP/1.1\r\nhost: a\r\ncookie: \r\n\r\n".len();
        for count in [1, 2, 110, 300, 3_000] {
            assert!(with(&crumbs(MAX_HEAD - head, count)).is_ok(), "{count}");
            let larger = with(&crumbs(MAX_HEAD - head + 1, count));
            assert_eq!(larger, Err(Violation::HeadTooLarge), "{count}");
        }
        let mut most = crumbs(2_000, 300);
        most.extend(vec![("x", "y".to_owned()); MAX_FIELDS - 1]);
        assert!(with(&most).is_ok());
        most.push(("x", "y".to_owned()));
        assert_eq!(with(&most), Err(Violation::TooManyFields));
    }

    #[test]
    fn framing_fields_spelt_with_underscores_are_refused() {
        for name in ["content_length", "Transfer_Encoding"] {
            let fields = [("host", "a"), (name, "1")];
            assert_eq!(
                http1("POST", "/", &fields),
                Err(Violation::LookAlikeField),
                "{name}"
            );
        }
        assert!(http1("GET", "/", &[("host", "a"), ("session_id", "1")]).is_ok());
    }

    #[test]
    fn content_length_is_one_decimal_number() {
        let with = |fields: &[(&str, &str)]| http2("POST", "https://a.example/", fields);

        assert!(with(&[("content-length", "5")]).is_ok());
        let twice = [("content-length", "5"), ("content-length", "5")];
        assert_eq!(with(&twice), Err(Violation::RepeatedContentLength));
        for value in ["", "+5", "5,5", "0x5", "5 5", "-1", "9999999999999999999"] {
            assert_eq!(
                with(&[("content-length", value)]),
                Err(Violation::MalformedContentLength),
                "{value}"
            );
        }
    }

    #[test]
    fn connection_specific_fields_are_refused_in_http2() {
        let with = |name: &str, value: &str| http2("GET", "https://a.example/", &[(name, value)]);

        for name in [
            "connection",
            "keep-alive",
            "proxy-connection",
            "transfer-encoding",
            "upgrade",
        ] {
            assert_eq!(with(name, "x"), Err(Violation::ConnectionField), "{name}");
        }
        assert_eq!(with("te", "gzip"), Err(Violation::ConnectionField));
        assert!(with("te", "trailers").is_ok());
        assert!(
            http1(
                "GET",
                "/",
                &[("host", "a"), ("connection", "close"), ("te", "gzip")]
            )
            .is_ok()
        );
    }
}
