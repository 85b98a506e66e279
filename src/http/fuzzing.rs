//! Properties that hold for any fields and any text.

use std::net::IpAddr;

use ::http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, FORWARDED, SET_COOKIE, TRANSFER_ENCODING, UPGRADE,
};
use ::http::{HeaderMap, HeaderName, HeaderValue};

use super::cookies;
use super::forwarded;
use super::forwarded::ReceivedFrom;
use super::hygiene::{join_cookies, normalize_content_length, sanitize_trailers, strip_hop_by_hop};
use super::upgrades::{UpgradeName, Upgrades, is_answer_to};
use crate::proto::{BodyLength, Scheme, TEXT_LIMIT, Text, escape, is_protocol};

/// Process fields: lines of a name, a colon and a value.
pub fn fields(bytes: &[u8]) {
    let fields = parse(bytes);

    let mut stripped = fields.clone();
    strip_hop_by_hop(&mut stripped);
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        assert!(!stripped.contains_key(name));
    }
    let again = stripped.clone();
    strip_hop_by_hop(&mut stripped);
    assert_eq!(stripped, again);

    let mut trailers = fields.clone();
    sanitize_trailers(&mut trailers);
    assert!(!trailers.contains_key(CONTENT_LENGTH) && !trailers.contains_key("host"));
    assert!(!trailers.keys().any(forwarded::is_about_visitor));

    let mut cookies = fields.clone();
    join_cookies(&mut cookies);
    assert!(cookies.get_all(COOKIE).iter().count() <= 1);

    for body in [BodyLength::Empty, BodyLength::Unknown, BodyLength::Known(5)] {
        let mut lengths = fields.clone();
        normalize_content_length(&mut lengths, body);
        let left: Vec<_> = lengths.get_all(CONTENT_LENGTH).iter().collect();
        assert!(left.len() <= 1);
        let is_number = |value: &&HeaderValue| value.as_bytes().iter().all(u8::is_ascii_digit);
        assert!(left.iter().all(is_number));
    }

    let mut response = fields.clone();
    cookies::remove_parent_domain_cookies(&mut response, "blog.tunnel.example");
    for cookie in response.get_all(SET_COOKIE) {
        assert!(!reaches_parent_domain(cookie.as_bytes()), "{cookie:?}");
    }
    assert_eq!(
        cookies::remove_parent_domain_cookies(&mut response, "blog.tunnel.example"),
        0
    );
    visitor(fields);
}

/// Report whether a browser would send a cookie of `blog.tunnel.example` to its siblings as well: the last `Domain`
/// counts (RFC 6265 §5.2.3, §5.3).
fn reaches_parent_domain(cookie: &[u8]) -> bool {
    let attributes = cookie.split(|b| *b == b';').skip(1);
    let domains = attributes.filter_map(|attribute| {
        let equals = attribute.iter().position(|b| *b == b'=')?;
        let is_domain = attribute[..equals]
            .trim_ascii()
            .eq_ignore_ascii_case(b"domain");
        is_domain.then(|| attribute[equals + 1..].trim_ascii())
    });
    let last = domains.last().unwrap_or_default();
    let last = last.strip_prefix(b".").unwrap_or(last).to_ascii_lowercase();
    [&b"tunnel.example"[..], b"example"].contains(&&*last)
}

/// Select the allowed protocols of an `Upgrade` field: they fit a request head, and a response with the same protocols
/// is one to this request.
pub fn upgrades(bytes: &[u8]) {
    let Ok(asked) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut allowed = Upgrades::default();
    allowed.allow("spdy").expect("a name");
    if let Some(selected) = allowed.select(asked) {
        assert!(is_protocol(&selected));
        assert_eq!(allowed.select(&selected).as_deref(), Some(&*selected));
        assert!(is_answer_to(asked, Some(selected.as_bytes())));
    }
    if let Ok(name) = asked.parse::<UpgradeName>() {
        assert!(is_protocol(name.as_str()));
    }
}

/// Make text safe to show.
pub fn text(bytes: &[u8]) {
    let shown = Text::from_bytes(bytes);
    assert!(shown.len() <= TEXT_LIMIT);
    assert!(!shown.contains(char::is_control));
    assert_eq!(Text::from(shown.as_str()), shown);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let escaped = escape(text);
        assert!(!escaped.contains(char::is_control));
        assert_eq!(escape(&escaped), escaped);
        let from_text = Text::from(text);
        assert!(from_text.len() <= TEXT_LIMIT);
        let mut encoded = vec![5];
        let mut length = bytes.len();
        while length >= 0x80 {
            encoded.push(length as u8 | 0x80);
            length >>= 7;
        }
        encoded.push(length as u8);
        encoded.extend_from_slice(bytes);
        let notice = crate::proto::decode(&encoded).expect("a text");
        assert_eq!(crate::proto::EdgeMessage::Notice(from_text), notice);
    }
}

/// Set the fields about the visitor, with a trusted proxy and without one.
fn visitor(fields: HeaderMap) {
    let host = HeaderValue::from_static("a.example");
    let peer: IpAddr = [192, 0, 2, 1].into();
    let received = ReceivedFrom {
        peer,
        scheme: Scheme::Https,
        host: &host,
    };
    let mut trusted = fields.clone();
    forwarded::append_forwarded(&mut trusted, &received);
    for name in [FORWARDED, HeaderName::from_static("x-forwarded-for")] {
        let mut values = trusted.get_all(name).iter();
        let last = values.next().expect("there is one");
        let ends = last.as_bytes().windows(9).any(|at| at == b"192.0.2.1");
        assert!(ends && values.next().is_none(), "{trusted:?}");
    }
    let mut untrusted = fields;
    forwarded::remove(&mut untrusted);
    assert!(!untrusted.keys().any(forwarded::is_about_visitor));
    forwarded::add_forwarded_headers(&mut untrusted, peer, Scheme::Https);
}

/// Parse fields, each in its own line.
pub(crate) fn parse(bytes: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in bytes.split(|b| *b == b'\n') {
        let mut parts = line.splitn(2, |b| *b == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else {
            continue;
        };
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name),
            HeaderValue::from_bytes(value.trim_ascii()),
        ) {
            fields.append(name, value);
        }
    }
    fields
}
