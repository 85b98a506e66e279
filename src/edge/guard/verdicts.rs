//! What the guard of a connection has to say to the service of the same connection, and back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::edge::violation::Violation;

/// What the guard learnt about a request from its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeadFacts {
    /// The visitor asks for another protocol: the guard waits for [`Verdicts::upgraded`].
    ///
    /// Only such a request may be answered with 101.
    pub(crate) expects_upgrade: bool,
}

/// The service's view of the guard: one verdict for each request, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    /// The heads that hyper has been given and the service has not asked about. hyper reads only when
    /// it needs more, so these are as many as fit into its read buffer.
    heads: VecDeque<Result<HeadFacts, Violation>>,
    upgrade: Upgrade,
    /// The guard, while it waits for a decision about an upgrade.
    guard: Option<Waker>,
}

#[derive(Debug, Default)]
enum Upgrade {
    #[default]
    NotAsked,
    /// A head asks for it that the service has not taken yet.
    Asked,
    /// The service has taken it and is about to decide.
    Open,
    Decided(bool),
}

impl Verdicts {
    /// Take the verdict on the request that hyper has handed to the service.
    ///
    /// Call it once for each request, before anything else; hyper hands requests over in order. A
    /// request that came past the guard is a violation, too.
    pub(crate) fn next(&self) -> Result<HeadFacts, Violation> {
        let mut shared = self.lock();
        let verdict = shared
            .heads
            .pop_front()
            .unwrap_or(Err(Violation::Unexamined));
        if verdict.is_ok_and(|facts| facts.expects_upgrade) {
            shared.upgrade = Upgrade::Open;
        }
        verdict
    }

    /// Say whether the request taken last is upgraded. One that expects it stalls without an answer.
    ///
    /// `true` before the 101 is sent: all that follows is passed on untouched. `false` with any other
    /// answer: what follows is the next request. Only the first answer counts, and none does for a
    /// request that expects no upgrade, so that `false` can be said once at the end of all of them.
    pub(crate) fn upgraded(&self, upgraded: bool) {
        let mut shared = self.lock();
        if matches!(shared.upgrade, Upgrade::Open) {
            shared.upgrade = Upgrade::Decided(upgraded);
            if let Some(waker) = shared.guard.take() {
                waker.wake();
            }
        }
    }

    pub(super) fn push(&self, verdict: Result<HeadFacts, Violation>) {
        let mut shared = self.lock();
        if verdict.is_ok_and(|facts| facts.expects_upgrade) {
            shared.upgrade = Upgrade::Asked;
        }
        shared.heads.push_back(verdict);
    }

    /// Wait for [`Verdicts::upgraded`].
    pub(super) fn poll_upgraded(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut shared = self.lock();
        if let Upgrade::Decided(upgraded) = shared.upgrade {
            shared.upgrade = Upgrade::NotAsked;
            return Poll::Ready(upgraded);
        }
        shared.guard = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing in here panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
