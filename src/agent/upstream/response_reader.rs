//! A connection to an HTTP/1.x upstream that presents only well-formed responses to hyper.
//!
//! hyper is stricter than browsers, and its errors do not say what it refused. Heads that hyper accepts pass
//! unchanged; others are parsed by [`response_head`] first. hyper then reads a head with nothing but the framing of
//! the body, and the fields bypass it.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use ::http::{HeaderMap, StatusCode};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::response_head;
use super::response_head::{Anomaly, Framing, HeadError, HeadScan, ParsedHead};

/// The state that the reader shares with the sender of requests.
#[derive(Clone)]
pub struct ResponseLink(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The next bytes are those of a head.
    expected: AtomicBool,
    parsed: Mutex<ParsedHeads>,
}

/// The content of heads that hyper did not read itself.
#[derive(Default)]
pub struct ParsedHeads {
    /// The fields of the final response.
    pub fields: Option<HeaderMap>,
    /// The reason why there is no response.
    pub error: Option<HeadError>,
    /// Fields that were dropped or changed.
    pub anomalies: Vec<Anomaly>,
}

impl ResponseLink {
    /// Create the state of a new connection. A head is expected even before the first request, so that an upstream
    /// that sends first, and so does not speak HTTP, is reported with its first bytes.
    pub fn new() -> Self {
        let link = Self(Arc::default());
        link.expect_response();
        link
    }

    /// Expect a head, because a request is about to be sent.
    pub fn expect_response(&self) {
        self.0.expected.store(true, Ordering::Release);
    }

    /// Take what was parsed since the last call.
    pub fn take(&self) -> ParsedHeads {
        std::mem::take(&mut *self.parsed())
    }

    fn is_expected(&self) -> bool {
        self.0.expected.load(Ordering::Acquire)
    }

    fn parsed(&self) -> MutexGuard<'_, ParsedHeads> {
        self.0.parsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection whose responses are checked, and parsed where necessary, before hyper reads them.
pub struct ResponseReader<S> {
    io: S,
    link: ResponseLink,
    /// The bytes of an incomplete head.
    partial: BytesMut,
    /// The number of its bytes that have been searched for the end.
    seen: usize,
    /// Bytes that hyper is to read first.
    ready: BytesMut,
}

impl<S> ResponseReader<S> {
    /// Wrap a connection.
    pub fn new(io: S, link: ResponseLink) -> Self {
        Self {
            io,
            link,
            partial: BytesMut::new(),
            seen: 0,
            ready: BytesMut::new(),
        }
    }

    /// Parse all complete heads, and write replacements for hyper. Bytes after the final head pass unchanged.
    fn read_heads(&mut self) -> Result<(), HeadError> {
        while self.link.is_expected() && !self.partial.is_empty() {
            let HeadScan::Complete(length) =
                response_head::find_end(&self.partial, &mut self.seen)?
            else {
                return Ok(());
            };
            let head = response_head::parse(&self.partial[..length])?;
            self.partial.advance(length);
            self.seen = 0;
            write_framing(&head, &mut self.ready);
            self.store(head);
        }
        // Taken, to free the memory of the head, too.
        let body = std::mem::take(&mut self.partial);
        self.ready.extend_from_slice(&body);
        Ok(())
    }

    /// Store the fields of a head for the sender of the request.
    fn store(&mut self, head: ParsedHead) {
        let mut parsed = self.link.parsed();
        if parsed.anomalies.len() < MAX_ANOMALIES {
            parsed.anomalies.extend(head.anomalies);
        }
        if is_final(head.status) {
            parsed.fields = Some(head.fields);
            self.link.0.expected.store(false, Ordering::Release);
        }
    }

    /// Store an error, and return one for hyper.
    fn fail(&self, err: HeadError) -> io::Error {
        let text = err.to_string();
        // The first error is the relevant one.
        self.link.parsed().error.get_or_insert(err);
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ResponseReader<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.ready.is_empty() {
                let length = this.ready.len().min(buf.remaining());
                buf.put_slice(&this.ready.split_to(length));
                if this.ready.is_empty() {
                    this.ready = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            if !this.link.is_expected() {
                return Poll::Ready(Ok(()));
            }
            let received = &buf.filled()[before..];
            if received.is_empty() {
                // Between heads, hyper handles the end of the connection.
                return Poll::Ready(match this.partial.is_empty() {
                    true => Ok(()),
                    false => Err(this.fail(HeadError::cut(&this.partial))),
                });
            }
            if this.partial.is_empty() && is_plain(received) {
                this.link.0.expected.store(false, Ordering::Release);
                return Poll::Ready(Ok(()));
            }
            this.partial.extend_from_slice(received);
            buf.set_filled(before);
            if let Err(err) = this.read_heads() {
                return Poll::Ready(Err(this.fail(err)));
            }
        }
    }
}

/// Report whether the bytes start with a complete head of a final response that hyper interprets exactly as
/// [`response_head::parse`] does.
pub(crate) fn is_plain(bytes: &[u8]) -> bool {
    let mut fields = [const { MaybeUninit::uninit() }; HYPER_MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut fields,
    );
    let status = match (parsed, response.code) {
        (Ok(httparse::Status::Complete(_)), Some(status)) => status,
        _ => return false,
    };
    let (mut lengths, mut codings) = (0, 0);
    for field in &*response.headers {
        if field.name.eq_ignore_ascii_case("content-length") {
            lengths += 1;
            if !matches!(field.value.len(), 1..=18) || !field.value.iter().all(u8::is_ascii_digit) {
                return false;
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            codings += 1;
            if response.version != Some(1) || !field.value.eq_ignore_ascii_case(b"chunked") {
                return false;
            }
        }
    }
    StatusCode::from_u16(status).is_ok_and(is_final) && lengths + codings <= 1
}

/// Report whether no other head follows for the same request.
fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// Write a head with the framing of the body and nothing ambiguous. A 1xx response keeps its fields, because only
/// those of the final response bypass hyper; they are left out if there are more than hyper accepts.
fn write_framing(head: &ParsedHead, out: &mut BytesMut) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(&head.reason);
    out.extend_from_slice(b"\r\n");
    if !is_final(head.status) {
        let size = |(name, value): (&::http::HeaderName, &::http::HeaderValue)| {
            name.as_str().len() + value.len()
        };
        let size: usize = head.fields.iter().map(size).sum();
        if head.fields.len() < HYPER_MAX_FIELDS && size < MAX_INFORMATIONAL_FIELDS {
            for (name, value) in &head.fields {
                out.extend_from_slice(name.as_str().as_bytes());
                out.extend_from_slice(b": ");
                out.extend_from_slice(value.as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        }
    } else {
        match head.framing {
            Framing::Length(length) => {
                let length = format!("content-length: {length}\r\n");
                out.extend_from_slice(length.as_bytes());
            }
            Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Framing::Close => {}
        }
        if !head.keep_alive {
            out.extend_from_slice(b"connection: close\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ResponseReader<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The most fields of one head that hyper accepts.
pub(crate) const HYPER_MAX_FIELDS: usize = 100;

/// The number of anomalies, over all heads for one request, after which no more heads are added to the report.
const MAX_ANOMALIES: usize = 8;

/// The most bytes of the fields of a 1xx response: less than hyper's buffer.
const MAX_INFORMATIONAL_FIELDS: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Send a response in pieces, and return what hyper reads, and what bypasses it.
    async fn through(pieces: &[&str]) -> (String, ParsedHeads) {
        let (mut upstream, end) = tokio::io::duplex(1 << 20);
        let link = ResponseLink::new();
        let mut reader = ResponseReader::new(end, link.clone());
        let mut read = Vec::new();
        for piece in pieces {
            upstream.write_all(piece.as_bytes()).await.unwrap();
            let mut buf = [0; 4096];
            let more = std::pin::pin!(reader.read(&mut buf));
            if let Poll::Ready(Ok(more)) = futures_util::poll!(more) {
                read.extend_from_slice(&buf[..more]);
            }
        }
        drop(upstream);
        let _ = reader.read_to_end(&mut read).await;
        (String::from_utf8(read).unwrap(), link.take())
    }

    #[tokio::test]
    async fn a_plain_response_passes_unchanged() {
        let response = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nA: b\r\n\r\nok";

        let (read, parsed) = through(&[response]).await;

        assert_eq!(read, response);
        assert!(parsed.fields.is_none());
    }

    #[tokio::test]
    async fn a_lenient_response_is_reframed_and_its_fields_bypass_hyper() {
        let (read, parsed) =
            through(&["HTTP/1.0 200\nA:", " b\n c\nContent-Length: 2\n", "\nok"]).await;

        assert_eq!(
            read,
            "HTTP/1.1 200 \r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
        );
        assert_eq!(parsed.fields.unwrap()["a"], "b c");
    }

    #[tokio::test]
    async fn informational_responses_keep_their_fields() {
        let responses =
            "HTTP/1.1 103 Early Hints\r\nLink : </a>\r\n\r\nHTTP/1.1 200 OK\r\nB : 1\r\n\r\nok";

        let (read, parsed) = through(&[responses]).await;

        let expected = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\nok";
        assert_eq!(read, expected);
        assert_eq!(parsed.fields.unwrap()["b"], "1");
    }

    #[tokio::test]
    async fn a_body_is_never_parsed_as_a_head() {
        let body = "HTTP/1.1 500 No\r\nA : 1\r\n\r\n";

        let (read, _) = through(&["HTTP/1.1 200 OK\r\nA : 1\r\n\r\n", body]).await;

        assert_eq!(read, format!("HTTP/1.1 200 OK\r\n\r\n{body}"));
    }

    #[tokio::test]
    async fn a_truncated_head_and_another_protocol_are_reported() {
        let (_, parsed) = through(&["HTTP/1.1 200 OK\r\nA"]).await;
        assert!(matches!(parsed.error, Some(HeadError::Cut(_))));

        let (_, parsed) = through(&["SSH-2.0-x\r\n"]).await;
        assert!(matches!(parsed.error, Some(HeadError::NotHttp { .. })));
    }
}
