//! Properties that hold for any bytes that an edge receives from visitors, from its files and from another process.

use ::http::request::Parts;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version};
use hyper::ext::Protocol;

use super::handover::Message;
use super::names::lease_file;
use super::visitors::client::Client;
use super::visitors::connection_id::ConnectionId;
use super::visitors::http::forward::{RequestOrigin, request_head};
use super::visitors::http::host::Host;
use super::visitors::http::http2::frames::{Found, FrameScanner};
use super::visitors::http::{guard, validate};
use super::visitors::worker_affinity;
use crate::auth::Name;
use crate::http::Upgrades;
use crate::proto::{BodyLength, Check, HEAD_LIMIT, MIN_WINDOW, Scheme, decimal, encode};

/// Scan a visitor's HTTP/1.1 connection. The agent accepts each request that the edge forwards.
pub fn guard(bytes: &[u8]) {
    guard::fuzzing::connection(bytes);
    if let Some((parts, facts)) = guard::fuzzing::first_request(bytes) {
        assert_accepted(parts, facts.expects_upgrade);
    }
}

/// Validate an HTTP/2 request, written as lines: method, authority, path, `:protocol`, and fields. The agent accepts
/// it if the edge forwards it.
pub fn http2_request(bytes: &[u8]) {
    let mut lines = bytes.split(|b| *b == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let (method, authority, path, protocol) = (next(), next(), next(), next());
    let uri = ::http::Uri::builder()
        .scheme("https")
        .authority(authority)
        .path_and_query(path)
        .build();
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method), uri) else {
        return;
    };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    for line in lines {
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(&line[colon + 1..]);
        if let (Ok(name), Ok(value)) = (name, value) {
            request.headers_mut().append(name, value);
        }
    }
    let protocol = std::str::from_utf8(protocol).unwrap_or_default();
    if request.method() == Method::CONNECT && !protocol.is_empty() {
        request.extensions_mut().insert(Protocol::from(protocol));
    }
    assert_accepted(request.into_parts().0, false);
}

/// Scan the frames of an HTTP/2 connection: the pieces in which they arrive make no difference, and each frame starts
/// where the length of the one before it says.
pub fn http2_frames(bytes: &[u8]) {
    let scan = |size: usize| {
        let (mut scanner, mut found) = (FrameScanner::of_server(), Vec::new());
        for piece in bytes.chunks(size) {
            scanner.scan(piece, |event| found.push(event));
        }
        (found, scanner.has_preface(), scanner.is_unfinished())
    };
    let whole = scan(bytes.len().max(1));
    assert_eq!(scan(1), whole);
    assert_eq!(scan(10), whole);

    let (mut rest, mut frames) = (bytes, Vec::new());
    while let [a, b, c, kind, _flags, _, _, _, _, after @ ..] = rest {
        let length = u32::from_be_bytes([0, *a, *b, *c]);
        frames.push(Found::Frame {
            kind: *kind,
            length,
        });
        rest = after.get(length as usize..).unwrap_or_default();
    }
    let found = whole.0.into_iter();
    let found: Vec<_> = found
        .filter(|event| matches!(event, Found::Frame { .. }))
        .collect();
    assert_eq!(found, frames);
}

/// Parse the names of hosts and tunnels, and lengths.
pub fn host(bytes: &[u8]) {
    let length = validate::content_length(bytes);
    assert!(length.is_none() || length == decimal(bytes));
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(name) = text.parse::<Name>()
    {
        assert_eq!(name.as_str().parse(), Ok(name.clone()));
        assert!(Host::parse(name.as_str().as_bytes()).is_some());
    }
    let Some(host) = Host::parse(bytes) else {
        return;
    };
    assert!(host.agrees_with(&host, 443));
    let canonical = host.canonical();
    assert!(!canonical.contains(|c: char| c.is_ascii_uppercase()));
    let again = Host::parse(canonical.as_bytes()).map(|host| host.canonical());
    // Of several final dots, each time one is removed.
    assert!(again.as_ref() == Some(&canonical) || canonical.is_empty() || canonical.ends_with('.'));
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        let request = Request::get("/").header("host", value).body(());
        assert_accepted(request.expect("a valid host").into_parts().0, false);
    }
}

/// Find the server name or host in the first bytes of a connection.
pub fn first_bytes(bytes: &[u8]) {
    let _ = worker_affinity::server_name(bytes);
    if let Some(host) = worker_affinity::host(bytes) {
        assert!(!host.contains(':'));
    }
}

/// Decode the lease file: what is decoded survives a round trip.
pub fn lease_file(bytes: &[u8]) {
    if let Some(leases) = lease_file::decode(bytes) {
        let mut sorted = leases.clone();
        sorted.sort_by(|(one, _), (other, _)| one.cmp(other));
        assert_eq!(
            lease_file::decode(&lease_file::encode(leases)),
            Some(sorted)
        );
    }
}

/// Decode a message of another process of this edge: what is decoded survives a round trip.
pub fn handover(bytes: &[u8]) {
    if let Ok(message) = postcard::from_bytes::<Message>(bytes) {
        let again = postcard::to_stdvec(&message).expect("any message can be encoded");
        let read: Message = postcard::from_bytes(&again).expect("just encoded");
        assert_eq!(format!("{read:?}"), format!("{message:?}"));
    }
}

/// Assert that agents accept the head of a request which the edge forwards. Otherwise it would count as a violation of
/// the protocol, and some of these end the session with all its visitors.
fn assert_accepted(parts: Parts, may_upgrade: bool) {
    let Ok(authority) = validate::check(&parts) else {
        return;
    };
    let length = parts
        .headers
        .get("content-length")
        .map(HeaderValue::as_bytes);
    let body = match length.and_then(validate::content_length) {
        _ if parts.headers.contains_key("transfer-encoding") => BodyLength::Unknown,
        None | Some(0) => BodyLength::Empty,
        Some(length) => BodyLength::Known(length),
    };
    assert_counted(&parts.headers);
    for is_trusted in [false, true] {
        let mut copy = Request::new(()).into_parts().0;
        copy.method = parts.method.clone();
        copy.uri = parts.uri.clone();
        copy.version = parts.version;
        copy.headers = parts.headers.clone();
        if let Some(protocol) = parts.extensions.get::<Protocol>() {
            copy.extensions.insert(protocol.clone());
        }
        let origin = RequestOrigin {
            visitor: ([192, 0, 2, 1], 443).into(),
            scheme: Scheme::Https,
            is_trusted,
            may_upgrade,
        };
        let mut head = request_head(copy, body, &authority, &origin);
        // As it is done when the head is sent.
        head.window = MIN_WINDOW as u32;
        head.upgrade = head
            .upgrade
            .and_then(|asked| Upgrades::default().select(&asked));
        assert_eq!(head.check(), Ok(()), "{head:?}");
        if !is_trusted {
            assert!(encode(&head, HEAD_LIMIT).is_ok(), "{head:?}");
        }
    }
}

/// Determine the client that a request counts for, with a trusted proxy and without one.
fn assert_counted(fields: &HeaderMap) {
    let peer = [10, 0, 0, 1].into();
    let proxies: [ipnet::IpNet; 1] = ["10.0.0.0/8".parse().expect("a network")];
    let id = ConnectionId::next();
    assert!(Client::of(peer, id, &proxies, fields).holders().count() > 0);
    let untrusted = Client::of(peer, id, &[], fields);
    assert_eq!(untrusted, Client::of(peer, id, &[], &HeaderMap::new()));
}
