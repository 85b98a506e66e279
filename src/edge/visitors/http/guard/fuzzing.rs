//! The guard's decisions, and what hyper makes of the bytes that it lets pass.

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

/// What was found in a connection's bytes.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    passed: usize,
    verdicts: Vec<Result<HeadFacts, Violation>>,
    end: Stop,
}

/// Follow a visitor's connection over HTTP/1.1:
/// - the pieces in which it arrives make no difference, and none of its bytes is changed;
/// - what passes is to hyper as many requests as the guard has seen, so that none is hidden in another.
pub(crate) fn connection(bytes: &[u8]) {
    let found = scan([bytes]);
    assert_eq!(scan(bytes.chunks(1)), found);
    assert_eq!(scan(bytes.chunks(7)), found);

    let mut expected = bytes[..found.passed].to_vec();
    if let Stop::Refused(stand_in) = &found.end {
        expected.extend_from_slice(stand_in);
    }
    for (size, room) in [(bytes.len().max(1), 4096), (5, 3)] {
        assert_eq!(through_guard(bytes, size, room), expected);
    }

    let sound = found.verdicts.iter().filter(|verdict| verdict.is_ok());
    let (sound, served) = (sound.count(), serve(&bytes[..found.passed]));
    assert!(served.len() <= sound, "{served:?}");
    if served.iter().all(|head| keeps_alive(head)) {
        assert_eq!(served.len(), sound, "{served:?}");
    }
}

/// Return the request with which the bytes begin, as hyper hands it over, if the guard lets it pass.
pub(crate) fn first_request(bytes: &[u8]) -> Option<(Parts, HeadFacts)> {
    let length = HeadSearch::default().find_end(bytes).ok()??;
    let head = super::head::examine(&bytes[..length]).ok()?;
    let mut served = serve(&bytes[..length]);
    assert_eq!(served.len(), 1);
    Some((served.remove(0), head.facts))
}

/// Follow a connection whose bytes arrive in these pieces. Upgrades are refused.
fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Found {
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
    Found {
        passed,
        verdicts: taken(&verdicts),
        end,
    }
}

/// Take the verdicts that are there, and refuse the upgrades among them.
fn taken(verdicts: &Verdicts) -> Vec<Result<HeadFacts, Violation>> {
    let mut taken = Vec::new();
    loop {
        match verdicts.next() {
            Err(Violation::Unexamined) => return taken,
            verdict => taken.push(verdict),
        }
        verdicts.upgraded(false);
    }
}

/// Return all bytes that hyper would be given, where `size` of them come at once and it has `room` for so many.
fn through_guard(bytes: &[u8], size: usize, room: usize) -> Vec<u8> {
    thread_local! {
        static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without threads");
    }
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        let (mut guard, verdicts) = Guard::new(Wire { bytes, size }, &EdgeLimits::default());
        // As long as there is an answer to come, an end is none of the connection.
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
                // It waits for an upgrade to be refused, or else for the end after a refused request.
                Poll::Pending if taken(&verdicts).is_empty() => return given,
                Poll::Pending => {}
            }
        }
    })
}

/// Return the requests that hyper makes of a connection's bytes.
fn serve(bytes: &[u8]) -> Vec<Parts> {
    let served = RefCell::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        let (parts, body) = request.into_parts();
        served.borrow_mut().push(parts);
        async move {
            // If it breaks off, so does the connection.
            let _ = body.collect().await;
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let size = bytes.len().max(1);
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        // The guard keeps the end from it as well.
        .half_close(true)
        .serve_connection(TokioIo::new(Wire { bytes, size }), service);
    let mut connection = pin!(connection);
    let mut cx = Context::from_waker(Waker::noop());
    while connection.as_mut().poll(&mut cx).is_pending() {}
    served.take()
}

fn keeps_alive(head: &Parts) -> bool {
    head.version == Version::HTTP_11 && !says(&head.headers, "close")
}

fn says(fields: &HeaderMap, word: &str) -> bool {
    let lines = fields.get_all(CONNECTION).into_iter();
    let mut options = lines.flat_map(|line| line.as_bytes().split(|b| *b == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

/// A connection that brings these bytes, so many at once, and then an end, and takes anything.
struct Wire<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl AsyncRead for Wire<'_> {
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

impl AsyncWrite for Wire<'_> {
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
