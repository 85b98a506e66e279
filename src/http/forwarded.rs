//! What the upstream is told about the visitor: `X-Forwarded-For`, `-Proto`, `-Host`, and `Forwarded`
//! (RFC 7239).
//!
//! The edge [removes](remove) what a visitor says about it, and the agent [tells](tell_visitor) what the edge has
//! seen: the head says it once, in a few bytes. Only where a trusted proxy has said more do the fields travel.

use std::net::IpAddr;

use ::http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};

use crate::proto::Scheme;

/// How a request came to the edge.
#[derive(Clone, Debug)]
pub(crate) struct Arrival<'a> {
    /// The address at the other end of the connection: a visitor, or a proxy in front of the edge.
    pub(crate) peer: IpAddr,
    /// The scheme of the listener.
    pub(crate) scheme: Scheme,
    /// The host that the visitor asked for, as it was spelt.
    pub(crate) host: &'a HeaderValue,
}

impl Arrival<'_> {
    fn proto(&self) -> HeaderValue {
        HeaderValue::from_static(self.scheme.as_str())
    }
}

/// Tell the upstream who the visitor is, unless the edge has: then a proxy said it, whom it trusts.
pub(crate) fn tell_visitor(headers: &mut HeaderMap, visitor: IpAddr, scheme: Scheme) {
    if headers.contains_key(FORWARDED) {
        return;
    }
    // Every head has a host. Without one there is nothing to tell that would be whole.
    let Some(host) = headers.get(HOST).cloned() else {
        return;
    };
    let arrival = Arrival {
        peer: visitor,
        scheme,
        host: &host,
    };
    let peer = address(visitor);
    headers.insert(FORWARDED, element(&arrival, &peer));
    headers.insert(X_FORWARDED_FOR, value(peer));
    headers.insert(X_FORWARDED_PROTO, arrival.proto());
    headers.insert(X_FORWARDED_HOST, host);
}

/// Add this hop to what a trusted proxy in front of the edge says about the visitor.
///
/// The addresses form a list, so the proxy's own goes to its end. Scheme and host are the visitor's:
/// the proxy's word stands, and only what it left out is filled in. Look-alikes with underscores are
/// removed even here, because an honest proxy sends none.
pub(crate) fn append_forwarded(headers: &mut HeaderMap, arrival: &Arrival<'_>) {
    remove_where(headers, |name| {
        name.as_str().contains('_') && is_about_visitor(name)
    });
    let peer = address(arrival.peer);
    append(headers, FORWARDED, &element(arrival, &peer));
    append(headers, X_FORWARDED_FOR, &value(peer));
    headers
        .entry(X_FORWARDED_PROTO)
        .or_insert_with(|| arrival.proto());
    headers
        .entry(X_FORWARDED_HOST)
        .or_insert_with(|| arrival.host.clone());
}

/// Remove every field that says who or where the visitor is.
pub(crate) fn remove(headers: &mut HeaderMap) {
    remove_where(headers, is_about_visitor);
}

/// Report whether upstreams take this field for the visitor's address, scheme or host, also when they
/// read underscores as hyphens.
pub(crate) fn is_about_visitor(name: &HeaderName) -> bool {
    let name = name.as_str();
    // All of them begin so: most fields are let through by their first letter.
    if !matches!(name.as_bytes()[0], b'c' | b'f' | b't' | b'x') {
        return false;
    }
    let same = |known: &str| variable(name).eq(known.bytes());
    variable(name)
        .take(X_FORWARDED.len())
        .eq(X_FORWARDED.bytes())
        || ABOUT_VISITOR.iter().any(|known| same(known))
}

/// The bytes of a lower-case name as a variable's name is made of it (CGI, WSGI), in reverse: with
/// hyphens.
fn variable(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().map(|b| if b == b'_' { b'-' } else { b })
}

fn remove_where(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let names: Vec<_> = headers
        .keys()
        .filter(|name| unwanted(name))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

/// Append to a list field, whose lines are joined: some upstreams read only the first line.
fn append(headers: &mut HeaderMap, name: HeaderName, last: &HeaderValue) {
    let mut list = Vec::new();
    for value in headers.get_all(&name).iter().chain([last]) {
        if !list.is_empty() {
            list.extend_from_slice(b", ");
        }
        list.extend_from_slice(value.as_bytes());
    }
    let list = HeaderValue::from_maybe_shared(bytes::Bytes::from(list)).expect("made of values");
    headers.insert(name, list);
}

/// An address for `X-Forwarded-For`; an IPv4 visitor of a dual-stack listener stays IPv4. Those are written
/// without `fmt`, which takes more than a thousand instructions of every request for it.
fn address(ip: IpAddr) -> String {
    let ip = match ip.to_canonical() {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => return ip.to_string(),
    };
    let mut text = String::with_capacity("255.255.255.255".len());
    let mut digits = itoa::Buffer::new();
    for (nth, octet) in ip.octets().into_iter().enumerate() {
        if nth > 0 {
            text.push('.');
        }
        text.push_str(digits.format(octet));
    }
    text
}

fn value(made: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(bytes::Bytes::from(made)).expect("made of values and addresses")
}

/// This hop's element of `Forwarded` (RFC 7239 §4). Every request has one, so it is put together without the
/// detour through `fmt`.
fn element(arrival: &Arrival<'_>, peer: &str) -> HeaderValue {
    let mut element = String::with_capacity(96);
    element.push_str("for=");
    push_node(&mut element, peer);
    element.push_str(";proto=");
    element.push_str(arrival.scheme.as_str());
    // `validate` lets no host pass that would need escaping. Should one come by another way, then
    // nothing is said rather than something that ends the quotes early.
    let host = arrival.host.to_str().ok();
    if let Some(host) = host.filter(|host| !host.contains(['"', '\\'])) {
        let quote = if host.bytes().all(is_token) { "" } else { "\"" };
        for part in [";host=", quote, host, quote] {
            element.push_str(part);
        }
    }
    value(element)
}

/// Write an address as RFC 7239 §6 spells it: IPv6 in brackets and, because these are no token, in quotes.
fn push_node(element: &mut String, address: &str) {
    let (open, close) = match address.contains(':') {
        true => ("\"[", "]\""),
        false => ("", ""),
    };
    for part in [open, address, close] {
        element.push_str(part);
    }
}

/// A character of a token (RFC 9110 §5.6.2) that occurs in a host.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~".contains(&b)
}

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// How the names of a whole family begin: `-For`, `-Proto`, `-Host`, `-Port`, `-Ssl`, `-Prefix`, ….
const X_FORWARDED: &str = "x-forwarded";

/// The other fields in which frameworks look for the visitor.
const ABOUT_VISITOR: [&str; 9] = [
    "forwarded",
    "forwarded-for",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-host",
    "client-ip",
    "true-client-ip",
    "cf-connecting-ip",
];

#[cfg(test)]
mod tests {
    use super::*;

    const HOST_FIELD: HeaderValue = HeaderValue::from_static("blog.example.com");

    fn arrival<'a>(peer: &str, host: &'a HeaderValue) -> Arrival<'a> {
        Arrival {
            peer: peer.parse().expect("an address"),
            scheme: Scheme::Https,
            host,
        }
    }

    /// The fields of a request from this visitor as the upstream gets them.
    fn told(visitor: &str, host: HeaderValue, mut said: HeaderMap) -> HeaderMap {
        remove(&mut said);
        said.insert(HOST, host);
        let visitor = visitor.parse().expect("an address");
        tell_visitor(&mut said, visitor, Scheme::Https);
        said.remove(HOST);
        said
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_upstream_learns_who_the_visitor_is() {
        let sent = told("192.0.2.7", HOST_FIELD, HeaderMap::new());

        let expected = headers(&[
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "blog.example.com"),
            (
                "forwarded",
                "for=192.0.2.7;proto=https;host=blog.example.com",
            ),
        ]);
        assert_eq!(sent, expected);
    }

    #[test]
    fn what_a_visitor_forged_is_replaced() {
        let clean = headers(&[("accept", "*/*"), ("x-request-id", "7")]);
        let mut forged = clean.clone();
        for name in [
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-forwarded-port",
            "x_forwarded_for",
            "x-forwarded_host",
            "forwarded",
            "x-real-ip",
            "x_real_ip",
            "true-client-ip",
        ] {
            forged.append(name, HeaderValue::from_static("198.51.100.1"));
            forged.append(name, HeaderValue::from_static("198.51.100.2"));
        }

        let forged = told("192.0.2.7", HOST_FIELD, forged);

        assert_eq!(forged, told("192.0.2.7", HOST_FIELD, clean));
    }

    #[test]
    fn ipv6_addresses_and_ports_are_quoted_in_forwarded_only() {
        let host = HeaderValue::from_static("blog.example.com:8443");

        let sent = told("2001:db8::1", host, HeaderMap::new());

        assert_eq!(sent["x-forwarded-for"], "2001:db8::1");
        assert_eq!(sent["x-forwarded-host"], "blog.example.com:8443");
        let forwarded = r#"for="[2001:db8::1]";proto=https;host="blog.example.com:8443""#;
        assert_eq!(sent["forwarded"], forwarded);
    }

    #[test]
    fn an_ipv4_visitor_of_a_dual_stack_listener_stays_ipv4() {
        let sent = told("::ffff:192.0.2.7", HOST_FIELD, HeaderMap::new());

        assert_eq!(sent["x-forwarded-for"], "192.0.2.7");
        assert_eq!(
            sent["forwarded"],
            "for=192.0.2.7;proto=https;host=blog.example.com"
        );
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_added() {
        let mut sent = headers(&[
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-for", "192.0.2.8"),
            ("x-forwarded-proto", "http"),
            ("x_forwarded_for", "198.51.100.1"),
            ("forwarded", "for=192.0.2.7"),
            ("x-real-ip", "192.0.2.7"),
        ]);

        append_forwarded(&mut sent, &arrival("10.0.0.1", &HOST_FIELD));

        let expected = headers(&[
            ("x-forwarded-for", "192.0.2.7, 192.0.2.8, 10.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "blog.example.com"),
            (
                "forwarded",
                "for=192.0.2.7, for=10.0.0.1;proto=https;host=blog.example.com",
            ),
            ("x-real-ip", "192.0.2.7"),
        ]);
        assert_eq!(sent, expected);
    }

    #[test]
    fn what_a_trusted_proxy_said_is_told_as_it_is() {
        let mut sent = headers(&[("host", "blog.example.com"), ("forwarded", "for=192.0.2.7")]);
        append_forwarded(&mut sent, &arrival("10.0.0.1", &HOST_FIELD));
        let said = sent.clone();

        tell_visitor(
            &mut sent,
            arrival("10.0.0.1", &HOST_FIELD).peer,
            Scheme::Https,
        );

        assert_eq!(sent, said);
    }
}
