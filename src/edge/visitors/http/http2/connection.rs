//! The state of an HTTP/2 connection, as far as its limits depend on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::frames::{Found, FrameScanner, INITIAL_WINDOW, kind};
use super::sent_ahead::SentAhead;
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::http::read_pauses::ReadPauses;

/// The state of one HTTP/2 connection.
#[derive(Debug)]
pub struct Http2Connection {
    state: Mutex<State>,
    /// Notified when a time limit may be nearer than before.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    started: Instant,
    received: FrameScanner,
    sent: FrameScanner,
    /// Arrival of the first byte of something that must not take long, while it is unfinished.
    unfinished: Option<Instant>,
    /// Streams that are being served.
    streams: usize,
    /// Last time at which a stream started, ended, or was written to.
    active: Instant,
    /// Unread bytes of request bodies.
    sent_ahead: SentAhead,
    /// Last time at which the connection was not read, because too much was unread.
    unread_at: Option<Instant>,
    /// The connection is not read at the moment.
    is_read_paused: bool,
    /// Times at which the visitor may not send: the connection is not read, or its window for all
    /// streams is exhausted.
    pauses: ReadPauses,
    /// Rest of the visitor's window for the whole connection, in bytes.
    window: i64,
    /// Last time at which a DATA frame was sent, on any stream.
    data_sent: Instant,
    /// The visitor's socket accepts no data at the moment.
    is_write_blocked: bool,
}

impl Http2Connection {
    /// Create the state of a new connection.
    pub fn new(sent_ahead: SentAhead) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            state: Mutex::new(State {
                started: now,
                received: FrameScanner::of_client(),
                sent: FrameScanner::of_server(),
                unfinished: None,
                streams: 0,
                active: now,
                sent_ahead,
                unread_at: None,
                is_read_paused: false,
                pauses: ReadPauses::default(),
                window: INITIAL_WINDOW,
                data_sent: now,
                is_write_blocked: false,
            }),
            changed: Notify::new(),
        })
    }

    /// Record received bytes.
    pub fn received(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let State {
            received,
            window,
            sent_ahead,
            ..
        } = &mut *state;
        received.scan(bytes, |found| match found {
            Found::Window(more) => *window = window.saturating_add(more.into()),
            Found::Frame {
                kind: kind::DATA,
                length,
            } => sent_ahead.received(length),
            Found::Frame { .. } => {}
        });
        state.update_pauses();
        if !state.received.is_unfinished() {
            state.unfinished = None;
        } else if state.unfinished.is_none() {
            state.unfinished = Some(Instant::now());
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Record sent bytes.
    pub fn sent(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let State {
            sent,
            window,
            data_sent,
            sent_ahead,
            ..
        } = &mut *state;
        let mut is_active = false;
        sent.scan(bytes, |found| match found {
            Found::Frame {
                kind: kind::DATA,
                length,
            } => {
                is_active = true;
                *window -= i64::from(length);
                *data_sent = Instant::now();
            }
            Found::Frame {
                kind: kind::HEADERS,
                ..
            } => is_active = true,
            Found::Window(more) => sent_ahead.window_updated(more),
            Found::Frame { .. } => {}
        });
        if is_active {
            state.active = Instant::now();
        }
        state.update_pauses();
    }

    /// Return the clock of the times at which the visitor may not send.
    pub fn read_pauses(&self) -> ReadPauses {
        self.lock().pauses.clone()
    }

    /// Record that bytes of a request's body have been read.
    pub fn read(&self, bytes: usize) {
        self.lock().sent_ahead.read(bytes);
    }

    /// Report whether more may be received from the visitor. While it may not, no head is late.
    pub fn has_room(&self) -> bool {
        let mut state = self.lock();
        let has_room = !state.sent_ahead.exceeds_share();
        state.is_read_paused = !has_room;
        if !has_room {
            state.unfinished = None;
            state.unread_at = Some(Instant::now());
        }
        state.update_pauses();
        has_room
    }

    /// Record whether the visitor's socket accepts data.
    pub fn write_blocked(&self, is_blocked: bool) {
        self.lock().is_write_blocked = is_blocked;
    }

    /// Report whether the visitor's socket accepts no data at the moment.
    pub fn is_write_blocked(&self) -> bool {
        self.lock().is_write_blocked
    }

    /// Return the last time at which a stream may have had to wait for the others of the
    /// connection, because the visitor's socket, or its window for the whole connection, accepts no
    /// data, or because the connection was not read, and so no update of a window.
    pub fn busy_until(&self) -> Option<Instant> {
        let state = self.lock();
        if state.is_write_blocked {
            return Some(Instant::now());
        }
        let window_used_up = (state.window <= 0).then_some(state.data_sent);
        window_used_up.max(state.unread_at)
    }

    /// Report whether any stream is being served.
    pub fn has_streams(&self) -> bool {
        self.lock().streams > 0
    }

    /// Count a stream as being served, until the returned value is dropped.
    pub fn start_stream(self: &Arc<Self>) -> ActiveStream {
        let mut state = self.lock();
        state.streams += 1;
        state.active = Instant::now();
        ActiveStream {
            connection: self.clone(),
            has_stalled: false,
        }
    }

    /// Wait until a time limit has expired.
    pub async fn expired(&self, limits: &EdgeLimits) -> Expired {
        loop {
            let changed = self.changed.notified();
            let next = self.lock().next_deadline(limits, Instant::now());
            match next {
                Err(expired) => return expired,
                Ok(deadline) => tokio::select! {
                    () = sleep_until(deadline) => {}
                    () = changed => {}
                },
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics half-way through a change while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn update_pauses(&self) {
        let is_window_exhausted = self.sent_ahead.is_window_exhausted();
        self.pauses.set(self.is_read_paused || is_window_exhausted);
    }

    /// Return the limit that has expired, or when to check again.
    fn next_deadline(&self, limits: &EdgeLimits, now: Instant) -> Result<Instant, Expired> {
        let preface = Some(self.started + limits.preface).filter(|_| !self.received.has_preface());
        let unfinished = self.unfinished.map(|since| since + limits.head);
        // With open streams there is no idle limit, only a later check.
        let idle = match self.streams {
            0 => self.active + limits.idle,
            _ => now + limits.idle.max(MIN_IDLE),
        };
        let mut next = idle;
        for (deadline, expired) in [
            (preface, Expired::Preface),
            (unfinished, Expired::Head),
            (Some(idle), Expired::Idle),
        ] {
            match deadline {
                Some(deadline) if deadline <= now => return Err(expired),
                Some(deadline) => next = next.min(deadline),
                None => {}
            }
        }
        Ok(next)
    }
}

/// A stream that is being served. While it exists, the connection is not idle.
#[derive(Debug)]
pub struct ActiveStream {
    connection: Arc<Http2Connection>,
    has_stalled: bool,
}

impl ActiveStream {
    /// Record that the stream ends because the visitor has stopped reading it, which is no
    /// activity.
    pub fn stalled(&mut self) {
        self.has_stalled = true;
    }
}

impl Drop for ActiveStream {
    fn drop(&mut self) {
        let mut state = self.connection.lock();
        state.streams -= 1;
        if state.streams == 0 {
            state.sent_ahead.clear();
        }
        if !self.has_stalled {
            state.active = Instant::now();
        } else if state.streams == 0 {
            drop(state);
            self.connection.changed.notify_one();
        }
    }
}

/// The time limit of a connection that has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Expired {
    #[error("the connection preface did not arrive in time")]
    Preface,
    #[error("a head was not complete in time")]
    Head,
    #[error("the connection is idle")]
    Idle,
}

/// Lower bound of the interval of checks: a zero limit would mean a busy loop.
const MIN_IDLE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::stream::BufferTotal;

    const SETTINGS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const HEADERS: &[u8] = &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88];
    const HALF: &[u8] = &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x88];
    const MOMENT: Duration = Duration::from_millis(10);

    fn fresh() -> Arc<Http2Connection> {
        Http2Connection::new(SentAhead::new(BufferTotal::new(1 << 20), 1 << 20))
    }

    /// Wait for the end, and return when and why it came.
    async fn end(connection: &Http2Connection) -> (Duration, Expired) {
        let started = Instant::now();
        let expired = connection.expired(&EdgeLimits::default()).await;
        (started.elapsed(), expired)
    }

    fn about(limit: Duration, (took, expired): (Duration, Expired), wanted: Expired) {
        assert_eq!(expired, wanted);
        assert!(took >= limit && took < limit + MOMENT, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_preface_a_connection_ends_and_with_one_it_is_idle() {
        let limits = EdgeLimits::default();
        let silent = fresh();
        silent.received(&SETTINGS[..30]);
        about(limits.preface, end(&silent).await, Expired::Preface);

        let idle = fresh();
        idle.received(SETTINGS);
        about(limits.idle, end(&idle).await, Expired::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_ends_a_connection_and_the_rest_in_time_does_not() {
        let limits = EdgeLimits::default();
        let connection = fresh();
        connection.received(SETTINGS);
        connection.received(HALF);
        about(limits.head, end(&connection).await, Expired::Head);

        let connection = fresh();
        connection.received(SETTINGS);
        connection.received(HALF);
        let finish = async {
            sleep(limits.head - MOMENT).await;
            connection.received(&[0, 0, 0, 9, 4, 0, 0, 0, 1]);
        };
        let (ended, ()) = tokio::join!(end(&connection), finish);
        about(limits.idle, ended, Expired::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn pings_do_not_keep_a_connection_open_but_streams_and_responses_do() {
        let limits = EdgeLimits::default();
        let connection = fresh();
        connection.received(SETTINGS);
        let pinging = async {
            loop {
                sleep(Duration::from_secs(1)).await;
                connection.received(PING);
                connection.sent(PING);
            }
        };
        let ended = tokio::select! {
            ended = end(&connection) => ended,
            () = pinging => unreachable!("it pings on"),
        };
        about(limits.idle, ended, Expired::Idle);

        let connection = fresh();
        connection.received(SETTINGS);
        let stream = connection.start_stream();
        assert!(timeout(limits.idle * 20, end(&connection)).await.is_err());
        drop(stream);
        about(limits.idle, end(&connection).await, Expired::Idle);

        let connection = fresh();
        connection.received(SETTINGS);
        sleep(limits.idle / 2).await;
        connection.sent(HEADERS);
        about(limits.idle, end(&connection).await, Expired::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_stream_is_no_activity_of_its_connection() {
        let limits = EdgeLimits::default();
        let connection = fresh();
        connection.received(SETTINGS);
        let mut stream = connection.start_stream();
        let stall = async {
            sleep(limits.idle * 2).await;
            stream.stalled();
            drop(stream);
        };

        let (ended, ()) = tokio::join!(end(&connection), stall);

        about(limits.idle * 2, ended, Expired::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_window_of_the_connection_is_exhausted_its_streams_wait_for_one_another() {
        let connection = fresh();
        let data = |length: u32| {
            let [_, a, b, c] = length.to_be_bytes();
            let mut frame = vec![a, b, c, 0, 0, 0, 0, 0, 1];
            frame.resize(9 + length as usize, 0);
            frame
        };
        connection.sent(&data(65_000));
        assert_eq!(connection.busy_until(), None);
        connection.sent(&data(535));
        let used_up = Instant::now();
        sleep(MOMENT).await;
        assert_eq!(connection.busy_until(), Some(used_up));
        connection.received(SETTINGS);
        connection.received(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(connection.busy_until(), None);
        connection.write_blocked(true);
        assert_eq!(connection.busy_until(), Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn while_too_much_is_unread_its_streams_wait_and_the_visitor_is_not_late() {
        let connection = fresh();
        let pauses = connection.read_pauses();
        connection.sent(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0x0e, 0xff, 0xff]);
        connection.received(SETTINGS);
        for _ in 0..13 {
            let mut data = vec![0; 9 + 0x4000];
            data[..9].copy_from_slice(&[0, 0x40, 0, 0, 0, 0, 0, 0, 1]);
            assert!(connection.has_room() && !pauses.is_paused());
            connection.received(&data);
        }

        assert!(!connection.has_room() && pauses.is_paused());
        assert_eq!(connection.busy_until(), Some(Instant::now()));
        connection.read(1 << 18);

        assert!(connection.has_room() && !pauses.is_paused());
    }

    #[tokio::test(start_paused = true)]
    async fn a_visitor_without_a_window_is_not_late() {
        let connection = fresh();
        let pauses = connection.read_pauses();
        connection.received(SETTINGS);
        for length in [0x4000_u16, 0x4000, 0x4000, 0x3fff] {
            assert!(!pauses.is_paused());
            let [high, low] = length.to_be_bytes();
            let mut data = vec![0; 9 + usize::from(length)];
            data[..9].copy_from_slice(&[0, high, low, 0, 0, 0, 0, 0, 1]);
            connection.received(&data);
        }

        assert!(pauses.is_paused());
        assert_eq!(connection.busy_until(), None, "the connection is read");
        connection.sent(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

        assert!(!pauses.is_paused());
    }
}
