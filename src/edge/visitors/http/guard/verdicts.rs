//! The channel between the guard of a connection and the service of the same connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use ::http::header::CONTENT_LENGTH;
use ::http::{HeaderMap, StatusCode};
use bytes::BytesMut;
use tracing::debug;

use crate::edge::visitors::http::head_limits::MAX_HEAD;
use crate::edge::visitors::http::violation::Violation;

/// Facts about a request that the guard learnt from its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeadFacts {
    /// The visitor asks for an upgrade: the guard waits for [`Verdicts::upgraded`].
    ///
    /// Only such a request may be answered with 101.
    pub(crate) expects_upgrade: bool,
    /// The visitor speaks HTTP/1.1 and therefore understands informational responses (RFC 9110
    /// §15.2).
    pub(crate) takes_informational: bool,
}

/// The service's view of the guard: one verdict for each request, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    /// Verdicts on heads that hyper has been given and the service has not asked about. hyper reads
    /// only when it needs more, so there are at most as many as fit into its read buffer.
    heads: VecDeque<Result<HeadFacts, Violation>>,
    informational: Informational,
    upgrade: Upgrade,
    /// Wakes the guard, while it waits for a decision about an upgrade.
    guard: Option<Waker>,
    /// Number of requests whose responses are not complete.
    answering: usize,
}

/// Informational responses to the request that was taken last.
#[derive(Debug, Default)]
struct Informational {
    allowed: bool,
    /// hyper has unsent bytes of an earlier response.
    blocked: bool,
    waiting: BytesMut,
}

#[derive(Debug, Default)]
enum Upgrade {
    #[default]
    NotAsked,
    /// A head asks for an upgrade, and the service has not taken it yet.
    Asked,
    /// The service has taken it and is about to decide.
    Open,
    Decided(bool),
}

impl Verdicts {
    /// Take the verdict on the request that hyper has handed to the service.
    ///
    /// Call this once for each request, before anything else; hyper hands requests over in order. A
    /// request without a verdict is a violation, too.
    pub(crate) fn next(&self) -> Result<HeadFacts, Violation> {
        let mut shared = self.lock();
        let verdict = shared
            .heads
            .pop_front()
            .unwrap_or(Err(Violation::Unexamined));
        if verdict.is_ok_and(|facts| facts.expects_upgrade) {
            shared.upgrade = Upgrade::Open;
        }
        shared.informational.allowed = verdict.is_ok_and(|facts| facts.takes_informational);
        verdict
    }

    /// Send an informational response, such as 103, to the request taken last; hyper has no way to.
    ///
    /// Call this from the service's future, which hyper awaits before it writes the final response.
    /// A response that cannot be sent is dropped, as any recipient may do with it: to HTTP/1.0,
    /// behind an earlier response that the visitor is slow to read, or beyond the size of a head.
    /// So are 100, which hyper sends by itself when the body is first read, and 101, which is
    /// final.
    pub(crate) fn send_informational(&self, status: StatusCode, fields: &HeaderMap) {
        let own = matches!(
            status,
            StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS
        );
        let informational = &mut self.lock().informational;
        if !status.is_informational() || own || !informational.allowed || informational.blocked {
            return debug!(%status, "dropping an informational response");
        }
        let before = informational.waiting.len();
        write_head(&mut informational.waiting, status, fields);
        if informational.waiting.len() > MAX_HEAD {
            informational.waiting.truncate(before);
            debug!(%status, "dropping an informational response");
        }
    }

    /// Take the informational responses that are to be written now.
    pub(crate) fn take_informational(&self) -> BytesMut {
        std::mem::take(&mut self.lock().informational.waiting)
    }

    /// Record whether hyper has bytes that are not written, so that nothing may come between.
    pub(crate) fn block_informational(&self, blocked: bool) {
        self.lock().informational.blocked = blocked;
    }

    /// Record whether the request taken last is upgraded. One that expects it stalls until this is
    /// called.
    ///
    /// Call it with `true` before the 101 is sent: everything that follows is passed on unchanged.
    /// Call it with `false` before any other response: what follows is the next request. Only the
    /// first call counts, and none does for a request that expects no upgrade, so that `false` can
    /// be passed once at the end of each.
    pub(crate) fn upgraded(&self, upgraded: bool) {
        let mut shared = self.lock();
        if matches!(shared.upgrade, Upgrade::Open) {
            shared.upgrade = Upgrade::Decided(upgraded);
            if let Some(waker) = shared.guard.take() {
                waker.wake();
            }
        }
    }

    /// Record that a request is being answered, until the returned value is dropped. Meanwhile the
    /// end of the visitor's data is not the end of the connection.
    pub(crate) fn answering(&self) -> Answering {
        self.lock().answering += 1;
        Answering(self.clone())
    }

    /// Report whether a request is being answered.
    pub(crate) fn is_answering(&self) -> bool {
        self.lock().answering > 0
    }

    /// Add the verdict on the next head.
    pub(crate) fn push(&self, verdict: Result<HeadFacts, Violation>) {
        let mut shared = self.lock();
        if verdict.is_ok_and(|facts| facts.expects_upgrade) {
            shared.upgrade = Upgrade::Asked;
        }
        shared.heads.push_back(verdict);
    }

    /// Wait for [`Verdicts::upgraded`].
    pub(crate) fn poll_upgraded(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut shared = self.lock();
        if let Upgrade::Decided(upgraded) = shared.upgrade {
            shared.upgrade = Upgrade::NotAsked;
            return Poll::Ready(upgraded);
        }
        shared.guard = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // No code here panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Answering(Verdicts);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.lock().answering -= 1;
    }
}

/// Write an informational response, which never has a length (RFC 9110 §8.6).
fn write_head(out: &mut BytesMut, status: StatusCode, fields: &HeaderMap) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in fields.iter().filter(|(name, _)| **name != CONTENT_LENGTH) {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}
