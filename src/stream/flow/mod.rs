//! Flow control of conversations: how much of a body may be on its way before whoever reads it has
//! taken it.
//!
//! QUIC's own windows are the same for every stream of a connection, and fixed: large enough for one
//! download on a long path, they let a thousand slow readers pin a thousand times as much, and then
//! fill the connection's window, in which all others stand still. So each direction of a conversation
//! has a window of its own above them. It begins small, grows while its reader keeps up (as TCP's
//! receive buffers do), and no further than the session's and the process's [`Budget`] allow. What is
//! short never hears of it: a limit is only told once much has been read.

pub(crate) mod budget;
pub(crate) mod large_head;
pub(crate) mod receive_window;
pub(crate) mod send_window;
pub(crate) mod tail;
#[cfg(test)]
mod tests;
pub(crate) mod unread;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Connection;
use tokio::sync::{Notify, watch};
use tracing::warn;

pub use self::budget::{Budget, BufferTotal};
pub use self::large_head::{Crowded, LargeHead};
pub use self::receive_window::{Exceeded, ReceiveWindow};
pub use self::send_window::SendWindow;
pub use self::unread::{SharedWindow, Unread};

use self::large_head::LargeHeads;
use self::tail::TailProbe;

use crate::proto::{Close, FIRST_WINDOW_LIMIT, WINDOW_STEP, Window, WireError};

/// Ends a session with a code and a reason.
type CloseSession = dyn Fn(Close, &str) + Send + Sync;

/// The windows of one session's conversations, in both directions.
pub struct FlowControl {
    /// How long a round trip takes now.
    round_trip: Box<dyn Fn() -> Duration + Send + Sync>,
    /// Whether packets are lost on the way.
    is_lossy: Box<dyn Fn() -> bool + Send + Sync>,
    budget: Budget,
    /// Limits of what we send on streams, for those that may come to theirs.
    sending: Mutex<HashMap<u64, watch::Sender<u64>>>,
    /// How many limits the peer may still tell: one for each step of what was sent.
    notices: AtomicI64,
    /// How often the peer has broken the protocol on a stream.
    violations: AtomicU32,
    /// Ends the session.
    close: Box<CloseSession>,
    /// Limits that the peer is to be told.
    untold: Mutex<HashMap<u64, u64>>,
    told: Notify,
    large_heads: LargeHeads,
    tail: TailProbe,
    /// Hears of every message's end, and how long its body was.
    ended: Box<dyn Fn(u64) + Send + Sync>,
}

impl FlowControl {
    /// Begin a session on a connection. `ended` is called whenever the end of a message is written, with the
    /// length of its body.
    pub fn on(
        connection: &Connection,
        budget: Budget,
        ended: impl Fn(u64) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (path, stats, whole) = (connection.clone(), connection.clone(), connection.clone());
        let close = move |close: Close, reason: &str| whole.close(close.code(), reason.as_bytes());
        let is_lossy = move || {
            let path = stats.stats().path;
            path.lost_packets * LOSSY > path.sent_packets
        };
        Self::new(move || path.rtt(), is_lossy, close, budget, ended)
    }

    pub(crate) fn new(
        round_trip: impl Fn() -> Duration + Send + Sync + 'static,
        is_lossy: impl Fn() -> bool + Send + Sync + 'static,
        close: impl Fn(Close, &str) + Send + Sync + 'static,
        budget: Budget,
        ended: impl Fn(u64) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            ended: Box::new(ended),
            round_trip: Box::new(round_trip),
            is_lossy: Box::new(is_lossy),
            budget,
            sending: Mutex::default(),
            notices: AtomicI64::new(SPARE_NOTICES),
            violations: AtomicU32::new(0),
            close: Box::new(close),
            untold: Mutex::default(),
            told: Notify::new(),
            large_heads: LargeHeads::default(),
            tail: TailProbe::default(),
        })
    }

    /// Return limits that the peer must be told, once there are any. May be cancelled.
    pub async fn untold(&self) -> Vec<Window> {
        loop {
            let limits = std::mem::take(&mut *lock(&self.untold));
            if !limits.is_empty() {
                let limits = limits.into_iter();
                return limits
                    .map(|(stream, limit)| Window { stream, limit })
                    .collect();
            }
            self.told.notified().await;
        }
    }

    /// Take in a limit that the peer has told. One for a stream that has ended means nothing.
    ///
    /// # Errors
    /// If the peer has told more of them than it can have read steps of what was sent.
    pub fn raise(&self, Window { stream, limit }: Window) -> Result<(), WireError> {
        if self.notices.fetch_sub(1, Ordering::Relaxed) <= 0 {
            return Err(WireError::Invalid(
                "more windows are told than what was sent can ask for",
            ));
        }
        if let Some(known) = lock(&self.sending).get(&stream) {
            known.send_if_modified(|known| {
                let raised = limit > *known;
                *known = limit.max(*known);
                raised
            });
        }
        Ok(())
    }

    /// Note that the peer has broken the protocol on a stream, which is reset. Whoever does it again and again
    /// loses the session: the log does not fill, and no visitor's time is wasted.
    pub fn violated(&self, stream: u64, what: &dyn fmt::Display) {
        let before = self.violations.fetch_add(1, Ordering::Relaxed);
        if before < MOST_VIOLATIONS {
            warn!(stream, %what, "the other end breaks the protocol, the stream is reset");
        }
        if before + 1 == MOST_VIOLATIONS {
            (self.close)(Close::Protocol, "too many streams break the protocol");
        }
    }

    /// Note that so much has been sent on a stream, before and now.
    fn sent(&self, before: u64, now: u64) {
        let steps = now / WINDOW_STEP - before / WINDOW_STEP;
        if steps > 0 {
            self.notices.fetch_add(steps as i64, Ordering::Relaxed);
        }
    }

    /// Wait until something must be sent behind the end of a message, so that its loss is noticed. May be
    /// cancelled.
    pub async fn tail_probe_due(&self) {
        self.tail.due(|| self.round_trip()).await;
    }

    fn message_written(&self, bytes: u64) {
        self.tail.ended(&self.is_lossy);
        (self.ended)(bytes);
    }

    fn tell(&self, stream: u64, limit: u64) {
        lock(&self.untold).insert(stream, limit);
        self.told.notify_one();
    }

    fn round_trip(&self) -> Duration {
        (self.round_trip)().max(SHORTEST_ROUND_TRIP)
    }
}

impl fmt::Debug for FlowControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowControl").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds it can panic halfway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The window of a new conversation while there is room: what is in flight at 50 Mbit/s and 40 ms, two
/// times over, because on a path that loses packets the next limit may take some round trips to come.
const FIRST_WINDOW: u64 = FIRST_WINDOW_LIMIT;

/// The largest window: a round trip of 300 ms at 100 Mbit/s. QUIC's own is as large.
const LARGEST_WINDOW: u64 = 4 << 20;

/// Nobody is told a limit before a quarter of the smallest window has been read, so that whoever has not
/// sent this much need not listen.
const UNHEARD: u64 = WINDOW_STEP;

/// Limits that may be told beyond what was sent: none is needed, and it costs nothing.
const SPARE_NOTICES: i64 = 64;

/// Streams of a session that may break the protocol. One does by a fault of the other end, which is logged; so many
/// do on purpose.
const MOST_VIOLATIONS: u32 = 16;

/// A path is worth another packet per message if it loses one in so many.
const LOSSY: u64 = 500;

/// What scheduling makes of the shortest round trip.
const SHORTEST_ROUND_TRIP: Duration = Duration::from_millis(1);
