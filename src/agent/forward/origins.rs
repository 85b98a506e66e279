//! Rewriting of fields that must agree with a `Host` that is not the visitor's: requests get the origin of the
//! upstream in place of the public one, and responses the reverse.
//!
//! A field is changed only where it contains exactly the other side's origin (scheme, host and port, RFC 6454
//! §4). Other origins and all bodies stay as they are.

use ::http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_LOCATION, HOST, HeaderMap, HeaderName, HeaderValue, LINK,
    LOCATION, ORIGIN, REFERER, REFRESH, SET_COOKIE,
};
use bytes::Bytes;

use crate::agent::config::HostHeader;
use crate::agent::upstream::address::Target;
use crate::http::cookies;
use crate::http::forwarded::{X_FORWARDED_HOST, X_FORWARDED_PROTO};
use crate::proto::RequestHead;

/// The two origins of one service: the public one that the visitor uses, and the one that the upstream knows.
#[derive(Debug, Clone)]
pub(crate) struct Origins {
    public: Origin,
    upstream: Origin,
}

impl Origins {
    /// Determine both origins for the request with this head. Return `None` if the upstream receives the public
    /// name, because nothing has to be rewritten then.
    pub(crate) fn of(
        head: &RequestHead,
        host_header: &HostHeader,
        target: Option<&Target>,
    ) -> Option<Self> {
        let own = match host_header {
            HostHeader::Preserve => return None,
            HostHeader::Value(host) => host.to_str().ok()?.to_owned(),
            HostHeader::Rewrite => target.map_or_else(|| "localhost".to_owned(), Target::authority),
        };
        let scheme = match target {
            Some(Target::Https { .. }) => "https",
            _ => "http",
        };
        // `X-Forwarded-*` first: a proxy in front of the edge knows the public origin better than the edge.
        let field = |name| {
            head.fields
                .0
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let proto = field(X_FORWARDED_PROTO).unwrap_or(head.scheme.as_str());
        let host = field(X_FORWARDED_HOST).or_else(|| field(HOST))?;
        Some(Self {
            public: Origin::new(proto, host)?,
            upstream: Origin::new(scheme, &own)?,
        })
    }

    /// Replace the public origin by that of the upstream in the fields of a request.
    pub(crate) fn rewrite_request(&self, fields: &mut HeaderMap) {
        let rewrite = Rewrite {
            from: &self.public,
            to: &self.upstream,
        };
        rewrite_values(fields, &ORIGIN, |value| rewrite.origin(value));
        rewrite_values(fields, &REFERER, |value| rewrite.url(value));
        rewrite_values(fields, &DESTINATION, |value| rewrite.url(value));
        rewrite_values(fields, &IF, |value| rewrite.in_brackets(value));
    }

    /// Replace the upstream's origin by the public one in the fields of a response.
    pub(crate) fn rewrite_response(&self, fields: &mut HeaderMap) {
        let rewrite = Rewrite {
            from: &self.upstream,
            to: &self.public,
        };
        rewrite_values(fields, &LOCATION, |value| rewrite.url(value));
        rewrite_values(fields, &CONTENT_LOCATION, |value| rewrite.url(value));
        rewrite_values(fields, &REFRESH, |value| rewrite.refresh(value));
        rewrite_values(fields, &LINK, |value| rewrite.in_brackets(value));
        rewrite_values(fields, &ACCESS_CONTROL_ALLOW_ORIGIN, |value| {
            rewrite.origin(value)
        });
        rewrite_values(fields, &SET_COOKIE, |value| rewrite.cookie(value));
    }
}

/// One direction of rewriting.
struct Rewrite<'a> {
    from: &'a Origin,
    to: &'a Origin,
}

impl Rewrite<'_> {
    /// Rewrite a serialized origin (RFC 6454 §6.1).
    fn origin(&self, value: &[u8]) -> Option<Vec<u8>> {
        (self.from.prefix_len(value)? == value.len()).then(|| self.to.serialize().into_bytes())
    }

    /// Rewrite the origin of a URL.
    fn url(&self, value: &[u8]) -> Option<Vec<u8>> {
        let end = self.from.prefix_len(value)?;
        Some([self.to.serialize().as_bytes(), &value[end..]].concat())
    }

    /// Rewrite the URL in `Refresh: 5; url=http://…`, as browsers parse it: also with quotes, without `url=`, or with
    /// a comma.
    fn refresh(&self, value: &[u8]) -> Option<Vec<u8>> {
        let mut at = value.iter().position(|b| matches!(b, b';' | b','))? + 1;
        let skip_blanks = |at: usize| at + count_blanks(&value[at..]);
        at = skip_blanks(at);
        if value[at..]
            .get(..3)
            .is_some_and(|word| word.eq_ignore_ascii_case(b"url"))
        {
            let equals = skip_blanks(at + 3);
            if value.get(equals) == Some(&b'=') {
                at = skip_blanks(equals + 1);
            }
        }
        if matches!(value.get(at), Some(b'"' | b'\'')) {
            at += 1;
        }
        let url = value[at..]
            .iter()
            .position(|b| matches!(b, b'"' | b'\''))
            .map_or(&value[at..], |end| &value[at..at + end]);
        let changed = self.url(url)?;
        Some([&value[..at], &changed, &value[at + url.len()..]].concat())
    }

    /// Rewrite the URLs between `<` and `>`, as in `Link` (RFC 8288) and WebDAV's `If` (RFC 4918 §10.4), but not
    /// within quotes.
    fn in_brackets(&self, value: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(value.len());
        let (mut rest, mut changed, mut quoted) = (value, false, false);
        while let Some(at) = rest.iter().position(|b| matches!(b, b'<' | b'"' | b'\\')) {
            let (before, from) = rest.split_at(at);
            out.extend_from_slice(before);
            let taken = match from[0] {
                b'\\' if quoted => from.len().min(2),
                b'"' => {
                    quoted = !quoted;
                    1
                }
                b'<' if !quoted => {
                    let end = from.iter().position(|b| *b == b'>').unwrap_or(from.len());
                    if let Some(url) = self.url(&from[1..end]) {
                        out.push(b'<');
                        out.extend_from_slice(&url);
                        rest = &from[end..];
                        changed = true;
                        continue;
                    }
                    end
                }
                _ => 1,
            };
            out.extend_from_slice(&from[..taken]);
            rest = &from[taken..];
        }
        out.extend_from_slice(rest);
        changed.then_some(out)
    }

    /// Rewrite the `Domain` attribute of a cookie where it is the host itself. Cookies ignore ports (RFC 6265
    /// §8.5).
    fn cookie(&self, value: &[u8]) -> Option<Vec<u8>> {
        let mut out = None;
        // In reverse order, so that earlier ranges stay valid.
        for domain in cookies::domains(value)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            let text = &value[domain.clone()];
            let host = text.strip_prefix(b".").unwrap_or(text);
            if host.eq_ignore_ascii_case(self.from.host.as_bytes()) {
                let start = domain.end - host.len();
                let out = out.get_or_insert_with(|| value.to_vec());
                out.splice(start..domain.end, self.to.host.bytes());
            }
        }
        out
    }
}

/// An origin: a scheme, a host and a port (RFC 6454 §4).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    /// `http` or `https`.
    scheme: &'static str,
    /// The host as in a URL: IPv6 in brackets.
    host: String,
    port: u16,
}

impl Origin {
    /// Create an origin from a scheme and an authority. Return `None` if either is not valid here.
    fn new(scheme: &str, authority: &str) -> Option<Self> {
        let scheme = ["http", "https"]
            .into_iter()
            .find(|known| known.eq_ignore_ascii_case(scheme))?;
        let (host, port) = split_authority(authority)?;
        Some(Self {
            scheme,
            host: host.to_owned(),
            port: port.unwrap_or(default_port(scheme)),
        })
    }

    /// Return the length of this origin in a URL that starts with it.
    fn prefix_len(&self, url: &[u8]) -> Option<usize> {
        // A network-path reference has the scheme of its base URL (RFC 3986 §4.2).
        let authority = match url.strip_prefix(b"//") {
            Some(_) => 2,
            None => {
                let scheme = self.scheme.len();
                let is_same = url
                    .get(..scheme)?
                    .eq_ignore_ascii_case(self.scheme.as_bytes());
                (is_same && url[scheme..].starts_with(b"://")).then_some(scheme + 3)?
            }
        };
        let length = url[authority..]
            .iter()
            .position(|b| matches!(b, b'/' | b'?' | b'#'))
            .unwrap_or(url.len() - authority);
        let end = authority + length;
        let (host, port) = split_authority(std::str::from_utf8(&url[authority..end]).ok()?)?;
        let same = host.eq_ignore_ascii_case(&self.host)
            && port.unwrap_or(default_port(self.scheme)) == self.port;
        same.then_some(end)
    }

    /// Serialize the origin (RFC 6454 §6.1).
    fn serialize(&self) -> String {
        let Self { scheme, host, port } = self;
        match *port == default_port(scheme) {
            true => format!("{scheme}://{host}"),
            false => format!("{scheme}://{host}:{port}"),
        }
    }
}

/// Split an authority into host and port. One with a user name is never an origin.
fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let end = match authority.starts_with('[') {
        true => authority.find(']')? + 1,
        false => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(end);
    let is_host = |b: u8| b.is_ascii_alphanumeric() || b"-._~[]:".contains(&b);
    if host.is_empty() || !host.bytes().all(is_host) {
        return None;
    }
    match rest.strip_prefix(':') {
        None | Some("") => Some((host, None)),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some((host, Some(digits.parse().ok()?)))
        }
        Some(_) => None,
    }
}

/// Return the default port of `http` or `https`.
fn default_port(scheme: &str) -> u16 {
    if scheme == "https" { 443 } else { 80 }
}

/// Count the leading blanks.
fn count_blanks(text: &[u8]) -> usize {
    text.iter()
        .take_while(|b| matches!(b, b' ' | b'\t'))
        .count()
}

/// Replace each value of a field for which `change` returns a new one.
fn rewrite_values(
    fields: &mut HeaderMap,
    name: &HeaderName,
    change: impl Fn(&[u8]) -> Option<Vec<u8>>,
) {
    let ::http::header::Entry::Occupied(mut lines) = fields.entry(name) else {
        return;
    };
    for line in lines.iter_mut() {
        let changed = change(line.as_bytes());
        // Both origins are text that may stand in a field.
        if let Some(Ok(changed)) = changed.map(|c| HeaderValue::from_maybe_shared(Bytes::from(c))) {
            *line = changed;
        }
    }
}

const DESTINATION: HeaderName = HeaderName::from_static("destination");
const IF: HeaderName = HeaderName::from_static("if");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{BodyLength, Fields, HttpVersion, Scheme};

    fn head(scheme: Scheme, host: &'static str) -> RequestHead {
        let mut fields = HeaderMap::new();
        fields.insert(HOST, HeaderValue::from_static(host));
        RequestHead {
            tunnel: 0,
            visitor: ([192, 0, 2, 1], 1).into(),
            scheme,
            version: HttpVersion::Http11,
            method: ::http::Method::GET,
            target: "/".into(),
            upgrade: None,
            body: BodyLength::Empty,
            window: 0,
            fields: Fields(fields),
        }
    }

    fn target() -> Target {
        Target::Http {
            host: "localhost".into(),
            port: 3000,
        }
    }

    fn origins() -> Origins {
        let head = head(Scheme::Https, "Blog.example.com");
        Origins::of(&head, &HostHeader::Rewrite, Some(&target())).expect("two origins")
    }

    fn rewritten_request(name: &'static str, value: &'static str) -> String {
        changed(name, value, |fields| origins().rewrite_request(fields))
    }

    fn rewritten_response(name: &'static str, value: &'static str) -> String {
        changed(name, value, |fields| origins().rewrite_response(fields))
    }

    fn changed(name: &'static str, value: &'static str, change: impl Fn(&mut HeaderMap)) -> String {
        let mut fields = HeaderMap::new();
        fields.insert(name, HeaderValue::from_static(value));
        change(&mut fields);
        fields[name].to_str().expect("text").to_owned()
    }

    #[test]
    fn a_request_names_the_upstream_where_it_named_the_public_origin() {
        for (name, value, expected) in [
            (
                "origin",
                "https://blog.example.com",
                "http://localhost:3000",
            ),
            (
                "origin",
                "HTTPS://BLOG.example.com:443",
                "http://localhost:3000",
            ),
            (
                "referer",
                "https://blog.example.com/a?b",
                "http://localhost:3000/a?b",
            ),
            (
                "referer",
                "https://blog.example.com?b",
                "http://localhost:3000?b",
            ),
            (
                "destination",
                "https://blog.example.com/b",
                "http://localhost:3000/b",
            ),
            (
                "if",
                "<https://blog.example.com/a> (<urn:uuid:1> [\"<x>\"])",
                "<http://localhost:3000/a> (<urn:uuid:1> [\"<x>\"])",
            ),
        ] {
            assert_eq!(rewritten_request(name, value), expected, "{name}");
        }
    }

    #[test]
    fn a_response_names_the_public_origin_where_it_named_the_upstream() {
        for (name, value, expected) in [
            (
                "location",
                "http://localhost:3000/x",
                "https://Blog.example.com/x",
            ),
            (
                "location",
                "//localhost:3000/x",
                "https://Blog.example.com/x",
            ),
            (
                "location",
                "http://LOCALHOST:3000",
                "https://Blog.example.com",
            ),
            (
                "content-location",
                "http://localhost:3000#a",
                "https://Blog.example.com#a",
            ),
            (
                "refresh",
                "5; url=http://localhost:3000/x",
                "5; url=https://Blog.example.com/x",
            ),
            (
                "refresh",
                "0;URL = 'http://localhost:3000/x' y",
                "0;URL = 'https://Blog.example.com/x' y",
            ),
            (
                "refresh",
                "0, http://localhost:3000/x",
                "0, https://Blog.example.com/x",
            ),
            (
                "link",
                "</a>; rel=x, <http://localhost:3000/?p=2>; rel=\"<next>\", <http://localhost:30/>",
                "</a>; rel=x, <https://Blog.example.com/?p=2>; rel=\"<next>\", <http://localhost:30/>",
            ),
            (
                "access-control-allow-origin",
                "http://localhost:3000",
                "https://Blog.example.com",
            ),
            (
                "set-cookie",
                "a=1; Domain=localhost; Path=/",
                "a=1; Domain=Blog.example.com; Path=/",
            ),
            (
                "set-cookie",
                "a=1; domain = .LocalHost",
                "a=1; domain = .Blog.example.com",
            ),
            (
                "set-cookie",
                "a=1; domain=localhost; domain=x; domain=localhost",
                "a=1; domain=Blog.example.com; domain=x; domain=Blog.example.com",
            ),
        ] {
            assert_eq!(rewritten_response(name, value), expected, "{name}");
        }
    }

    #[test]
    fn other_origins_are_not_rewritten() {
        for (name, value) in [
            ("origin", "null"),
            ("origin", "http://blog.example.com"),
            ("origin", "https://blog.example.com:8443"),
            ("origin", "https://blog.example.com.evil.example"),
            ("origin", "https://blog.example.com/"),
            ("origin", "https://evil.example"),
            ("referer", "https://user@blog.example.com/"),
            ("referer", "https://blog.example.com@evil.example/"),
            ("referer", "https://blog.example.com:443@evil.example/"),
            ("referer", "https://blog.example.com\\@evil.example/"),
            ("referer", "about:blank"),
            ("referer", ""),
            ("destination", "/relative"),
            ("cookie", "https://blog.example.com"),
        ] {
            assert_eq!(rewritten_request(name, value), value, "{name}");
        }
        for (name, value) in [
            ("location", "/x"),
            ("location", "http://localhost/x"),
            ("location", "http://localhost:30000/x"),
            ("location", "https://localhost:3000/x"),
            ("location", "http://127.0.0.1:3000/x"),
            ("location", "http://localhost.example:3000/x"),
            ("location", "http://evil.example/?http://localhost:3000/"),
            ("access-control-allow-origin", "*"),
            ("access-control-allow-origin", "http://localhost:3000/"),
            ("refresh", "5"),
            ("refresh", "5;"),
            ("refresh", "5; url"),
            ("link", "http://localhost:3000"),
            ("link", "\"<http://localhost:3000>\""),
            (
                "set-cookie",
                "localhost=1; Domain=sub.localhost; Path=domain=localhost",
            ),
            ("set-cookie", "Domain=localhost"),
        ] {
            assert_eq!(rewritten_response(name, value), value, "{name}");
        }
    }

    #[test]
    fn nothing_is_rewritten_where_the_upstream_receives_the_public_name() {
        let head = head(Scheme::Http, "blog.localhost");
        assert!(Origins::of(&head, &HostHeader::Preserve, Some(&target())).is_none());
    }

    #[test]
    fn a_configured_host_is_the_upstreams_origin() {
        let head = head(Scheme::Http, "blog.localhost:8080");
        let value = HostHeader::Value(HeaderValue::from_static("app.local"));
        let https = Target::Https {
            host: "10.0.0.1".into(),
            port: 8443,
            verify: false,
        };

        let origins = Origins::of(&head, &value, Some(&https)).expect("two origins");

        assert_eq!(origins.public.serialize(), "http://blog.localhost:8080");
        assert_eq!(origins.upstream.serialize(), "https://app.local");
    }

    #[test]
    fn a_proxy_in_front_of_the_edge_knows_the_public_origin() {
        let mut head = head(Scheme::Http, "internal:8080");
        for (name, value) in [("x-forwarded-proto", "https"), ("x-forwarded-host", "b.c")] {
            head.fields.0.insert(name, HeaderValue::from_static(value));
        }

        let origins = Origins::of(&head, &HostHeader::Rewrite, None).expect("two origins");

        assert_eq!(origins.public.serialize(), "https://b.c");
        assert_eq!(origins.upstream.serialize(), "http://localhost");
    }
}
