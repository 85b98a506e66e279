//! The short send queue between quinn and one WebSocket.
//!
//! [`SendQueue`] accepts transmits from quinn and returns frames to the task that writes the WebSocket. Connections
//! wait for room in it at a [`WriteGate`](crate::carrier::writable::WriteGate).

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::frames::{Encoder, Role};
use super::record_size::RecordSizer;
use crate::net::path_kind::PathKind;
use crate::proto::Datagrams;

/// Frames that wait to be written to one WebSocket.
pub(crate) struct SendQueue {
    /// Bytes that may wait. A blocked connection is woken when the queue has drained to half of that, so
    /// that it sends several transmits per wake-up instead of one.
    max_queued: usize,
    /// The most bytes per write.
    max_write: usize,
    state: Mutex<State>,
    /// Notified when there is something to write.
    filled: Notify,
}

struct State {
    encoder: Encoder,
    frames: VecDeque<Bytes>,
    /// Bytes of all `frames`.
    bytes: usize,
    /// The record sizer, on a network, which may be slow; `None` on loopback.
    record_sizer: Option<RecordSizer>,
    /// The pong for the latest ping (RFC 6455 §5.5.3).
    pong: Option<Bytes>,
    /// Connections waiting for room.
    waiting: Vec<Waker>,
    /// Set while packets are discarded at once, as by a dead link (blackhole).
    discarding: bool,
}

impl SendQueue {
    /// Create the queue for one end of a WebSocket over this kind of path.
    pub(crate) fn new(role: Role, path_kind: PathKind) -> Self {
        let (max_queued, max_write, record_sizer) = match path_kind {
            PathKind::Loopback => (MAX_QUEUED_LOOPBACK, MAX_WRITE_LOOPBACK, None),
            PathKind::Network => (
                MAX_QUEUED,
                MAX_WRITE,
                Some(RecordSizer::new(Instant::now())),
            ),
        };
        let state = State {
            encoder: Encoder::new(role),
            frames: VecDeque::new(),
            bytes: 0,
            record_sizer,
            pong: None,
            waiting: Vec::new(),
            discarding: false,
        };
        Self {
            max_queued,
            max_write,
            state: Mutex::new(state),
            filled: Notify::new(),
        }
    }

    /// Queue a transmit, or return `WouldBlock` if the queue is full.
    pub(crate) fn try_push(&self, segment: Option<usize>, contents: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        if state.discarding {
            return Ok(());
        }
        if state.bytes >= self.max_queued {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(record_sizer) = &mut state.record_sizer {
            record_sizer.note(contents.len(), Instant::now());
        }
        let packet = segment.unwrap_or(contents.len()).max(1);
        let packets = (self.write_size(&state).min(MAX_MESSAGE) / packet).max(1);
        for contents in contents.chunks(packets * packet) {
            let Some(header) = Datagrams::header(segment, contents) else {
                return Ok(());
            };
            let Some(frame) = state.encoder.binary(&[&header, contents]) else {
                return Ok(());
            };
            state.bytes += frame.len();
            state.frames.push_back(frame);
        }
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Wait for frames, and move as many as should be written at once into `frames`. Cancel safe.
    pub(crate) async fn pop(&self, frames: &mut VecDeque<Bytes>) {
        while !self.try_pop(frames) {
            self.filled.notified().await;
        }
    }

    /// Move frames that should be written at once into `frames`, and report whether there are any.
    fn try_pop(&self, frames: &mut VecDeque<Bytes>) -> bool {
        let mut state = self.lock();
        frames.extend(state.pong.take());
        let (mut taken, write_size) = (0, self.write_size(&state));
        while taken < write_size
            && let Some(frame) = state.frames.pop_front()
        {
            taken += frame.len();
            frames.push_back(frame);
        }
        state.bytes -= taken;
        if state.bytes <= self.max_queued / 2 {
            state.wake();
        }
        !frames.is_empty()
    }

    /// Queue the answer to a ping, ahead of all packets.
    pub(crate) fn answer(&self, ping: &[u8]) {
        let mut state = self.lock();
        state.pong = state.encoder.pong(ping);
        drop(state);
        self.filled.notify_one();
    }

    /// Return the close frame.
    pub(crate) fn close(&self, code: u16, reason: &str) -> Option<Bytes> {
        self.lock().encoder.close(code, reason)
    }

    /// Discard everything queued, and everything sent until [`stop_discarding`](Self::stop_discarding).
    ///
    /// A stalled link must not block the connections that wait for it: they may have another carrier by
    /// now, and QUIC recovers from loss.
    pub(crate) fn start_discarding(&self) {
        let mut state = self.lock();
        state.discarding = true;
        state.frames.clear();
        state.bytes = 0;
        state.wake();
    }

    /// Accept transmits again.
    pub(crate) fn stop_discarding(&self) {
        self.lock().discarding = false;
    }

    /// Report whether the queue is full.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().bytes >= self.max_queued
    }

    /// Wait until the queue accepts a transmit.
    pub(crate) fn poll_ready(&self, cx: &mut Context) -> Poll<()> {
        let mut state = self.lock();
        if state.discarding || state.bytes < self.max_queued {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|w| w.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Return the number of bytes to write at once.
    fn write_size(&self, state: &State) -> usize {
        match &state.record_sizer {
            Some(record_sizer) => record_sizer.bytes_per_record.clamp(1, self.max_write),
            None => self.max_write,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&mut self) {
        for waker in self.waiting.drain(..) {
            waker.wake();
        }
    }
}

impl fmt::Debug for SendQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("SendQueue")
            .field("bytes", &state.bytes)
            .field("discarding", &state.discarding)
            .finish_non_exhaustive()
    }
}

/// Bytes that may wait for the WebSocket before quinn is blocked.
///
/// Short on purpose: what waits here delays every small request behind it (4 ms at 50 Mbit/s). It holds
/// two of quinn's largest transmits, enough to keep the writing task busy.
const MAX_QUEUED: usize = 24 * 1024;

/// Bytes that may wait on loopback, which moves this much in half a millisecond. With less, both ends would wait for
/// each other to be scheduled.
const MAX_QUEUED_LOOPBACK: usize = 128 * 1024;

/// The longest message in bytes, unless one packet is longer: what fits into a TLS record, so that no message has
/// to wait for a second record.
const MAX_MESSAGE: usize = 16 * 1024;

/// The most bytes per write: one TLS record.
const MAX_WRITE: usize = 16 * 1024;

/// The most bytes per write on loopback, where system calls dominate the cost.
const MAX_WRITE_LOOPBACK: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        pin::Pin,
        sync::Arc,
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    use quinn::{Runtime, TokioRuntime, UdpPoller};

    use super::*;
    use crate::carrier::writable::{Poller, WriteGate, note_blocked};

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn fill(queue: &SendQueue) {
        while queue.try_push(None, &[7; 1200]).is_ok() {}
    }

    fn poll(poller: &mut Poller, woken: &Arc<Woken>) -> bool {
        let waker = Waker::from(woken.clone());
        Pin::new(poller)
            .poll_writable(&mut Context::from_waker(&waker))
            .is_ready()
    }

    #[test]
    fn a_full_queue_blocks_and_wakes_when_it_is_half_empty() {
        let queue = Arc::new(SendQueue::new(Role::Client, PathKind::Network));
        let woken = Arc::new(Woken::default());
        let mut poller = Poller::default();
        fill(&queue);
        assert!(poll(&mut poller, &woken), "nothing was refused yet");

        note_blocked(WriteGate::WebSocket(queue.clone()));

        assert!(!poll(&mut poller, &woken));
        assert!(queue.try_pop(&mut VecDeque::new()));
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        while queue.lock().bytes > MAX_QUEUED / 2 {
            assert!(queue.try_pop(&mut VecDeque::new()));
        }
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(poll(&mut poller, &woken));
    }

    #[test]
    fn slow_traffic_is_written_packet_by_packet() {
        let queue = SendQueue::new(Role::Server, PathKind::Network);
        queue.try_push(Some(1_200), &[7; 3_600]).unwrap();

        for _ in 0..3 {
            let mut frames = VecDeque::new();
            assert!(queue.try_pop(&mut frames));
            assert_eq!(frames.len(), 1);
        }

        queue.lock().record_sizer.as_mut().unwrap().bytes_per_record = 100_000;
        queue.try_push(Some(1_200), &[7; 3_600]).unwrap();
        queue.try_push(Some(1_200), &[7; 3_600]).unwrap();
        let mut frames = VecDeque::new();
        assert!(queue.try_pop(&mut frames));
        assert_eq!(frames.len(), 2, "both messages");
        assert!(!queue.try_pop(&mut frames.split_off(2)));
    }

    #[test]
    fn a_full_queue_does_not_block_a_connection_that_sends_elsewhere() {
        let queue = Arc::new(SendQueue::new(Role::Client, PathKind::Network));
        let woken = Arc::new(Woken::default());
        fill(&queue);

        note_blocked(WriteGate::WebSocket(queue));

        assert!(!poll(&mut Poller::default(), &woken));
        assert!(poll(&mut Poller::default(), &woken));
    }

    #[tokio::test]
    async fn a_poller_waits_for_the_udp_socket_that_was_full_last() {
        let socket = || {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            TokioRuntime.wrap_udp_socket(socket).unwrap()
        };
        let mut poller = Poller::default();
        let before = socket();
        note_blocked(WriteGate::Udp(before));
        poll_fn(|cx| Pin::new(&mut poller).poll_writable(cx))
            .await
            .unwrap();

        // The readiness of this socket has not been polled yet.
        note_blocked(WriteGate::Udp(socket()));

        let woken = Arc::new(Woken::default());
        assert!(!poll(&mut poller, &woken), "the previous socket has room");
        poll_fn(|cx| Pin::new(&mut poller).poll_writable(cx))
            .await
            .unwrap();
    }

    #[test]
    fn a_discarding_queue_drops_its_frames_and_wakes_waiters() {
        let queue = Arc::new(SendQueue::new(Role::Client, PathKind::Network));
        let woken = Arc::new(Woken::default());
        let mut poller = Poller::default();
        fill(&queue);
        note_blocked(WriteGate::WebSocket(queue.clone()));
        assert!(!poll(&mut poller, &woken));

        queue.start_discarding();

        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(poll(&mut poller, &woken));
        fill_does_nothing(&queue);
        queue.stop_discarding();
        queue.try_push(None, b"packet").unwrap();
        assert!(queue.try_pop(&mut VecDeque::new()));
    }

    fn fill_does_nothing(queue: &SendQueue) {
        for _ in 0..100 {
            queue.try_push(None, &[7; 1200]).unwrap();
        }
        assert!(!queue.try_pop(&mut VecDeque::new()));
    }
}
