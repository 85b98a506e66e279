//! Rebinding quinn to a new socket at a safe moment.
//!
//! A connection whose endpoint is rebound switches to another connection id, and reports that to the
//! endpoint. If it does so in the same poll in which it learns of a stateless reset, the endpoint has
//! already removed the connection and panics (quinn-proto 0.11.19, `Endpoint::handle_event`); the
//! unwinding runs into the endpoint's poisoned lock, and the process is aborted. Therefore quinn runs
//! its tasks on [`Rebinding`], which rebinds right after a poll in which the connection has processed
//! everything received, and before anything more is read.

use std::{
    fmt, io,
    net::UdpSocket,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use futures_util::task::AtomicWaker;
use quinn::{AsyncTimer, AsyncUdpSocket, Endpoint, Runtime, TokioRuntime};
use tokio::task::coop::unconstrained;

use super::socket::AgentSocket;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The runtime of an endpoint that has one connection. It rebinds the endpoint to new sockets.
pub(crate) struct Rebinding(Arc<Shared>);

struct Shared {
    /// Set once the endpoint's task is spawned. The next task is the connection's.
    endpoint_runs: AtomicBool,
    connection: AtomicWaker,
    /// Set while a rebind is requested; avoids the lock while none is.
    wanted: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// The socket that quinn has.
    socket: Arc<AgentSocket>,
    /// The endpoint to rebind, if that is requested.
    wanted: Option<Endpoint>,
    /// Set once the connection has ended.
    ended: bool,
}

impl Rebinding {
    /// Create the runtime for an endpoint that starts with this socket.
    pub(crate) fn new(socket: Arc<AgentSocket>) -> Arc<Self> {
        Arc::new(Self(Arc::new(Shared {
            endpoint_runs: AtomicBool::new(false),
            connection: AtomicWaker::new(),
            wanted: AtomicBool::new(false),
            state: Mutex::new(State {
                socket,
                wanted: None,
                ended: false,
            }),
        })))
    }

    /// Rebind the endpoint to a successor of its socket as soon as that is safe.
    pub(crate) fn rebind(&self, endpoint: &Endpoint) {
        let mut state = self.0.state();
        if state.ended {
            return;
        }
        state.wanted = Some(endpoint.clone());
        drop(state);
        self.0.wanted.store(true, Ordering::Release);
        self.0.connection.wake();
    }
}

impl Runtime for Rebinding {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Task) {
        let first = !self.0.endpoint_runs.swap(true, Ordering::Relaxed);
        TokioRuntime.spawn(match first {
            true => task,
            false => Box::pin(ConnectionTask {
                task,
                shared: self.0.clone(),
            }),
        });
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

impl fmt::Debug for Rebinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rebinding").finish_non_exhaustive()
    }
}

/// The task of the connection. Rebinds the endpoint between two polls, if that is requested.
struct ConnectionTask {
    task: Task,
    shared: Arc<Shared>,
}

impl Future for ConnectionTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<()> {
        self.shared.connection.register(cx.waker());
        if !self.shared.wanted.swap(false, Ordering::AcqRel) {
            return self.task.as_mut().poll(cx);
        }
        let Some(endpoint) = self.shared.state().wanted.take() else {
            return self.task.as_mut().poll(cx);
        };
        let before = self.shared.state().socket.clone();
        before.pause();
        // If the endpoint is reading on another thread, it has stopped once this call gets its lock.
        let _ = endpoint.open_connections();
        // With tokio's cooperative budget, it might leave received packets for the next poll.
        let poll = pin!(unconstrained(self.task.as_mut()));
        if poll.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let socket = before.successor();
        // The only possible error is a missing local address, and this socket always has one.
        if endpoint.rebind_abstract(socket.clone()).is_ok() {
            self.shared.state().socket = socket;
            before.retire();
        }
        Poll::Pending
    }
}

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.ended = true;
        // The endpoint holds this runtime, so the two would keep each other alive.
        let endpoint = state.wanted.take();
        drop(state);
        drop(endpoint);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
