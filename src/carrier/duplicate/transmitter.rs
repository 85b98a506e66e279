//! Sending a connection's packets before the runtime schedules its task.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    net::UdpSocket,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Instant,
};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

use crate::poll_now::PollNow;

/// Sends a connection's packets early while many messages are written in one go.
///
/// quinn sends a connection's packets in a task of its own. When many visitors are served at once, that task is
/// scheduled after all of them, and the peer is idle until then.
#[derive(Default)]
pub struct Transmitter {
    /// The connection's task, if there is a connection.
    task: Option<PollNow>,
    messages: AtomicU32,
}

thread_local! {
    /// Set while a connection is being started on this thread.
    static STARTING: Cell<bool> = const { Cell::new(false) };
    /// The task of the connection that was started last.
    static DRIVER_TASK: RefCell<Option<PollNow>> = const { RefCell::new(None) };
}

impl Transmitter {
    /// Start a connection by calling `start`, and return its result with the connection's transmitter. The
    /// endpoint's runtime must spawn its tasks with [`spawn()`].
    pub fn capture<T>(start: impl FnOnce() -> T) -> (T, Self) {
        STARTING.set(true);
        let started = start();
        STARTING.set(false);
        let transmitter = Self {
            task: DRIVER_TASK.take(),
            ..Self::default()
        };
        (started, transmitter)
    }

    /// Note that the end of a message has been written. Every [`MESSAGES_PER_SEND`] messages, they are sent at
    /// once.
    pub fn message_written(&self) {
        let messages = self.messages.fetch_add(1, Relaxed) + 1;
        if let Some(task) = &self.task
            && messages.is_multiple_of(MESSAGES_PER_SEND)
        {
            task.run();
        }
    }
}

impl fmt::Debug for Transmitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transmitter").finish_non_exhaustive()
    }
}

/// Spawn a task for quinn. Tasks are unlabelled; the one spawned during [`Transmitter::capture`] is the
/// connection's.
pub(crate) fn spawn(task: Pin<Box<dyn Future<Output = ()> + Send>>) {
    if !STARTING.get() {
        return TokioRuntime.spawn(task);
    }
    let (poll_now, task) = PollNow::new(task);
    DRIVER_TASK.set(Some(poll_now));
    TokioRuntime.spawn(Box::pin(task));
}

/// The runtime of an endpoint whose connections have transmitters.
#[derive(Debug)]
pub(crate) struct TransmitterRuntime;

impl Runtime for TransmitterRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        spawn(task);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// Messages that are sent together. With fewer, the peer waits for less time, but more packets are sent. This
/// many short ones are what one system call takes.
const MESSAGES_PER_SEND: u32 = 16;

#[cfg(test)]
mod tests {
    use quinn::{Connection, Endpoint, EndpointConfig};

    use super::*;
    use crate::carrier::testbed::certificate;

    /// Return a connection over loopback with its transmitter, and its other end.
    async fn connected() -> (Connection, Transmitter, Connection) {
        let endpoint = |server| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let config = EndpointConfig::default();
            Endpoint::new(config, server, socket, Arc::new(TransmitterRuntime)).unwrap()
        };
        let edge = endpoint(Some(certificate().server));
        let agent = endpoint(None);
        let addr = edge.local_addr().unwrap();
        let client = certificate().client;
        let (connecting, transmitter) =
            Transmitter::capture(|| agent.connect_with(client, addr, "edge.test"));
        let accepting = async { edge.accept().await.unwrap().await.unwrap() };
        let (connected, accepted) = tokio::join!(connecting.unwrap(), accepting);
        (connected.unwrap(), transmitter, accepted)
    }

    #[tokio::test]
    async fn the_first_of_many_messages_are_sent_before_the_last_is_written() {
        let (connection, transmitter, _other) = connected().await;
        let (mut send, _) = connection.open_bi().await.unwrap();
        let sent = || connection.stats().frame_tx.stream;
        let before = sent();

        for _ in 1..MESSAGES_PER_SEND {
            send.write_all(b"message").await.unwrap();
            transmitter.message_written();
            assert_eq!(sent(), before, "nothing leaves for few of them");
        }
        send.write_all(b"message").await.unwrap();
        transmitter.message_written();

        assert!(sent() > before);
    }
}
