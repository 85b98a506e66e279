//! The short queue between quinn and one WebSocket.
//!
//! [`Queue`] takes transmits from quinn and gives frames to the task that writes the WebSocket. Who waits for
//! room in it does so at a [`WriteGate`](crate::carrier::writable::WriteGate).

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
use super::record_size::Pace;
use crate::carrier::PathKind;
use crate::proto::Datagrams;

/// Transmits on their way into one WebSocket.
pub(crate) struct Queue {
    /// Bytes that may wait. A waiting connection is woken when half of them are left, so that it sends
    /// several transmits per wake-up instead of one.
    full: usize,
    /// Bytes that are written at once at most.
    write: usize,
    state: Mutex<State>,
    filled: Notify,
}

struct State {
    encoder: Encoder,
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// On a network, which may be slow.
    pace: Option<Pace>,
    /// The answer to the newest ping (RFC 6455 §5.5.3).
    pong: Option<Bytes>,
    /// Connections waiting for room.
    waiting: Vec<Waker>,
    /// Whether what is sent here is dropped at once, as a dead link would.
    hole: bool,
}

impl Queue {
    /// For this end of a WebSocket that leads so far.
    pub(crate) fn new(role: Role, reach: PathKind) -> Self {
        let (full, write, pace) = match reach {
            PathKind::Loopback => (FULL_NEARBY, WRITE_NEARBY, None),
            PathKind::Network => (FULL, WRITE, Some(Pace::new(Instant::now()))),
        };
        let state = State {
            encoder: Encoder::new(role),
            frames: VecDeque::new(),
            bytes: 0,
            pace,
            pong: None,
            waiting: Vec::new(),
            hole: false,
        };
        Self {
            full,
            write,
            state: Mutex::new(state),
            filled: Notify::new(),
        }
    }

    /// Take a transmit, or answer `WouldBlock` when the queue is full.
    pub(crate) fn try_push(&self, segment: Option<usize>, contents: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        if state.hole {
            return Ok(());
        }
        if state.bytes >= self.full {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(pace) = &mut state.pace {
            pace.note(contents.len(), Instant::now());
        }
        let packet = segment.unwrap_or(contents.len()).max(1);
        let packets = (self.at_once(&state).min(MESSAGE) / packet).max(1);
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

    /// Wait for frames, and take as many as should be written at once. Cancel safe.
    pub(crate) async fn pop(&self, frames: &mut VecDeque<Bytes>) {
        while !self.try_pop(frames) {
            self.filled.notified().await;
        }
    }

    /// Take what is there of them, and tell whether that is anything.
    fn try_pop(&self, frames: &mut VecDeque<Bytes>) -> bool {
        let mut state = self.lock();
        frames.extend(state.pong.take());
        let (mut taken, at_once) = (0, self.at_once(&state));
        while taken < at_once
            && let Some(frame) = state.frames.pop_front()
        {
            taken += frame.len();
            frames.push_back(frame);
        }
        state.bytes -= taken;
        if state.bytes <= self.full / 2 {
            state.wake();
        }
        !frames.is_empty()
    }

    /// Answer a ping, before all that waits.
    pub(crate) fn answer(&self, ping: &[u8]) {
        let mut state = self.lock();
        state.pong = state.encoder.pong(ping);
        drop(state);
        self.filled.notify_one();
    }

    /// The frame that ends what is sent.
    pub(crate) fn close(&self, code: u16, reason: &str) -> Option<Bytes> {
        self.lock().encoder.close(code, reason)
    }

    /// Drop everything here and everything sent here until [`stop_discarding`](Self::stop_discarding).
    ///
    /// A link that has stopped moving must not hold the connections that wait for it: they may
    /// have another way by now, and QUIC knows what to do about loss.
    pub(crate) fn start_discarding(&self) {
        let mut state = self.lock();
        state.hole = true;
        state.frames.clear();
        state.bytes = 0;
        state.wake();
    }

    /// Take transmits again.
    pub(crate) fn stop_discarding(&self) {
        self.lock().hole = false;
    }

    /// Report whether whoever has more to send must wait.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().bytes >= self.full
    }

    pub(crate) fn poll_room(&self, cx: &mut Context) -> Poll<()> {
        let mut state = self.lock();
        if state.hole || state.bytes < self.full {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|w| w.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// How many bytes should be written at once now.
    fn at_once(&self, state: &State) -> usize {
        match &state.pace {
            Some(pace) => pace.in_a_record.clamp(1, self.write),
            None => self.write,
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

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Queue")
            .field("bytes", &state.bytes)
            .field("hole", &state.hole)
            .finish_non_exhaustive()
    }
}

/// Bytes waiting for the WebSocket before quinn is told to wait.
///
/// Short on purpose: what waits here is delay for every small request behind it (4 ms at
/// 50 Mbit/s). It takes two of quinn's largest transmits, enough to keep the writing task busy.
const FULL: usize = 24 * 1024;

/// The same within this machine: it moves so much in half a millisecond, and less would have both ends
/// wait for each other's turns.
const FULL_NEARBY: usize = 128 * 1024;

/// The longest message, unless one packet is longer: what fits into a TLS record, so that no message waits for
/// a second one.
const MESSAGE: usize = 16 * 1024;

/// Bytes that are written at once at most: one TLS record.
const WRITE: usize = 16 * 1024;

/// The same within this machine, where the calls into the kernel are what costs.
const WRITE_NEARBY: usize = 64 * 1024;

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

    fn fill(queue: &Queue) {
        while queue.try_push(None, &[7; 1200]).is_ok() {}
    }

    fn poll(poller: &mut Poller, woken: &Arc<Woken>) -> bool {
        let waker = Waker::from(woken.clone());
        Pin::new(poller)
            .poll_writable(&mut Context::from_waker(&waker))
            .is_ready()
    }

    #[test]
    fn a_full_queue_blocks_and_wakes_whoever_waits_when_half_is_gone() {
        let queue = Arc::new(Queue::new(Role::Client, PathKind::Network));
        let woken = Arc::new(Woken::default());
        let mut poller = Poller::default();
        fill(&queue);
        assert!(poll(&mut poller, &woken), "nothing was refused yet");

        note_blocked(WriteGate::WebSocket(queue.clone()));

        assert!(!poll(&mut poller, &woken));
        assert!(queue.try_pop(&mut VecDeque::new()));
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        while queue.lock().bytes > FULL / 2 {
            assert!(queue.try_pop(&mut VecDeque::new()));
        }
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(poll(&mut poller, &woken));
    }

    #[test]
    fn what_is_sent_slowly_is_written_packet_by_packet() {
        let queue = Queue::new(Role::Server, PathKind::Network);
        queue.try_push(Some(1_200), &[7; 3_600]).unwrap();

        for _ in 0..3 {
            let mut frames = VecDeque::new();
            assert!(queue.try_pop(&mut frames));
            assert_eq!(frames.len(), 1);
        }

        queue.lock().pace.as_mut().unwrap().in_a_record = 100_000;
        queue.try_push(Some(1_200), &[7; 3_600]).unwrap();
        queue.try_push(Some(1_200), &[7; 3_600]).unwrap();
        let mut frames = VecDeque::new();
        assert!(queue.try_pop(&mut frames));
        assert_eq!(frames.len(), 2, "both messages");
        assert!(!queue.try_pop(&mut frames.split_off(2)));
    }

    #[test]
    fn a_full_queue_does_not_block_a_connection_that_sends_elsewhere() {
        let queue = Arc::new(Queue::new(Role::Client, PathKind::Network));
        let woken = Arc::new(Woken::default());
        fill(&queue);

        note_blocked(WriteGate::WebSocket(queue));

        assert!(!poll(&mut Poller::default(), &woken));
        assert!(poll(&mut Poller::default(), &woken));
    }

    #[tokio::test]
    async fn who_waits_for_a_udp_socket_waits_for_the_one_that_was_full() {
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

        // Nobody has looked yet whether this one has room.
        note_blocked(WriteGate::Udp(socket()));

        let woken = Arc::new(Woken::default());
        assert!(!poll(&mut poller, &woken), "the former one has room");
        poll_fn(|cx| Pin::new(&mut poller).poll_writable(cx))
            .await
            .unwrap();
    }

    #[test]
    fn a_hole_swallows_what_it_holds_and_releases_whoever_waits() {
        let queue = Arc::new(Queue::new(Role::Client, PathKind::Network));
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

    fn fill_does_nothing(queue: &Queue) {
        for _ in 0..100 {
            queue.try_push(None, &[7; 1200]).unwrap();
        }
        assert!(!queue.try_pop(&mut VecDeque::new()));
    }
}
