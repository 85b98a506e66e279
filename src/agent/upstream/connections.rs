//! The HTTP/1.1 connections to one upstream: the idle ones, and the number that the upstream serves concurrently.
//!
//! A single-threaded server serves one connection at a time, and an idle keep-alive connection occupies its thread:
//! a request on a new connection waits until the idle one is closed. So the pool keeps no more connections idle than
//! the upstream can afford: it tracks how many connections the upstream has served concurrently, and when a new
//! connection has waited for its first response for longer than [`FIRST_RESPONSE_WAIT`], idle connections beyond that
//! number are closed.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The connections to one upstream, some of them idle.
pub struct Connections<C> {
    state: Mutex<State<C>>,
    /// Wakes requests that wait for an idle connection.
    idle_added: Notify,
    /// Wakes overdue requests, which may close it instead.
    surplus_added: Notify,
    /// The idle timeout while the upstream is not known to serve two connections concurrently.
    single_timeout: Duration,
}

struct State<C> {
    idle: Vec<Idle<C>>,
    /// The number of the next connection. Servers accept connections in this order.
    next: u64,
    /// The numbers of the open connections.
    open: BTreeSet<u64>,
    /// The most connections that the upstream has been seen to serve concurrently.
    concurrency: usize,
    /// Requests that have waited longer than [`FIRST_RESPONSE_WAIT`] on a new connection.
    overdue: usize,
    /// A task is running that closes connections after the idle timeout.
    sweeping: bool,
}

struct Idle<C> {
    connection: C,
    since: Instant,
}

/// A connection that can be kept idle for reuse.
pub trait Reusable: Send + 'static {
    /// Report whether the connection can take another request.
    fn is_reusable(&self) -> bool;
}

impl<C: Reusable> Connections<C> {
    /// Create an empty set.
    pub fn new(single_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                idle: Vec::new(),
                next: 0,
                open: BTreeSet::new(),
                concurrency: 1,
                overdue: 0,
                sweeping: false,
            }),
            idle_added: Notify::new(),
            surplus_added: Notify::new(),
            single_timeout,
        })
    }

    /// Count a new connection until the returned guard is dropped.
    pub fn opened(self: &Arc<Self>) -> OpenConnection<C> {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.open.insert(number);
        OpenConnection {
            connections: Arc::downgrade(self),
            number,
        }
    }

    /// Take the idle connection that was used last: the upstream is the least likely to have closed it.
    pub fn take(&self) -> Option<C> {
        // Dropped after the lock is released: their guards take it.
        let mut unusable = Vec::new();
        let mut state = self.state();
        // These are about to be closed. Reusing them would keep an overdue request waiting behind later ones.
        if state.overdue > 0 && state.excess() > 0 {
            return None;
        }
        let limit = self.idle_timeout(&state);
        while let Some(idle) = state.idle.pop() {
            if idle.connection.is_reusable() && idle.since.elapsed() < limit {
                return Some(idle.connection);
            }
            unusable.push(idle);
        }
        drop(state);
        None
    }

    /// Wait for an idle connection. Cancel safe.
    pub async fn next(&self) -> C {
        loop {
            let added = self.idle_added.notified();
            if let Some(connection) = self.take() {
                return connection;
            }
            added.await;
        }
    }

    /// Store an idle connection for reuse. It is closed if [`MAX_IDLE`] are stored already.
    pub fn store(self: &Arc<Self>, connection: C) {
        let mut state = self.state();
        if state.idle.len() >= MAX_IDLE {
            drop(state);
            return;
        }
        state.idle.push(Idle {
            connection,
            since: Instant::now(),
        });
        if state.overdue > 0 {
            self.surplus_added.notify_waiters();
        }
        let start_sweep = !std::mem::replace(&mut state.sweeping, true);
        drop(state);
        self.idle_added.notify_one();
        if start_sweep {
            // The task ends when no connection is idle, or when the pool is dropped.
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Wait for the first response on a new connection. If it is overdue, close idle connections that may block it.
    pub async fn first_response<T>(
        &self,
        open: &OpenConnection<C>,
        response: impl Future<Output = T>,
    ) -> T {
        let mut response = pin!(response);
        let received = match timeout(FIRST_RESPONSE_WAIT, &mut response).await {
            Ok(received) => received,
            Err(_) => {
                let overdue = OverdueRequest::new(self);
                tokio::select! {
                    biased;
                    received = &mut response => received,
                    never = overdue.close_blocking() => match never {},
                }
            }
        };
        self.served(open);
        received
    }

    /// Record that the upstream serves a connection, and so all those that were opened before it.
    fn served(&self, open: &OpenConnection<C>) {
        let mut state = self.state();
        let concurrent = state.open.range(..=open.number).count();
        state.concurrency = state.concurrency.max(concurrent);
    }

    /// Close idle connections beyond the concurrency of the upstream, if they have been idle for [`MIN_IDLE`].
    /// Return whether there are more to be closed once they have been idle for that long.
    fn close_surplus(&self) -> bool {
        let mut state = self.state();
        let settled = |idle: &&Idle<C>| idle.since.elapsed() >= MIN_IDLE;
        let settled = state.idle.iter().take_while(settled).count();
        let count = state.excess().min(settled);
        let closed: Vec<_> = state.idle.drain(..count).collect();
        let others = state.excess() > count && !state.idle.is_empty();
        drop(state);
        drop(closed);
        others
    }

    /// Close all idle connections.
    fn close_idle(&self) {
        let closed = std::mem::take(&mut self.state().idle);
        drop(closed);
    }

    /// Close connections past the idle timeout, and return the time of the next one.
    fn close_expired(&self) -> Option<Instant> {
        let mut state = self.state();
        let limit = self.idle_timeout(&state);
        let expired = |idle: &&Idle<C>| idle.since.elapsed() >= limit;
        let expired = state.idle.iter().take_while(expired).count();
        let closed: Vec<_> = state.idle.drain(..expired).collect();
        let next = state.idle.first().map(|idle| idle.since + limit);
        state.sweeping = next.is_some();
        drop(state);
        drop(closed);
        next
    }

    /// Return the idle timeout, which depends on the concurrency of the upstream.
    fn idle_timeout(&self, state: &State<C>) -> Duration {
        match state.concurrency {
            ..=1 => self.single_timeout,
            _ => IDLE_TIMEOUT,
        }
    }
}

impl<C> Connections<C> {
    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> State<C> {
    /// Return how many connections are open beyond the known concurrency of the upstream.
    fn excess(&self) -> usize {
        self.open.len().saturating_sub(self.concurrency)
    }
}

/// The registration of an open connection, held with it.
pub struct OpenConnection<C> {
    connections: Weak<Connections<C>>,
    number: u64,
}

impl<C> Drop for OpenConnection<C> {
    fn drop(&mut self) {
        if let Some(connections) = self.connections.upgrade() {
            connections.state().open.remove(&self.number);
        }
    }
}

/// A request that has waited too long on a new connection, counted until this is dropped.
struct OverdueRequest<'a, C: Reusable>(&'a Connections<C>);

impl<'a, C: Reusable> OverdueRequest<'a, C> {
    fn new(connections: &'a Connections<C>) -> Self {
        connections.state().overdue += 1;
        Self(connections)
    }

    /// Close surplus idle connections as they appear, and after [`CLOSE_ALL_AFTER`] all idle ones, once: the upstream
    /// may serve fewer connections concurrently than it did in the past.
    async fn close_blocking(&self) -> Infallible {
        let mut close_all = pin!(sleep(CLOSE_ALL_AFTER));
        loop {
            let added = self.0.surplus_added.notified();
            let others = self.0.close_surplus();
            tokio::select! {
                () = added => {}
                () = sleep(MIN_IDLE), if others => {}
                () = &mut close_all, if !close_all.is_elapsed() => self.0.close_idle(),
            }
        }
    }
}

impl<C: Reusable> Drop for OverdueRequest<'_, C> {
    fn drop(&mut self) {
        self.0.state().overdue -= 1;
        // Idle connections that `take` withheld may be available now.
        self.0.idle_added.notify_waiters();
    }
}

/// Close connections past the idle timeout until none is idle.
async fn sweep<C: Reusable>(connections: Weak<Connections<C>>) {
    loop {
        let next = connections.upgrade().and_then(|all| all.close_expired());
        match next {
            Some(next) => sleep_until(next).await,
            None => return,
        }
    }
}

/// The idle timeout. It is shorter than that of common servers (Node.js closes after 5 s), so that few requests are
/// sent on a connection that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The idle timeout for a server that may be single-threaded: clients that do not come through the tunnel wait for its
/// only thread. A page loads its resources within this time.
pub const SINGLE_THREADED_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The idle timeout for a server with TLS: it is hardly single-threaded, and a new connection costs much more.
pub const TLS_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The most idle connections: as many as there usually are concurrent conversations.
const MAX_IDLE: usize = 256;

/// Time that the first response on a new connection has before idle connections are closed for it. Reopening them
/// costs a hundredth of this.
const FIRST_RESPONSE_WAIT: Duration = Duration::from_millis(50);

/// Time for which a connection must have been idle before it is closed as surplus: two responses within it count as
/// served concurrently.
const MIN_IDLE: Duration = Duration::from_millis(5);

/// Time after which an overdue request closes all idle connections, whatever concurrency the upstream has shown.
const CLOSE_ALL_AFTER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that is always reusable.
    struct TestConnection(OpenConnection<TestConnection>);

    impl Reusable for TestConnection {
        fn is_reusable(&self) -> bool {
            true
        }
    }

    fn connections() -> Arc<Connections<TestConnection>> {
        Connections::new(SINGLE_THREADED_IDLE_TIMEOUT)
    }

    fn open(connections: &Connections<TestConnection>) -> usize {
        connections.state().open.len()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_after_the_timeout() {
        let connections = connections();
        connections.store(TestConnection(connections.opened()));

        sleep(SINGLE_THREADED_IDLE_TIMEOUT - MIN_IDLE).await;
        assert_eq!(open(&connections), 1);
        sleep(MIN_IDLE * 2).await;

        assert_eq!(open(&connections), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_for_an_overdue_request_on_a_new_one() {
        let connections = connections();
        connections.store(TestConnection(connections.opened()));
        let new = TestConnection(connections.opened());

        // A single-threaded server.
        let response = async {
            while open(&connections) > 1 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let started = Instant::now();
        connections.first_response(&new.0, response).await;

        assert!(
            started.elapsed() < FIRST_RESPONSE_WAIT * 2,
            "{:?}",
            started.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_becomes_idle_is_closed_for_an_overdue_request_and_not_reused() {
        let connections = connections();
        let busy = TestConnection(connections.opened());
        let new = TestConnection(connections.opened());

        let response = async {
            sleep(FIRST_RESPONSE_WAIT * 2).await;
            connections.store(busy);
            assert!(connections.take().is_none());
            while open(&connections) > 1 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let started = Instant::now();
        connections.first_response(&new.0, response).await;

        assert!(started.elapsed() < FIRST_RESPONSE_WAIT * 2 + MIN_IDLE * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_serves_several_at_once_keeps_its_idle_connections() {
        let connections = connections();
        connections.store(TestConnection(connections.opened()));
        let quick = TestConnection(connections.opened());
        connections.first_response(&quick.0, async {}).await;
        connections.store(quick);
        drop(connections.take());

        let slow = TestConnection(connections.opened());
        connections
            .first_response(&slow.0, sleep(FIRST_RESPONSE_WAIT * 3))
            .await;

        assert!(connections.take().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_request_gets_a_connection_that_becomes_idle() {
        let connections = connections();
        let busy = TestConnection(connections.opened());

        let (_, ()) = tokio::join!(connections.next(), async {
            sleep(FIRST_RESPONSE_WAIT).await;
            connections.store(busy);
        });
    }
}
