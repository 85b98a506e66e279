//! Parsing of the fields in which a trusted proxy describes the visitor.

use ::http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};

use super::x_forwarded::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, value};

/// Description of a visitor: by `X-Forwarded-*` if there is one of them, else by `Forwarded`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ForwardedInfo {
    /// Addresses of the visitor and of proxies on the way, the nearest proxy last.
    pub(crate) addresses: Vec<String>,
    pub(crate) proto: Option<HeaderValue>,
    pub(crate) host: Option<HeaderValue>,
}

impl ForwardedInfo {
    /// Parse either kind of fields.
    pub(crate) fn parse(headers: &HeaderMap) -> Self {
        let x_forwarded = [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST];
        let mut info = match x_forwarded.iter().any(|name| headers.contains_key(name)) {
            true => Self::from_x_forwarded(headers),
            false => Self::from_forwarded(headers),
        };
        let extra = info.addresses.len().saturating_sub(MAX_ADDRESSES);
        info.addresses.drain(..extra);
        info
    }

    fn from_x_forwarded(headers: &HeaderMap) -> Self {
        // Where several proxies have added theirs, the first is the visitor's.
        let first = |name| list(headers, name).next().and_then(whole);
        Self {
            addresses: list(headers, X_FORWARDED_FOR).filter_map(node).collect(),
            proto: first(X_FORWARDED_PROTO),
            host: first(X_FORWARDED_HOST),
        }
    }

    fn from_forwarded(headers: &HeaderMap) -> Self {
        let mut info = Self::default();
        let lines = headers.get_all(FORWARDED).iter();
        for element in lines.flat_map(|line| split(line.as_bytes(), b',')) {
            for pair in split(element, b';') {
                let Some(equals) = pair.iter().position(|b| *b == b'=') else {
                    continue;
                };
                let text = unquoted(pair[equals + 1..].trim_ascii());
                let is = |name: &str| {
                    pair[..equals]
                        .trim_ascii()
                        .eq_ignore_ascii_case(name.as_bytes())
                };
                if is("for") {
                    info.addresses.extend(node(&text).map(without_port));
                } else if is("proto") && info.proto.is_none() {
                    info.proto = whole(&text);
                } else if is("host") && info.host.is_none() {
                    info.host = whole(&text);
                }
            }
        }
        info
    }
}

/// Return the members of a list field.
fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(name).into_iter();
    lines
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

/// Split at a byte outside quotes.
fn split(text: &[u8], at: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |b| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        match b {
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => return *b == at && !quoted,
        }
        false
    })
}

/// Remove quotes and escapes (RFC 9110 §5.6.4).
fn unquoted(text: &[u8]) -> Vec<u8> {
    let Some(inner) = text
        .strip_prefix(b"\"")
        .and_then(|text| text.strip_suffix(b"\""))
    else {
        return text.to_vec();
    };
    let mut escaped = false;
    let is_text = |b: &&u8| {
        let skipped = **b == b'\\' && !escaped;
        escaped = skipped;
        !skipped
    };
    inner.iter().filter(is_text).copied().collect()
}

/// Parse an address or its substitute: printable, without characters that end quotes or lists.
fn node(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let is_plain = |b: u8| b.is_ascii_graphic() && !b"\"\\,;".contains(&b);
    let plain = !text.is_empty() && text.len() <= MAX_NODE_LENGTH && text.bytes().all(is_plain);
    plain.then(|| text.to_owned())
}

/// Remove the port that `Forwarded` may have, which readers of `X-Forwarded-For` do not expect.
fn without_port(node: String) -> String {
    if let Some(rest) = node.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest).to_owned();
    }
    match node.split_once(':') {
        Some((address, port)) if !port.contains(':') => address.to_owned(),
        _ => node,
    }
}

fn whole(text: &[u8]) -> Option<HeaderValue> {
    node(text).map(value)
}

/// Most addresses passed on, those of the nearest proxies. Nobody has so many, but a visitor may
/// claim it.
const MAX_ADDRESSES: usize = 64;

/// Longest address, or host with its port, in bytes (RFC 1035 §3.1).
const MAX_NODE_LENGTH: usize = 261;

#[cfg(test)]
mod tests {
    use super::*;

    fn said(fields: &[(&'static str, &'static str)]) -> (String, String, String) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let info = ForwardedInfo::parse(&headers);
        let text = |value: Option<HeaderValue>| {
            value.map_or(String::new(), |value| {
                value.to_str().expect("text").to_owned()
            })
        };
        (info.addresses.join(" "), text(info.proto), text(info.host))
    }

    fn expected(addresses: &str, proto: &str, host: &str) -> (String, String, String) {
        (addresses.into(), proto.into(), host.into())
    }

    #[test]
    fn either_kind_of_fields_is_parsed() {
        let fields = [
            ("x-forwarded-for", "192.0.2.1, 2001:db8::1 ,"),
            ("x-forwarded-for", "unknown"),
            ("x-forwarded-proto", "https, http"),
            ("x-forwarded-host", "a.example:8443"),
        ];
        let whole = expected("192.0.2.1 2001:db8::1 unknown", "https", "a.example:8443");
        assert_eq!(said(&fields), whole);

        let field = [
            (
                "forwarded",
                "For=192.0.2.1:4711;Proto=https ; host=\"a.example:8443\", for=\"[2001:db8::1]:1\";proto=http",
            ),
            ("forwarded", "for=unknown;by=\"a,b;c\""),
        ];
        assert_eq!(said(&field), whole);
        assert_eq!(said(&[]), expected("", "", ""));
    }

    #[test]
    fn forwarded_counts_only_without_x_forwarded_fields() {
        let both = [
            ("forwarded", "for=6.6.6.6;proto=https;host=evil"),
            ("x-forwarded-for", "192.0.2.1"),
        ];
        assert_eq!(said(&both), expected("192.0.2.1", "", ""));
    }

    #[test]
    fn malformed_fields_are_ignored() {
        for field in [
            "",
            ";,=",
            "for",
            "for=",
            "for=\"",
            "for=\"\\\"",
            "proto=a b",
            "host=\"a\\\"b\"",
        ] {
            assert_eq!(
                said(&[("forwarded", field)]),
                expected("", "", ""),
                "{field}"
            );
        }
        let many = ["1.1.1.1,"; 100].concat();
        let mut headers = HeaderMap::new();
        headers.insert(X_FORWARDED_FOR, many.parse().expect("a value"));
        assert_eq!(
            ForwardedInfo::parse(&headers).addresses.len(),
            MAX_ADDRESSES
        );
    }
}
