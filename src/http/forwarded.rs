//! Fields that describe the visitor to the upstream: `X-Forwarded-For`, `-Proto`, `-Host`, and
//! `Forwarded` (RFC 7239).
//!
//! The edge [removes](remove) those that a visitor sends, and the agent
//! [adds](add_forwarded_headers) what the edge has seen, which the request head carries in a few
//! bytes. The fields themselves travel only where a trusted proxy has sent some.

use std::net::IpAddr;
use std::net::Ipv6Addr;

use ::http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};

use super::trusted_proxy::ForwardedInfo;
use super::x_forwarded::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, value};
use crate::proto::Scheme;

/// Connection and host by which a request reached the edge.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedFrom<'a> {
    /// Address at the other end of the connection: a visitor, or a proxy in front of the edge.
    pub(crate) peer: IpAddr,
    /// Scheme of the listener.
    pub(crate) scheme: Scheme,
    /// Requested host, as it was spelt.
    pub(crate) host: &'a HeaderValue,
}

impl ReceivedFrom<'_> {
    fn proto(&self) -> HeaderValue {
        HeaderValue::from_static(self.scheme.as_str())
    }
}

/// Add the fields that describe the visitor, for the upstream. If there is a `Forwarded`, it is a
/// trusted proxy's, and the edge has set all of them.
pub(crate) fn add_forwarded_headers(headers: &mut HeaderMap, visitor: IpAddr, scheme: Scheme) {
    if headers.contains_key(FORWARDED) {
        return;
    }
    // Every head has a host. Without one the fields would be incomplete.
    let Some(host) = headers.get(HOST).cloned() else {
        return;
    };
    let received = ReceivedFrom {
        peer: visitor,
        scheme,
        host: &host,
    };
    let peer = address(visitor);
    headers.insert(FORWARDED, element(&received, &peer));
    headers.insert(X_FORWARDED_FOR, value(peer));
    headers.insert(X_FORWARDED_PROTO, received.proto());
    headers.insert(X_FORWARDED_HOST, host);
}

/// Add this hop to the fields that a trusted proxy in front of the edge has sent.
///
/// The addresses form a list, to whose end the proxy's own is appended. Scheme and host are the
/// visitor's: the proxy's values stand, and only missing ones are filled in. Upstreams read either
/// `X-Forwarded-*` or `Forwarded`, so both are set to the same: the values of the `X-` fields, or
/// of `Forwarded` where there are none. (Most proxies set the former, and pass a visitor's own
/// `Forwarded` on.) Look-alikes with underscores, and fields that no proxy sends, are removed even
/// here.
pub(crate) fn append_forwarded(headers: &mut HeaderMap, received: &ReceivedFrom<'_>) {
    remove_where(headers, |name| {
        is_about_visitor(name) && (name.as_str().contains('_') || is_spoofed(name.as_str()))
    });
    let mut said = ForwardedInfo::parse(headers);
    let peer = address(received.peer);
    said.addresses.push(peer);
    let proto = said.proto.unwrap_or_else(|| received.proto());
    let host = said.host.unwrap_or_else(|| received.host.clone());
    headers.insert(FORWARDED, elements(&said.addresses, &proto, &host));
    headers.insert(X_FORWARDED_FOR, value(said.addresses.join(", ")));
    headers.insert(X_FORWARDED_PROTO, proto);
    headers.insert(X_FORWARDED_HOST, host);
}

/// Replace the scheme and the host in both kinds of forwarded fields, and remove what would contradict them.
pub(crate) fn replace_forwarded_origin(
    headers: &mut HeaderMap,
    proto: HeaderValue,
    host: HeaderValue,
) {
    for name in CONTRADICTING {
        headers.remove(name);
    }
    let forwarded = ForwardedInfo::parse(headers);
    headers.insert(FORWARDED, elements(&forwarded.addresses, &proto, &host));
    headers.insert(X_FORWARDED_PROTO, proto);
    headers.insert(X_FORWARDED_HOST, host);
}

/// Remove every field that describes the visitor.
pub(crate) fn remove(headers: &mut HeaderMap) {
    remove_where(headers, is_about_visitor);
}

/// Report whether upstreams read the visitor's address, scheme or host from this field, also when
/// they read underscores as hyphens.
pub(crate) fn is_about_visitor(name: &HeaderName) -> bool {
    let name = name.as_str();
    // Most fields are ruled out by their first two letters.
    let begins = name.as_bytes().first_chunk::<2>();
    if !matches!(
        begins,
        Some(
            b"cf"
                | b"cl"
                | b"fa"
                | b"fl"
                | b"fo"
                | b"fr"
                | b"ht"
                | b"pr"
                | b"re"
                | b"ss"
                | b"tr"
                | b"x-"
                | b"x_"
        )
    ) {
        return false;
    }
    let begins_as = |family: &&str| variable(name).take(family.len()).eq(family.bytes());
    let same = |known: &&str| variable(name).eq(known.bytes());
    FAMILIES.iter().any(begins_as) || ABOUT_VISITOR.iter().any(same) || is_spoofed(name)
}

/// Report whether no proxy sends this field, but a visitor may, to deceive an upstream.
fn is_spoofed(name: &str) -> bool {
    let same = |known: &&str| variable(name).eq(known.bytes());
    SPOOFED.iter().any(same)
}

/// Return the bytes of a lower-case name with hyphens for underscores, which are the same in a
/// variable's name (CGI, WSGI).
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

/// Format an address for `X-Forwarded-For`; an IPv4 visitor of a dual-stack listener stays IPv4.
/// IPv4 is formatted without `fmt`, which takes more than a thousand instructions per request.
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

/// Return the `Forwarded` field where no proxy has sent anything.
fn element(received: &ReceivedFrom<'_>, peer: &str) -> HeaderValue {
    elements(&[peer], &received.proto(), received.host)
}

/// Return the `Forwarded` field (RFC 7239 §4) with an element for each address. Only the first has
/// scheme and host: some upstreams take the first that they find and some the last. Built without
/// `fmt`, because every request has one.
fn elements<S: AsRef<str>>(
    addresses: &[S],
    proto: &HeaderValue,
    host: &HeaderValue,
) -> HeaderValue {
    let mut elements = String::with_capacity(96);
    for (nth, address) in addresses.iter().enumerate() {
        elements.push_str(if nth == 0 { "for=" } else { ", for=" });
        push_node(&mut elements, address.as_ref());
        if nth > 0 {
            continue;
        }
        for (name, said) in [(";proto=", proto), (";host=", host)] {
            // `validate` rejects hosts that would need escaping. Should one come by another way, it
            // is left out, instead of ending the quotes early.
            let said = said.to_str().ok();
            if let Some(said) = said.filter(|said| !said.contains(['"', '\\'])) {
                let quote = if said.bytes().all(is_token) { "" } else { "\"" };
                for part in [name, quote, said, quote] {
                    elements.push_str(part);
                }
            }
        }
    }
    value(elements)
}

/// Append an address as in RFC 7239 §6: IPv6 in brackets and, because these are no token, in
/// quotes.
fn push_node(element: &mut String, address: &str) {
    let (open, close) = match address {
        _ if address.parse::<Ipv6Addr>().is_ok() => ("\"[", "]\""),
        _ if address.bytes().all(is_token) => ("", ""),
        // With a port, or whatever else the proxy has sent.
        _ => ("\"", "\""),
    };
    for part in [open, address, close] {
        element.push_str(part);
    }
}

/// Report whether a byte is a character of a token (RFC 9110 §5.6.2) that occurs in a host.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~".contains(&b)
}

/// Fields in which proxies give the scheme and the port in other words.
const CONTRADICTING: [&str; 3] = ["x-forwarded-port", "x-forwarded-scheme", "x-forwarded-ssl"];

/// Prefixes of whole families of fields.
const FAMILIES: [&str; 9] = [
    // `-For`, `-Proto`, `-Host`, `-Port`, `-Ssl`, `-Scheme`, `-Prefix`, `-Server`, `-User`, `-Client-Cert`, …:
    // all proxies; Rack, Rails, Spring, ASP.NET, Werkzeug's ProxyFix.
    "x-forwarded",
    // `-URL` (Symfony and Zend on IIS), `-URI`, `-Method` (ingress-nginx), `-Host`, `-For`, `-Proto` (ASP.NET).
    "x-original-",
    // `-IP` (nginx; Rails, Gin, Echo), `-Port`, `-Host`.
    "x-real-",
    // `-External-Address`, `-Internal`, …: Envoy.
    "x-envoy-",
    // `-SSL`, `-ClientCert`: IIS Application Request Routing.
    "x-arr-",
    // `-User-IP`, `-Country`, `-HTTPS`, …: Google App Engine.
    "x-appengine-",
    // `-ClientIP`, `-SocketIP`, `-FDID`: Azure Front Door.
    "x-azure-",
    // `-Viewer-Address`, `-Forwarded-Proto`, …: Amazon CloudFront.
    "cloudfront-",
    // Client certificates as nginx's and HAProxy's manuals pass them on.
    "x-ssl-",
];

/// Other fields in which frameworks look for the visitor, and who sends or reads them.
const ABOUT_VISITOR: [&str; 34] = [
    "forwarded",             // RFC 7239
    "forwarded-for",         // request-ip
    "x-forward-for",         // a common misspelling
    "x-client-ip",           // Apache's mod_remoteip, request-ip
    "x-client-cert",         // as nginx is often set up for client certificates
    "x-cluster-client-ip",   // Rackspace, Zeus
    "x-proxyuser-ip",        // Google services
    "x-originating-ip",      // mail gateways; rack-attack's recipes
    "x-remote-ip",           // the same
    "x-remote-addr",         // the same
    "x-remote-user",         // Kubernetes' authenticating proxy, Gunicorn's recipes
    "x-host",                // Symfony's and Drupal's old gateways
    "x-http-host-override",  // Typo3 and other PHP frameworks
    "x-rewrite-url",         // IIS ISAPI_Rewrite; Symfony, Zend
    "x-scheme",              // Rack, ingress-nginx
    "x-url-scheme",          // Rack, Plack
    "x-webauth-user",        // Grafana, Gitea
    "client-ip",             // Rails, PHP applications
    "client-cert",           // RFC 9440
    "client-cert-chain",     // RFC 9440
    "ssl-client-cert",       // ingress-nginx, Keycloak
    "ssl-client-verify",     // ingress-nginx
    "ssl-client-subject-dn", // ingress-nginx
    "ssl-client-issuer-dn",  // ingress-nginx
    "remote-user",           // Django's RemoteUserMiddleware reads HTTP_REMOTE_USER
    "true-client-ip",        // Akamai, Cloudflare; chi
    "cf-connecting-ip",      // Cloudflare
    "cf-connecting-ipv6",    // Cloudflare
    "cf-pseudo-ipv4",        // Cloudflare
    "cf-ipcountry",          // Cloudflare
    "cf-visitor",            // Cloudflare: the scheme
    "fastly-client-ip",      // Fastly
    "fly-client-ip",         // Fly.io
    "front-end-https",       // Microsoft's ISA server; Rack, PHP applications
];

/// Fields that no proxy sends, but frameworks mistake for a server's own variables.
const SPOOFED: [&str; 4] = [
    "proxy", // CGI reads it as HTTP_PROXY: the way to a proxy (CVE-2016-5385, httpoxy)
    "https", // CGI reads it as HTTP_HTTPS: WooCommerce took it for TLS
    "x-middleware-subrequest", // Next.js: past every rule of an application (CVE-2025-29927)
    "x-middleware-subrequest-id",
];

#[cfg(test)]
mod tests {
    use super::*;

    const HOST_FIELD: HeaderValue = HeaderValue::from_static("blog.example.com");

    fn received<'a>(peer: &str, host: &'a HeaderValue) -> ReceivedFrom<'a> {
        ReceivedFrom {
            peer: peer.parse().expect("an address"),
            scheme: Scheme::Https,
            host,
        }
    }

    /// Return the fields that the upstream gets for a request from this visitor.
    fn upstream_fields(visitor: &str, host: HeaderValue, mut said: HeaderMap) -> HeaderMap {
        remove(&mut said);
        said.insert(HOST, host);
        let visitor = visitor.parse().expect("an address");
        add_forwarded_headers(&mut said, visitor, Scheme::Https);
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
        let sent = upstream_fields("192.0.2.7", HOST_FIELD, HeaderMap::new());

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
    fn forged_fields_of_a_visitor_are_replaced() {
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

        let forged = upstream_fields("192.0.2.7", HOST_FIELD, forged);

        assert_eq!(forged, upstream_fields("192.0.2.7", HOST_FIELD, clean));
    }

    #[test]
    fn ipv6_addresses_and_ports_are_quoted_in_forwarded_only() {
        let host = HeaderValue::from_static("blog.example.com:8443");

        let sent = upstream_fields("2001:db8::1", host, HeaderMap::new());

        assert_eq!(sent["x-forwarded-for"], "2001:db8::1");
        assert_eq!(sent["x-forwarded-host"], "blog.example.com:8443");
        let forwarded = r#"for="[2001:db8::1]";proto=https;host="blog.example.com:8443""#;
        assert_eq!(sent["forwarded"], forwarded);
    }

    #[test]
    fn an_ipv4_visitor_of_a_dual_stack_listener_stays_ipv4() {
        let sent = upstream_fields("::ffff:192.0.2.7", HOST_FIELD, HeaderMap::new());

        assert_eq!(sent["x-forwarded-for"], "192.0.2.7");
        assert_eq!(
            sent["forwarded"],
            "for=192.0.2.7;proto=https;host=blog.example.com"
        );
    }

    #[test]
    fn the_fields_of_a_trusted_proxy_are_extended() {
        let mut sent = headers(&[
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-for", "192.0.2.8"),
            ("x-forwarded-proto", "http"),
            ("x_forwarded_for", "198.51.100.1"),
            ("forwarded", "for=192.0.2.7;proto=https"),
            ("x-real-ip", "192.0.2.7"),
            ("proxy", "evil:80"),
            ("x-middleware-subrequest", "middleware"),
        ]);

        append_forwarded(&mut sent, &received("10.0.0.1", &HOST_FIELD));

        let expected = headers(&[
            ("x-forwarded-for", "192.0.2.7, 192.0.2.8, 10.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "blog.example.com"),
            (
                "forwarded",
                "for=192.0.2.7;proto=http;host=blog.example.com, for=192.0.2.8, for=10.0.0.1",
            ),
            ("x-real-ip", "192.0.2.7"),
        ]);
        assert_eq!(sent, expected);
    }

    #[test]
    fn both_kinds_of_fields_are_set_from_either() {
        let one = &[(
            "forwarded",
            "for=\"[2001:db8::1]:4711\";proto=https;host=\"a.example:1\", for=192.0.2.8;proto=http",
        )];
        let other = &[
            ("x-forwarded-for", "2001:db8::1, 192.0.2.8"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a.example:1"),
        ];
        for said in [&one[..], other] {
            let mut sent = headers(said);

            append_forwarded(&mut sent, &received("10.0.0.1", &HOST_FIELD));

            let forwarded = "for=\"[2001:db8::1]\";proto=https;host=\"a.example:1\", for=192.0.2.8, for=10.0.0.1";
            assert_eq!(sent["forwarded"], forwarded);
            assert_eq!(sent["x-forwarded-for"], "2001:db8::1, 192.0.2.8, 10.0.0.1");
            assert_eq!(sent["x-forwarded-proto"], "https");
            assert_eq!(sent["x-forwarded-host"], "a.example:1");
        }
    }

    #[test]
    fn every_field_about_the_visitor_is_recognised_with_hyphens_and_underscores() {
        let families = FAMILIES
            .iter()
            .map(|family| format!("{}x", family.trim_end_matches('-').to_owned() + "-"));
        for name in ABOUT_VISITOR
            .iter()
            .chain(&SPOOFED)
            .map(|name| (*name).to_owned())
            .chain(families)
        {
            for name in [name.replace('-', "_"), name] {
                let name = HeaderName::try_from(name).expect("a name");
                assert!(is_about_visitor(&name), "{name}");
            }
        }
        for name in [
            "accept",
            "cookie",
            "referer",
            "range",
            "trailer",
            "cache-control",
            "from",
            "pragma",
            "proxy-authorization",
            "x-requested-with",
            "x-http-method-override",
            "x-csrf-token",
            "x-middleware-prefetch",
            "cdn-loop",
            "http2-settings",
            "cf-access-client-id",
            "x",
            "f",
        ] {
            let name = HeaderName::from_static(name);
            assert!(!is_about_visitor(&name), "{name}");
        }
    }

    #[test]
    fn the_fields_of_a_trusted_proxy_are_passed_on_unchanged() {
        let mut sent = headers(&[("host", "blog.example.com"), ("forwarded", "for=192.0.2.7")]);
        append_forwarded(&mut sent, &received("10.0.0.1", &HOST_FIELD));
        let said = sent.clone();

        add_forwarded_headers(
            &mut sent,
            received("10.0.0.1", &HOST_FIELD).peer,
            Scheme::Https,
        );

        assert_eq!(sent, said);
    }
}
