//! Sending what a connection has to send before its turn comes.

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

use crate::inline::Inline;

/// Has a connection's packets leave while many messages are written in one go.
///
/// quinn's connection sends in a task of its own. Where a crowd of visitors is served at once, that has its turn
/// after all of them, and the other end nothing to do until then.
#[derive(Default)]
pub struct Transmitter {
    /// That of the connection, if one has begun.
    task: Option<Inline>,
    messages: AtomicU32,
}

thread_local! {
    /// Whether a connection is begun.
    static BEGINNING: Cell<bool> = const { Cell::new(false) };
    /// The task of the one that was.
    static BEGUN: RefCell<Option<Inline>> = const { RefCell::new(None) };
}

impl Transmitter {
    /// Begin a connection, on an endpoint whose runtime spawns its tasks with [`spawn()`], and return what
    /// sends its packets.
    pub fn of<T>(begin: impl FnOnce() -> T) -> (T, Self) {
        BEGINNING.set(true);
        let begun = begin();
        BEGINNING.set(false);
        let transmitter = Self {
            task: BEGUN.take(),
            ..Self::default()
        };
        (begun, transmitter)
    }

    /// Note that the end of a message has been written. Now and then it is sent on the spot, with those before
    /// it.
    pub fn message_written(&self) {
        let messages = self.messages.fetch_add(1, Relaxed) + 1;
        if let Some(task) = &self.task
            && messages.is_multiple_of(TOGETHER)
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

/// Spawn a task of quinn's. quinn does not say which it is, but a connection's it spawns as it begins one.
pub(crate) fn spawn(task: Pin<Box<dyn Future<Output = ()> + Send>>) {
    if !BEGINNING.get() {
        return TokioRuntime.spawn(task);
    }
    let (inline, task) = Inline::new(task);
    BEGUN.set(Some(inline));
    TokioRuntime.spawn(Box::pin(task));
}

/// What an endpoint runs on whose connections have transmitters.
#[derive(Debug)]
pub(crate) struct Transmitting;

impl Runtime for Transmitting {
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

/// Messages that are sent together: fewer leave the other end waiting for less time, and cost more packets. As
/// short ones, they are what one call to the kernel takes.
const TOGETHER: u32 = 16;

#[cfg(test)]
mod tests {
    use quinn::{Connection, Endpoint, EndpointConfig};

    use super::*;
    use crate::carrier::testbed::certificate;

    /// A connection over loopback with what sends its packets, and its other end.
    async fn connected() -> (Connection, Transmitter, Connection) {
        let endpoint = |server| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let config = EndpointConfig::default();
            Endpoint::new(config, server, socket, Arc::new(Transmitting)).unwrap()
        };
        let edge = endpoint(Some(certificate().server));
        let agent = endpoint(None);
        let addr = edge.local_addr().unwrap();
        let client = certificate().client;
        let (connecting, transmitter) =
            Transmitter::of(|| agent.connect_with(client, addr, "edge.test"));
        let accepting = async { edge.accept().await.unwrap().await.unwrap() };
        let (connected, accepted) = tokio::join!(connecting.unwrap(), accepting);
        (connected.unwrap(), transmitter, accepted)
    }

    #[tokio::test]
    async fn of_many_messages_the_first_leave_before_the_last_is_written() {
        let (connection, transmitter, _other) = connected().await;
        let (mut send, _) = connection.open_bi().await.unwrap();
        let sent = || connection.stats().frame_tx.stream;
        let before = sent();

        for _ in 1..TOGETHER {
            send.write_all(b"message").await.unwrap();
            transmitter.message_written();
            assert_eq!(sent(), before, "nothing leaves for few of them");
        }
        send.write_all(b"message").await.unwrap();
        transmitter.message_written();

        assert!(sent() > before);
    }
}
