//! Properties that hold for any bytes that an agent receives from an upstream, and for any request for a file.

use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use ::http::header::{CONTENT_LENGTH, HOST, LOCATION, RANGE, TRANSFER_ENCODING};
use ::http::{HeaderMap, HeaderValue, Method, Request, Uri};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

use super::config::HostHeader;
use super::forward;
use super::forward::origins::Origins;
use super::upstream::address::Target;
use super::upstream::directory;
use super::upstream::response_head;
use super::upstream::response_head::{Framing, HeadScan};
use super::upstream::response_reader::{HYPER_MAX_FIELDS, ResponseLink, ResponseReader, is_plain};
use super::upstream::{Service, UpstreamBody};
use crate::http::forwarded::is_about_visitor;
use crate::http::fuzzing::parse;
use crate::proto::{BodyLength, Check, Fields, HttpVersion, RequestHead, Scheme};

/// Parse the response of an upstream:
/// - the pieces in which it arrives make no difference;
/// - hyper interprets the heads that are left to it as our parser does;
/// - the head that is sent to the edge is valid there.
pub fn response(bytes: &[u8]) {
    assert_plain_is_plain(bytes);
    for method in [Method::GET, Method::HEAD] {
        let whole = exchange(bytes, bytes.len().max(1), &method);
        assert_eq!(exchange(bytes, 1, &method), whole, "{method}");
        assert_eq!(exchange(bytes, 7, &method), whole, "{method}");
    }
}

/// Rewrite the origin in fields of requests and responses: no other field is lost, and rewriting twice is the same as
/// rewriting once.
pub fn origins(bytes: &[u8]) {
    let fields = parse(bytes);
    let mut head = RequestHead {
        tunnel: 0,
        visitor: ([192, 0, 2, 1], 1).into(),
        scheme: Scheme::Https,
        version: HttpVersion::Http11,
        method: Method::GET,
        target: "/".into(),
        upgrade: None,
        body: BodyLength::Empty,
        window: 0,
        fields: Fields(HeaderMap::new()),
    };
    let host = HeaderValue::from_static("blog.example.com");
    head.fields.0.insert(HOST, host);
    let target = Target::Http {
        host: "localhost".into(),
        port: 3000,
    };
    let origins = Origins::of(&head, &HostHeader::Rewrite, Some(&target)).expect("two origins");
    for translate in [Origins::rewrite_request, Origins::rewrite_response] {
        let mut once = fields.clone();
        translate(&origins, &mut once);
        assert_eq!(count_others(&once), count_others(&fields));
        let mut twice = once.clone();
        translate(&origins, &mut twice);
        assert_eq!(twice, once);
    }
    // The host of a request is any text, too.
    head.fields = Fields(fields);
    if let Some(origins) = Origins::of(&head, &HostHeader::Rewrite, Some(&target)) {
        origins.rewrite_request(&mut head.fields.0);
        origins.rewrite_response(&mut head.fields.0);
    }
}

/// Count the fields that do not describe the visitor: those that do are replaced together with `Origin`.
fn count_others(fields: &HeaderMap) -> usize {
    let names = fields.iter().map(|(name, _)| name);
    names.filter(|name| !is_about_visitor(name)).count()
}

/// Request a file, with a path in the first line and a range in the second: no file outside of the directory and no
/// hidden one is served, and no redirect leads to another host.
pub fn files(bytes: &[u8]) {
    static FILES: OnceLock<(Runtime, Service)> = OnceLock::new();
    let (runtime, service) = FILES.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without threads");
        (
            runtime,
            directory::service(&directory().expect("a directory")),
        )
    });
    let mut lines = bytes.splitn(2, |b| *b == b'\n');
    let path = lines.next().unwrap_or_default();
    let Ok(uri) = Uri::try_from([b"/", path].concat()) else {
        return;
    };
    let mut request = Request::new(UpstreamBody::full(""));
    *request.uri_mut() = uri;
    if let Some(Ok(range)) = lines.next().map(HeaderValue::from_bytes) {
        request.headers_mut().insert(RANGE, range);
    }
    runtime.block_on(async {
        let response = service.call(request).await.expect("no panic");
        if let Some(location) = response.headers().get(LOCATION) {
            let location = location.as_bytes();
            assert!(location.starts_with(b"/"));
            assert!(!location.starts_with(b"//") && !location.starts_with(b"/\\"));
        }
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.map(|length| length.to_str().expect("digits").to_owned());
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        assert!(
            !body.windows(SECRET.len()).any(|at| at == SECRET),
            "{path:?}"
        );
        assert!(length.is_none_or(|length| length == body.len().to_string()));
    });
}

/// The content of every file that must not be served.
const SECRET: &[u8] = b"secret";

/// Create a directory with files to serve, and others in and around it that must not be served.
fn directory() -> io::Result<std::path::PathBuf> {
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;

    let around = std::env::temp_dir().join("qtunnel-fuzzing");
    let inside = around.join("inside");
    create_dir_all(inside.join("a/b"))?;
    create_dir_all(inside.join(".git"))?;
    create_dir_all(inside.join(".well-known"))?;
    for (path, bytes) in [
        ("inside/index.html", &b"an index"[..]),
        ("inside/a/b/c.txt", b"0123456789"),
        ("inside/.well-known/x", b"to be served"),
        ("inside/.git/config", SECRET),
        ("inside/a/.env", SECRET),
        ("outside", SECRET),
    ] {
        write(around.join(path), bytes)?;
    }
    for (to, at) in [
        ("../outside", "inside/up"),
        ("..", "inside/all"),
        (".git", "inside/g"),
        ("a/b/../b", "inside/b"),
        ("loop", "inside/loop"),
    ] {
        let at = around.join(at);
        if !Path::new(&at).is_symlink() {
            symlink(to, at)?;
        }
    }
    Ok(inside)
}

/// A response as the edge receives it: status, fields and body; `None` if it is incomplete or invalid.
type Received = Option<(u16, HeaderMap, Bytes)>;

/// Send a request to an upstream whose response is `bytes`, in pieces of `size`.
fn exchange(bytes: &[u8], size: usize, method: &Method) -> Received {
    let link = ResponseLink::new();
    let io = Connection {
        bytes,
        size,
        requested: false,
    };
    let io = TokioIo::new(ResponseReader::new(io, link.clone()));
    let handshake = http1::Builder::new().handshake(io).now_or_never();
    let (mut sender, connection) = handshake.expect("no wait").expect("no input");
    let mut connection = pin!(connection);
    let request = Request::builder().method(method).uri("/");
    let request = request.body(Empty::<Bytes>::new()).expect("a request");
    link.expect_response();
    let mut cx = Context::from_waker(Waker::noop());
    let mut received = pin!(async {
        let response = sender.send_request(request).await.ok()?;
        let (mut parts, body) = response.into_parts();
        let parsed = link.take();
        if let Some(fields) = parsed.fields {
            parts.headers = fields;
        }
        let status = parts.status;
        if status != 101 {
            let head = forward::response::head(parts.clone(), &body, method);
            assert_eq!(head.check(), Ok(()), "{head:?}");
        }
        let body = body.collect().await.ok()?.to_bytes();
        // They determine where the body ends, which is done by now.
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.remove(TRANSFER_ENCODING);
        Some((status.as_u16(), parts.headers, body))
    });
    let mut is_open = true;
    loop {
        is_open = is_open && connection.as_mut().poll(&mut cx).is_pending();
        if let Poll::Ready(received) = received.as_mut().poll(&mut cx) {
            return received;
        }
    }
}

/// Assert that hyper, which parses heads with httparse, interprets a head that is left to it as our parser does.
fn assert_plain_is_plain(bytes: &[u8]) {
    let parsed = match response_head::find_end(bytes, &mut 0) {
        Ok(HeadScan::Complete(end)) => response_head::parse(&bytes[..end])
            .map(|head| (end, head))
            .ok(),
        Ok(HeadScan::Partial) | Err(_) => None,
    };
    if let Some((_, head)) = &parsed {
        assert!(!head.fields.contains_key(TRANSFER_ENCODING));
        let lengths = head.fields.get_all(CONTENT_LENGTH).iter().count();
        assert_eq!(
            lengths,
            usize::from(matches!(head.framing, Framing::Length(_)))
        );
    }
    if !is_plain(bytes) {
        return;
    }
    let (end, head) = parsed.expect("a plain head is valid");
    let mut fields = [httparse::EMPTY_HEADER; HYPER_MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    assert_eq!(response.parse(bytes), Ok(httparse::Status::Complete(end)));
    assert_eq!(Some(head.status.as_u16()), response.code);
    assert!(head.anomalies.is_empty(), "{head:?}");
    let (mut ours, mut theirs) = (head.fields, HeaderMap::new());
    for field in &*response.headers {
        let value = HeaderValue::from_bytes(field.value).expect("a value");
        theirs.append(
            ::http::HeaderName::try_from(field.name).expect("a name"),
            value,
        );
    }
    let chunked = theirs.remove(TRANSFER_ENCODING).is_some();
    let length = theirs.remove(CONTENT_LENGTH);
    let framing = match length {
        _ if chunked => Framing::Chunked,
        None => Framing::Close,
        Some(length) => {
            Framing::Length(length.to_str().expect("digits").parse().expect("a number"))
        }
    };
    assert_eq!(head.framing, framing);
    ours.remove(CONTENT_LENGTH);
    assert_eq!(ours, theirs);
}

/// A connection that delivers `bytes`, in pieces of `size`, after a request has been sent, and then ends.
struct Connection<'a> {
    bytes: &'a [u8],
    size: usize,
    requested: bool,
}

impl AsyncRead for Connection<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.requested {
            return Poll::Pending;
        }
        let most = self.bytes.len().min(self.size).min(buf.remaining());
        let (now, later) = self.bytes.split_at(most);
        buf.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.requested = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
