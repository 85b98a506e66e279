//! The HTTP/1.1 connections to one upstream: those that are idle, and how many it serves at once.
//!
//! A server with one thread serves one connection at a time, and an idle one has its thread: whoever comes on a new
//! connection waits until the idle one is closed. So nothing is kept idle that an upstream cannot afford: it is
//! known how many connections at once it has been seen to serve, and who waits on a new one for longer than
//! [`NEWCOMER`] has idle ones beyond that number closed.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Connections of a kind, of which some are idle.
pub struct Connections<C> {
    state: Mutex<State<C>>,
    /// Wakes who would use an idle connection.
    kept: Notify,
    /// Wakes who would have it closed.
    kept_beside: Notify,
    /// How long one is idle before it is closed, if the upstream is not known to serve another beside it.
    alone: Duration,
}

struct State<C> {
    idle: Vec<Idle<C>>,
    /// The next connection's number: they are accepted in this order.
    next: u64,
    open: BTreeSet<u64>,
    /// The most connections that the upstream has been seen to serve at once.
    served_at_once: usize,
    /// Who waits for the first answer on a new connection, and has waited for long.
    overdue: usize,
    /// Whether somebody closes what has been idle for long.
    watched: bool,
}

struct Idle<C> {
    connection: C,
    since: Instant,
}

/// What can be kept idle.
pub trait Keep: Send + 'static {
    /// Report whether it can be used again.
    fn is_sound(&self) -> bool;
}

impl<C: Keep> Connections<C> {
    /// Have none yet.
    pub fn new(alone: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                idle: Vec::new(),
                next: 0,
                open: BTreeSet::new(),
                served_at_once: 1,
                overdue: 0,
                watched: false,
            }),
            kept: Notify::new(),
            kept_beside: Notify::new(),
            alone,
        })
    }

    /// Count a connection that has been made.
    pub fn opened(self: &Arc<Self>) -> Open<C> {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.open.insert(number);
        Open {
            connections: Arc::downgrade(self),
            number,
        }
    }

    /// Take an idle connection: the one used last, which is the least likely to have been closed at the other end.
    pub fn take(&self) -> Option<C> {
        // Dropped when the lock is free, which they take.
        let mut unsound = Vec::new();
        let mut state = self.state();
        // Those are to be closed, or whoever waits for that would wait behind everybody who comes later.
        if state.overdue > 0 && state.excess() > 0 {
            return None;
        }
        let limit = self.limit(&state);
        while let Some(idle) = state.idle.pop() {
            if idle.connection.is_sound() && idle.since.elapsed() < limit {
                return Some(idle.connection);
            }
            unsound.push(idle);
        }
        drop(state);
        None
    }

    /// Wait for an idle connection. May be cancelled.
    pub async fn next(&self) -> C {
        loop {
            let kept = self.kept.notified();
            if let Some(connection) = self.take() {
                return connection;
            }
            kept.await;
        }
    }

    /// Keep a connection that has nothing to do.
    pub fn keep(self: &Arc<Self>, connection: C) {
        let mut state = self.state();
        if state.idle.len() >= MOST_IDLE {
            drop(state);
            return;
        }
        state.idle.push(Idle {
            connection,
            since: Instant::now(),
        });
        if state.overdue > 0 {
            self.kept_beside.notify_waiters();
        }
        let unwatched = !std::mem::replace(&mut state.watched, true);
        drop(state);
        self.kept.notify_one();
        if unwatched {
            // It ends when nothing is idle, or with the upstream's pool.
            tokio::spawn(watch(Arc::downgrade(self)));
        }
    }

    /// Wait for the first answer on a new connection, and see to it that no idle one is in its way.
    pub async fn first_answer<T>(&self, open: &Open<C>, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        let answered = match timeout(NEWCOMER, &mut answer).await {
            Ok(answered) => answered,
            Err(_) => {
                let overdue = Overdue::new(self);
                tokio::select! {
                    biased;
                    answered = &mut answer => answered,
                    never = overdue.make_room() => match never {},
                }
            }
        };
        self.served(open);
        answered
    }

    /// Note that a connection is served: so are those that were made before it.
    fn served(&self, open: &Open<C>) {
        let mut state = self.state();
        let at_once = state.open.range(..=open.number).count();
        state.served_at_once = state.served_at_once.max(at_once);
    }

    /// Close idle connections that the upstream may not be able to serve beside the others, and that have been
    /// idle for long enough to see whether it is. Returns whether others soon will have been.
    fn make_room(&self) -> bool {
        let mut state = self.state();
        let settled = |idle: &&Idle<C>| idle.since.elapsed() >= SETTLED;
        let settled = state.idle.iter().take_while(settled).count();
        let most = state.excess().min(settled);
        let closed: Vec<_> = state.idle.drain(..most).collect();
        let others = state.excess() > most && !state.idle.is_empty();
        drop(state);
        drop(closed);
        others
    }

    fn close_idle(&self) {
        let closed = std::mem::take(&mut self.state().idle);
        drop(closed);
    }

    /// Close what has been idle for long, and return when there will be more to close.
    fn close_expired(&self) -> Option<Instant> {
        let mut state = self.state();
        let limit = self.limit(&state);
        let expired = |idle: &&Idle<C>| idle.since.elapsed() >= limit;
        let expired = state.idle.iter().take_while(expired).count();
        let closed: Vec<_> = state.idle.drain(..expired).collect();
        let next = state.idle.first().map(|idle| idle.since + limit);
        state.watched = next.is_some();
        drop(state);
        drop(closed);
        next
    }

    fn limit(&self, state: &State<C>) -> Duration {
        match state.served_at_once {
            ..=1 => self.alone,
            _ => IDLE,
        }
    }
}

impl<C> Connections<C> {
    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> State<C> {
    /// How many more connections are open than the upstream is known to serve at once.
    fn excess(&self) -> usize {
        self.open.len().saturating_sub(self.served_at_once)
    }
}

/// A connection that is counted, until this is dropped with it.
pub struct Open<C> {
    connections: Weak<Connections<C>>,
    number: u64,
}

impl<C> Drop for Open<C> {
    fn drop(&mut self) {
        if let Some(connections) = self.connections.upgrade() {
            connections.state().open.remove(&self.number);
        }
    }
}

/// Somebody who has waited for long on a new connection.
struct Overdue<'a, C: Keep>(&'a Connections<C>);

impl<'a, C: Keep> Overdue<'a, C> {
    fn new(connections: &'a Connections<C>) -> Self {
        connections.state().overdue += 1;
        Self(connections)
    }

    /// Close idle connections as they come, and after a while all of them, once: what an upstream served at once in
    /// the past may be more than it does now.
    async fn make_room(&self) -> Infallible {
        let mut anyway = pin!(sleep(ANYWAY));
        loop {
            let kept = self.0.kept_beside.notified();
            let others = self.0.make_room();
            tokio::select! {
                () = kept => {}
                () = sleep(SETTLED), if others => {}
                () = &mut anyway, if !anyway.is_elapsed() => self.0.close_idle(),
            }
        }
    }
}

impl<C: Keep> Drop for Overdue<'_, C> {
    fn drop(&mut self) {
        self.0.state().overdue -= 1;
        // What was not to be taken may be now.
        self.0.kept.notify_waiters();
    }
}

/// Close connections that have been idle for long.
async fn watch<C: Keep>(connections: Weak<Connections<C>>) {
    loop {
        let next = connections.upgrade().and_then(|all| all.close_expired());
        match next {
            Some(next) => sleep_until(next).await,
            None => return,
        }
    }
}

/// Shorter than what common servers allow (Node.js closes after 5 s), so that few requests meet a
/// connection that is just being closed.
const IDLE: Duration = Duration::from_secs(4);

/// The same for a server that may have one thread: others wait for it who know nothing of the tunnel. A page loads
/// what belongs to it within this.
pub const IDLE_ALONE: Duration = Duration::from_secs(1);

/// The same for a server that has TLS, and will have more than one thread: connections cost it much more.
pub const IDLE_TLS: Duration = IDLE;

/// Idle connections that are kept: as many as conversations are usual at once.
const MOST_IDLE: usize = 256;

/// How long the first answer on a new connection may take before idle ones make room. To make them again costs a
/// hundredth of it.
const NEWCOMER: Duration = Duration::from_millis(50);

/// How long one is idle before it makes room: two answers that come at once show that they were served at once.
const SETTLED: Duration = Duration::from_millis(5);

/// When idle connections make room whatever the upstream was able to do in the past.
const ANYWAY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that is always sound.
    struct Sound(Open<Sound>);

    impl Keep for Sound {
        fn is_sound(&self) -> bool {
            true
        }
    }

    fn connections() -> Arc<Connections<Sound>> {
        Connections::new(IDLE_ALONE)
    }

    fn open(connections: &Connections<Sound>) -> usize {
        connections.state().open.len()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_by_itself() {
        let connections = connections();
        connections.keep(Sound(connections.opened()));

        sleep(IDLE_ALONE - SETTLED).await;
        assert_eq!(open(&connections), 1);
        sleep(SETTLED * 2).await;

        assert_eq!(open(&connections), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_makes_room_for_who_waits_on_a_new_one() {
        let connections = connections();
        connections.keep(Sound(connections.opened()));
        let new = Sound(connections.opened());

        // As a server with one thread does.
        let answer = async {
            while open(&connections) > 1 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let started = Instant::now();
        connections.first_answer(&new.0, answer).await;

        assert!(started.elapsed() < NEWCOMER * 2, "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_becomes_idle_makes_room_too_and_nobody_else_takes_it() {
        let connections = connections();
        let busy = Sound(connections.opened());
        let new = Sound(connections.opened());

        let answer = async {
            sleep(NEWCOMER * 2).await;
            connections.keep(busy);
            assert!(connections.take().is_none());
            while open(&connections) > 1 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let started = Instant::now();
        connections.first_answer(&new.0, answer).await;

        assert!(started.elapsed() < NEWCOMER * 2 + SETTLED * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_serves_several_at_once_keeps_its_idle_connections() {
        let connections = connections();
        connections.keep(Sound(connections.opened()));
        let quick = Sound(connections.opened());
        connections.first_answer(&quick.0, async {}).await;
        connections.keep(quick);
        drop(connections.take());

        let slow = Sound(connections.opened());
        connections.first_answer(&slow.0, sleep(NEWCOMER * 3)).await;

        assert!(connections.take().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_gets_a_connection_that_becomes_idle() {
        let connections = connections();
        let busy = Sound(connections.opened());

        let (_, ()) = tokio::join!(connections.next(), async {
            sleep(NEWCOMER).await;
            connections.keep(busy);
        });
    }
}
