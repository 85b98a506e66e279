//! Giving quinn another socket, at a moment when it is safe.
//!
//! A connection that is given another socket takes another connection id, and tells the endpoint of it.
//! If it does so in the turn in which it also learns of a stateless reset, the endpoint has forgotten
//! it by then and panics (quinn-proto 0.11.19, `Endpoint::handle_event`); the unwinding meets the
//! endpoint's poisoned lock, and the process is aborted. So [`Rebinding`] is what quinn runs its tasks
//! on: it gives the socket right after a turn in which the connection has seen all that had come, and
//! before anything more is read.

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
use crate::carrier::duplicate::transmitter;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs the tasks of an endpoint that has one connection, and gives it other sockets.
pub(crate) struct Rebinding(Arc<Shared>);

struct Shared {
    /// Whether the endpoint runs: it spawns its own task first, then the connection's.
    endpoint_runs: AtomicBool,
    connection: AtomicWaker,
    /// Whether somebody wants another socket, so that only then the lock is taken.
    wanted: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// The face that quinn has.
    face: Arc<AgentSocket>,
    /// The endpoint that is to have another one.
    wanted: Option<Endpoint>,
    /// Whether the connection has ended.
    over: bool,
}

impl Rebinding {
    /// For an endpoint that begins with this face.
    pub(crate) fn new(face: Arc<AgentSocket>) -> Arc<Self> {
        Arc::new(Self(Arc::new(Shared {
            endpoint_runs: AtomicBool::new(false),
            connection: AtomicWaker::new(),
            wanted: AtomicBool::new(false),
            state: Mutex::new(State {
                face,
                wanted: None,
                over: false,
            }),
        })))
    }

    /// Give the endpoint another face of its socket, as soon as that is safe.
    pub(crate) fn rebind(&self, endpoint: &Endpoint) {
        let mut state = self.0.state();
        if state.over {
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
        transmitter::spawn(match first {
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

/// The task of the connection, with another socket between its turns where one is wanted.
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
        let before = self.shared.state().face.clone();
        before.pause();
        // Where it is reading on another thread, it has stopped when it lets go of its lock.
        let _ = endpoint.open_connections();
        // With a budget, it might leave some of what has come for its next turn.
        let turn = pin!(unconstrained(self.task.as_mut()));
        if turn.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let face = before.successor();
        // Its only error is that of the address, of which a face always has one.
        if endpoint.rebind_abstract(face.clone()).is_ok() {
            self.shared.state().face = face;
            before.retire();
        }
        Poll::Pending
    }
}

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.over = true;
        // It has this runtime, so the two would keep each other.
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
