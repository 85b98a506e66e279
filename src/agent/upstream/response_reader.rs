//! A connection to an HTTP/1.x upstream, of which hyper reads answers that are always well-formed.
//!
//! hyper is stricter than browsers, and says little about what it refuses. UnreadStreams that it reads anyway pass as they
//! are; others are read [here](super::response_head) first. hyper then gets a head with nothing but what frames the
//! body, and the fields go past it.

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
use super::response_head::{AnswerHead, Framing, HeadError, Oddity, Start};

/// What the reader and whoever asks know of each other.
#[derive(Clone)]
pub struct AnswerLink(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The next bytes are those of a head.
    expected: AtomicBool,
    found: Mutex<Found>,
}

/// What was found in heads that hyper did not get as they were.
#[derive(Default)]
pub struct Found {
    /// The fields of the answer.
    pub fields: Option<HeaderMap>,
    /// Why there is no answer.
    pub error: Option<HeadError>,
    pub oddities: Vec<Oddity>,
}

impl AnswerLink {
    /// Begin with a connection on which nothing was sent: who speaks first there does not speak HTTP, and is to be
    /// named.
    pub fn new() -> Self {
        let link = Self(Arc::default());
        link.expect();
        link
    }

    /// Expect an answer: a request is about to be sent.
    pub fn expect(&self) {
        self.0.expected.store(true, Ordering::Release);
    }

    /// Take what was found since.
    pub fn take(&self) -> Found {
        std::mem::take(&mut *self.found())
    }

    fn is_expected(&self) -> bool {
        self.0.expected.load(Ordering::Acquire)
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection.
pub struct AnswerReader<S> {
    io: S,
    link: AnswerLink,
    /// The beginning of a head, as it has come so far.
    partial: BytesMut,
    /// How much of it has been searched for its end.
    seen: usize,
    /// What hyper is to read before anything else.
    ready: BytesMut,
}

impl<S> AnswerReader<S> {
    pub fn new(io: S, link: AnswerLink) -> Self {
        Self {
            io,
            link,
            partial: BytesMut::new(),
            seen: 0,
            ready: BytesMut::new(),
        }
    }

    /// Turn what has come into heads for hyper, as many as there are.
    fn read_heads(&mut self) -> Result<(), HeadError> {
        while self.link.is_expected() && !self.partial.is_empty() {
            let Start::Whole(length) = response_head::find_end(&self.partial, &mut self.seen)?
            else {
                return Ok(());
            };
            let head = response_head::read(&self.partial[..length])?;
            self.partial.advance(length);
            self.seen = 0;
            write_framing(&head, &mut self.ready);
            self.pass(head);
        }
        // The memory of the head goes with it.
        let body = std::mem::take(&mut self.partial);
        self.ready.extend_from_slice(&body);
        Ok(())
    }

    fn pass(&mut self, head: AnswerHead) {
        let mut found = self.link.found();
        if found.oddities.len() < MOST_ODDITIES {
            found.oddities.extend(head.oddities);
        }
        if is_final(head.status) {
            found.fields = Some(head.fields);
            self.link.0.expected.store(false, Ordering::Release);
        }
    }

    fn fail(&self, err: HeadError) -> io::Error {
        let text = err.to_string();
        // What was wrong first is what matters.
        self.link.found().error.get_or_insert(err);
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnswerReader<S> {
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
            let come = &buf.filled()[before..];
            if come.is_empty() {
                // hyper knows what to make of an end where nothing has come.
                return Poll::Ready(match this.partial.is_empty() {
                    true => Ok(()),
                    false => Err(this.fail(HeadError::cut(&this.partial))),
                });
            }
            if this.partial.is_empty() && is_plain(come) {
                this.link.0.expected.store(false, Ordering::Release);
                return Poll::Ready(Ok(()));
            }
            this.partial.extend_from_slice(come);
            buf.set_filled(before);
            if let Err(err) = this.read_heads() {
                return Poll::Ready(Err(this.fail(err)));
            }
        }
    }
}

/// Report whether the bytes begin with the whole head of a final answer that hyper reads in no other way than
/// [`response_head::read`] does.
pub(crate) fn is_plain(bytes: &[u8]) -> bool {
    let mut fields = [const { MaybeUninit::uninit() }; HYPERS_FIELDS];
    let mut answer = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut answer,
        bytes,
        &mut fields,
    );
    let status = match (parsed, answer.code) {
        (Ok(httparse::Status::Complete(_)), Some(status)) => status,
        _ => return false,
    };
    let (mut lengths, mut codings) = (0, 0);
    for field in &*answer.headers {
        if field.name.eq_ignore_ascii_case("content-length") {
            lengths += 1;
            if !matches!(field.value.len(), 1..=18) || !field.value.iter().all(u8::is_ascii_digit) {
                return false;
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            codings += 1;
            if answer.version != Some(1) || !field.value.eq_ignore_ascii_case(b"chunked") {
                return false;
            }
        }
    }
    StatusCode::from_u16(status).is_ok_and(is_final) && lengths + codings <= 1
}

/// Report whether no other head follows.
fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// Write a head that says how the body ends, and nothing that could be understood in two ways. A 1xx answer has
/// its fields, since it has no body and nothing goes past hyper, unless hyper would not take so many.
fn write_framing(head: &AnswerHead, out: &mut BytesMut) {
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
        if head.fields.len() < HYPERS_FIELDS && size < HINT {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for AnswerReader<S> {
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

/// As many fields as hyper reads of one head.
pub(crate) const HYPERS_FIELDS: usize = 100;

/// Oddities of one answer, and of those before it, that are told.
const MOST_ODDITIES: usize = 8;

/// Bytes of a 1xx answer's fields: less than what hyper keeps of an upstream.
const HINT: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Send an answer in pieces, and return what hyper would read of it.
    async fn through(pieces: &[&str]) -> (String, Found) {
        let (mut upstream, end) = tokio::io::duplex(1 << 20);
        let link = AnswerLink::new();
        let mut reader = AnswerReader::new(end, link.clone());
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
    async fn a_plain_answer_passes_as_it_is() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nA: b\r\n\r\nok";

        let (read, found) = through(&[answer]).await;

        assert_eq!(read, answer);
        assert!(found.fields.is_none());
    }

    #[tokio::test]
    async fn an_odd_answer_is_framed_anew_and_its_fields_go_past() {
        let (read, found) =
            through(&["HTTP/1.0 200\nA:", " b\n c\nContent-Length: 2\n", "\nok"]).await;

        assert_eq!(
            read,
            "HTTP/1.1 200 \r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
        );
        assert_eq!(found.fields.unwrap()["a"], "b c");
    }

    #[tokio::test]
    async fn answers_before_the_last_keep_their_fields() {
        let hint = "HTTP/1.1 103 Early InformationalQueue\r\nLink : </a>\r\n\r\nHTTP/1.1 200 OK\r\nB : 1\r\n\r\nok";

        let (read, found) = through(&[hint]).await;

        let expected =
            "HTTP/1.1 103 Early InformationalQueue\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\nok";
        assert_eq!(read, expected);
        assert_eq!(found.fields.unwrap()["b"], "1");
    }

    #[tokio::test]
    async fn what_follows_a_head_is_never_taken_for_one() {
        let body = "HTTP/1.1 500 No\r\nA : 1\r\n\r\n";

        let (read, _) = through(&["HTTP/1.1 200 OK\r\nA : 1\r\n\r\n", body]).await;

        assert_eq!(read, format!("HTTP/1.1 200 OK\r\n\r\n{body}"));
    }

    #[tokio::test]
    async fn an_end_within_a_head_and_what_is_not_http_are_named() {
        let (_, found) = through(&["HTTP/1.1 200 OK\r\nA"]).await;
        assert!(matches!(found.error, Some(HeadError::Cut(_))));

        let (_, found) = through(&["SSH-2.0-x\r\n"]).await;
        assert!(matches!(found.error, Some(HeadError::NotHttp { .. })));
    }
}
