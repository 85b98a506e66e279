//! The guard between a visitor's connection and hyper's HTTP/1.1 server.
//!
//! It reads the bytes that hyper will read, and knows at each of them whether it belongs to a head or
//! to a body. hyper sees a head only when it is whole and obeys the rules; in place of one that does
//! not it sees a small request that asks to close the connection, and the service learns from
//! [`Verdicts`] why. Bytes that pass are never changed, and are copied only when a head arrives in
//! pieces. Rules that HTTP/2 shares are in `validate`.
//!
//! A visitor that shuts down its sending side after a whole request waits for the answer (`nc -N`):
//! hyper hears of that end only when the request has been answered, or when nothing has been written for
//! so long that the visitor may as well be gone.

pub(crate) mod chunked;
#[cfg(all(unix, any(test, fuzzing)))]
pub(crate) mod fuzzing;
pub(crate) mod head;
pub(crate) mod scanner;
pub(crate) mod search;
#[cfg(test)]
mod served;
pub(crate) mod target;
#[cfg(test)]
mod tests;
pub(crate) mod verdicts;
pub(crate) mod write;

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use self::chunked::BodyError;
use self::scanner::{Scanner, Stop};
use self::search::stand_in;
pub(crate) use self::verdicts::Verdicts;
use super::validate::MAX_HEAD;
use super::violation::Violation;
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::lazy_deadline::LazyDeadline;

/// A visitor's connection whose requests are examined before hyper reads them.
pub(crate) struct Guard<S> {
    io: S,
    scanner: Scanner,
    verdicts: Verdicts,
    flow: Flow,
    /// Bytes that hyper has not been given; the first `passed` of them it may have.
    ///
    /// Behind these is the beginning of a head, or what a visitor said while an upgrade is decided.
    held: BytesMut,
    passed: usize,
    /// Informational responses that are being written.
    informing: BytesMut,
    /// Whether hyper has written something since it last had nothing left to write.
    is_writing: bool,
    limits: EdgeLimits,
    /// That of a head.
    deadline: Option<Deadline>,
    /// That of the next request.
    idle: LazyDeadline,
    /// Set once the visitor has shut down its sending side and hyper has not heard of it: that of the
    /// answer.
    half_closed: LazyDeadline,
    /// Set while the answer to a request that was not read to its end is on its way.
    linger: Option<Deadline>,
    /// Whether anything has come since.
    has_discarded: bool,
}

/// What is done with the bytes that come next.
enum Flow {
    /// They are requests.
    Examine,
    /// It depends on the answer to the request before them.
    AwaitUpgrade,
    /// They are not HTTP any more.
    Raw,
    /// They are not read: the connection ends with the answer to a refused request.
    Refused,
    /// They cannot be told apart: the connection ends in an error.
    Broken(BodyError),
}

impl<S> Guard<S> {
    /// Guard a fresh connection.
    ///
    /// The time of a head runs from its first byte, and for the first head from now. A visitor who has
    /// sent a part of it is answered with 408, one who has said nothing is seen to leave.
    pub(crate) fn new(io: S, limits: &EdgeLimits) -> (Self, Verdicts) {
        let verdicts = Verdicts::default();
        let guard = Self {
            io,
            scanner: Scanner::new(),
            verdicts: verdicts.clone(),
            flow: Flow::Examine,
            held: BytesMut::new(),
            passed: 0,
            informing: BytesMut::new(),
            is_writing: false,
            limits: *limits,
            deadline: Some(Deadline::after(limits.head)),
            idle: LazyDeadline::default(),
            half_closed: LazyDeadline::default(),
            linger: None,
            has_discarded: false,
        };
        (guard, verdicts)
    }

    /// Set or clear the deadline of a head, now that `passed` bytes in front of it are done with.
    fn await_head(&mut self, passed: usize, rest: usize) {
        if rest == 0 {
            self.deadline = None;
        } else if passed > 0 || self.deadline.is_none() {
            self.deadline = Some(Deadline::after(self.limits.head));
        }
    }

    /// Examine what is held, all of which begins with a new or a known part of a head.
    fn examine_held(&mut self) {
        let (passed, stop) = self.scanner.scan(&self.held, &self.verdicts);
        self.passed = passed;
        match stop {
            Stop::Incomplete => self.await_head(passed, self.held.len() - passed),
            Stop::Upgrade => self.await_upgrade(),
            Stop::Refused(stand_in) => {
                self.held.truncate(passed);
                self.refuse(&stand_in);
            }
            Stop::Broken(err) => {
                self.held.truncate(passed);
                self.flow = Flow::Broken(err);
            }
        }
    }

    /// Examine what was read into hyper's own buffer; return how many of the bytes may stay there.
    fn examine_fresh(&mut self, fresh: &[u8]) -> usize {
        let (passed, stop) = self.scanner.scan(fresh, &self.verdicts);
        let rest = &fresh[passed..];
        match stop {
            Stop::Incomplete => {
                self.held.extend_from_slice(rest);
                self.await_head(passed, rest.len());
            }
            Stop::Upgrade => {
                self.held.extend_from_slice(rest);
                self.await_upgrade();
            }
            Stop::Refused(stand_in) => self.refuse(&stand_in),
            Stop::Broken(err) => self.flow = Flow::Broken(err),
        }
        passed
    }

    fn await_upgrade(&mut self) {
        self.deadline = None;
        self.flow = Flow::AwaitUpgrade;
    }

    fn refuse(&mut self, stand_in: &[u8]) {
        self.held.extend_from_slice(stand_in);
        self.passed = self.held.len();
        self.deadline = None;
        self.flow = Flow::Refused;
    }

    /// Give hyper what it may have of the bytes that are held.
    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.passed.min(buf.remaining());
        buf.put_slice(&self.held[..length]);
        self.held.advance(length);
        self.passed -= length;
        if self.held.is_empty() {
            // Heads in pieces are rare, and an idle connection should not remember one.
            self.held = BytesMut::new();
        }
    }

    /// Wait for the head's deadline; true if the visitor is now refused, false if it has gone silent.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(deadline) = &mut self.deadline else {
            return self.poll_idle(cx).map(|()| false);
        };
        ready!(deadline.poll(cx));
        if self.held.is_empty() {
            return Poll::Ready(false);
        }
        self.verdicts.push(Err(Violation::HeadTooSlow));
        let stand_in = stand_in(&self.held);
        self.held.clear();
        self.refuse(&stand_in);
        Poll::Ready(true)
    }

    /// Wait until there has been no request for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_busy() || self.scanner.is_in_body() {
            self.idle.clear();
            return Poll::Pending;
        }
        if !self.idle.is_set() {
            self.idle.set(Instant::now() + self.limits.idle);
        }
        self.idle.poll(cx)
    }

    /// Report whether an answer is still being made or written.
    fn is_busy(&self) -> bool {
        self.is_writing || self.verdicts.is_answering()
    }

    /// Take the end of what the visitor sends for the end of the connection, unless it may be waiting for
    /// the answer to a whole request.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_busy() || self.scanner.is_in_body() {
            return Poll::Ready(());
        }
        self.half_close();
        self.poll_half_closed(cx)
    }

    /// Give the visitor time for the next bytes of its answer.
    fn half_close(&mut self) {
        let limit = self.limits.half_closed;
        self.half_closed.set(Instant::now() + limit);
    }

    /// Wait until nothing more is to be written to a visitor that has shut down its sending side, or for
    /// too long nothing has been: it may have gone.
    fn poll_half_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // What is being written has a limit of its own; `poll_flush` comes back here.
        match (self.is_writing, self.is_busy()) {
            (true, _) => Poll::Pending,
            (false, true) => self.half_closed.poll(cx),
            (false, false) => Poll::Ready(()),
        }
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    /// Read more of what is held, up to `limit` bytes of it; nought bytes are the end.
    fn poll_hold(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<usize>> {
        let room = limit.saturating_sub(self.held.len());
        let mut held = (&mut self.held).limit(room);
        // Dropping this future loses nothing: it reads at most once.
        pin!(self.io.read_buf(&mut held)).poll(cx)
    }

    /// Wait until the service has decided about an upgrade; `None` if the visitor left before.
    fn poll_upgraded(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<bool>>> {
        loop {
            if let Poll::Ready(upgraded) = self.verdicts.poll_upgraded(cx) {
                return Poll::Ready(Ok(Some(upgraded)));
            }
            if self.half_closed.is_set() {
                return self.poll_half_closed(cx).map(|()| Ok(None));
            }
            if self.held.len() >= EARLY_BYTES {
                return Poll::Pending;
            }
            // Reading is the only way to notice that the visitor leaves.
            if ready!(self.poll_hold(cx, EARLY_BYTES))? == 0 {
                return self.poll_end(cx).map(|()| Ok(None));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.passed > 0 {
                this.hand_over(buf);
                return Poll::Ready(Ok(()));
            }
            let read = match &this.flow {
                Flow::Examine if this.half_closed.is_set() => {
                    return this.poll_half_closed(cx).map(Ok);
                }
                Flow::Examine if this.held.is_empty() => {
                    let before = buf.filled().len();
                    match Pin::new(&mut this.io).poll_read(cx, buf) {
                        Poll::Ready(Ok(())) if buf.filled().len() == before => {
                            return this.poll_end(cx).map(Ok);
                        }
                        Poll::Ready(Err(err)) => {
                            // Of TLS without a word (RFC 8446 §6.1). A whole request is not cut short.
                            if err.kind() == io::ErrorKind::UnexpectedEof {
                                ready!(this.poll_end(cx));
                            }
                            return Poll::Ready(Err(err));
                        }
                        Poll::Ready(Ok(())) => {
                            this.idle.clear();
                            let passed = this.examine_fresh(&buf.filled()[before..]);
                            buf.set_filled(before + passed);
                            if passed > 0 {
                                return Poll::Ready(Ok(()));
                            }
                            continue;
                        }
                        Poll::Pending => Poll::Pending,
                    }
                }
                // A head is never held at its limit: it would have been refused.
                Flow::Examine => this.poll_hold(cx, MAX_HEAD)?,
                Flow::AwaitUpgrade => {
                    match ready!(this.poll_upgraded(cx))? {
                        None => return Poll::Ready(Ok(())),
                        Some(true) => this.flow = Flow::Raw,
                        Some(false) => {
                            this.flow = Flow::Examine;
                            this.examine_held();
                        }
                    }
                    continue;
                }
                Flow::Raw if this.held.is_empty() && this.half_closed.is_set() => {
                    return Poll::Ready(Ok(()));
                }
                Flow::Raw if this.held.is_empty() => {
                    return Pin::new(&mut this.io).poll_read(cx, buf);
                }
                Flow::Raw => {
                    this.passed = this.held.len();
                    continue;
                }
                // Neither bytes nor an end: hyper is about to write the answer and then to close.
                Flow::Refused => return Poll::Pending,
                Flow::Broken(err) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, *err)));
                }
            };
            match read {
                Poll::Ready(0) => return Poll::Ready(Ok(())),
                Poll::Ready(_) => this.examine_held(),
                Poll::Pending => {
                    if !ready!(this.poll_deadline(cx)) {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

/// A point in time; the timer is made when somebody waits for it.
struct Deadline {
    at: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    fn after(time: Duration) -> Self {
        Self {
            at: Instant::now() + time,
            timer: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(self.at)));
        timer.as_mut().poll(cx)
    }
}

/// Bytes that a visitor may send behind a request for an upgrade before it is decided: a few eager
/// WebSocket messages. What is more waits in the kernel.
const EARLY_BYTES: usize = 4 << 10;
