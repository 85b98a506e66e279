//! The state of an HTTP/2 connection, as far as its time limits depend on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::frames::{Found, FrameScanner, kind};
use crate::edge::limits::EdgeLimits;

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
    /// Rest of the visitor's window for the whole connection, in bytes.
    window: i64,
    /// Payload bytes of DATA frames sent.
    data_sent: u64,
    /// The visitor's socket accepts no data at the moment.
    is_write_blocked: bool,
}

impl Http2Connection {
    /// Create the state of a new connection.
    pub fn new() -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            state: Mutex::new(State {
                started: now,
                received: FrameScanner::of_client(),
                sent: FrameScanner::of_server(),
                unfinished: None,
                streams: 0,
                active: now,
                window: INITIAL_WINDOW,
                data_sent: 0,
                is_write_blocked: false,
            }),
            changed: Notify::new(),
        })
    }

    /// Record received bytes.
    pub fn received(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let State {
            received, window, ..
        } = &mut *state;
        received.scan(bytes, |found| {
            if let Found::Window(more) = found {
                *window = window.saturating_add(more.into());
            }
        });
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
                *data_sent += u64::from(length);
            }
            Found::Frame {
                kind: kind::HEADERS,
                ..
            } => is_active = true,
            _ => {}
        });
        if is_active {
            state.active = Instant::now();
        }
    }

    /// Record whether the visitor's socket accepts data.
    pub fn write_blocked(&self, is_blocked: bool) {
        self.lock().is_write_blocked = is_blocked;
    }

    /// Report whether the visitor's socket accepts no data at the moment.
    pub fn is_write_blocked(&self) -> bool {
        self.lock().is_write_blocked
    }

    /// Return how many bytes of DATA have been sent on all streams, and whether the window for the
    /// whole connection is exhausted.
    pub fn progress(&self) -> (u64, bool) {
        let state = self.lock();
        (state.data_sent, state.window <= 0)
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

/// Initial window of a connection (RFC 9113 §6.9.2).
const INITIAL_WINDOW: i64 = 65_535;

/// Lower bound of the interval of checks: a zero limit would mean a busy loop.
const MIN_IDLE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    const SETTINGS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const HEADERS: &[u8] = &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88];
    const HALF: &[u8] = &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x88];
    const MOMENT: Duration = Duration::from_millis(10);

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
        let silent = Http2Connection::new();
        silent.received(&SETTINGS[..30]);
        about(limits.preface, end(&silent).await, Expired::Preface);

        let idle = Http2Connection::new();
        idle.received(SETTINGS);
        about(limits.idle, end(&idle).await, Expired::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_ends_a_connection_and_the_rest_in_time_does_not() {
        let limits = EdgeLimits::default();
        let connection = Http2Connection::new();
        connection.received(SETTINGS);
        connection.received(HALF);
        about(limits.head, end(&connection).await, Expired::Head);

        let connection = Http2Connection::new();
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
        let connection = Http2Connection::new();
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

        let connection = Http2Connection::new();
        connection.received(SETTINGS);
        let stream = connection.start_stream();
        assert!(timeout(limits.idle * 20, end(&connection)).await.is_err());
        drop(stream);
        about(limits.idle, end(&connection).await, Expired::Idle);

        let connection = Http2Connection::new();
        connection.received(SETTINGS);
        sleep(limits.idle / 2).await;
        connection.sent(HEADERS);
        about(limits.idle, end(&connection).await, Expired::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_stream_is_no_activity_of_its_connection() {
        let limits = EdgeLimits::default();
        let connection = Http2Connection::new();
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

    #[test]
    fn the_window_of_the_connection_is_tracked() {
        let connection = Http2Connection::new();
        let data = |length: u32| {
            let [_, a, b, c] = length.to_be_bytes();
            let mut frame = vec![a, b, c, 0, 0, 0, 0, 0, 1];
            frame.resize(9 + length as usize, 0);
            frame
        };
        connection.sent(&data(65_000));
        assert_eq!(connection.progress(), (65_000, false));
        connection.sent(&data(535));
        assert_eq!(connection.progress(), (65_535, true));
        connection.received(SETTINGS);
        connection.received(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(connection.progress(), (65_535, false));
    }
}
