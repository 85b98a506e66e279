//! Comparison of the guard's decisions with what hyper reads from the bytes that pass.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use ::http::header::CONNECTION;
use ::http::request::Parts;
use ::http::{HeaderMap, Request, Response, Version};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

use super::Guard;
use super::scanner::{Scanner, Stop};
use super::search::HeadSearch;
use super::verdicts::{HeadFacts, Verdicts};
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::http::violation::Violation;

/// The result of scanning a connection's bytes.
#[derive(Debug, PartialEq, Eq)]
struct Scanned {
    passed: usize,
    verdicts: Vec<Result<HeadFacts, Violation>>,
    end: Stop,
}

/// Scan a visitor's HTTP/1.1 connection:
/// - the pieces in which it arrives make no difference, and none of its bytes is changed;
/// - hyper reads as many requests from what passes as the guard has seen, so none can be smuggled in another.
pub(crate) fn connection(bytes: &[u8]) {
    let scanned = scan([bytes]);
    assert_eq!(scan(bytes.chunks(1)), scanned);
    assert_eq!(scan(bytes.chunks(7)), scanned);

    let mut expected = bytes[..scanned.passed].to_vec();
    if let Stop::Refused(substitute) = &scanned.end {
        expected.extend_from_slice(substitute);
    }
    for (size, room) in [(bytes.len().max(1), 4096), (5, 3)] {
        assert_eq!(through_guard(bytes, size, room), expected);
    }

    let valid = scanned.verdicts.iter().filter(|verdict| verdict.is_ok());
    let (valid, served) = (valid.count(), serve(&bytes[..scanned.passed]));
    assert!(served.len() <= valid, "{served:?}");
    if served.iter().all(keeps_alive) {
        assert_eq!(served.len(), valid, "{served:?}");
    }
}

/// Return the request at the start of the bytes, as hyper reads it, if the guard lets it pass.
pub(crate) fn first_request(bytes: &[u8]) -> Option<(Parts, HeadFacts)> {
    let length = HeadSearch::default().find_end(bytes).ok()??;
    let head = super::head::examine(&bytes[..length]).ok()?;
    let mut served = serve(&bytes[..length]);
    assert_eq!(served.len(), 1);
    Some((served.remove(0), head.facts))
}

/// Scan a connection whose bytes arrive in these pieces. Upgrades are refused.
fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Scanned {
    let (mut scanner, verdicts) = (Scanner::new(), Verdicts::default());
    let (mut held, mut passed) = (Vec::new(), 0);
    let mut end = Stop::Incomplete;
    'pieces: for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let (here, stop) = scanner.scan(&held, &verdicts);
            held.drain(..here);
            passed += here;
            match stop {
                Stop::Incomplete => break,
                Stop::Upgrade => {}
                stop => {
                    end = stop;
                    break 'pieces;
                }
            }
        }
    }
    Scanned {
        passed,
        verdicts: take_all(&verdicts),
        end,
    }
}

/// Take all available verdicts, and refuse the upgrades among them.
fn take_all(verdicts: &Verdicts) -> Vec<Result<HeadFacts, Violation>> {
    let mut taken = Vec::new();
    loop {
        match verdicts.next() {
            Err(Violation::Unexamined) => return taken,
            verdict => taken.push(verdict),
        }
        verdicts.upgraded(false);
    }
}

/// Return all bytes that hyper would read, if they arrive in pieces of `size` and it reads `room` bytes at once.
fn through_guard(bytes: &[u8], size: usize, room: usize) -> Vec<u8> {
    thread_local! {
        static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without threads");
    }
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        let (mut guard, verdicts) = Guard::new(Connection { bytes, size }, &EdgeLimits::default());
        // While a response is pending, the end of the input does not end the connection.
        let _answering = verdicts.answering();
        let mut given = Vec::new();
        let mut buffer = vec![0; room];
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            let mut buf = ReadBuf::new(&mut buffer);
            match Pin::new(&mut guard).poll_read(&mut cx, &mut buf) {
                Poll::Ready(Ok(())) if buf.filled().is_empty() => return given,
                Poll::Ready(Ok(())) => given.extend_from_slice(buf.filled()),
                Poll::Ready(Err(_)) => return given,
                // It waits for a decision about an upgrade, or else for the end after a refused request.
                Poll::Pending if take_all(&verdicts).is_empty() => return given,
                Poll::Pending => {}
            }
        }
    })
}

/// Return the requests that hyper reads from a connection's bytes.
fn serve(bytes: &[u8]) -> Vec<Parts> {
    let served = RefCell::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        let (parts, body) = request.into_parts();
        served.borrow_mut().push(parts);
        async move {
            // An error of the body is one of the connection, too.
            let _ = body.collect().await;
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let size = bytes.len().max(1);
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        // The guard hides the end of the input from it, too.
        .half_close(true)
        .serve_connection(TokioIo::new(Connection { bytes, size }), service);
    let mut connection = pin!(connection);
    let mut cx = Context::from_waker(Waker::noop());
    while connection.as_mut().poll(&mut cx).is_pending() {}
    served.take()
}

fn keeps_alive(head: &Parts) -> bool {
    head.version == Version::HTTP_11 && !has_connection_option(&head.headers, "close")
}

fn has_connection_option(fields: &HeaderMap, option: &str) -> bool {
    let lines = fields.get_all(CONNECTION).into_iter();
    let mut options = lines.flat_map(|line| line.as_bytes().split(|b| *b == b','));
    options.any(|listed| listed.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

/// A connection that delivers `bytes`, in pieces of `size`, and then ends; it accepts all writes.
struct Connection<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl AsyncRead for Connection<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = self.bytes.len().min(self.size).min(buf.remaining());
        let (now, later) = self.bytes.split_at(most);
        buf.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
