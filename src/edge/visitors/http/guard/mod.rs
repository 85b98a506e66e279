//! The guard between a visitor's connection and hyper's HTTP/1.1 server: it prevents request
//! smuggling.
//!
//! It reads the bytes before hyper does, and knows of each whether it belongs to a head or to a
//! body. hyper sees a head only when it is complete and obeys the rules; in place of one that does
//! not it sees a small substitute request that asks to close the connection, and the service learns
//! the reason from [`Verdicts`]. Bytes that pass are never changed, and are copied only when a head
//! arrives in pieces. Rules that HTTP/2 shares are in `validate`.
//!
//! A visitor that shuts down its sending side after a complete request waits for the response (`nc
//! -N`): hyper sees that end only when the request has been answered, or when nothing has been
//! written for so long that the visitor may as well be gone.

pub(crate) mod chunked;
#[cfg(all(unix, any(test, fuzzing)))]
pub(crate) mod fuzzing;
pub(crate) mod head;
pub(crate) mod scanner;
pub(crate) mod search;
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

use self::chunked::FramingError;
use self::scanner::{Scanner, Stop};
use self::search::substitute;
pub(crate) use self::verdicts::Verdicts;
use super::head_limits::MAX_HEAD;
use super::violation::Violation;
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::lazy_deadline::LazyDeadline;

/// A visitor's connection whose requests are examined before hyper reads them.
pub(crate) struct Guard<S> {
    io: S,
    scanner: Scanner,
    verdicts: Verdicts,
    input: InputMode,
    /// Bytes that hyper has not been given; it may have the first `passed` of them.
    ///
    /// The rest is the beginning of a head, or what a visitor sent while an upgrade is being
    /// decided.
    held: BytesMut,
    passed: usize,
    /// Informational responses that are being written.
    informational: BytesMut,
    /// hyper has written something since it last had nothing left to write.
    is_writing: bool,
    limits: EdgeLimits,
    /// Deadline of the head that is arriving.
    deadline: Option<Deadline>,
    /// Deadline of the next request, while the connection is idle.
    idle: LazyDeadline,
    /// Set once the visitor has shut down its sending side without hyper knowing: the deadline of
    /// the next bytes of the response.
    half_closed: LazyDeadline,
    /// Deadline of the lingering close. Set once our sending side is shut down.
    linger: Option<Deadline>,
    /// Input has been discarded since then.
    has_discarded: bool,
}

/// Treatment of the bytes that come next.
enum InputMode {
    /// They are requests.
    Examine,
    /// Undecided until the request before them, which asks for an upgrade, is answered.
    AwaitUpgrade,
    /// They are not HTTP any more.
    Raw,
    /// They are not read: the connection ends with the response to a refused request.
    Refused,
    /// Their framing is broken: the connection ends in an error.
    Broken(FramingError),
}

impl<S> Guard<S> {
    /// Guard a new connection.
    ///
    /// The time limit of a head runs from its first byte, and that of the first head from now. A
    /// visitor that has sent a part of a head is answered with 408; the connection of one that has
    /// sent nothing is closed.
    pub(crate) fn new(io: S, limits: &EdgeLimits) -> (Self, Verdicts) {
        let verdicts = Verdicts::default();
        let guard = Self {
            io,
            scanner: Scanner::new(),
            verdicts: verdicts.clone(),
            input: InputMode::Examine,
            held: BytesMut::new(),
            passed: 0,
            informational: BytesMut::new(),
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

    /// Set or clear the deadline of a head, after `passed` bytes in front of it have been handled
    /// and `rest` bytes of it have arrived.
    fn await_head(&mut self, passed: usize, rest: usize) {
        if rest == 0 {
            self.deadline = None;
        } else if passed > 0 || self.deadline.is_none() {
            self.deadline = Some(Deadline::after(self.limits.head));
        }
    }

    /// Examine the held bytes, which begin with a new or a partly examined head.
    fn examine_held(&mut self) {
        let (passed, stop) = self.scanner.scan(&self.held, &self.verdicts);
        self.passed = passed;
        match stop {
            Stop::Incomplete => self.await_head(passed, self.held.len() - passed),
            Stop::Upgrade => self.await_upgrade(),
            Stop::Refused(substitute) => {
                self.held.truncate(passed);
                self.refuse(&substitute);
            }
            Stop::Broken(err) => {
                self.held.truncate(passed);
                self.input = InputMode::Broken(err);
            }
        }
    }

    /// Examine bytes that were read into hyper's own buffer; return how many of them may stay
    /// there.
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
            Stop::Refused(substitute) => self.refuse(&substitute),
            Stop::Broken(err) => self.input = InputMode::Broken(err),
        }
        passed
    }

    fn await_upgrade(&mut self) {
        self.deadline = None;
        self.input = InputMode::AwaitUpgrade;
    }

    fn refuse(&mut self, substitute: &[u8]) {
        self.held.extend_from_slice(substitute);
        self.passed = self.held.len();
        self.deadline = None;
        self.input = InputMode::Refused;
    }

    /// Give hyper the held bytes that it may have.
    fn deliver_held(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.passed.min(buf.remaining());
        buf.put_slice(&self.held[..length]);
        self.held.advance(length);
        self.passed -= length;
        if self.held.is_empty() {
            // Heads in pieces are rare, and an idle connection should not keep a buffer for them.
            self.held = BytesMut::new();
        }
    }

    /// Wait for the deadline of the head, or of the next request. Returns `true` if the request is
    /// now refused, `false` if the connection must be closed silently.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(deadline) = &mut self.deadline else {
            return self.poll_idle(cx).map(|()| false);
        };
        ready!(deadline.poll(cx));
        if self.held.is_empty() {
            return Poll::Ready(false);
        }
        self.verdicts.push(Err(Violation::HeadTooSlow));
        let substitute = substitute(&self.held);
        self.held.clear();
        self.refuse(&substitute);
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

    /// Report whether a response is being made or written.
    fn is_busy(&self) -> bool {
        self.is_writing || self.verdicts.is_answering()
    }

    /// Treat the end of the visitor's data as the end of the connection, unless the visitor may be
    /// waiting for the response to a complete request.
    fn poll_end_of_input(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_busy() || self.scanner.is_in_body() {
            return Poll::Ready(());
        }
        self.half_close();
        self.poll_half_closed(cx)
    }

    /// Restart the deadline of the next bytes of the response.
    fn half_close(&mut self) {
        let limit = self.limits.half_closed;
        self.half_closed.set(Instant::now() + limit);
    }

    /// Wait until nothing more is to be written to a visitor that has shut down its sending side,
    /// or until nothing has been written for too long: it may be gone.
    fn poll_half_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A write under way has a limit of its own; `poll_flush` returns here.
        match (self.is_writing, self.is_busy()) {
            (true, _) => Poll::Pending,
            (false, true) => self.half_closed.poll(cx),
            (false, false) => Poll::Ready(()),
        }
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    /// Read more bytes to hold, up to `limit` in all. Returns zero at the end of the input.
    fn poll_read_held(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<usize>> {
        let room = limit.saturating_sub(self.held.len());
        let mut held = (&mut self.held).limit(room);
        // Dropping this future loses nothing: it reads at most once.
        pin!(self.io.read_buf(&mut held)).poll(cx)
    }

    /// Wait until the service has decided about an upgrade; `None` if the visitor left before that.
    fn poll_upgraded(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<bool>>> {
        loop {
            if let Poll::Ready(upgraded) = self.verdicts.poll_upgraded(cx) {
                return Poll::Ready(Ok(Some(upgraded)));
            }
            if self.half_closed.is_set() {
                return self.poll_half_closed(cx).map(|()| Ok(None));
            }
            if self.held.len() >= MAX_EARLY_BYTES {
                return Poll::Pending;
            }
            // Reading is the only way to notice that the visitor leaves.
            if ready!(self.poll_read_held(cx, MAX_EARLY_BYTES))? == 0 {
                return self.poll_end_of_input(cx).map(|()| Ok(None));
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
                this.deliver_held(buf);
                return Poll::Ready(Ok(()));
            }
            let read = match &this.input {
                InputMode::Examine if this.half_closed.is_set() => {
                    return this.poll_half_closed(cx).map(Ok);
                }
                InputMode::Examine if this.held.is_empty() => {
                    let before = buf.filled().len();
                    match Pin::new(&mut this.io).poll_read(cx, buf) {
                        Poll::Ready(Ok(())) if buf.filled().len() == before => {
                            return this.poll_end_of_input(cx).map(Ok);
                        }
                        Poll::Ready(Err(err)) => {
                            // The TLS stream ended without a close_notify (RFC 8446 §6.1). A
                            // complete request is served nevertheless.
                            if err.kind() == io::ErrorKind::UnexpectedEof {
                                ready!(this.poll_end_of_input(cx));
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
                InputMode::Examine => this.poll_read_held(cx, MAX_HEAD)?,
                InputMode::AwaitUpgrade => {
                    match ready!(this.poll_upgraded(cx))? {
                        None => return Poll::Ready(Ok(())),
                        Some(true) => this.input = InputMode::Raw,
                        Some(false) => {
                            this.input = InputMode::Examine;
                            this.examine_held();
                        }
                    }
                    continue;
                }
                InputMode::Raw if this.held.is_empty() && this.half_closed.is_set() => {
                    return Poll::Ready(Ok(()));
                }
                InputMode::Raw if this.held.is_empty() => {
                    return Pin::new(&mut this.io).poll_read(cx, buf);
                }
                InputMode::Raw => {
                    this.passed = this.held.len();
                    continue;
                }
                // Return neither bytes nor an end: hyper is about to write the response and then to
                // close.
                InputMode::Refused => return Poll::Pending,
                InputMode::Broken(err) => {
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

/// A deadline whose timer is created when it is first waited for.
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

/// Bytes accepted behind an upgrade request before it is decided: a few eager WebSocket messages.
/// Any more wait in the kernel.
const MAX_EARLY_BYTES: usize = 4 << 10;
